//! What containers and pods use: read from the kernel when asked, never by way of a pod's task.
//!
//! `measure` goes from what pods published to numbers: `cgroup` reads one cgroup on whichever hierarchies there are, by
//! way of `directory`, `network` a namespace's interfaces, `detail` and `block` what only the metrics tell; `rate` turns
//! a sum of processor time into a rate, for which `sampler` keeps samples.
//! How an answer looks on the wire is in `cri::stats` and its neighbours.

mod block;
mod cgroup;
mod detail;
mod directory;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod measure;
mod network;
mod pressure;
mod rate;
mod sampler;

pub(crate) use block::{Filesystem, device_name};
pub(crate) use cgroup::{Cpu, Memory, Swap, Usage};
pub(crate) use detail::{Detail, MemoryDetail};
pub(crate) use measure::{Container, Pod, Stats};
pub(crate) use network::{Interface, Network};
pub(crate) use pressure::{Pressure, Stall};
