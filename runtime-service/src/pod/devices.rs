//! The host's devices that a container is given.

use std::fs;
use std::io;
use std::path::Path;

use berth_api::cri::{ContainerConfig, Device};

use super::volumes::{LOOKS, PATIENCE};
use crate::host::aside::Late;
use crate::spec::{HostDevice, Invalid};

/// The request's devices, and every one of the host for a privileged container.
///
/// # Errors
/// The first that is none, is not there or does not answer, or whose access is none.
pub(super) async fn find(config: &ContainerConfig, privileged: bool) -> Result<Vec<HostDevice>, Invalid> {
    if config.devices.is_empty() && !privileged {
        return Ok(Vec::new());
    }
    let asked = config.devices.clone();
    let late = |Late| Err(Invalid::new("config.devices", "the file system of a host_path, or /dev, does not answer"));
    LOOKS.run(PATIENCE, move || look(&asked, privileged)).await.unwrap_or_else(late)
}

fn look(asked: &[Device], privileged: bool) -> Result<Vec<HostDevice>, Invalid> {
    let mut all = Vec::new();
    if privileged {
        walk_dev(Path::new("/dev"), &mut all);
    }
    for (index, device) in asked.iter().enumerate() {
        let field = |name: &str| format!("config.devices[{index}].{name}");
        let access = &device.permissions;
        if access.is_empty() || !access.chars().all(|c| "rwm".contains(c)) {
            return Err(Invalid::new(field("permissions"), format!("{access:?} is not of r, w and m")));
        }
        if !device.container_path.starts_with('/') {
            return Err(Invalid::new(field("container_path"), format!("{:?} is not absolute", device.container_path)));
        }
        let found = device_at(Path::new(&device.host_path), &device.container_path, access);
        let found = found.map_err(|e| Invalid::new(field("host_path"), format!("{}: {e}", device.host_path)))?;
        let found =
            found.ok_or_else(|| Invalid::new(field("host_path"), format!("{} is no device", device.host_path)))?;
        all.retain(|d| d.path != found.path);
        all.push(found);
    }
    Ok(all)
}

fn device_at(host: &Path, container: &str, access: &str) -> io::Result<Option<HostDevice>> {
    use nix::sys::stat::{SFlag, major, minor, stat};
    let meta = stat(host)?;
    let kind = SFlag::from_bits_truncate(meta.st_mode & SFlag::S_IFMT.bits());
    let kind = match kind {
        SFlag::S_IFCHR => 'c',
        SFlag::S_IFBLK => 'b',
        _ => return Ok(None),
    };
    Ok(Some(HostDevice {
        path: container.to_owned(),
        kind,
        major: major(meta.st_rdev),
        minor: minor(meta.st_rdev),
        mode: meta.st_mode & 0o7777,
        uid: meta.st_uid,
        gid: meta.st_gid,
        access: access.to_owned(),
    }))
}

/// Directories of /dev that hold no devices of the host, or that a container has of its own.
const DEV_OWN: &[&str] = &["/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/.lxc", "/dev/.udev"];

fn walk_dev(dir: &Path, into: &mut Vec<HostDevice>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { continue };
        let Some(name) = path.to_str().filter(|p| !DEV_OWN.contains(p) && *p != "/dev/console") else { continue };
        if kind.is_dir() {
            walk_dev(&path, into);
        } else if !kind.is_symlink()
            && let Ok(Some(device)) = device_at(&path, name, "rwm")
        {
            into.push(device);
        }
    }
}
