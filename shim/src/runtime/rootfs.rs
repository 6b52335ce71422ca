//! The container's root as a detached mount, made before the clone from the mounts Task's `Create` gives as data.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, OpenTreeFlags};

use super::mount_deeds::{MountDeed, NumberedLayers};
use super::options::Options;
use super::process::c_string;
use super::{Error, MountSpec, idmap, selinux};
use crate::failpoint;
use crate::sys::{self, MountAttr};

/// Longest string that fsconfig(2) takes, in bytes without the NUL. Source: `strndup_user(_value, 256)` in fs/fsopen.c.
const FSCONFIG_STRING_MAX: usize = 255;

/// The deeds that put the root over the directory `at` of the host.
///
/// # Errors
/// A mount that is not supported; the layer, upper or source that the kernel refuses.
pub(super) fn plan(
    mounts: &[MountSpec],
    root: &Path,
    at: &Path,
    label: Option<&CStr>,
) -> Result<Vec<MountDeed>, Error> {
    let at = path_string(at)?;
    match mounts {
        [] => {
            let tree = open_tree(root, true)?;
            // As a bind mount without a word about it: a clone of what is shared would be shared.
            let private = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
            sys::mount_setattr(tree.as_fd(), true, private)
                .map_err(|errno| Error::step(format!("bind the rootfs {root:?}"), errno))?;
            Ok(vec![MountDeed::Root { tree, at }])
        }
        [mount] => match supported(mount)? {
            "overlay" => {
                let Layered { overlay, mut covers, .. } = overlay(&mount.options, label)?;
                covers.push(match overlay {
                    Overlay::Tree(tree) => MountDeed::Root { tree, at },
                    Overlay::ByNumber(layers) => MountDeed::OverlayByNumber { layers, at },
                });
                Ok(covers)
            }
            "bind" => bind(mount, at).map(|deed| vec![deed]),
            other => Err(Error::refused("rootfs", format!("file system type {other:?} is not supported"))),
        },
        _ => Err(Error::refused("rootfs", format!("{} mounts are given, one is supported", mounts.len()))),
    }
}

/// Its type, when all of its options can be done.
fn supported(mount: &MountSpec) -> Result<&str, Error> {
    let options = Options::parse("rootfs", &mount.options)?;
    let kind = mount.kind.as_str();
    let refuse = |what: &str| Err(Error::refused("rootfs", format!("{what} not for {kind:?}")));
    match kind {
        "overlay" if options.bind => refuse("bind is"),
        "overlay" if options.recursive_attr != MountAttr::default() => refuse("recursive attributes are"),
        "overlay" if options.propagates() => refuse("propagation is"),
        _ if options.subdir.is_some() => refuse("X-mount.subdir is"),
        "bind" => options.no_parameters("rootfs").map(|()| kind),
        _ => Ok(kind),
    }
}

fn bind(mount: &MountSpec, at: CString) -> Result<MountDeed, Error> {
    let options = Options::parse("rootfs", &mount.options)?;
    let tree = open_tree(Path::new(&mount.source), options.recursive)?;
    if let Some(namespace) = options.users("rootfs")? {
        idmap::map(&tree, &namespace, &format!("the rootfs {:?}", mount.source))?;
    }
    set_attributes(&tree, &options).map_err(|e| Error::step(format!("bind the rootfs {:?}", mount.source), e))?;
    Ok(MountDeed::Root { tree, at })
}

/// A detached copy of what is mounted at `path`.
///
/// # Errors
/// The path and the kernel's answer.
pub(super) fn open_tree(path: &Path, recursive: bool) -> Result<OwnedFd, Error> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(rustix::fs::CWD, path, flags)
        .map_err(|errno| Error::step(format!("open the mount source {path:?}"), errno))
}

