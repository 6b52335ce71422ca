//! A pod whose containers are one shim's, and whoever is killed while it is made or taken down: the daemon at each of its
//! steps, the shim in the middle of its work. The same request succeeds when it is repeated, and nothing is left.

use std::path::PathBuf;

use berth_api::cri::PodSandboxState;
use berth_test::cri::script;
use berth_test::node::Options;
use berth_test::{Node, pod, until};

const RUNC: &str = "[runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\nsandbox_container = true\n";

async fn node(options: Options) -> Node {
    let node = Node::start_with(options).await;
    // Where the sockets of containerd's shims are is the whole host's; not here.
    node.enclosure().shell("mkdir -p /run/containerd && mount -t tmpfs shims /run/containerd");
    node.remember();
    node
}

/// What is there of shims and what they run.
fn shims(node: &Node) -> Vec<String> {
    let is_one = |line: &str| line.contains("containerd-shim") || line == "/pause";
    node.enclosure().processes().into_iter().map(|(_, line)| line).filter(|line| is_one(line)).collect()
}

fn assert_nothing_left(node: &Node, when: &str) {
    assert_eq!(shims(node), [""; 0], "{when}\n{}", node.log_tail());
    let sockets = std::fs::read_dir(node.enclosure().path("/run/containerd/s")).into_iter().flatten().flatten();
    assert_eq!(sockets.map(|socket| socket.path()).collect::<Vec<_>>(), Vec::<PathBuf>::new(), "{when}");
    let leaks = node.leaks();
    assert!(leaks.is_empty(), "{when}: left behind:\n  {}\n{}", leaks.join("\n  "), node.log_tail());
}

async fn arm(node: &Node, point: &str) {
    node.stop_daemon().await;
    node.restart_with(&[("BERTH_FAILPOINT", point)]).await;
}

async fn died(node: &Node, point: &str) {
    until(&format!("the daemon dies at {point}"), 10, async || node.daemon_pid().is_none()).await;
    node.restart_with(&[]).await;
}

#[tokio::test]
async fn a_daemon_killed_at_any_step_of_the_sandbox_container_leaves_nothing() {
    let node = node(Options { config: RUNC.into(), failpoints: true, ..Default::default() }).await;
    let steps = ["sandbox-record", "sandbox-bundle", "sandbox-shim", "sandbox-create", "sandbox-start"];
    let steps = steps.map(|step| format!("run_pod::{step}")).into_iter();
    let more = ["handler-intent", "handler-start", "handler-address"].map(|step| format!("create_container::{step}"));
    for (number, step) in steps.chain(more).enumerate() {
        for side in ["before", "after"] {
            let point = format!("{step}:{side}");
            arm(&node, &point).await;
            let config = pod(&format!("run-{number}"));
            node.try_run_pod_by("runc", config.clone()).await.err().expect("the daemon dies of it");
            died(&node, &point).await;
            assert_nothing_left(&node, &point);
            let pod = node.try_run_pod_by("runc", config).await.expect("the same request");
            let c = pod.run(script("c", "exec sleep 1000")).await;
            assert_eq!(c.shell("echo well").await, "well\n", "{point}");
            pod.end().await;
            assert_nothing_left(&node, &point);
        }
    }
}

#[tokio::test]
async fn a_daemon_killed_at_any_step_of_another_container_spares_the_pod() {
    let node = node(Options { config: RUNC.into(), failpoints: true, ..Default::default() }).await;
    let pod = node.try_run_pod_by("runc", pod("spared")).await.expect("a pod by runc");
    let kept = pod.run(script("kept", "exec sleep 1000")).await;
    let there = shims(&node);
    let steps =
        ["intent", "spec-write", "handler-intent", "handler-start", "handler-address", "shim-spawn", "shim-create"];
    for step in steps {
        for side in ["before", "after"] {
            let point = format!("create_container::{step}:{side}");
            arm(&node, &point).await;
            pod.try_create(script("c", "exec sleep 1000")).await.err().expect("the daemon dies of it");
            died(&node, &point).await;
            assert_eq!(kept.shell("echo well").await, "well\n", "{point}");
            let c = pod.run(script("c", "exec sleep 1000")).await;
            assert_eq!(c.shell("echo well").await, "well\n", "{point}");
            c.remove().await.expect("RemoveContainer");
            assert_eq!(shims(&node), there, "{point}");
            assert_eq!(pod.status().await.state(), PodSandboxState::SandboxReady, "{point}");
        }
    }
    pod.end().await;
    assert_nothing_left(&node, "the end");
}

