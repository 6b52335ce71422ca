//! A handler whose shim has one process for all containers of a pod, and is told of the pod by a sandbox container: Debian's
//! containerd-shim-runc-v2, which groups as those of virtual machines do.

use std::path::PathBuf;

use berth_api::cri::{
    ContainerEventType, ContainerState, ContainerStatusRequest, GetEventsRequest, ListContainersRequest, MemoryUsage,
    NamespaceMode, PodSandboxState, PodSandboxStatsRequest,
};
use berth_test::cri::script;
use berth_test::node::Options;
use berth_test::{Container, Node, Pod, pod, until};
use tonic::Code;

const RUNC: &str = "[runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\nsandbox_container = true\n";

async fn node_with(config: &str, failpoints: bool) -> Node {
    let node = Node::start_with(Options { config: config.into(), failpoints, ..Default::default() }).await;
    // Where the sockets of containerd's shims are is the whole host's; not here.
    node.enclosure().shell("mkdir -p /run/containerd && mount -t tmpfs shims /run/containerd");
    node.remember();
    node
}

async fn node() -> Node {
    node_with(RUNC, false).await
}

/// The sockets of containerd's shims.
fn sockets(node: &Node) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(node.enclosure().path("/run/containerd/s")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// What sandbox containers run.
fn pauses(node: &Node) -> Vec<u32> {
    node.enclosure().processes().into_iter().filter(|(_, line)| line == "/pause").map(|(pid, _)| pid).collect()
}

/// The only one. runc answers a start a moment before it has executed the program.
async fn its_pause(node: &Node) -> u32 {
    until("it waits", 10, async || pauses(node).len() == 1).await;
    pauses(node)[0]
}

/// Nothing is left of the shims, neither here nor among the files that are not the node's own.
fn assert_nothing_left(node: &Node) {
    assert_eq!((pauses(node), node.shims("runc-v2")), (vec![], vec![]), "{}", node.log_tail());
    assert!(sockets(node).is_empty(), "left: {:?}", sockets(node));
    let records = node.enclosure().path(node.dir().join("run/runc/berth"));
    let records = std::fs::read_dir(records).expect("runc's records").flatten().map(|entry| entry.path());
    assert_eq!(records.collect::<Vec<_>>(), Vec::<PathBuf>::new(), "records of runc");
    node.assert_nothing_left();
}

async fn by_runc<'a>(node: &'a Node, name: &str) -> Pod<'a> {
    node.try_run_pod_by("runc", pod(name)).await.unwrap_or_else(|e| panic!("{e}\n{}", node.log_tail()))
}

async fn sleeper<'a>(pod: &Pod<'a>, name: &str) -> Container<'a> {
    pod.run(script(name, "exec sleep 1000")).await
}

async fn assert_killed_with_its_shim(container: &Container<'_>) {
    let ended = container.ended().await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "ShimDied"));
}

async fn becomes_not_ready(pod: &Pod<'_>) {
    let not_ready = async || pod.status().await.state() == PodSandboxState::SandboxNotready;
    until("the pod is not ready", 15, not_ready).await;
}

