//! Pods of other runtimes: Debian's containerd-shim-runc-v2 with runc, driven by berth.

use berth_api::cri::{
    ContainerState, ImageSpec, LinuxContainerResources, Mount, ReopenContainerLogRequest, StatusRequest,
    UpdateContainerResourcesRequest,
};
use berth_test::cri::{container, script};
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

    // Its shim dies: the container is killed, told, and what runc remembers of it is cleaned up.
    node.enclosure().shell(&format!("pkill -KILL -f 'containerd-shim-runc-v[2] .*{}'", kept.id));
    let ended = kept.ended().await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "ShimDied"));
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
