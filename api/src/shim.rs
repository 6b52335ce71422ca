//! The shim's private ttrpc service (package `berth.shim.v1`) and the files it leaves in a container's bundle.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

mod generated {
    #![allow(missing_docs, unreachable_pub, clippy::all)]
    include!(concat!(env!("OUT_DIR"), "/mod.rs"));
}

pub use generated::shim as messages;
pub use generated::shim_ttrpc as service;

/// Number of the format of the JSON files that a shim leaves in its bundle, as `version` in each; none is 0, of before
/// there were numbers. A shim outlives the daemon that started it: a daemon reads this number and those before it.
pub const FILE_FORMAT: u32 = 1;

/// Name of the ttrpc socket in the bundle when the daemon starts the shim with `-in-bundle`.
pub const SOCKET_FILE: &str = "task.sock";

/// Name of the exit record in the bundle; written whole (temporary file and rename) before any `Wait` is answered.
pub const EXIT_FILE: &str = "exit.json";

/// Name of the file that holds what the shim did not give the container because the host withholds it.
pub const EFFECTIVE_FILE: &str = "effective.json";

/// URI scheme of Task's stdout and stderr when the shim writes the container's log itself:
/// `cri+file:///PATH?stream=stdout` or `stderr`, PATH percent-encoded.
pub const LOG_SCHEME: &str = "cri+file";

/// URI scheme of an exec's stdout and stderr that names a FIFO and ties the exec to its reader:
/// `berth+fifo:///PATH`. When every reader is gone the exec's session is killed. A plain path is a FIFO without the tie.
pub const TIED_FIFO_SCHEME: &str = "berth+fifo";

/// URI of Task's stdin for a container whose input is what attached clients type: `berth+attach://`. With `?once=true` the
/// first client's end is its end. As stdout or stderr: there is no log, only attached clients.
pub const ATTACH_SCHEME: &str = "berth+attach";

/// OCI annotation with the process environment as base64 of NUL-terminated `KEY=VALUE` strings. It replaces
/// `process.env` and is set only when a value is not UTF-8, which JSON cannot carry.
pub const ENV_ANNOTATION: &str = "dev.berth.env";

/// Annotation of Task's `Update`: the new `oom_score_adj` of every process in the container, decimal. The OCI resources
/// that `Update` carries have no field for it.
pub const OOM_SCORE_ADJ_ANNOTATION: &str = "dev.berth.oom-score-adj";

/// In the bundle of a container that another runtime's shim runs: where its logger writes, as `LoggerConfig`.
pub const LOGGER_FILE: &str = "log.json";

/// In the same bundle: the logger's ttrpc socket, which serves `ReopenLog`.
pub const LOGGER_SOCKET_FILE: &str = "logger.sock";

/// What a logger is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggerConfig {
    /// The container's log, absolute.
    pub path: PathBuf,
}

/// How the container's init ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Exit code, or 128 + signal.
    pub status: u32,
    /// Wall clock, nanoseconds since the epoch.
    pub exited_at_ns: i64,
    /// The kernel killed a process of the container for its memory limit.
    pub oom_killed: bool,
    /// Its init lived when somebody asked for its SIGKILL, and the kernel has killed nothing for memory after that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub killed_by_request: bool,
    /// Whose limit that was; none when the host itself ran out of memory, or the shim is of before it told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_limit: Option<OomLimit>,
    /// When the init was let go, as `exited_at_ns`; none if it never was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at_ns: Option<i64>,
}

/// A memory limit that was reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OomLimit {
    /// The cgroup that has it, below its hierarchy's root.
    pub cgroup: PathBuf,
    /// It is the container's own and not one above it.
    pub own: bool,
    /// The limit; of memory, or on version 1 perhaps of memory and swap together.
    pub bytes: u64,
}

/// What the container really got where the host withholds something from everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effective {
    /// `oom_score_adj` of the init, when it differs from what was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// Capabilities asked for and not held by the shim (`CAP_…`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub withheld_capabilities: Vec<String>,
    /// Resource limits that were lowered to the host's: `RLIMIT_…` with soft and hard value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lowered_rlimits: Vec<(String, u64, u64)>,
}

/// What this kernel lets the shim do, tried and not assumed: the answer of `containerd-shim-berth-v1 features`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Features {
    /// A mount can be made read-only with all that is mounted below it.
    pub recursive_read_only: bool,
    /// A container can have a user namespace of its own, with its root file system's owners mapped.
    pub user_namespaces: bool,
    /// Why not.
    pub no_user_namespaces: String,
}
