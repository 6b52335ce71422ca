//! What CreateContainer says of its sandbox (`sandbox_config`), against what the sandbox was made with.
//!
//! The kubelet computes it anew for each container. What made the sandbox what it is cannot change any more: another
//! value is refused. What may have changed since (labels, annotations, the resolver, limits) is the sandbox's own, as it
//! was made. A field that is left out says nothing.

use berth_api::cri;

use crate::spec::{self, Invalid, Users, asked_labels};

/// Checks `said` against `made`.
///
/// # Errors
/// The first field that says something else.
pub(super) fn check(said: &cri::PodSandboxConfig, made: &cri::PodSandboxConfig) -> Result<(), Invalid> {
    // crictl makes up a uid each time it reads a file without one: the rest says which sandbox is meant.
    let key = |m: &cri::PodSandboxMetadata| (m.name.clone(), m.namespace.clone(), m.attempt);
    let is_other = |m: &&cri::PodSandboxMetadata| made.metadata.as_ref().is_none_or(|made| key(made) != key(m));
    if let Some(metadata) = said.metadata.as_ref().filter(is_other) {
        let made = made.metadata.clone().unwrap_or_default();
        let (name, is) = (name(metadata), name(&made));
        return Err(Invalid::new("sandbox_config.metadata", format!("{name} is not this sandbox, which is {is}")));
    }
    let (linux, linux_made) = (said.linux.clone().unwrap_or_default(), made.linux.clone().unwrap_or_default());
    let of = |l: &cri::LinuxPodSandboxConfig| l.security_context.as_ref().and_then(|s| s.namespace_options.clone());
    let (modes, modes_made) = (of(&linux), of(&linux_made).unwrap_or_default());
    let modes = modes.unwrap_or_else(|| modes_made.clone());
    const OPTIONS: &str = "linux.security_context.namespace_options";
    let users = |options: &cri::NamespaceOption| Users::of(Some(options), &format!("sandbox_config.{OPTIONS}"));
    let says_users = modes.userns_options.is_some();
    let labels = |l: &cri::LinuxPodSandboxConfig| l.security_context.as_ref().and_then(|s| s.selinux_options.clone());
    let says_labels = asked_labels(labels(&linux).as_ref()).is_some();
    for (field, differs) in [
        (
            "linux.security_context.namespace_options.userns_options",
            says_users && users(&modes)? != users(&modes_made)?,
        ),
        ("hostname", !said.hostname.is_empty() && said.hostname != made.hostname),
        ("log_directory", !said.log_directory.is_empty() && said.log_directory != made.log_directory),
        ("port_mappings", !said.port_mappings.is_empty() && said.port_mappings != made.port_mappings),
        ("linux.cgroup_parent", !linux.cgroup_parent.is_empty() && linux.cgroup_parent != linux_made.cgroup_parent),
        ("linux.sysctls", !linux.sysctls.is_empty() && linux.sysctls != linux_made.sysctls),
        ("linux.security_context.selinux_options", says_labels && labels(&linux) != labels(&linux_made)),
        ("linux.security_context.namespace_options.network", modes.network != modes_made.network),
        ("linux.security_context.namespace_options.ipc", modes.ipc != modes_made.ipc),
        ("linux.security_context.namespace_options.pid", modes.pid != modes_made.pid),
    ] {
        if differs {
            return Err(Invalid::new(format!("sandbox_config.{field}"), "is not what the sandbox was made with"));
        }
    }
    check_old_seccomp(said, "sandbox_config")
}

/// The deprecated form of the sandbox's seccomp profile, of a config that is at `root` of its request.
///
/// # Errors
/// It is none that CRI knows.
pub(super) fn check_old_seccomp(config: &cri::PodSandboxConfig, root: &str) -> Result<(), Invalid> {
    let Some(security) = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref()) else { return Ok(()) };
    #[allow(deprecated)]
    spec::check_old_seccomp(
        &security.seccomp_profile_path,
        &format!("{root}.linux.security_context.seccomp_profile_path"),
    )
}

/// The sandbox may have privileged containers: by its own request, or by what is said of it now. The kubelet says so when
/// it adds a privileged debugging container to a pod that had none.
pub(super) fn is_privileged(said: &cri::PodSandboxConfig, made: &cri::PodSandboxConfig) -> bool {
    let of = |c: &cri::PodSandboxConfig| {
        c.linux.as_ref().and_then(|l| l.security_context.as_ref()).is_some_and(|s| s.privileged)
    };
    of(said) || of(made)
}

fn name(metadata: &cri::PodSandboxMetadata) -> String {
    let cri::PodSandboxMetadata { name, namespace, uid, attempt } = metadata;
    format!("{namespace}/{name} (uid {uid:?}, attempt {attempt})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_made_the_sandbox_cannot_be_said_otherwise_and_what_is_left_out_says_nothing() {
        let made = cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata { name: "a".into(), uid: "u".into(), ..Default::default() }),
            hostname: "a".into(),
            log_directory: "/logs".into(),
            linux: Some(cri::LinuxPodSandboxConfig { cgroup_parent: "/pods".into(), ..Default::default() }),
            ..Default::default()
        };
        check(&made, &made).expect("the same");
        check(&Default::default(), &made).expect("nothing");
        let mut later = made.clone();
        later.metadata.as_mut().expect("metadata").uid = "made up anew".into();
        later.labels.insert("new".into(), "label".into());
        later.dns_config = Some(cri::DnsConfig { servers: vec!["10.0.0.1".into()], ..Default::default() });
        later.linux.as_mut().expect("linux").resources = Some(Default::default());
        check(&later, &made).expect("what may change");
        let refused = |change: fn(&mut cri::PodSandboxConfig)| {
            let mut said = made.clone();
            change(&mut said);
            check(&said, &made).expect_err("another value").field
        };
        assert_eq!(refused(|c| c.metadata.as_mut().expect("metadata").attempt = 1), "sandbox_config.metadata");
        assert_eq!(refused(|c| c.hostname = "b".into()), "sandbox_config.hostname");
        assert_eq!(refused(|c| c.log_directory = "/other".into()), "sandbox_config.log_directory");
        assert_eq!(refused(|c| c.port_mappings.push(Default::default())), "sandbox_config.port_mappings");
        let linux = |c: &mut cri::PodSandboxConfig| c.linux.get_or_insert_default().cgroup_parent = "/x".into();
        assert_eq!(refused(linux), "sandbox_config.linux.cgroup_parent");
        let sysctls = |c: &mut cri::PodSandboxConfig| {
            c.linux.get_or_insert_default().sysctls.insert("net.core.somaxconn".into(), "1".into());
        };
        assert_eq!(refused(sysctls), "sandbox_config.linux.sysctls");
        let label = |c: &mut cri::PodSandboxConfig| {
            let security = c.linux.get_or_insert_default().security_context.get_or_insert_default();
            security.selinux_options.get_or_insert_default().level = "s0:c1,c2".into();
        };
        assert_eq!(refused(label), "sandbox_config.linux.security_context.selinux_options");
        let modes = |c: &mut cri::PodSandboxConfig| {
            let security = c.linux.get_or_insert_default().security_context.get_or_insert_default();
            security.namespace_options.get_or_insert_default().pid = cri::NamespaceMode::Node.into();
        };
        assert_eq!(refused(modes), "sandbox_config.linux.security_context.namespace_options.pid");
    }
}
