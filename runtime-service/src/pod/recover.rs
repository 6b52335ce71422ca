//! What the daemon finds at its start: pods and containers of an earlier daemon, told truthfully and adopted.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use berth_api::shim::SOCKET_FILE;
use futures::future::join_all;

use super::container_steps;
use super::lifecycle::{End, Event, Phase, Reason};
use super::task::{Container, Cradle, Fact, Shared, Task};
use super::view::PodState;
use super::{Error, Pod, blocking, decode, kept};
use crate::ids::{ContainerId, PodId};
use crate::ledger::{ContainerRecord, Held, PodRecord};
use crate::task::{self as shim_task, Shim, State, foreign};

/// How long a shim may take to say how its container stands before that is taken from the record. The daemon answers
/// nobody meanwhile.
pub(super) const ANSWER: Duration = Duration::from_secs(3);

/// What was found.
pub(crate) struct Recovered {
    pub(crate) pods: Vec<Pod>,
    /// Records that could not be read, and why; they are kept.
    pub(crate) unreadable: Vec<String>,
    /// Ids that are spoken for, readable or not.
    pub(super) known: HashSet<String>,
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
    let mut recovered = Recovered { pods: Vec::new(), unreadable: Vec::new(), known: HashSet::new() };
    recovered.unreadable.extend(shared.images.unreadable());
    for (path, problem) in shared.parents.unreadable() {
        tracing::error!(path = %path.display(), problem, "a record of parent cgroups cannot be read; it is kept");
        recovered.unreadable.push(format!("{}: {problem}", path.display()));
    }
    let mut under_way = Vec::new();
    for record in found {
        match record {
            Ok(record) => {
                recovered.known.insert(record.id.to_string());
                let dir = shared.ledger.roots.pod_data(&record.id);
                under_way.push((dir, tokio::spawn(adopt(shared.clone(), record, ended.clone()))));
            }
            Err((path, problem)) => recovered.keep(shared, &path, &problem, UNREADABLE),
        }
    }
    for (dir, pod) in under_way {
        match pod.await {
            Ok(Ok(Adopted::Pod(pod))) => {
                recovered.known.extend(pod.view().containers.keys().map(ToString::to_string));
                recovered.pods.push(pod);
            }
            Ok(Ok(Adopted::TakenBack)) => {}
            Ok(Ok(Adopted::Unreadable(path, problem))) => recovered.keep(shared, &path, &problem, UNREADABLE),
            Ok(Ok(Adopted::Unheard(problem))) => recovered.keep(shared, &dir.join("request"), &problem, ASK_AGAIN),
            Ok(Err(error)) => {
                recovered.keep(shared, &dir.join("request"), &super::chain(&error), ASK_AGAIN);
            }
            Err(_) => {
                let problem = "berthd failed on it by a mistake of its own, which its log tells";
                recovered.keep(shared, &dir.join("request"), problem, ASK_AGAIN);
            }
        }
    }
    Ok(recovered)
}

/// What to do about a record that cannot be read.
const UNREADABLE: &str = "start the berthd that wrote it again, or put the file in order, and restart this one";

/// What to do about a pod whose records are well.
const ASK_AGAIN: &str = "mend that and restart berthd, which takes the pod over again";

impl Recovered {
    /// A pod of which the record at `path` cannot be read, or that cannot be taken over: nothing of it is touched, and what
    /// can be told of it is.
    fn keep(&mut self, shared: &Shared, path: &Path, problem: &str, advice: &str) {
        tracing::error!(path = %path.display(), problem, advice, "a pod cannot be taken over; it is kept as it is");
        let problem = format!("{}: {problem} ({advice})", path.display());
        let of_pod = |dir: &&Path| {
            dir.starts_with(shared.ledger.roots.pods()) || dir.starts_with(shared.ledger.roots.pods_run())
        };
        let name = path.parent().filter(of_pod).and_then(|dir| dir.file_name()?.to_str());
        if let Some(name) = name {
            let data = shared.ledger.roots.pods().join(name);
            self.known.insert(name.to_owned());
            self.known.extend(shared.ledger.container_names(&data));
            let record = shared.ledger.glimpse_pod(&data).filter(|record| record.id.as_str() == name);
            record.iter().for_each(|record| shared.selinux.adopt(&record.id, record.selinux.as_ref()));
            self.pods.extend(record.and_then(|record| kept::keep(shared, &record, &problem)));
        }
        self.unreadable.push(problem);
    }
}

enum Adopted {
    Pod(Pod),
    /// It was still being made.
    TakenBack,
    /// One of its records, and what is wrong with it.
    Unreadable(PathBuf, String),
    /// A shim of its that may well live could not be asked, and why.
    Unheard(String),
}

