//! What containers and pods use: read from the kernel when asked, never by way of a pod's task.
//!
//! `cgroup` reads one cgroup on whichever hierarchies there are; `rate` turns a sum of processor time into a rate;
//! `sampler` keeps the samples that this needs. How an answer looks on the wire is in `cri::stats`.

mod cgroup;
mod pressure;
mod rate;
mod sampler;

pub(crate) use cgroup::{Cpu, Memory, Swap, Usage};
pub(crate) use pressure::{Pressure, Stall};
pub(crate) use sampler::Sampler;
