//! What else a cgroup and the processes in it say of themselves, for the metrics: more files, and a look at every
//! process. What the kernel at hand does not count is absent.

use std::fs;

use super::block::{self, Devices};
use super::cgroup::{UNLIMITED, keyed};
use super::directory::{Directory, Version};
use crate::host::Cgroups;

/// One cgroup, with its processes, at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Detail {
    pub(crate) cpu: Option<CpuModes>,
    pub(crate) throttling: Option<Throttling>,
    pub(crate) limits: Limits,
    /// Threads, as the kernel counts against the limit.
    pub(crate) threads: Option<u64>,
    pub(crate) huge_pages: Vec<HugePages>,
    pub(crate) devices: Devices,
    pub(crate) memory: Option<MemoryDetail>,
    /// `None` when the kernel does not tell.
    pub(crate) processes: Option<Processes>,
}

/// Where processor time was spent, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CpuModes {
    pub(crate) user_ns: u64,
    pub(crate) system_ns: u64,
}

/// How the quota of processor time was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Throttling {
    pub(crate) periods: u64,
    pub(crate) throttled_periods: u64,
    pub(crate) throttled_ns: u64,
}

/// What is allowed; `None` where there is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// In microseconds.
    pub(crate) cpu_period: Option<u64>,
    /// In microseconds a period.
    pub(crate) cpu_quota: Option<u64>,
    /// Only version 1 counts in shares.
    pub(crate) cpu_shares: Option<u64>,
    /// In bytes: what is left to it when others want memory.
    pub(crate) memory_reservation: Option<u64>,
    pub(crate) threads: Option<u64>,
}

/// More of memory than its use, in bytes but for the counts; `None` where the kernel does not keep it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryDetail {
    /// Page cache.
    pub(crate) cache: u64,
    /// Page cache that is mapped.
    pub(crate) mapped_file: u64,
    pub(crate) kernel: Option<u64>,
    pub(crate) max_usage: Option<u64>,
    /// How often the limit was met.
    pub(crate) limit_met: u64,
    pub(crate) oom_kills: u64,
    /// Faults of the cgroup without those below it.
    pub(crate) own_page_faults: u64,
    pub(crate) own_major_page_faults: u64,
}

/// Huge pages of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HugePages {
    /// As cgroups name it: `2MB`.
    pub(crate) size: String,
    /// In bytes.
    pub(crate) usage: u64,
    /// In bytes; version 2 does not keep it.
    pub(crate) max_usage: Option<u64>,
}

/// What the processes hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Processes {
    pub(crate) count: u64,
    /// Open descriptors.
    pub(crate) descriptors: u64,
    /// Those of them that are sockets.
    pub(crate) sockets: u64,
}

impl Detail {
    /// Of the cgroup `path`. Reads much: for a thread that may block.
    pub(super) fn read(cgroups: &Cgroups, path: &str) -> Self {
        let pids = Directory::of(cgroups, "pids", path);
        let pid_file = |file: &str| pids.as_ref()?.0.number(file);
        Self {
            cpu: cpu_modes(cgroups, path),
            throttling: throttling(cgroups, path),
            limits: Limits { threads: pid_file("pids.max"), ..limits(cgroups, path) },
            threads: pid_file("pids.current"),
            huge_pages: huge_pages(cgroups, path),
            devices: block::read_devices(cgroups, path),
            memory: memory(cgroups, path),
            processes: processes(cgroups, path),
        }
    }
}

fn cpu_modes(cgroups: &Cgroups, path: &str) -> Option<CpuModes> {
    let (directory, version) = Directory::of(cgroups, "cpuacct", path)?;
    if version == Version::One {
        let (user_ns, system_ns) = (directory.number("cpuacct.usage_user")?, directory.number("cpuacct.usage_sys")?);
        return Some(CpuModes { user_ns, system_ns });
    }
    let text = directory.read("cpu.stat")?;
    let ns = |key| keyed(&text, key).map(|us| us.saturating_mul(1000));
    Some(CpuModes { user_ns: ns("user_usec")?, system_ns: ns("system_usec")? })
}

fn throttling(cgroups: &Cgroups, path: &str) -> Option<Throttling> {
    let (directory, version) = Directory::of(cgroups, "cpu", path)?;
    let text = directory.read("cpu.stat")?;
    let throttled_ns = match version {
        Version::Two => keyed(&text, "throttled_usec")?.saturating_mul(1000),
        Version::One => keyed(&text, "throttled_time")?,
    };
    let (periods, throttled_periods) = (keyed(&text, "nr_periods")?, keyed(&text, "nr_throttled")?);
    Some(Throttling { periods, throttled_periods, throttled_ns })
}

