//! What a pod publishes: everything that Status and List answer, without asking its task.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use berth_api::cri;
use berth_api::shim::Effective;
use serde_json::Value;

use super::Error;
use super::lifecycle::Phase;
use crate::ids::{ContainerId, PodId};
use crate::ledger::ContainerRecord;
use crate::task::Shim;

/// One pod at one moment.
#[derive(Clone)]
pub(crate) struct PodView {
    pub(crate) id: PodId,
    pub(crate) request: Arc<cri::RunPodSandboxRequest>,
    pub(crate) created_at_ns: i64,
    pub(crate) state: PodState,
    /// Why RunPodSandbox failed, for everybody who waits for it.
    pub(crate) failed: Option<Arc<Error>>,
    /// In the order of the plugins' answer.
    pub(crate) ips: Vec<String>,
    /// The last plugin's answer, for `crictl inspectp`.
    pub(crate) cni_result: Option<Arc<Value>>,
    /// Where its namespaces are pinned.
    pub(crate) namespaces: PathBuf,
    /// Pid 1 of the shared pid namespace.
    pub(crate) keeper: Option<i32>,
    /// Overhead and resources, as they were said last.
    pub(crate) limits: Arc<PodLimits>,
    pub(crate) containers: BTreeMap<ContainerId, Arc<ContainerView>>,
    /// berth's own, of a handler that wants one: nobody's to ask for.
    pub(crate) sandbox_container: Option<Arc<ContainerView>>,
}

/// What the pod as a whole may use, by the word of whoever manages its cgroup.
#[derive(Clone, Debug, Default)]
pub(crate) struct PodLimits {
    pub(crate) overhead: Option<cri::LinuxContainerResources>,
    pub(crate) resources: Option<cri::LinuxContainerResources>,
}

/// CRI knows ready and not ready; a pod that starts or has failed to is not ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PodState {
    Starting,
    Ready,
    NotReady,
}

/// One container at one moment.
#[derive(Clone)]
pub(crate) struct ContainerView {
    pub(crate) record: Arc<ContainerRecord>,
    pub(crate) request: Arc<cri::CreateContainerRequest>,
    pub(crate) phase: Phase,
    /// Why nothing more is known than this, for one of a pod that is kept.
    pub(crate) kept: Option<Arc<str>>,
    /// There while the container has a shim.
    pub(crate) shim: Option<Shim>,
    /// The OCI process, from which an exec is made.
    pub(crate) process: Arc<Value>,
    pub(crate) effective: Arc<Effective>,
    /// In force: those of the request, or of the last update.
    pub(crate) resources: Arc<cri::LinuxContainerResources>,
}

impl PodView {
    pub(crate) fn config(&self) -> &cri::PodSandboxConfig {
        static EMPTY: std::sync::LazyLock<cri::PodSandboxConfig> = std::sync::LazyLock::new(Default::default);
        self.request.config.as_ref().unwrap_or(&EMPTY)
    }
}

impl ContainerView {
    pub(crate) fn config(&self) -> &cri::ContainerConfig {
        static EMPTY: std::sync::LazyLock<cri::ContainerConfig> = std::sync::LazyLock::new(Default::default);
        self.request.config.as_ref().unwrap_or(&EMPTY)
    }

    /// Its init was let go and has not ended.
    pub(crate) fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running { .. } | Phase::Stopping { .. })
    }

    /// The init's, while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        match self.phase {
            Phase::Running { pid, .. } | Phase::Stopping { pid, .. } => Some(pid),
            _ => None,
        }
    }

    pub(crate) fn state(&self) -> cri::ContainerState {
        match self.phase {
            Phase::Creating | Phase::Created => cri::ContainerState::ContainerCreated,
            Phase::Running { .. } | Phase::Stopping { .. } => cri::ContainerState::ContainerRunning,
            Phase::Exited(_) | Phase::Removing => cri::ContainerState::ContainerExited,
            Phase::Lost => cri::ContainerState::ContainerUnknown,
        }
    }
}
