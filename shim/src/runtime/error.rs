//! Why a container could not be made, entered or changed: the step, the object, the cause.

use std::io;
use std::path::PathBuf;

/// What went wrong. `Display` names the step and the object, `source` the cause; `message` joins the two.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `config.json` cannot be read.
    #[error("read {path}")]
    ReadSpec { path: PathBuf, source: io::Error },
    /// `config.json` is not an OCI runtime spec.
    #[error("parse {path}")]
    ParseSpec { path: PathBuf, source: serde_json::Error },
    /// A field of the spec or of the request that is wrong or not supported, with its path.
    #[error("{field}: {reason}")]
    Refused { field: String, reason: String },
    /// A step of the set-up, e.g. `mount "/data" at "/mnt/x"`.
    #[error("{step}")]
    Step { step: String, source: io::Error },
    /// A limit that the kernel does not take.
    #[error("write {value:?} to {file:?}")]
    Limit { file: PathBuf, value: String, source: io::Error },
    /// The program could not be executed; `path` is as the process sees it.
    #[error("exec {path:?}")]
    Exec { path: String, source: io::Error },
    /// The set-up ended without a word: killed from outside, or by a memory limit too small for it.
    #[error("the init died during set-up ({0})")]
    Died(String),
    /// The container's init has ended.
    #[error("container is not running")]
    NotRunning,
}

/// What kind of error it is, for the code of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request or its spec is wrong.
    InvalidArgument,
    /// The program or its interpreter does not exist.
    NotFound,
    /// The program may not be executed by its user.
    PermissionDenied,
    /// The container has ended.
    NotRunning,
    /// What the container holds is in the way.
    Busy,
    /// The host could not do it.
    Internal,
}

impl Error {
    pub(crate) fn refused(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Refused { field: field.into(), reason: reason.into() }
    }

    pub(crate) fn step(step: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Error::Step { step: step.into(), source: source.into() }
    }

    /// For the answer's code.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Refused { .. } | Error::ParseSpec { .. } => Kind::InvalidArgument,
            Error::NotRunning => Kind::NotRunning,
            Error::Exec { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => Kind::NotFound,
                io::ErrorKind::PermissionDenied => Kind::PermissionDenied,
                _ => Kind::Internal,
            },
            Error::Limit { source, .. } => match source.raw_os_error() {
                Some(libc::EBUSY) => Kind::Busy,
                // What the kernel's cgroup files answer to a value that is malformed or that the host or the parent does
                // not have: kernel/cgroup/cpuset.c, mm/hugetlb_cgroup.c, kernel/sched/core.c.
                Some(libc::EINVAL | libc::ERANGE | libc::EACCES | libc::ENODEV | libc::ENOSPC | libc::ENOENT) => {
                    Kind::InvalidArgument
                }
                _ => Kind::Internal,
            },
            Error::ReadSpec { .. } | Error::Step { .. } | Error::Died(_) => Kind::Internal,
        }
    }

    /// The error and its cause in one line, e.g. `exec "/bin/x": no such file or directory`.
    pub fn message(&self) -> String {
        use std::error::Error as _;
        match self.source() {
            Some(cause) => format!("{self}: {cause}"),
            None => self.to_string(),
        }
    }
}
