//! What containers use, on the wire: choose, measure, encode.

use std::sync::Arc;

use berth_api::cri::*;
use tonic::Status;

use super::batches::{Streamed, of_measured};
use super::container::nanos;
use super::sandbox::matches_labels;
use crate::pod::ContainerView;
use crate::pods::Pods;
use crate::stats::{self, Cpu, Memory, Pressure, Stall, Stats, Swap, Usage};

/// Containers that are measured before the first of them is sent.
const AT_ONCE: usize = 128;

/// Of one container, whatever its state: one that does not run has no use of processors and memory to tell.
pub(super) async fn container(
    pods: &Pods,
    stats: &Stats,
    request: ContainerStatsRequest,
) -> Result<ContainerStatsResponse, Status> {
    let (_, _, view) = pods.find_container(&request.container_id)?;
    let measured = stats.containers(vec![view]).await.map_err(panicked)?;
    let filesystem = stats.layers_directory();
    Ok(ContainerStatsResponse { stats: measured.iter().map(|c| encode(c, &filesystem)).next() })
}

pub(super) async fn list_containers(
    pods: &Pods,
    stats: &Stats,
    request: ListContainerStatsRequest,
) -> Result<ListContainerStatsResponse, Status> {
    let chosen = chosen(pods, &request.filter.unwrap_or_default());
    Ok(ListContainerStatsResponse { stats: measure(stats, chosen).await? })
}

pub(super) fn stream_containers(
    pods: &Pods,
    stats: &Stats,
    request: StreamContainerStatsRequest,
) -> Streamed<StreamContainerStatsResponse> {
    let chosen = chosen(pods, &request.filter.unwrap_or_default());
    let stats = stats.clone();
    let one = move |chosen| {
        let stats = stats.clone();
        async move { measure(&stats, chosen).await }
    };
    of_measured(chosen, AT_ONCE, one, |container_stats| StreamContainerStatsResponse { container_stats })
}

/// The running containers that match every part of the filter.
fn chosen(pods: &Pods, filter: &ContainerStatsFilter) -> Vec<Arc<ContainerView>> {
    let wanted = |c: &&Arc<ContainerView>| {
        c.is_running()
            && c.record.id.as_str().starts_with(&filter.id)
            && matches_labels(&filter.label_selector, &c.config().labels)
    };
    let pods = pods.all().into_iter().filter(|pod| pod.id.as_str().starts_with(&filter.pod_sandbox_id));
    pods.flat_map(|pod| pod.view().containers.values().filter(wanted).cloned().collect::<Vec<_>>()).collect()
}

/// Without those that ended since they were chosen.
async fn measure(stats: &Stats, chosen: Vec<Arc<ContainerView>>) -> Result<Vec<ContainerStats>, Status> {
    let measured = stats.containers(chosen).await.map_err(panicked)?;
    let filesystem = stats.layers_directory();
    Ok(measured.iter().filter(|c| c.usage.is_some()).map(|c| encode(c, &filesystem)).collect())
}

pub(super) fn panicked(error: tokio::task::JoinError) -> Status {
    Status::internal(format!("read what containers use: {error}"))
}

/// `filesystem` is where containers' own files lie.
pub(super) fn encode(container: &stats::Container, filesystem: &str) -> ContainerStats {
    let config = container.view.config();
    let usage = container.usage.as_ref();
    ContainerStats {
        attributes: Some(ContainerAttributes {
            id: container.view.record.id.to_string(),
            metadata: config.metadata.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
        }),
        cpu: usage.and_then(|u| cpu(u, container.rate)),
        memory: usage.and_then(memory),
        writable_layer: container.layer.map(|layer| FilesystemUsage {
            timestamp: nanos(layer.at),
            fs_id: Some(FilesystemIdentifier { mountpoint: filesystem.to_owned() }),
            used_bytes: value(layer.bytes),
            inodes_used: value(layer.inodes),
        }),
        swap: usage.and_then(|u| Some(swap(u, u.swap?))),
        io: usage.and_then(io),
    }
}

pub(super) fn io(usage: &Usage) -> Option<IoUsage> {
    Some(IoUsage { timestamp: nanos(usage.at), psi: Some(psi(usage.io_pressure?)) })
}

pub(super) fn cpu(usage: &Usage, rate: Option<u64>) -> Option<CpuUsage> {
    let Cpu { used_ns, .. } = usage.cpu?;
    Some(CpuUsage {
        timestamp: nanos(usage.at),
        usage_core_nano_seconds: value(used_ns),
        usage_nano_cores: rate.and_then(value),
        psi: usage.cpu_pressure.map(psi),
    })
}

pub(super) fn memory(usage: &Usage) -> Option<MemoryUsage> {
    let memory: Memory = usage.memory?;
    Some(MemoryUsage {
        timestamp: nanos(usage.at),
        working_set_bytes: value(memory.working_set()),
        available_bytes: memory.available().and_then(value),
        usage_bytes: value(memory.usage),
        rss_bytes: value(memory.rss),
        page_faults: value(memory.page_faults),
        major_page_faults: value(memory.major_page_faults),
        psi: usage.memory_pressure.map(psi),
    })
}

fn swap(usage: &Usage, swap: Swap) -> SwapUsage {
    SwapUsage {
        timestamp: nanos(usage.at),
        swap_available_bytes: swap.limit.and_then(|limit| value(limit.saturating_sub(swap.usage))),
        swap_usage_bytes: value(swap.usage),
    }
}

fn psi(pressure: Pressure) -> PsiStats {
    let data = |stall: Stall| PsiData {
        // The kernel counts microseconds, CRI nanoseconds.
        total: stall.total_us.saturating_mul(1000),
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
    };
    PsiStats { full: Some(data(pressure.full)), some: Some(data(pressure.some)) }
}

/// CRI's way to tell zero from absent.
pub(super) fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}
