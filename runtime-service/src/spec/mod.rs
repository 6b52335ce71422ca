//! From a CRI request to an OCI runtime spec, as a pure function: no clock, no IO. What it needs from the host is given.
//!
//! The spec is written as JSON values and handed to the shim as `config.json`; the tests read it back as
//! `oci_spec::runtime::Spec` and find nothing lost.

mod apparmor;
mod caps;
mod cgroup;
mod devices;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod mounts;
mod process;
mod resources;
mod sandbox;
mod seccomp;
mod seccomp_default;
mod selinux;
mod sysctl;
mod user;
mod users;

use std::path::PathBuf;

use berth_api::cri;
use serde_json::{Value, json};

pub(crate) use apparmor::AppArmor;
pub(crate) use caps::{Held, kernel_names as capability_names};
pub(crate) use cgroup::{Driver, Scope};
pub(crate) use devices::HostDevice;
pub(crate) use mounts::{fill_image_volume, is_image_volume, mount_option};
pub(crate) use process::{ImageDefaults, stop_signal};
pub(crate) use resources::{limits, merged as merged_resources};
pub(crate) use sandbox::{
    Member as GroupMember, Pod as SandboxPod, annotate as annotate_member, annotate_alone, build as build_sandbox,
    request as sandbox_request,
};
pub(crate) use seccomp::{check_old as check_old_seccomp, needs_file as seccomp_profile_path};
pub(crate) use selinux::{CATEGORIES, Defaults, Labels, PodLabels, asked as asked_labels};
pub(crate) use sysctl::check as check_sysctls;
pub(crate) use user::{User, resolve as resolve_user};
pub(crate) use users::Users;

/// A request that no spec can be made of; becomes InvalidArgument. The message names the field.
#[derive(Debug, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// Path of the field in the request.
    pub field: String,
    /// What is wrong with its value.
    pub problem: String,
}

impl Invalid {
    pub(crate) fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }
}

/// What the pod lends to each of its containers. `None` where the pod uses the host's.
#[derive(Clone, Debug, Default)]
pub(crate) struct PodParts {
    pub(crate) net: Option<PathBuf>,
    pub(crate) ipc: Option<PathBuf>,
    pub(crate) uts: Option<PathBuf>,
    pub(crate) pid: Option<PathBuf>,
    /// The user namespace, with its ids.
    pub(crate) user: Option<(PathBuf, Users)>,
    pub(crate) shm: PathBuf,
    pub(crate) hostname: String,
    pub(crate) hostname_file: PathBuf,
    pub(crate) hosts_file: PathBuf,
    pub(crate) resolv_conf: PathBuf,
}

/// Everything a spec is made of.
pub(crate) struct Input<'a> {
    pub(crate) pod: &'a str,
    pub(crate) config: &'a cri::ContainerConfig,
    pub(crate) image: &'a ImageDefaults,
    pub(crate) user: &'a User,
    pub(crate) parts: &'a PodParts,
    /// Pid namespace of another container, for `NamespaceMode::Target`.
    pub(crate) target_pid: Option<PathBuf>,
    /// What this host can give.
    pub(crate) held: &'a Held,
    /// Devices named in the request, or all of the host's for a privileged container.
    pub(crate) devices: &'a [HostDevice],
    /// Text of a Localhost seccomp profile.
    pub(crate) seccomp_profile: Option<&'a str>,
    /// Name of the AppArmor profile.
    pub(crate) apparmor_profile: Option<&'a str>,
    /// Of SELinux.
    pub(crate) labels: Option<&'a Labels>,
    pub(crate) cgroup_path: &'a str,
    /// The host's cgroups are version 2 only.
    pub(crate) cgroup_v2: bool,
}

impl Input<'_> {
    fn security(&self) -> cri::LinuxContainerSecurityContext {
        self.config.linux.as_ref().and_then(|l| l.security_context.clone()).unwrap_or_default()
    }
}

