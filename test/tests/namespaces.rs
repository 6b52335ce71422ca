//! Which namespaces a pod's containers share, and which they do not.

use berth_api::cri::{
    Capability, ContainerConfig, LinuxContainerSecurityContext, LinuxSandboxSecurityContext, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxState, RemoveContainerRequest,
};
use berth_test::cri::script;
use berth_test::node::Options;
use berth_test::{Node, has, pod, until};

fn with(options: NamespaceOption, mut pod: PodSandboxConfig) -> PodSandboxConfig {
    let context = LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
    pod.linux.as_mut().expect("linux").security_context = Some(context);
    pod
}

fn within(options: NamespaceOption, mut container: ContainerConfig) -> ContainerConfig {
    let context = LinuxContainerSecurityContext { namespace_options: Some(options), ..Default::default() };
    container.linux.as_mut().expect("linux").security_context = Some(context);
    container
}

async fn compare(options: NamespaceOption, shared: &[&str], apart: &[&str]) {
    let node = Node::start().await;
    let pod = node.run_pod(with(options.clone(), pod("shares"))).await;
    let one = pod.run(within(options.clone(), script("one", "exec sleep 1000"))).await;
    let two = pod.run(within(options, script("two", "exec sleep 1000"))).await;
    for (kinds, same) in [(shared, true), (apart, false)] {
        for kind in kinds {
            let read = format!("readlink /proc/self/ns/{kind}");
            let (a, b) = (one.shell(&read).await, two.shell(&read).await);
            assert_eq!(a == b, same, "{kind}: {a} {b}");
            assert_ne!(a, node.enclosure().shell(&read), "{kind} is not the host's");
        }
    }
    one.shell("echo shared >/dev/shm/x").await;
    assert_eq!(two.shell("cat /dev/shm/x").await, "shared\n");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn containers_share_network_ipc_uts_and_have_their_own_processes() {
    let options = NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() };
    compare(options, &["net", "ipc", "uts"], &["pid", "mnt"]).await;
}

#[tokio::test]
async fn containers_share_processes_when_asked_to() {
    let options = NamespaceOption { pid: NamespaceMode::Pod.into(), ..Default::default() };
    compare(options, &["net", "ipc", "uts", "pid"], &["mnt"]).await;
}

#[tokio::test]
async fn orphans_of_a_shared_process_namespace_are_reaped() {
    let node = Node::start().await;
    let options = NamespaceOption { pid: NamespaceMode::Pod.into(), ..Default::default() };
    let pod = node.run_pod(with(options.clone(), pod("reaps"))).await;
    let c = pod.run(within(options, script("c", "exec sleep 1000"))).await;
    c.shell("for n in 1 2 3 4 5; do (sleep 0.1 &) ; done").await;
    // The names of zombies are there, too.
    let names = "for p in /proc/[0-9]*; do sed 's/.*(\\(.*\\)) \\(.\\).*/\\1 \\2/' $p/stat 2>/dev/null; done";
    until("the orphans are reaped", 5, async || {
        let told = c.shell(names).await;
        told.lines().filter(|line| line.starts_with("sleep ")).count() == 1 && !told.contains(" Z")
    })
    .await;
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn pid_1_of_shared_processes_shows_nothing_of_the_host() {
    let environment = vec![("PROXY_PASSWORD".to_owned(), "secret".to_owned())];
    let node = Node::start_with(Options { environment, ..Default::default() }).await;
    if !node.is_berth() {
        return;
    }
    let options = NamespaceOption { pid: NamespaceMode::Pod.into(), ..Default::default() };
    let pod = node.run_pod(with(options.clone(), pod("looks"))).await;
    let mut config = within(options, script("c", "exec sleep 1000"));
    // Who debugs has it, and may open what it likes of the processes that it sees.
    config.linux.as_mut().and_then(|linux| linux.security_context.as_mut()).expect("context").capabilities =
        Some(Capability { add_capabilities: vec!["SYS_PTRACE".into()], ..Default::default() });
    let c = pod.run(config).await;
    let mounts = c.shell("cat /proc/1/mountinfo").await;
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert_eq!(c.shell("ls -A /proc/1/root/").await, "");
    assert_eq!(c.shell("ls -l /proc/1/fd | grep -c -v -e pipe: -e signalfd -e total || true").await, "0\n");
    let environ = c.shell("cat /proc/1/environ").await;
    assert!(environ.starts_with("BERTH_DAEMON=") && !environ.contains("secret"), "{environ}");
    assert_eq!(c.shell("grep CapPrm /proc/1/status").await, "CapPrm:\t0000000000000000\n");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_container_of_the_hosts_processes_sees_them() {
    let node = Node::start().await;
    let options =
        NamespaceOption { pid: NamespaceMode::Node.into(), ipc: NamespaceMode::Node.into(), ..Default::default() };
    let pod = node.run_pod(with(options.clone(), pod("host"))).await;
    let c = pod.run(within(options, script("c", "exec sleep 1000"))).await;
    for kind in ["pid", "ipc"] {
        let read = format!("readlink /proc/self/ns/{kind}");
        assert_eq!(c.shell(&read).await, node.enclosure().shell(&read), "{kind}");
    }
    pod.end().await;
    node.assert_nothing_left();
}

/// The freezer of version 1 holds the removal up for as long as the test needs.
#[tokio::test]
async fn a_keeper_that_dies_while_a_container_is_removed_stops_its_pod_all_the_same() {
    if !has("cgroup-v1", "a_keeper_that_dies_while_a_container_is_removed_stops_its_pod_all_the_same") {
        return;
    }
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let shared = NamespaceOption { pid: NamespaceMode::Pod.into(), ..Default::default() };
    let own = NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() };
    let pod = node.run_pod(with(shared, pod("kept"))).await;
    let c = pod.run(within(own, script("c", "exec sleep 1000"))).await;
    let frozen = c.freeze().await;
    let (mut client, request) = (node.runtime(), RemoveContainerRequest { container_id: c.id.clone() });
    let removal = tokio::spawn(async move { client.remove_container(request).await });
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let keeper = node.enclosure().processes().into_iter().find(|(_, line)| line.ends_with("berth-pod-ns"));
    node.enclosure().kill(keeper.expect("a keeper").0, "KILL");
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    drop(frozen);
    removal.await.expect("no panic").expect("RemoveContainer");
    until("the pod is not ready", 5, async || pod.status().await.state() == PodSandboxState::SandboxNotready).await;
    pod.end().await;
    node.assert_nothing_left();
}
