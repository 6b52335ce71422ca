//! CreateContainer, step by step.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use berth_api::cri;
use berth_api::shim::{ATTACH_SCHEME, EFFECTIVE_FILE, EXIT_FILE, Effective, ExitRecord, FILE_FORMAT, LOG_SCHEME};
use berth_image_service::Image;
use prost::Message;
use serde_json::Value;

use super::lifecycle::{Event, Phase};
use super::task::{Container, Shared, Task};
use super::view::PodState;
use super::{Error, another, blocking, devices, image_volumes, relabel, sandbox_said, volumes};
use crate::host::{apparmor, systemd};
use crate::ids::ContainerId;
use crate::ledger::{self, ContainerRecord};
use crate::spec::{self, AppArmor, ImageDefaults, Input, Invalid, Scope};
use crate::task::{self as shim_task, Rootfs, Shim, Streams};

/// The most of an image's passwd or group file that is read, in bytes.
const ACCOUNTS_MAX: usize = 1 << 20;

/// The most of a seccomp profile that is read, in bytes.
const PROFILE_MAX: u64 = 1 << 20;

impl Task {
    /// The story of CreateContainer.
    pub(super) async fn create(&mut self, request: Arc<cri::CreateContainerRequest>) -> Result<ContainerId, Error> {
        if self.state != PodState::Ready {
            return Err(self.not_ready());
        }
        self.take_back(&request).await?;
        if let Some(existing) = self.same_name(&request)? {
            return Ok(existing);
        }
        let began = Instant::now();
        let config = request.config.clone().unwrap_or_default();
        let image = self.image(&config).await?;
        let id = ContainerId::random().map_err(Error::ledger("make an id"))?;
        let defaults = defaults(&image);
        let (spec, record) = self.decide(&id, &request, &config, &image, &defaults).await?;
        let process = Arc::new(spec["process"].clone());
        let resources = Arc::new(asked_resources(&request));
        self.containers.insert(id.clone(), Container { resources, ..Container::new(record.clone(), request, process) });
        match self.make(&id, record, spec, &image, &config).await {
            Ok(()) => {
                self.shared.metrics.stage("create_container", began.elapsed());
                Ok(id)
            }
            Err(error) => {
                if let Err(left) = self.tear_down_container(&id).await {
                    tracing::error!(pod = %self.id, container = %id, error = super::chain(&left), "take back a container that could not be made; it is tried again when it is removed or made again");
                    self.step(&id, Event::Remove)?;
                }
                Err(error)
            }
        }
    }

    /// What an earlier attempt at this container left.
    async fn take_back(&mut self, request: &cri::CreateContainerRequest) -> Result<(), Error> {
        let wanted = metadata(request);
        let mut of_name = self.containers.iter().filter(|(_, c)| !c.record.sandbox && metadata(&c.request) == wanted);
        match of_name.find(|(_, c)| c.phase == Phase::Removing).map(|(id, _)| id.clone()) {
            Some(id) => self.tear_down_container(&id).await,
            None => Ok(()),
        }
    }

    /// A container of this name and attempt: the same request repeated gets it, another one is refused.
    fn same_name(&self, request: &cri::CreateContainerRequest) -> Result<Option<ContainerId>, Error> {
        let wanted = metadata(request);
        let mut all = self.containers.iter().filter(|(_, c)| !c.record.sandbox);
        let Some((id, found)) = all.find(|(_, c)| metadata(&c.request) == wanted) else {
            return Ok(None);
        };
        let difference = match found.phase {
            _ if *found.request != *request => "with another content",
            Phase::Created => return Ok(Some(id.clone())),
            _ => "and was started already",
        };
        Err(Error::Exists { name: wanted.name, pod: self.id.clone(), existing: id.clone(), difference })
    }

    async fn image(&self, config: &cri::ContainerConfig) -> Result<Image, Error> {
        let asked = config.image.clone().unwrap_or_default();
        let reference = asked.image;
        if reference.is_empty() {
            return Err(Invalid::new("config.image.image", "empty").into());
        }
        let fail = |source| Error::Image { reference: reference.clone(), source };
        self.shared.images.find(&reference).await.map_err(fail)?.ok_or_else(|| Error::NoImage(reference.clone()))
    }

