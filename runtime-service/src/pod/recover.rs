//! What the daemon finds at its start: pods and containers of an earlier daemon, told truthfully and adopted.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use berth_api::shim::SOCKET_FILE;

use super::container_steps;
use super::lifecycle::{End, Event, Phase, Reason};
use super::task::{Container, Cradle, Fact, Shared, Task};
use super::teardown::unpin_all;
use super::view::PodState;
use super::{Error, Pod, blocking, decode};
use crate::ids::{ContainerId, PodId};
use crate::ledger::{ContainerRecord, Held, PodRecord};
use crate::network::Attachment;
use crate::task::{self as shim_task, State};

/// How long a shim may take to say how its container stands before that is taken from the record. The daemon answers
/// nobody meanwhile.
const ANSWER: Duration = Duration::from_secs(3);

/// What was found.
pub(crate) struct Recovered {
    pub(crate) pods: Vec<Pod>,
    /// Records that could not be read; they are kept.
    pub(crate) unreadable: usize,
    /// Ids that are spoken for, readable or not.
    known: HashSet<String>,
}

/// Adopts every pod that has a record, all of them side by side.
///
/// # Errors
/// The directory of records cannot be read at all.
pub(crate) async fn recover(
    shared: &Arc<Shared>,
    ended: impl Fn(&PodId) + Clone + Send + 'static,
) -> Result<Recovered, Error> {
    let ledger = shared.ledger.clone();
    let found = blocking(move || ledger.pods().map_err(Error::ledger("read the records"))).await?;
    let mut recovered = Recovered { pods: Vec::new(), unreadable: 0, known: HashSet::new() };
    let mut under_way = Vec::new();
    for record in found {
        match record {
            Ok(record) => {
                recovered.known.insert(record.id.to_string());
                let dir = shared.ledger.roots.pod_data(&record.id);
                under_way.push((dir, tokio::spawn(adopt(shared.clone(), record, ended.clone()))));
            }
            Err((path, problem)) => {
                tracing::error!(path = %path.display(), problem, "a pod's record cannot be read; it is kept");
                recovered.unreadable += 1;
                if let Some(dir) = path.parent() {
                    recovered.known.extend(dir.file_name().and_then(|n| n.to_str()).map(String::from));
                    recovered.known.extend(shared.ledger.container_names(dir));
                }
            }
        }
    }
    for (dir, pod) in under_way {
        match pod.await {
            Ok(Ok(adopted)) => {
                recovered.unreadable += adopted.unreadable;
                recovered.known.extend(adopted.containers);
                recovered.pods.extend(adopted.pod);
            }
            Ok(Err(error)) => {
                tracing::error!(error = super::chain(&error), "a pod cannot be adopted; its record is kept");
                recovered.unreadable += 1;
                recovered.known.extend(shared.ledger.container_names(&dir));
            }
            Err(_) => return Err(Error::Panicked),
        }
    }
    Ok(recovered)
}

struct Adopted {
    /// `None` for one that was still being made, and is taken back.
    pod: Option<Pod>,
    unreadable: usize,
    containers: Vec<String>,
}

async fn adopt(
    shared: Arc<Shared>,
    record: PodRecord,
    ended: impl Fn(&PodId) + Send + 'static,
) -> Result<Adopted, Error> {
    let id = record.id.clone();
    let same_boot = record.boot_id == shared.boot_id;
    let request = decode(&record.request).map_err(|problem| unreadable(&shared, &id, problem))?;
    let held = match shared.ledger.held(&id) {
        Some(Ok(held)) if same_boot => held,
        Some(Err((path, problem))) if same_boot => {
            tracing::error!(path = %path.display(), problem, "what a pod holds cannot be read; it is taken down");
            whole(&record)
        }
        // Killed between the record and its list: nothing was taken, but taking everything back is right as well.
        None if same_boot => Held { ready: false, ..Held::default() },
        // Kernel objects do not outlive a boot; only the network is owed its DEL.
        _ => Held { ready: true, stopped: false, ..Held::default() },
    };
    let attachment = match shared.ledger.attachment(&id) {
        Some(Ok(attachment)) => attachment,
        Some(Err((path, problem))) => {
            tracing::error!(path = %path.display(), problem, "the network's answer cannot be read; DEL goes without it");
            Attachment::default()
        }
        None => Attachment::default(),
    };
    let ledger = shared.ledger.clone();
    let found = blocking({
        let id = id.clone();
        move || ledger.containers(&id).map_err(Error::ledger("read the records of a pod's containers"))
    });
    let mut adopted = Adopted { pod: None, unreadable: 0, containers: Vec::new() };
    let mut cradle = Cradle::new(shared.clone(), record, request, held, attachment);
    cradle.task.find_pod_limits();
    for container in found.await? {
        match container {
            Ok((record, end)) => {
                adopted.containers.push(record.id.to_string());
                cradle.task.adopt(record, end, same_boot).await?;
            }
            Err((path, problem)) => {
                tracing::error!(path = %path.display(), problem, "a container's record cannot be read; it is kept");
                adopted.unreadable += 1;
                adopted.containers.extend(crate::ledger::container_of(&path));
            }
        }
    }
    if !cradle.task.held.ready {
        tracing::info!(pod = %id, "take back a pod that was being made when the daemon ended");
        return cradle.take_back(adopted, ended).await;
    }
    cradle.task.settle_state(same_boot).await;
    adopted.pod = Some(cradle.serve(ended));
    Ok(adopted)
}

