//! What pods use, on the wire: choose, measure, encode.

use std::sync::Arc;

use berth_api::cri::*;
use tonic::Status;

use super::batches::{Streamed, of_measured};
use super::container::nanos;
use super::sandbox::matches_labels;
use super::stats::{cpu, encode as encode_container, io, memory, panicked, value};
use crate::pod::{PodState, PodView};
use crate::pods::Pods;
use crate::stats::{Interface, Network, Pod, Stats};

/// Pods that are measured before the first of them is sent.
pub(super) const AT_ONCE: usize = 32;

/// Of one pod, whatever its state: of one that is not ready nothing is measured.
pub(super) async fn pod(
    pods: &Pods,
    stats: &Stats,
    request: PodSandboxStatsRequest,
) -> Result<PodSandboxStatsResponse, Status> {
    let view = pods.find(&request.pod_sandbox_id)?.view();
    Ok(PodSandboxStatsResponse { stats: measure(stats, vec![view]).await?.pop() })
}

pub(super) async fn list(
    pods: &Pods,
    stats: &Stats,
    request: ListPodSandboxStatsRequest,
) -> Result<ListPodSandboxStatsResponse, Status> {
    let chosen = chosen(pods, &request.filter.unwrap_or_default());
    Ok(ListPodSandboxStatsResponse { stats: measure(stats, chosen).await? })
}

pub(super) fn stream(
    pods: &Pods,
    stats: &Stats,
    request: StreamPodSandboxStatsRequest,
) -> Streamed<StreamPodSandboxStatsResponse> {
    let chosen = chosen(pods, &request.filter.unwrap_or_default());
    let stats = stats.clone();
    let some = move |chosen| {
        let stats = stats.clone();
        async move { measure(&stats, chosen).await }
    };
    of_measured(chosen, AT_ONCE, some, |pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats })
}

/// The ready pods that match every part of the filter.
pub(super) fn chosen(pods: &Pods, filter: &PodSandboxStatsFilter) -> Vec<Arc<PodView>> {
    let wanted = |view: &Arc<PodView>| {
        view.state == PodState::Ready
            && view.id.as_str().starts_with(&filter.id)
            && matches_labels(&filter.label_selector, &view.config().labels)
    };
    pods.all().iter().map(|pod| pod.view()).filter(wanted).collect()
}

async fn measure(stats: &Stats, chosen: Vec<Arc<PodView>>) -> Result<Vec<PodSandboxStats>, Status> {
    let measured = stats.pods(chosen).await.map_err(panicked)?;
    let filesystem = stats.layers_directory();
    Ok(measured.iter().map(|pod| encode(pod, &filesystem)).collect())
}

fn encode(pod: &Pod, filesystem: &str) -> PodSandboxStats {
    let config = pod.view.config();
    let usage = pod.usage.as_ref();
    let running = pod.containers.iter().filter(|c| c.usage.is_some());
    let ready = pod.view.state == PodState::Ready;
    PodSandboxStats {
        attributes: Some(PodSandboxAttributes {
            id: pod.view.id.to_string(),
            metadata: config.metadata.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
        }),
        linux: Some(LinuxPodSandboxStats {
            cpu: usage.and_then(|u| cpu(u, pod.rate)),
            memory: usage.and_then(memory),
            network: pod.network.as_ref().map(|n| network(n, nanos(pod.at))),
            process: pod.processes.filter(|_| ready).map(|count| ProcessUsage {
                timestamp: nanos(pod.at),
                process_count: value(count.try_into().unwrap_or(u64::MAX)),
            }),
            containers: running.map(|c| encode_container(c, filesystem)).collect(),
            io: usage.and_then(io),
        }),
        windows: None,
    }
}

fn network(network: &Network, timestamp: i64) -> NetworkUsage {
    NetworkUsage {
        timestamp,
        default_interface: network.default.as_ref().map(interface),
        interfaces: network.others.iter().map(interface).collect(),
    }
}

fn interface(interface: &Interface) -> NetworkInterfaceUsage {
    NetworkInterfaceUsage {
        name: interface.name.clone(),
        rx_bytes: value(interface.received.bytes),
        rx_errors: value(interface.received.errors),
        tx_bytes: value(interface.sent.bytes),
        tx_errors: value(interface.sent.errors),
    }
}
