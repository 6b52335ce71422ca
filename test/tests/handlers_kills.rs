//! Another runtime's shim, and a daemon that is killed around it, or that does not know its handler any more.

use std::path::PathBuf;

use berth_api::cri::{IdMapping, NamespaceMode, NamespaceOption, UserNamespace};
use berth_test::cri::script;
use berth_test::node::Options;
use berth_test::{Node, pod, until};

const RUNC: &str = "[runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n";

async fn node(failpoints: bool) -> Node {
    let node = Node::start_with(Options { config: RUNC.into(), failpoints, ..Default::default() }).await;
    // Where the sockets of containerd's shims are is the whole host's; not here.
    node.enclosure().shell("mkdir -p /run/containerd && mount -t tmpfs shims /run/containerd");
    node.remember();
    node
}

/// The sockets of containerd's shims.
fn sockets(node: &Node) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(node.enclosure().path("/run/containerd/s")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Processes that only shims of other runtimes have in their command lines.
fn foreign_shims(node: &Node) -> Vec<u32> {
    node.shims("runc-v2")
}

#[tokio::test]
async fn a_daemon_killed_at_any_step_of_its_start_leaves_no_shim() {
    let node = node(true).await;
    let pod = node.try_run_pod_by("runc", pod("killed")).await.expect("a pod by runc");
    for step in ["handler-intent", "handler-start", "handler-address", "shim-spawn"] {
        for side in ["before", "after"] {
            let point = format!("create_container::{step}:{side}");
            node.stop_daemon().await;
            node.restart_with(&[("BERTH_FAILPOINT", &point)]).await;
            pod.try_create(script("c", "exec sleep 1000")).await.err().expect("the daemon dies of it");
            until(&format!("the daemon dies at {point}"), 10, async || node.daemon_pid().is_none()).await;
            node.restart_with(&[]).await;
            assert_eq!(foreign_shims(&node), [0_u32; 0], "{point}: a shim is left\n{}", node.log_tail());
            // The same again is a new attempt.
            let c = pod.run(script("c", "exec sleep 1000")).await;
            assert_eq!(c.shell("echo well").await, "well\n", "{point}");
            c.remove().await.expect("RemoveContainer");
        }
    }
    pod.end().await;
    assert!(sockets(&node).is_empty(), "left: {:?}", sockets(&node));
    node.assert_nothing_left();
}

#[tokio::test]
async fn an_exec_whose_daemon_was_killed_is_ended_by_the_next() {
    let node = node(true).await;
    let pod = node.try_run_pod_by("runc", pod("execs")).await.expect("a pod by runc");
    let c = pod.run(script("c", "exec sleep 1000")).await;
    let sleepers = || node.enclosure().running("sleep 600");
    let (synchronous, ()) = tokio::join!(c.try_exec(["sleep", "600"], 0), async {
        let mut streamed = node.crictl_command(&["exec", &c.id, "sleep", "600"]);
        let mut streamed = streamed.stdout(std::process::Stdio::null()).spawn().expect("run nsenter");
        until("both execs run", 15, async || sleepers() == 2).await;
        node.kill_daemon().await;
        streamed.wait().expect("wait for crictl");
    });
    synchronous.expect_err("nobody is there to answer");
    // The next may be killed at it as well.
    let told = || {
        let log = std::fs::read_to_string(node.dir().join("log")).expect("the daemon's log");
        log.matches("end an exec whose daemon has gone").count()
    };
    for side in ["before", "after"] {
        let before = told();
        node.set_environment(&[("BERTH_FAILPOINT", &format!("left_exec::shim-delete:{side}"))]);
        node.spawn();
        until(&format!("the daemon dies {side} it"), 10, async || told() > before && node.daemon_pid().is_none()).await;
    }
    node.restart_with(&[]).await;
    until("the execs end", 15, async || sleepers() == 0).await;
    assert_eq!(c.shell("echo well").await, "well\n");
    pod.end().await;
    node.assert_nothing_left();
}

/// The name of an exec's FIFO is all that tells of it.
#[tokio::test]
async fn an_exec_whose_shim_says_nothing_to_the_next_daemon_is_ended_when_it_speaks() {
    let node = node(false).await;
    let pod = node.try_run_pod_by("runc", pod("execs")).await.expect("a pod by runc");
    let c = pod.run(script("c", "exec sleep 1000")).await;
    let sleepers = || node.enclosure().running("sleep 600");
    let bundle = node.enclosure().path(node.dir().join("run/c").join(&c.id));
    let told = || {
        let names = std::fs::read_dir(&bundle).expect("the bundle").flatten();
        names.filter(|entry| entry.file_name().to_string_lossy().starts_with("x-")).count()
    };
    let mut streamed = node.crictl_command(&["exec", &c.id, "sleep", "600"]);
    let mut streamed = streamed.stdout(std::process::Stdio::null()).spawn().expect("run nsenter");
    until("the exec runs", 15, async || sleepers() == 1).await;
    node.kill_daemon().await;
    streamed.wait().expect("wait for crictl");
    assert_ne!(node.signal_shim(&c.id, "STOP"), 0);
    for _ in 0..2 {
        node.restart().await;
        assert_ne!(told(), 0, "nothing tells of it any more");
        node.kill_daemon().await;
    }
    node.restart().await;
    assert_ne!(node.signal_shim(&c.id, "CONT"), 0);
    until("the exec ends", 15, async || sleepers() == 0).await;
    until("nothing tells of it", 15, async || told() == 0).await;
    assert_eq!(c.shell("echo well").await, "well\n");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn one_that_dies_while_the_daemon_is_away_is_told() {
    let node = node(false).await;
    let pod = node.try_run_pod_by("runc", pod("away")).await.expect("a pod by runc");
    let c = pod.run(script("c", "exec sleep 1000")).await;
    node.kill_daemon().await;
    assert_ne!(node.signal_shim(&c.id, "KILL"), 0);
    node.restart().await;
    let ended = c.ended().await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "ShimDied"));
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn what_a_dead_one_left_is_cleaned_up_though_its_handler_is_not_configured_any_more() {
    let node = node(false).await;
    let pod = node.try_run_pod_by("runc", pod("orphan")).await.expect("a pod by runc");
    let c = pod.run(script("c", "exec sleep 1000")).await;
    assert_eq!(sockets(&node).len(), 1);
    let record = node.enclosure().path(node.dir().join("run/runc/berth").join(&c.id));
    assert!(record.exists(), "runc keeps a record at {}", record.display());
    node.stop_daemon().await;
    let config = node.dir().join("config.toml");
    let text = std::fs::read_to_string(&config).expect("read config.toml");
    std::fs::write(&config, text.replace(RUNC, "")).expect("write config.toml");
    assert_ne!(node.signal_shim(&c.id, "KILL"), 0);
    node.restart().await;
    assert_eq!(c.ended().await.reason, "ShimDied");
    let refused = pod.try_create(script("d", "true")).await.err().expect("no such handler");
    assert!(refused.message().contains("runtime_handler"), "{refused}");
    pod.end().await;
    assert!(!record.exists(), "runc's record is left");
    assert!(sockets(&node).is_empty(), "left: {:?}", sockets(&node));
    node.assert_nothing_left();
}

#[tokio::test]
async fn users_are_not_mapped_by_a_handler_that_is_not_known_to_do_it() {
    let node = node(false).await;
    let mut config = pod("users");
    let ids = vec![IdMapping { host_id: 200_000, container_id: 0, length: 65_536 }];
    let users = UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids };
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options = Some(NamespaceOption { userns_options: Some(users), ..Default::default() });
    let refused = node.try_run_pod_by("runc", config).await.err().expect("runc 1.1 maps no mounts");
    assert!(refused.message().contains("userns_options: handler \"runc\" is not known to map users"), "{refused}");
    node.assert_nothing_left();
}
