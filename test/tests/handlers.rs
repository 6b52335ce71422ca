//! Pods of other runtimes: Debian's containerd-shim-runc-v2 with runc, driven by berth.

use berth_api::cri::{
    ContainerState, ImageSpec, LinuxContainerResources, Mount, ReopenContainerLogRequest, StatusRequest,
    UpdateContainerResourcesRequest,
};
use berth_test::cri::{Container, container, script};
use berth_test::kernel::capability;
use berth_test::node::Options;
use berth_test::{Node, pod, until};
use tonic::Code;

const RUNTIMES: &str = "[runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n\
                        [runtimes.missing]\nruntime_type = \"io.containerd.no-such.v1\"\n";

async fn node() -> Node {
    Node::start_with(Options { config: RUNTIMES.into(), ..Default::default() }).await
}

#[tokio::test]
async fn a_pod_of_another_runtime_lives_and_dies() {
    let node = node().await;
    let pod = node.try_run_pod_by("runc", pod("other")).await.expect("a pod by runc");
    assert_eq!(pod.status().await.runtime_handler, "runc");
    let c =
        pod.run(script("c", "trap 'echo bye; exit 7' TERM; echo up; echo err >&2; while :; do sleep 0.05; done")).await;
    until("it has said so", 10, async || c.logged("stdout") == "up\n" && c.logged("stderr") == "err\n").await;
    // It is runc that runs it, in the pod's namespaces.
    assert_eq!(c.shell("hostname").await, "other\n");
    let ip = pod.ip().await;
    assert!(c.shell("ip -4 -o address show dev eth0").await.contains(&format!(" {ip}/")));
    let parents = node.enclosure().shell("ps -eo comm");
    assert!(parents.contains("containerd-shim"), "{parents}");

    let failed = c.try_exec(["sh", "-c", "echo out; echo err >&2; exit 3"], 10).await.expect("exec");
    assert_eq!((failed.exit_code, &failed.stdout[..], &failed.stderr[..]), (3, &b"out\n"[..], &b"err\n"[..]));
    let late = c.try_exec(["sleep", "100"], 1).await.expect_err("it takes too long");
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");

    let more = LinuxContainerResources { memory_limit_in_bytes: 128 << 20, ..Default::default() };
    let update =
        UpdateContainerResourcesRequest { container_id: c.id.clone(), linux: Some(more), ..Default::default() };
    node.runtime().update_container_resources(update).await.expect("UpdateContainerResources");
    assert_eq!(c.limit("memory", "memory.limit_in_bytes", "memory.max").await, (128 << 20).to_string());

    // The log goes on in a new file when it is told to, without the daemon seeing a byte of it.
    let old = c.log_path().with_extension("old");
    std::fs::rename(c.log_path(), &old).expect("rotate");
    let reopen = ReopenContainerLogRequest { container_id: c.id.clone() };
    node.runtime().reopen_container_log(reopen).await.expect("ReopenContainerLog");
    c.stop(10).await.expect("stop");
    let status = c.status().await;
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 7));
    assert_eq!(c.logged("stdout"), "bye\n");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn its_containers_outlive_the_daemon_and_end_as_the_table_says() {
    let node = node().await;
    let pod = node.try_run_pod_by("runc", pod("other")).await.expect("a pod by runc");
    let kept = pod.run(script("kept", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done")).await;
    let ending = pod.run(script("ending", "until [ -e /tmp/go ]; do sleep 0.05; done; exit 42")).await;
    let before = kept.status().await;
    ending.shell("(sleep 0.5; touch /tmp/go) >/dev/null 2>&1 &").await;
    node.kill_daemon().await;
    let count = kept.log().len();
    until("it logs while the daemon is dead", 10, async || kept.log().len() > count + 20).await;
    node.restart().await;
    assert_eq!(kept.status().await, before, "its status is what it was");
    let ended = ending.ended().await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (42, "Error"));
    assert_eq!(kept.shell("echo hello").await, "hello\n");

    // runc looks for the program when it creates.
    let error = pod.try_create(container("missing", ["/no/such/program"])).await.err().expect("no such program");
    assert!(error.message().contains("/no/such/program"), "{error}");

    let limit = LinuxContainerResources {
        memory_limit_in_bytes: 32 << 20,
        memory_swap_limit_in_bytes: 32 << 20,
        ..Default::default()
    };
    let mut greedy = script("greedy", "x=a; while :; do x=$x$x; done");
    greedy.linux.get_or_insert_default().resources = Some(limit);
    let ended = pod.run(greedy).await.ended().await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"));
    assert_eq!(ended.message, "a memory limit was reached");

    // Its shim dies: the container is killed, told, and what runc remembers of it is cleaned up.
    node.enclosure().shell(&format!("pkill -KILL -f 'containerd-shim-runc-v[2] .*{}'", kept.id));
    let ended = kept.ended().await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "ShimDied"));
    pod.end().await;
    node.assert_nothing_left();
}

