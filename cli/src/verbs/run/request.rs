//! The pod and the container that the flags of `run` ask for.

use berth_api::cri::security_profile::ProfileType;
use berth_api::cri::{
    Capability, ContainerConfig, ContainerMetadata, ImageSpec, Int64Value, KeyValue, LinuxContainerConfig,
    LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata, SecurityProfile,
};

use super::Run;
use crate::error::Error;
use crate::verbs::choose::{POD_NAME, POD_NAMESPACE};

/// The kernel's usual period of processor limits, in microseconds.
const CPU_PERIOD: i64 = 100_000;

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

impl Run {
    /// A pod with a log directory of its own; what was not asked for is left to the runtime.
    pub(super) fn pod(&self) -> PodSandboxConfig {
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

    /// # Errors
    /// `Usage` when a flag makes no sense.
    pub(super) fn container(&self, pod: &PodSandboxConfig) -> Result<ContainerConfig, Error> {
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
}
