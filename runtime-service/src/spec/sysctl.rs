//! Which sysctls a pod may set: those that belong to a namespace of its own.

use std::collections::HashMap;

use super::Invalid;

/// Checks the sysctls of a sandbox. `own_net` and `own_ipc`: the pod has these namespaces to itself.
///
/// # Errors
/// A key that is not namespaced, or whose namespace is the host's.
pub(crate) fn check(sysctls: &HashMap<String, String>, own_net: bool, own_ipc: bool) -> Result<(), Invalid> {
    for (key, value) in sysctls {
        let field = format!("config.linux.sysctls[{key:?}]");
        let valid = |b: u8| b.is_ascii_alphanumeric() || b"._-/:".contains(&b);
        if key.is_empty() || !key.bytes().all(valid) || key.split(['.', '/']).any(|p| p.is_empty() || p == "..") {
            return Err(Invalid::new(field, "is no name of a sysctl"));
        }
        if value.contains('\0') {
            return Err(Invalid::new(field, "has a NUL byte in its value"));
        }
        let dotted = key.replace('/', ".");
        match owner(&dotted) {
            Some(Owner::Net) if own_net => {}
            Some(Owner::Ipc) if own_ipc => {}
            Some(Owner::Net) => {
                return Err(Invalid::new(field, "would change the host: the pod uses the host's network"));
            }
            Some(Owner::Ipc) => {
                return Err(Invalid::new(field, "would change the host: the pod uses the host's IPC namespace"));
            }
            None => return Err(Invalid::new(field, "is not namespaced: it would change the whole node")),
        }
    }
    Ok(())
}

enum Owner {
    Net,
    Ipc,
}

/// Source: the kernel's per-namespace tables, net/ and ipc/.
fn owner(key: &str) -> Option<Owner> {
    const IPC: &[&str] = &[
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    if key.starts_with("net.") {
        Some(Owner::Net)
    } else if key.starts_with("fs.mqueue.") || IPC.contains(&key) {
        Some(Owner::Ipc)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_pod_owns() {
        let ask = |key: &str, net, ipc| check(&HashMap::from([(key.to_owned(), "1".to_owned())]), net, ipc);
        assert!(ask("net.ipv4.ip_forward", true, true).is_ok());
        assert!(ask("net/ipv4/ip_forward", true, true).is_ok());
        assert!(ask("kernel.shm_rmid_forced", true, true).is_ok());
        assert!(ask("fs.mqueue.msg_max", false, true).is_ok());
        for (key, net, ipc) in [
            ("net.ipv4.ip_forward", false, true),
            ("kernel.sem", true, false),
            ("vm.overcommit_memory", true, true),
            ("kernel.panic", true, true),
            ("net..x", true, true),
            ("net/../vm/x", true, true),
            ("", true, true),
        ] {
            let error = ask(key, net, ipc).expect_err(key).to_string();
            assert!(error.contains("sysctls"), "{error}");
        }
    }
}
