//! Capability sets of a container, from CRI's add and drop lists and what the host can give.

use berth_api::cri;
use serde_json::{Value, json};

use super::Invalid;

/// Every capability by number, without the `CAP_` prefix. Source: include/uapi/linux/capability.h.
const NAMES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container gets without asking. Source: the default of Docker, containerd and CRI-O alike.
const DEFAULT: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The capabilities that this daemon can hand on: its bounding set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held(u64);

impl Held {
    /// From a bit mask as `/proc/self/status` prints it (`CapBnd`).
    pub(crate) fn from_mask(mask: u64) -> Self {
        Self(mask)
    }

    /// By name, without `CAP_`.
    pub(crate) fn has(&self, name: &str) -> bool {
        NAMES.iter().position(|n| *n == name).is_some_and(|bit| self.0 & (1 << bit) != 0)
    }

    /// Names the kernel knows and this host withholds.
    pub(crate) fn withheld(&self, kernel: &[&'static str]) -> Vec<&'static str> {
        kernel.iter().copied().filter(|n| !self.has(n)).collect()
    }
}

/// Names of the first `last + 1` capabilities: those that a kernel with this `cap_last_cap` knows.
pub(crate) fn kernel_names(last: usize) -> &'static [&'static str] {
    &NAMES[..NAMES.len().min(last + 1)]
}

/// The effective set by name, without prefix: what the container has, for seccomp's conditions and the spec.
pub(crate) fn granted(
    security: &cri::LinuxContainerSecurityContext,
    held: &Held,
) -> Result<Vec<&'static str>, Invalid> {
    let asked = security.capabilities.clone().unwrap_or_default();
    let field = "config.linux.security_context.capabilities";
    let add = parse(&asked.add_capabilities, &format!("{field}.add_capabilities"))?;
    let drop = parse(&asked.drop_capabilities, &format!("{field}.drop_capabilities"))?;
    for name in &add.named {
        if !held.has(name) {
            return Err(Invalid::new(
                format!("{field}.add_capabilities"),
                format!(
                    "CAP_{name} is asked for by name and this host withholds it from the daemon (see berthd check)"
                ),
            ));
        }
    }
    let wanted = |name: &str| {
        if add.named.contains(&name) {
            return true;
        }
        if drop.named.contains(&name) {
            return false;
        }
        // Privileged means all of them, whatever the lists say about the rest.
        security.privileged || add.all || (!drop.all && DEFAULT.contains(&name))
    };
    Ok(NAMES.iter().copied().filter(|n| wanted(n) && held.has(n)).collect())
}

/// The five sets of the spec.
pub(crate) fn build(security: &cri::LinuxContainerSecurityContext, held: &Held) -> Result<Value, Invalid> {
    let with_prefix = |names: &[&str]| names.iter().map(|n| format!("CAP_{n}")).collect::<Vec<_>>();
    let granted = granted(security, held)?;
    let field = "config.linux.security_context.capabilities.add_ambient_capabilities";
    let asked = security.capabilities.clone().unwrap_or_default();
    let ambient = parse(&asked.add_ambient_capabilities, field)?;
    let ambient: Vec<&str> = if ambient.all { granted.clone() } else { ambient.named };
    let mut set = granted.clone();
    for name in &ambient {
        if !held.has(name) {
            return Err(Invalid::new(field, format!("CAP_{name} is withheld from the daemon (see berthd check)")));
        }
        if !set.contains(name) {
            set.push(name);
        }
    }
    // Inheritable holds the ambient ones only (the kernel demands those): CVE-2022-24769.
    Ok(json!({
        "bounding": with_prefix(&set),
        "effective": with_prefix(&set),
        "permitted": with_prefix(&set),
        "inheritable": with_prefix(&ambient),
        "ambient": with_prefix(&ambient),
    }))
}

struct Asked {
    all: bool,
    named: Vec<&'static str>,
}

fn parse(list: &[String], field: &str) -> Result<Asked, Invalid> {
    let mut asked = Asked { all: false, named: Vec::new() };
    for text in list {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if name == "ALL" {
            asked.all = true;
        } else {
            let known = NAMES.iter().find(|n| **n == name);
            let known = known.ok_or_else(|| Invalid::new(field, format!("{text:?} is no capability")))?;
            asked.named.push(known);
        }
    }
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(add: &[&str], drop: &[&str], privileged: bool, held: u64) -> Result<Vec<&'static str>, String> {
        let list = |l: &[&str]| l.iter().map(|s| s.to_string()).collect();
        let security = cri::LinuxContainerSecurityContext {
            privileged,
            capabilities: Some(cri::Capability {
                add_capabilities: list(add),
                drop_capabilities: list(drop),
                ..Default::default()
            }),
            ..Default::default()
        };
        granted(&security, &Held::from_mask(held)).map_err(|e| e.to_string())
    }

    const ALL: u64 = (1 << 41) - 1;
    const NO_RESOURCE: u64 = ALL & !(1 << 24);

    #[test]
    fn add_and_drop_on_top_of_the_default() {
        assert_eq!(sets(&[], &[], false, ALL).expect("default").len(), DEFAULT.len());
        assert_eq!(sets(&[], &["ALL"], false, ALL).expect("none"), Vec::<&str>::new());
        assert_eq!(sets(&["NET_ADMIN"], &["ALL"], false, ALL).expect("one"), ["NET_ADMIN"]);
        assert_eq!(sets(&["CAP_NET_ADMIN"], &["all"], false, ALL).expect("prefix"), ["NET_ADMIN"]);
        assert_eq!(sets(&["ALL"], &[], false, ALL).expect("all").len(), 41);
        assert!(!sets(&["ALL"], &["CHOWN"], false, ALL).expect("all but one").contains(&"CHOWN"));
    }

    #[test]
    fn all_means_all_that_the_host_gives_and_a_name_means_that_name() {
        assert_eq!(sets(&["ALL"], &[], false, NO_RESOURCE).expect("clamped").len(), 40);
        assert_eq!(sets(&[], &[], true, NO_RESOURCE).expect("clamped").len(), 40);
        let error = sets(&["SYS_RESOURCE"], &[], false, NO_RESOURCE).expect_err("by name");
        assert!(error.contains("CAP_SYS_RESOURCE"), "{error}");
        let error = sets(&["FLY"], &[], false, ALL).expect_err("unknown");
        assert!(error.contains("add_capabilities") && error.contains("FLY"), "{error}");
    }
}
