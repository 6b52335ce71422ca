//! berthd, the daemon: CRI v1 over pods that a task each owns, shims that outlive it, and network plugins.
//!
//! Mounts nothing (but unpins in `netns`), speaks no netlink, never sees a byte of a container's log.
// The names of failpoints lie in a linker section, which the lint counts as unsafe: only a test build has them.
#![cfg_attr(not(feature = "failpoints"), forbid(unsafe_code))]
#![cfg_attr(feature = "failpoints", deny(unsafe_code))]

pub mod check;
pub mod config;
mod cri;
mod errands;
#[macro_use]
pub mod failpoint;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod host;
mod ids;
mod inflight;
mod ledger;
pub mod metrics;
mod netns;
pub mod network;
mod pod;
mod pods;
pub mod sandbox;
pub mod serve;
mod spec;
mod stats;
pub mod streaming;
pub mod task;