/// Everything that a pod of this record can hold.
fn whole(_record: &PodRecord) -> Held {
    let namespaces = ["network", "ipc", "uts", "pid", "user"].map(String::from).to_vec();
    Held { ready: false, stopped: false, namespaces, shm: true, keeper: None }
}

fn unreadable(shared: &Shared, id: &PodId, problem: String) -> Error {
    let path: PathBuf = shared.ledger.roots.pod_data(id).join("request");
    Error::Io { deed: "decode the request in", path, source: std::io::Error::other(problem) }
}

impl Cradle {
    async fn take_back(
        mut self,
        mut adopted: Adopted,
        ended: impl Fn(&PodId) + Send + 'static,
    ) -> Result<Adopted, Error> {
        let (_, mut nothing) = tokio::sync::mpsc::unbounded_channel();
        match self.task.remove_pod(&mut nothing).await {
            Ok(()) => Ok(adopted),
            Err(error) => {
                tracing::error!(pod = %self.task.id, error = super::chain(&error), "take back a pod; kept as not ready");
                self.task.state = PodState::NotReady;
                adopted.pod = Some(self.serve(ended));
                Ok(adopted)
            }
        }
    }
}

impl Task {
    async fn adopt(&mut self, record: ContainerRecord, end: Option<End>, same_boot: bool) -> Result<(), Error> {
        let id = record.id.clone();
        let request = decode(&record.request).map_err(|problem| Error::Io {
            deed: "decode the request in",
            path: self.shared.ledger.roots.container_request(self.pod_id(), &id),
            source: std::io::Error::other(problem),
        })?;
        let bundle = self.shared.ledger.roots.bundle(&id);
        let process = container_steps::process(&bundle).unwrap_or_default();
        self.shared.parents.adopt(&record.cgroup_path, &id);
        let resources = Arc::new(container_steps::asked_resources(&request));
        let created = SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::try_from(record.created_at_ns).unwrap_or(0));
        self.containers.insert(
            id.clone(),
            Container {
                record: Arc::new(record),
                request,
                phase: Phase::Created,
                shim: None,
                process: Arc::new(process),
                effective: Arc::new(container_steps::effective(&bundle)),
                resources,
                watcher: None,
                stopping: Vec::new(),
            },
        );
        match end {
            Some(end) => {
                self.find_limits(&id, false).await;
                // Its shim may have been let go only half.
                if same_boot {
                    self.find_shim(&id).await;
                }
                self.step(&id, Event::Ended(end))?;
                self.release_shim(&id).await;
                Ok(())
            }
            None if !same_boot => {
                self.find_limits(&id, false).await;
                let message = "the node was booted since".to_owned();
                let end = End {
                    code: 255,
                    at: SystemTime::now(),
                    started: Some(created),
                    reason: Reason::NodeReboot,
                    message,
                };
                self.ended(&id, end).await;
                Ok(())
            }
            None => step!("recover::container", self.adopt_live(&id).await),
        }
    }

    async fn find_shim(&mut self, id: &ContainerId) -> bool {
        let bundle = self.shared.ledger.roots.bundle(id);
        let shim = shim_task::connect_bundle(&self.shared.shim_binaries, &bundle).await.ok();
        let found = shim.is_some();
        if let Some(container) = self.containers.get_mut(id) {
            container.shim = shim;
        }
        found
    }

    /// A container of this boot without an end: its shim says how it stands.
    async fn adopt_live(&mut self, id: &ContainerId) -> Result<(), Error> {
        if !self.find_shim(id).await {
            // It never had a shim: the daemon died in Create, whose answer nobody has. Repeated, Create begins anew. One
            // that has left its end and is gone had done all its work, and only our own record could not be written.
            let bundle = self.shared.ledger.roots.bundle(id);
            if !bundle.join(SOCKET_FILE).exists() && container_steps::exit_record(bundle).await.is_none() {
                return self.tear_down_container(id).await;
            }
            self.shim_gone(id, "it does not answer after the daemon's restart").await;
            return Ok(());
        }
        let Some(shim) = self.containers.get(id).and_then(|c| c.shim.clone()) else { return Ok(()) };
        let kept = container_steps::kept_start(&self.shared.ledger.roots.bundle(id));
        match shim.state_within(id.as_str(), ANSWER).await {
            Ok(State::Created { .. }) => {}
            Ok(State::Running { pid }) => {
                // A daemon killed between the start and its record leaves the kernel's word.
                let at = kept.map(|(at, _)| at).or_else(|| crate::host::started(pid)).unwrap_or_else(SystemTime::now);
                self.step(id, Event::Started { pid, at })?;
            }
            // Told before anybody can ask: Wait answers at once.
            Ok(State::Stopped) => {
                if let Some((at, pid)) = kept {
                    self.step(id, Event::Started { pid, at })?;
                }
                let fact = match shim.wait(id.as_str(), "").await {
                    Ok(exit) => Fact::Ended { container: id.clone(), exit },
                    Err(error) => Fact::ShimGone { container: id.clone(), cause: error.to_string() },
                };
                self.see_container(fact).await;
                return Ok(());
            }
            // It is there and does not answer: stopped, or its disk hangs. Its container runs on; it is as it was last
            // seen, and the watch on it tells when that changes.
            Err(error @ shim_task::Error::Deadline { .. }) => {
                tracing::warn!(pod = %self.pod_id(), container = %id, %error, "adopt a container whose shim is silent");
                if let Some((at, pid)) = kept {
                    self.step(id, Event::Started { pid, at })?;
                }
            }
            // The shim knows no such task: Create did not finish.
            Err(error) if error.is_not_found() => return self.tear_down_container(id).await,
            Err(error) => {
                self.shim_gone(id, &error.to_string()).await;
                return Ok(());
            }
        }
        self.find_limits(id, true).await;
        self.watch(id);
        Ok(())
    }

    async fn settle_state(&mut self, same_boot: bool) {
        let keeper_gone = self.held.keeper.is_some_and(|k| !k.alive());
        if same_boot && !self.held.stopped && !keeper_gone {
            self.state = PodState::Ready;
            self.watch_keeper();
            return;
        }
        self.state = PodState::NotReady;
        if keeper_gone && !self.held.stopped {
            // The watcher sees at once that it is gone, and the pod is stopped by the usual way.
            self.watch_keeper();
        }
        if let Err(error) = self.detach().await {
            tracing::error!(pod = %self.id, error = super::chain(&error), "CNI DEL of a pod that is over; tried again by RemovePodSandbox");
        }
        if !same_boot {
            self.held.stopped = true;
        }
    }
}

