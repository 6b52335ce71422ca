//! What containers use, on the wire: choose, read, encode.

use std::sync::Arc;
use std::time::Duration;

use berth_api::cri::*;
use tonic::Status;

use super::container::nanos;
use super::sandbox::matches_labels;
use crate::pod::ContainerView;
use crate::pods::Pods;
use crate::stats::{Cpu, Memory, Pressure, Sampler, Stall, Swap, Usage};

/// How long a request waits for the writable layers of containers that were never counted. Later ones know them.
const LAYERS_WAIT: Duration = Duration::from_millis(100);

/// Of one container, whatever its state: one that does not run has no use of processors and memory to tell.
pub(super) async fn container(
    pods: &Pods,
    sampler: &Sampler,
    request: ContainerStatsRequest,
) -> Result<ContainerStatsResponse, Status> {
    let (_, _, view) = pods.find_container(&request.container_id)?;
    let (_, stats) = read(pods, sampler, vec![view]).await?.pop().unwrap_or_default();
    Ok(ContainerStatsResponse { stats: Some(stats) })
}

pub(super) async fn list_containers(
    pods: &Pods,
    sampler: &Sampler,
    request: ListContainerStatsRequest,
) -> Result<ListContainerStatsResponse, Status> {
    let filter = request.filter.unwrap_or_default();
    let stats = read(pods, sampler, chosen(pods, &filter)).await?;
    // One that ended since it was chosen does not run.
    Ok(ListContainerStatsResponse { stats: stats.into_iter().filter(|(runs, _)| *runs).map(|(_, s)| s).collect() })
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

/// Each with whether it has a cgroup, and so runs.
async fn read(
    pods: &Pods,
    sampler: &Sampler,
    views: Vec<Arc<ContainerView>>,
) -> Result<Vec<(bool, ContainerStats)>, Status> {
    let shared = pods.shared().clone();
    let ids = views.iter().map(|c| c.record.id.to_string());
    let layers = shared.images.layers(ids, LAYERS_WAIT).await;
    let sampler = sampler.clone();
    let work = move || {
        let one = |view: Arc<ContainerView>| {
            let cgroups = &shared.host.cgroups;
            let usage = view.is_running().then(|| Usage::read(cgroups, &view.record.cgroup_path)).flatten();
            let cpu = usage.as_ref().and_then(|usage| usage.cpu);
            let rate = cpu.and_then(|cpu| sampler.rate(view.record.id.as_str(), cpu.used_ns));
            let filesystem = shared.images.container_filesystem().display().to_string();
            let layer = layers.get(view.record.id.as_str()).map(|layer| FilesystemUsage {
                timestamp: nanos(layer.at),
                fs_id: Some(FilesystemIdentifier { mountpoint: filesystem }),
                used_bytes: value(layer.bytes),
                inodes_used: value(layer.inodes),
            });
            (usage.is_some(), encode(&view, usage.as_ref(), rate, layer))
        };
        views.into_iter().map(one).collect()
    };
    let read = tokio::task::spawn_blocking(work).await;
    read.map_err(|error| Status::internal(format!("read what containers use: {error}")))
}

fn encode(
    view: &ContainerView,
    usage: Option<&Usage>,
    rate: Option<u64>,
    layer: Option<FilesystemUsage>,
) -> ContainerStats {
    let config = view.config();
    ContainerStats {
        attributes: Some(ContainerAttributes {
            id: view.record.id.to_string(),
            metadata: config.metadata.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
        }),
        cpu: usage.and_then(|u| Some(cpu(u, u.cpu?, rate))),
        memory: usage.and_then(|u| Some(memory(u, u.memory?))),
        writable_layer: layer,
        swap: usage.and_then(|u| Some(swap(u, u.swap?))),
        io: usage.and_then(|u| Some(IoUsage { timestamp: nanos(u.at), psi: Some(psi(u.io_pressure?)) })),
    }
}

fn cpu(usage: &Usage, cpu: Cpu, rate: Option<u64>) -> CpuUsage {
    CpuUsage {
        timestamp: nanos(usage.at),
        usage_core_nano_seconds: value(cpu.used_ns),
        usage_nano_cores: rate.and_then(value),
        psi: usage.cpu_pressure.map(psi),
    }
}

fn memory(usage: &Usage, memory: Memory) -> MemoryUsage {
    MemoryUsage {
        timestamp: nanos(usage.at),
        working_set_bytes: value(memory.working_set()),
        available_bytes: memory.available().and_then(value),
        usage_bytes: value(memory.usage),
        rss_bytes: value(memory.rss),
        page_faults: value(memory.page_faults),
        major_page_faults: value(memory.major_page_faults),
        psi: usage.memory_pressure.map(psi),
    }
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
fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}