#[tokio::test]
async fn a_daemon_killed_at_any_step_of_the_end_ends_it_when_it_is_asked_again() {
    let node = node(Options { config: RUNC.into(), failpoints: true, ..Default::default() }).await;
    let steps = ["stop_pod::sandbox-kill", "remove_container::shim-delete:", "stop_pod::sandbox-shutdown"];
    let more = ["stop_pod::sandbox-shim", "remove_container::shim-kill", "stop_pod::state-commit"];
    for (number, step) in steps.into_iter().chain(more).enumerate() {
        for side in ["before", "after"] {
            // The second Delete is the sandbox container's.
            let point = match step.strip_suffix(':') {
                Some(step) => format!("{step}:{side}:2"),
                None => format!("{step}:{side}"),
            };
            arm(&node, &point).await;
            let pod = node.try_run_pod_by("runc", pod(&format!("end-{number}-{side}"))).await.expect("a pod by runc");
            let c = pod.run(script("c", "exec sleep 1000")).await;
            assert_eq!(c.shell("echo well").await, "well\n");
            pod.stop().await.expect_err("the daemon dies of it");
            died(&node, &point).await;
            // Either half of the way may be asked for first.
            match side {
                "before" => pod.end().await,
                _ => pod.remove().await.expect("RemovePodSandbox"),
            }
            assert_nothing_left(&node, &point);
        }
    }
}

/// runc, as long as a file is there slower than whoever is killed meanwhile.
const SLOW: &str =
    "#!/bin/sh\ncase \" $* \" in *' create '*) while [ -e HOLD ]; do sleep 0.05; done ;; esac\nexec runc \"$@\"\n";

#[tokio::test]
async fn a_shim_killed_while_it_creates_is_told_and_leaves_nothing() {
    let dir = tempfile::TempDir::with_prefix("bt-slow-").expect("make a directory");
    let (slow, hold) = (dir.path().join("runc"), dir.path().join("hold"));
    std::fs::write(&slow, SLOW.replace("HOLD", hold.to_str().expect("UTF-8"))).expect("write a runtime");
    std::fs::set_permissions(&slow, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    let config = format!("{RUNC}options = {{ BinaryName = {slow:?} }}\n");
    let node = node(Options { config, ..Default::default() }).await;
    let creating = async |number: usize| {
        let is_it = |line: &str| line.contains("/runc --root") && line.contains(" create ");
        let count = || node.enclosure().processes().iter().filter(|(_, line)| is_it(line)).count();
        until("the shim creates", 15, async || count() >= number).await;
    };

    std::fs::write(&hold, "").expect("hold");
    let config = pod("sandbox");
    let (refused, ()) = tokio::join!(node.try_run_pod_by("runc", config.clone()), async {
        creating(1).await;
        assert_eq!(node.signal_shim("runc-v2", "KILL"), 1);
        std::fs::remove_file(&hold).expect("release");
    });
    let refused = refused.err().expect("its shim died");
    assert!(refused.message().contains("the shim is gone"), "{refused}");
    until("what the shim had begun goes", 15, async || shims(&node).is_empty() && node.leaks().is_empty()).await;
    assert_nothing_left(&node, "in RunPodSandbox");

    let pod = node.try_run_pod_by("runc", config).await.expect("the same request");
    let other = pod.run(script("other", "exec sleep 1000")).await;
    std::fs::write(&hold, "").expect("hold");
    let (refused, ()) = tokio::join!(pod.try_create(script("c", "exec sleep 1000")), async {
        creating(1).await;
        assert_eq!(node.signal_shim("runc-v2", "KILL"), 1);
        std::fs::remove_file(&hold).expect("release");
    });
    let refused = refused.err().expect("its shim died");
    assert!(refused.message().contains("the shim is gone"), "{refused}");
    let ended = other.ended().await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "ShimDied"));
    pod.end().await;
    assert_nothing_left(&node, "in CreateContainer");
}
