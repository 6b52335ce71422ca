//! RunPodSandbox, step by step: each is written down before it is taken.

use std::collections::BTreeMap;
use std::time::Instant;

use berth_api::cri;

use super::task::{Fact, Task};
use super::{Error, blocking, sandbox_said};
use crate::host::systemd;
use crate::ids::{ContainerId, PodId};
use crate::ledger::ProcessId;
use crate::sandbox::{self, Files, Order};
use crate::spec::{self, PodParts, Scope, Users};
use crate::task::KEEPER;

/// How a pod stands to the host's namespaces, from its security context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Namespaces {
    pub(crate) own_net: bool,
    pub(crate) own_ipc: bool,
    pub(crate) shared_pid: bool,
}

impl Namespaces {
    pub(crate) fn of(config: &cri::PodSandboxConfig) -> Self {
        let security = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
        let options = security.and_then(|s| s.namespace_options.clone()).unwrap_or_default();
        Self {
            own_net: options.network() != cri::NamespaceMode::Node,
            own_ipc: options.ipc() != cri::NamespaceMode::Node,
            shared_pid: options.pid() == cri::NamespaceMode::Pod,
        }
    }

    fn names(self, users: Option<Users>) -> Vec<String> {
        // A pod on the host's network bears the host's name, so its UTS namespace is the host's too.
        let all = [("network", self.own_net), ("ipc", self.own_ipc), ("uts", self.own_net), ("pid", self.shared_pid)];
        let own = all.into_iter().chain([(USER, users.is_some())]).filter(|(_, own)| *own);
        own.map(|(name, _)| name.to_owned()).collect()
    }
}

/// The user namespace's name among those that a pod holds.
const USER: &str = "user";

/// The user namespace that a sandbox asks for.
///
/// # Errors
/// The field that is wrong.
pub(crate) fn users(config: &cri::PodSandboxConfig) -> Result<Option<Users>, spec::Invalid> {
    let security = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
    let options = security.and_then(|s| s.namespace_options.as_ref());
    Users::of(options, "config.linux.security_context.namespace_options")
}

/// The longest host name. Source: HOST_NAME_MAX in limits.h.
const HOSTNAME_MAX: usize = 64;

impl Task {
    pub(super) fn config(&self) -> cri::PodSandboxConfig {
        self.request.config.clone().unwrap_or_default()
    }

    /// The story of RunPodSandbox.
    pub(super) async fn run(&mut self) -> Result<(), Error> {
        let began = Instant::now();
        self.take_record().await?;
        self.shared.metrics.stage("record", began.elapsed());
        let began = Instant::now();
        self.take_namespaces().await?;
        self.shared.metrics.stage("namespaces", began.elapsed());
        let began = Instant::now();
        self.take_network().await?;
        self.shared.metrics.stage("network", began.elapsed());
        self.take_sandbox_container().await?;
        self.held.ready = true;
        step!("run_pod::state-commit", self.hold())
    }

    pub(super) fn hold(&self) -> Result<(), Error> {
        // On a tmpfs: a few microseconds, not worth a thread.
        self.shared.ledger.hold(&self.id, &self.held).map_err(Error::ledger("record what the pod holds"))
    }

    /// What was asked, and what will be held; nothing is taken before this is written.
    async fn take_record(&mut self) -> Result<(), Error> {
        let namespaces = Namespaces::of(&self.config());
        self.held.namespaces = namespaces.names(users(&self.config())?);
        self.held.shm = namespaces.own_ipc;
        let (ledger, record, held) = (self.shared.ledger.clone(), self.record.clone(), self.held.clone());
        let logs = self.config().log_directory;
        blocking(move || {
            make_log_directory(&logs)?;
            ledger.begin_pod(&record).map_err(Error::ledger("record the pod"))?;
            ledger.hold(&record.id, &held).map_err(Error::ledger("record what the pod will hold"))
        })
        .await
    }

