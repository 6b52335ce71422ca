//! What pods use, against what the kernel says of them.

use berth_api::cri::{
    ListPodSandboxStatsRequest, NamespaceMode, PodSandboxConfig, PodSandboxStats, PodSandboxStatsFilter,
    PodSandboxStatsRequest, UInt64Value,
};
use berth_test::cri::script;
use berth_test::{Node, Pod, pod, until};
use tonic::Code;

fn value(value: Option<UInt64Value>) -> u64 {
    value.expect("a measured value").value
}

async fn stats(node: &Node, pod: &Pod<'_>) -> PodSandboxStats {
    let request = PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
    let answer = node.runtime().pod_sandbox_stats(request).await.expect("PodSandboxStats");
    answer.into_inner().stats.expect("an answer has stats")
}

/// The nth number of an interface's line in a `net/dev`.
fn counter(dev: &str, interface: &str, nth: usize) -> u64 {
    let line = dev.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'));
    let line = line.unwrap_or_else(|| panic!("no {interface} in\n{dev}"));
    line.split_whitespace().nth(nth).expect("a number").parse().expect("a number")
}

#[tokio::test]
async fn pod_stats_have_network_processes_and_each_container() {
    let node = Node::start().await;
    let mut config = pod("whole");
    config.labels.insert("app".into(), "x".into());
    let pod = node.run_pod(config.clone()).await;
    // What is sent to the gateway goes through eth0, whether or not anybody answers.
    let talk = "gateway=$(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'); nc -w 1 $gateway 9; exec sleep 1000";
    let talker = pod.run(script("talker", talk)).await;
    let other = pod.run(script("other", "sleep 1000 & exec sleep 1000")).await;
    let created = pod.create(script("created", "true")).await;
    let dev = async || std::fs::read_to_string(talker.proc("net/dev").await).expect("read net/dev");
    until("something was sent", 15, async || counter(&dev().await, "eth0", 8) > 0).await;
    until("both processes of the second run", 15, async || other.shell("ps | grep -c 's[l]eep'").await.trim() == "2")
        .await;

    let before = dev().await;
    let told = stats(&node, &pod).await;
    let after = dev().await;
    let attributes = told.attributes.expect("attributes");
    assert_eq!(
        (attributes.id, attributes.metadata, attributes.labels),
        (pod.id.clone(), config.metadata, config.labels)
    );
    let linux = told.linux.expect("linux");
    let network = linux.network.expect("a pod with its own network");
    let eth0 = network.default_interface.expect("the interface of the default route");
    assert_eq!((eth0.name.as_str(), network.interfaces.len()), ("eth0", 0), "lo is not told");
    for (nth, told) in [(0, eth0.rx_bytes), (2, eth0.rx_errors), (8, eth0.tx_bytes), (10, eth0.tx_errors)] {
        let (first, last) = (counter(&before, "eth0", nth), counter(&after, "eth0", nth));
        let told = value(told);
        assert!((first..=last).contains(&told), "number {nth}: {told} is not in {first}..={last}");
    }
    assert_eq!(value(linux.process.expect("processes").process_count), 3);

    let mut ids: Vec<_> = linux.containers.iter().map(|c| c.attributes.clone().expect("attributes").id).collect();
    ids.sort();
    let mut running = [talker.id.clone(), other.id.clone()];
    running.sort();
    assert_eq!(ids, running, "and not {}", created.id);
    let sum = |of: &dyn Fn(&berth_api::cri::ContainerStats) -> u64| linux.containers.iter().map(of).sum::<u64>();
    let used = sum(&|c| value(c.cpu.expect("processors").usage_core_nano_seconds));
    assert_eq!(value(linux.cpu.expect("processors").usage_core_nano_seconds), used);
    let memory = linux.memory.expect("memory");
    assert_eq!(value(memory.working_set_bytes), sum(&|c| value(c.memory.expect("memory").working_set_bytes)));
    assert!(memory.available_bytes.is_none(), "without a limit nothing is told to be left");

    pod.stop().await.expect("StopPodSandbox");
    let stopped = stats(&node, &pod).await.linux.expect("linux");
    assert!(stopped.network.is_none() && stopped.cpu.is_none() && stopped.containers.is_empty());
    pod.remove().await.expect("RemovePodSandbox");
    let gone = PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
    assert_eq!(node.runtime().pod_sandbox_stats(gone).await.expect_err("no such pod").code(), Code::NotFound);
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_pod_with_a_cgroup_of_its_own_is_counted_by_it() {
    let node = Node::start().await;
    let mut config = pod("own");
    let uid = config.metadata.as_ref().expect("metadata").uid.clone();
    config.linux.get_or_insert_default().cgroup_parent = format!("/{}/pod{uid}", node.name());
    let pod = node.run_pod(config).await;
    let stays = pod.run(script("stays", "exec sleep 1000")).await;
    let burns = pod.run(script("burns", "i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done")).await;
    burns.ended().await;
    let linux = stats(&node, &pod).await.linux.expect("linux");
    let whole = value(linux.cpu.expect("processors").usage_core_nano_seconds);
    let [container] = &linux.containers[..] else { panic!("one container runs: {:?}", linux.containers) };
    assert_eq!(container.attributes.as_ref().expect("attributes").id, stays.id);
    let left = value(container.cpu.expect("processors").usage_core_nano_seconds);
    assert!(whole > left + 10_000_000, "what the container that ended has used counts: {whole} against {left}");
    assert_eq!(value(linux.process.expect("processes").process_count), 1);
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_pod_on_the_hosts_network_has_no_network_stats() {
    let node = Node::start().await;
    let mut config = pod("host");
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default().network = NamespaceMode::Node.into();
    let pod = node.run_pod(config).await;
    let linux = stats(&node, &pod).await.linux.expect("linux");
    assert!(linux.network.is_none(), "{:?}", linux.network);
    assert_eq!(value(linux.process.expect("processes").process_count), 0);
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn pod_stats_are_listed_of_ready_pods_that_match_every_part_of_the_filter() {
    let node = Node::start().await;
    let labelled = |name: &str, app: &str| {
        let mut config: PodSandboxConfig = pod(name);
        config.labels.insert("app".into(), app.into());
        config
    };
    let a = node.run_pod(labelled("a", "x")).await;
    let b = node.run_pod(labelled("b", "y")).await;
    let stopped = node.run_pod(labelled("stopped", "x")).await;
    stopped.stop().await.expect("StopPodSandbox");
    let listed = async |id: &str, app: &str| {
        let labels = [("app".to_owned(), app.to_owned())].into_iter().filter(|(_, v)| !v.is_empty());
        let filter = PodSandboxStatsFilter { id: id.into(), label_selector: labels.collect() };
        let request = ListPodSandboxStatsRequest { filter: Some(filter) };
        let answer = node.runtime().list_pod_sandbox_stats(request).await.expect("ListPodSandboxStats").into_inner();
        let mut ids: Vec<_> = answer.stats.into_iter().map(|s| s.attributes.expect("attributes").id).collect();
        ids.sort();
        ids
    };
    let mut both = [a.id.clone(), b.id.clone()];
    both.sort();
    assert_eq!(listed("", "").await, both);
    assert_eq!(listed("", "x").await, [a.id.as_str()]);
    assert_eq!(listed(&b.id[..20], "").await, [b.id.as_str()]);
    assert!(listed(&b.id, "x").await.is_empty());
    assert!(listed(&stopped.id, "").await.is_empty());
    a.run(script("c", "while :; do :; done")).await;
    let told = node.crictl(&["statsp", "--seconds", "1"]);
    assert!(told.contains(&a.id[..13]), "{told}");
    for pod in [a, b, stopped] {
        pod.end().await;
    }
    node.assert_nothing_left();
}
