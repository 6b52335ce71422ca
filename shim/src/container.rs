//! The owner of the container: its init, what is exec'd beside it, and their ends.
//! Every state change is made under one lock that no await holds; what must go on when the client hangs up is spawned
//! by `service`.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use oci_spec::runtime::LinuxResources;
use protobuf::well_known_types::any::Any;
use rustix::process::{Pid, PidfdFlags};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::error::{Error, text};
use crate::io::log::wall_clock;
use crate::io::{self, Names};
use crate::lifecycle::{Ask, End, Phase, Refused};
use crate::process::{Asked, Living, Process, outcome};
use crate::runtime::{self, CreateRequest, Gate, MountSpec};
use crate::{oom, record, say, session, step, sys};

mod ends;
mod exec;
mod pause;

pub(crate) use exec::ExecRequest;

/// How long a process that was killed may take to be gone.
const GONE: Duration = Duration::from_secs(10);
/// From a request to the return of the memory it needed.
const TIDY_PAUSE: Duration = Duration::from_secs(1);
/// Pauses between two tries to remove a cgroup whose processes are still ending; doubled each time.
const RMDIR_PAUSE: Duration = Duration::from_millis(1);
const RMDIR_PAUSE_MAX: Duration = Duration::from_millis(500);

/// What Task's `Create` asks for.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: Vec<MountSpec>,
    pub(crate) asked: Asked,
}

/// What Task's `State` tells.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) bundle: PathBuf,
    pub(crate) pid: i32,
    pub(crate) phase: Phase,
    pub(crate) asked: Asked,
}

/// The shim: at most one container.
#[derive(Debug, Default)]
pub(crate) struct Shim {
    kept: Mutex<Option<Kept>>,
    /// Told when the process shall end. From then on no container is made.
    pub(crate) done: Notify,
    closing: AtomicBool,
    /// Told when a request has left memory free.
    litter: Notify,
}

#[derive(Debug)]
struct Kept {
    id: String,
    bundle: PathBuf,
    container: runtime::Container,
    /// Until it is let go.
    gate: Option<Gate>,
    /// When it was let go, in nanoseconds since the epoch.
    released_at_ns: Option<i64>,
    /// How many processes the kernel had killed for memory when somebody first asked for the living init's SIGKILL.
    oom_kills_at_sigkill: Option<u64>,
    init: Process,
    execs: BTreeMap<String, exec::Exec>,
    /// Somebody pauses it. berthd never does, so that its execs need not ask the cgroup.
    pausable: bool,
}

impl Kept {
    fn exec(&self, exec_id: &str) -> Result<&exec::Exec, Error> {
        self.execs.get(exec_id).ok_or_else(|| Error::UnknownExec(exec_id.to_owned()))
    }

    /// The init for an empty `exec_id`, as Task has it.
    fn process(&self, exec_id: &str) -> Result<&Process, Error> {
        if exec_id.is_empty() { Ok(&self.init) } else { Ok(&self.exec(exec_id)?.process) }
    }

    fn process_mut(&mut self, exec_id: &str) -> Result<&mut Process, Error> {
        match self.execs.get_mut(exec_id) {
            _ if exec_id.is_empty() => Ok(&mut self.init),
            Some(exec) => Ok(&mut exec.process),
            None => Err(Error::UnknownExec(exec_id.to_owned())),
        }
    }

    fn members(&self) -> Vec<i32> {
        self.container.cgroup.pids().unwrap_or_default()
    }
}

impl Shim {
    fn lock(&self) -> MutexGuard<'_, Option<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the container called `id`.
    fn with<T>(&self, id: &str, deed: impl FnOnce(&mut Kept) -> Result<T, Error>) -> Result<T, Error> {
        match self.lock().as_mut() {
            Some(kept) if kept.id == id => deed(kept),
            _ => Err(Error::UnknownContainer(id.to_owned())),
        }
    }

    /// Gives free memory back a while after the last request that left some, so that none waits for it.
    pub(crate) async fn tidy(&self) {
        loop {
            self.litter.notified().await;
            sleep(TIDY_PAUSE).await;
            sys::trim_memory();
        }
    }

