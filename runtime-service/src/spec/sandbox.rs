//! The spec of a sandbox container, and the annotations by which shims that have one process for a pod know the pod's
//! containers. The names are those of containerd's CRI plugin, which such shims are made for.

use berth_api::cri;
use berth_api::cri::security_profile::ProfileType;
use serde_json::{Value, json};

use super::mounts::bind;
use super::{Held, Input, Invalid, Labels, PodParts, User, build as build_container};

/// User and group that nobody else is. Source: the pause image of Kubernetes.
const NOBODY: u32 = 65_535;

/// The least that the kernel gives. Source: containerd's and CRI-O's own for theirs.
const CPU_SHARES: i64 = 2;

/// A pod shall not die because it waits. Source: the same.
const OOM_SCORE_ADJ: i64 = -998;

/// Who is told to a shim.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Member<'a> {
    /// The first, and the one that the shim's process is found by.
    Sandbox,
    Container {
        name: &'a str,
        image: &'a str,
    },
}

/// Adds what tells a shim whose container this is. Source: `pkg/cri/annotations` of containerd.
pub(crate) fn annotate(spec: &mut Value, pod: &str, config: &cri::PodSandboxConfig, member: Member<'_>) {
    let metadata = config.metadata.clone().unwrap_or_default();
    let mut set = |name: &str, value: &str| spec["annotations"][format!("io.kubernetes.cri.{name}")] = value.into();
    set("sandbox-id", pod);
    set("sandbox-name", &metadata.name);
    set("sandbox-namespace", &metadata.namespace);
    set("sandbox-uid", &metadata.uid);
    match member {
        Member::Container { name, image } => {
            set("container-type", "container");
            set("container-name", name);
            set("image-name", image);
        }
        Member::Sandbox => {
            set("container-type", "sandbox");
            set("sandbox-log-directory", &config.log_directory);
            // What a virtual machine is to be measured by.
            if let Some(sum) = config.linux.as_ref().and_then(|linux| linux.resources.as_ref()) {
                set("sandbox-cpu-period", &sum.cpu_period.to_string());
                set("sandbox-cpu-quota", &sum.cpu_quota.to_string());
                set("sandbox-cpu-shares", &sum.cpu_shares.to_string());
                set("sandbox-memory", &sum.memory_limit_in_bytes.to_string());
            }
        }
    }
}

/// Takes away by what containerd's shims put the containers of a pod into one process: this one is to have its own.
pub(crate) fn annotate_alone(spec: &mut Value) {
    if let Some(annotations) = spec["annotations"].as_object_mut() {
        annotations.remove("io.kubernetes.cri.sandbox-id");
    }
}

/// What the sandbox container is asked to be: a process without rights, in the pod's namespaces.
pub(crate) fn request(program: &str, config: &cri::PodSandboxConfig) -> cri::ContainerConfig {
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let asked = security.and_then(|security| security.namespace_options.clone()).unwrap_or_default();
    let pid = match asked.pid() {
        mode @ (cri::NamespaceMode::Pod | cri::NamespaceMode::Node) => mode,
        _ => cri::NamespaceMode::Container,
    };
    let security = cri::LinuxContainerSecurityContext {
        namespace_options: Some(cri::NamespaceOption { pid: pid.into(), ..asked }),
        capabilities: Some(cri::Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() }),
        seccomp: Some(cri::SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), ..Default::default() }),
        readonly_rootfs: true,
        no_new_privs: true,
        ..Default::default()
    };
    let resources =
        cri::LinuxContainerResources { cpu_shares: CPU_SHARES, oom_score_adj: OOM_SCORE_ADJ, ..Default::default() };
    cri::ContainerConfig {
        command: vec![program.into()],
        linux: Some(cri::LinuxContainerConfig { resources: Some(resources), security_context: Some(security) }),
        ..Default::default()
    }
}

/// What a sandbox container's spec is made of, beside its request.
pub(crate) struct Pod<'a> {
    pub(crate) id: &'a str,
    pub(crate) config: &'a cri::PodSandboxConfig,
    pub(crate) parts: &'a PodParts,
    pub(crate) held: &'a Held,
    pub(crate) apparmor_profile: Option<&'a str>,
    pub(crate) labels: Option<&'a Labels>,
    pub(crate) cgroup_path: &'a str,
    pub(crate) cgroup_v2: bool,
}