/// Attributes and propagation of a detached copy: first what is asked for all of it, then for its top.
pub(super) fn set_attributes(tree: &OwnedFd, options: &Options) -> Result<(), Errno> {
    let mut all = options.recursive_attr;
    let mut top = options.attr;
    // Without a word about it a bind mount is private to the container.
    let propagation = if top.propagation == 0 { libc::MS_PRIVATE } else { top.propagation };
    let all_propagate = options.recursive_propagation || options.attr.propagation == 0;
    top.propagation = 0;
    if all_propagate {
        all.propagation = propagation
    } else {
        top.propagation = propagation
    }
    for (attr, recursive) in [(all, options.recursive), (top, false)] {
        if !attr.is_empty() {
            sys::mount_setattr(tree.as_fd(), recursive, attr)?;
        }
    }
    Ok(())
}

/// The overlay's options, sorted.
pub(super) struct Layers {
    /// Topmost first.
    lower: Vec<String>,
    upper: Option<String>,
    work: Option<String>,
    rest: Options,
}

impl Layers {
    pub(super) fn parse(words: &[String]) -> Result<Layers, Error> {
        let (mut lower, mut upper, mut work, mut rest) = (Vec::new(), None, None, Vec::new());
        for word in words {
            match word.split_once('=') {
                Some(("lowerdir", list)) => lower = split_layers(list),
                Some(("upperdir", path)) => upper = Some(path.to_owned()),
                Some(("workdir", path)) => work = Some(path.to_owned()),
                _ => rest.push(word.clone()),
            }
        }
        if lower.is_empty() || lower.iter().any(String::is_empty) {
            return Err(Error::refused("rootfs", "an overlay needs a lowerdir, and none of them may be empty"));
        }
        Ok(Layers { lower, upper, work, rest: Options::parse("rootfs", &rest)? })
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &String> {
        self.lower.iter().chain(&self.upper).chain(&self.work)
    }

    /// The directories that hold the layers, each with mapped owners. overlayfs wants the upper and the work directory on
    /// one mount, and is given it: they stand side by side.
    fn covers(&self, namespace: &OwnedFd) -> Result<Vec<MountDeed>, Error> {
        let parents: BTreeSet<&Path> = self.all().filter_map(|path| Path::new(path).parent()).collect();
        let cover = |path: &Path| -> Result<MountDeed, Error> {
            let tree = idmap::mapped(path, namespace)?;
            let attr = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
            sys::mount_setattr(tree.as_fd(), false, attr).map_err(|e| Error::step(format!("copy {path:?}"), e))?;
            Ok(MountDeed::Cover { tree, at: path_string(path)? })
        };
        parents.into_iter().map(cover).collect()
    }

    /// fsconfig takes each path as one string, in which overlayfs reads a backslash as an escape.
    fn fit_fsconfig(&self) -> bool {
        self.all().all(|path| path.len() <= FSCONFIG_STRING_MAX && !path.contains('\\'))
    }
}

/// Splits at colons, but for those with a backslash before them.
fn split_layers(list: &str) -> Vec<String> {
    let mut layers = vec![String::new()];
    let mut escaped = false;
    for character in list.chars() {
        let last = layers.len() - 1;
        match character {
            '\\' if !escaped => escaped = true,
            ':' if !escaped => layers.push(String::new()),
            other => {
                // Only a colon or a backslash is ever escaped.
                if escaped && other != ':' && other != '\\' {
                    layers[last].push('\\');
                }
                layers[last].push(other);
                escaped = false;
            }
        }
    }
    layers
}

/// An overlay, made or to be made.
#[derive(Debug)]
pub(super) enum Overlay {
    /// Detached.
    Tree(OwnedFd),
    /// By the child.
    ByNumber(NumberedLayers),
}

/// An overlay with what it needs.
pub(super) struct Layered {
    pub(super) overlay: Overlay,
    /// To be done before.
    pub(super) covers: Vec<MountDeed>,
    /// Those that are not overlayfs's.
    pub(super) options: Options,
}

/// An overlay from its options. One whose layers have mapped owners can only be made by the child.
///
/// # Errors
/// The layer that is missing, or that the kernel refuses.
pub(super) fn overlay(options: &[String], label: Option<&CStr>) -> Result<Layered, Error> {
    let mut layers = Layers::parse(options)?;
    selinux::tell(&mut layers.rest, "overlay", label);
    if let Some(namespace) = layers.rest.users("rootfs")? {
        let covers = layers.covers(&namespace)?;
        return Ok(Layered { overlay: Overlay::ByNumber(overlay_by_number(&layers)?), covers, options: layers.rest });
    }
    let plain = |overlay, options| Ok(Layered { overlay, covers: Vec::new(), options });
    if layers.fit_fsconfig()
        && !failpoint::fallback_forced("lowerdir+")
        && let Some(tree) = overlay_by_path(&layers)?
    {
        return plain(Overlay::Tree(tree), layers.rest);
    }
    plain(Overlay::ByNumber(overlay_by_number(&layers)?), layers.rest)
}

/// One `lowerdir+` for each layer. `None` if the kernel does not know the parameter: it says so at once, or (before 6.5)
/// takes any word, as many as fit in a page, and refuses them all in the end.
fn overlay_by_path(layers: &Layers) -> Result<Option<OwnedFd>, Error> {
    let fail = |errno: Errno| Error::step("mount the rootfs as an overlay", errno);
    let context = rustix::mount::fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(fail)?;
    let set = |key: &str, value: &str| rustix::mount::fsconfig_set_string(context.as_fd(), key, value);
    for layer in &layers.lower {
        match set("lowerdir+", layer) {
            Ok(()) => {}
            Err(Errno::INVAL) if Path::new(layer).is_dir() => return Ok(None),
            Err(errno) => {
                return Err(Error::step(format!("add the overlay layer {layer:?}"), errno));
            }
        }
    }
    for (key, path) in [("upperdir", &layers.upper), ("workdir", &layers.work)] {
        if let Some(path) = path {
            set(key, path).map_err(|errno| Error::step(format!("add the overlay's {key} {path:?}"), errno))?;
        }
    }
    set("source", "overlay").map_err(fail)?;
    for (key, value) in &layers.rest.parameters {
        let done = match value {
            Some(value) => set(key, value),
            None => rustix::mount::fsconfig_set_flag(context.as_fd(), key.as_str()),
        };
        done.map_err(|errno| Error::step(format!("set the overlay's option {key:?}"), errno))?;
    }
    match rustix::mount::fsconfig_create(context.as_fd()) {
        Ok(()) => {}
        // What is really wrong with the layers, mount(2) will find too.
        Err(Errno::INVAL) => return Ok(None),
        Err(errno) => return Err(fail(errno)),
    }
    let attr = MountAttrFlags::from_bits_retain(layers.rest.attr.set as u32);
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attr).map(Some).map_err(fail)
}

