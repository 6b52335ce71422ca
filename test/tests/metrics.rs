//! ListMetricDescriptors and ListPodSandboxMetrics: every name that critest pins, with the kernel's numbers.

use std::collections::{BTreeMap, BTreeSet};

use berth_api::cri::{
    LinuxContainerResources, ListMetricDescriptorsRequest, ListPodSandboxMetricsRequest, Metric, MetricDescriptor,
    PodSandboxMetrics,
};
use berth_test::cri::{IMAGE, script};
use berth_test::kernel::cgroup_v2;
use berth_test::{Node, pod, until};

/// Source: `expectedMetricDescriptorNames` of critest (kubelet 1.37).
const NAMES: &str = "container_blkio_device_usage_total container_cpu_cfs_periods_total \
    container_cpu_cfs_throttled_periods_total container_cpu_cfs_throttled_seconds_total \
    container_cpu_system_seconds_total container_cpu_usage_seconds_total container_cpu_user_seconds_total \
    container_file_descriptors container_fs_inodes_free container_fs_inodes_total container_fs_limit_bytes \
    container_fs_reads_bytes_total container_fs_reads_total container_fs_usage_bytes container_fs_writes_bytes_total \
    container_fs_writes_total container_hugetlb_max_usage_bytes container_hugetlb_usage_bytes container_last_seen \
    container_memory_cache container_memory_failcnt container_memory_failures_total container_memory_kernel_usage \
    container_memory_mapped_file container_memory_max_usage_bytes container_memory_rss container_memory_swap \
    container_memory_usage_bytes container_memory_working_set_bytes container_network_receive_bytes_total \
    container_network_receive_errors_total container_network_receive_packets_dropped_total \
    container_network_receive_packets_total container_network_transmit_bytes_total \
    container_network_transmit_errors_total container_network_transmit_packets_dropped_total \
    container_network_transmit_packets_total container_oom_events_total container_pressure_cpu_stalled_seconds_total \
    container_pressure_cpu_waiting_seconds_total container_pressure_io_stalled_seconds_total \
    container_pressure_io_waiting_seconds_total container_pressure_memory_stalled_seconds_total \
    container_pressure_memory_waiting_seconds_total container_processes container_sockets container_spec_cpu_period \
    container_spec_cpu_quota container_spec_cpu_shares container_spec_memory_limit_bytes \
    container_spec_memory_reservation_limit_bytes container_spec_memory_swap_limit_bytes \
    container_start_time_seconds container_threads container_threads_max container_ulimits_soft";

const MIB: u64 = 1 << 20;

async fn descriptors(node: &Node) -> BTreeMap<String, MetricDescriptor> {
    let answer = node.runtime().list_metric_descriptors(ListMetricDescriptorsRequest {}).await;
    let answer = answer.expect("ListMetricDescriptors").into_inner();
    answer.descriptors.into_iter().map(|d| (d.name.clone(), d)).collect()
}

async fn metrics(node: &Node) -> Vec<PodSandboxMetrics> {
    let answer = node.runtime().list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}).await;
    answer.expect("ListPodSandboxMetrics").into_inner().pod_metrics
}

/// The only value of a metric, or the one whose labels hold `label`.
fn value(metrics: &[Metric], name: &str, label: &str) -> u64 {
    let mut found = metrics.iter().filter(|m| m.name == name);
    let metric = found.find(|m| label.is_empty() || m.label_values.iter().any(|l| l == label));
    metric.unwrap_or_else(|| panic!("no {name} {label}")).value.expect("a value").value
}

