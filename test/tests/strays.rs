//! What is left of a pod whose record somebody has removed: ended and cleaned up by the next daemon, whatever it was.

use berth_api::cri::*;
use berth_test::cri::script;
use berth_test::node::Options;
use berth_test::{Node, pod, until};

/// On the host's network, of which nothing is written down; with a pid namespace that its containers share.
fn on_the_host(name: &str) -> PodSandboxConfig {
    let options = NamespaceOption { network: NamespaceMode::Node.into(), ..Default::default() };
    let security = LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
    let linux = LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() };
    PodSandboxConfig { linux: Some(linux), hostname: String::new(), ..pod(name) }
}

/// In such a pod.
fn sleeping(name: &str, seconds: u32) -> ContainerConfig {
    let options = NamespaceOption { network: NamespaceMode::Node.into(), ..Default::default() };
    let security = LinuxContainerSecurityContext { namespace_options: Some(options), ..Default::default() };
    let linux = LinuxContainerConfig { security_context: Some(security), ..Default::default() };
    ContainerConfig { linux: Some(linux), ..script(name, &format!("exec sleep {seconds}")) }
}

#[tokio::test]
async fn a_pod_without_a_record_is_ended_with_all_that_it_has() {
    let runtimes = "[runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n";
    for handler in ["", "runc"] {
        let node = Node::start_with(Options { config: runtimes.into(), ..Default::default() }).await;
        if !node.is_berth() {
            return;
        }
        let stray = node.try_run_pod_by(handler, on_the_host("stray")).await.expect("RunPodSandbox");
        let kept = node.run_pod(on_the_host("kept")).await;
        let other = kept.run(sleeping("c", 7001)).await;
        stray.run(sleeping("c", 7002)).await;
        // Parked, and with its shim stopped: it answers nobody.
        let silent = stray.create(sleeping("silent", 7003)).await;
        silent.stop_shim();
        let runs = |line: &str| node.enclosure().processes().iter().any(|(_, found)| found == line);
        until("both run", 10, async || runs("sleep 7001") && runs("sleep 7002")).await;
        node.kill_daemon().await;
        std::fs::remove_dir_all(node.dir().join("data/pods").join(&stray.id)).expect("remove the records");
        node.restart().await;
        assert!(!runs("sleep 7002"), "{handler:?}: its container runs on");
        assert!(runs("sleep 7001"), "{handler:?}: another pod's container was ended");
        assert_eq!(other.status().await.state(), ContainerState::ContainerRunning);
        let listed = node.runtime().list_pod_sandbox(ListPodSandboxRequest::default()).await.expect("a list");
        assert_eq!(listed.into_inner().items.iter().map(|pod| &pod.id).collect::<Vec<_>>(), [&kept.id]);
        kept.end().await;
        // Shims, cgroups, mounts, the keeper, bundles.
        node.assert_nothing_left();
    }
}