fn memory(cgroups: &Cgroups, path: &str) -> Option<MemoryDetail> {
    let (directory, version) = Directory::of(cgroups, "memory", path)?;
    let stat = directory.read("memory.stat")?;
    let counted = |key| keyed(&stat, key).unwrap_or(0);
    // Version 2 counts everything below too.
    let (own_page_faults, own_major_page_faults) = (counted("pgfault"), counted("pgmajfault"));
    if version == Version::One {
        let control = directory.read("memory.oom_control").unwrap_or_default();
        return Some(MemoryDetail {
            cache: counted("total_cache"),
            mapped_file: counted("total_mapped_file"),
            kernel: directory.number("memory.kmem.usage_in_bytes"),
            max_usage: directory.number("memory.max_usage_in_bytes"),
            limit_met: directory.number("memory.failcnt").unwrap_or(0),
            oom_kills: keyed(&control, "oom_kill").unwrap_or(0),
            own_page_faults,
            own_major_page_faults,
        });
    }
    let events = directory.read("memory.events").unwrap_or_default();
    Some(MemoryDetail {
        cache: counted("file"),
        mapped_file: counted("file_mapped"),
        kernel: keyed(&stat, "kernel"),             // since Linux 5.18
        max_usage: directory.number("memory.peak"), // since Linux 5.19
        limit_met: keyed(&events, "max").unwrap_or(0),
        oom_kills: keyed(&events, "oom_kill").unwrap_or(0),
        own_page_faults,
        own_major_page_faults,
    })
}

fn limits(cgroups: &Cgroups, path: &str) -> Limits {
    let mut limits = Limits::default();
    match Directory::of(cgroups, "cpu", path) {
        Some((directory, Version::One)) => {
            limits.cpu_period = directory.number("cpu.cfs_period_us");
            limits.cpu_quota = directory.number("cpu.cfs_quota_us"); // -1, which is no number here, is none
            limits.cpu_shares = directory.number("cpu.shares");
        }
        Some((directory, Version::Two)) => {
            let text = directory.read("cpu.max").unwrap_or_default();
            let mut words = text.split_whitespace();
            limits.cpu_quota = words.next().and_then(|word| word.parse().ok());
            limits.cpu_period = words.next().and_then(|word| word.parse().ok());
        }
        None => {}
    }
    limits.memory_reservation = match Directory::of(cgroups, "memory", path) {
        Some((directory, Version::One)) => {
            directory.number("memory.soft_limit_in_bytes").filter(|limit| *limit < UNLIMITED)
        }
        Some((directory, Version::Two)) => directory.number("memory.low").filter(|low| *low != 0),
        None => None,
    };
    limits
}

fn huge_pages(cgroups: &Cgroups, path: &str) -> Vec<HugePages> {
    let (at, usage) = match cgroups.v1_directory("hugetlb", path) {
        Some(at) => (Some(at), ".usage_in_bytes"),
        None => (cgroups.v2_directory(path), ".current"),
    };
    let Some((at, directory)) = at.and_then(|at| Directory::open(&at).map(|directory| (at, directory))) else {
        return Vec::new();
    };
    let entries = fs::read_dir(at).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(usage)?;
        // `2MB.rsvd` counts what is reserved.
        (!size.contains('.')).then(|| size.to_owned())
    };
    let found = |size: String| {
        let usage = directory.number(&format!("hugetlb.{size}{usage}"))?;
        let max_usage = directory.number(&format!("hugetlb.{size}.max_usage_in_bytes"));
        Some(HugePages { size, usage, max_usage })
    };
    let mut pages: Vec<_> = entries.filter_map(size).filter_map(found).collect();
    pages.sort_by(|a, b| a.size.cmp(&b.size));
    pages
}

/// Processes come and go meanwhile; one that is gone holds nothing.
fn processes(cgroups: &Cgroups, path: &str) -> Option<Processes> {
    let pids = match cgroups.processes(path) {
        Ok(pids) => pids,
        Err(error) => {
            tracing::warn!(cgroup = path, %error, "count processes");
            return None;
        }
    };
    let mut held = Processes { count: pids.len().try_into().unwrap_or(u64::MAX), ..Processes::default() };
    for pid in pids {
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            held.descriptors += 1;
            let target = fs::read_link(entry.path());
            held.sockets += u64::from(target.is_ok_and(|to| to.as_os_str().as_encoded_bytes().starts_with(b"socket:")));
        }
    }
    Some(held)
}

