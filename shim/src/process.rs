//! One process as the shim knows it, init or exec'd: number, phase, streams. Whose it is, is `container`'s.

use std::os::fd::{AsFd, OwnedFd};

use tokio::io::Interest;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::Error;
use crate::io::{Io, Names};
use crate::lifecycle::{self, Ask, End, Phase};
use crate::runtime::ExecReport;
use crate::sys;

/// The strings a process was asked for with; `State` gives them back.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    pub(crate) terminal: bool,
    pub(crate) stdin: Box<str>,
    pub(crate) stdout: Box<str>,
    pub(crate) stderr: Box<str>,
}

impl Asked {
    pub(crate) fn names(&self) -> Names<'_> {
        Names { terminal: self.terminal, stdin: &self.stdin, stdout: &self.stdout, stderr: &self.stderr }
    }
}

/// A process and what the shim holds of it.
#[derive(Debug)]
pub(crate) struct Process {
    /// For messages: `container "x"` or `process "y"`.
    name: Box<str>,
    pub(crate) asked: Asked,
    phase: watch::Sender<Phase>,
    /// Once it was cloned.
    pub(crate) living: Option<Living>,
}

/// What only a process that was cloned has.
#[derive(Debug)]
pub(crate) struct Living {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) io: Io,
    /// Kills it when its client is gone.
    pub(crate) tie: Option<JoinHandle<()>>,
}

impl Process {
    pub(crate) fn new(name: String, asked: Asked) -> Process {
        Process { name: name.into(), asked, phase: watch::Sender::new(Phase::Created), living: None }
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// It was reaped: its number is free for others.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.phase(), Phase::Ending(_) | Phase::Ended(_))
    }

    pub(crate) fn set(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// Exec has succeeded; unless it has ended meanwhile.
    pub(crate) fn set_running(&self) {
        self.phase.send_if_modified(|phase| {
            let starting = *phase == Phase::Starting;
            if starting {
                *phase = Phase::Running;
            }
            starting
        });
    }

    /// Zero for a process that was not cloned yet, as Task has it.
    pub(crate) fn pid(&self) -> i32 {
        self.living.as_ref().map_or(0, |living| living.pid)
    }

    /// # Errors
    /// `Error::Refused` with the process's name.
    pub(crate) fn allow(&self, ask: Ask) -> Result<(), Error> {
        lifecycle::allow(self.phase(), ask).map_err(|refused| self.refuse(ask, refused))
    }

    pub(crate) fn refuse(&self, ask: Ask, refused: lifecycle::Refused) -> Error {
        Error::Refused { process: self.name.to_string(), ask, refused }
    }

    /// It was cloned and has not died, not even unseen.
    pub(crate) fn lives(&self) -> bool {
        let Some(living) = &self.living else { return false };
        let mut died = [rustix::event::PollFd::new(&living.pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut died, Some(&rustix::event::Timespec::default())).is_ok_and(|ready| ready == 0)
    }

    /// # Errors
    /// Refused when it has ended or was not cloned; the kernel's answer.
    pub(crate) fn signal(&self, number: i32) -> Result<(), Error> {
        self.allow(Ask::Signal)?;
        let living = self.living.as_ref().ok_or_else(|| self.refuse(Ask::Signal, lifecycle::Refused::NotStarted))?;
        sys::signal(&living.pidfd, number)
            .map_err(|cause| Error::failed(format!("send signal {number} to {}", self.name), cause))
    }

    /// # Errors
    /// Refused when it has ended; it has no terminal.
    pub(crate) fn resize(&self, columns: u16, rows: u16) -> Result<(), Error> {
        self.allow(Ask::Resize)?;
        let resized = match &self.living {
            Some(living) => living.io.resize(columns, rows),
            None => return Err(self.refuse(Ask::Resize, lifecycle::Refused::NotStarted)),
        };
        match resized.map_err(|cause| Error::failed("resize the terminal", cause))? {
            true => Ok(()),
            false => Err(Error::NoTerminal { process: self.name.to_string() }),
        }
    }

    /// Resolves at its end; never before its record is written.
    pub(crate) fn end(&self) -> impl Future<Output = End> + Send + use<> {
        let mut phase = self.phase.subscribe();
        async move {
            loop {
                if let Phase::Ended(end) = *phase.borrow_and_update() {
                    return end;
                }
                if phase.changed().await.is_err() {
                    // Deleted: it has ended, its last output may not have arrived, or it was never started.
                    return match *phase.borrow() {
                        Phase::Ended(end) | Phase::Ending(end) => end,
                        _ => End { status: 255, at: crate::io::log::wall_clock() },
                    };
                }
            }
        }
    }
}

/// Waits until exec has succeeded or failed.
///
/// # Errors
/// Why the process could not be set up or executed.
pub(crate) async fn outcome(report: ExecReport) -> Result<(), Error> {
    readable(&report).await.map_err(|cause| Error::failed("watch the start of a process", cause))?;
    Ok(report.outcome()?)
}

async fn readable(report: &ExecReport) -> std::io::Result<()> {
    let watched = sys::watch(report.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
    watched.readable().await.map(|mut ready| ready.retain_ready())
}