async fn adopt(
    shared: Arc<Shared>,
    record: PodRecord,
    ended: impl Fn(&PodId) + Send + 'static,
) -> Result<Adopted, Error> {
    let id = record.id.clone();
    shared.selinux.adopt(&id, record.selinux.as_ref());
    let same_boot = record.boot_id == shared.boot_id;
    // What cannot be read whole is not touched at all: half of what a pod is would be taken for all of it.
    let problems = blocking({
        let (ledger, id) = (shared.ledger.clone(), id.clone());
        move || ledger.problems(&id, same_boot).map_err(Error::ledger("read a pod's records"))
    });
    if let Some((path, problem)) = problems.await?.into_iter().next() {
        return Ok(Adopted::Unreadable(path, problem));
    }
    let request = match decode(&record.request) {
        Ok(request) => request,
        Err(problem) => return Ok(Adopted::Unreadable(shared.ledger.roots.pod_data(&id).join("request"), problem)),
    };
    let held = match shared.ledger.held(&id).filter(|_| same_boot) {
        Some(held) => held.map_err(unreadable)?,
        // Killed between the record and its list: nothing was taken, but taking everything back is right as well.
        None if same_boot => Held { ready: false, ..Held::default() },
        // Kernel objects do not outlive a boot; only the network is owed its DEL.
        None => Held { ready: true, stopped: false, ..Held::default() },
    };
    let attachment = shared.ledger.attachment(&id).transpose().map_err(unreadable)?.unwrap_or_default();
    let ledger = shared.ledger.clone();
    let found =
        blocking(move || ledger.containers(&id).map_err(Error::ledger("read the records of a pod's containers")));
    let mut cradle = Cradle::new(shared.clone(), record, request, held, attachment);
    cradle.task.find_pod_limits();
    let mut found = found.await?.into_iter().collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    // What the others share a shim by.
    found.sort_by_key(|(record, _)| !record.sandbox);
    // All at once: as long as the slowest is waited for, and not as long as all of them.
    let heard = join_all(found.iter().map(async |(record, _)| match same_boot {
        true => Heard::of(&shared, &record.id).await,
        false => Ok(Heard::Nobody),
    }));
    let heard = match heard.await.into_iter().collect::<Result<Vec<_>, _>>() {
        Ok(heard) => heard,
        Err(problem) => return Ok(Adopted::Unheard(problem)),
    };
    for (heard, (record, end)) in heard.into_iter().zip(found) {
        cradle.task.adopt(record, end, same_boot, heard).await?;
    }
    if !cradle.task.held.ready {
        tracing::info!(pod = %cradle.task.id, "take back a pod that was being made when the daemon ended");
        return Ok(cradle.take_back(ended).await);
    }
    cradle.task.settle_state(same_boot).await;
    Ok(Adopted::Pod(cradle.serve(ended)))
}

/// It could be read a moment ago.
fn unreadable((path, problem): (PathBuf, String)) -> Error {
    Error::Io { deed: "read the record", path, source: std::io::Error::other(problem) }
}

impl Cradle {
    async fn take_back(mut self, ended: impl Fn(&PodId) + Send + 'static) -> Adopted {
        // The end of its sandbox container is seen, if it had come so far.
        match self.task.remove_pod(&mut self.seen).await {
            Ok(()) => {
                self.task.shared.selinux.forget(&self.task.id);
                Adopted::TakenBack
            }
            Err(error) => {
                tracing::error!(pod = %self.task.id, error = super::chain(&error), "take back a pod; kept as not ready");
                self.task.state = PodState::NotReady;
                Adopted::Pod(self.serve(ended))
            }
        }
    }
}

/// What a container's shim says to a new daemon.
enum Heard {
    /// None listens.
    Nobody,
    Shim(Shim, Result<State, shim_task::Error>),
}

