//! `run`: one container in a pod of its own, in one step. In the foreground its log is followed and its exit code is
//! ours; what was made is taken back when it cannot be run.

use std::path::{Path, PathBuf};

use berth_api::cri::{
    Capability, ContainerConfig, ContainerMetadata, ContainerState, ContainerStatus, ImageSpec, Int64Value, KeyValue,
    LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, Mount, NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
    PortMapping, Protocol, SecurityProfile, security_profile::ProfileType,
};

use super::choose::{POD_NAME, POD_NAMESPACE, label};
use super::logs::WhileRunning;
use super::pull::{Credentials, Wanted, pull};
use super::{container, create, image, pod};
use crate::error::Error;
use crate::human::parse_bytes;
use crate::log::{Options, Printer, read};
use crate::node::Node;
use crate::output::{line, short};

/// Seconds a container gets to end after Ctrl-C.
const GRACE: i64 = 10;
/// The kernel's usual period of processor limits, in microseconds.
const CPU_PERIOD: i64 = 100_000;

#[derive(clap::Args)]
pub(crate) struct Run {
    /// Print the container's id and leave it running
    #[arg(short, long)]
    detach: bool,
    /// Remove pod, container and log when the container has ended
    #[arg(long, conflicts_with = "detach")]
    rm: bool,
    /// Name of the pod and its container [default: from the image]
    #[arg(long)]
    name: Option<String>,
    /// Namespace of the pod
    #[arg(long, default_value = "default")]
    namespace: String,
    /// Environment variable; without a value: ours
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// Path of the host to mount; ":ro" for read-only
    #[arg(short = 'v', long, value_name = "HOST-PATH:PATH[:ro]", value_parser = mount)]
    mount: Vec<Mount>,
    /// Publish a port of the pod on the host
    #[arg(short, long, value_name = "[IP:]HOST-PORT:PORT[/udp|/sctp]", value_parser = port)]
    publish: Vec<PortMapping>,
    /// Label of the pod and its container
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// Use the host's network
    #[arg(long)]
    host_network: bool,
    /// User to run as [default: the image's]
    #[arg(short, long, value_name = "UID[:GID]|NAME")]
    user: Option<String>,
    /// Directory to start in [default: the image's]
    #[arg(short, long, default_value = "", hide_default_value = true)]
    workdir: String,
    /// Program instead of the image's entry point
    #[arg(long)]
    entrypoint: Option<String>,
    /// Most memory, such as 64m
    #[arg(short, long, value_parser = parse_bytes)]
    memory: Option<i64>,
    /// Most processors, such as 0.5
    #[arg(long, default_value_t = 0.0, hide_default_value = true)]
    cpus: f64,
    /// Capability to add, such as NET_ADMIN
    #[arg(long, value_name = "NAME")]
    cap_add: Vec<String>,
    /// Give the container everything the host has
    #[arg(long)]
    privileged: bool,
    /// Make the root file system read-only
    #[arg(long)]
    read_only: bool,
    /// Handler to run it with [default: the runtime's default]
    #[arg(long, default_value = "", hide_default_value = true)]
    runtime: String,
    /// When to pull the image
    #[arg(long, default_value = "missing")]
    pull: PullWhen,
    #[command(flatten)]
    credentials: Credentials,
    /// Directory for the log, in which each pod gets one of its own
    #[arg(long, default_value = "/var/log/berth", value_name = "DIR")]
    log_directory: PathBuf,
    /// Image to run
    image: String,
    /// Program and arguments [default: the image's]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum PullWhen {
    Missing,
    Always,
    Never,
}

impl Run {
    pub(crate) async fn run(self, node: &Node) -> Result<(), Error> {
        let pod_config = self.pod();
        let config = self.container(&pod_config)?;
        self.provide_image(node, &pod_config).await?;
        let pod_id = pod::run(node, pod_config.clone(), self.runtime.clone(), None).await?;
        let id = match self.begin(node, &pod_id, config, &pod_config).await {
            Ok(id) => id,
            Err(error) => return Err(take_back(node, &pod_id, &pod_config, error).await),
        };
        match self.detach {
            true => line(id),
            false => self.attend(node, &pod_id, &id, &pod_config).await,
        }
    }

    async fn provide_image(&self, node: &Node, pod: &PodSandboxConfig) -> Result<(), Error> {
        let here = image::status(node, &self.image, false).await?.image.is_some();
        match self.pull {
            PullWhen::Never if !here => Err(Error::Refused(format!("image {} is not on the node", self.image))),
            PullWhen::Always | PullWhen::Missing if !here || self.pull == PullWhen::Always => {
                node.debug(|| format!("pull {} for {}", self.image, pod.hostname));
                let wanted = Wanted { image: self.image.clone(), annotations: Default::default(), pod: None };
                pull(node, wanted, &self.credentials).await.map(drop)
            }
            _ => Ok(()),
        }
    }