/// Each layer opened, and named by its number: 120 layers fit into the one page that mount(2) takes, whatever their
/// paths are.
fn overlay_by_number(layers: &Layers) -> Result<NumberedLayers, Error> {
    let mut opened = Vec::with_capacity(layers.lower.len() + 2);
    let mut open = |path: &String| -> Result<String, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path.as_str(), flags, Mode::empty())
            .map_err(|errno| Error::step(format!("open the overlay layer {path:?}"), errno))?;
        let number = fd.as_raw_fd().to_string();
        opened.push((c_string("rootfs", path)?, fd));
        Ok(number)
    };
    let lower = layers.lower.iter().map(&mut open).collect::<Result<Vec<_>, _>>()?;
    let mut data = format!("lowerdir={}", lower.join(":"));
    for (key, path) in [("upperdir", &layers.upper), ("workdir", &layers.work)] {
        if let Some(path) = path {
            data.push_str(&format!(",{key}={}", open(path)?));
        }
    }
    for (key, value) in &layers.rest.parameters {
        data.push(',');
        data.push_str(key);
        if let Some(value) = value {
            data.push_str(&format!("={}", selinux::quoted(key, value)));
        }
    }
    let flags = mount_flags(layers.rest.attr);
    Ok(NumberedLayers { opened, data: c_string("rootfs", &data)?, flags })
}

