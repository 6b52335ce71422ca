//! The OCI runtime: a container from its bundle, parked before exec, released, exec'd into.
//! Synchronous, for the shim's main thread; nothing here waits for longer than the kernel needs.

mod capabilities;
mod create;
mod error;
mod exec;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
pub(crate) mod idmap;
mod mount_deeds;
mod mounts;
mod namespaces;
mod options;
mod plan;
mod process;
mod process_deeds;
mod report;
mod resolve;
mod rootfs;
mod seccomp;
mod selinux;
mod spec;
mod sysctls;

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::Path;

use berth_api::shim::Effective;

pub(crate) use create::cgroup_of;
pub use create::create;
pub use error::{Error, Kind};
pub(crate) use process::INHERITED_OOM_SCORE_ADJ;
pub use report::ExecReport;
pub(crate) use sysctls::{Owner as SysctlOwner, path_and_owner as sysctl_path};

use crate::cgroup::Cgroup;

/// One of the rootfs mounts of Task's `Create`, as data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountSpec {
    /// `overlay`, `bind` or another file system type.
    pub kind: String,
    /// Device or path; `overlay` for overlay.
    pub source: String,
    /// Mount options, one each. For overlay `lowerdir=A:B:C` (a colon in a path as `\:`), `upperdir=`, `workdir=`, …
    pub options: Vec<String>,
}

/// What becomes file descriptors 0, 1 and 2 of a process.
#[derive(Debug)]
pub enum Stdio {
    /// These three; anything that can be read or written. A pipe is given to the process's user.
    Pipes { stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd },
    /// A pty from the container's own devpts, which also becomes the controlling terminal; its master comes back.
    Terminal,
}

/// What `create` makes a container from.
#[derive(Debug)]
pub struct CreateRequest<'a> {
    /// The container's id, for messages and for its cgroup when the spec names none.
    pub id: &'a str,
    /// Directory with `config.json`, and where a relative `root.path` begins.
    pub bundle: &'a Path,
    /// At most one mount; none means that `root.path` holds the files already.
    pub rootfs: Vec<MountSpec>,
    /// The init's.
    pub stdio: Stdio,
}

/// A container whose init is complete but for exec.
#[derive(Debug)]
pub struct Parked {
    /// The container, to keep for as long as it is known.
    pub container: Container,
    /// The pty's master for `Stdio::Terminal`.
    pub console: Option<OwnedFd>,
    /// Lets the init go. Dropped (or the shim dead), the init exits by itself without having run anything.
    pub gate: Gate,
}

/// The init's permission to exec.
#[derive(Debug)]
pub struct Gate {
    pub(crate) write: OwnedFd,
    pub(crate) report: ExecReport,
}

impl Gate {
    /// Lets the init go to exec. Wait until the report is readable, then call its `outcome`.
    ///
    /// # Errors
    /// `Error::NotRunning` if the init is dead already.
    pub fn open(self) -> Result<ExecReport, Error> {
        match rustix::io::write(&self.write, b"g") {
            Ok(_) => Ok(self.report),
            Err(_) => Err(Error::NotRunning),
        }
    }
}

/// What is needed to exec into a container, to kill, inspect and clean it up.
#[derive(Debug)]
pub struct Container {
    /// The init, as the shim's pid namespace numbers it. A child of the shim: the shim reaps it.
    pub pid: i32,
    /// The init; readable when it has ended.
    pub pidfd: OwnedFd,
    /// Its cgroups.
    pub cgroup: Cgroup,
    /// What the host withheld, for `effective.json` and the daemon.
    pub effective: Effective,
    pub(crate) shared: Shared,
}

/// What execs need of the container's spec.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The mount at /dev/pts, wherever the container may have moved it.
    devpts: Option<OwnedFd>,
    seccomp: Option<plan::Seccomp>,
    environment: Vec<CString>,
    /// The user namespace, if it is not the host's, and its ids.
    users: Option<(OwnedFd, idmap::Mapping)>,
}

/// A process started by `Container::exec`, on its way to exec.
#[derive(Debug)]
pub struct Execed {
    /// As the shim's pid namespace numbers it. A child of the shim: the shim reaps it.
    pub pid: i32,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
    /// The pty's master for `Stdio::Terminal`.
    pub console: Option<OwnedFd>,
    /// Wait until it is readable, then call its `outcome`: set-up errors and exec's come this way.
    pub report: ExecReport,
}