/// How many descriptors this process may open; `None` when it is gone.
pub(super) fn open_files_limit(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn write(dir: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(dir).expect("make a directory");
        for (name, text) in files {
            fs::write(dir.join(name), text).expect("write");
        }
    }

    #[test]
    fn version_1_and_2_say_the_same_in_their_own_words() {
        let root = tempfile::tempdir().expect("a directory");
        let v1 = Cgroups::of_v1(["cpu,cpuacct", "memory", "hugetlb", "pids"].map(|name| root.path().join(name)).into());
        let (cpu, memory) = (root.path().join("cpu,cpuacct/c"), root.path().join("memory/c"));
        write(&cpu, &[("cpu.stat", "nr_periods 9\nnr_throttled 2\nthrottled_time 5000\n"), ("cpu.shares", "512\n")]);
        write(&cpu, &[("cpu.cfs_quota_us", "20000\n"), ("cpu.cfs_period_us", "100000\n")]);
        write(&cpu, &[("cpuacct.usage_user", "2000\n"), ("cpuacct.usage_sys", "3000\n")]);
        write(&memory, &[("memory.soft_limit_in_bytes", "9223372036854771712\n")]);
        let stat = "total_cache 40\ntotal_mapped_file 30\npgfault 20\npgmajfault 10\ntotal_pgfault 99\n";
        write(&memory, &[("memory.stat", stat), ("memory.max_usage_in_bytes", "50\n"), ("memory.failcnt", "6\n")]);
        write(&memory, &[("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n")]);
        write(&memory, &[("memory.kmem.usage_in_bytes", "5\n")]);
        let huge = [("hugetlb.2MB.usage_in_bytes", "7\n"), ("hugetlb.2MB.max_usage_in_bytes", "8\n")];
        write(&root.path().join("hugetlb/c"), &huge);
        write(&root.path().join("hugetlb/c"), &[("hugetlb.2MB.rsvd.usage_in_bytes", "1\n")]);
        write(&root.path().join("pids/c"), &[("pids.current", "3\n"), ("pids.max", "max\n"), ("cgroup.procs", "")]);
        let one = Detail::read(&v1, "/c");

        let v2 = Cgroups::of_v2(root.path().join("v2"));
        let dir = root.path().join("v2/c");
        write(
            &dir,
            &[(
                "cpu.stat",
                "usage_usec 5\nuser_usec 2\nsystem_usec 3\nnr_periods 9\nnr_throttled 2\nthrottled_usec 5\n",
            )],
        );
        write(&dir, &[("cpu.max", "20000 100000\n"), ("memory.low", "0\n"), ("hugetlb.2MB.current", "7\n")]);
        write(&dir, &[("pids.current", "3\n"), ("pids.max", "max\n"), ("cgroup.procs", "")]);
        let stat = "file 40\nkernel 5\nfile_mapped 30\npgfault 20\npgmajfault 10\n";
        write(&dir, &[("memory.stat", stat), ("memory.peak", "50\n"), ("memory.events", "low 0\nmax 6\noom_kill 4\n")]);
        let two = Detail::read(&v2, "/c");

        let cpu = CpuModes { user_ns: 2000, system_ns: 3000 };
        assert_eq!((one.cpu, two.cpu), (Some(cpu), Some(cpu)));
        let throttling = Throttling { periods: 9, throttled_periods: 2, throttled_ns: 5000 };
        let limits = Limits { cpu_period: Some(100_000), cpu_quota: Some(20_000), ..Limits::default() };
        assert_eq!((one.throttling, two.throttling), (Some(throttling), Some(throttling)));
        assert_eq!(one.limits, Limits { cpu_shares: Some(512), ..limits });
        assert_eq!(two.limits, limits);
        assert_eq!((one.threads, two.threads), (Some(3), Some(3)));
        let memory = MemoryDetail {
            cache: 40,
            mapped_file: 30,
            kernel: Some(5),
            max_usage: Some(50),
            limit_met: 6,
            oom_kills: 4,
            own_page_faults: 20,
            own_major_page_faults: 10,
        };
        assert_eq!((one.memory, two.memory), (Some(memory), Some(memory)));
        let pages = |max_usage| [HugePages { size: "2MB".into(), usage: 7, max_usage }];
        assert_eq!((one.huge_pages, two.huge_pages), (pages(Some(8)).into(), pages(None).into()));
    }

    #[test]
    fn this_process_has_a_limit_of_open_files() {
        assert!(open_files_limit(std::process::id()).is_some_and(|limit| limit > 0));
        assert_eq!(open_files_limit(u32::MAX), None);
    }
}