    /// Makes the container and parks its init before exec; returns the init's number.
    pub(crate) fn create(&self, request: Request) -> Result<i32, Error> {
        let mut kept = self.lock();
        if let Some(kept) = &*kept {
            return Err(Error::ContainerExists(kept.id.clone()));
        }
        if self.closing.load(Ordering::Relaxed) {
            return Err(Error::ShuttingDown);
        }
        let (stdio, plumbing) = crate::io::open(&request.asked.names())?;
        let parked =
            runtime::create(CreateRequest { id: &request.id, bundle: &request.bundle, rootfs: request.rootfs, stdio })?;
        // From here the container is ours, whatever fails: it is kept so that `Delete` undoes it.
        let container = parked.container;
        let pid = container.pid;
        let written = record::write_effective(&request.bundle, &container.effective)
            .map_err(|cause| Error::failed("write effective.json", cause));
        let run = written.and_then(|()| Ok(plumbing.run(parked.console)?));
        let pidfd = container.pidfd.try_clone().map_err(|cause| Error::failed("keep the init's pidfd", cause));
        let (io, pidfd) = match run.and_then(|io| Ok((io, pidfd?))) {
            Ok(kept) => kept,
            Err(error) => {
                discard(&container, parked.gate);
                return Err(error);
            }
        };
        let mut init = Process::new(format!("container {:?}", request.id), request.asked);
        init.living = Some(Living { pid, pidfd, io, tie: None });
        *kept = Some(Kept {
            id: request.id,
            bundle: request.bundle,
            container,
            gate: Some(parked.gate),
            released_at_ns: None,
            oom_kills_at_sigkill: None,
            init,
            execs: BTreeMap::new(),
            pausable: false,
        });
        self.litter.notify_one();
        Ok(pid)
    }

    /// Lets the init go and waits until exec has succeeded or failed; returns its number.
    pub(crate) async fn start(&self, id: &str) -> Result<i32, Error> {
        let (pid, report, end) = self.with(id, |kept| {
            kept.init.allow(Ask::Start)?;
            let gate = kept.gate.take().ok_or_else(|| kept.init.refuse(Ask::Start, Refused::Started))?;
            kept.init.set(Phase::Starting);
            kept.released_at_ns = Some(wall_clock());
            let report = step!("start::release", gate.open());
            let report = report.map_err(|_| kept.init.refuse(Ask::Start, Refused::Ended))?;
            Ok((kept.init.pid(), report, kept.init.end()))
        })?;
        match outcome(report).await {
            Ok(()) => {
                self.with(id, |kept| {
                    kept.init.set_running();
                    Ok(())
                })?;
                Ok(pid)
            }
            Err(error) => {
                // It exits by itself; whoever hears of the failure finds the end recorded.
                let _ = timeout(GONE, end).await;
                Err(error)
            }
        }
    }

    pub(crate) fn state(&self, id: &str, exec_id: &str) -> Result<State, Error> {
        self.with(id, |kept| {
            let process = kept.process(exec_id)?;
            Ok(State {
                bundle: kept.bundle.clone(),
                pid: process.pid(),
                phase: process.phase(),
                asked: process.asked.clone(),
            })
        })
    }

    /// Resolves at the end of a process, when it is recorded.
    pub(crate) fn end(&self, id: &str, exec_id: &str) -> Result<impl Future<Output = End> + Send + use<>, Error> {
        self.with(id, |kept| Ok(kept.process(exec_id)?.end()))
    }

    /// Sends a signal to a process, or with `all` to everything in the container or in the exec'd process's family.
    pub(crate) fn kill(&self, id: &str, exec_id: &str, number: i32, all: bool) -> Result<(), Error> {
        self.with(id, |kept| {
            if exec_id.is_empty() && number == libc::SIGKILL && kept.oom_kills_at_sigkill.is_none() && kept.init.lives()
            {
                kept.oom_kills_at_sigkill = Some(kept.container.cgroup.oom_kills());
            }
            let process = kept.process(exec_id)?;
            match (all, exec_id.is_empty()) {
                (false, true) if number == libc::SIGKILL && kept.pausable => {
                    process.signal(number)?;
                    Ok(kept.container.cgroup.let_die()?)
                }
                (false, _) => process.signal(number),
                (true, true) if number == libc::SIGKILL => Ok(kept.container.cgroup.kill()?),
                (true, true) => {
                    kept.container.cgroup.pids()?.into_iter().for_each(|pid| signal_pid(pid, number));
                    Ok(())
                }
                (true, false) => {
                    process.signal(number)?;
                    if number == libc::SIGKILL {
                        session::kill(process.pid(), || kept.members());
                    }
                    Ok(())
                }
            }
        })
    }

    /// Pids of everything in the container.
    pub(crate) fn pids(&self, id: &str) -> Result<Vec<i32>, Error> {
        self.with(id, |kept| Ok(kept.container.cgroup.pids()?))
    }

    /// See `Cgroup::stats`.
    pub(crate) fn stats(&self, id: &str) -> Result<Any, Error> {
        let cgroup = self.with(id, |kept| Ok(kept.container.cgroup.clone()))?;
        Ok(cgroup.stats()?)
    }

    pub(crate) fn resize(&self, id: &str, exec_id: &str, columns: u16, rows: u16) -> Result<(), Error> {
        self.with(id, |kept| kept.process(exec_id)?.resize(columns, rows))
    }

