//! The daemon is replaced by one of another build while its pods run: an older one by this, and back.

use std::process::Stdio;

use berth_api::cri::{
    ContainerConfig, ContainerStatsRequest, ContainerStatus, LinuxContainerResources, PodSandboxState,
    PodSandboxStatsRequest, PodSandboxStatus, PortMapping, ReopenContainerLogRequest, UpdateContainerResourcesRequest,
};
use berth_test::cri::script;
use berth_test::node::{Options, binary_dir, previous_dir};
use berth_test::stream::{STDIN, STDOUT, WebSocket};
use berth_test::{Container, Node, Pod, pod, until};

const COUNT: &str = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done";
const SERVE: &str = "mkdir /www; echo page >/www/index.html; exec httpd -f -p 8080 -h /www";
const LATE: &str = "until [ -e /go ]; do sleep 0.05; done; exit 42";

/// How a daemon ends.
#[derive(Clone, Copy)]
enum End {
    Told,
    Killed,
}

async fn replace(node: &Node, end: End, by_previous: bool) {
    match end {
        End::Told => node.stop_daemon().await,
        End::Killed => node.kill_daemon().await,
    }
    node.set_previous(by_previous);
    node.restart().await;
    let pid = node.daemon_pid().expect("a daemon runs");
    let binary = node.enclosure().shell(&format!("readlink /proc/{pid}/exe"));
    assert_eq!(binary.contains("berth-previous"), by_previous, "{binary}");
}

/// A pod with everything that is to outlive its daemon.
struct World<'a> {
    pod: Pod<'a>,
    counts: Container<'a>,
    terminal: Container<'a>,
    serves: Container<'a>,
    late: Container<'a>,
    created: Container<'a>,
    over: Container<'a>,
}

fn terminal(name: &str) -> ContainerConfig {
    let mut config = script(name, "while read line; do echo got $line; done");
    (config.stdin, config.tty) = (true, true);
    config
}

async fn attach(c: &Container<'_>) -> WebSocket {
    c.node().websocket(&c.attach_url(true).await, "v5.channel.k8s.io")
}

async fn exec_cat(c: &Container<'_>) -> WebSocket {
    c.node().websocket(&c.exec_url(&["cat"]).await, "v5.channel.k8s.io")
}

impl<'a> World<'a> {
    async fn begin(node: &'a Node) -> Self {
        let mut config = pod("world");
        config.port_mappings = vec![PortMapping { host_port: 8088, container_port: 8080, ..Default::default() }];
        let pod = node.run_pod(config).await;
        let over = pod.run(script("over", "exit 7")).await;
        over.ended().await;
        Self {
            counts: pod.run(script("counts", COUNT)).await,
            terminal: pod.run(terminal("terminal")).await,
            serves: pod.run(script("serves", SERVE)).await,
            late: pod.run(script("late", LATE)).await,
            created: pod.create(script("created", "echo late; exit 5")).await,
            over,
            pod,
        }
    }

    /// Every status there is, to be the same after the daemon was replaced.
    async fn told(&self) -> (PodSandboxStatus, Vec<ContainerStatus>) {
        let mut containers = Vec::new();
        for c in [&self.counts, &self.terminal, &self.serves, &self.late, &self.created, &self.over] {
            containers.push(c.status().await);
        }
        (self.pod.status().await, containers)
    }

    /// The counting container's log has every number once.
    fn count(&self) -> usize {
        let lines = self.counts.log().into_iter();
        let numbers: Vec<usize> = lines.map(|l| String::from_utf8_lossy(&l.text).parse().expect("a number")).collect();
        assert_eq!(numbers, (1..=numbers.len()).collect::<Vec<_>>(), "a line is lost or doubled");
        numbers.len()
    }

    /// What a client can ask for while all of it runs.
    async fn works(&self) {
        let (node, pod) = (self.counts.node(), &self.pod);
        assert_eq!(
            self.serves.shell("until [ -s /www/index.html ]; do sleep 0.05; done; cat /www/index.html").await,
            "page\n"
        );
        let mut exec = exec_cat(&self.serves).await;
        exec.send(STDIN, b"said\n");
        exec.until(STDOUT, "said\n");
        drop(exec);
        let mut client = attach(&self.terminal).await;
        client.send(STDIN, b"hello\r");
        client.until(STDOUT, "got hello\r\n");
        drop(client);
        let get = |port: u16| format!("busybox wget -qO- http://127.0.0.1:{port}/");
        let got = |port: u16| {
            node.enclosure().command("sh").args(["-c", &get(port)]).output().is_ok_and(|o| o.stdout == b"page\n")
        };
        until("the published port serves the page", 15, async || got(8088)).await;
        let mut forward = node.crictl_command(&["port-forward", &pod.id, "9090:8080"]);
        let mut forward = forward.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("run nsenter");
        until("the port is forwarded", 15, async || got(9090)).await;
        node.enclosure().kill_by_words(&["crictl", &pod.id], "KILL");
        forward.wait().expect("wait for crictl");
        let stats = ContainerStatsRequest { container_id: self.counts.id.clone() };
        let stats = node.runtime().container_stats(stats).await.expect("ContainerStats").into_inner();
        let cpu = stats.stats.and_then(|s| s.cpu).and_then(|c| c.usage_core_nano_seconds);
        assert!(cpu.is_some_and(|used| used.value > 0), "{cpu:?}");
        let stats = PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
        node.runtime().pod_sandbox_stats(stats).await.expect("PodSandboxStats");
    }

