//! What is mounted in a container: the kernel's file systems, the pod's files, the request's volumes.

use berth_api::cri;
use serde_json::{Value, json};

use super::{Input, Invalid, Users, users};

/// The list in mounting order: ours first, then the request's by depth, so that a parent never hides its child.
pub(super) fn build(input: &Input<'_>, security: &cri::LinuxContainerSecurityContext) -> Result<Value, Invalid> {
    let mut asked = Vec::with_capacity(input.config.mounts.len());
    for (index, mount) in input.config.mounts.iter().enumerate() {
        asked.push(volume(index, mount, input.parts.user.as_ref().map(|(_, users)| users))?);
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

pub(super) fn bind(destination: &str, source: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": options})
}

fn volume(index: usize, mount: &cri::Mount, users: Option<&Users>) -> Result<(String, Value), Invalid> {
    let field = |name: &str| format!("config.mounts[{index}].{name}");
    let mapped = users::of_mount(mount, &field)?;
    let destination = &mount.container_path;
    if !destination.starts_with('/') || destination.split('/').all(|part| part.is_empty() || part == ".") {
        return Err(Invalid::new(field("container_path"), format!("{destination:?} is no absolute path below /")));
    }
    if destination.contains('\0') || destination.split('/').any(|part| part == "..") {
        return Err(Invalid::new(field("container_path"), format!("{destination:?} has a `..` or a NUL in it")));
    }
    let is_image = is_image_volume(mount);
    if is_image {
        image_volume(mount, &field)?;
    } else if !mount.image_sub_path.is_empty() {
        return Err(Invalid::new(field("image_sub_path"), "there is no image"));
    } else if !mount.host_path.starts_with('/') {
        return Err(Invalid::new(field("host_path"), format!("{:?} is no absolute path", mount.host_path)));
    }
    let propagation = match mount.propagation() {
        cri::MountPropagation::PropagationPrivate => "rprivate",
        cri::MountPropagation::PropagationHostToContainer => "rslave",
        cri::MountPropagation::PropagationBidirectional => "rshared",
    };
    let mut options = vec!["rbind", propagation, mode(mount, &field)?];
    for (position, option) in mount.mount_options.iter().enumerate() {
        let known = OPTIONS.iter().find(|(name, _)| name == option);
        let (_, recursive) = known.ok_or_else(|| {
            let problem = format!("{option:?} is neither noexec nor nodev nor nosuid");
            Invalid::new(field(&format!("mount_options[{position}]")), problem)
        })?;
        options.push(recursive);
    }
    if users.is_some() && mount.propagation() == cri::MountPropagation::PropagationBidirectional {
        let problem = "PROPAGATION_BIDIRECTIONAL, but what is mounted in a user namespace never reaches the host";
        return Err(Invalid::new(field("propagation"), problem));
    }
    if !is_image {
        let mut bind = bind(destination, &mount.host_path, &options);
        if let Some([uids, gids]) = mapped {
            (bind["uidMappings"], bind["gidMappings"]) = (uids, gids);
        }
        return Ok((destination.clone(), bind));
    }
    if mapped.is_some() && users.is_none() {
        return Err(Invalid::new(
            field("uidMappings"),
            "of an image are for a pod with a user namespace, and as its own",
        ));
    }
    // Without `rbind`: there is nothing of the host's to bind.
    let mut options: Vec<String> = options[1..].iter().map(|option| (*option).to_owned()).collect();
    // Its owners are mapped as those of the container's own image are.
    options.extend(users.iter().flat_map(|users| users.mount_options()));
    if !mount.image_sub_path.is_empty() {
        options.push(format!("X-mount.subdir={}", mount.image_sub_path));
    }
    let mount = json!({"destination": destination, "type": IMAGE, "source": index.to_string(), "options": options});
    Ok((destination.clone(), mount))
}

/// Stands in a spec for the type of a mount whose image's layers are not taken yet; its source is the mount's index.
const IMAGE: &str = "image";

/// The mount shows an image, not the host.
pub(crate) fn is_image_volume(mount: &cri::Mount) -> bool {
    mount.image.as_ref().is_some_and(|image| *image != cri::ImageSpec::default())
}

/// Puts the image's root in the place of what stands for it.
pub(crate) fn fill_image_volume(spec: &mut Value, index: usize, kind: &str, source: &str, options: Vec<String>) {
    let index = Value::String(index.to_string());
    let Some(mounts) = spec["mounts"].as_array_mut() else { return };
    for mount in mounts.iter_mut().filter(|mount| mount["type"] == IMAGE && mount["source"] == index) {
        mount["type"] = kind.into();
        mount["source"] = source.into();
        if let Some(list) = mount["options"].as_array_mut() {
            list.splice(0..0, options.iter().cloned().map(Value::String));
        }
    }
}

/// Source: CRI `Mount.image`, `Mount.image_sub_path`.
fn image_volume(mount: &cri::Mount, field: &impl Fn(&str) -> String) -> Result<(), Invalid> {
    let refuse = |name: &str, problem: String| Err(Invalid::new(field(name), problem));
    if mount.image.as_ref().is_none_or(|image| image.image.is_empty()) {
        return refuse("image.image", "empty".into());
    }
    if !mount.host_path.is_empty() {
        return refuse("host_path", format!("{:?}, but what is mounted is an image", mount.host_path));
    }
    if !mount.readonly {
        return refuse("readonly", "false, but an image is only ever mounted read-only".into());
    }
    if mount.propagation() != cri::MountPropagation::PropagationPrivate {
        return refuse(
            "propagation",
            format!("{}, but nothing is mounted in an image", mount.propagation().as_str_name()),
        );
    }
    let path = &mount.image_sub_path;
    if path.starts_with('/') || path.contains('\0') || path.split('/').any(|part| part == "..") {
        return refuse("image_sub_path", format!("{path:?} is absolute or has a `..` or a NUL in it"));
    }
    Ok(())
}

/// CRI's name of an option, and the shim's for the mount with those below it: what must not be executed from a volume
/// must not be executed from a part of it either. Source: CRI `Mount.mount_options`.
const OPTIONS: &[(&str, &str)] = &[("noexec", "rnoexec"), ("nodev", "rnodev"), ("nosuid", "rnosuid")];

/// A runtime's name of an option that CRI knows.
pub(crate) fn mount_option(name: &str) -> Option<&'static str> {
    OPTIONS.iter().find(|(known, _)| *known == name).map(|(_, option)| *option)
}

/// Source: CRI `Mount.recursive_read_only`.
fn mode(mount: &cri::Mount, field: &impl Fn(&str) -> String) -> Result<&'static str, Invalid> {
    let refused = |problem: String| Err(Invalid::new(field("recursive_read_only"), problem));
    match (mount.recursive_read_only, mount.readonly, mount.propagation()) {
        (false, false, _) => Ok("rw"),
        (false, true, _) => Ok("ro"),
        (true, false, _) => refused("needs readonly as well".into()),
        (true, true, cri::MountPropagation::PropagationPrivate) => Ok("rro"),
        (true, true, other) => refused(format!("needs PROPAGATION_PRIVATE, not {}", other.as_str_name())),
    }
}