    pub(crate) fn close_stdin(&self, id: &str, exec_id: &str) -> Result<(), Error> {
        self.with(id, |kept| {
            if let Some(living) = &mut kept.process_mut(exec_id)?.living {
                living.io.close_stdin();
            }
            Ok(())
        })
    }

    /// New limits, all or none, and a new score for the kernel's choice of whom to kill.
    pub(crate) fn update(&self, id: &str, resources: &LinuxResources, score: Option<i32>) -> Result<(), Error> {
        self.with(id, |kept| {
            kept.init.allow(Ask::Update)?;
            kept.container.cgroup.update(resources)?;
            let Some(asked) = score else { return Ok(()) };
            // What a process may not go below is the kernel's to say; what the init has then is what is told.
            kept.members().into_iter().for_each(|pid| oom::set(pid, asked));
            let effective = &mut kept.container.effective;
            effective.oom_score_adj = oom::get(kept.init.pid()).filter(|found| *found != asked);
            record::rewrite_effective(&kept.bundle, effective)
                .map_err(|cause| Error::failed("write effective.json", cause))
        })
    }

    /// Returns the lines dropped so far.
    pub(crate) async fn reopen_log(&self, id: &str) -> Result<u64, Error> {
        match self.with(id, |kept| Ok(kept.init.living.as_ref().map(|living| living.io.reopen_logs())))? {
            Some(reopened) => Ok(reopened.await?),
            None => Ok(0),
        }
    }

    /// Attaches a client to the init's streams, and waits for the end of that.
    pub(crate) async fn attach(&self, id: &str, names: &Names<'_>) -> Result<io::End, Error> {
        let attached = self.with(id, |kept| {
            kept.init.allow(Ask::Attach)?;
            match &kept.init.living {
                Some(living) => Ok(living.io.attach(names)?),
                None => Ok(None),
            }
        })?;
        let reason = "the container's output does not come by the shim";
        let attached = attached.ok_or_else(|| Error::Invalid { field: "stdout", reason: reason.into() })?;
        let end = attached.ended().await;
        self.litter.notify_one();
        Ok(end)
    }

    /// The init's number, or zero: also before there is one.
    pub(crate) fn connect(&self, id: &str) -> i32 {
        self.with(id, |kept| Ok(kept.init.pid())).unwrap_or(0)
    }

    /// Lets go of the ended container: its cgroup and, with the shim's last descriptors, its mounts.
    pub(crate) async fn delete(&self, id: &str) -> Result<(i32, End), Error> {
        let (pid, end) = self.with(id, |kept| {
            kept.init.allow(Ask::Delete)?;
            // Without its gate, a parked init exits by itself.
            kept.gate = None;
            Ok((kept.init.pid(), kept.init.end()))
        })?;
        let gone = timeout(GONE, end).await;
        let end = gone.map_err(|late| Error::failed("wait for the container's end", std::io::Error::from(late)))?;
        self.remove_cgroup(id).await?;
        self.lock().take_if(|kept| kept.id == id);
        Ok((pid, end))
    }

    async fn remove_cgroup(&self, id: &str) -> Result<(), Error> {
        let mut pause = RMDIR_PAUSE;
        loop {
            let removed = self.with(id, |kept| Ok(step!("delete::cgroup-rmdir", kept.container.cgroup.remove())))?;
            match removed {
                Ok(()) => return Ok(()),
                Err(error) if pause > RMDIR_PAUSE_MAX => return Err(error.into()),
                Err(_) => sleep(pause).await,
            }
            pause *= 2;
        }
    }

    /// Ends the shim, once the container is deleted; or with `now` whatever there is. False if it goes on.
    pub(crate) async fn shutdown(&self, now: bool) -> bool {
        let end = {
            let kept = self.lock();
            if kept.is_some() && !now {
                return false;
            }
            self.closing.store(true, Ordering::Relaxed);
            kept.as_ref().map(|kept| {
                if let Err(error) = kept.container.cgroup.kill() {
                    say!("{}", text(&error));
                }
                kept.init.end()
            })
        };
        if let Some(end) = end {
            let _ = timeout(GONE, end).await;
        }
        self.done.notify_one();
        true
    }
}

/// Takes back a container that could not be kept. Its init, without its gate, exits by itself.
fn discard(container: &runtime::Container, gate: Gate) {
    drop(gate);
    let _ = container.cgroup.kill();
    if let Some(pid) = Pid::from_raw(container.pid) {
        let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
    }
    if let Err(error) = container.cgroup.remove() {
        say!("{}", text(&error));
    }
}

fn pidfd(pid: i32) -> Option<OwnedFd> {
    rustix::process::pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

/// A process that has ended meanwhile needs no signal.
fn signal_pid(pid: i32, number: i32) {
    if let Some(pidfd) = pidfd(pid) {
        let _ = sys::signal(&pidfd, number);
    }
}
