//! What containers use, against what the kernel says of them.

use std::time::{SystemTime, UNIX_EPOCH};

use berth_api::cri::{
    ContainerStats, ContainerStatsFilter, ContainerStatsRequest, LinuxContainerResources, ListContainerStatsRequest,
    UInt64Value,
};
use berth_test::cri::script;
use berth_test::kernel::cgroup_v2;
use berth_test::{Container, Node, pod, until};
use tonic::Code;

const MIB: u64 = 1 << 20;

fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after the epoch");
    i64::try_from(since.as_nanos()).expect("before 2262")
}

fn value(value: Option<UInt64Value>) -> u64 {
    value.expect("a measured value").value
}

async fn stats(container: &Container<'_>) -> ContainerStats {
    let request = ContainerStatsRequest { container_id: container.id.clone() };
    let answer = container.node().runtime().container_stats(request).await.expect("ContainerStats");
    answer.into_inner().stats.expect("an answer has stats")
}

async fn listed(node: &Node, filter: Option<ContainerStatsFilter>) -> Vec<String> {
    let answer = node.runtime().list_container_stats(ListContainerStatsRequest { filter }).await;
    let stats = answer.expect("ListContainerStats").into_inner().stats;
    let mut ids: Vec<_> = stats.into_iter().map(|s| s.attributes.expect("attributes").id).collect();
    ids.sort();
    ids
}