    /// An image is asked for with the handler of its pod or with none.
    fn check_image_handlers(&self, config: &cri::ContainerConfig) -> Result<(), Invalid> {
        let own = config.image.iter().map(|image| ("config.image".to_owned(), image));
        let volumes = config.mounts.iter().enumerate();
        let volumes = volumes.filter_map(|(i, m)| Some((format!("config.mounts[{i}].image"), m.image.as_ref()?)));
        for (field, image) in own.chain(volumes) {
            if !image.runtime_handler.is_empty() && image.runtime_handler != self.request.runtime_handler {
                let (asked, pods) = (&image.runtime_handler, &self.request.runtime_handler);
                let problem = format!("{asked:?} is not the pod's, which is {pods:?}");
                return Err(Invalid::new(format!("{field}.runtime_handler"), problem));
            }
        }
        Ok(())
    }

    /// The spec and the record: everything that is decided before anything is taken.
    async fn decide(
        &self,
        id: &ContainerId,
        request: &cri::CreateContainerRequest,
        config: &cri::ContainerConfig,
        image: &Image,
        defaults: &ImageDefaults,
    ) -> Result<(Value, ContainerRecord), Error> {
        let sandbox = self.request.config.clone().unwrap_or_default();
        let security = config.linux.as_ref().and_then(|l| l.security_context.clone()).unwrap_or_default();
        let said = request.sandbox_config.clone().unwrap_or_default();
        sandbox_said::check(&said, &sandbox)?;
        check_standing(&said, &sandbox, &security)?;
        self.check_image_handlers(config)?;
        volumes::check(config).await?;
        let accounts = |path: &'static str| async move {
            let read = self.shared.images.read_file(&image.id, path, ACCOUNTS_MAX).await;
            let bytes = read.map_err(|source| Error::Image { reference: image.id.to_string(), source })?;
            Ok::<_, Error>(String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned())
        };
        let (passwd, group) = (accounts("/etc/passwd").await?, accounts("/etc/group").await?);
        let user = spec::resolve_user(&security, &defaults.user, &passwd, &group)?;
        let devices = devices::find(config, security.privileged).await?;
        let profile = match spec::seccomp_profile_path(&security)? {
            Some((path, field)) => Some(blocking(move || read_profile(&path, &field)).await?),
            None => None,
        };
        let apparmor = self.apparmor(&security).await?;
        let labels = self.shared.selinux.of_container(self.record.selinux.as_ref(), &security)?;
        if labels.is_some() {
            relabel::wanted(config, &self.shared.ledger.roots).await?;
        }
        let parent = sandbox.linux.as_ref().map(|l| l.cgroup_parent.as_str()).unwrap_or_default();
        // The pod's: it may have been made under the other one.
        let driver = self.shared.cgroup_driver.suited(parent);
        let cgroup_path = match self.cgroup_beside(id) {
            Some(beside) => beside,
            None => driver.container(&driver.parent(parent, &self.shared.cgroup_root)?, id.as_str()),
        };
        let parts = self.parts();
        let mut spec = spec::build(&Input {
            pod: self.id.as_str(),
            config,
            image: defaults,
            user: &user,
            parts: &parts,
            target_pid: self.target_pid(&security)?,
            held: match parts.user {
                Some(_) => &self.shared.host.known_capabilities,
                None => &self.shared.host.capabilities,
            },
            devices: &devices,
            seccomp_profile: profile.as_deref(),
            apparmor_profile: apparmor.as_deref(),
            labels: labels.as_ref(),
            cgroup_path: &cgroup_path,
            cgroup_v2: self.shared.host.cgroups.is_v2(),
        })?;
        spec["process"]["rlimits"] = self.shared.host.open_files.of_container();
        self.can_mount(config).await?;
        let volumes = image_volumes::find(&self.shared, config).await?;
        if let Some(handler) = self.handler()? {
            another::suit(&mut spec, &handler.name, self.may_lower_scores())?;
            match self.sandbox_container() {
                Some(_) => {
                    let (name, image) = (metadata(request).name, config.image.clone().unwrap_or_default().image);
                    let member = spec::GroupMember::Container { name: &name, image: &image };
                    spec::annotate_member(&mut spec, self.id.as_str(), &sandbox, member);
                }
                None => spec::annotate_alone(&mut spec),
            }
            if config.stdin {
                let problem = format!("handler {} has no way for clients to attach", handler.name);
                return Err(Invalid::new("config.stdin", problem).into());
            }
            if let Some(index) = config.mounts.iter().position(|mount| !mount.image_sub_path.is_empty()) {
                let problem = format!("handler {} mounts no part of an image", handler.name);
                return Err(Invalid::new(format!("config.mounts[{index}].image_sub_path"), problem).into());
            }
        }
        let record = ContainerRecord {
            id: id.clone(),
            created_at_ns: now_ns(),
            boot_id: self.shared.boot_id.clone(),
            request: request.encode_to_vec(),
            image_id: image.id.to_string(),
            stop_signal: spec::stop_signal(config, defaults),
            cgroup_path,
            log_path: log_path(&sandbox, config)?,
            uid: user.uid,
            gid: user.gid,
            groups: user.groups,
            volumes: volumes.into_iter().map(|(index, image)| (index, image.id.to_string())).collect(),
            sandbox: false,
        };
        Ok((spec, record))
    }

    /// The AppArmor profile of a container, loaded.
    pub(super) async fn apparmor(
        &self,
        security: &cri::LinuxContainerSecurityContext,
    ) -> Result<Option<String>, Error> {
        let is_on = apparmor::is_on();
        let default = || async {
            let loaded = self.shared.apparmor.load_default().await;
            loaded.map(|()| Some(apparmor::DEFAULT_PROFILE.to_owned()))
        };
        match AppArmor::of(security)? {
            AppArmor::Unconfined => Ok(None),
            AppArmor::DefaultIfAny if !is_on => Ok(None),
            // Said at start and by `berthd check`: a node without the parser runs what asks for nothing.
            AppArmor::DefaultIfAny if apparmor::parser().is_err() => Ok(None),
            AppArmor::DefaultIfAny => default().await.map_err(Error::AppArmor),
            AppArmor::Default(field) | AppArmor::Named(_, field) if !is_on => {
                let problem = "AppArmor is not on in this host's kernel (apparmor=1 security=apparmor turns it on)";
                Err(Invalid::new(field, problem).into())
            }
            AppArmor::Default(field) => default().await.map_err(|problem| Invalid::new(field, problem).into()),
            AppArmor::Named(name, field) => match apparmor::is_loaded(&name) {
                Ok(true) => Ok(Some(name)),
                Ok(false) => {
                    let problem = format!("profile {name:?} is not loaded; apparmor_parser --replace FILE loads it");
                    Err(Invalid::new(field, problem).into())
                }
                Err(problem) => Err(Invalid::new(field, problem).into()),
            },
        }
    }

    /// Whether this kernel does what the mounts ask for.
    async fn can_mount(&self, config: &cri::ContainerConfig) -> Result<(), Error> {
        if let Some(handler) = self.handler()? {
            let known = handler.features().await;
            for (index, mount) in config.mounts.iter().enumerate() {
                let unknown = |option: &&String| !spec::mount_option(option).is_some_and(|option| known.knows(option));
                if let Some(option) = mount.mount_options.iter().find(unknown) {
                    let problem = format!("handler {} does not say that it knows {option}", handler.name);
                    return Err(Invalid::new(format!("config.mounts[{index}].mount_options"), problem).into());
                }
            }
        }
        let Some(index) = config.mounts.iter().position(|mount| mount.recursive_read_only) else { return Ok(()) };
        let shared = &self.shared;
        let can = match self.handler()? {
            Some(handler) => handler.features().await.knows("rro"),
            None => {
                let features = shared.features.get(&shared.shim_binaries, &shared.ledger.roots).await;
                features.map_err(Error::Features)?.recursive_read_only
            }
        };
        match can {
            true => Ok(()),
            false => Err(Error::NoRecursiveReadOnly { field: format!("config.mounts[{index}].recursive_read_only") }),
        }
    }

    /// Whose shim runs the pod's containers; `None` for berth's own.
    pub(super) fn handler(&self) -> Result<Option<Arc<shim_task::Foreign>>, Invalid> {
        let found = self.shared.handlers.get(&self.request.runtime_handler);
        found.map_err(|problem| Invalid::new("runtime_handler", problem))
    }

    /// A process may have a lower score for the kernel's choice of whom to kill than the daemon has.
    pub(super) fn may_lower_scores(&self) -> bool {
        self.shared.host.capabilities.has("SYS_RESOURCE")
    }

    fn target_pid(&self, security: &cri::LinuxContainerSecurityContext) -> Result<Option<PathBuf>, Invalid> {
        let Some(options) = security.namespace_options.as_ref().filter(|o| o.pid() == cri::NamespaceMode::Target)
        else {
            return Ok(None);
        };
        let begun = |id: &ContainerId| !options.target_id.is_empty() && id.as_str().starts_with(&options.target_id);
        let all: Vec<_> = self.containers.iter().filter(|(id, c)| !c.record.sandbox && begun(id)).collect();
        match all[..] {
            [(_, Container { phase: Phase::Running { pid, .. } | Phase::Stopping { pid, .. }, .. })] => {
                Ok(Some(format!("/proc/{pid}/ns/pid").into()))
            }
            [] | [_] => Ok(None),
            _ => {
                let ids: Vec<_> = all.iter().map(|(id, _)| id.as_str()).collect();
                let field = "config.linux.security_context.namespace_options.target_id";
                let problem = format!("{:?} begins the ids of {}", options.target_id, ids.join(", "));
                Err(Invalid::new(field, problem))
            }
        }
    }

    /// Takes what was decided: record, then shim and rootfs side by side, then the parked init.
    async fn make(
        &mut self,
        id: &ContainerId,
        record: ContainerRecord,
        mut spec: Value,
        image: &Image,
        config: &cri::ContainerConfig,
    ) -> Result<(), Error> {
        let bundle = self.shared.ledger.roots.bundle(id);
        let log = record.log_path.clone();
        let (ledger, pod, recorded) = (self.shared.ledger.clone(), self.id.clone(), record.clone());
        let begun = move || ledger.begin_container(&pod, &recorded).map_err(Error::ledger("record the container"));
        blocking(begun).await?;
        image_volumes::take(&self.shared, id, &record.volumes, &mut spec).await?;
        // Without one nothing is labelled: SELinux is off here, or has no labels for containers.
        let label = spec["linux"]["mountLabel"].as_str().map(str::to_owned);
        if let Some(label) = &label {
            relabel::volumes(config, &self.shared.ledger.roots, label).await?;
        }
        let (shared, dir, cgroup_path) = (self.shared.clone(), bundle.clone(), record.cgroup_path.clone());
        let handler = self.handler()?;
        let asked = config.linux.as_ref().and_then(|l| l.resources.as_ref()).map_or(0, |r| r.oom_score_adj);
        // berth's own shim tells by itself.
        let score = handler.as_ref().map(|_| spec["process"]["oomScoreAdj"].as_i64().unwrap_or(0));
        blocking(move || {
            claim_cgroup(&shared, &record)?;
            write_bundle(&dir, &spec)?;
            if let Some(score) = score {
                let kept = another::keep_score(&dir, i32::try_from(asked).unwrap_or(0), i32::try_from(score).ok());
                kept.map_err(|source| Error::Io { deed: "write", path: dir.join(EFFECTIVE_FILE), source })?;
            }
            make_log_dir(Path::new(&record.log_path))
        })
        .await?;
        let shims = &self.shared.shim_binaries;
        let (streams, options) = match &handler {
            None => (streams(&log, config), None),
            Some(handler) => {
                let uri = shim_task::foreign::log_uri(shims, &bundle, &log).await;
                let stdout =
                    uri.map_err(|source| Error::Shim { container: id.clone(), step: "give it a log", source })?;
                let stderr = if config.tty { String::new() } else { stdout.clone() };
                (Streams { terminal: config.tty, stdin: String::new(), stdout, stderr }, Some(handler.options()))
            }
        };
        let shim = self.begin_shim(id, handler.as_ref(), &cgroup_path);
        let rootfs = async {
            let rootfs = self.shared.images.prepare_rootfs(&image.id, id.as_str());
            step!("create_container::snapshot-prepare", rootfs.await)
                .map_err(|source| Error::Image { reference: image.id.to_string(), source })
        };
        let began = Instant::now();
        let (shim, rootfs) = tokio::join!(shim, rootfs);
        // Kept before the other half is looked at, so that a failure there still ends this shim.
        if let (Ok(shim), Some(container)) = (&shim, self.containers.get_mut(id)) {
            container.shim = Some(shim.clone());
        }
        let (shim, rootfs) = (shim?, rootfs?);
        if let Some(label) = &label {
            relabel::copies(&rootfs.mounts, label).await?;
        }
        self.shared.metrics.stage("shim_and_rootfs", began.elapsed());
        let began = Instant::now();
        let mounts = rootfs.mounts.into_iter();
        let users = self.parts().user;
        let mapped = |mut options: Vec<String>| {
            options.extend(users.iter().flat_map(|(_, users)| users.mount_options()));
            options
        };
        // berth's shim takes it from the spec. In quotes: it may have a comma.
        let told = label.as_ref().filter(|_| handler.is_some()).map(|label| format!("context=\"{label}\""));
        let labelled = |m: berth_image_service::MountSpec| match m.kind.as_str() {
            "overlay" => m.options.into_iter().chain(told.clone()).collect(),
            _ => m.options,
        };
        let mounts = mounts
            .map(|m| Rootfs { kind: m.kind.clone(), source: m.source.clone(), options: mapped(labelled(m)) })
            .collect();
        let bundle_path = bundle.to_string_lossy();
        let created = step!(
            "create_container::shim-create",
            shim.create(id.as_str(), &bundle_path, mounts, streams, options).await
        );
        if created.as_ref().is_err_and(shim_task::Error::is_silence) {
            // Nothing else is asked of it: it is killed with what it has made.
            self.forget_shim(id);
        }
        created.map_err(|source| {
            let blamed = image_volumes::blamed(config, &source);
            blamed.unwrap_or(Error::Shim { container: id.clone(), step: "create", source })
        })?;
        self.shared.metrics.stage("shim_create", began.elapsed());
        self.step(id, Event::Created)?;
        if let Some(container) = self.containers.get_mut(id) {
            container.effective = Arc::new(read_effective(&bundle));
        }
        self.watch(id);
        Ok(())
    }

    /// Starts the container's shim, by its bundle, or meets the one that it shares. With systemd's driver a shim's first
    /// container has a scope, which the shim is put into.
    pub(super) async fn begin_shim(
        &self,
        id: &ContainerId,
        handler: Option<&Arc<shim_task::Foreign>>,
        cgroup_path: &str,
    ) -> Result<Shim, Error> {
        let (shims, bundle) = (&self.shared.shim_binaries, self.shared.ledger.roots.bundle(id));
        let daemon = (self.shared.ledger.roots.run.as_path(), self.shared.socket.as_path());
        let sealed = &self.shared.sealed;
        let shim = async {
            match handler {
                None => shim_task::start(shims, sealed, daemon, &bundle, id.as_str()).await,
                Some(handler) => shim_task::foreign::start(shims, handler, daemon, &bundle, id.as_str()).await,
            }
        };
        let started = step!("create_container::shim-spawn", shim.await);
        let failed = |step| move |source| Error::Shim { container: id.clone(), step, source };
        let shim = started.map_err(failed("start its shim"))?;
        if let Some(scope) = Scope::of(cgroup_path) {
            let pid = shim.own_pid(id.as_str()).await.map_err(failed("ask its shim who it is"))?;
            let cgroups = &self.shared.host.cgroups;
            step!(
                "create_container::systemd-scope",
                systemd::start_scope(cgroups, &scope, systemd::Member::Shim(pid)).await
            )
            .map_err(Error::Systemd)?;
        }
        Ok(shim)
    }
}

