//! The daemon dies and comes back: workloads notice nothing, state is told truthfully, nothing is left.

use std::os::unix::fs::MetadataExt;

use berth_api::cri::{ContainerState, PodSandboxState, RunPodSandboxRequest};
use berth_test::cri::script;
use berth_test::{Node, pod, until};

#[tokio::test]
async fn containers_run_on_and_are_found_again() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("kept")).await;
    let c = pod.run(script("c", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done")).await;
    let (before, address) = (c.status().await, pod.ip().await);
    let pid = c.shell("readlink /proc/1/ns/mnt").await;
    node.kill_daemon().await;
    let count = c.log().len();
    if node.is_berth() {
        until("it logs while the daemon is dead", 5, async || c.log().len() > count + 5).await;
    }
    node.restart().await;
    let after = c.status().await;
    assert_eq!(after, before, "its status is what it was");
    assert_eq!(pod.status().await.state(), PodSandboxState::SandboxReady);
    assert_eq!(pod.ip().await, address);
    assert_eq!(c.shell("readlink /proc/1/ns/mnt").await, pid, "it is the same process");
    let said: Vec<_> =
        c.log().into_iter().map(|l| String::from_utf8_lossy(&l.text).parse::<usize>().expect("a number")).collect();
    assert_eq!(said, (1..=said.len()).collect::<Vec<_>>(), "no line is lost or doubled");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn an_end_that_came_meanwhile_is_told_with_its_code_and_time() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("meanwhile")).await;
    let go = node.dir().join("go");
    std::fs::create_dir_all(&go).expect("make go");
    let mut config = script("c", "until [ -e /go/now ]; do sleep 0.05; done; exit 42");
    config.mounts = vec![berth_api::cri::Mount {
        container_path: "/go".into(),
        host_path: go.to_str().expect("UTF-8").into(),
        ..Default::default()
    }];
    let c = pod.run(config).await;
    node.kill_daemon().await;
    let nanoseconds = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        i64::try_from(now.as_nanos()).expect("before 2262")
    };
    let from = nanoseconds();
    std::fs::write(go.join("now"), "").expect("let it end");
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let to = nanoseconds();
    node.restart().await;
    let status = c.status().await;
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 42));
    assert_eq!(status.reason, "Error");
    if node.is_berth() {
        assert!((from..=to).contains(&status.finished_at), "the time of its end, not of our finding it");
    }
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn created_exited_and_stopped_are_what_they_were() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("states")).await;
    let stopped = node.run_pod(berth_test::pod("stopped")).await;
    stopped.stop().await.expect("StopPodSandbox");
    let (created, exited) =
        (pod.create(script("created", "echo late")).await, pod.run(script("exited", "exit 9")).await);
    let before = (created.status().await, exited.ended().await, stopped.status().await);
    node.stop_daemon().await;
    node.restart().await;
    assert_eq!((created.status().await, exited.status().await, stopped.status().await), before);
    created.start().await.expect("a created container starts after a restart");
    assert_eq!(created.said().await, "late\n");
    pod.end().await;
    stopped.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_request_repeated_after_a_kill_succeeds() {
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    // Killed at random moments of a pod's start; the client repeats the very same request, as a kubelet does.
    for millisecond in [0, 1, 2, 3, 5, 8, 13, 21] {
        let mut config = pod(&format!("again-{millisecond}"));
        config.log_directory = node.dir().join("logs").to_str().expect("UTF-8").into();
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let mut client = node.runtime();
        let asked = request.clone();
        let first = tokio::spawn(async move { client.run_pod_sandbox(asked).await });
        tokio::time::sleep(std::time::Duration::from_millis(millisecond)).await;
        node.kill_daemon().await;
        let _ = first.await.expect("no panic");
        node.restart().await;
        let again = node.try_run_pod(config).await.expect("the same request again");
        assert_eq!(again.status().await.state(), PodSandboxState::SandboxReady);
        again.run(script("c", "exec sleep 1000")).await;
        again.end().await;
        node.assert_nothing_left();
    }
}

#[tokio::test]
async fn a_dead_shim_is_an_end_within_a_second() {
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let pod = node.run_pod(pod("shimless")).await;
    let c = pod.run(script("c", "exec sleep 4731")).await;
    let shim = node
        .enclosure()
        .processes()
        .into_iter()
        .find(|(_, line)| line.contains("containerd-shim-berth-v1") && line.contains(&c.id))
        .expect("a shim runs");
    node.enclosure().kill(shim.0, "KILL");
    until("its end is told", 2, async || c.status().await.state() == ContainerState::ContainerExited).await;
    let status = c.status().await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "ShimDied"));
    until("its process is gone", 2, async || {
        !node.enclosure().processes().iter().any(|(_, line)| line == "sleep 4731")
    })
    .await;
    // The pod lives on.
    assert_eq!(pod.run(script("next", "echo next")).await.said().await, "next\n");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn cve_2019_5736_shims_run_from_one_clone_of_their_binary_that_cannot_be_written() {
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let pod = node.run_pod(pod("sealed")).await;
    let shims = || {
        let processes = node.enclosure().processes().into_iter();
        let shims = processes.filter(|(_, line)| line.contains("containerd-shim-berth-v1"));
        shims.map(|(pid, _)| node.enclosure().path(format!("/proc/{pid}/exe"))).collect::<Vec<_>>()
    };
    for name in ["one", "two"] {
        pod.run(script(name, "exec sleep 1000")).await;
    }
    let device = |exe: &std::path::PathBuf| std::fs::metadata(exe).expect("a shim's binary").dev();
    let running = shims();
    assert_eq!(running.len(), 2, "{running:?}");
    for exe in &running {
        let refused = std::fs::OpenOptions::new().write(true).open(exe).expect_err("a clone");
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{refused}");
    }
    // A shim that has to clone it for itself has a mount of its own, and needs a second exec for it.
    assert_eq!(device(&running[0]), device(&running[1]), "the daemon's clone");
    pod.end().await;
    node.assert_nothing_left();
}
