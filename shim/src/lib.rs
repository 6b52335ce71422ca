//! One container's process: the OCI runtime (`runtime`, `cgroup`) and what the binaries need around it.
//! All `unsafe` of the crate is in `sys`. No images, no CNI, no pods, no gRPC.

pub mod cgroup;
pub mod failpoint;
pub mod runtime;
mod sys;