/// Writes down which cgroups above the container's will be berth's to remove.
pub(super) fn claim_cgroup(shared: &Shared, record: &ContainerRecord) -> Result<(), Error> {
    // What is above a scope is systemd's to make and to remove.
    if Scope::of(&record.cgroup_path).is_some() {
        return Ok(());
    }
    step!("create_container::cgroup-parents", shared.parents.claim(&record.cgroup_path, &record.id))
        .map_err(Error::ledger("record which parent cgroups are not there"))
}

fn metadata(request: &cri::CreateContainerRequest) -> cri::ContainerMetadata {
    request.config.as_ref().and_then(|c| c.metadata.clone()).unwrap_or_default()
}

/// The limits of the request.
pub(super) fn asked_resources(request: &cri::CreateContainerRequest) -> cri::LinuxContainerResources {
    let linux = request.config.as_ref().and_then(|c| c.linux.as_ref());
    linux.and_then(|l| l.resources.clone()).unwrap_or_default()
}

/// What the container may be is bounded by what its sandbox is.
fn check_standing(
    said: &cri::PodSandboxConfig,
    sandbox: &cri::PodSandboxConfig,
    security: &cri::LinuxContainerSecurityContext,
) -> Result<(), Invalid> {
    if security.privileged && !sandbox_said::is_privileged(said, sandbox) {
        let problem = "a privileged container needs a privileged sandbox";
        return Err(Invalid::new("config.linux.security_context.privileged", problem));
    }
    let options = security.namespace_options.clone().unwrap_or_default();
    let namespaces = super::sandbox_steps::Namespaces::of(sandbox);
    for (field, node, own) in [
        ("network", options.network() == cri::NamespaceMode::Node, namespaces.own_net),
        ("ipc", options.ipc() == cri::NamespaceMode::Node, namespaces.own_ipc),
    ] {
        if security.namespace_options.is_some() && node == own {
            let field = format!("config.linux.security_context.namespace_options.{field}");
            return Err(Invalid::new(field, "is not what the sandbox was made with"));
        }
    }
    const OPTIONS: &str = "config.linux.security_context.namespace_options";
    let said = spec::Users::of(security.namespace_options.as_ref(), OPTIONS)?;
    if options.userns_options.is_some() && said != super::users(sandbox)? {
        return Err(Invalid::new(format!("{OPTIONS}.userns_options"), "is not what the sandbox was made with"));
    }
    Ok(())
}