    /// What changes it: limits, logs, starts, ends; then it is gone.
    async fn end(self) {
        let node = self.counts.node();
        let linux = LinuxContainerResources { cpu_shares: 512, ..Default::default() };
        let update = UpdateContainerResourcesRequest {
            container_id: self.counts.id.clone(),
            linux: Some(linux),
            ..Default::default()
        };
        node.runtime().update_container_resources(update).await.expect("UpdateContainerResources");
        let count = self.count();
        until("it logs on", 15, async || self.count() > count).await;
        let rotated = self.counts.log_path().with_extension("1");
        std::fs::rename(self.counts.log_path(), &rotated).expect("rotate the log");
        let reopen = ReopenContainerLogRequest { container_id: self.counts.id.clone() };
        node.runtime().reopen_container_log(reopen).await.expect("ReopenContainerLog");
        let before = berth_test::cri::parse_log(&std::fs::read(&rotated).expect("read the rotated log"));
        until("it logs on", 15, async || !self.counts.log().is_empty()).await;
        let first = String::from_utf8_lossy(&self.counts.log()[0].text).into_owned();
        assert_eq!(first, (before.len() + 1).to_string(), "the new log begins where the old one ends");
        // The container may end, and with it this exec, before the exec has.
        let touched = self.late.try_exec(["touch", "/go"], 30).await.expect("ExecSync");
        assert!([0, 137].contains(&touched.exit_code), "{touched:?}");
        assert_eq!(self.late.ended().await.exit_code, 42);
        assert_eq!(self.over.status().await.exit_code, 7);
        self.created.start().await.expect("StartContainer");
        assert_eq!(self.created.ended().await.exit_code, 5);
        assert_eq!(self.created.logged("stdout"), "late\n");
        self.counts.stop(1).await.expect("StopContainer");
        self.counts.remove().await.expect("RemoveContainer");
        self.pod.end().await;
        // The daemon's own process is another program's by its name.
        let left: Vec<_> = node.leaks().into_iter().filter(|leak| !leak.contains("/berthd serve ")).collect();
        assert!(left.is_empty(), "left behind:\n  {}\n{}", left.join("\n  "), node.log_tail());
    }
}

async fn taken_over_by_the_new_one(end: End) {
    let node = Node::start_with(Options { previous: true, ..Default::default() }).await;
    if !node.is_berth() {
        return;
    }
    let world = World::begin(&node).await;
    world.works().await;
    let (mut typing, mut cat) = (attach(&world.terminal).await, exec_cat(&world.serves).await);
    typing.send(STDIN, b"before\r");
    typing.until(STDOUT, "got before\r\n");
    cat.send(STDIN, b"before\n");
    cat.until(STDOUT, "before\n");
    let before = world.told().await;
    let count = world.count();
    replace(&node, end, false).await;
    // What was open has ended, and the containers have not.
    typing.receive_all();
    cat.receive_all();
    assert_eq!(world.told().await, before);
    until("it logs on", 15, async || world.count() > count).await;
    world.works().await;
    // Old and new stand side by side.
    let another = node.run_pod(pod("another")).await;
    assert_eq!(another.run(script("c", "echo well")).await.said().await, "well\n");
    another.end().await;
    // A second start reads what the first one left, of either build.
    replace(&node, End::Killed, false).await;
    assert_eq!(world.told().await, before);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_an_older_berthd_go_on_under_a_new_one() {
    if !berth_test::has("previous-commit", "pods_of_an_older_berthd_go_on_under_a_new_one") {
        return;
    }
    taken_over_by_the_new_one(End::Told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_an_older_berthd_that_was_killed_go_on_under_a_new_one() {
    if !berth_test::has("previous-commit", "pods_of_an_older_berthd_that_was_killed_go_on_under_a_new_one") {
        return;
    }
    taken_over_by_the_new_one(End::Killed).await;
}

/// The way back, for as long as no format has changed: whoever made test/upgrade-from's number the newest changes this.
#[tokio::test(flavor = "multi_thread")]
async fn pods_of_this_berthd_go_on_under_the_older_one_and_back() {
    if !berth_test::has("previous-commit", "pods_of_this_berthd_go_on_under_the_older_one_and_back") {
        return;
    }
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let world = World::begin(&node).await;
    let before = world.told().await;
    replace(&node, End::Told, true).await;
    assert_eq!(world.pod.status().await.state(), PodSandboxState::SandboxReady);
    assert_eq!(world.told().await, before);
    world.works().await;
    replace(&node, End::Told, false).await;
    assert_eq!(world.told().await, before);
    world.works().await;
    world.end().await;
}

/// A package was replaced and its daemon not yet: the old one starts the new shim, keeper and plugins.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_berthd_runs_pods_by_the_new_binaries() {
    if !berth_test::has("previous-commit", "an_older_berthd_runs_pods_by_the_new_binaries") {
        return;
    }
    let new = std::fs::canonicalize(binary_dir(false)).expect("binaries");
    assert_ne!(new, previous_dir());
    let config = format!("[shim]\ndir = {new:?}\n");
    let node = Node::start_with(Options { previous: true, config, ..Default::default() }).await;
    if !node.is_berth() {
        return;
    }
    let world = World::begin(&node).await;
    world.works().await;
    let before = world.told().await;
    replace(&node, End::Told, false).await;
    assert_eq!(world.told().await, before);
    world.works().await;
    world.end().await;
}