    async fn begin(
        &self,
        node: &Node,
        pod_id: &str,
        config: ContainerConfig,
        pod: &PodSandboxConfig,
    ) -> Result<String, Error> {
        let id = create::create(node, pod_id, config, pod.clone(), None).await?;
        container::start(node, &id).await?;
        Ok(id)
    }

    /// Follows the container to its end, then lets go of what it held.
    async fn attend(&self, node: &Node, pod_id: &str, id: &str, pod: &PodSandboxConfig) -> Result<(), Error> {
        eprintln!("berth: pod {} container {}", short(pod_id), short(id));
        let status = container::status(node, id).await?;
        let log = PathBuf::from(&status.log_path);
        let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
        let mut printer = Printer::new(Options::default(), &mut out, &mut err);
        let mut running = WhileRunning::new(node, id);
        let mut following = std::pin::pin!(read(&log, None, &mut printer, &mut running));
        let followed = tokio::select! {
            end = &mut following => end,
            // What it writes while it ends is still shown. A second signal ends us at once.
            () = told_to_stop() => {
                let stopped = container::stop(node, id, GRACE);
                let (end, stopped) = tokio::join!(following, stopped);
                end.and(stopped)
            }
        };
        let ended = container::status(node, id).await;
        let let_go = match self.rm {
            true => clear(node, pod_id, pod).await,
            false => pod::stop(node, pod_id).await,
        };
        followed?;
        let ended = ended?;
        let_go?;
        exit(&ended)
    }

    fn pod(&self) -> PodSandboxConfig {
        let uid = uuid::Uuid::new_v4().to_string();
        let name = self.name.clone().unwrap_or_else(|| format!("{}-{}", name_of(&self.image), &uid[..6]));
        let log_directory = self.log_directory.join(format!("{}_{name}_{uid}", self.namespace));
        let network = if self.host_network { NamespaceMode::Node } else { NamespaceMode::Pod };
        let security_context = LinuxSandboxSecurityContext {
            namespace_options: Some(NamespaceOption {
                network: network.into(),
                pid: NamespaceMode::Container.into(),
                ..Default::default()
            }),
            privileged: self.privileged,
            ..Default::default()
        };
        PodSandboxConfig {
            hostname: if self.host_network { String::new() } else { name.clone() },
            metadata: Some(PodSandboxMetadata { name, uid, namespace: self.namespace.clone(), attempt: 0 }),
            log_directory: log_directory.to_string_lossy().into_owned(),
            port_mappings: self.publish.clone(),
            labels: self.label.iter().cloned().collect(),
            linux: Some(LinuxPodSandboxConfig { security_context: Some(security_context), ..Default::default() }),
            ..Default::default()
        }
    }

    fn container(&self, pod: &PodSandboxConfig) -> Result<ContainerConfig, Error> {
        let metadata = pod.metadata.clone().unwrap_or_default();
        let mut labels = pod.labels.clone();
        // By these `ps` knows whose container it is, as it does for the kubelet's.
        labels.insert(POD_NAME.into(), metadata.name.clone());
        labels.insert(POD_NAMESPACE.into(), metadata.namespace);
        Ok(ContainerConfig {
            metadata: Some(ContainerMetadata { name: metadata.name, attempt: 0 }),
            image: Some(ImageSpec {
                image: self.image.clone(),
                user_specified_image: self.image.clone(),
                ..Default::default()
            }),
            command: self.entrypoint.iter().cloned().collect(),
            args: self.command.clone(),
            working_dir: self.workdir.clone(),
            envs: self.env.iter().map(|text| variable(text)).collect::<Result<_, _>>()?,
            mounts: self.mount.clone(),
            labels,
            log_path: "0.log".into(),
            linux: Some(LinuxContainerConfig {
                resources: Some(LinuxContainerResources {
                    memory_limit_in_bytes: self.memory.unwrap_or(0),
                    cpu_period: if self.cpus > 0.0 { CPU_PERIOD } else { 0 },
                    cpu_quota: (self.cpus * CPU_PERIOD as f64) as i64,
                    ..Default::default()
                }),
                security_context: Some(self.security(pod)?),
            }),
            ..Default::default()
        })
    }

