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

use crate::spec::{Held, capability_names};

pub(crate) use apparmor::AppArmor;
pub(crate) use cgroups::Cgroups;
pub(crate) use parents::Parents;
pub(crate) use selinux::SeLinux;

/// Facts of the host.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    /// Its name.
    pub(crate) name: String,
    pub(crate) capabilities: Held,
    /// All that the kernel knows: what a user namespace's own processes can have over it.
    pub(crate) known_capabilities: Held,
    pub(crate) cgroups: Cgroups,
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
        let name = nix::unistd::gethostname()?.to_string_lossy().into_owned();
        let known_capabilities = Held::from_mask(u64::MAX >> 63_usize.saturating_sub(last));
        Ok(Self { name, capabilities, known_capabilities, cgroups: Cgroups::probe()?, withheld })
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