/// Builds the spec.
///
/// # Errors
/// See `spec::build`.
pub(crate) fn build(request: &cri::ContainerConfig, pod: &Pod<'_>) -> Result<Value, Invalid> {
    let mut spec = build_container(&Input {
        pod: pod.id,
        config: request,
        image: &Default::default(),
        user: &User { uid: NOBODY, gid: NOBODY, groups: vec![NOBODY], home: "/".into() },
        parts: pod.parts,
        target_pid: None,
        held: pod.held,
        devices: &[],
        seccomp_profile: None,
        apparmor_profile: pod.apparmor_profile,
        labels: pod.labels,
        cgroup_path: pod.cgroup_path,
        cgroup_v2: pod.cgroup_v2,
    })?;
    annotate(&mut spec, pod.id, pod.config, Member::Sandbox);
    // What a runtime wants there, and what one of a virtual machine takes from there for the pod.
    let shm = ["rbind", "rprivate", "nosuid", "nodev", "noexec"];
    spec["mounts"] = json!([
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
         "options": ["nosuid", "strictatime", "mode=755", "size=64k"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        bind("/dev/shm", &pod.parts.shm.to_string_lossy(), &shm),
        bind("/etc/resolv.conf", &pod.parts.resolv_conf.to_string_lossy(), &["rbind", "rprivate", "ro"]),
    ]);
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(check: impl FnOnce(&mut cri::PodSandboxConfig)) -> Value {
        let metadata = cri::PodSandboxMetadata {
            name: "web-0".into(),
            uid: "U".into(),
            namespace: "shop".into(),
            ..Default::default()
        };
        let mut config = cri::PodSandboxConfig {
            metadata: Some(metadata),
            log_directory: "/var/log/pods/x".into(),
            linux: Some(Default::default()),
            ..Default::default()
        };
        check(&mut config);
        let parts = PodParts {
            net: Some("/run/berth/p/P/ns/net".into()),
            pid: Some("/run/berth/p/P/ns/pid".into()),
            shm: "/run/berth/p/P/shm".into(),
            resolv_conf: "/run/berth/p/P/resolv.conf".into(),
            ..Default::default()
        };
        let pod = Pod {
            id: "P",
            config: &config,
            parts: &parts,
            held: &Held::from_mask((1 << 41) - 1),
            apparmor_profile: None,
            labels: None,
            cgroup_path: "/berth/P",
            cgroup_v2: true,
        };
        build(&request("/pause", &config), &pod).expect("builds")
    }

    #[test]
    fn it_is_told_as_containerd_tells_it() {
        let spec = sandbox(|config| {
            let resources = cri::LinuxContainerResources { cpu_period: 100_000, ..Default::default() };
            config.linux.get_or_insert_default().resources = Some(resources);
        });
        assert_eq!(
            spec["annotations"],
            json!({
                "io.kubernetes.cri.container-type": "sandbox",
                "io.kubernetes.cri.sandbox-id": "P",
                "io.kubernetes.cri.sandbox-name": "web-0",
                "io.kubernetes.cri.sandbox-namespace": "shop",
                "io.kubernetes.cri.sandbox-uid": "U",
                "io.kubernetes.cri.sandbox-log-directory": "/var/log/pods/x",
                "io.kubernetes.cri.sandbox-cpu-period": "100000",
                "io.kubernetes.cri.sandbox-cpu-quota": "0",
                "io.kubernetes.cri.sandbox-cpu-shares": "0",
                "io.kubernetes.cri.sandbox-memory": "0",
            })
        );
        let mut spec = json!({"annotations": {"own": "kept"}});
        annotate(&mut spec, "P", &Default::default(), Member::Container { name: "c", image: "busybox" });
        assert_eq!(spec["annotations"]["io.kubernetes.cri.container-type"], "container");
        assert_eq!(spec["annotations"]["io.kubernetes.cri.container-name"], "c");
        assert_eq!(spec["annotations"]["io.kubernetes.cri.image-name"], "busybox");
        assert_eq!(spec["annotations"]["own"], "kept");
        assert_eq!(spec["annotations"]["io.kubernetes.cri.sandbox-id"], "P");
        annotate_alone(&mut spec);
        assert!(spec["annotations"]["io.kubernetes.cri.sandbox-id"].is_null());
    }

    #[test]
    fn it_has_no_rights_and_the_pods_namespaces() {
        let spec = sandbox(|config| {
            let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
            security.namespace_options.get_or_insert_default().pid = cri::NamespaceMode::Pod.into();
        });
        let read: oci_spec::runtime::Spec = serde_json::from_value(spec.clone()).expect("an OCI spec");
        let process = read.process().as_ref().expect("a process");
        assert_eq!(process.args().as_deref(), Some(&["/pause".to_owned()][..]));
        assert_eq!((process.user().uid(), process.no_new_privileges()), (NOBODY, Some(true)));
        for (set, held) in spec["process"]["capabilities"].as_object().expect("sets") {
            assert_eq!(held, &json!([]), "{set}");
        }
        assert!(spec["linux"]["seccomp"].is_object() && spec["root"]["readonly"] == true);
        let path = |kind: &str| {
            let all = spec["linux"]["namespaces"].as_array().expect("a list").clone();
            all.into_iter().find(|n| n["type"] == kind).map(|n| n["path"].as_str().unwrap_or_default().to_owned())
        };
        assert_eq!(path("network").as_deref(), Some("/run/berth/p/P/ns/net"));
        assert_eq!(path("pid").as_deref(), Some("/run/berth/p/P/ns/pid"));
        let own = sandbox(|config| {
            let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
            security.namespace_options.get_or_insert_default().pid = cri::NamespaceMode::Target.into();
        });
        let pid = own["linux"]["namespaces"].as_array().expect("a list").iter().find(|n| n["type"] == "pid").cloned();
        assert_eq!(pid, Some(json!({"type": "pid"})), "one of its own");
    }
}
