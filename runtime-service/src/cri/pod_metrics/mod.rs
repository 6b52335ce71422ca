//! Metrics of pods and containers on the wire: choose, measure, encode.

mod descriptors;

use std::sync::Arc;
use std::time::SystemTime;

use berth_api::cri::*;
use tonic::Status;

use super::batches::{Streamed, of_measured};
use super::container::nanos;
use super::pod_stats::AT_ONCE;
use super::stats::{panicked, value};
use crate::pod::{ContainerView, PodView, lifecycle::Phase};
use crate::pods::Pods;
use crate::stats::{self, Detail, Filesystem, MemoryDetail, Network, Stats, Usage, device_name};
use descriptors::*;

pub(super) fn list_descriptors() -> ListMetricDescriptorsResponse {
    ListMetricDescriptorsResponse { descriptors: ALL.iter().map(|descriptor| descriptor.encode()).collect() }
}

/// Of every ready pod.
pub(super) async fn list(pods: &Pods, stats: &Stats) -> Result<ListPodSandboxMetricsResponse, Status> {
    let chosen = super::pod_stats::chosen(pods, &PodSandboxStatsFilter::default());
    Ok(ListPodSandboxMetricsResponse { pod_metrics: measure(stats, chosen).await? })
}

pub(super) fn stream(pods: &Pods, stats: &Stats) -> Streamed<StreamPodSandboxMetricsResponse> {
    let chosen = super::pod_stats::chosen(pods, &PodSandboxStatsFilter::default());
    let stats = stats.clone();
    let some = move |chosen| {
        let stats = stats.clone();
        async move { measure(&stats, chosen).await }
    };
    of_measured(chosen, AT_ONCE, some, |pod_sandbox_metrics| StreamPodSandboxMetricsResponse { pod_sandbox_metrics })
}

async fn measure(stats: &Stats, chosen: Vec<Arc<PodView>>) -> Result<Vec<PodSandboxMetrics>, Status> {
    let (pods, filesystem) = stats.everything(chosen).await.map_err(panicked)?;
    Ok(pods.iter().map(|pod| of_pod(pod, filesystem.as_ref())).collect())
}

/// Metrics of one thing, which share their first labels and their time.
struct Metrics {
    labels: [String; 6],
    at: SystemTime,
    found: Vec<Metric>,
}

impl Metrics {
    /// `labels`: values of the descriptor's own.
    fn add(&mut self, descriptor: &Descriptor, labels: &[&str], number: impl Into<Option<u64>>) {
        let Some(number) = number.into() else { return };
        debug_assert_eq!(labels.len(), descriptor.labels.len(), "{}", descriptor.name);
        let own = labels.iter().map(|label| (*label).to_owned());
        self.found.push(Metric {
            name: descriptor.name.into(),
            timestamp: nanos(self.at),
            metric_type: descriptor.kind.into(),
            label_values: self.labels.iter().cloned().chain(own).collect(),
            value: value(number),
        });
    }
}

fn of_pod(pod: &stats::Pod, filesystem: Option<&Filesystem>) -> PodSandboxMetrics {
    let metadata = pod.view.config().metadata.clone().unwrap_or_default();
    let labels = |container: &str, id: &str, image: &str, name: &str| {
        [container, id, image, name, &metadata.namespace, &metadata.name].map(str::to_owned)
    };
    let path = pod.own.as_ref().map_or("", |(path, _)| path);
    let mut whole = Metrics { labels: labels("", path, "", ""), at: pod.at, found: Vec::new() };
    if let Some(network) = &pod.network {
        traffic(&mut whole, network);
    }
    // A pod without a cgroup of its own has no numbers but its containers'.
    if let (Some(usage), Some((_, detail))) = (&pod.usage, &pod.own) {
        cgroup(&mut whole, usage, detail);
    }
    let of_container = |container: &stats::Container| {
        let (usage, detail) = (container.usage.as_ref()?, container.detail.as_ref()?);
        let (config, record) = (container.view.config(), &container.view.record);
        let name = config.metadata.as_ref().map_or("", |m| &m.name);
        let image = config.image.as_ref().map_or("", |i| match i.user_specified_image.as_str() {
            "" => &i.image,
            asked => asked,
        });
        let labels = labels(name, &record.cgroup_path, image, record.id.as_str());
        let mut metrics = Metrics { labels, at: usage.at, found: Vec::new() };
        cgroup(&mut metrics, usage, detail);
        first_process(&mut metrics, container);
        writable_layer(&mut metrics, container, filesystem);
        spec(&mut metrics, &container.view, usage, detail);
        Some(ContainerMetrics { container_id: record.id.to_string(), metrics: metrics.found })
    };
    PodSandboxMetrics {
        pod_sandbox_id: pod.view.id.to_string(),
        container_metrics: pod.containers.iter().filter_map(of_container).collect(),
        metrics: whole.found,
    }
}

