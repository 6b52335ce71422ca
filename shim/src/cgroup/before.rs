//! The limits as they were before an update, so that one that fails half-way leaves nothing changed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;

use super::files;
use crate::runtime::Error;

/// Files that hold one value each; io limits, which hold one a line for each device, are put back line by line.
const V1: &[(&str, &[&str])] = &[
    (
        "memory",
        &["memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.soft_limit_in_bytes", "memory.swappiness"],
    ),
    (
        "cpu",
        &[
            "cpu.shares",
            "cpu.cfs_period_us",
            "cpu.cfs_quota_us",
            "cpu.cfs_burst_us",
            "cpu.idle",
            "cpu.rt_period_us",
            "cpu.rt_runtime_us",
        ],
    ),
    ("cpuset", &["cpuset.cpus", "cpuset.mems"]),
    ("pids", &["pids.max"]),
    ("blkio", &["blkio.weight", "blkio.bfq.weight"]),
];
const V2: &[&str] = &[
    "memory.max",
    "memory.swap.max",
    "memory.low",
    "cpu.weight",
    "cpu.max",
    "cpu.max.burst",
    "cpu.idle",
    "cpuset.cpus",
    "cpuset.mems",
    "pids.max",
    "io.weight",
    "io.bfq.weight",
    "io.max",
];

/// Values may depend on each other (memory and memory with swap, quota and period): the right order is not looked for but
/// found, in at most this many rounds.
const ROUNDS: usize = 3;

/// What the files said.
#[derive(Debug)]
pub(super) struct Before {
    values: Vec<(PathBuf, String, String)>,
}

impl Before {
    /// Reads every limit that `resources` may change. `v1` finds a controller's directory, `unified` is the v2 one.
    pub(super) fn read(
        resources: &LinuxResources,
        v1: impl Fn(&str) -> Option<PathBuf>,
        unified: Option<&Path>,
    ) -> Before {
        let mut names: BTreeSet<(PathBuf, String)> = BTreeSet::new();
        for (controller, files) in V1 {
            if let Some(directory) = v1(controller) {
                names.extend(files.iter().map(|file| (directory.clone(), (*file).to_owned())));
            }
        }
        let pages = || resources.hugepage_limits().iter().flatten().map(|limit| limit.page_size().as_str());
        if let Some(directory) = v1("hugetlb") {
            names.extend(pages().map(|size| (directory.clone(), format!("hugetlb.{size}.limit_in_bytes"))));
        }
        if let Some(directory) = unified {
            names.extend(V2.iter().map(|file| (directory.to_owned(), (*file).to_owned())));
            names.extend(pages().map(|size| (directory.to_owned(), format!("hugetlb.{size}.max"))));
            names.extend(resources.unified().iter().flatten().map(|(file, _)| (directory.to_owned(), file.clone())));
        }
        // One that is not there, or cannot be read, is none that could be put back.
        let read = |(directory, file): (PathBuf, String)| {
            let value = files::read_small(&directory.join(&file)).ok()?;
            Some((directory, file, value))
        };
        Before { values: names.into_iter().filter_map(read).collect() }
    }

    /// Writes back what has changed.
    ///
    /// # Errors
    /// The first value that the kernel does not take any more.
    pub(super) fn restore(&self) -> Result<(), Error> {
        let mut left = Ok(());
        for _ in 0..ROUNDS {
            left = Ok(());
            for (directory, file, value) in &self.values {
                if files::read_small(&directory.join(file)).is_ok_and(|now| now == *value) {
                    continue;
                }
                for line in value.lines() {
                    let written = files::write(directory, file, line);
                    left = left.and(written);
                }
            }
            if left.is_ok() {
                break;
            }
        }
        left
    }
}