    fn security(&self, pod: &PodSandboxConfig) -> Result<LinuxContainerSecurityContext, Error> {
        let namespaces = pod.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let mut security = LinuxContainerSecurityContext {
            capabilities: Some(Capability { add_capabilities: self.cap_add.clone(), ..Default::default() }),
            privileged: self.privileged,
            namespace_options: namespaces.and_then(|security| security.namespace_options.clone()),
            readonly_rootfs: self.read_only,
            ..Default::default()
        };
        if !self.privileged {
            let profile = SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), ..Default::default() };
            security.seccomp = Some(profile);
            security.masked_paths = MASKED.map(String::from).to_vec();
            security.readonly_paths = READ_ONLY.map(String::from).to_vec();
        }
        let Some(user) = &self.user else {
            return Ok(security);
        };
        let (user, group) = user.split_once(':').map_or((user.as_str(), None), |(user, group)| (user, Some(group)));
        match user.parse() {
            Ok(value) => security.run_as_user = Some(Int64Value { value }),
            Err(_) => security.run_as_username = user.into(),
        }
        if let Some(group) = group {
            let value = group.parse().map_err(|_| Error::usage(format!("group {group:?} is not a number")))?;
            security.run_as_group = Some(Int64Value { value });
        }
        Ok(security)
    }
}

/// What the kubelet masks in a container that is not privileged.
const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
];
/// What the kubelet makes read-only in a container that is not privileged.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Ctrl-C or SIGTERM.
async fn told_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        // Without handlers a signal ends us, as it does any program.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    eprintln!("berth: stopping the container; it has {GRACE}s");
}

/// Undoes a pod whose container could not be run. The reason why comes first, a failure of the undoing after it.
async fn take_back(node: &Node, pod_id: &str, pod: &PodSandboxConfig, reason: Error) -> Error {
    match clear(node, pod_id, pod).await {
        Ok(()) => reason,
        Err(error) => Error::Several(vec![reason, error]),
    }
}

/// Stops and removes the pod, and the log directory that was made for it.
async fn clear(node: &Node, pod_id: &str, pod: &PodSandboxConfig) -> Result<(), Error> {
    pod::stop(node, pod_id).await?;
    pod::remove(node, pod_id).await?;
    let log = Path::new(&pod.log_directory);
    container::remove_logs(&log.join("0.log"))?;
    match std::fs::remove_dir(log) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::Remove { path: log.into(), source }),
        _ => Ok(()),
    }
}

/// The container's exit code as ours; a reason that the program cannot have told is told here.
fn exit(ended: &ContainerStatus) -> Result<(), Error> {
    if ended.state() != ContainerState::ContainerExited {
        return Err(Error::Refused(format!("container {} has not ended: {:?}", short(&ended.id), ended.state())));
    }
    if !matches!(ended.reason.as_str(), "" | "Completed" | "Error") {
        eprintln!("berth: {} {}", ended.reason, ended.message);
    }
    match ended.exit_code {
        0 => Ok(()),
        code => Err(Error::Exit(code)),
    }
}

/// The last part of an image's name, fit for a host name.
fn name_of(image: &str) -> String {
    let path = image.split('@').next().unwrap_or_default();
    let last = path.rsplit('/').next().unwrap_or_default();
    let name = last.split(':').next().unwrap_or_default().to_lowercase();
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect();
    let name = name.trim_matches('-');
    if name.is_empty() { "container".into() } else { name.into() }
}

/// `KEY=VALUE`, or `KEY` for the value it has here.
fn variable(text: &str) -> Result<KeyValue, Error> {
    use std::os::unix::ffi::OsStringExt;
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, value.as_bytes().to_vec()),
        None => match std::env::var_os(text) {
            Some(value) => (text, value.into_vec()),
            None => {
                return Err(Error::usage(format!("--env {text}: it has no value here: write {text}=VALUE")));
            }
        },
    };
    Ok(KeyValue { key: key.into(), value })
}

/// `HOST-PATH:PATH[:ro|:rw]`.
fn mount(text: &str) -> Result<Mount, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (host_path, container_path, readonly) = match parts[..] {
        [host, path] | [host, path, "rw"] => (host, path, false),
        [host, path, "ro"] => (host, path, true),
        _ => return Err(format!("{text:?} is not HOST-PATH:PATH[:ro]")),
    };
    if !host_path.starts_with('/') || !container_path.starts_with('/') {
        return Err(format!("{text:?}: both paths must begin with /"));
    }
    Ok(Mount { host_path: host_path.into(), container_path: container_path.into(), readonly, ..Default::default() })
}

