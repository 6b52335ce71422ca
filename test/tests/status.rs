//! The node's conditions: what makes each one false, what it says then, and that it becomes true again by itself, without
//! a restart of the daemon.

use std::fs;
use std::path::PathBuf;

use berth_api::cri::{RuntimeCondition, StatusRequest};
use berth_test::cri::script;
use berth_test::node::Options;
use berth_test::{Node, pod};
use tempfile::TempDir;

/// A network of the bundled plugins.
const CONFLIST: &str = r#"{"cniVersion": "1.0.0", "name": "cluster", "plugins": [{"type": "bridge", "bridge": "BRIDGE",
    "isGateway": true, "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.78.0.0/24"}]], "dataDir": "DATA"}}]}"#;

async fn condition(node: &Node, kind: &str) -> RuntimeCondition {
    let answer = node.runtime().status(StatusRequest::default()).await.expect("Status").into_inner();
    let conditions = answer.status.expect("an answer has a status").conditions;
    let found = conditions.iter().find(|condition| condition.r#type == kind).cloned();
    found.unwrap_or_else(|| panic!("no condition {kind} in {conditions:?}"))
}

/// It is false, for this reason, and its message names all of `parts`: what, where, what to do.
async fn is_false(node: &Node, kind: &str, reason: &str, parts: &[&str]) {
    let is = condition(node, kind).await;
    assert!(!is.status, "{kind} is true");
    assert_eq!(is.reason, reason, "{is:?}");
    for part in parts {
        assert!(is.message.contains(part), "the message does not name {part:?}: {}", is.message);
    }
    // One thing that is broken is not said of the others.
    let other = if kind == "RuntimeReady" { "NetworkReady" } else { "RuntimeReady" };
    assert!(condition(node, other).await.status, "{other} is false too");
}

/// It is true, and a pod shows it.
async fn is_true(node: &Node, kind: &str) {
    let is = condition(node, kind).await;
    assert!(is.status, "{is:?}");
    assert_eq!((is.reason.as_str(), is.message.as_str()), ("", ""));
    let pod = node.run_pod(pod("proof")).await;
    assert_eq!(pod.run(script("c", "echo ready")).await.said().await, "ready\n");
    pod.end().await;
}

/// The daemon that was asked at first is the one that answers at last.
struct SameDaemon(Option<u32>);

impl SameDaemon {
    fn of(node: &Node) -> Self {
        Self(node.daemon_pid())
    }

    fn check(&self, node: &Node) {
        assert!(self.0.is_some());
        assert_eq!(node.daemon_pid(), self.0, "the daemon was restarted");
    }
}

fn conflist(node: &Node) -> String {
    let bridge = format!("berth-{}", node.tag());
    let data = node.dir().join("data/ipam");
    CONFLIST.replace("BRIDGE", &bridge).replace("DATA", data.to_str().expect("UTF-8"))
}

#[tokio::test]
async fn without_a_network_configuration_the_network_is_not_ready() {
    let node = Node::start_with(Options { no_network: true, ..Default::default() }).await;
    if !node.is_berth() {
        return;
    }
    let daemon = SameDaemon::of(&node);
    let dir = node.dir().join("net.d");
    let parts = [dir.to_str().expect("UTF-8"), "no CNI configuration", "[network] default"];
    is_false(&node, "NetworkReady", "NetworkPluginNotReady", &parts).await;
    let file = dir.join("10-cluster.conflist");
    fs::write(&file, conflist(&node)).expect("write a conflist");
    is_true(&node, "NetworkReady").await;
    fs::remove_file(&file).expect("remove the conflist");
    is_false(&node, "NetworkReady", "NetworkPluginNotReady", &parts).await;
    daemon.check(&node);
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_broken_conflist_is_named_with_its_key() {
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let daemon = SameDaemon::of(&node);
    is_true(&node, "NetworkReady").await;
    let file = node.dir().join("net.d/10-cluster.conflist");
    let name = file.to_str().expect("UTF-8");
    for (broken, parts) in [
        (conflist(&node).replace(r#""type": "bridge", "#, ""), ["plugins[0].type", "correct"]),
        (conflist(&node).replace(r#""name": "cluster", "#, ""), ["name", "correct"]),
        (conflist(&node).replace(r#""1.0.0""#, r#""9.9""#), ["cniVersion", "9.9"]),
        (conflist(&node).replace("}]}", "}]"), ["line 2", "correct"]),
        // Every plugin must be there, not only well described.
        (conflist(&node).replace(r#""type": "bridge""#, r#""type": "no-such-plugin""#), ["no-such-plugin", "install"]),
    ] {
        fs::write(&file, &broken).expect("write a conflist");
        let parts: Vec<&str> = match parts[0] {
            "no-such-plugin" => parts.to_vec(),
            _ => parts.into_iter().chain([name]).collect(),
        };
        is_false(&node, "NetworkReady", "NetworkPluginNotReady", &parts).await;
    }
    fs::write(&file, conflist(&node)).expect("write a conflist");
    is_true(&node, "NetworkReady").await;
    fs::remove_file(&file).expect("remove the conflist");
    daemon.check(&node);
    node.assert_nothing_left();
}

/// A copy of the binaries that a test may take away from under the daemon.
fn copied_binaries(node: &std::path::Path) -> TempDir {
    let dir = TempDir::with_prefix("bt-bin-").expect("make a directory");
    let copied = std::process::Command::new("cp").arg("-a").arg(node.join(".")).arg(dir.path()).status();
    assert!(copied.expect("run cp").success(), "copy {}", node.display());
    dir
}

#[tokio::test]
async fn without_its_shim_or_keeper_the_runtime_is_not_ready() {
    let bin = copied_binaries(&berth_test::node::binary_dir(false));
    let config = format!("[shim]\ndir = {:?}\n", bin.path());
    let node = Node::start_with(Options { config, ..Default::default() }).await;
    if !node.is_berth() {
        return;
    }
    let daemon = SameDaemon::of(&node);
    for name in ["containerd-shim-berth-v1", "berth-pod-ns"] {
        is_true(&node, "RuntimeReady").await;
        let (there, away): (PathBuf, PathBuf) = (bin.path().join(name), bin.path().join("away"));
        fs::rename(&there, &away).expect("take it away");
        let parts = [name, bin.path().to_str().expect("UTF-8"), "install it there", "[shim] dir"];
        is_false(&node, "RuntimeReady", "ShimMissing", &parts).await;
        fs::rename(&away, &there).expect("bring it back");
    }
    is_true(&node, "RuntimeReady").await;
    daemon.check(&node);
    node.assert_nothing_left();
}

#[tokio::test]
async fn on_a_read_only_root_the_runtime_is_not_ready() {
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let daemon = SameDaemon::of(&node);
    for root in ["data", "run"] {
        is_true(&node, "RuntimeReady").await;
        let path = node.dir().join(root);
        let path = path.to_str().expect("UTF-8");
        // On a mount of its own, so that only this root is read-only.
        node.enclosure().shell(&format!("mount --bind {path} {path} && mount -o remount,bind,ro {path}"));
        let name = format!("{root} root {path}");
        is_false(&node, "RuntimeReady", "RootReadOnly", &[&name, "read-only", "remount"]).await;
        node.enclosure().shell(&format!("mount -o remount,bind,rw {path}"));
        assert!(condition(&node, "RuntimeReady").await.status, "it is writable again");
        node.enclosure().shell(&format!("umount {path}"));
    }
    is_true(&node, "RuntimeReady").await;
    daemon.check(&node);
    node.assert_nothing_left();
}