/// Paths hidden from a container that is not privileged and names none. Source: the custom of runc's `spec` command,
/// shared by containerd and CRI-O.
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/interrupts",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Paths that such a container may only read. Same source.
const READONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Builds the spec.
///
/// # Errors
/// `Invalid` names the first field that cannot be honoured.
pub(crate) fn build(input: &Input<'_>) -> Result<Value, Invalid> {
    let security = input.security();
    let mut linux = json!({
        "cgroupsPath": input.cgroup_path,
        "namespaces": namespaces(input, &security)?,
        "resources": resources::build(input, security.privileged)?,
        "devices": devices::nodes(input.devices),
    });
    if let Some((_, users)) = &input.parts.user {
        linux["uidMappings"] = users.uids.iter().map(users::Ids::oci).collect();
        linux["gidMappings"] = users.gids.iter().map(users::Ids::oci).collect();
    }
    if let Some(labels) = input.labels {
        linux["mountLabel"] = labels.mount.as_str().into();
    }
    if !security.privileged {
        // Over this wire an empty list cannot be told from one that was not sent. A kubelet sends it for
        // `procMount: Unmasked`, which Kubernetes takes only for a pod with a user namespace; from anybody else it is a
        // request that forgot them, whose root could write the host's core_pattern.
        let paths = |asked: &[String], default: &[&str]| match asked {
            [] if input.parts.user.is_none() => json!(default),
            asked => json!(asked),
        };
        linux["maskedPaths"] = paths(&security.masked_paths, MASKED);
        linux["readonlyPaths"] = paths(&security.readonly_paths, READONLY);
        if let Some(filter) = seccomp::build(&security, input.seccomp_profile, input.held)? {
            linux["seccomp"] = filter;
        }
    }
    let (process, env_annotation) = process::build(input, &security)?;
    let mut annotations = json!({
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.sandbox-id": input.pod,
    });
    if let Some(env) = env_annotation {
        annotations[berth_api::shim::ENV_ANNOTATION] = Value::String(env);
    }
    let mut spec = json!({
        "ociVersion": "1.2.0",
        "process": process,
        "root": { "path": "rootfs", "readonly": security.readonly_rootfs },
        "mounts": mounts::build(input, &security)?,
        "annotations": annotations,
        "linux": linux,
    });
    if input.parts.uts.is_some() {
        spec["hostname"] = Value::String(input.parts.hostname.clone());
    }
    Ok(spec)
}

fn namespaces(input: &Input<'_>, security: &cri::LinuxContainerSecurityContext) -> Result<Value, Invalid> {
    use cri::NamespaceMode as Mode;
    const FIELD: &str = "config.linux.security_context.namespace_options";
    let options = security.namespace_options.clone().unwrap_or_default();
    let mut list = vec![json!({ "type": "mount" })];
    let mut pod_owned = |kind: &str, path: &Option<PathBuf>| {
        if let Some(path) = path {
            list.push(json!({ "type": kind, "path": path }));
        }
    };
    pod_owned("network", &input.parts.net);
    pod_owned("ipc", &input.parts.ipc);
    pod_owned("uts", &input.parts.uts);
    pod_owned("user", &input.parts.user.as_ref().map(|(path, _)| path.clone()));
    match options.pid() {
        Mode::Container => list.push(json!({ "type": "pid" })),
        Mode::Node => {}
        Mode::Pod => match &input.parts.pid {
            Some(path) => list.push(json!({ "type": "pid", "path": path })),
            None => {
                return Err(Invalid::new(
                    format!("{FIELD}.pid"),
                    "POD, but the sandbox was made without a shared pid namespace (its own pid option is not POD)",
                ));
            }
        },
        Mode::Target => match &input.target_pid {
            Some(path) => list.push(json!({ "type": "pid", "path": path })),
            None => return Err(Invalid::new(format!("{FIELD}.target_id"), "names no running container of this pod")),
        },
    }
    if input.cgroup_v2 {
        list.push(json!({ "type": "cgroup" }));
    }
    Ok(Value::Array(list))
}

#[cfg(test)]
mod tests;
