//! One container's process: the task service over ttrpc (`service`, `container`), the container's log and streams
//! (`io`), the OCI runtime itself (`runtime`, `cgroup`), the namespace keeper, and what a sandbox container runs (`pause`).
//! `command` is the shim's way in. All `unsafe` of the crate is in `sys`. No images, no CNI, no pods, no gRPC.

pub mod cgroup;
pub mod command;
mod container;
mod error;
mod events;
pub mod failpoint;
mod features;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod io;
mod lifecycle;
mod logger;
mod oom;
pub mod pause;
pub mod pod_first;
pub mod pod_namespaces;
mod process;
mod reaper;
mod record;
pub mod runtime;
mod sealed;
mod serve;
mod service;
mod session;
mod sys;

/// Says something on stderr, which is `shim.log` in the bundle. Unlike `eprintln!` it survives a full disk.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = std::io::stderr().write_all(format!("{}\n", format_args!($($text)*)).as_bytes());
    }};
}
pub(crate) use say;