#[tokio::test]
async fn a_pod_is_one_process_from_its_sandbox_container_to_its_end() {
    let node = node().await;
    let pod = by_runc(&node, "grouped").await;
    let (shim, pause) = (node.shims("runc-v2"), its_pause(&node).await);
    assert_eq!(shim.len(), 1, "{:?}", node.enclosure().processes());
    let a = pod.run(script("a", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done")).await;
    let b = pod.run(script("b", "trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done")).await;
    until("both say something", 10, async || b.logged("stdout") == "up\n" && a.log().len() > 3).await;
    assert_eq!(node.shims("runc-v2"), shim, "both are in the sandbox container's shim");

    // In the pod, and not as root.
    let link = |pid: u32, name: &str| node.enclosure().shell(&format!("readlink /proc/{pid}/ns/{name}"));
    for name in ["net", "ipc", "uts"] {
        assert_eq!(link(pause, name), a.shell(&format!("readlink /proc/self/ns/{name}")).await);
    }
    let status = node.enclosure().shell(&format!("cat /proc/{pause}/status"));
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).expect("a line").trim().to_owned();
    assert_eq!(line("Uid:"), "65535\t65535\t65535\t65535");
    assert_eq!((line("CapEff:"), line("CapBnd:")), ("0000000000000000".into(), "0000000000000000".into()));
    assert_eq!((line("NoNewPrivs:"), line("Seccomp:")), ("1".into(), "2".into()));

    let told = |id: &str| {
        let spec = std::fs::read(node.enclosure().path(node.dir().join("run/c").join(id).join("config.json")));
        let spec: serde_json::Value = serde_json::from_slice(&spec.expect("a spec")).expect("JSON");
        let told = |name: &str| spec["annotations"][format!("io.kubernetes.cri.{name}")].clone();
        ["container-type", "sandbox-id", "sandbox-name", "container-name"].map(told)
    };
    assert_eq!(told(&pod.id), ["sandbox".into(), pod.id.clone().into(), "grouped".into(), serde_json::Value::Null]);
    assert_eq!(
        told(&b.id),
        ["container".into(), pod.id.clone().into(), serde_json::Value::from("grouped"), "b".into()]
    );

    // Nobody sees it.
    let all = node.runtime().list_containers(ListContainersRequest::default()).await.expect("ListContainers");
    assert_eq!(all.into_inner().containers.len(), 2);
    let its = ContainerStatusRequest { container_id: pod.id.clone(), verbose: false };
    assert_eq!(node.runtime().container_status(its).await.expect_err("no container").code(), Code::NotFound);
    let (before, logged) = (a.status().await, a.log().len());
    node.kill_daemon().await;
    until("it logs while the daemon is dead", 10, async || a.log().len() > logged + 20).await;
    node.restart().await;
    assert_eq!((a.status().await, pod.status().await.state()), (before, PodSandboxState::SandboxReady));
    assert_eq!(a.shell("hostname").await, "grouped\n");
    let late = sleeper(&pod, "late").await;
    assert_eq!(late.shell("echo well").await, "well\n");
    assert_eq!((node.shims("runc-v2"), pauses(&node)), (shim.clone(), vec![pause]), "as before");

    // The end of one is its own.
    b.stop(10).await.expect("StopContainer");
    let ended = b.status().await;
    assert_eq!((ended.state(), ended.exit_code), (ContainerState::ContainerExited, 7));
    b.remove().await.expect("RemoveContainer");
    assert_eq!(late.shell("echo well").await, "well\n");
    assert_eq!(node.shims("runc-v2"), shim);
    // The same for one whose program is not there.
    pod.try_create(berth_test::container("missing", ["/no/such/program"])).await.err().expect("no such program");
    assert_eq!(a.shell("echo well").await, "well\n");

    pod.stop().await.expect("StopPodSandbox");
    assert_eq!((pauses(&node), node.shims("runc-v2")), (vec![], vec![]), "the process ends with the pod");
    assert!(sockets(&node).is_empty(), "left: {:?}", sockets(&node));
    assert_eq!(pod.status().await.state(), PodSandboxState::SandboxNotready);
    assert_eq!(a.status().await.exit_code, 137);
    pod.stop().await.expect("StopPodSandbox again");
    pod.remove().await.expect("RemovePodSandbox");
    assert_nothing_left(&node);
}

#[tokio::test]
async fn the_pods_pid_namespace_is_berths_own_and_two_pods_are_two_processes() {
    let node = node().await;
    let mut config = pod("shared");
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default().pid = NamespaceMode::Pod.into();
    let options = security.namespace_options.clone();
    let shared = node.try_run_pod_by("runc", config).await.expect("a pod by runc");
    let mut inside = script("c", "exec sleep 1000");
    let context = inside.linux.get_or_insert_default().security_context.get_or_insert_default();
    context.namespace_options = options;
    let c = shared.run(inside).await;
    let seen = c.shell("ps -o pid,args").await;
    let is_there = |what: &str| seen.lines().any(|line| line.trim().split_once(' ').is_some_and(|(_, l)| l == what));
    let first = seen.lines().find(|line| line.trim().starts_with("1 "));
    assert!(first.is_some_and(|line| line.contains("berth-pod-ns")), "{seen}");
    assert!(is_there("/pause") && is_there("sleep 1000"), "{seen}");

    let other = by_runc(&node, "other").await;
    let d = sleeper(&other, "d").await;
    assert_eq!((node.shims("runc-v2").len(), pauses(&node).len()), (2, 2));
    // What waits is counted with the pod, and is none of its containers.
    let request = PodSandboxStatsRequest { pod_sandbox_id: other.id.clone() };
    let stats = node.runtime().pod_sandbox_stats(request).await.expect("PodSandboxStats").into_inner();
    let stats = stats.stats.and_then(|stats| stats.linux).expect("measured");
    let counted = stats.process.and_then(|process| process.process_count).map(|count| count.value);
    assert_eq!((stats.containers.len(), counted), (1, Some(2)));
    let used = |memory: Option<MemoryUsage>| memory.and_then(|m| m.usage_bytes).expect("measured").value;
    assert!(used(stats.memory) > used(stats.containers[0].memory), "{stats:?}");
    shared.end().await;
    assert_eq!(d.shell("echo well").await, "well\n");
    assert_eq!(node.shims("runc-v2").len(), 1);
    // Removed without being stopped.
    other.remove().await.expect("RemovePodSandbox");
    assert_nothing_left(&node);
}

#[tokio::test]
async fn when_the_process_dies_everything_of_the_pod_is_told_once() {
    let node = node().await;
    let pod = by_runc(&node, "dies").await;
    let (a, b) = (sleeper(&pod, "a").await, sleeper(&pod, "b").await);
    let created = pod.create(script("created", "exec sleep 1000")).await;
    let quit = pod.run(script("quit", "exit 3")).await;
    assert_eq!(quit.ended().await.exit_code, 3);
    let mut events = node.runtime().get_container_events(GetEventsRequest {}).await.expect("subscribe").into_inner();
    assert_eq!(node.signal_shim(&pod.id, "KILL"), 1, "there is one process");
    for container in [&a, &b, &created] {
        assert_killed_with_its_shim(container).await;
    }
    assert_eq!(quit.status().await.exit_code, 3, "it had ended before");
    becomes_not_ready(&pod).await;
    let refused = pod.try_create(script("more", "true")).await.err().expect("no sandbox container");
    assert!(refused.message().contains("its sandbox container has ended"), "{refused}");
    pod.end().await;
    let mut stopped = Vec::new();
    loop {
        let event = events.message().await.expect("the stream goes on").expect("the stream goes on");
        match event.container_event_type() {
            ContainerEventType::ContainerStoppedEvent => stopped.push(event.container_id),
            ContainerEventType::ContainerDeletedEvent if event.container_id == pod.id => break,
            _ => {}
        }
    }
    stopped.sort();
    let mut expected = [&pod.id, &a.id, &b.id, &created.id].map(String::clone);
    expected.sort();
    assert_eq!(stopped, expected);
    assert_nothing_left(&node);

    // The same while nobody looks.
    let pod = by_runc(&node, "away").await;
    let c = sleeper(&pod, "c").await;
    node.kill_daemon().await;
    assert_eq!(node.signal_shim(&pod.id, "KILL"), 1);
    node.restart().await;
    assert_killed_with_its_shim(&c).await;
    assert_eq!(pod.status().await.state(), PodSandboxState::SandboxNotready);
    pod.end().await;
    assert_nothing_left(&node);
}

#[tokio::test]
async fn when_the_sandbox_container_dies_the_pod_is_not_ready_and_its_containers_are_the_shims() {
    let node = node().await;
    let pod = by_runc(&node, "waits").await;
    let c = sleeper(&pod, "c").await;
    let created = pod.create(script("created", "exec sleep 1000")).await;
    node.enclosure().kill(its_pause(&node).await, "KILL");
    becomes_not_ready(&pod).await;
    assert_eq!(c.shell("echo well").await, "well\n", "runc's goes on with the others");
    let refused = created.start().await.expect_err("the pod is not ready");
    assert!(refused.message().contains("its sandbox container has ended"), "{refused}");
    node.kill_daemon().await;
    node.restart().await;
    assert_eq!(pod.status().await.state(), PodSandboxState::SandboxNotready, "also for the next daemon");
    assert_eq!(c.shell("echo well").await, "well\n");
    assert!(!pod.ip().await.is_empty(), "its network is there until it is stopped");
    pod.end().await;
    assert_nothing_left(&node);
}

/// SIGTERM ends what waits, from inside as well: it is pid 1 there.
#[tokio::test]
async fn the_sandbox_container_ends_when_it_is_told_to() {
    let node = node().await;
    let pod = by_runc(&node, "told").await;
    node.enclosure().kill(its_pause(&node).await, "TERM");
    becomes_not_ready(&pod).await;
    pod.end().await;
    assert_nothing_left(&node);
}

#[tokio::test]
async fn a_process_that_is_silent_costs_its_deadlines_and_is_killed() {
    let node = node_with(&format!("{RUNC}[shim]\ntimeout_s = 2\n"), false).await;
    let pod = by_runc(&node, "silent").await;
    let (a, b) = (sleeper(&pod, "a").await, sleeper(&pod, "b").await);
    assert_eq!(node.signal_shim(&pod.id, "STOP"), 1);
    let refused = pod.try_create(script("c", "true")).await.err().expect("nobody answers");
    assert!(refused.message().contains("did not answer"), "{refused}");
    assert_eq!(node.shims("runc-v2").len(), 1, "what is silent has others, which are alive");
    a.stop(0).await.expect("StopContainer");
    assert_killed_with_its_shim(&a).await;
    a.remove().await.expect("RemoveContainer");
    assert_eq!(b.status().await.state(), ContainerState::ContainerRunning);
    // It comes back, and is as it was.
    assert_eq!(node.signal_shim(&pod.id, "CONT"), 1);
    assert_eq!(b.shell("echo well").await, "well\n");
    let d = sleeper(&pod, "d").await;
    assert_eq!(d.shell("echo well").await, "well\n");
    assert_eq!(node.signal_shim(&pod.id, "STOP"), 1);
    node.kill_daemon().await;
    node.restart().await;
    assert_eq!(d.status().await.state(), ContainerState::ContainerRunning, "as it was last seen");
    pod.end().await;
    assert_nothing_left(&node);
}

#[tokio::test]
async fn what_was_begun_with_one_process_stays_so_whatever_is_configured_later() {
    let node = node().await;
    let old = by_runc(&node, "old").await;
    let a = sleeper(&old, "a").await;
    let config = node.dir().join("config.toml");
    let text = std::fs::read_to_string(&config).expect("read config.toml");
    node.stop_daemon().await;
    std::fs::write(&config, text.replace("sandbox_container = true\n", "")).expect("write config.toml");
    node.restart().await;
    let b = sleeper(&old, "b").await;
    assert_eq!((node.shims("runc-v2").len(), pauses(&node).len()), (1, 1), "b is in the same");
    let new = by_runc(&node, "new").await;
    let (c, d) = (sleeper(&new, "c").await, sleeper(&new, "d").await);
    assert_eq!((node.shims("runc-v2").len(), pauses(&node).len()), (3, 1), "each its own");
    node.stop_daemon().await;
    std::fs::write(&config, text).expect("write config.toml");
    node.restart().await;
    let e = sleeper(&new, "e").await;
    assert_eq!((node.shims("runc-v2").len(), pauses(&node).len()), (4, 1), "also later");
    for container in [&a, &b, &c, &d, &e] {
        assert_eq!(container.shell("echo well").await, "well\n");
    }
    // Not configured at all any more.
    node.stop_daemon().await;
    let without = std::fs::read_to_string(&config).expect("read config.toml").replace(RUNC, "");
    std::fs::write(&config, without).expect("write config.toml");
    assert_eq!(node.signal_shim(&old.id, "KILL"), 1);
    node.restart().await;
    assert_killed_with_its_shim(&a).await;
    old.end().await;
    new.end().await;
    assert_nothing_left(&node);
}

/// On the host's network, of which nothing is written down.
async fn on_the_host<'a>(node: &'a Node, name: &str) -> Pod<'a> {
    let mut config = pod(name);
    config.hostname.clear();
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default().network = NamespaceMode::Node.into();
    node.try_run_pod_by("runc", config).await.expect("a pod by runc")
}