fn traffic(metrics: &mut Metrics, network: &Network) {
    for interface in network.interfaces() {
        let (name, rx, tx) = ([interface.name.as_str()], interface.received, interface.sent);
        metrics.add(&NET_RX_BYTES, &name, rx.bytes);
        metrics.add(&NET_RX_PACKETS, &name, rx.packets);
        metrics.add(&NET_RX_ERRORS, &name, rx.errors);
        metrics.add(&NET_RX_DROPPED, &name, rx.dropped);
        metrics.add(&NET_TX_BYTES, &name, tx.bytes);
        metrics.add(&NET_TX_PACKETS, &name, tx.packets);
        metrics.add(&NET_TX_ERRORS, &name, tx.errors);
        metrics.add(&NET_TX_DROPPED, &name, tx.dropped);
    }
}

/// What a cgroup tells, be it a container's or a pod's.
fn cgroup(metrics: &mut Metrics, usage: &Usage, detail: &Detail) {
    processors(metrics, usage, detail);
    memory(metrics, usage, detail.memory);
    pressure(metrics, usage);
    for ((major, minor), operations) in &detail.devices {
        let device = device_name((*major, *minor));
        let (major, minor) = (major.to_string(), minor.to_string());
        for (operation, transfer) in operations {
            metrics.add(&BLKIO_USAGE, &[&device, &major, &minor, operation], transfer.bytes);
        }
        let of = |operation| operations.get(operation).copied().unwrap_or_default();
        let (read, written) = (of("Read"), of("Write"));
        metrics.add(&FS_READ_BYTES, &[&device], read.bytes);
        metrics.add(&FS_READS, &[&device], read.count);
        metrics.add(&FS_WRITTEN_BYTES, &[&device], written.bytes);
        metrics.add(&FS_WRITES, &[&device], written.count);
    }
    for pages in &detail.huge_pages {
        metrics.add(&HUGETLB, &[&pages.size], pages.usage);
        metrics.add(&HUGETLB_MAX, &[&pages.size], pages.max_usage);
    }
    metrics.add(&PROCESSES, &[], detail.processes.map(|held| held.count));
    metrics.add(&DESCRIPTORS, &[], detail.processes.map(|held| held.descriptors));
    metrics.add(&SOCKETS, &[], detail.processes.map(|held| held.sockets));
    metrics.add(&THREADS, &[], detail.threads);
    metrics.add(&THREADS_MAX, &[], detail.limits.threads.unwrap_or(0));
    metrics.add(&LAST_SEEN, &[], seconds(usage.at));
}

fn processors(metrics: &mut Metrics, usage: &Usage, detail: &Detail) {
    const SECOND: u64 = 1_000_000_000; // in nanoseconds
    if let Some(cpu) = usage.cpu {
        metrics.add(&CPU_USAGE, &["total"], cpu.used_ns / SECOND);
    }
    if let Some(modes) = detail.cpu {
        metrics.add(&CPU_USER, &[], modes.user_ns / SECOND);
        metrics.add(&CPU_SYSTEM, &[], modes.system_ns / SECOND);
    }
    if let Some(throttling) = detail.throttling {
        metrics.add(&CPU_PERIODS, &[], throttling.periods);
        metrics.add(&CPU_THROTTLED_PERIODS, &[], throttling.throttled_periods);
        metrics.add(&CPU_THROTTLED_SECONDS, &[], throttling.throttled_ns / SECOND);
    }
}