/// The init's score for the kernel's choice of whom to kill: as the kernel has it, and as the status tells it.
async fn scores(c: &Container<'_>) -> (String, String) {
    let kernels = std::fs::read_to_string(c.proc("oom_score_adj").await).expect("read a score");
    let told = c.status().await.resources.and_then(|r| r.linux).expect("limits").oom_score_adj;
    (kernels.trim().to_owned(), told.to_string())
}

#[tokio::test]
async fn its_scores_are_told_as_they_are_and_follow_an_update() {
    let node = node().await;
    let pod = node.try_run_pod_by("runc", pod("scores")).await.expect("a pod by runc");
    let scored = |name: &str, oom_score_adj: i64| {
        let mut config = script(name, "exec sleep 1000");
        config.linux.get_or_insert_default().resources =
            Some(LinuxContainerResources { oom_score_adj, ..Default::default() });
        config
    };
    let c = pod.run(scored("c", 300)).await;
    assert_eq!(scores(&c).await, ("300".into(), "300".into()));
    let update = async |oom_score_adj: i64| {
        let linux = Some(LinuxContainerResources { oom_score_adj, ..Default::default() });
        let request = UpdateContainerResourcesRequest { container_id: c.id.clone(), linux, ..Default::default() };
        node.runtime().update_container_resources(request).await.expect("UpdateContainerResources");
    };
    update(400).await;
    assert_eq!(scores(&c).await, ("400".into(), "400".into()));
    // Where the host withholds it, both say so, and who comes later can still be executed.
    let low = pod.run(scored("low", -500)).await;
    let (kernels, told) = scores(&low).await;
    assert_eq!(kernels, told);
    let held = node.enclosure().shell("sed -n 's/^CapBnd:\t//p' /proc/1/status");
    let held = u64::from_str_radix(held.trim(), 16).expect("a mask") & capability("SYS_RESOURCE") != 0;
    assert_eq!(kernels == "-500", held, "{kernels}");
    update(-600).await;
    let (kernels, told) = scores(&c).await;
    assert_eq!(kernels, told);
    assert_eq!(kernels == "-600", held, "{kernels}");
    assert_eq!(c.shell("echo there").await, "there\n");
    node.kill_daemon().await;
    node.restart().await;
    assert_eq!(scores(&c).await, (kernels, told));
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn its_mounts_are_restricted_with_those_below_or_refused() {
    let node = node().await;
    let dir = node.dir().join("nested");
    node.enclosure().shell(&format!("mkdir -p {0}/sub && mount -t tmpfs below {0}/sub", dir.display()));
    let host_path = dir.to_str().expect("UTF-8").to_owned();
    let mut config = script("c", "exec sleep 1000");
    let plain = Mount { host_path, container_path: "/noexec".into(), ..Default::default() };
    config.mounts = vec![
        Mount { mount_options: vec!["noexec".into()], ..plain.clone() },
        Mount { container_path: "/rro".into(), readonly: true, recursive_read_only: true, ..plain },
    ];
    let runc = node.try_run_pod_by("runc", pod("runc")).await.expect("a pod by runc");
    let c = runc.run(config.clone()).await;
    let said = c.shell("for at in /rro /rro/sub; do touch $at/new 2>&1 || true; done").await;
    assert_eq!(said.matches("Read-only file system").count(), 2, "{said}");
    let run = "cp /bin/true $at/run && ($at/run 2>&1 || true) && rm $at/run";
    let said = c.shell(&format!("for at in /noexec /noexec/sub; do {run}; done")).await;
    assert_eq!(said.matches("Permission denied").count(), 2, "{said}");
    runc.end().await;
    // A runtime that does not say that it can is not asked to.
    let missing = node.try_run_pod_by("missing", pod("missing")).await.expect("a pod needs no shim yet");
    let refused = missing.try_create(config).await.err().expect("options that nobody knows");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("config.mounts[0].mount_options: handler missing"), "{refused}");
    missing.end().await;
    node.enclosure().shell(&format!("umount {}/sub", dir.display()));
    node.assert_nothing_left();
}

