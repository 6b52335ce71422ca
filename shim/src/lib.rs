//! One container's process: the OCI runtime (`runtime`, `cgroup`), the namespace keeper, and what the binaries need around them.
//! All `unsafe` of the crate is in `sys`. No images, no CNI, no pods, no gRPC.

pub mod cgroup;
pub mod failpoint;
pub mod pod_namespaces;
pub mod runtime;
mod sys;