#[tokio::test]
async fn every_pinned_metric_is_described_and_has_a_value_where_the_kernel_counts() {
    let node = Node::start().await;
    let described = descriptors(&node).await;
    let pinned: BTreeSet<_> = NAMES.split_whitespace().map(str::to_owned).collect();
    assert_eq!((pinned.len(), described.keys().cloned().collect::<BTreeSet<_>>()), (56, pinned.clone()));
    for descriptor in described.values() {
        assert!(!descriptor.help.is_empty() && !descriptor.label_keys.is_empty(), "{descriptor:?}");
    }

    let pod = node.run_pod(pod("measured")).await;
    let serve = "dd if=/dev/zero of=/big bs=1M count=4; sync; httpd -f -p 80 & exec sleep 1000";
    let mut config = script("c", serve);
    config.linux.get_or_insert_default().resources = Some(LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 20_000,
        cpu_shares: 1024,
        memory_limit_in_bytes: 64 * MIB as i64,
        memory_swap_limit_in_bytes: 64 * MIB as i64,
        ..Default::default()
    });
    let c = pod.run(config).await;
    until("httpd listens", 15, async || c.shell("netstat -ltn").await.contains(":80")).await;
    until("a count of the layer's bytes", 30, async || {
        let told = metrics(&node).await;
        let found = told[0].container_metrics[0].metrics.iter().find(|m| m.name == "container_fs_usage_bytes");
        found.and_then(|m| m.value).is_some_and(|v| v.value >= 4 * MIB)
    })
    .await;

    let all = metrics(&node).await;
    let [told] = &all[..] else { panic!("one pod: {all:?}") };
    assert_eq!(told.pod_sandbox_id, pod.id);
    let [container] = &told.container_metrics[..] else { panic!("one container: {told:?}") };
    assert_eq!(container.container_id, c.id);
    let seen = || told.metrics.iter().chain(&container.metrics);
    for metric in seen() {
        let descriptor = described.get(&metric.name).unwrap_or_else(|| panic!("{} is not described", metric.name));
        assert_eq!(metric.label_values.len(), descriptor.label_keys.len(), "{metric:?}");
        assert!(metric.timestamp > 0 && metric.value.is_some(), "{metric:?}");
    }
    let names: BTreeSet<_> = seen().map(|m| m.name.clone()).collect();
    let missing: Vec<_> = pinned.difference(&names).map(String::as_str).collect();
    // No device may be accounted to, and huge pages are counted only where a container is limited or the host is v2.
    let may_be =
        |name: &str| ["_blkio_", "_fs_reads_", "_fs_writes_", "_hugetlb_"].iter().any(|part| name.contains(part));
    let must_be: Vec<_> = missing.iter().filter(|name| !may_be(name)).collect();
    assert!(must_be.is_empty(), "without a value: {must_be:?}");

    let labels: BTreeMap<_, _> = {
        let metric = container.metrics.iter().find(|m| m.name == "container_memory_rss").expect("rss");
        described["container_memory_rss"].label_keys.iter().cloned().zip(metric.label_values.clone()).collect()
    };
    for (key, value) in
        [("container", "c"), ("name", &c.id), ("image", IMAGE), ("pod", "measured"), ("namespace", "test")]
    {
        assert_eq!(labels[key], value, "{labels:?}");
    }
    assert!(labels["id"].ends_with(&c.id) && labels["id"].starts_with('/'), "{labels:?}");

    let of = |name: &str| value(&container.metrics, name, "");
    assert_eq!((of("container_spec_cpu_period"), of("container_spec_cpu_quota")), (100_000, 20_000));
    assert_eq!(of("container_spec_cpu_shares"), 1024);
    assert_eq!(of("container_spec_memory_limit_bytes"), 64 * MIB);
    assert_eq!(of("container_spec_memory_swap_limit_bytes"), 64 * MIB);
    assert_eq!(of("container_processes"), 2, "httpd, sleep");
    assert!(of("container_threads") >= 2 && of("container_sockets") >= 1);
    assert!(of("container_file_descriptors") >= 6, "two processes with three each");
    let limits = std::fs::read_to_string(c.proc("limits").await).expect("read limits");
    let line = limits.lines().find_map(|l| l.strip_prefix("Max open files")).expect("a limit of open files");
    let soft: u64 = line.split_whitespace().next().expect("a soft limit").parse().expect("a number");
    assert_eq!(value(&container.metrics, "container_ulimits_soft", "max_open_files"), soft);
    assert!(of("container_memory_usage_bytes") >= of("container_memory_working_set_bytes"));
    assert!(of("container_fs_inodes_total") >= of("container_fs_inodes_free"));
    let periods = c.limit("cpu", "cpu.stat", "cpu.stat").await;
    let periods = periods.lines().find_map(|l| l.strip_prefix("nr_periods ")).expect("nr_periods");
    assert!(of("container_cpu_cfs_periods_total") <= periods.parse::<u64>().expect("a number"), "{periods}");
    if !cgroup_v2() {
        let most = c.limit("memory", "memory.max_usage_in_bytes", "").await;
        assert!(of("container_memory_max_usage_bytes") <= most.parse().expect("a number"));
    }
    let since = c.status().await.started_at / 1_000_000_000;
    assert_eq!(of("container_start_time_seconds"), u64::try_from(since).expect("after the epoch"));
    assert!(value(&told.metrics, "container_network_transmit_packets_total", "eth0") < 1000);

    let text = node.crictl(&["metricdescs"]);
    assert!(pinned.iter().all(|name| text.contains(name.as_str())), "{text}");
    let text = node.crictl(&["metricsp"]);
    assert!(text.contains("container_spec_memory_swap_limit_bytes") && text.contains(&c.id), "{text}");
    pod.end().await;
    assert!(metrics(&node).await.is_empty());
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_pod_with_a_cgroup_of_its_own_has_metrics_of_its_own() {
    let node = Node::start().await;
    let mut config = pod("own");
    let uid = config.metadata.as_ref().expect("metadata").uid.clone();
    let parent = format!("/{}/pod{uid}", node.name());
    config.linux.get_or_insert_default().cgroup_parent = parent.clone();
    let pod = node.run_pod(config).await;
    pod.run(script("a", "exec sleep 1000")).await;
    pod.run(script("b", "exec sleep 1000")).await;
    let told = metrics(&node).await.pop().expect("one pod");
    assert_eq!(value(&told.metrics, "container_processes", &parent), 2);
    assert_eq!(told.container_metrics.len(), 2);
    let of = |metrics: &[Metric]| value(metrics, "container_memory_usage_bytes", "");
    assert!(told.container_metrics.iter().all(|c| of(&c.metrics) <= of(&told.metrics)));
    pod.end().await;
    node.assert_nothing_left();
}
