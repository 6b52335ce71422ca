//! The task that owns a pod: takes asks and facts one at a time, does the effects, publishes the view.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use berth_api::cri;
use berth_api::shim::Effective;
use berth_image_service::Images;
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::events::Events;
use super::lifecycle::{self, Act, End, Event, Phase, Reason};
use super::view::{ContainerView, PodLimits, PodState, PodView};
use super::{Ask, Error, Pod, QUEUE, Reply, blocking};
use crate::config::Config;
use crate::host::{AppArmor, Host, Parents, SeLinux};
use crate::ids::{ContainerId, PodId};
use crate::inflight::Doing;
use crate::ledger::{ContainerRecord, Held, Ledger, PodRecord};
use crate::metrics::Metrics;
use crate::network::{Attachment, Networks};
use crate::task::{Exit, Shim};

/// What every pod shares.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) ledger: Ledger,
    pub(crate) images: Images,
    pub(crate) networks: Networks,
    pub(crate) metrics: Metrics,
    pub(crate) events: Events,
    pub(crate) host: Host,
    pub(crate) boot_id: String,
    pub(crate) cgroup_driver: crate::spec::Driver,
    /// cgroup for containers whose pod names no parent.
    pub(crate) cgroup_root: String,
    /// The cgroups above containers' own that are berth's to remove.
    pub(crate) parents: Parents,
    /// The daemon's socket, which shims are told.
    pub(crate) socket: PathBuf,
    pub(crate) shim_binaries: crate::task::Config,
    pub(crate) apparmor: AppArmor,
    pub(crate) selinux: SeLinux,
    pub(crate) sealed: crate::task::Sealed,
    pub(crate) handlers: crate::task::Handlers,
    /// What the shim can do on this kernel.
    pub(crate) features: crate::task::KnownFeatures,
}

/// How long a killed container may take to be gone before the askers are told that it does not go.
const KILL_WAIT: Duration = Duration::from_secs(10);

/// Something that happened, seen by a watcher.
pub(super) enum Fact {
    Ended { container: ContainerId, exit: Exit },
    ShimGone { container: ContainerId, cause: String },
    KeeperGone,
}

/// The owner's copy of a container.
pub(super) struct Container {
    pub(super) record: Arc<ContainerRecord>,
    pub(super) request: Arc<cri::CreateContainerRequest>,
    pub(super) phase: Phase,
    pub(super) shim: Option<Shim>,
    /// One of its may be at work, spoken to or not.
    pub(super) may_have_shim: bool,
    pub(super) process: Arc<Value>,
    pub(super) effective: Arc<Effective>,
    pub(super) resources: Arc<cri::LinuxContainerResources>,
    pub(super) watcher: Option<AbortHandle>,
    /// Everybody who waits for its end.
    pub(super) stopping: Vec<Reply<()>>,
    /// When they are told that it does not come, though nothing else happens: what was never started, or has lost its
    /// shim, is killed at once, and that may do nothing.
    pub(super) give_up_at: Option<Instant>,
}

impl Container {
    /// One that is being made.
    pub(super) fn new(record: ContainerRecord, request: Arc<cri::CreateContainerRequest>, process: Arc<Value>) -> Self {
        Self {
            record: Arc::new(record),
            request,
            phase: Phase::Creating,
            shim: None,
            may_have_shim: true,
            process,
            effective: Arc::default(),
            resources: Arc::default(),
            watcher: None,
            stopping: Vec::new(),
            give_up_at: None,
        }
    }

    /// Tells everybody who waits that it does not end.
    fn give_up(&mut self, id: &ContainerId) {
        for reply in self.stopping.drain(..) {
            let _ = reply.send(Err(Arc::new(Error::WontDie(id.clone()))));
        }
    }
}

/// The pod, owned.
pub(super) struct Task {
    pub(super) shared: Arc<Shared>,
    pub(super) id: PodId,
    pub(super) record: PodRecord,
    pub(super) request: Arc<cri::RunPodSandboxRequest>,
    pub(super) held: Held,
    pub(super) attachment: Attachment,
    pub(super) state: PodState,
    pub(super) failed: Option<Arc<Error>>,
    pub(super) limits: Arc<PodLimits>,
    pub(super) containers: BTreeMap<ContainerId, Container>,
    pub(super) facts: mpsc::UnboundedSender<Fact>,
    pub(super) keeper_watch: Option<AbortHandle>,
    doing: Doing,
    view: watch::Sender<Arc<PodView>>,
    /// Told before its last ask is answered.
    gone: Arc<AtomicBool>,
}

