//! Whoever is killed at whatever step: running containers go on, state is told truthfully, the same request succeeds
//! when it is repeated, Stop and Remove work, and nothing is left.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use berth_api::cri::{
    ContainerState, CreateContainerRequest, ExecSyncRequest, IdMapping, ImageSpec, ImageStatusRequest,
    LinuxContainerResources, ListPodSandboxRequest, Mount, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PortMapping, PullImageRequest, RemoveContainerRequest, RemoveImageRequest, RemovePodSandboxRequest,
    ReopenContainerLogRequest, RunPodSandboxRequest, StartContainerRequest, StopContainerRequest,
    StopPodSandboxRequest, UpdateContainerResourcesRequest, UserNamespace,
};
use berth_test::cri::script;
use berth_test::node::{Options, failpoint_binary};
use berth_test::wait::patience;
use berth_test::{Node, pod, until};
use tonic::Status;

/// An image that only this test pulls and removes.
const OTHER_IMAGE: &str = "registry.k8s.io/k8s-staging-cri-tools/test-image-1:latest";

/// Every step of every binary, one a line; the list only grows.
const KNOWN: &str = include_str!("../failpoints.txt");

/// Steps that the sequence of calls below does not reach: recovery's have a test of their own, the others are killed at
/// in the tests of their crates, which call what berthd does not call here (GC, a namespace of somebody else's, the native
/// snapshotter, a volume without layers, an update that is refused, a broken download, a host that withholds something).
const MET_ELSEWHERE: &[&str] = &[
    "recover::",
    "cni_check::",
    "cni_gc::",
    "ipam_gc::",
    "lo_add::",
    "lo_del::",
    "cni_del::veth-delete",
    "create_container::snapshot_copy",
    "create_container::volume_mkdir",
    // Where SELinux is on; see selinux.rs.
    "create_container::relabel",
    "create_container::label-copy",
    "pull_image::ingest_remove",
    "update_container::intent-undo",
    "update_pod::",
    "create::effective-",
    // A stream has no answer to repeat; see streaming_kills.rs.
    "exec_stream::",
    "attach::",
    // A node here lives in a pid namespace of its own, where systemd's driver is never used; see hack/vm-guest/systemd.
    "create_container::systemd-",
    "remove_container::systemd-",
    // Of another runtime's shim, and of one that is silent; see handlers_kills.rs and silent.rs.
    "create_container::handler-",
    "left_exec::",
    // Of a handler that wants a sandbox container; see handlers_sandbox_kills.rs.
    "run_pod::sandbox-",
    "stop_pod::sandbox-",
    "remove_container::shim-kill",
];

/// Steps at which a death goes by unnoticed: those that only a network's first pod takes, and those whose death no call's
/// answer shows, because the next step makes up for it (an exit that is recorded already, a lease that is free already, a
/// container that has ended before it need be killed). They are killed at like all others; only that it was noticed is
/// not asked.
const UNNOTICED: &[&str] = &[
    "cni_add::bridge-create",
    "cni_add::nft",
    "cni_del::",
    "delete::cgroup-rmdir",
    "exit::record-rename",
    "ipam_del::",
    "stop_container::kill",
];

/// Steps of a pod with a user namespace of its own.
fn takes_users(name: &str) -> bool {
    ["keeper::user-", "keeper::ns-enter"].iter().any(|prefix| name.starts_with(prefix))
}

fn is_met_elsewhere(name: &str) -> bool {
    MET_ELSEWHERE.iter().any(|prefix| name.starts_with(prefix))
}

fn failpoints(binary: &str) -> Vec<String> {
    let path = failpoint_binary(binary);
    let output = Command::new(&path).arg("failpoints").output().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(output.status.success(), "{binary} failpoints: {output:?}");
    String::from_utf8(output.stdout).expect("names").lines().map(str::to_owned).collect()
}

fn all_failpoints() -> BTreeSet<String> {
    let binaries =
        ["berthd", "containerd-shim-berth-v1", "berth-pod-ns", "cni/bridge", "cni/host-local", "cni/loopback"];
    binaries.into_iter().flat_map(failpoints).collect()
}

