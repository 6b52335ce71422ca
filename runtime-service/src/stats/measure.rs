//! Measures containers and pods as they were last published, off the async workers: no pod's task is asked.

use std::collections::HashMap;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use berth_api::cri;
use berth_image_service::Layer;
use tokio::task::JoinError;

use super::block::Filesystem;
use super::cgroup::{Cpu, Memory, Usage};
use super::detail::{Detail, open_files_limit};
use super::network::Network;
use super::sampler::Sampler;
use crate::pod::{ContainerView, Namespaces, PodState, PodView, Shared};
use crate::spec;

/// How long a request waits for the writable layers of containers that were never counted. Later ones know them.
const LAYERS_WAIT: Duration = Duration::from_millis(100);

/// Threads that measure one list at once, at most: a list shall not take the node's processors for itself.
const LANES_MAX: usize = 4;

/// Containers that a thread of their own is worth it for. Source: one takes about 50 µs, as much as waking a thread.
const LANE_MIN: usize = 16;

/// What measuring needs; clones share.
#[derive(Clone)]
pub(crate) struct Stats {
    shared: Arc<Shared>,
    pub(super) sampler: Sampler,
    /// Threads that measure one list at once.
    processors: usize,
}

/// How much is to be measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    Use,
    /// What the metrics tell beside.
    Everything,
}

/// A container, measured.
pub(crate) struct Container {
    pub(crate) view: Arc<ContainerView>,
    /// `None` when it has no cgroup, and so does not run.
    pub(crate) usage: Option<Usage>,
    /// In billionths of a processor.
    pub(crate) rate: Option<u64>,
    pub(crate) layer: Option<Layer>,
    /// Only for the metrics.
    pub(crate) detail: Option<Detail>,
    /// How many descriptors its first process may open; only for the metrics.
    pub(crate) open_files_limit: Option<u64>,
}

/// A pod, measured.
pub(crate) struct Pod {
    pub(crate) view: Arc<PodView>,
    /// Of the pod's cgroup; of one that shares its cgroup with others, the sum of its containers.
    pub(crate) usage: Option<Usage>,
    /// In billionths of a processor.
    pub(crate) rate: Option<u64>,
    /// When network and processes were looked at.
    pub(crate) at: SystemTime,
    /// `None` with the host's network.
    pub(crate) network: Option<Network>,
    /// `None` when the kernel does not tell.
    pub(crate) processes: Option<usize>,
    /// Those that run.
    pub(crate) containers: Vec<Container>,
    /// Of the pod's own cgroup and its path; only for the metrics.
    pub(crate) own: Option<(String, Detail)>,
}