fn memory(metrics: &mut Metrics, usage: &Usage, detail: Option<MemoryDetail>) {
    let Some(memory) = usage.memory else { return };
    metrics.add(&MEMORY_USAGE, &[], memory.usage);
    metrics.add(&MEMORY_WORKING_SET, &[], memory.working_set());
    metrics.add(&MEMORY_RSS, &[], memory.rss);
    metrics.add(&MEMORY_SWAP, &[], usage.swap.map_or(0, |swap| swap.usage));
    let Some(detail) = detail else { return };
    metrics.add(&MEMORY_CACHE, &[], detail.cache);
    metrics.add(&MEMORY_MAPPED, &[], detail.mapped_file);
    metrics.add(&MEMORY_KERNEL, &[], detail.kernel);
    metrics.add(&MEMORY_MAX, &[], detail.max_usage);
    metrics.add(&MEMORY_FAILCNT, &[], detail.limit_met);
    metrics.add(&OOM_EVENTS, &[], detail.oom_kills);
    metrics.add(&MEMORY_FAILURES, &["pgfault", "container"], detail.own_page_faults);
    metrics.add(&MEMORY_FAILURES, &["pgfault", "hierarchy"], memory.page_faults);
    metrics.add(&MEMORY_FAILURES, &["pgmajfault", "container"], detail.own_major_page_faults);
    metrics.add(&MEMORY_FAILURES, &["pgmajfault", "hierarchy"], memory.major_page_faults);
}

fn pressure(metrics: &mut Metrics, usage: &Usage) {
    const SECOND: u64 = 1_000_000; // in microseconds
    for (pressure, stalled, waiting) in [
        (usage.cpu_pressure, &CPU_STALLED, &CPU_WAITING),
        (usage.memory_pressure, &MEMORY_STALLED, &MEMORY_WAITING),
        (usage.io_pressure, &IO_STALLED, &IO_WAITING),
    ] {
        metrics.add(stalled, &[], pressure.map(|p| p.full.total_us / SECOND));
        metrics.add(waiting, &[], pressure.map(|p| p.some.total_us / SECOND));
    }
}

fn first_process(metrics: &mut Metrics, container: &stats::Container) {
    let (Phase::Running { since, .. } | Phase::Stopping { since, .. }) = container.view.phase else { return };
    metrics.add(&START_TIME, &[], seconds(since));
    metrics.add(&ULIMITS, &["max_open_files"], container.open_files_limit);
}

fn writable_layer(metrics: &mut Metrics, container: &stats::Container, filesystem: Option<&Filesystem>) {
    let Some(filesystem) = filesystem else { return };
    let device = [filesystem.device.as_str()];
    metrics.add(&FS_USAGE, &device, container.layer.map(|layer| layer.bytes));
    metrics.add(&FS_LIMIT, &device, filesystem.size);
    metrics.add(&FS_INODES, &device, filesystem.inodes);
    metrics.add(&FS_INODES_FREE, &device, filesystem.inodes_free);
}

fn spec(metrics: &mut Metrics, view: &ContainerView, usage: &Usage, detail: &Detail) {
    let limits = detail.limits;
    metrics.add(&SPEC_CPU_PERIOD, &[], limits.cpu_period);
    metrics.add(&SPEC_CPU_QUOTA, &[], limits.cpu_quota);
    // Version 2 keeps a weight, from which the shares that were asked for cannot be told exactly.
    let asked = u64::try_from(view.resources.cpu_shares).ok().filter(|shares| *shares != 0);
    metrics.add(&SPEC_CPU_SHARES, &[], limits.cpu_shares.or(asked));
    let memory = usage.memory.and_then(|m| m.limit);
    metrics.add(&SPEC_MEMORY, &[], memory.unwrap_or(0));
    metrics.add(&SPEC_RESERVATION, &[], limits.memory_reservation.unwrap_or(0));
    let both = memory.zip(usage.swap.and_then(|swap| swap.limit)).map(|(memory, swap)| memory + swap);
    metrics.add(&SPEC_SWAP, &[], both.unwrap_or(0));
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
