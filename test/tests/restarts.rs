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
    until("its process is gone", 2, async || node.enclosure().running("sleep 4731") == 0).await;
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

#[tokio::test]
async fn an_end_that_could_not_be_recorded_is_told_after_a_restart_too() {
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let pod = node.run_pod(pod("unrecorded")).await;
    let c = pod.create(script("c", "exit 7")).await;
    let records = node.dir().join("data/pods").join(&pod.id);
    let records = records.display();
    node.enclosure().shell(&format!("mount --bind {records} {records} && mount -o remount,bind,ro {records}"));
    c.start().await.expect("StartContainer");
    assert_eq!(c.ended().await.exit_code, 7);
    node.kill_daemon().await;
    node.enclosure().shell(&format!("umount {records}"));
    node.restart().await;
    let status = c.try_status().await.expect("it is known still");
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 7));
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_pods_record_that_cannot_be_read_costs_its_containers_nothing() {
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let pod = node.run_pod(pod("unreadable")).await;
    let c = pod.run(script("c", "echo here >/kept; exec sleep 4732")).await;
    let runs = || node.enclosure().running("sleep 4732") > 0;
    until("it runs", 5, async || runs()).await;
    let records = node.dir().join("data/pods").join(&pod.id);
    let (of_pod, of_container) = (records.join("request"), records.join(format!("{}.request", c.id)));
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("read the boot id");
    // One of which only the request in it is none.
    let hollow = format!(
        r#"{{"id":"{}","created_at_ns":1,"boot_id":"{}","request":"////","network":null}}"#,
        pod.id,
        boot.trim()
    );
    node.kill_daemon().await;
    for (record, bad) in [(&of_pod, "{"), (&of_pod, hollow.as_str()), (&of_container, "{")] {
        let good = std::fs::read(record).expect("read the record");
        std::fs::write(record, bad).expect("spoil the record");
        node.restart().await;
        assert!(c.try_status().await.is_err(), "{record:?} {bad}");
        assert!(runs(), "{record:?} {bad}: its container was killed");
        node.kill_daemon().await;
        std::fs::write(record, good).expect("mend the record");
    }
    node.restart().await;
    assert_eq!(pod.status().await.state(), PodSandboxState::SandboxReady);
    assert_eq!(c.shell("cat /kept").await, "here\n");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_container_starts_and_ends_though_no_file_can_be_written() {
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let pod = node.run_pod(pod("full")).await;
    let c = pod.create(script("c", "exec sleep 1000")).await;
    let run = node.dir().join("run");
    let run = run.display();
    node.enclosure()
        .shell(&format!("mount -o remount,size=4m {run}; dd if=/dev/zero of={run}/fill bs=4k 2>&1 || true"));
    c.start().await.expect("StartContainer");
    assert_eq!(c.status().await.state(), ContainerState::ContainerRunning);
    c.stop(0).await.expect("StopContainer");
    assert_eq!(c.ended().await.exit_code, 137);
    pod.stop().await.expect("StopPodSandbox");
    node.kill_daemon().await;
    node.restart().await;
    assert_eq!(pod.status().await.state(), PodSandboxState::SandboxNotready, "that it was stopped is known still");
    pod.remove().await.expect("RemovePodSandbox");
    node.enclosure().shell(&format!("rm {run}/fill"));
    node.assert_nothing_left();
}

/// A shim that is stopped, or hangs in the kernel, is no dead one: its container is not killed for it.
#[tokio::test]
async fn a_container_whose_shim_is_silent_is_adopted_as_it_was_and_told_when_it_speaks_again() {
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let pod = node.run_pod(pod("silent")).await;
    let c = pod.run(script("c", "trap 'exit 5' TERM; while :; do sleep 0.05; done")).await;
    let created = pod.create(script("created", "exit 6")).await;
    let before = c.status().await;
    let process = c.shell("readlink /proc/1/ns/mnt").await;
    let processes = node.enclosure().processes().into_iter();
    let shims: Vec<u32> =
        processes.filter(|(_, line)| line.contains("containerd-shim-berth-v1")).map(|(pid, _)| pid).collect();
    // The init that waits for its start is one by name, too.
    assert_eq!(shims.len(), 3);
    node.kill_daemon().await;
    shims.iter().for_each(|pid| node.enclosure().kill(*pid, "STOP"));
    node.restart().await;
    assert_eq!(c.status().await, before, "as it was last seen");
    assert_eq!(created.status().await.state(), ContainerState::ContainerCreated);
    shims.iter().for_each(|pid| node.enclosure().kill(*pid, "CONT"));
    assert_eq!(c.shell("readlink /proc/1/ns/mnt").await, process, "the same process");
    created.start().await.expect("start");
    assert_eq!(created.ended().await.exit_code, 6);
    c.stop(10).await.expect("stop");
    assert_eq!(c.ended().await.exit_code, 5);
    pod.end().await;
    node.assert_nothing_left();
}