    async fn take_namespaces(&mut self) -> Result<(), Error> {
        let config = self.config();
        let namespaces = Namespaces::of(&config);
        let dir = self.shared.ledger.roots.pod_run(&self.id);
        let hostname = hostname(&config, namespaces);
        let users = users(&config)?;
        let files = Files {
            hostname: &hostname,
            dns: config.dns_config.as_ref(),
            host_network: !namespaces.own_net,
            owner: users.map(|users| users.root()),
            label: self.record.selinux.as_ref().map(|labels| labels.mount.as_str()),
        };
        step!("run_pod::files", sandbox::write_files(&dir, &files))?;
        if self.held.namespaces.is_empty() && !self.held.shm {
            return Ok(());
        }
        let mut sysctls: BTreeMap<String, String> = BTreeMap::new();
        if namespaces.own_net {
            let shared = &self.shared.config.sandbox;
            if shared.unprivileged_ports {
                sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "0".into());
            }
            if shared.unprivileged_icmp {
                sysctls.insert("net.ipv4.ping_group_range".into(), "0 2147483647".into());
            }
        }
        let asked = config.linux.map(|l| l.sysctls).unwrap_or_default();
        sysctls.extend(asked.into_iter().map(|(key, value)| (key.replace('/', "."), value)));
        let mut order = Order {
            dir: dir.join("ns"),
            namespaces: self.held.namespaces.iter().filter(|name| *name != USER).cloned().collect(),
            user: users,
            hostname: if namespaces.own_net { hostname } else { String::new() },
            sysctls,
            shm: None,
            labels: self.record.selinux.clone(),
        };
        if self.held.shm {
            order = order.with_shm(dir.join("shm"), self.shared.config.sandbox.shm_size_bytes);
        }
        let shims = &self.shared.shim_binaries;
        let binary = shims.binary(KEEPER).map_err(|message| Error::Sandbox(sandbox::Error::NoAnswer(message)))?;
        let run = &self.shared.ledger.roots.run;
        let sealed = &self.shared.sealed;
        let made = step!("run_pod::keeper", sandbox::run_keeper(&binary, sealed, run, &order, shims.timeout()).await)?;
        self.held.keeper = made.keeper;
        if let Some(keeper) = made.keeper {
            step!("run_pod::keeper-record", self.hold())?;
            self.watch_keeper();
            step!("run_pod::keeper-scope", self.place_keeper(keeper).await)?;
        }
        Ok(())
    }

    /// With systemd's driver pid 1 of the pod is the pod's: in berthd's own service it would end with whatever is done to
    /// that, and be told at each of its starts.
    async fn place_keeper(&self, keeper: ProcessId) -> Result<(), Error> {
        let config = self.config();
        let parent = config.linux.as_ref().map(|l| l.cgroup_parent.as_str()).unwrap_or_default();
        let driver = self.shared.cgroup_driver.suited(parent);
        // A sandbox container has the pod's id.
        let path = driver.container(&driver.parent(parent, &self.shared.cgroup_root)?, &format!("{}-pid1", self.id));
        let Some(scope) = Scope::of(&path) else { return Ok(()) };
        let pid = u32::try_from(keeper.pid).map_err(|_| Error::Systemd(format!("{} is no pid", keeper.pid)))?;
        let started = systemd::start_scope(&self.shared.host.cgroups, &scope, systemd::Member::Keeper(pid));
        started.await.map_err(Error::Systemd)
    }

    pub(super) fn watch_keeper(&mut self) {
        let Some(keeper) = self.held.keeper else { return };
        let facts = self.facts.clone();
        let watch = tokio::spawn(async move {
            sandbox::watch_keeper(keeper).await;
            let _ = facts.send(Fact::KeeperGone);
        });
        self.keeper_watch = Some(watch.abort_handle());
    }

    async fn take_network(&mut self) -> Result<(), Error> {
        let Some(plan) = self.record.network.clone() else { return Ok(()) };
        let netns = self.shared.ledger.roots.pod_run(&self.id).join("ns/net");
        let attachment = step!("run_pod::cni-add", self.shared.networks.add(&plan, &self.id, &netns).await)?;
        self.attachment = attachment;
        let (ledger, id, attachment) = (self.shared.ledger.clone(), self.id.clone(), self.attachment.clone());
        let cached = blocking(move || {
            step!("run_pod::cni-result", ledger.attached(&id, &attachment))
                .map_err(Error::ledger("record the network's answer"))
        });
        cached.await
    }

    /// What this pod lends to its containers.
    pub(super) fn parts(&self) -> PodParts {
        let config = self.config();
        let dir = self.shared.ledger.roots.pod_run(&self.id);
        let namespaces = Namespaces::of(&config);
        let pin = |name: &str, file: &str| {
            let own = self.held.namespaces.iter().any(|n| n == name);
            own.then(|| dir.join("ns").join(file))
        };
        PodParts {
            net: pin("network", "net"),
            ipc: pin("ipc", "ipc"),
            uts: pin("uts", "uts"),
            pid: pin("pid", "pid"),
            // Checked when the pod was made.
            user: pin(USER, "user").zip(users(&config).ok().flatten()),
            shm: if self.held.shm { dir.join("shm") } else { "/dev/shm".into() },
            hostname: hostname(&config, namespaces),
            hostname_file: dir.join("hostname"),
            hosts_file: dir.join("hosts"),
            resolv_conf: dir.join("resolv.conf"),
        }
    }

    pub(super) fn pod_id(&self) -> &PodId {
        &self.id
    }

    pub(super) fn all_containers(&self) -> Vec<ContainerId> {
        self.containers.keys().cloned().collect()
    }
}