#[tokio::test]
async fn container_stats_tell_what_the_kernel_counts() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("counted")).await;
    let begun = now_ns();
    let mut config =
        script("c", "dd if=/dev/zero of=/big bs=1M count=8 2>/dev/null; ln /big /same; while :; do :; done");
    config.labels.insert("kind".into(), "busy".into());
    config.annotations.insert("note".into(), "kept".into());
    let resources = LinuxContainerResources { memory_limit_in_bytes: 64 * MIB as i64, ..Default::default() };
    config.linux.get_or_insert_default().resources = Some(resources);
    let c = pod.run(config.clone()).await;
    until("the container wrote its file", 15, async || c.shell("ls /").await.contains("same")).await;

    let first = stats(&c).await;
    let attributes = first.attributes.clone().expect("attributes");
    assert_eq!((attributes.id, attributes.metadata), (c.id.clone(), config.metadata));
    assert_eq!((attributes.labels, attributes.annotations), (config.labels, config.annotations));
    let cpu = first.cpu.expect("processors");
    assert!((begun..=now_ns()).contains(&cpu.timestamp), "{}", cpu.timestamp);
    let memory = first.memory.expect("memory");
    let (usage, working_set) = (value(memory.usage_bytes), value(memory.working_set_bytes));
    assert!(value(memory.rss_bytes) > 0 && working_set > 0 && working_set <= usage, "{memory:?}");
    assert!(usage <= 64 * MIB && value(memory.page_faults) > 0, "{memory:?}");
    assert_eq!(value(memory.available_bytes), 64 * MIB - working_set);
    assert!(memory.timestamp >= begun && memory.major_page_faults.is_some());

    // A busy loop has one processor, or what this machine leaves of it; the rate is known once a second has passed.
    let mut rate = 0;
    until("a rate", 30, async || {
        rate = stats(&c).await.cpu.expect("processors").usage_nano_cores.map_or(0, |rate| rate.value);
        rate > 0
    })
    .await;
    assert!(rate <= 1_200_000_000, "one thread cannot use {rate} billionths of a processor");
    let later = value(stats(&c).await.cpu.expect("processors").usage_core_nano_seconds);
    let kernel: u64 = match cgroup_v2() {
        true => {
            let text = c.limit("cpu", "", "cpu.stat").await;
            let line = text.lines().find_map(|l| l.strip_prefix("usage_usec ")).expect("usage_usec").to_owned();
            line.parse::<u64>().expect("a number") * 1000
        }
        false => c.limit("cpuacct", "cpuacct.usage", "").await.parse().expect("a number"),
    };
    assert!(value(cpu.usage_core_nano_seconds) < later && later <= kernel, "{later} of {kernel}");

    if std::path::Path::new("/proc/pressure/cpu").exists() {
        let psi = stats(&c).await.cpu.expect("processors").psi.expect("pressure");
        let seen = c.pressure("cpu").await;
        assert!(psi.some.expect("some").total <= seen * 1000, "nanoseconds so far, at most {seen} µs");
        assert!(first.io.and_then(|io| io.psi).is_some() && memory.psi.is_some());
    }
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn the_writable_layer_is_counted_without_the_image() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("layer")).await;
    let c = pod
        .run(script(
            "c",
            "mkdir -p /a/b; dd if=/dev/zero of=/a/b/big bs=1M count=8; ln /a/b/big /same; exec sleep 1000",
        ))
        .await;
    until("the container wrote its file", 15, async || c.shell("ls /").await.contains("same")).await;
    let mut layer = stats(&c).await.writable_layer;
    // The first count may have begun before the last byte was there; the next one comes by itself.
    until("the layer is counted with all its files", 30, async || {
        layer = stats(&c).await.writable_layer;
        layer.as_ref().and_then(|l| l.used_bytes).is_some_and(|bytes| bytes.value >= 8 * MIB)
    })
    .await;
    let layer = layer.expect("counted");
    assert!(value(layer.used_bytes) < 9 * MIB, "a file with two names is one: {layer:?}");
    let inodes = value(layer.inodes_used);
    assert!((3..10).contains(&inodes), "two directories, a file, and what a container's start leaves: {inodes}");
    assert!(layer.timestamp > 0 && layer.timestamp <= now_ns());
    let mountpoint = layer.fs_id.expect("a file system").mountpoint;
    assert!(node.enclosure().path(&mountpoint).is_dir(), "{mountpoint}");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn stats_are_listed_of_what_runs_and_matches_every_part_of_the_filter() {
    let node = Node::start().await;
    let (one, two) = (node.run_pod(pod("one")).await, node.run_pod(pod("two")).await);
    let labelled = |name: &str, value: &str| {
        let mut config = script(name, "exec sleep 1000");
        config.labels.insert("app".into(), value.into());
        config
    };
    let a = one.run(labelled("a", "x")).await;
    let b = one.run(labelled("b", "y")).await;
    let c = two.run(labelled("c", "x")).await;
    let created = two.create(labelled("created", "x")).await;
    let sorted = |mut ids: Vec<String>| {
        ids.sort();
        ids
    };
    let all = sorted(vec![a.id.clone(), b.id.clone(), c.id.clone()]);
    assert_eq!(listed(&node, None).await, all);
    assert_eq!(listed(&node, Some(ContainerStatsFilter::default())).await, all);
    let filter = |id: &str, pod: &str, app: &str| ContainerStatsFilter {
        id: id.into(),
        pod_sandbox_id: pod.into(),
        label_selector: [("app".to_owned(), app.to_owned())].into_iter().filter(|(_, v)| !v.is_empty()).collect(),
    };
    let check = async |filter, expected: &[&Container<'_>]| {
        let expected = sorted(expected.iter().map(|c| c.id.clone()).collect());
        assert_eq!(listed(&node, Some(filter)).await, expected);
    };
    check(filter(&a.id, "", ""), &[&a]).await;
    check(filter(&a.id[..20], "", ""), &[&a]).await;
    check(filter("", &one.id, ""), &[&a, &b]).await;
    check(filter("", &one.id[..20], "y"), &[&b]).await;
    check(filter("", "", "x"), &[&a, &c]).await;
    check(filter(&a.id, &two.id, ""), &[]).await;
    check(filter(&a.id, "", "y"), &[]).await;
    check(filter(&created.id, "", ""), &[]).await;

    // By its id one that does not run is told too, with what it has on disk.
    assert!(stats(&created).await.cpu.is_none());
    let unknown = ContainerStatsRequest { container_id: "f".repeat(64) };
    assert_eq!(node.runtime().container_stats(unknown).await.expect_err("no such container").code(), Code::NotFound);
    let empty = ContainerStatsRequest::default();
    assert_eq!(node.runtime().container_stats(empty).await.expect_err("no id").code(), Code::InvalidArgument);
    one.end().await;
    two.end().await;
    assert!(listed(&node, None).await.is_empty());
    node.assert_nothing_left();
}

#[tokio::test]
async fn sums_go_on_when_the_daemon_is_replaced() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("kept")).await;
    let c = pod.run(script("c", "while :; do :; done")).await;
    let used = async || value(stats(&c).await.cpu.expect("processors").usage_core_nano_seconds);
    until("a tenth of a second is used", 30, async || used().await > 100_000_000).await;
    let before = used().await;
    node.kill_daemon().await;
    node.restart().await;
    assert!(used().await >= before);
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn crictl_shows_stats() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("shown")).await;
    let c = pod.run(script("spinner", "while :; do :; done")).await;
    let table = node.crictl(&["stats", "--seconds", "1"]);
    assert!(table.lines().any(|line| line.starts_with(&c.id[..13]) && line.contains("spinner")), "{table}");
    let told: serde_json::Value = serde_json::from_str(&node.crictl(&["stats", "-o", "json", &c.id])).expect("JSON");
    assert_eq!(told["stats"].as_array().map(Vec::len), Some(1), "{told}");
    assert_eq!(told["stats"][0]["attributes"]["id"], c.id);
    pod.end().await;
    node.assert_nothing_left();
}
