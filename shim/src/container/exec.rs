//! Processes exec'd beside the init: made known, started, ended, forgotten.

use std::sync::Arc;

use oci_spec::runtime::Process as Spec;
use tokio::time::timeout;

use super::{GONE, Kept, Shim};
use crate::error::Error;
use crate::io::log::wall_clock;
use crate::lifecycle::{Ask, End, Phase, Refused};
use crate::process::{Asked, Living, Process, outcome};
use crate::runtime::ExecReport;
use crate::{oom, session, step, sys};

/// Status of a process that could not be executed.
const NOT_EXECUTED: u32 = 128;

/// What Task's `Exec` asks for.
#[derive(Debug)]
pub(crate) struct ExecRequest {
    pub(crate) exec_id: String,
    pub(crate) spec: Box<Spec>,
    pub(crate) asked: Asked,
}

#[derive(Debug)]
pub(super) struct Exec {
    pub(super) process: Process,
    /// Until it is started.
    spec: Option<Box<Spec>>,
    /// Its client is gone: nobody will delete it.
    forgotten: bool,
}

impl Kept {
    /// Which exec'd process has this number; this is said to be its end.
    pub(super) fn exec_with(&mut self, pid: i32, end: End) -> Option<String> {
        // The number of one that has ended may be another's by now.
        let is = |exec: &Exec| exec.process.pid() == pid && !exec.process.is_over();
        let (exec_id, exec) = self.execs.iter().find(|(_, exec)| is(exec))?;
        exec.process.set(Phase::Ending(end));
        Some(exec_id.clone())
    }

    /// Clones the process. The lock is held all the while, so that nobody reaps it before it is known.
    fn run(&mut self, shim: &Arc<Shim>, exec_id: &str) -> Result<ExecReport, Error> {
        let exec = self.execs.get_mut(exec_id).ok_or_else(|| Error::UnknownExec(exec_id.to_owned()))?;
        exec.process.allow(Ask::Start)?;
        let mut spec = exec.spec.take().ok_or_else(|| exec.process.refuse(Ask::Start, Refused::Started))?;
        if spec.oom_score_adj().is_none() {
            // The container's, not the shim's.
            spec.set_oom_score_adj(oom::get(self.init.pid()));
        }
        let (stdio, plumbing) = crate::io::open(&exec.process.asked.names())?;
        let execed = step!("exec::clone", self.container.exec(&spec, stdio))?;
        exec.process.set(Phase::Starting);
        let mut io = plumbing.run(execed.console).inspect_err(|_| {
            let _ = sys::signal(&execed.pidfd, libc::SIGKILL);
        })?;
        let tie = io.clients_gone().map(|gone| {
            let (shim, exec_id) = (shim.clone(), exec_id.to_owned());
            tokio::spawn(async move {
                gone.await;
                shim.forget(&exec_id);
            })
        });
        exec.process.living = Some(Living { pid: execed.pid, pidfd: execed.pidfd, io, tie });
        Ok(execed.report)
    }
}

impl Shim {
    /// Makes the process known; `start_exec` runs it.
    pub(crate) fn exec(&self, id: &str, request: ExecRequest) -> Result<(), Error> {
        self.with(id, |kept| {
            kept.init.allow(Ask::Exec)?;
            if kept.execs.contains_key(&request.exec_id) {
                return Err(Error::ExecExists(request.exec_id));
            }
            let process = Process::new(format!("process {:?}", request.exec_id), request.asked);
            kept.execs.insert(request.exec_id, Exec { process, spec: Some(request.spec), forgotten: false });
            Ok(())
        })
    }

    /// Runs the process and waits until exec has succeeded or failed; returns its number.
    pub(crate) async fn start_exec(self: &Arc<Self>, id: &str, exec_id: &str) -> Result<i32, Error> {
        let (pid, report, end) = self.with(id, |kept| {
            kept.exec(exec_id)?.process.allow(Ask::Start)?;
            let report = kept.run(self, exec_id);
            let process = &kept.exec(exec_id)?.process;
            if report.is_err() && process.living.is_none() {
                process.set(Phase::Ended(End { status: NOT_EXECUTED, at: wall_clock() }));
            }
            Ok((process.pid(), report?, process.end()))
        })?;
        match outcome(report).await {
            Ok(()) => {
                // It may be over and forgotten already.
                let _ = self.with(id, |kept| {
                    kept.exec(exec_id)?.process.set_running();
                    Ok(())
                });
                Ok(pid)
            }
            Err(error) => {
                let _ = timeout(GONE, end).await;
                Err(error)
            }
        }
    }

    /// Forgets a process that has ended or was never started.
    pub(crate) async fn delete_exec(&self, id: &str, exec_id: &str) -> Result<(i32, End), Error> {
        let (pid, end) = self.with(id, |kept| {
            let process = &kept.exec(exec_id)?.process;
            process.allow(Ask::Delete)?;
            if process.phase() == Phase::Created {
                process.set(Phase::Ended(End { status: 0, at: wall_clock() }));
            }
            Ok((process.pid(), process.end()))
        })?;
        let end = end.await;
        self.with(id, |kept| Ok(kept.execs.remove(exec_id)))?;
        self.litter.notify_one();
        Ok((pid, end))
    }

    /// The client of a tied process is gone: nobody wants its output or its end.
    fn forget(&self, exec_id: &str) {
        let mut kept = self.lock();
        let Some(kept) = kept.as_mut() else { return };
        let Some(exec) = kept.execs.get_mut(exec_id) else {
            return;
        };
        exec.forgotten = true;
        let pid = exec.process.pid();
        let running = exec.process.allow(Ask::Signal).is_ok();
        if running {
            session::kill(pid, || kept.members());
        }
    }

    /// Its last output arrives, then its waiters are told.
    pub(super) async fn finish_exec(&self, exec_id: &str, end: End) {
        let drained = {
            let mut kept = self.lock();
            let exec = kept.as_mut().and_then(|kept| kept.execs.get_mut(exec_id));
            let Some(living) = exec.and_then(|exec| exec.process.living.as_mut()) else {
                return;
            };
            // With the tie goes the shim's hold on the FIFOs: the client sees their end.
            if let Some(tie) = living.tie.take() {
                tie.abort();
            }
            living.io.drain()
        };
        drained.await;
        let mut kept = self.lock();
        let Some(kept) = kept.as_mut() else { return };
        let Some(exec) = kept.execs.get_mut(exec_id) else {
            return;
        };
        exec.process.set(Phase::Ended(end));
        if exec.forgotten {
            kept.execs.remove(exec_id);
            self.litter.notify_one();
        }
    }
}