/// The kubelet makes it; others may leave it to us. It stays when the pod goes: its logs are the client's.
fn make_log_directory(path: &str) -> Result<(), spec::Invalid> {
    if path.is_empty() {
        return Ok(());
    }
    std::fs::create_dir_all(path).map_err(|e| spec::Invalid::new("config.log_directory", format!("make {path}: {e}")))
}

fn hostname(config: &cri::PodSandboxConfig, namespaces: Namespaces) -> String {
    match config.hostname.as_str() {
        // As it is now: a host may learn its name after this daemon has begun.
        _ if !namespaces.own_net => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        // CRI lets the runtime choose; the pod's own name tells a person most.
        "" => {
            let name = config.metadata.as_ref().map(|m| m.name.as_str()).unwrap_or_default();
            name.chars().filter(|c| c.is_ascii_alphanumeric() || "-.".contains(*c)).take(HOSTNAME_MAX).collect()
        }
        name => name.to_owned(),
    }
}

/// Checks everything in a RunPodSandbox request that can be wrong before anything is taken.
///
/// # Errors
/// The first field that is wrong.
pub(crate) fn check(config: &cri::PodSandboxConfig, driver: spec::Driver) -> Result<(), spec::Invalid> {
    let namespaces = Namespaces::of(config);
    let hostname = &config.hostname;
    let valid = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
    if hostname.len() > HOSTNAME_MAX || !hostname.chars().all(valid) {
        let problem =
            format!("{hostname:?} is no host name of at most {HOSTNAME_MAX} letters, digits, dots and dashes");
        return Err(spec::Invalid::new("config.hostname", problem));
    }
    if !config.log_directory.is_empty() && !config.log_directory.starts_with('/') {
        return Err(spec::Invalid::new("config.log_directory", format!("{:?} is not absolute", config.log_directory)));
    }
    for (index, mapping) in config.port_mappings.iter().enumerate() {
        check_mapping(index, mapping)?;
    }
    users(config)?;
    sandbox_said::check_old_seccomp(config, "config")?;
    if let Some(linux) = &config.linux {
        spec::check_sysctls(&linux.sysctls, namespaces.own_net, namespaces.own_ipc)?;
        driver.parent(&linux.cgroup_parent, "").map(drop).map_err(|mut invalid| {
            invalid.field = "config.linux.cgroup_parent".into();
            invalid
        })?;
    }
    Ok(())
}

/// A mapping without a port of the host publishes nothing, and only tells what the container listens on.
fn check_mapping(index: usize, mapping: &cri::PortMapping) -> Result<(), spec::Invalid> {
    let wrong =
        |name: &str, problem: String| Err(spec::Invalid::new(format!("config.port_mappings[{index}].{name}"), problem));
    let (host, container) = (mapping.host_port, mapping.container_port);
    if !(0..=65535).contains(&host) {
        return wrong("host_port", format!("{host} is no port"));
    }
    if !(0..=65535).contains(&container) || container == 0 && host != 0 {
        return wrong("container_port", format!("{container} is no port"));
    }
    if cri::Protocol::try_from(mapping.protocol).is_err() {
        return wrong("protocol", format!("{} is none of TCP (0), UDP (1), SCTP (2)", mapping.protocol));
    }
    if !mapping.host_ip.is_empty() && mapping.host_ip.parse::<std::net::IpAddr>().is_err() {
        return wrong("host_ip", format!("{:?} is no address", mapping.host_ip));
    }
    Ok(())
}
