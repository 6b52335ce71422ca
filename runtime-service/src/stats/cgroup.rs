//! What one cgroup says of its use, on pure version 1, hybrid and pure version 2 hosts alike.
//!
//! Read here and not by cgroups-rs, which opens eleven files for memory and eight for processor time where five tell
//! what is asked, on the lists that a kubelet asks for every ten seconds; it also knows no hybrid host, and answers zero
//! for a file that it cannot read.

use std::time::SystemTime;

use super::directory::{Directory, Version};
use super::pressure::Pressure;
use crate::host::Cgroups;

/// From here on a version 1 limit in bytes means none: the kernel says the largest number of pages that it can count.
pub(super) const UNLIMITED: u64 = 1 << 62;

/// One cgroup at one moment, everything below it included.
#[derive(Clone, Debug)]
pub(crate) struct Usage {
    pub(crate) at: SystemTime,
    pub(crate) cpu: Option<Cpu>,
    pub(crate) memory: Option<Memory>,
    /// `None` where the kernel does not account for swap.
    pub(crate) swap: Option<Swap>,
    pub(crate) cpu_pressure: Option<Pressure>,
    pub(crate) memory_pressure: Option<Pressure>,
    pub(crate) io_pressure: Option<Pressure>,
}

/// Processor time so far, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cpu {
    pub(crate) used_ns: u64,
}

/// Memory, in bytes but for the counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    /// With page cache.
    pub(crate) usage: u64,
    /// `None`: no limit.
    pub(crate) limit: Option<u64>,
    /// File pages that nobody used lately: what can be reclaimed at once.
    pub(crate) inactive_file: u64,
    /// Anonymous memory.
    pub(crate) rss: u64,
    pub(crate) page_faults: u64,
    pub(crate) major_page_faults: u64,
}

/// Swap, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Swap {
    pub(crate) usage: u64,
    /// `None`: no limit.
    pub(crate) limit: Option<u64>,
}

impl Usage {
    /// Of the cgroup `path`; `None` when there is none. Reads up to nine small files: for a thread that may block.
    pub(crate) fn read(cgroups: &Cgroups, path: &str) -> Option<Self> {
        let unified = cgroups.v2_directory(path).and_then(|directory| Directory::open(&directory));
        let pressure = |file| Pressure::parse(&unified.as_ref()?.read(file)?);
        let (memory, swap) = memory(cgroups, path).unzip();
        let usage = Self {
            at: SystemTime::now(),
            cpu: cpu_time(cgroups, path).map(|used_ns| Cpu { used_ns }),
            memory,
            swap: swap.flatten(),
            cpu_pressure: pressure("cpu.pressure"),
            memory_pressure: pressure("memory.pressure"),
            io_pressure: pressure("io.pressure"),
        };
        (usage.cpu.is_some() || usage.memory.is_some()).then_some(usage)
    }
}

impl Memory {
    /// What would be missed if it were taken. Eviction goes by it. Source: cAdvisor and the kubelet.
    pub(crate) fn working_set(&self) -> u64 {
        self.usage.saturating_sub(self.inactive_file)
    }

    /// What is left to the limit.
    pub(crate) fn available(&self) -> Option<u64> {
        Some(self.limit?.saturating_sub(self.working_set()))
    }
}

/// Processor time, in nanoseconds.
pub(super) fn cpu_time(cgroups: &Cgroups, path: &str) -> Option<u64> {
    match Directory::of(cgroups, "cpuacct", path)? {
        (directory, Version::One) => directory.number("cpuacct.usage"),
        // Every cgroup of the version 2 tree has this, with the controller or without.
        (directory, Version::Two) => {
            keyed(&directory.read("cpu.stat")?, "usage_usec").map(|us| us.saturating_mul(1000))
        }
    }
}

fn memory(cgroups: &Cgroups, path: &str) -> Option<(Memory, Option<Swap>)> {
    match Directory::of(cgroups, "memory", path)? {
        (directory, Version::One) => v1_memory(&directory),
        (directory, Version::Two) => v2_memory(&directory),
    }
}

fn v1_memory(directory: &Directory) -> Option<(Memory, Option<Swap>)> {
    let stat = directory.read("memory.stat")?;
    let counted = |key| keyed(&stat, key).unwrap_or(0);
    let limited = |file| directory.number(file).filter(|limit| *limit < UNLIMITED);
    let memory = Memory {
        usage: directory.number("memory.usage_in_bytes")?,
        limit: limited("memory.limit_in_bytes"),
        inactive_file: counted("total_inactive_file"),
        rss: counted("total_rss"),
        page_faults: counted("total_pgfault"),
        major_page_faults: counted("total_pgmajfault"),
    };
    // Version 1 limits memory and swap together; without the count swap is not accounted for.
    let swap = keyed(&stat, "total_swap").map(|usage| Swap {
        usage,
        limit: limited("memory.memsw.limit_in_bytes").map(|both| both.saturating_sub(memory.limit.unwrap_or(both))),
    });
    Some((memory, swap))
}