#[test]
fn the_list_of_failpoints_only_grows() {
    let now = all_failpoints();
    let gone: Vec<_> = KNOWN.lines().filter(|name| !now.contains(*name)).collect();
    let new: Vec<_> = now.iter().filter(|name| !KNOWN.lines().any(|known| known == *name)).collect();
    println!("failpoints: {}", now.len());
    assert!(gone.is_empty(), "no longer there: {gone:?}");
    assert!(new.is_empty(), "add to test/failpoints.txt: {new:?}");
}

/// Makes the call until it is answered with success. Whoever dies of the armed step dies in here: a daemon that is gone
/// is started again, unarmed; one that answers with an error because a child of it died is started again as well, since
/// it would arm the next child.
struct Insister<'a> {
    node: &'a Node,
    /// The armed step was seen to strike.
    struck: bool,
}

impl Insister<'_> {
    async fn insist<T>(&mut self, what: &str, mut call: impl AsyncFnMut() -> Result<T, Status>) -> T {
        for _ in 0..4 {
            let status = match call().await {
                Ok(answer) => return answer,
                Err(status) => status,
            };
            assert!(!self.struck, "{what} fails when repeated: {status}\n{}", self.node.log_tail());
            self.disarm().await;
        }
        panic!("{what} is not answered\n{}", self.node.log_tail());
    }

    /// Starts the daemon again without an armed step.
    async fn disarm(&mut self) {
        self.struck = true;
        // Its answer may have come before its death is seen.
        tokio::time::sleep(Duration::from_millis(20)).await;
        if self.node.daemon_pid().is_some() {
            self.node.kill_daemon().await;
        }
        self.node.set_environment(&[]);
        self.node.restart().await;
    }
}

