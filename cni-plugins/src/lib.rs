//! berth's network plugins, one short life per call: environment and stdin in, one JSON object out, and gone.
//! Knows pods only by the call; keeps nothing but leases (`ipam`) and what is in the kernel. Start at `skel`.

#[macro_use]
mod failpoint;

mod config;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod ipam;
mod link;
mod nat;
mod netns;
mod sysctl;

pub mod bridge;
pub mod host_local;
pub mod loopback;
pub mod skel;