impl Stats {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get).min(LANES_MAX);
        Self { shared, sampler: Sampler::default(), processors }
    }

    /// Where containers' own files lie.
    pub(crate) fn layers_directory(&self) -> String {
        self.shared.images.container_filesystem().display().to_string()
    }

    /// Containers, in any state.
    ///
    /// # Errors
    /// Reading panicked.
    pub(crate) async fn containers(&self, views: Vec<Arc<ContainerView>>) -> Result<Vec<Container>, JoinError> {
        let layers = Arc::new(self.layers(views.iter()).await);
        let mut lanes = Vec::new();
        for views in self.lanes(views) {
            let (this, layers) = (self.clone(), layers.clone());
            let measure = move || views.into_iter().map(|view| this.container(view, &layers, Depth::Use)).collect();
            lanes.push(tokio::task::spawn_blocking(measure));
        }
        let measured: Vec<Vec<_>> = futures::future::try_join_all(lanes).await?;
        Ok(measured.into_iter().flatten().collect())
    }

    /// What one thread measures after the other, in the given order.
    fn lanes(&self, mut views: Vec<Arc<ContainerView>>) -> Vec<Vec<Arc<ContainerView>>> {
        let each = views.len().div_ceil(self.processors).max(LANE_MIN);
        let mut lanes = Vec::new();
        while views.len() > each {
            let rest = views.split_off(each);
            lanes.push(std::mem::replace(&mut views, rest));
        }
        lanes.push(views);
        lanes
    }

    /// Pods with their running containers. Of one that is not ready nothing is measured.
    ///
    /// # Errors
    /// Reading panicked.
    pub(crate) async fn pods(&self, views: Vec<Arc<PodView>>) -> Result<Vec<Pod>, JoinError> {
        self.pods_at(views, Depth::Use).await
    }

    /// The same with what the metrics tell beside, and the file system that containers' own files are on.
    ///
    /// # Errors
    /// Reading panicked.
    pub(crate) async fn everything(
        &self,
        views: Vec<Arc<PodView>>,
    ) -> Result<(Vec<Pod>, Option<Filesystem>), JoinError> {
        let directory = self.shared.images.container_filesystem().to_owned();
        let filesystem = tokio::task::spawn_blocking(move || match Filesystem::of(&directory) {
            Ok(filesystem) => Some(filesystem),
            Err(error) => {
                tracing::warn!(path = %directory.display(), %error, "look at the file system of containers' files");
                None
            }
        });
        Ok((self.pods_at(views, Depth::Everything).await?, filesystem.await?))
    }

    async fn pods_at(&self, views: Vec<Arc<PodView>>, depth: Depth) -> Result<Vec<Pod>, JoinError> {
        let layers = self.layers(views.iter().flat_map(|view| running(view))).await;
        let this = self.clone();
        let measure = move || {
            let networks = networks(&views);
            views.into_iter().zip(networks).map(|(view, network)| this.pod(view, network, &layers, depth)).collect()
        };
        tokio::task::spawn_blocking(measure).await
    }

    async fn layers(&self, views: impl Iterator<Item = &Arc<ContainerView>>) -> HashMap<String, Layer> {
        let ids: Vec<_> = views.map(|c| c.record.id.to_string()).collect();
        self.shared.images.layers(ids, LAYERS_WAIT).await
    }

    fn container(&self, view: Arc<ContainerView>, layers: &HashMap<String, Layer>, depth: Depth) -> Container {
        let cgroups = &self.shared.host.cgroups;
        let usage = view.is_running().then(|| Usage::read(cgroups, &view.record.cgroup_path)).flatten();
        let id = view.record.id.as_str();
        let rate = usage.as_ref().and_then(|u| self.sampler.rate(id, u.cpu?.used_ns));
        let layer = layers.get(id).copied();
        let detailed = usage.is_some() && depth == Depth::Everything;
        let detail = detailed.then(|| Detail::read(cgroups, &view.record.cgroup_path));
        let open_files_limit = view.pid().filter(|_| detailed).and_then(open_files_limit);
        Container { view, usage, rate, layer, detail, open_files_limit }
    }

    fn pod(&self, view: Arc<PodView>, network: Option<Network>, layers: &HashMap<String, Layer>, depth: Depth) -> Pod {
        let containers: Vec<_> = running(&view).map(|c| self.container(c.clone(), layers, depth)).collect();
        let cgroups = &self.shared.host.cgroups;
        let own = own_cgroup(view.config()).filter(|_| view.state == PodState::Ready);
        // Part of the pod, and of its own cgroup; no container that anybody asks for.
        let sandbox = view.sandbox_container.iter().filter(|container| own.is_none() && container.is_running());
        let sandbox: Vec<_> = sandbox.map(|c| self.container(c.clone(), layers, Depth::Use)).collect();
        let all = || containers.iter().chain(&sandbox);
        let (usage, rate) = match own.as_ref().and_then(|path| Usage::read(cgroups, path)) {
            Some(usage) => {
                let rate = usage.cpu.and_then(|cpu| self.sampler.rate(view.id.as_str(), cpu.used_ns));
                (Some(usage), rate)
            }
            None => (sum(all()), all().filter_map(|c| c.rate).reduce(u64::saturating_add)),
        };
        let count = |path: &str| match cgroups.processes(path) {
            Ok(pids) => Some(pids.len()),
            Err(error) => {
                tracing::warn!(cgroup = path, %error, "count processes");
                None
            }
        };
        let processes = match &own {
            Some(path) => count(path),
            None => all().map(|c| count(&c.view.record.cgroup_path)).sum(),
        };
        let own = own.filter(|_| depth == Depth::Everything);
        let own = own.map(|path| (path.clone(), Detail::read(cgroups, &path)));
        Pod { view, usage, rate, at: SystemTime::now(), network, processes, containers, own }
    }
}