/// The armed step was the shim's own: its container is over, as it must be.
async fn shim_died(node: &Node, container: &str) -> bool {
    for _ in 0..20 {
        let request = berth_api::cri::ContainerStatusRequest { container_id: container.into(), verbose: false };
        let Ok(answer) = node.runtime().container_status(request).await else { return false };
        let status = answer.into_inner().status.unwrap_or_default();
        if status.state() == ContainerState::ContainerExited {
            return status.reason == "ShimDied";
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

/// A pod with a shared pid namespace and with cgroups above its containers', so that every step is reached.
fn sharing(node: &Node, name: &str, users: bool) -> PodSandboxConfig {
    let mut config = pod(name);
    config.port_mappings = vec![PortMapping { host_port: 18_080, container_port: 80, ..Default::default() }];
    let linux = config.linux.get_or_insert_default();
    linux.cgroup_parent = format!("/{}/{name}", node.name());
    let security = linux.security_context.get_or_insert_default();
    let ids = vec![IdMapping { host_id: 200_000, container_id: 0, length: 65_536 }];
    let userns_options =
        users.then(|| UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids.clone() });
    security.namespace_options =
        Some(NamespaceOption { pid: NamespaceMode::Pod.into(), userns_options, ..Default::default() });
    config
}

/// Every call of a pod's life, each repeated unchanged until it succeeds.
async fn life(node: &Node, name: &str, users: bool) -> bool {
    let mut insister = Insister { node, struck: false };
    let logs = node.dir().join("logs").join(name);
    std::fs::create_dir_all(&logs).expect("make a log directory");
    let image = ImageSpec { image: OTHER_IMAGE.into(), ..Default::default() };

    let pull = PullImageRequest { image: Some(image.clone()), ..Default::default() };
    insister.insist("PullImage", async || node.images().pull_image(pull.clone()).await).await;
    let status = ImageStatusRequest { image: Some(image.clone()), verbose: false };
    let there = insister.insist("ImageStatus", async || node.images().image_status(status.clone()).await).await;
    assert!(there.into_inner().image.is_some(), "a pulled image is there");

    let mut sandbox = sharing(node, name, users);
    sandbox.log_directory = logs.to_str().expect("UTF-8").into();
    let run = RunPodSandboxRequest { config: Some(sandbox.clone()), runtime_handler: String::new() };
    let run = async || node.runtime().run_pod_sandbox(run.clone()).await;
    let pod_id = insister.insist("RunPodSandbox", run).await.into_inner().pod_sandbox_id;

    let mut config = script("c", "trap 'exit 7' TERM; touch /ready; while :; do sleep 0.05; done");
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().namespace_options =
        sandbox.linux.as_ref().and_then(|l| l.security_context.as_ref()).and_then(|s| s.namespace_options.clone());
    config.mounts =
        vec![Mount { container_path: "/v".into(), image: Some(image.clone()), readonly: true, ..Default::default() }];
    let create = CreateContainerRequest {
        pod_sandbox_id: pod_id.clone(),
        config: Some(config),
        sandbox_config: Some(sandbox.clone()),
    };
    let create = async || node.runtime().create_container(create.clone()).await;
    let id = insister.insist("CreateContainer", create).await.into_inner().container_id;

    // Start is not idempotent by contract: after a kill in the middle it may have happened.
    let start = async || {
        let answer = node.runtime().start_container(StartContainerRequest { container_id: id.clone() }).await;
        match answer {
            Err(status) if status.code() == tonic::Code::FailedPrecondition && status.message().contains("running") => {
                Ok(())
            }
            Err(_) if shim_died(node, &id).await => Ok(()),
            other => other.map(drop),
        }
    };
    insister.insist("StartContainer", start).await;
    // Not to be stopped before its trap is set.
    let greet = ["sh", "-c", "until [ -e /ready ]; do sleep 0.01; done; echo hi"].map(String::from).to_vec();
    let exec = ExecSyncRequest { container_id: id.clone(), cmd: greet, timeout: 10 };
    let exec = async || match node.runtime().exec_sync(exec.clone()).await {
        Err(_) if shim_died(node, &id).await => Ok(None),
        other => other.map(Some),
    };
    if let Some(said) = insister.insist("ExecSync", exec).await {
        let said = said.into_inner();
        assert_eq!((said.exit_code, said.stdout.as_slice()), (0, &b"hi\n"[..]));
    }
    let limits = LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() };
    let update =
        UpdateContainerResourcesRequest { container_id: id.clone(), linux: Some(limits), ..Default::default() };
    let update = async || match node.runtime().update_container_resources(update.clone()).await {
        Err(_) if shim_died(node, &id).await => Ok(()),
        other => other.map(drop),
    };
    insister.insist("UpdateContainerResources", update).await;
    let reopen = ReopenContainerLogRequest { container_id: id.clone() };
    let reopen = async || match node.runtime().reopen_container_log(reopen.clone()).await {
        Err(_) if shim_died(node, &id).await => Ok(()),
        other => other.map(drop),
    };
    insister.insist("ReopenContainerLog", reopen).await;

    let stop = StopContainerRequest { container_id: id.clone(), timeout: 10 };
    insister.insist("StopContainer", async || node.runtime().stop_container(stop.clone()).await).await;
    let ended = async || {
        let request = berth_api::cri::ContainerStatusRequest { container_id: id.clone(), verbose: false };
        node.runtime().container_status(request).await
    };
    let ended = insister.insist("ContainerStatus", ended).await.into_inner().status.expect("a status");
    assert_eq!(ended.state(), ContainerState::ContainerExited);
    // 7 by its own trap; 137 when its shim was the one that died.
    assert!([7, 137].contains(&ended.exit_code), "{ended:?}");
    // A shim that died takes its container along; the call that met it is answered by that.
    let shim_ended_struck = ended.reason == "ShimDied";

    let remove = RemoveContainerRequest { container_id: id.clone() };
    insister.insist("RemoveContainer", async || node.runtime().remove_container(remove.clone()).await).await;
    let stop = StopPodSandboxRequest { pod_sandbox_id: pod_id.clone() };
    insister.insist("StopPodSandbox", async || node.runtime().stop_pod_sandbox(stop.clone()).await).await;
    let remove = RemovePodSandboxRequest { pod_sandbox_id: pod_id.clone() };
    insister.insist("RemovePodSandbox", async || node.runtime().remove_pod_sandbox(remove.clone()).await).await;
    let remove = RemoveImageRequest { image: Some(image) };
    insister.insist("RemoveImage", async || node.images().remove_image(remove.clone()).await).await;

    let struck = insister.struck || shim_ended_struck;
    if !insister.struck {
        // An armed step that nobody met must not strike later.
        insister.disarm().await;
    }
    std::fs::remove_dir_all(&logs).expect("remove the log directory");
    struck
}

#[tokio::test]
async fn killed_at_any_step_nothing_is_lost_and_nothing_is_left() {
    let node = Node::start_with(Options { failpoints: true, ..Default::default() }).await;
    let bystanders = node.run_pod(pod("bystander")).await;
    let bystander = bystanders.run(script("b", "exec ping 127.0.0.1")).await;
    let began = bystander.status().await.started_at;
    // The kernel gives the pod's link its IPv6 route a moment after the rest.
    tokio::time::sleep(Duration::from_secs(3)).await;
    node.remember();

    let only = std::env::var("BERTH_TEST_FAILPOINT").unwrap_or_default();
    let mut unmet = Vec::new();
    let points = all_failpoints();
    let points = points.iter().filter(|name| !is_met_elsewhere(name) && name.contains(&only));
    for (number, name) in points.enumerate() {
        for side in ["before", "after"] {
            let armed = format!("{name}:{side}");
            println!("{armed}");
            node.kill_daemon().await;
            node.restart_with(&[("BERTH_FAILPOINT", &armed)]).await;
            let noticed = life(&node, &format!("life-{number}-{side}"), takes_users(name)).await;
            if !noticed && !UNNOTICED.iter().any(|prefix| name.starts_with(prefix)) {
                unmet.push(armed.clone());
            }
            let status = bystander.status().await;
            assert_eq!(status.state(), ContainerState::ContainerRunning, "{armed}: the bystander ended");
            assert_eq!(
                status.started_at / 1_000_000_000,
                began / 1_000_000_000,
                "{armed}: the bystander was restarted"
            );
            let pods = node.runtime().list_pod_sandbox(ListPodSandboxRequest::default()).await.expect("a list");
            assert_eq!(pods.into_inner().items.len(), 1, "{armed}: pods beside the bystander");
            let leaks = node.leaks();
            assert!(leaks.is_empty(), "{armed}: left behind:\n  {}\n{}", leaks.join("\n  "), node.log_tail());
        }
    }
    let number = |line: &str| line.split("seq=").nth(1)?.split(' ').next()?.parse::<u64>().ok();
    let counted = || bystander.logged("stdout").lines().filter_map(number).collect::<Vec<u64>>();
    let so_far = counted().len();
    until("the bystander goes on", 10, async || counted().len() > so_far).await;
    let counted = counted();
    assert!(counted.windows(2).all(|w| w[1] == w[0] + 1), "the bystander's log has a gap");
    bystanders.end().await;
    assert!(unmet.is_empty(), "steps that no call reached: {unmet:?}");
}

#[tokio::test]
async fn killed_while_recovering_it_recovers_the_next_time() {
    let node = Node::start_with(Options { failpoints: true, ..Default::default() }).await;
    for name in all_failpoints().iter().filter(|name| name.starts_with("recover::")) {
        for side in ["before", "after"] {
            let running = node.run_pod(pod("running")).await;
            let container = running.run(script("c", "exec sleep 1000")).await;
            let limits = LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() };
            let update = UpdateContainerResourcesRequest {
                container_id: container.id.clone(),
                linux: Some(limits),
                ..Default::default()
            };
            node.runtime().update_container_resources(update).await.expect("UpdateContainerResources");
            node.kill_daemon().await;
            // Something that no record explains, for the sweep.
            let stray = node.enclosure().path(node.dir().join("run/c/stray"));
            std::fs::create_dir_all(stray).expect("plant a stray");
            println!("{name}:{side}");
            node.set_environment(&[("BERTH_FAILPOINT", &format!("{name}:{side}"))]);
            node.spawn();
            until("the armed daemon dies", 10, async || {
                tokio::time::sleep(Duration::from_millis(50)).await;
                node.daemon_pid().is_none()
            })
            .await;
            node.restart_with(&[]).await;
            assert_eq!(container.status().await.state(), ContainerState::ContainerRunning, "{name}:{side}");
            running.end().await;
            node.assert_nothing_left();
        }
    }
}

