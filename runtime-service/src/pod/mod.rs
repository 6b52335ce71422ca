//! A pod: one task owns it, everybody else asks the task or reads what it last published.

pub(crate) mod lifecycle;

mod another;
mod container_steps;
mod devices;
mod ends;
mod events;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod image_volumes;
mod kept;
mod recover;
mod relabel;
mod sandbox_container;
mod sandbox_said;
mod sandbox_steps;
mod strays;
mod task;
mod teardown;
mod update;
mod view;
mod volumes;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use berth_api::cri;
use tokio::sync::{mpsc, oneshot, watch};

use crate::ids::{ContainerId, PodId};
use crate::inflight::Doing;
use crate::spec::Invalid;
use crate::{ledger, network, sandbox, task as shim_task};

pub(crate) use container_steps::now_ns;
pub(crate) use events::{Event, Events, Kind as EventKind};
pub(crate) use recover::recover;
pub(crate) use sandbox_steps::{Namespaces, check as check_sandbox, users};
pub(crate) use strays::sweep;
pub(crate) use task::Shared;
pub(crate) use view::{ContainerView, PodLimits, PodState, PodView};

/// Asks that may wait in a pod's queue; more wait at the sender.
const QUEUE: usize = 64;

/// Where a pod is asked and read; clones are cheap.
#[derive(Clone)]
pub(crate) struct Pod {
    pub(crate) id: PodId,
    /// What it is doing now.
    pub(crate) doing: Doing,
    asks: mpsc::Sender<Ask>,
    view: watch::Receiver<Arc<PodView>>,
    /// Its task has come to its end as it should, and nothing of the pod is left.
    gone: Arc<AtomicBool>,
}

pub(crate) type Answer<T> = Result<T, Arc<Error>>;
type Reply<T> = oneshot::Sender<Answer<T>>;

/// What can be asked of a pod. Each runs to its end whether or not somebody still waits for the answer.
pub(crate) enum Ask {
    Create { request: Arc<cri::CreateContainerRequest>, reply: Reply<ContainerId> },
    Start { container: ContainerId, reply: Reply<()> },
    Stop { container: ContainerId, grace: Duration, reply: Reply<()> },
    Remove { container: ContainerId, reply: Reply<()> },
    Update { container: ContainerId, resources: Box<cri::LinuxContainerResources>, reply: Reply<()> },
    UpdatePod { limits: Box<PodLimits>, reply: Reply<()> },
    StopPod { reply: Reply<()> },
    RemovePod { reply: Reply<()> },
}

impl Ask {
    /// The RPC that asks, and the container it is about, if that has a name already.
    fn told(&self) -> (&'static str, String) {
        let of = |container: &ContainerId| container.to_string();
        match self {
            Self::Create { .. } => ("CreateContainer", String::new()),
            Self::Start { container, .. } => ("StartContainer", of(container)),
            Self::Stop { container, .. } => ("StopContainer", of(container)),
            Self::Remove { container, .. } => ("RemoveContainer", of(container)),
            Self::Update { container, .. } => ("UpdateContainerResources", of(container)),
            Self::UpdatePod { .. } => ("UpdatePodSandboxResources", String::new()),
            Self::StopPod { .. } => ("StopPodSandbox", String::new()),
            Self::RemovePod { .. } => ("RemovePodSandbox", String::new()),
        }
    }

    /// Answers without doing anything.
    fn refuse(self, error: Arc<Error>) {
        let _ = match self {
            Self::Create { reply, .. } => reply.send(Err(error)).map_err(drop),
            Self::Start { reply, .. }
            | Self::Stop { reply, .. }
            | Self::Remove { reply, .. }
            | Self::Update { reply, .. }
            | Self::UpdatePod { reply, .. }
            | Self::StopPod { reply }
            | Self::RemovePod { reply } => reply.send(Err(error)).map_err(drop),
        };
    }
}

impl Pod {
    /// What the pod last published.
    pub(crate) fn view(&self) -> Arc<PodView> {
        self.view.borrow().clone()
    }

    /// Waits until RunPodSandbox is decided.
    pub(crate) async fn started(&self) -> Answer<()> {
        let mut view = self.view.clone();
        let decided = view.wait_for(|v| v.state != PodState::Starting).await.map(|v| v.clone());
        match decided {
            Ok(view) => match &view.failed {
                Some(error) => Err(error.clone()),
                None => Ok(()),
            },
            Err(_) => Err(self.over()),
        }
    }

    /// Resolves when it is not ready any more, or gone.
    pub(crate) fn stops(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut view = self.view.clone();
        async move {
            let _ = view.wait_for(|v| v.state != PodState::Ready).await;
        }
    }

    pub(crate) async fn create(&self, request: Arc<cri::CreateContainerRequest>) -> Answer<ContainerId> {
        self.ask(|reply| Ask::Create { request, reply }).await
    }

    pub(crate) async fn start(&self, container: ContainerId) -> Answer<()> {
        self.ask(|reply| Ask::Start { container, reply }).await
    }

    pub(crate) async fn stop(&self, container: ContainerId, grace: Duration) -> Answer<()> {
        self.ask(|reply| Ask::Stop { container, grace, reply }).await
    }

    pub(crate) async fn remove_container(&self, container: ContainerId) -> Answer<()> {
        self.ask(|reply| Ask::Remove { container, reply }).await
    }