fn running(view: &PodView) -> impl Iterator<Item = &Arc<ContainerView>> {
    view.containers.values().filter(|container| container.is_running())
}

/// The cgroup that is the pod's alone: a kubelet gives each pod one that is named after the pod's uid. Others hand the
/// same parent to many pods.
pub(super) fn own_cgroup(config: &cri::PodSandboxConfig) -> Option<String> {
    let uid = config.metadata.as_ref().map(|m| m.uid.as_str()).filter(|uid| !uid.is_empty())?;
    let parent = config.linux.as_ref().map(|l| l.cgroup_parent.as_str()).filter(|parent| !parent.is_empty())?;
    // The root is only asked for when there is no parent, and this driver knows the other's parents too.
    let path = spec::Driver::Cgroupfs.parent(parent, "").ok()?;
    let name = path.rsplit('/').next()?;
    let stem = name.strip_suffix(".slice").unwrap_or(name);
    // systemd's dash is a level, so the kubelet writes the uid with underscores.
    let own = [format!("pod{uid}"), format!("pod{}", uid.replace('-', "_"))].iter().any(|end| stem.ends_with(end));
    own.then_some(path)
}

/// For each pod the counters of its own network namespace.
fn networks(views: &[Arc<PodView>]) -> Vec<Option<Network>> {
    let own = |view: &PodView| view.state == PodState::Ready && Namespaces::of(view.config()).own_net;
    let pins: Vec<PathBuf> = views.iter().filter(|v| own(v)).map(|v| v.namespaces.join("net")).collect();
    let mut read = match Network::read(&pins) {
        Ok(read) => read.into_iter(),
        Err(error) => {
            tracing::warn!(%error, "read pods' network counters");
            Vec::new().into_iter()
        }
    };
    views.iter().map(|view| if own(view) { read.next().flatten() } else { None }).collect()
}

/// What containers use together. Pressure does not add up.
fn sum<'a>(containers: impl Iterator<Item = &'a Container> + Clone) -> Option<Usage> {
    let usages = || containers.clone().filter_map(|c| c.usage.as_ref());
    let both = |a: Option<u64>, b: Option<u64>| Some(a?.saturating_add(b?));
    let cpu = usages().filter_map(|u| u.cpu).reduce(|a, b| Cpu { used_ns: a.used_ns.saturating_add(b.used_ns) });
    let memory = usages().filter_map(|u| u.memory).reduce(|a, b| Memory {
        usage: a.usage.saturating_add(b.usage),
        limit: both(a.limit, b.limit),
        inactive_file: a.inactive_file.saturating_add(b.inactive_file),
        rss: a.rss.saturating_add(b.rss),
        page_faults: a.page_faults.saturating_add(b.page_faults),
        major_page_faults: a.major_page_faults.saturating_add(b.major_page_faults),
    });
    let at = usages().map(|u| u.at).max()?;
    Some(Usage { at, cpu, memory, swap: None, cpu_pressure: None, memory_pressure: None, io_pressure: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_that_bears_the_pods_uid_is_the_pods_own() {
        let uid = "1c5e0f2a-aaaa-bbbb-cccc-0123456789ab";
        let own = |parent: &str| {
            let config = cri::PodSandboxConfig {
                metadata: Some(cri::PodSandboxMetadata { uid: uid.into(), ..Default::default() }),
                linux: Some(cri::LinuxPodSandboxConfig { cgroup_parent: parent.into(), ..Default::default() }),
                ..Default::default()
            };
            own_cgroup(&config)
        };
        let path = format!("/kubepods/burstable/pod{uid}");
        assert_eq!(own(&path).as_deref(), Some(path.as_str()));
        let slice = format!("kubepods-burstable-pod{}.slice", uid.replace('-', "_"));
        let path = format!("/kubepods.slice/kubepods-burstable.slice/{slice}");
        assert_eq!(own(&slice).as_deref(), Some(path.as_str()));
        for shared in ["", "/", "/kubepods", "system.slice", &format!("/{uid}"), &format!("/pod{uid}x")] {
            assert_eq!(own(shared), None, "{shared}");
        }
    }
}