async fn sleeper_on_the_host<'a>(pod: &Pod<'a>, name: &str) -> Container<'a> {
    let mut config = script(name, "exec sleep 7001");
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default().network = NamespaceMode::Node.into();
    pod.run(config).await
}

#[tokio::test]
async fn what_has_no_record_any_more_is_ended_and_cleaned_up_after() {
    let node = node().await;
    let (stray, kept) = (on_the_host(&node, "stray").await, on_the_host(&node, "kept").await);
    let lost = sleeper_on_the_host(&stray, "lost").await;
    let (other, alone) = (sleeper_on_the_host(&kept, "other").await, sleeper_on_the_host(&kept, "alone").await);
    until("all run", 10, async || node.enclosure().running("sleep 7001") == 3).await;
    node.kill_daemon().await;
    let pods = node.dir().join("data/pods");
    std::fs::remove_dir_all(pods.join(&stray.id)).expect("remove the pod's records");
    std::fs::remove_file(pods.join(&kept.id).join(format!("{}.request", alone.id))).expect("remove one record");
    node.restart().await;
    for container in [&lost, &alone] {
        assert_eq!(container.try_status().await.expect_err("no record").code(), Code::NotFound);
    }
    assert_eq!((node.shims("runc-v2").len(), pauses(&node).len()), (1, 1), "{}", node.log_tail());
    assert_eq!(node.enclosure().running("sleep 7001"), 1);
    assert_eq!(other.shell("echo well").await, "well\n", "what it shared goes on");
    let more = sleeper_on_the_host(&kept, "more").await;
    assert_eq!(more.shell("echo well").await, "well\n");
    kept.end().await;
    assert_nothing_left(&node);
}