/// `[IP:]HOST-PORT:PORT[/PROTOCOL]`; an IPv6 address in brackets.
fn port(text: &str) -> Result<PortMapping, String> {
    let wrong = || format!("{text:?} is not [IP:]HOST-PORT:PORT[/udp|/sctp]");
    let (rest, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = Protocol::from_str_name(&protocol.to_uppercase()).ok_or_else(wrong)?;
    let (rest, container_port) = rest.rsplit_once(':').ok_or_else(wrong)?;
    let (host_ip, host_port) = rest.rsplit_once(':').unwrap_or(("", rest));
    let number = |port: &str| port.parse::<u16>().ok().filter(|port| *port > 0).map(i32::from).ok_or_else(wrong);
    Ok(PortMapping {
        protocol: protocol.into(),
        container_port: number(container_port)?,
        host_port: number(host_port)?,
        host_ip: host_ip.trim_start_matches('[').trim_end_matches(']').into(),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        run: Run,
    }

    fn parsed(words: &[&str]) -> (PodSandboxConfig, ContainerConfig) {
        let run = Line::parse_from(std::iter::once(&"run").chain(words)).run;
        let pod = run.pod();
        let container = run.container(&pod).unwrap();
        (pod, container)
    }

    #[test]
    fn the_image_and_what_follows_it_are_the_containers() {
        let (pod, container) = parsed(&["--name", "web", "-e", "A=b=c", "r.io/x:1", "sh", "-c", "echo --rm"]);
        assert_eq!(container.args, ["sh", "-c", "echo --rm"]);
        assert_eq!(container.image.unwrap().image, "r.io/x:1");
        assert_eq!((container.envs[0].key.as_str(), container.envs[0].value.as_slice()), ("A", b"b=c".as_slice()));
        let metadata = pod.metadata.unwrap();
        assert_eq!((metadata.name.as_str(), pod.hostname.as_str()), ("web", "web"));
        assert_eq!(pod.log_directory, format!("/var/log/berth/default_web_{}", metadata.uid));
        assert_eq!(container.labels[POD_NAME], "web");
    }

    #[test]
    fn pod_and_container_agree_on_namespaces() {
        let (pod, container) = parsed(&["--host-network", "x"]);
        let of_pod = pod.linux.unwrap().security_context.unwrap().namespace_options.unwrap();
        let of_container = container.linux.unwrap().security_context.unwrap().namespace_options.unwrap();
        assert_eq!(of_pod, of_container);
        assert_eq!((of_pod.network(), pod.hostname.as_str()), (NamespaceMode::Node, ""));
    }

    #[test]
    fn limits_and_users_are_understood() {
        let (_, container) = parsed(&["-m", "64m", "--cpus", "0.5", "-u", "1000:100", "x"]);
        let linux = container.linux.unwrap();
        let (resources, security) = (linux.resources.unwrap(), linux.security_context.unwrap());
        assert_eq!((resources.memory_limit_in_bytes, resources.cpu_quota), (64 << 20, 50_000));
        assert_eq!((security.run_as_user.unwrap().value, security.run_as_group.unwrap().value), (1000, 100));
        let (_, container) = parsed(&["-u", "nobody", "x"]);
        assert_eq!(container.linux.unwrap().security_context.unwrap().run_as_username, "nobody");
    }

    #[test]
    fn names_come_from_images() {
        for (image, name) in [
            ("docker.io/library/busybox:1.36", "busybox"),
            ("r.io:5000/a/My_App@sha256:00", "my-app"),
            ("x", "x"),
            ("r.io/__", "container"),
        ] {
            assert_eq!(name_of(image), name);
        }
    }

    #[test]
    fn mounts_and_ports_are_understood() {
        let ro = mount("/a:/b:ro").unwrap();
        assert_eq!((ro.host_path.as_str(), ro.container_path.as_str(), ro.readonly), ("/a", "/b", true));
        assert!(mount("a:/b").is_err() && mount("/a").is_err() && mount("/a:/b:rx").is_err());
        let check = |text: &str, ip: &str, host, inside, protocol: Protocol| {
            let port = port(text).unwrap();
            assert_eq!((port.host_ip.as_str(), port.host_port, port.container_port), (ip, host, inside));
            assert_eq!(port.protocol(), protocol);
        };
        check("8080:80", "", 8080, 80, Protocol::Tcp);
        check("127.0.0.1:53:5353/udp", "127.0.0.1", 53, 5353, Protocol::Udp);
        check("[::1]:80:80", "::1", 80, 80, Protocol::Tcp);
        assert!(port("80").is_err() && port("0:80").is_err() && port("80:80/icmp").is_err());
    }

    #[test]
    fn an_exit_code_is_handed_on() {
        let ended = |exit_code| ContainerStatus {
            state: ContainerState::ContainerExited.into(),
            exit_code,
            reason: "Error".into(),
            ..Default::default()
        };
        assert!(exit(&ended(0)).is_ok());
        assert!(matches!(exit(&ended(7)), Err(Error::Exit(7))));
        assert!(matches!(exit(&ContainerStatus::default()), Err(Error::Refused(_))));
    }
}