fn v2_memory(directory: &Directory) -> Option<(Memory, Option<Swap>)> {
    let stat = directory.read("memory.stat")?;
    let counted = |key| keyed(&stat, key).unwrap_or(0);
    let memory = Memory {
        usage: directory.number("memory.current")?,
        limit: directory.number("memory.max"),
        inactive_file: counted("inactive_file"),
        rss: counted("anon"),
        page_faults: counted("pgfault"),
        major_page_faults: counted("pgmajfault"),
    };
    let used = directory.number("memory.swap.current");
    let swap = used.map(|usage| Swap { usage, limit: directory.number("memory.swap.max") });
    Some((memory, swap))
}

/// The value behind a key that begins a line.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    let value = |line: &str| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn write(dir: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(dir).expect("make a directory");
        for (name, text) in files {
            fs::write(dir.join(name), text).expect("write");
        }
    }

    #[test]
    fn version_1_counts_what_is_below_and_takes_its_highest_number_for_no_limit() {
        let root = tempfile::tempdir().expect("a directory");
        let (memory, cpu) = (root.path().join("memory"), root.path().join("cpu,cpuacct"));
        let cgroups = Cgroups::of_v1(vec![memory.clone(), cpu.clone()]);
        assert!(Usage::read(&cgroups, "/pod/c").is_none(), "no such cgroup");
        write(&cpu.join("pod/c"), &[("cpuacct.usage", "1500\n")]);
        let stat =
            "rss 1\ntotal_rss 4096\ntotal_inactive_file 1000\ntotal_pgfault 7\ntotal_pgmajfault 2\ntotal_swap 11\n";
        write(
            &memory.join("pod/c"),
            &[
                ("memory.usage_in_bytes", "10000\n"),
                ("memory.limit_in_bytes", "9223372036854771712\n"),
                ("memory.memsw.limit_in_bytes", "9223372036854771712\n"),
                ("memory.stat", stat),
            ],
        );
        let usage = Usage::read(&cgroups, "/pod/c").expect("a cgroup");
        assert_eq!(usage.cpu, Some(Cpu { used_ns: 1500 }));
        let found = usage.memory.expect("memory");
        assert_eq!((found.working_set(), found.rss, found.page_faults, found.major_page_faults), (9000, 4096, 7, 2));
        assert_eq!((found.limit, found.available()), (None, None));
        assert_eq!(usage.swap, Some(Swap { usage: 11, limit: None }));
        assert_eq!(usage.cpu_pressure, None);

        write(
            &memory.join("pod/c"),
            &[("memory.limit_in_bytes", "20000\n"), ("memory.memsw.limit_in_bytes", "50000\n")],
        );
        let usage = Usage::read(&cgroups, "/pod/c").expect("a cgroup");
        assert_eq!(usage.memory.expect("memory").available(), Some(11_000));
        assert_eq!(usage.swap.expect("swap").limit, Some(30_000));
    }

    #[test]
    fn version_2_counts_in_its_own_words() {
        let root = tempfile::tempdir().expect("a directory");
        let cgroups = Cgroups::of_v2(root.path().to_owned());
        write(
            &root.path().join("pod/c"),
            &[
                ("cpu.stat", "usage_usec 3\nuser_usec 2\nsystem_usec 1\nnr_periods 0\n"),
                ("cpu.pressure", "some avg10=1.00 avg60=0.00 avg300=0.00 total=5\n"),
                ("memory.current", "10000\n"),
                ("memory.max", "max\n"),
                ("memory.stat", "anon 4096\ninactive_file 12000\npgfault 7\npgmajfault 2\n"),
                ("memory.swap.current", "0\n"),
                ("memory.swap.max", "512\n"),
            ],
        );
        let usage = Usage::read(&cgroups, "/pod/c").expect("a cgroup");
        assert_eq!(usage.cpu, Some(Cpu { used_ns: 3000 }));
        let found = usage.memory.expect("memory");
        assert_eq!((found.working_set(), found.rss, found.page_faults, found.major_page_faults), (0, 4096, 7, 2));
        assert_eq!(found.limit, None);
        assert_eq!(usage.swap, Some(Swap { usage: 0, limit: Some(512) }));
        assert_eq!(usage.cpu_pressure.map(|p| p.some.total_us), Some(5));
        write(&root.path().join("pod/c"), &[("memory.max", "20000\n")]);
        let usage = Usage::read(&cgroups, "/pod/c").expect("a cgroup");
        assert_eq!(usage.memory.and_then(|m| m.available()), Some(20_000));
    }
}