/// A task that is not running yet, with its ends.
pub(super) struct Cradle {
    pub(super) task: Task,
    asks: mpsc::Receiver<Ask>,
    pub(super) seen: mpsc::UnboundedReceiver<Fact>,
    pub(super) handle: Pod,
}

impl Cradle {
    pub(super) fn new(
        shared: Arc<Shared>,
        record: PodRecord,
        request: Arc<cri::RunPodSandboxRequest>,
        held: Held,
        attachment: Attachment,
    ) -> Self {
        let (asks, asked) = mpsc::channel(QUEUE);
        // Unbounded, but each container has one watcher that sends one fact.
        let (facts, seen) = mpsc::unbounded_channel();
        let id = record.id.clone();
        let linux = request.config.as_ref().and_then(|c| c.linux.as_ref());
        let limits = Arc::new(PodLimits {
            overhead: linux.and_then(|l| l.overhead.clone()),
            resources: linux.and_then(|l| l.resources.clone()),
        });
        let first = PodView {
            id: id.clone(),
            request: request.clone(),
            created_at_ns: record.created_at_ns,
            state: PodState::Starting,
            failed: None,
            ips: Vec::new(),
            cni_result: None,
            namespaces: shared.ledger.roots.pod_run(&id).join("ns"),
            keeper: None,
            limits: limits.clone(),
            containers: BTreeMap::new(),
            sandbox_container: None,
        };
        let (view, published) = watch::channel(Arc::new(first));
        let doing = Doing::default();
        let gone = Arc::new(AtomicBool::new(false));
        let handle = Pod { id: id.clone(), doing: doing.clone(), asks, view: published, gone: gone.clone() };
        let task = Task {
            shared,
            id,
            record,
            request,
            held,
            attachment,
            state: PodState::Starting,
            failed: None,
            limits,
            containers: BTreeMap::new(),
            facts,
            keeper_watch: None,
            doing,
            view,
            gone,
        };
        Self { task, asks: asked, seen, handle }
    }

    /// A new pod: runs it, then serves it. `ended` is called when the pod is gone for good.
    pub(super) fn run(self, ended: impl FnOnce(&PodId) + Send + 'static) -> Pod {
        let Self { mut task, asks, seen, handle } = self;
        tokio::spawn(async move {
            let mut seen = seen;
            let doing = task.doing.clone();
            match doing.during("RunPodSandbox", String::new(), task.run()).await {
                Ok(()) => {
                    task.state = PodState::Ready;
                    task.publish();
                    task.serve(asks, &mut seen).await;
                }
                Err(error) => task.fail(error, asks, &mut seen).await,
            }
            ended(&task.id);
        });
        handle
    }

    /// A pod found at start: serves it.
    pub(super) fn serve(self, ended: impl FnOnce(&PodId) + Send + 'static) -> Pod {
        let Self { mut task, asks, mut seen, handle } = self;
        task.publish();
        tokio::spawn(async move {
            task.serve(asks, &mut seen).await;
            ended(&task.id);
        });
        handle
    }
}

impl Task {
    /// Tells everybody how things stand.
    pub(super) fn publish(&self) {
        let container = |c: &Container| ContainerView {
            record: c.record.clone(),
            request: c.request.clone(),
            phase: c.phase.clone(),
            kept: None,
            shim: c.shim.clone(),
            process: c.process.clone(),
            effective: c.effective.clone(),
            resources: c.resources.clone(),
        };
        // One that is still being made is not there yet for others: a Create that fails leaves nothing to see.
        let there = self.containers.iter().filter(|(_, c)| c.phase != Phase::Creating && !c.record.sandbox);
        let view = PodView {
            id: self.id.clone(),
            request: self.request.clone(),
            created_at_ns: self.record.created_at_ns,
            state: self.state,
            failed: self.failed.clone(),
            ips: self.attachment.ips(),
            cni_result: self.attachment.result().map(Arc::new),
            namespaces: self.shared.ledger.roots.pod_run(&self.id).join("ns"),
            keeper: self.held.keeper.map(|k| k.pid),
            limits: self.limits.clone(),
            containers: there.map(|(id, c)| (id.clone(), Arc::new(container(c)))).collect(),
            sandbox_container: self.sandbox_container().map(|c| Arc::new(container(c))),
        };
        let view = Arc::new(view);
        let before = self.view.send_replace(view.clone());
        self.shared.events.published(&before, &view);
    }