/// Removes what no record explains. Right only when every record has been looked at.
///
/// # Errors
/// A directory cannot be read. What cannot be removed is logged and left.
pub(crate) async fn sweep(shared: &Shared, recovered: &Recovered) -> Result<(), Error> {
    let known = recovered.known.clone();
    let ledger = shared.ledger.clone();
    let is_known = known.clone();
    let strays =
        blocking(move || ledger.strays(|name| is_known.contains(name)).map_err(Error::ledger("look for leftovers")));
    for dir in strays.await? {
        tracing::info!(path = %dir.display(), "remove what no record explains");
        if let Ok(shim) = shim_task::connect_bundle(&shared.shim_binaries, &dir).await
            && let Some(id) = dir.file_name().and_then(|n| n.to_str())
        {
            let _ = shim.delete(id, "").await;
            let _ = shim.shutdown(id).await;
        }
        let path = dir.clone();
        let removed = blocking(move || {
            unpin_all(&path)?;
            crate::ledger::gone(std::fs::remove_dir_all(&path)).map_err(|source| Error::Io {
                deed: "remove",
                path,
                source,
            })
        });
        if let Err(error) = step!("recover::sweep", removed.await) {
            tracing::error!(path = %dir.display(), error = super::chain(&error), "remove what no record explains");
        }
    }
    if let Err(error) = shared.parents.sweep() {
        tracing::error!(%error, "remove parent cgroups that an earlier daemon made");
    }
    let roots = shared.images.rootfs_list().await;
    let roots = roots.map_err(|source| Error::Image { reference: "list of rootfs".into(), source })?;
    for id in roots.into_iter().filter(|id| !known.contains(super::image_volumes::owner(id))) {
        if let Err(error) = shared.images.remove_rootfs(&id).await {
            tracing::error!(container = id, error = super::chain(&error), "remove a rootfs that no record explains");
        }
    }
    if let Err(error) = shared.images.sweep().await {
        tracing::error!(error = super::chain(&error), "remove layers that nobody needs");
    }
    Ok(())
}