#[tokio::test]
async fn a_node_without_the_program_says_so_and_an_unknown_key_is_an_error() {
    let bin = berth_test::node::binary_dir(false);
    let dir = tempfile::TempDir::with_prefix("bt-bin-").expect("make a directory");
    for name in ["containerd-shim-berth-v1", "berth-pod-ns"] {
        std::fs::copy(bin.join(name), dir.path().join(name)).expect("copy");
    }
    let config = dir.path().join("config.toml");
    let started = |text: &str| {
        std::fs::write(&config, text).expect("write config.toml");
        let roots = ["data", "run"].map(|name| dir.path().join(name));
        let mut serve = std::process::Command::new("unshare");
        serve.args(["--net", "--mount"]).arg(bin.join("berthd")).arg("serve").arg("--config").arg(&config);
        serve.arg("--data-root").arg(&roots[0]).arg("--run-root").arg(&roots[1]);
        serve.args(["--listen", &format!("unix://{}/s", dir.path().display())]);
        let output = serve.output().expect("run berthd");
        assert!(!output.status.success(), "it does not start");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let shim = format!("[shim]\ndir = {:?}\n", dir.path());
    let said = started(&format!("{RUNC}{shim}"));
    assert!(said.contains("sandbox_container: berth-pause is not in"), "{said}");
    let said = started("[runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\nsandbox_containers = true\n");
    assert!(said.contains("unknown field `sandbox_containers`"), "{said}");
    let said = started("[runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\nsandbox_container = 1\n");
    assert!(said.contains("sandbox_container"), "{said}");
}