fn defaults(image: &Image) -> ImageDefaults {
    let config = image.config.clone();
    ImageDefaults {
        entrypoint: config.entrypoint,
        cmd: config.cmd,
        env: config.env,
        working_dir: config.working_dir,
        user: config.user,
        stop_signal: config.stop_signal,
    }
}

fn log_path(sandbox: &cri::PodSandboxConfig, config: &cri::ContainerConfig) -> Result<String, Invalid> {
    if sandbox.log_directory.is_empty() || config.log_path.is_empty() {
        return Ok(String::new());
    }
    let relative = Path::new(&config.log_path);
    if relative.components().any(|c| !matches!(c, std::path::Component::Normal(_))) {
        return Err(Invalid::new("config.log_path", format!("{:?} leaves the log directory", config.log_path)));
    }
    Ok(Path::new(&sandbox.log_directory).join(relative).to_string_lossy().into_owned())
}

/// The kubelet makes the directory; others may leave it to us.
fn make_log_dir(log: &Path) -> Result<(), Error> {
    match log.parent() {
        Some(dir) if !log.as_os_str().is_empty() => fs::create_dir_all(dir).map_err(|source| Error::Io {
            deed: "make the log directory",
            path: dir.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// Task's streams. A terminal has one for output.
fn streams(log: &str, config: &cri::ContainerConfig) -> Streams {
    let (stdout, stderr) = log_uris(log, config.tty);
    let stdin = match (config.stdin, config.stdin_once) {
        (false, _) => String::new(),
        (true, false) => format!("{ATTACH_SCHEME}://"),
        (true, true) => format!("{ATTACH_SCHEME}://?once=true"),
    };
    Streams { terminal: config.tty, stdin, stdout, stderr }
}

fn log_uris(log: &str, tty: bool) -> (String, String) {
    if log.is_empty() {
        // Clients may attach all the same.
        let clients = format!("{ATTACH_SCHEME}://");
        return (clients.clone(), if tty { String::new() } else { clients });
    }
    let mut path = String::new();
    for byte in log.bytes() {
        match byte {
            b'/' | b'-' | b'.' | b'_' | b'~' => path.push(byte.into()),
            b if b.is_ascii_alphanumeric() => path.push(b.into()),
            b => path.push_str(&format!("%{b:02X}")),
        }
    }
    let uri = |stream: &str| format!("{LOG_SCHEME}://{path}?stream={stream}");
    (uri("stdout"), if tty { String::new() } else { uri("stderr") })
}

pub(super) fn write_bundle(dir: &Path, spec: &Value) -> Result<(), Error> {
    let path = dir.join("config.json");
    let json = serde_json::to_vec(spec).map_err(io::Error::from);
    let written = json.and_then(|json| step!("create_container::spec-write", fs::write(&path, json)));
    written.map_err(|source| Error::Io { deed: "write", path, source })?;
    if let Some(label) = spec["linux"]["mountLabel"].as_str() {
        let path = dir.join(shim_task::LABEL_FILE);
        fs::write(&path, label).map_err(|source| Error::Io { deed: "write", path, source })?;
    }
    let root = dir.join("rootfs");
    fs::create_dir(&root).map_err(|source| Error::Io { deed: "make", path: root, source })
}

fn read_effective(bundle: &Path) -> Effective {
    kept_by_shim(bundle, EFFECTIVE_FILE).unwrap_or_default()
}

/// A file that a shim, perhaps of another build, left in the bundle.
fn kept_by_shim<T: ledger::Record>(bundle: &Path, name: &str) -> Option<T> {
    let found = ledger::read(&bundle.join(name))?;
    let told = |(path, problem): &(PathBuf, String)| {
        tracing::error!(path = %path.display(), problem, "what a shim wrote down cannot be read");
    };
    found.inspect_err(told).ok()
}

impl ledger::Record for ExitRecord {
    const FORMAT: u32 = FILE_FORMAT;
}

impl ledger::Record for Effective {
    const FORMAT: u32 = FILE_FORMAT;
}

/// Keeps a container's start for the next daemon: a status must not change with a restart.
pub(super) fn keep_start(bundle: &Path, at: SystemTime, pid: u32) -> Result<(), Error> {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let path = bundle.join(STARTED_FILE);
    let kept = step!("start_container::state-commit", fs::write(&path, format!("{} {pid}", since.as_nanos())));
    kept.map_err(|source| Error::Io { deed: "write", path, source })
}

/// The moment and the init's pid kept by `keep_start`.
pub(super) fn kept_start(bundle: &Path) -> Option<(SystemTime, u32)> {
    let text = fs::read_to_string(bundle.join(STARTED_FILE)).ok()?;
    let (nanos, pid) = text.split_once(' ')?;
    Some((SystemTime::UNIX_EPOCH + std::time::Duration::from_nanos(nanos.parse().ok()?), pid.parse().ok()?))
}

/// In the bundle: nanoseconds since the epoch at which StartContainer succeeded, and the init's pid.
const STARTED_FILE: &str = "started";

/// How the container ended by its shim's file, if that was written.
pub(super) async fn exit_record(bundle: PathBuf) -> Option<ExitRecord> {
    // On a tmpfs.
    kept_by_shim(&bundle, EXIT_FILE)
}

pub(super) fn effective(bundle: &Path) -> Effective {
    read_effective(bundle)
}

/// The process of a bundle made by an earlier daemon.
pub(super) fn process(bundle: &Path) -> Option<Value> {
    let spec: Value = serde_json::from_slice(&fs::read(bundle.join("config.json")).ok()?).ok()?;
    Some(spec["process"].clone())
}

fn read_profile(path: &str, field: &str) -> Result<String, Error> {
    let fail = |problem: String| Error::Invalid(Invalid::new(field, problem));
    let meta = fs::metadata(path).map_err(|e| fail(format!("{path}: {e}")))?;
    if !meta.is_file() || meta.len() > PROFILE_MAX {
        return Err(fail(format!("{path} is no file of at most {PROFILE_MAX} bytes")));
    }
    fs::read_to_string(path).map_err(|e| fail(format!("{path}: {e}")))
}

pub(crate) fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_path_stays_in_its_directory() {
        let sandbox = cri::PodSandboxConfig { log_directory: "/var/log/pods/x".into(), ..Default::default() };
        let path = |log: &str| {
            let config = cri::ContainerConfig { log_path: log.into(), ..Default::default() };
            log_path(&sandbox, &config)
        };
        assert_eq!(path("c/0.log").expect("good"), "/var/log/pods/x/c/0.log");
        assert_eq!(path("").expect("none"), "");
        for bad in ["../x", "/etc/passwd", "a/../../b"] {
            assert!(path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_log_uri_is_percent_encoded() {
        let (out, err) = log_uris("/a b/ü?.log", false);
        assert_eq!(out, "cri+file:///a%20b/%C3%BC%3F.log?stream=stdout");
        assert!(err.ends_with("?stream=stderr"));
        assert_eq!(log_uris("/a", true).1, "");
        assert_eq!(log_uris("", false).1, "berth+attach://");
    }
}
