//! `linux.sysctl`: only what belongs to a namespace of the container's own.

use oci_spec::runtime::LinuxNamespaceType;

use super::Error;
use super::mount_deeds::MountDeed;
use super::namespaces::Namespaces;
use super::process::c_string;

/// Sysctls of the IPC namespace. Source: ipc/ipc_sysctl.c.
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// One deed for each, sorted by name.
///
/// # Errors
/// A name that is not one, or would change the host (CVE-2022-0532).
pub(super) fn plan<'a>(
    sysctls: impl Iterator<Item = (&'a String, &'a String)>,
    namespaces: &Namespaces,
) -> Result<Vec<MountDeed>, Error> {
    let mut sorted: Vec<_> = sysctls.collect();
    sorted.sort_unstable();
    let one = |(name, value): (&String, &String)| {
        let field = format!("linux.sysctl[{name:?}]");
        let named = path_and_owner(name);
        let (path, owner) = named.ok_or_else(|| Error::refused(field.clone(), "is not a sysctl's name"))?;
        let kind = match owner {
            Owner::Network => LinuxNamespaceType::Network,
            Owner::Ipc => LinuxNamespaceType::Ipc,
            Owner::Uts => LinuxNamespaceType::Uts,
            Owner::Host => {
                return Err(Error::refused(field, "is not of any namespace: it would change the host"));
            }
        };
        if !namespaces.owns(kind) {
            return Err(Error::refused(field, format!("would change the host: its {kind} namespace is shared")));
        }
        let path = c_string(&field, &format!("sys/{path}"))?;
        Ok(MountDeed::Sysctl { path, value: c_string(&field, value)? })
    };
    sorted.into_iter().map(one).collect()
}

/// As sysctl(8): the first separator says which one separates, the other is part of the names.
fn path_of(name: &str) -> Option<String> {
    let first = name.find(['.', '/'])?;
    let path = match name.as_bytes()[first] {
        b'/' => name.to_owned(),
        _ => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
    };
    let good = path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    (good && !path.contains('\0')).then_some(path)
}

/// Whose a sysctl is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Network,
    Ipc,
    Uts,
    /// Everybody's.
    Host,
}

/// The path below /proc/sys and the kind of namespace it belongs to. `None` if it is not a sysctl's name.
pub(crate) fn path_and_owner(name: &str) -> Option<(String, Owner)> {
    let path = path_of(name)?;
    let dotted = path.replace('/', ".");
    let owner = match path.as_str() {
        _ if path.starts_with("net/") => Owner::Network,
        _ if path.starts_with("fs/mqueue/") || IPC.contains(&dotted.as_str()) => Owner::Ipc,
        "kernel/hostname" | "kernel/domainname" => Owner::Uts,
        _ => Owner::Host,
    };
    Some((path, owner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_paths_with_either_separator() {
        for (name, path) in [
            ("net.ipv4.ip_forward", Some("net/ipv4/ip_forward")),
            ("net/ipv4/conf/eth0.1/forwarding", Some("net/ipv4/conf/eth0.1/forwarding")),
            ("net.ipv4.conf.eth0/1.forwarding", Some("net/ipv4/conf/eth0.1/forwarding")),
            ("net.ipv4..x", None),
            ("net/../kernel/panic", None),
            ("hostname", None),
            ("net.", None),
        ] {
            assert_eq!(path_of(name).as_deref(), path, "{name}");
        }
    }

    #[test]
    fn a_sysctl_of_the_host_is_refused() {
        let value = "1".to_owned();
        let refused = |name: &str| {
            let name = name.to_owned();
            plan([(&name, &value)].into_iter(), &Namespaces::default()).expect_err("refused").to_string()
        };
        assert!(refused("kernel.panic").contains("not of any namespace"));
        assert!(refused("net.ipv4.ip_forward").contains("would change the host"));
        assert!(refused("kernel.shmmax").contains("would change the host"));
        assert!(refused("net/../kernel/panic").contains("not a sysctl's name"));
    }
}