#[tokio::test]
async fn a_dead_shim_is_told_within_a_second_and_leaves_nothing() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("orphaned")).await;
    let container = pod.run(script("c", "sleep 1000 & exec sleep 1000")).await;
    let shim = node.enclosure().processes().into_iter().find(|(_, line)| line.contains(&container.id));
    let (shim, _) = shim.expect("a shim with the container's id");
    node.enclosure().kill(shim, "KILL");
    let died = std::time::Instant::now();
    until("its end is told", 5, async || container.status().await.state() == ContainerState::ContainerExited).await;
    assert!(died.elapsed() < patience(1), "{:?}", died.elapsed());
    let end = container.status().await;
    assert_eq!((end.exit_code, end.reason.as_str()), (137, "ShimDied"));
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_shim_that_died_with_the_daemon_is_told_too() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("both")).await;
    let container = pod.run(script("c", "exec sleep 1000")).await;
    let shim = node.enclosure().processes().into_iter().find(|(_, line)| line.contains(&container.id));
    node.kill_daemon().await;
    node.enclosure().kill(shim.expect("a shim").0, "KILL");
    node.restart().await;
    let end = container.ended().await;
    assert_eq!((end.exit_code, end.reason.as_str()), (137, "ShimDied"));
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_dead_keeper_ends_its_pod_and_the_network_is_let_go() {
    let node = Node::start().await;
    let mut config = sharing(&node, "kept", false);
    config.linux.get_or_insert_default();
    let options =
        config.linux.as_ref().and_then(|l| l.security_context.as_ref()).and_then(|s| s.namespace_options.clone());
    let pod = node.run_pod(config).await;
    let mut inside = script("c", "exec sleep 1000");
    inside.linux.get_or_insert_default().security_context.get_or_insert_default().namespace_options = options;
    let container = pod.run(inside).await;
    let keeper = node.enclosure().processes().into_iter().find(|(_, line)| line.contains("berth-pod-ns"));
    node.enclosure().kill(keeper.expect("a keeper").0, "KILL");
    let end = container.ended().await;
    assert_eq!((end.exit_code, end.reason.as_str()), (137, "PodNamespaceDied"));
    until("the pod is not ready", 5, async || {
        pod.status().await.state() == berth_api::cri::PodSandboxState::SandboxNotready
    })
    .await;
    until("its address is let go", 5, async || pod.status().await.network.unwrap_or_default().ip.is_empty()).await;
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn an_exit_while_the_daemon_is_dead_is_told_with_its_code() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("alone")).await;
    let container = pod.run(script("c", "trap 'echo bye; exit 5' TERM; while :; do sleep 0.05; done")).await;
    let pid: serde_json::Value = serde_json::from_str(&container.info().await["info"]).expect("JSON");
    node.kill_daemon().await;
    node.enclosure().kill(pid["pid"].as_u64().and_then(|p| u32::try_from(p).ok()).expect("a pid"), "TERM");
    tokio::time::sleep(Duration::from_millis(300)).await;
    node.restart().await;
    let end = container.ended().await;
    assert_eq!((end.exit_code, end.reason.as_str()), (5, "Error"));
    assert_eq!(container.logged("stdout"), "bye\n");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_start_that_no_daemon_lived_to_record_has_its_time() {
    let node = Node::start_with(Options { failpoints: true, ..Default::default() }).await;
    let pod = node.run_pod(pod("unrecorded")).await;
    let container = pod.create(script("c", "exit 5")).await;
    node.kill_daemon().await;
    node.restart_with(&[("BERTH_FAILPOINT", "start_container::state-commit:before")]).await;
    container.start().await.expect_err("the daemon dies of it");
    node.set_environment(&[]);
    let bundle = node.enclosure().path(node.dir().join("run/c").join(&container.id));
    until("it has ended", 10, async || bundle.join("exit.json").exists()).await;
    node.restart().await;
    let end = container.ended().await;
    assert_eq!((end.exit_code, end.reason.as_str()), (5, "Error"));
    assert!(end.created_at <= end.started_at && end.started_at <= end.finished_at, "{end:?}");
    pod.end().await;
    node.assert_nothing_left();
}
