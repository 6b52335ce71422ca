//! What this host is and gives, read once at start.

pub(crate) mod apparmor;
pub(crate) mod aside;
mod cgroups;
mod parents;
pub(crate) mod selinux;
pub(crate) mod systemd;

use std::fs;
use std::io;
use std::time::{Duration, SystemTime};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};

use crate::spec::{Held, capability_names};

pub(crate) use apparmor::AppArmor;
pub(crate) use cgroups::Cgroups;
pub(crate) use parents::Parents;
pub(crate) use selinux::SeLinux;

/// Facts of the host.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) capabilities: Held,
    /// All that the kernel knows: what a user namespace's own processes can have over it.
    pub(crate) known_capabilities: Held,
    pub(crate) cgroups: Cgroups,
    /// How many files a process may have open: what the daemon was started with, and what a container gets.
    pub(crate) open_files: OpenFiles,
    /// What it withholds from the daemon, and so from every container, in words.
    pub(crate) withheld: Vec<String>,
}

impl Host {
    /// Looks at the host.
    ///
    /// # Errors
    /// /proc or /sys cannot be read.
    pub(crate) fn probe() -> io::Result<Self> {
        let bounding = bounding_set()?;
        let capabilities = Held::from_mask(bounding);
        let last: usize =
            fs::read_to_string("/proc/sys/kernel/cap_last_cap")?.trim().parse().map_err(io::Error::other)?;
        let mut withheld: Vec<String> =
            capabilities.withheld(capability_names(last)).into_iter().map(|name| format!("CAP_{name}")).collect();
        if withheld.iter().any(|name| name == "CAP_SYS_RESOURCE") {
            withheld.push("lowering oom_score_adj".into());
            withheld.push("raising resource limits above the hard limit".into());
        }
        let known_capabilities = Held::from_mask(u64::MAX >> 63_usize.saturating_sub(last));
        let (cgroups, open_files) = (Cgroups::probe()?, OpenFiles::of_this_process()?);
        Ok(Self { capabilities, known_capabilities, cgroups, open_files, withheld })
    }
}

/// RLIMIT_NOFILE.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenFiles {
    soft: u64,
    hard: u64,
}

impl OpenFiles {
    fn of_this_process() -> io::Result<Self> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        Ok(Self { soft, hard })
    }

    /// Lets the daemon have as many as it may: the soft limit is for programs that use select(2), which it is none of. Its
    /// children inherit that, so a container is told its own.
    ///
    /// # Errors
    /// What setrlimit answers.
    pub(crate) fn take_all(self) -> io::Result<()> {
        Ok(setrlimit(Resource::RLIMIT_NOFILE, self.hard, self.hard)?)
    }

    /// Among the `rlimits` of an OCI process.
    pub(crate) fn of_container(self) -> Value {
        json!([{ "type": "RLIMIT_NOFILE", "soft": self.soft, "hard": self.hard }])
    }
}

fn bounding_set() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("CapBnd:"));
    let hex = line.ok_or_else(|| io::Error::other("/proc/self/status has no CapBnd"))?;
    u64::from_str_radix(hex.trim(), 16).map_err(io::Error::other)
}

/// When a process began, by the kernel's clock ticks since boot.
pub(crate) fn started(pid: u32) -> Option<SystemTime> {
    let start = crate::ledger::ProcessId::of(i32::try_from(pid).ok()?)?.start;
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let boot: u64 = stat.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse().ok()?;
    // USER_HZ is 100 on every architecture that Linux runs containers on.
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(boot) + Duration::from_millis(start * 10))
}