    /// New limits for a container; what `resources` leaves out stays.
    pub(crate) async fn update(&self, container: ContainerId, resources: cri::LinuxContainerResources) -> Answer<()> {
        self.ask(|reply| Ask::Update { container, resources: Box::new(resources), reply }).await
    }

    /// What the pod as a whole may use now; `None` stays.
    pub(crate) async fn update_pod(&self, limits: PodLimits) -> Answer<()> {
        self.ask(|reply| Ask::UpdatePod { limits: Box::new(limits), reply }).await
    }

    pub(crate) async fn stop_pod(&self) -> Answer<()> {
        self.ask(|reply| Ask::StopPod { reply }).await
    }

    /// Returns `Ended` when the pod was removed by somebody else meanwhile: its task is gone.
    pub(crate) async fn remove_pod(&self) -> Answer<()> {
        self.ask(|reply| Ask::RemovePod { reply }).await
    }

    async fn ask<T>(&self, ask: impl FnOnce(Reply<T>) -> Ask) -> Answer<T> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(ask(reply)).await.map_err(|_| self.over())?;
        answer.await.map_err(|_| self.over())?
    }

    /// Why the task does not answer.
    fn over(&self) -> Arc<Error> {
        match self.gone.load(Ordering::Acquire) {
            true => Arc::new(Error::Ended(self.id.clone())),
            false => Arc::new(Error::Broken(self.id.clone())),
        }
    }
}

/// Why a pod did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error("pod {0} is gone")]
    Ended(PodId),
    #[error(
        "pod {0}: berthd failed on it by a mistake of its own, which its log tells; its containers are as they were: restart \
         berthd, which takes it over again"
    )]
    Broken(PodId),
    #[error("container {0} is not in this pod")]
    NoContainer(ContainerId),
    /// The kubelet knows it by the first word. Source: CRI, `Mount.recursive_read_only`.
    #[error("RROUnsupported: {field}: this kernel makes no mount read-only with those below it (Linux 5.12 does)")]
    NoRecursiveReadOnly { field: String },
    /// The kubelet knows them by the first word. Source: CRI, `Mount.image`.
    #[error("ImageVolumeMountFailed: {problem}")]
    ImageVolume { problem: String },
    #[error("ImageVolumeMountFailed: config.mounts[{index}].image: {image:?} is not here: pull it first")]
    NoVolumeImage { index: usize, image: String },
    #[error("systemd: {0}")]
    Systemd(String),
    #[error("load the AppArmor profile: {0}")]
    AppArmor(String),
    #[error("what this host can do")]
    Features(#[source] shim_task::Error),
    #[error("pod {pod} is not ready: {why}")]
    NotReady { pod: PodId, why: &'static str },
    #[error("pod {pod} is kept as it is: {why}")]
    Kept { pod: PodId, why: Arc<str> },
    #[error("container {container}: {source}")]
    Refused { container: ContainerId, source: lifecycle::Refused },
    #[error("container {name:?} of pod {pod} exists as {existing} {difference}")]
    Exists { name: String, pod: PodId, existing: ContainerId, difference: &'static str },
    #[error("image {0:?} is not here: pull it first")]
    NoImage(String),
    #[error("image {reference:?}")]
    Image { reference: String, source: berth_image_service::Error },
    #[error("{deed}")]
    Ledger { deed: &'static str, source: std::io::Error },
    #[error("pod sandbox")]
    Sandbox(#[from] sandbox::Error),
    #[error("network")]
    Network(#[from] network::Error),
    #[error("container {container}, {step}")]
    Shim { container: ContainerId, step: &'static str, source: shim_task::Error },
    #[error("start container {container}: {message}")]
    StartFailed { container: ContainerId, code: ttrpc::Code, message: String },
    #[error("container {0} did not end: SIGKILL was sent and its processes are still there (uninterruptible sleep?)")]
    WontDie(ContainerId),
    #[error("{deed} {path}")]
    Io { deed: &'static str, path: std::path::PathBuf, source: std::io::Error },
    #[error("a blocking step panicked")]
    Panicked,
    /// Teardown goes on past errors; this is all of them.
    #[error("{}", list(.0))]
    Teardown(Vec<Error>),
}

fn list(errors: &[Error]) -> String {
    errors.iter().map(|e| chain(e)).collect::<Vec<_>>().join("; ")
}

/// An error with its causes, as one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // A transparent wrapper repeats its cause.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

impl Error {
    fn ledger(deed: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Ledger { deed, source }
    }
}

/// Runs blocking file work off the async workers.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(crate::inflight::carried(work)).await.unwrap_or(Err(Error::Panicked))
}

/// The request of a record written by this or an earlier daemon.
fn decode<T: prost::Message + Default>(bytes: &[u8]) -> Result<Arc<T>, String> {
    T::decode(bytes).map(Arc::new).map_err(|e| e.to_string())
}

type Roots = ledger::Roots;

/// Begins a new pod; `ended` is called when it is gone for good.
pub(crate) fn begin(
    shared: Arc<Shared>,
    record: ledger::PodRecord,
    request: Arc<cri::RunPodSandboxRequest>,
    ended: impl FnOnce(&PodId) + Send + 'static,
) -> Pod {
    task::Cradle::new(shared, record, request, Default::default(), Default::default()).run(ended)
}