/// crun refuses a host that has both versions of cgroups mounted, as this one may; without its version 2 tree it runs.
#[tokio::test]
async fn crun_runs_where_one_version_of_cgroups_is_mounted() {
    let crun =
        "[runtimes.crun]\nruntime_type = \"io.containerd.runc.v2\"\noptions = { BinaryName = \"/usr/bin/crun\" }\n";
    let node = Node::start_with(Options { config: crun.into(), ..Default::default() }).await;
    node.kill_daemon().await;
    node.enclosure().shell("! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified");
    node.restart().await;
    let pod = node.try_run_pod_by("crun", pod("crun")).await.expect("a pod by crun");
    let limits = LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() };
    let mut config = script("c", "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done");
    config.linux.get_or_insert_default().resources = Some(limits);
    let c = pod.run(config).await;
    until("it has said so", 10, async || c.logged("stdout") == "up\n").await;
    assert_eq!(c.limit("memory", "memory.limit_in_bytes", "memory.max").await, (64 << 20).to_string());
    assert!(!node.enclosure().shell("ps -eo comm").contains("containerd-shim-berth"), "another's shim has it");
    assert_eq!(c.shell("hostname").await, "crun\n");
    let failed = c.try_exec(["sh", "-c", "echo out; exit 3"], 10).await.expect("exec");
    assert_eq!((failed.exit_code, &failed.stdout[..]), (3, &b"out\n"[..]));
    c.stop(10).await.expect("stop");
    let status = c.status().await;
    assert_eq!((status.exit_code, c.logged("stdout")), (7, "up\nbye\n".to_owned()));
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn handlers_are_told_and_a_wrong_one_is_refused() {
    let node = node().await;
    let status = node.runtime().status(StatusRequest::default()).await.expect("Status").into_inner();
    let handlers: Vec<_> = status
        .runtime_handlers
        .iter()
        .map(|h| (h.name.as_str(), h.features.as_ref().is_some_and(|f| f.recursive_read_only_mounts)))
        .collect();
    // runc 1.1 knows the option rro; of a runtime that does not answer nothing is promised.
    assert_eq!(handlers, [("", true), ("missing", false), ("runc", true)]);
    let unknown = node.try_run_pod_by("kata", pod("unknown")).await.err().expect("no such handler");
    assert_eq!(unknown.code(), Code::InvalidArgument);
    assert!(unknown.message().contains("there are missing, runc and the default"), "{unknown}");
    let lost = node.try_run_pod_by("missing", pod("lost")).await.expect("a pod needs no shim yet");
    let refused = lost.try_create(script("c", "true")).await.err().expect("no shim");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("containerd-shim-no-such-v1 is not in"), "{refused}");
    let mut other = script("c", "true");
    other.image = other.image.map(|image| ImageSpec { runtime_handler: "runc".into(), ..image });
    let refused = lost.try_create(other).await.err().expect("an image for another handler");
    assert!(refused.message().contains("config.image.runtime_handler"), "{refused}");
    let mut other = script("c", "true");
    let image = ImageSpec { runtime_handler: "runc".into(), ..other.image.clone().expect("an image") };
    other.mounts = vec![Mount { container_path: "/volume".into(), image: Some(image), ..Default::default() }];
    let refused = lost.try_create(other).await.err().expect("a volume for another handler");
    assert!(refused.message().contains("config.mounts[0].image.runtime_handler"), "{refused}");
    lost.end().await;
    node.assert_nothing_left();
}
