//! Shims as the daemon sees them: started by containerd's contract, spoken to over ttrpc.
//! The only room that names `containerd_shim_protos`.

mod attached;
mod client;
mod exec;
mod features;
mod fifo;
pub(crate) mod foreign;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod handler;
mod held;
mod remains;
mod sealed;
mod spawn;

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

pub(crate) use attached::{Attached, Detached};
pub(crate) use client::{Exit, Rootfs, Shim, State, Streams};
pub(crate) use exec::{end_left as end_left_execs, run as exec_sync};
pub(crate) use features::Known as KnownFeatures;
pub(crate) use fifo::LABEL_FILE;
pub use handler::Runtime;
pub(crate) use handler::{Foreign, Handlers};
pub(crate) use held::{Held, Terminal};
pub(crate) use remains::end as end_remains;
pub(crate) use sealed::Sealed;
pub(crate) use spawn::{connect_bundle, start};

/// Shims and the binaries that come with berth.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Directory of the shim and the namespace keeper; empty: beside this binary, then `/usr/libexec/berth`.
    pub dir: PathBuf,
    /// Longest wait for one answer of a shim, in seconds.
    pub timeout_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { dir: PathBuf::new(), timeout_s: 30 }
    }
}

/// Name of berth's shim binary, by containerd's rule for the runtime `io.containerd.berth.v1`.
pub(crate) const SHIM: &str = "containerd-shim-berth-v1";
/// Name of the namespace keeper's binary.
pub(crate) const KEEPER: &str = "berth-pod-ns";
/// Name of the binary that sandbox containers run.
pub(crate) const PAUSE: &str = "berth-pause";
/// Where packages put the binaries that nobody calls by hand.
const LIBEXEC: &str = "/usr/libexec/berth";

impl Config {
    /// Longest wait for one answer.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_s.max(1))
    }

    /// Path of one of berth's helper binaries.
    ///
    /// # Errors
    /// The places where it is not.
    pub(crate) fn binary(&self, name: &str) -> Result<PathBuf, String> {
        let places = self.places();
        let found = places.iter().map(|dir| dir.join(name)).find(|path| path.is_file());
        found.ok_or_else(|| {
            let places: Vec<_> = places.iter().map(|p| p.display().to_string()).collect();
            format!("{name} is not in {}: install it there or set [shim] dir", places.join(" or "))
        })
    }

    /// Directories of the bundled binaries, in order.
    pub(crate) fn places(&self) -> Vec<PathBuf> {
        if !self.dir.as_os_str().is_empty() {
            return vec![self.dir.clone()];
        }
        let own = std::env::current_exe().ok().and_then(|exe| exe.parent().map(PathBuf::from));
        own.into_iter().chain([PathBuf::from(LIBEXEC)]).collect()
    }
}

/// What went wrong between the daemon and a shim.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    NoBinary(String),
    #[error("run the shim {path}")]
    Spawn { path: PathBuf, source: std::io::Error },
    #[error("the shim's start: {0}")]
    Start(String),
    #[error("what the shim can do on this kernel: {0}")]
    Features(String),
    #[error("connect to the shim at {address}")]
    Connect { address: String, source: std::io::Error },
    #[error("the shim did not answer {method} within {seconds} s")]
    Deadline { method: &'static str, seconds: u64 },
    #[error("the shim is gone ({method}: {cause})")]
    Gone { method: &'static str, cause: String },
    #[error("{message}")]
    Refused { code: ttrpc::Code, message: String },
    #[error("{deed}")]
    Io { deed: String, source: std::io::Error },
    #[error("the exec did not end within {0} s and was killed")]
    ExecTimeout(u64),
    #[error("the client went away; the exec was killed")]
    ExecAbandoned,
    #[error("berthd is ending, and the container runs on")]
    Ending,
}

impl Error {
    /// The shim says that it knows no such process: for Kill and Delete that is a success.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { code: ttrpc::Code::NOT_FOUND, .. })
    }

    /// Nobody listens where a shim would.
    pub(crate) fn says_nobody(&self) -> bool {
        use std::io::ErrorKind::{ConnectionRefused, NotFound};
        match self {
            Self::Connect { source, .. } => matches!(source.kind(), NotFound | ConnectionRefused),
            // An address that is none.
            Self::Start(_) => true,
            _ => false,
        }
    }

    /// The shim is there and says nothing.
    pub(crate) fn is_silence(&self) -> bool {
        matches!(self, Self::Deadline { .. })
    }
}
