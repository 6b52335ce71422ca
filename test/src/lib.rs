//! Drives berth's binaries on a real kernel, from outside: it knows their command lines, their sockets and `berth-api`,
//! and links to no crate under test. Everything runs as root in namespaces of its own; nothing here is unit-testable
//! without them.
//!
//! A test that cannot be set up fails: the functions here panic with what they tried, and never skip.
#![forbid(unsafe_code)]

pub mod bench;
pub mod cli;
pub mod counting;
pub mod cri;
pub mod enclosure;
pub mod hanging;
pub mod kernel;
pub mod leaks;
pub mod node;
pub mod spdy;
pub mod stream;
pub mod wait;

pub use cri::{Container, Pod, container, pod};
pub use node::Node;
pub use wait::until;

/// Whether a kernel feature of hack/absences' list is there. When it is not, the test that asks is left out, and said to
/// be: hack/test fails for one whose feature is there after all.
pub fn has(feature: &str, test: &str) -> bool {
    let output = std::process::Command::new(enclosure::script("absences")).output().expect("run hack/absences");
    let absences = enclosure::said(&output, "hack/absences");
    let there = !absences.lines().any(|line| line.split(':').next() == Some(feature));
    if let (false, Some(path)) = (there, std::env::var_os("BERTH_SKIPS")) {
        use std::io::Write;
        let file = std::fs::File::options().append(true).create(true).open(path);
        writeln!(file.expect("open $BERTH_SKIPS"), "{feature}\t{test}").expect("write to $BERTH_SKIPS");
    }
    there
}