/// The attributes as flags of mount(2).
fn mount_flags(attr: MountAttr) -> MountFlags {
    let mut flags = MountFlags::empty();
    for (bit, flag) in [
        (libc::MOUNT_ATTR_RDONLY, MountFlags::RDONLY),
        (libc::MOUNT_ATTR_NOSUID, MountFlags::NOSUID),
        (libc::MOUNT_ATTR_NODEV, MountFlags::NODEV),
        (libc::MOUNT_ATTR_NOEXEC, MountFlags::NOEXEC),
        (libc::MOUNT_ATTR_NODIRATIME, MountFlags::NODIRATIME),
        (libc::MOUNT_ATTR_NOSYMFOLLOW, MountFlags::NOSYMFOLLOW),
        (libc::MOUNT_ATTR_NOATIME, MountFlags::NOATIME),
        (libc::MOUNT_ATTR_STRICTATIME, MountFlags::STRICTATIME),
    ] {
        if attr.set & bit != 0 {
            flags |= flag;
        }
    }
    flags
}

pub(super) fn path_string(path: &Path) -> Result<CString, Error> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::refused(format!("path {path:?}"), "contains a NUL byte"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_split_at_colons_without_a_backslash() {
        assert_eq!(split_layers("/a:/b"), ["/a", "/b"]);
        assert_eq!(split_layers(r"/a\:1:/b\\c"), ["/a:1", r"/b\c"]);
        assert_eq!(split_layers(r"/a\b"), [r"/a\b"]);
    }

    #[test]
    fn an_overlay_without_a_layer_is_refused() {
        for words in [&["upperdir=/u".to_owned()][..], &["lowerdir=/a::/b".to_owned()]] {
            assert!(Layers::parse(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn an_option_that_a_root_cannot_have_is_refused() {
        let why = |kind: &str, words: &str| {
            let options = words.split(' ').map(str::to_owned).collect();
            supported(&MountSpec { kind: kind.into(), source: "/nowhere".into(), options })
                .map_err(|e| e.message())
                .err()
        };
        for (kind, words) in [
            ("overlay", "lowerdir=/a:/b upperdir=/c workdir=/d volatile index=off ro nosuid rprivate"),
            ("overlay", "lowerdir=/a uidmap=0:1:2 gidmap=0:1:2"),
            ("bind", "rbind rw rslave rnosuid uidmap=0:1:2 gidmap=0:1:2"),
        ] {
            assert_eq!(why(kind, words), None, "{kind} {words}");
        }
        for (kind, word, expected) in [
            ("overlay", "rbind", "rootfs: bind is not for \"overlay\""),
            ("overlay", "rro", "rootfs: recursive attributes are not for \"overlay\""),
            ("overlay", "rslave", "rootfs: propagation is not for \"overlay\""),
            ("overlay", "X-mount.subdir=a", "rootfs: X-mount.subdir is not for \"overlay\""),
            ("bind", "X-mount.subdir=a", "rootfs: X-mount.subdir is not for \"bind\""),
            ("bind", "size=1m", "rootfs: option \"size\" is not for a bind mount"),
        ] {
            assert_eq!(why(kind, word).as_deref(), Some(expected), "{kind} {word}");
        }
    }

    #[test]
    fn long_paths_go_by_number() {
        let layers = |path: String| Layers::parse(&[format!("lowerdir={path}")]).expect("layers");
        assert!(layers(format!("/{}", "a".repeat(254))).fit_fsconfig());
        assert!(!layers(format!("/{}", "a".repeat(255))).fit_fsconfig());
    }
}