    /// RunPodSandbox failed: everything is taken back. What could not be stays listed, not ready, for Stop and Remove.
    async fn fail(&mut self, error: Error, asks: mpsc::Receiver<Ask>, seen: &mut mpsc::UnboundedReceiver<Fact>) {
        let error = Arc::new(error);
        let taken_back = self.remove_pod(seen).await;
        self.gone.store(taken_back.is_ok(), Ordering::Release);
        self.state = PodState::NotReady;
        self.failed = Some(error);
        self.publish();
        if let Err(left) = taken_back {
            tracing::error!(pod = %self.id, error = super::chain(&left), "take back a pod that failed to start; kept as not ready");
            self.serve(asks, seen).await;
        }
    }

    async fn serve(&mut self, mut asks: mpsc::Receiver<Ask>, seen: &mut mpsc::UnboundedReceiver<Fact>) {
        let doing = self.doing.clone();
        loop {
            let deadline = self.next_deadline();
            let sleep = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // Facts first: an ask is answered by what is true.
                biased;
                Some(fact) = seen.recv() => doing.during("(what was seen)", String::new(), self.see(fact, seen)).await,
                () = sleep => doing.during("(kill)", String::new(), self.deadlines_passed()).await,
                ask = asks.recv() => match ask {
                    None => return,
                    Some(Ask::RemovePod { reply }) => {
                        let removed = doing.during("RemovePodSandbox", String::new(), self.remove_pod(seen)).await;
                        let result = removed.map_err(Arc::new);
                        let over = result.is_ok();
                        self.publish();
                        if over {
                            self.gone.store(true, Ordering::Release);
                            self.shared.events.deleted(&self.view.borrow());
                        }
                        let _ = reply.send(result);
                        if over {
                            return;
                        }
                    }
                    Some(ask) => {
                        let (method, container) = ask.told();
                        doing.during(method, container, self.answer(ask, seen)).await;
                    }
                },
            }
        }
    }

    async fn answer(&mut self, ask: Ask, seen: &mut mpsc::UnboundedReceiver<Fact>) {
        match ask {
            Ask::Create { request, reply } => {
                let result = self.create(request).await;
                self.publish();
                let _ = reply.send(result.map_err(Arc::new));
            }
            Ask::Start { container, reply } => {
                let result = self.start(&container).await;
                self.publish();
                let _ = reply.send(result.map_err(Arc::new));
            }
            Ask::Stop { container, grace, reply } => self.stop(&container, grace, reply).await,
            Ask::Remove { container, reply } => {
                let result = self.remove_container(&container, seen).await;
                self.publish();
                let _ = reply.send(result.map_err(Arc::new));
            }
            Ask::Update { container, resources, reply } => {
                let result = self.update(&container, &resources).await;
                self.publish();
                let _ = reply.send(result.map_err(Arc::new));
            }
            Ask::UpdatePod { limits, reply } => {
                let result = self.update_pod(*limits).await;
                self.publish();
                let _ = reply.send(result.map_err(Arc::new));
            }
            Ask::StopPod { reply } => {
                let result = self.stop_pod(seen).await;
                self.publish();
                let _ = reply.send(result.map_err(Arc::new));
            }
            Ask::RemovePod { reply } => {
                let _ = reply.send(Err(Arc::new(Error::Ended(self.id.clone()))));
            }
        }
    }

    /// Moves a container on by one event; the act is the caller's to do.
    pub(super) fn step(&mut self, id: &ContainerId, event: Event) -> Result<Option<Act>, Error> {
        let container = self.containers.get_mut(id).ok_or_else(|| Error::NoContainer(id.clone()))?;
        let (phase, act) = lifecycle::next(&container.phase, event)
            .map_err(|source| Error::Refused { container: id.clone(), source })?;
        container.phase = phase;
        Ok(act)
    }

    async fn start(&mut self, id: &ContainerId) -> Result<(), Error> {
        if self.state != PodState::Ready {
            return Err(self.not_ready());
        }
        self.release(id).await
    }

    /// Why nothing begins in this pod any more.
    pub(super) fn not_ready(&self) -> Error {
        let over = self.sandbox_container().is_some_and(|c| matches!(c.phase, Phase::Exited(_) | Phase::Lost));
        let why = if over && !self.held.stopped { "its sandbox container has ended" } else { "it was stopped" };
        Error::NotReady { pod: self.id.clone(), why }
    }

    /// Lets a container's init go.
    pub(super) async fn release(&mut self, id: &ContainerId) -> Result<(), Error> {
        if self.step(id, Event::Start)? != Some(Act::Release) {
            return Ok(());
        }
        let began = Instant::now();
        let shim = self.shim(id)?;
        match step!("start_container::shim-start", shim.start(id.as_str(), "").await) {
            Ok(pid) => {
                self.shared.metrics.stage("shim_start", began.elapsed());
                self.started(id, pid, SystemTime::now())
            }
            Err(crate::task::Error::Refused { code, message }) => {
                // An earlier start, whose answer did not come in time, may have been done after all.
                if let Ok(crate::task::State::Running { pid }) = shim.state(id.as_str()).await {
                    return self.started(id, pid, crate::host::started(pid).unwrap_or_else(SystemTime::now));
                }
                let end = End {
                    code: 128,
                    at: SystemTime::now(),
                    started: None,
                    reason: Reason::StartError,
                    message: message.clone(),
                };
                self.ended(id, end).await;
                Err(Error::StartFailed { container: id.clone(), code, message })
            }
            Err(source) => Err(Error::Shim { container: id.clone(), step: "start", source }),
        }
    }

    fn started(&mut self, id: &ContainerId, pid: u32, at: SystemTime) -> Result<(), Error> {
        // It runs, whatever the disk says. The next daemon would have to do with the kernel's word.
        if let Err(error) = super::container_steps::keep_start(&self.shared.ledger.roots.bundle(id), at, pid) {
            tracing::warn!(pod = %self.id, container = %id, error = super::chain(&error), "keep the moment of its start");
        }
        self.step(id, Event::Started { pid, at }).map(drop)
    }

    async fn stop(&mut self, id: &ContainerId, grace: Duration, reply: Reply<()>) {
        let kill_at = Instant::now() + grace;
        let act = match self.step(id, Event::Stop { kill_at }) {
            Ok(act) => act,
            Err(error) => {
                let _ = reply.send(Err(Arc::new(error)));
                return;
            }
        };
        if let Some(container) = self.containers.get_mut(id) {
            match container.phase {
                Phase::Exited(_) | Phase::Removing => {
                    let _ = reply.send(Ok(()));
                    return;
                }
                Phase::Stopping { .. } => container.stopping.push(reply),
                _ => {
                    container.stopping.push(reply);
                    container.give_up_at.get_or_insert(Instant::now() + KILL_WAIT);
                }
            }
        }
        let signal = self.containers.get(id).map_or(Signal::SIGTERM as i32, |c| c.record.stop_signal);
        let result = match act {
            // No grace means no question.
            Some(Act::Signal) if grace.is_zero() => self.kill(id).await,
            Some(Act::Signal) => step!("stop_container::signal", self.signal(id, signal, false).await),
            Some(Act::Kill) => self.kill(id).await,
            _ => Ok(()),
        };
        if let Err(error) = result {
            // The shim did not take it. The deadline comes, and then the kill by cgroup; nobody is told "done" before.
            tracing::warn!(pod = %self.id, container = %id, error = super::chain(&error), "signal the container");
        }
        self.publish();
    }

    /// The earliest moment at which a stop has to be looked at again.
    fn next_deadline(&self) -> Option<Instant> {
        let deadline = |c: &Container| match c.phase {
            Phase::Stopping { kill_at, .. } => Some(kill_at),
            _ => c.give_up_at,
        };
        self.containers.values().filter_map(deadline).min()
    }

    async fn deadlines_passed(&mut self) {
        let now = Instant::now();
        for (id, container) in &mut self.containers {
            if container.give_up_at.take_if(|at| *at <= now).is_some() {
                container.give_up(id);
            }
        }
        let due = |c: &Container| matches!(c.phase, Phase::Stopping { kill_at, .. } if kill_at <= now);
        let due: Vec<_> = self.containers.iter().filter(|(_, c)| due(c)).map(|(id, _)| id.clone()).collect();
        for id in due {
            let Ok(Some(act)) = self.step(&id, Event::DeadlinePassed) else { continue };
            if let Err(error) = self.kill(&id).await {
                tracing::warn!(pod = %self.id, container = %id, error = super::chain(&error), "kill the container");
            }
            let Some(container) = self.containers.get_mut(&id) else { continue };
            if act == Act::KillAgain {
                container.give_up(&id);
            }
            if let Phase::Stopping { kill_at, .. } = &mut container.phase {
                *kill_at = Instant::now() + KILL_WAIT;
            }
        }
    }

    /// Kills everything in the container, through the shim or, without one, by its cgroup.
    pub(super) async fn kill(&self, id: &ContainerId) -> Result<(), Error> {
        match step!("stop_container::kill", self.signal(id, Signal::SIGKILL as i32, true).await) {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::warn!(pod = %self.id, container = %id, error = super::chain(&error), "kill through the shim; killing by cgroup");
                self.kill_by_cgroup(id).await?;
                match error {
                    // It may have others to tell of.
                    Error::Shim { source, .. } if source.is_silence() && self.shares_a_shim(id) => {
                        let _ = self.facts.send(Fact::ShimGone { container: id.clone(), cause: source.to_string() });
                        Ok(())
                    }
                    // Nothing is left that it could tell the end of. Its own is seen by the watch on it.
                    Error::Shim { source, .. } if source.is_silence() => self.end_shim(id).await,
                    _ => Ok(()),
                }
            }
        }
    }

    async fn signal(&self, id: &ContainerId, signal: i32, all: bool) -> Result<(), Error> {
        match self.shim(id)?.kill(id.as_str(), "", signal, all).await {
            Ok(()) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(source) => Err(Error::Shim { container: id.clone(), step: "kill", source }),
        }
    }

    pub(super) async fn kill_by_cgroup(&self, id: &ContainerId) -> Result<(), Error> {
        let Some(container) = self.containers.get(id) else { return Ok(()) };
        let (cgroups, path) = (self.shared.host.cgroups.clone(), container.record.cgroup_path.clone());
        blocking(move || {
            cgroups.kill(&path).map_err(|source| Error::Io { deed: "kill by cgroup", path: path.into(), source })
        })
        .await
    }

    pub(super) fn shim(&self, id: &ContainerId) -> Result<Shim, Error> {
        let container = self.containers.get(id).ok_or_else(|| Error::NoContainer(id.clone()))?;
        container.shim.clone().ok_or_else(|| Error::Refused {
            container: id.clone(),
            source: match container.phase {
                Phase::Exited(_) => lifecycle::Refused::Exited,
                Phase::Removing => lifecycle::Refused::Removing,
                _ => lifecycle::Refused::Lost,
            },
        })
    }

    async fn see(&mut self, fact: Fact, seen: &mut mpsc::UnboundedReceiver<Fact>) {
        match fact {
            Fact::KeeperGone => {
                tracing::error!(pod = %self.id, "the pod's namespace keeper died; its containers died with it");
                for container in self.containers.values_mut() {
                    container.watcher.take();
                }
                self.held.keeper = None;
                if let Err(error) = self.stop_pod(seen).await {
                    tracing::error!(pod = %self.id, error = super::chain(&error), "stop the pod whose keeper died");
                }
            }
            fact => self.see_container(fact).await,
        }
        self.publish();
    }

    /// Waits until each of these has ended, seeing facts as they come.
    pub(super) async fn settle(
        &mut self,
        ids: &[ContainerId],
        seen: &mut mpsc::UnboundedReceiver<Fact>,
    ) -> Result<(), Error> {
        let deadline = tokio::time::Instant::now() + KILL_WAIT;
        let mut keeper_gone = false;
        let settled = loop {
            let over = |p: &Phase| matches!(p, Phase::Exited(_) | Phase::Removing | Phase::Creating);
            let left = ids.iter().find(|id| self.containers.get(id).is_some_and(|c| !over(&c.phase)));
            let Some(left) = left.cloned() else { break Ok(()) };
            match tokio::time::timeout_at(deadline, seen.recv()).await {
                Ok(Some(Fact::KeeperGone)) => {
                    self.held.keeper = None;
                    keeper_gone = true;
                }
                Ok(Some(fact)) => self.see_container(fact).await,
                Ok(None) | Err(_) => break Err(Error::WontDie(left)),
            }
        };
        if keeper_gone {
            // To be seen once more by whoever stops the pod for it: here only containers are waited for.
            let _ = self.facts.send(Fact::KeeperGone);
        }
        settled
    }
}
