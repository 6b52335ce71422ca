//! What is mounted in a container: the kernel's file systems, the pod's files, the request's volumes.

use berth_api::cri;
use serde_json::{Value, json};

use super::{Input, Invalid};

/// The list in mounting order: ours first, then the request's by depth, so that a parent never hides its child.
pub(super) fn build(input: &Input<'_>, security: &cri::LinuxContainerSecurityContext) -> Result<Value, Invalid> {
    let mut asked = Vec::with_capacity(input.config.mounts.len());
    for (index, mount) in input.config.mounts.iter().enumerate() {
        asked.push(volume(index, mount)?);
    }
    asked.sort_by_key(|(destination, _)| destination.split('/').filter(|part| !part.is_empty()).count());
    let taken = |path: &str| asked.iter().any(|(destination, _)| destination.trim_end_matches('/') == path);

    let sys_mode = if security.privileged { "rw" } else { "ro" };
    let mut list = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
               "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
               "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", sys_mode]}),
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
               "options": ["nosuid", "noexec", "nodev", "relatime", sys_mode]}),
    ];
    if !taken("/dev/shm") {
        list.push(bind(
            "/dev/shm",
            &input.parts.shm.to_string_lossy(),
            &["rbind", "rprivate", "nosuid", "nodev", "noexec"],
        ));
    }
    let file_mode = if security.readonly_rootfs { "ro" } else { "rw" };
    for (path, file) in [
        ("/etc/hostname", &input.parts.hostname_file),
        ("/etc/hosts", &input.parts.hosts_file),
        ("/etc/resolv.conf", &input.parts.resolv_conf),
    ] {
        if !taken(path) {
            list.push(bind(path, &file.to_string_lossy(), &["rbind", "rprivate", file_mode]));
        }
    }
    list.extend(asked.into_iter().map(|(_, mount)| mount));
    Ok(Value::Array(list))
}

fn bind(destination: &str, source: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": options})
}

fn volume(index: usize, mount: &cri::Mount) -> Result<(String, Value), Invalid> {
    let field = |name: &str| format!("config.mounts[{index}].{name}");
    let destination = &mount.container_path;
    if !destination.starts_with('/') || destination.split('/').all(|part| part.is_empty() || part == ".") {
        return Err(Invalid::new(field("container_path"), format!("{destination:?} is no absolute path below /")));
    }
    if destination.contains('\0') || destination.split('/').any(|part| part == "..") {
        return Err(Invalid::new(field("container_path"), format!("{destination:?} has a `..` or a NUL in it")));
    }
    if !mount.host_path.starts_with('/') {
        return Err(Invalid::new(field("host_path"), format!("{:?} is no absolute path", mount.host_path)));
    }
    let propagation = match mount.propagation() {
        cri::MountPropagation::PropagationPrivate => "rprivate",
        cri::MountPropagation::PropagationHostToContainer => "rslave",
        cri::MountPropagation::PropagationBidirectional => "rshared",
    };
    let mode = if mount.readonly { "ro" } else { "rw" };
    Ok((destination.clone(), bind(destination, &mount.host_path, &["rbind", propagation, mode])))
}
