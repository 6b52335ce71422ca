//! The root as an overlay mount: the image's layers below, a directory of the container's own on top.
//!
//! `volatile`: overlayfs then skips every sync of the upper layer, and an unmount costs 14 µs instead of 160
//! (`fsync` inside a container's own layer does nothing, which is honest: that layer is thrown away at a reboot, as the
//! container is; what shall last is written to a volume). The kernel leaves a mark in `work` and refuses a second mount
//! while it is there, since after a crash the upper layer may be torn. A second mount here is always of the same boot
//! (a Create that is repeated, after a shim that died), so nothing was lost, and the work directory is made anew.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;

use super::make;
use crate::catalog::Pin;
use crate::error::Error;
use crate::files;
use crate::records::{EMPTY_LAYER, Records};
use crate::{MountSpec, Rootfs};

/// Makes `upper` and `work` and describes the mount.
pub(super) fn prepare(records: &Records, directory: &Path, pin: &Pin) -> Result<Rootfs, Error> {
    let (upper, work) = (directory.join("upper"), directory.join("work"));
    let layers = records.layers();
    let top = layers.join(pin.layers.first().unwrap_or(&EMPTY_LAYER).to_string());
    step!("create_container::snapshot_upper", make(&upper)).map_err(Error::io("make", &upper))?;
    // The root of the overlay shows the owner and mode of the upper directory, so it wears those of the image's root.
    dress(&upper, &top).map_err(Error::io("prepare", &upper))?;
    step!("create_container::snapshot_work", renew(directory, &work)).map_err(Error::io("make", &work))?;
    let numbers: &[u32] = if pin.layers.is_empty() { &[EMPTY_LAYER] } else { &pin.layers };
    let options = vec![
        lowerdir(&layers, numbers),
        format!("upperdir={}", escape(&upper)),
        format!("workdir={}", escape(&work)),
        "volatile".to_owned(),
    ];
    Ok(Rootfs { mounts: vec![MountSpec { kind: "overlay".to_owned(), source: "overlay".to_owned(), options }] })
}

/// The image's layers alone. Never a bind of the only one, nor of the empty one: who may mount in a container could make
/// that writable, and with it the layer of all who stand on it.
pub(super) fn volume(records: &Records, directory: &Path, pin: &Pin) -> Result<Rootfs, Error> {
    let layers = records.layers();
    // Without an upper directory overlayfs wants two; and the empty one cannot be below itself.
    let lower = match pin.layers.as_slice() {
        [] => {
            let empty = ["empty", "below"].map(|name| directory.join(name));
            for path in &empty {
                step!("create_container::volume_mkdir", make_open(path)).map_err(Error::io("make", path))?;
            }
            format!("lowerdir={}", empty.map(|path| escape(&path)).join(":"))
        }
        some => lowerdir(&layers, &some.iter().copied().chain([EMPTY_LAYER]).collect::<Vec<u32>>()),
    };
    let options = vec![lower, "ro".to_owned()];
    Ok(Rootfs { mounts: vec![MountSpec { kind: "overlay".to_owned(), source: "overlay".to_owned(), options }] })
}

/// A directory that everybody may look into, as the empty layer is.
fn make_open(path: &Path) -> std::io::Result<()> {
    make(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

fn lowerdir(layers: &Path, numbers: &[u32]) -> String {
    let lower: Vec<String> = numbers.iter().map(|number| escape(&layers.join(number.to_string()))).collect();
    format!("lowerdir={}", lower.join(":"))
}

fn dress(upper: &Path, top: &Path) -> std::io::Result<()> {
    let wanted = fs::metadata(top)?;
    let upper = fs::File::open(upper)?;
    let have = upper.metadata()?;
    if (have.uid(), have.gid()) != (wanted.uid(), wanted.gid()) {
        fchown(&upper, Some(wanted.uid()), Some(wanted.gid()))?;
    }
    upper.set_permissions(fs::Permissions::from_mode(wanted.mode() & 0o7777))?;
    upper.set_modified(wanted.modified()?)
}

fn renew(directory: &Path, work: &Path) -> std::io::Result<()> {
    let directory = files::open_own(directory)?;
    files::remove(&directory, b"work")?;
    make(work)
}

/// A path as overlayfs reads it: `:` separates lower directories, `,` options, `\` escapes both.
fn escape(path: &Path) -> String {
    let mut escaped = String::new();
    for character in path.to_string_lossy().chars() {
        if matches!(character, ':' | ',' | '\\') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_in_a_path_are_escaped() {
        assert_eq!(escape(Path::new("/a:b/c\\d,e")), "/a\\:b/c\\\\d\\,e");
    }
}
