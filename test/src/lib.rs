//! Drives berth's binaries on a real kernel, from outside: it knows their command lines, their sockets and `berth-api`,
//! and links to no crate under test. Everything runs as root in namespaces of its own; nothing here is unit-testable
//! without them.
//!
//! A test that cannot be set up fails: the functions here panic with what they tried, and never skip.
#![forbid(unsafe_code)]

pub mod cli;
pub mod cri;
pub mod enclosure;
pub mod leaks;
pub mod node;
pub mod wait;

pub use cri::{Container, Pod, container, pod};
pub use node::Node;
pub use wait::until;
