//! `Container::exec`: one more process in a running container.

use berth_api::shim::Effective;
use oci_spec::runtime::Process;
use rustix::event::{PollFd, PollFlags};
use rustix::thread::ThreadNameSpaceType;

use super::create::{Birth, copy};
use super::plan::Deed;
use super::process::{self, Planned, Users};
use super::process_deeds::ProcessDeed;
use super::{Container, Error, Execed, Stdio};

impl Container {
    /// Starts one more process in the container: its namespaces, cgroup, seccomp filter; user, capabilities, limits,
    /// directory and environment as `process` says. Without `process.env` it gets the container's own.
    ///
    /// Returns as soon as the process is cloned. Call it on the shim's main thread, which alone makes threads: it is
    /// in the container's pid namespace for the time of one clone, and could make none.
    ///
    /// # Errors
    /// `Error::NotRunning` when the init has ended; a field that is refused; the step that failed.
    pub fn exec(&self, process: &Process, stdio: Stdio) -> Result<Execed, Error> {
        if self.has_ended() {
            return Err(Error::NotRunning);
        }
        let environment = match process.env().as_deref().unwrap_or_default() {
            [] => self.shared.environment.clone(),
            _ => process::environment(process)?,
        };
        let (connected, console) = process::connected(stdio, process, self.shared.devpts.as_ref())?;
        // What the host withholds is the same as for the init, and has been told.
        let mut effective = Effective::default();
        let users = self.shared.users.as_ref();
        let users = users.map(|(namespace, mapping)| Ok(Users { namespace: copy(namespace)?, mapping, renewed: 0 }));
        let seccomp = self.shared.seccomp.clone();
        let Planned { deeds, program, name, label } =
            process::plan(process, environment, seccomp, connected, users.transpose()?, &mut effective)?;

        let mut all = vec![
            ProcessDeed::Begin,
            ProcessDeed::EnterCgroups { tasks: self.cgroup.open_tasks()? },
            ProcessDeed::EnterAll { process: copy(&self.pidfd)?, kinds: all_but_pid() },
        ]
        .into_iter()
        .map(Deed::Process)
        .collect::<Vec<_>>();
        all.extend(deeds);
        let birth = Birth { deeds: all, program, name, label, flags: 0, pid: Some(&self.pidfd), cgroup: &self.cgroup };
        match birth.of_exec() {
            Ok((pid, pidfd, report)) => Ok(Execed { pid, pidfd, console, report }),
            Err(_) if self.has_ended() => Err(Error::NotRunning),
            Err(error) => Err(error),
        }
    }

    /// The init is a zombie or gone: its namespaces cannot be entered any more.
    fn has_ended(&self) -> bool {
        let mut ended = [PollFd::new(&self.pidfd, PollFlags::IN)];
        rustix::event::poll(&mut ended, Some(&rustix::event::Timespec::default())).is_ok_and(|ready| ready > 0)
    }
}

fn all_but_pid() -> ThreadNameSpaceType {
    ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::CONTROL_GROUP
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::NETWORK
}