impl Heard {
    /// # Errors
    /// Whether one listens could not be found out: this daemon, or the host, is short of something.
    async fn of(shared: &Shared, id: &ContainerId) -> Result<Self, String> {
        let bundle = shared.ledger.roots.bundle(id);
        let begun = Instant::now();
        let shim = loop {
            match shim_task::connect_bundle(&shared.shim_binaries, &bundle).await {
                Ok(shim) => break shim,
                Err(error) if error.says_nobody() => return Ok(Self::Nobody),
                Err(error) if begun.elapsed() >= ANSWER => {
                    return Err(format!("ask the shim of container {id}: {}", super::chain(&error)));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        };
        let state = shim.state_within(id.as_str(), ANSWER).await;
        shim_task::end_left_execs(&shim, id.as_str(), &bundle, state.is_ok()).await;
        Ok(Self::Shim(shim, state))
    }
}

impl Task {
    async fn adopt(
        &mut self,
        record: ContainerRecord,
        end: Option<End>,
        same_boot: bool,
        heard: Heard,
    ) -> Result<(), Error> {
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
        let effective = Arc::new(container_steps::effective(&bundle));
        let container = Container::new(record, request, Arc::new(process));
        self.containers.insert(id.clone(), Container { phase: Phase::Created, effective, resources, ..container });
        match end {
            Some(end) => {
                self.find_limits(&id, false).await;
                self.step(&id, Event::Ended(end))?;
                // Its shim may have been let go only half.
                match heard {
                    Heard::Nobody => self.has_no_shim(&id),
                    // It may have others to tell of.
                    Heard::Shim(_, Err(error)) if error.is_silence() && self.sandbox_container().is_some() => {}
                    Heard::Shim(_, Err(error)) if error.is_silence() => {
                        if let Err(error) = self.end_shim(&id).await {
                            tracing::error!(pod = %self.pod_id(), container = %id, error = super::chain(&error), "a silent shim of a container that has ended");
                        }
                    }
                    Heard::Shim(shim, _) => {
                        self.has_shim(&id, shim);
                        self.release_shim(&id).await;
                    }
                }
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
            None => {
                // What cannot be taken back now is tried again when it is removed or made again: the others of its pod
                // are none the worse for it.
                if let Err(error) = step!("recover::container", self.adopt_live(&id, heard).await) {
                    tracing::error!(pod = %self.pod_id(), container = %id, error = super::chain(&error), "take back a container that was being made when the daemon ended");
                    self.step(&id, Event::Remove)?;
                }
                Ok(())
            }
        }
    }

    fn has_shim(&mut self, id: &ContainerId, shim: Shim) {
        if let Some(container) = self.containers.get_mut(id) {
            container.shim = Some(shim);
        }
    }

    /// An init that was not let go yet is one.
    async fn has_no_process(&self, id: &ContainerId) -> Result<bool, Error> {
        let Some(container) = self.containers.get(id) else { return Ok(true) };
        let (cgroups, path) = (self.shared.host.cgroups.clone(), container.record.cgroup_path.clone());
        blocking(move || {
            let found = cgroups.processes(&path).map(|pids| pids.is_empty());
            found.map_err(|source| Error::Io { deed: "look for processes in cgroup", path: path.into(), source })
        })
        .await
    }

    /// A container of this boot without an end: its shim says how it stands.
    async fn adopt_live(&mut self, id: &ContainerId, heard: Heard) -> Result<(), Error> {
        let bundle = self.shared.ledger.roots.bundle(id);
        let Heard::Shim(shim, state) = heard else {
            // It never had a shim: the daemon died in Create, whose answer nobody has. Repeated, Create begins anew. One
            // that has left its end and is gone had done all its work, and only our own record could not be written.
            let had = bundle.join(SOCKET_FILE).exists()
                || foreign::has_answered(&bundle)
                || container_steps::kept_start(&bundle).is_some();
            if !had && container_steps::exit_record(bundle).await.is_none() {
                return self.tear_down_container(id).await;
            }
            self.shim_gone(id, "it does not answer after the daemon's restart").await;
            return Ok(());
        };
        self.has_shim(id, shim.clone());
        let kept = container_steps::kept_start(&bundle);
        let mut speaks = true;
        match state {
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
                let fact = match tokio::time::timeout(ANSWER, shim.wait(id.as_str(), "")).await {
                    Ok(Ok(exit)) => Some(Fact::Ended { container: id.clone(), exit }),
                    Ok(Err(error)) => Some(Fact::ShimGone { container: id.clone(), cause: error.to_string() }),
                    // It was stopped just now: the watch tells, when it speaks.
                    Err(_) => None,
                };
                if let Some(fact) = fact {
                    self.see_container(fact).await;
                    return Ok(());
                }
                speaks = false;
            }
            // It is there and does not answer: stopped, or its disk hangs. Its container runs on; it is as it was last
            // seen, and the watch on it tells when that changes.
            Err(error) if error.is_silence() => {
                if kept.is_none() && self.has_no_process(id).await? {
                    // It hangs in Create, whose answer nobody has.
                    self.forget_shim(id);
                    return self.tear_down_container(id).await;
                }
                speaks = false;
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
        self.find_limits(id, speaks).await;
        self.watch(id);
        Ok(())
    }

    async fn settle_state(&mut self, same_boot: bool) {
        let keeper_gone = self.held.keeper.is_some_and(|k| !k.alive());
        let has_ended = |c: &Container| matches!(c.phase, Phase::Exited(_) | Phase::Lost | Phase::Removing);
        if same_boot && !self.held.stopped && !keeper_gone && self.sandbox_container().is_some_and(has_ended) {
            // As it was told when it ended; its containers are their shim's, and the network is theirs until it is stopped.
            self.state = PodState::NotReady;
            self.watch_keeper();
            return;
        }
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
