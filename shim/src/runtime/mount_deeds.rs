//! Deeds of the child that build the container's tree: root, mounts, devices, masks, pivot.
//! Sources are descriptors opened by the parent, targets are resolved inside the root by descriptor.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};

use super::plan::{Failure, Root, State};
use super::report::Detail;
use super::resolve::{self, Kind};
use super::rootfs::Overlay;
use crate::sys::{self, MountAttr};

type Result<T> = std::result::Result<T, Failure>;

/// Where something is mounted.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// As the container sees it.
    pub(super) path: CString,
    pub(super) rule: TargetRule,
}

/// What a target may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TargetRule {
    /// Made if it is missing; anywhere but on procfs.
    Ordinary(Kind),
    /// As above, and one of the files below /proc that may be covered.
    InsideProc(Kind),
    /// A directory reached without a link: for /proc and /sys, where programs trust what they find.
    Plain,
}

/// A file system made by the child, because it shows the namespaces of its maker (or nothing of anybody).
#[derive(Debug)]
pub(super) struct NewMount {
    pub(super) kind: CString,
    pub(super) parameters: Vec<(CString, Option<CString>)>,
    pub(super) attr: MountAttr,
    /// SELinux's, for the root of one whose labels cannot be told when it is made.
    pub(super) root_label: Option<CString>,
    pub(super) target: Target,
}

/// A device node.
#[derive(Debug)]
pub(super) struct Device {
    /// Where, as the container sees it.
    pub(super) directory: CString,
    pub(super) name: CString,
    pub(super) kind: FileType,
    pub(super) mode: u32,
    pub(super) number: u64,
    /// As the host counts them. `None`: whoever makes it.
    pub(super) owner: Option<(u32, u32)>,
}

/// An overlay whose layers are told by the numbers of their descriptors.
#[derive(Debug)]
pub(super) struct NumberedLayers {
    pub(super) opened: Vec<(CString, OwnedFd)>,
    pub(super) data: CString,
    pub(super) flags: MountFlags,
}

/// See the deed.
#[derive(Debug)]
pub(super) struct Volume {
    pub(super) overlay: Overlay,
    /// Directory of the host over which it is mounted meanwhile; the root is there.
    pub(super) stage: CString,
    /// Resolved inside it.
    pub(super) subdir: Option<CString>,
    pub(super) attr: MountAttr,
    pub(super) target: Target,
}

#[derive(Debug)]
pub(super) enum MountDeed {
    /// Nothing mounted from here on reaches the host; mounts and unmounts of the host still reach us.
    LeaveHost,
    /// The root, as a detached mount, put over the directory `at` of the host.
    Root {
        tree: OwnedFd,
        at: CString,
    },
    /// The root by mount(2) with layers named by descriptor: for kernels without `lowerdir+`, and long paths.
    OverlayByNumber {
        layers: NumberedLayers,
        at: CString,
    },
    /// A detached copy of what is at the directory `at` of the host, put over it, for those who look there in this
    /// namespace: the layers of an overlay with mapped owners, which before 6.15 have to be attached to be found.
    Cover {
        tree: OwnedFd,
        at: CString,
    },
    /// A directory of a file system that has to be mounted to find it.
    Volume(Volume),
    /// A file system of the kernel's.
    New(NewMount),
    /// A detached mount made by the parent.
    Attach {
        tree: OwnedFd,
        target: Target,
        source: String,
    },
    /// A tmpfs with a directory for each v1 hierarchy, on which the container's own cgroup (a detached mount) is mounted,
    /// and links for further names; then `attr` for all of it.
    Hierarchies {
        mounts: Vec<(CString, OwnedFd)>,
        links: Vec<(CString, CString)>,
        attr: MountAttr,
        /// SELinux's.
        label: Option<CString>,
        target: Target,
    },
    /// A symbolic link, unless there is something already.
    Link {
        path: CString,
        target: CString,
        replace: bool,
    },
    Device(Device),
    /// The slave of the terminal at /dev/console.
    Console {
        slave: OwnedFd,
    },
    /// `linux.sysctl`: path below /proc/sys and value.
    Sysctl {
        path: CString,
        value: CString,
    },
    /// Each hidden behind /dev/null or an empty directory, if it is there. `null` is a detached mount of /dev/null.
    Masks {
        paths: Vec<CString>,
        null: OwnedFd,
        /// SELinux's, for the directory.
        label: Option<CString>,
    },
    /// Each made read-only, if it is there.
    ReadOnly {
        paths: Vec<CString>,
    },
    /// The working directory, made if it is missing.
    Directory {
        path: CString,
    },
    /// Attributes of the root's mount alone.
    RootAttr {
        attr: MountAttr,
        recursive: bool,
    },
    /// The root becomes `/`.
    Pivot,
}

impl MountDeed {
    pub(super) fn run<'plan>(&'plan self, state: &mut State<'plan>) -> Result<()> {
        match self {
            MountDeed::LeaveHost => leave_host(),
            MountDeed::Root { tree, at } => {
                move_to(tree.as_fd(), rustix::fs::CWD, at, MoveMountFlags::empty())?;
                state.root = Some(Root::Planned(tree.as_fd()));
                Ok(())
            }
            MountDeed::OverlayByNumber { layers, at } => {
                overlay_by_number(layers, at)?;
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                state.root = Some(Root::Opened(rustix::fs::open(at, flags, Mode::empty())?));
                Ok(())
            }
            MountDeed::Cover { tree, at } => move_to(tree.as_fd(), rustix::fs::CWD, at, MoveMountFlags::empty()),
            MountDeed::Volume(deed) => volume(deed, state.root()?),
            MountDeed::New(new) => new_mount(new, state),
            MountDeed::Attach { tree, target, .. } => attach(tree.as_fd(), target, state.root()?),
            MountDeed::Hierarchies { mounts, links, attr, label, target } => {
                hierarchies(mounts, links, *attr, label.as_deref(), target, state.root()?)
            }
            MountDeed::Link { path, target, replace } => link(path, target, *replace, state.root()?),
            MountDeed::Device(device) => make_device(device, state),
            MountDeed::Console { slave } => console(slave.as_fd(), state),
            MountDeed::Sysctl { path, value } => sysctl(path, value, state),
            MountDeed::Masks { paths, null, label } => masks(paths, null.as_fd(), label.as_deref(), state.root()?),
            MountDeed::ReadOnly { paths } => each(paths, |path| read_only(path, state.root()?)),
            MountDeed::Directory { path } => {
                resolve::make(state.root()?, path, Kind::Directory)?;
                Ok(())
            }
            MountDeed::RootAttr { attr, recursive } => Ok(sys::mount_setattr(state.root()?, *recursive, *attr)?),
            MountDeed::Pivot => pivot(state.root()?),
        }
    }

    pub(super) fn describe(&self, item: u32) -> String {
        let listed = |paths: &[CString]| paths.get(item as usize).cloned().unwrap_or_default();
        match self {
            MountDeed::LeaveHost => "make the host's mounts slaves".into(),
            MountDeed::Root { at, .. } => format!("put the rootfs at {at:?}"),
            MountDeed::OverlayByNumber { at, layers } => {
                format!("mount an overlay of {} layers at {at:?}", layers.opened.len())
            }
            MountDeed::Cover { at, .. } => format!("map the owners of {at:?}"),
            MountDeed::Volume(Volume { subdir, target, .. }) => {
                format!("mount {:?} of an overlay at {:?}", subdir.as_deref().unwrap_or(c"/"), target.path)
            }
            MountDeed::New(new) => format!("mount a new {} at {:?}", new.kind.to_string_lossy(), new.target.path),
            MountDeed::Attach { target, source, .. } => {
                format!("mount {source:?} at {:?}", target.path)
            }
            MountDeed::Hierarchies { mounts, target, .. } => match mounts.get(item as usize) {
                Some((name, _)) => format!("mount the cgroup hierarchy {name:?} at {:?}", target.path),
                None => format!("mount the cgroup hierarchies at {:?}", target.path),
            },
            MountDeed::Link { path, target, .. } => format!("link {path:?} to {target:?}"),
            MountDeed::Device(device) => format!(
                "make the device {:?}",
                format!("{}/{}", device.directory.to_string_lossy(), device.name.to_string_lossy())
            ),
            MountDeed::Console { .. } => r#"mount the terminal at "/dev/console""#.into(),
            MountDeed::Sysctl { path, value } => {
                format!("write {:?} to sysctl {:?}", value.to_string_lossy(), path.to_string_lossy())
            }
            MountDeed::Masks { paths, .. } => format!("mask {:?}", listed(paths)),
            MountDeed::ReadOnly { paths } => format!("make {:?} read-only", listed(paths)),
            MountDeed::Directory { path } => format!("make the working directory {path:?}"),
            MountDeed::RootAttr { .. } => "set the attributes of the root's mount".into(),
            MountDeed::Pivot => "change to the container's root".into(),
        }
    }
}

/// Does `deed` for each path, and tells which one failed.
fn each(paths: &[CString], mut deed: impl FnMut(&CStr) -> Result<()>) -> Result<()> {
    for (item, path) in paths.iter().enumerate() {
        deed(path).map_err(|failure| failure.of_item(item))?;
    }
    Ok(())
}

fn leave_host() -> Result<()> {
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change(c"/", flags)?)
}

fn move_to(tree: BorrowedFd<'_>, to: BorrowedFd<'_>, path: &CStr, flags: MoveMountFlags) -> Result<()> {
    let flags = flags | MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(rustix::mount::move_mount(tree, c"", to, path, flags)?)
}

fn move_onto(tree: BorrowedFd<'_>, at: BorrowedFd<'_>) -> Result<()> {
    move_to(tree, at, c"", MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH)
}

/// The parent's descriptors are on mounts of its own namespace, of which overlayfs takes none here: the same paths are
/// opened again under the same numbers.
fn reopen(layers: &[(CString, OwnedFd)]) -> Result<()> {
    for (item, (path, number)) in layers.iter().enumerate() {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path.as_c_str(), flags, Mode::empty());
        opened.and_then(|layer| sys::replace(number, &layer)).map_err(|errno| Failure::from(errno).of_item(item))?;
    }
    Ok(())
}

/// The layers keep their numbers in the child, so `/proc/self/fd` is a directory of short names for them.
fn overlay_by_number(layers: &NumberedLayers, at: &CStr) -> Result<()> {
    reopen(&layers.opened)?;
    rustix::process::chdir(c"/proc/self/fd")?;
    rustix::mount::mount(c"overlay", at, c"overlay", layers.flags, layers.data.as_c_str())?;
    Ok(rustix::process::chdir(c"/")?)
}

/// Before 6.15 the kernel clones no part of a detached mount: it is attached over the root for as long as that takes.
/// The root is held by its descriptor, and nobody else is in this namespace.
fn volume(volume: &Volume, root: BorrowedFd<'_>) -> Result<()> {
    match &volume.overlay {
        Overlay::Tree(tree) => move_to(tree.as_fd(), rustix::fs::CWD, &volume.stage, MoveMountFlags::empty())?,
        Overlay::ByNumber(layers) => overlay_by_number(layers, &volume.stage)?,
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::open(volume.stage.as_c_str(), flags, Mode::empty())?;
    let chosen = match &volume.subdir {
        Some(path) => resolve::open(top.as_fd(), path, OFlags::PATH | OFlags::DIRECTORY)?,
        None => top,
    };
    let tree = copy_of(chosen.as_fd())?;
    rustix::mount::unmount(volume.stage.as_c_str(), UnmountFlags::DETACH)?;
    sys::mount_setattr(tree.as_fd(), false, volume.attr)?;
    attach(tree.as_fd(), &volume.target, root)
}

fn make_filesystem(kind: &CStr, parameters: &[(CString, Option<CString>)], attr: u64) -> Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in parameters {
        match value {
            Some(value) => rustix::mount::fsconfig_set_string(&context, key.as_c_str(), value.as_c_str())?,
            None => rustix::mount::fsconfig_set_flag(&context, key.as_c_str())?,
        }
    }
    made(&context, attr)
}

/// A tmpfs with this label of SELinux's.
fn make_tmpfs(label: Option<&CStr>, attr: u64) -> Result<OwnedFd> {
    let context = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    if let Some(label) = label {
        rustix::mount::fsconfig_set_string(&context, c"context", label)?;
    }
    made(&context, attr)
}

fn made(context: &OwnedFd, attr: u64) -> Result<OwnedFd> {
    rustix::mount::fsconfig_create(context)?;
    let attr = MountAttrFlags::from_bits_retain(attr as u32);
    Ok(rustix::mount::fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attr)?)
}

fn new_mount(new: &NewMount, state: &State<'_>) -> Result<()> {
    let tree = make_filesystem(&new.kind, &new.parameters, new.attr.set)?;
    if new.attr.propagation != 0 {
        sys::mount_setattr(tree.as_fd(), false, MountAttr { set: 0, clear: 0, ..new.attr })?;
    }
    if let Some(label) = &new.root_label {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(&tree, c".", flags, Mode::empty())?;
        rustix::fs::fsetxattr(&root, c"security.selinux", label.to_bytes_with_nul(), rustix::fs::XattrFlags::empty())?;
    }
    attach(tree.as_fd(), &new.target, state.root()?)
}

fn attach(tree: BorrowedFd<'_>, target: &Target, root: BorrowedFd<'_>) -> Result<()> {
    let at = match target.rule {
        TargetRule::Ordinary(kind) | TargetRule::InsideProc(kind) => resolve::make(root, &target.path, kind)?,
        TargetRule::Plain => plain_directory(root, &target.path)?,
    };
    if matches!(target.rule, TargetRule::Ordinary(_)) && resolve::is_proc(at.as_fd())? {
        return Err(Failure::because(Errno::PERM, Detail::InsideProc));
    }
    match move_onto(tree, at.as_fd()) {
        // It may mean other things too.
        Err(failure) if failure.errno == Errno::INVAL && is_directory(tree)? != is_directory(at.as_fd())? => {
            Err(Failure::because(Errno::INVAL, Detail::OtherKind))
        }
        moved => moved,
    }
}

fn is_directory(file: BorrowedFd<'_>) -> Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode) == FileType::Directory)
}

/// No process of the container runs yet, and the tmpfs is new: plain names in it are safe.
fn hierarchies(
    mounts: &[(CString, OwnedFd)],
    links: &[(CString, CString)],
    attr: MountAttr,
    label: Option<&CStr>,
    target: &Target,
    root: BorrowedFd<'_>,
) -> Result<()> {
    let made = make_tmpfs(label, 0)?;
    rustix::fs::chmodat(&made, c".", Mode::from_raw_mode(0o755), rustix::fs::AtFlags::empty())?;
    attach(made.as_fd(), target, root)?;
    for (item, (name, tree)) in mounts.iter().enumerate() {
        let mounted = rustix::fs::mkdirat(&made, name.as_c_str(), Mode::from_raw_mode(0o755))
            .map_err(Failure::from)
            .and_then(|()| move_to(tree.as_fd(), made.as_fd(), name, MoveMountFlags::empty()));
        mounted.map_err(|failure| failure.of_item(item))?;
    }
    for (name, to) in links {
        rustix::fs::symlinkat(to.as_c_str(), &made, name.as_c_str())?;
    }
    Ok(sys::mount_setattr(made.as_fd(), true, attr)?)
}

/// CVE-2019-19921 and its kin: a link here would lead the kernel's file system to where others look for it.
fn plain_directory(root: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd> {
    let open = || resolve::open_plain_directory(root, path);
    let opened = match open() {
        Err(Errno::NOENT) => {
            resolve::make(root, path, Kind::Directory)?;
            open()
        }
        other => other,
    };
    opened.map_err(|errno| match errno {
        Errno::LOOP | Errno::NOTDIR => Failure::because(errno, Detail::NotPlainDirectory),
        other => other.into(),
    })
}

fn link(path: &CStr, target: &CStr, replace: bool, root: BorrowedFd<'_>) -> Result<()> {
    let (directory, name) = parent(path, root)?;
    if replace {
        match rustix::fs::unlinkat(&directory, name, rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    match rustix::fs::symlinkat(target, &directory, name) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The directory of an absolute path, opened in the root, and the last component.
fn parent<'a>(path: &'a CStr, root: BorrowedFd<'_>) -> Result<(OwnedFd, &'a CStr)> {
    const DIRECTORY_MAX: usize = 512; // bytes; our own paths only: /dev and what the spec's devices name
    let bytes = path.to_bytes_with_nul();
    let slash = bytes.iter().rposition(|b| *b == b'/').ok_or(Errno::INVAL)?;
    let mut directory = [0_u8; DIRECTORY_MAX];
    if slash + 1 >= DIRECTORY_MAX {
        return Err(Errno::NAMETOOLONG.into());
    }
    directory[..=slash].copy_from_slice(&bytes[..=slash]);
    let directory = CStr::from_bytes_until_nul(&directory).map_err(|_| Errno::INVAL)?;
    let name = CStr::from_bytes_with_nul(&bytes[slash + 1..]).map_err(|_| Errno::INVAL)?;
    Ok((resolve::make(root, directory, Kind::Directory)?, name))
}

fn make_device(device: &Device, state: &mut State<'_>) -> Result<()> {
    let other;
    let directory = if device.directory.as_bytes() == b"/dev" {
        if state.dev.is_none() {
            state.dev = Some(resolve::make(state.root()?, c"/dev", Kind::Directory)?);
        }
        match &state.dev {
            Some(dev) => dev.as_fd(),
            None => return Err(Errno::BADF.into()),
        }
    } else {
        other = resolve::make(state.root()?, &device.directory, Kind::Directory)?;
        other.as_fd()
    };
    let name = device.name.as_c_str();
    match rustix::fs::mknodat(directory, name, device.kind, Mode::from_raw_mode(device.mode), device.number) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            return match resolve::device_at(directory, name)? {
                (kind, number) if kind == device.kind && number == device.number => Ok(()),
                _ => Err(Failure::because(Errno::EXIST, Detail::OtherFile)),
            };
        }
        Err(errno) => return Err(errno.into()),
    }
    if let Some((uid, gid)) = device.owner {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(directory, name, Some(uid), Some(gid), flags)?;
    }
    Ok(())
}

/// CVE-2025-52565: the slave is the descriptor the kernel gave for our master, never a path in /dev/pts.
fn console(slave: BorrowedFd<'_>, state: &State<'_>) -> Result<()> {
    let at = resolve::make(state.root()?, c"/dev/console", Kind::File)?;
    move_onto(copy_of(slave)?.as_fd(), at.as_fd())
}

/// CVE-2025-52881: written through an instance of procfs of our own, in which nobody can have mounted anything.
fn sysctl(path: &CStr, value: &CStr, state: &mut State<'_>) -> Result<()> {
    if state.proc.is_none() {
        state.proc = Some(make_filesystem(c"proc", &[], 0)?);
    }
    let Some(proc) = &state.proc else {
        return Err(Errno::BADF.into());
    };
    let resolve =
        rustix::fs::ResolveFlags::BENEATH | rustix::fs::ResolveFlags::NO_SYMLINKS | rustix::fs::ResolveFlags::NO_XDEV;
    let file = rustix::fs::openat2(proc, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    rustix::io::write(&file, value.to_bytes())?;
    Ok(())
}

fn masks(paths: &[CString], null: BorrowedFd<'_>, label: Option<&CStr>, root: BorrowedFd<'_>) -> Result<()> {
    let mut null_used = false;
    let mut empty: Option<OwnedFd> = None;
    each(paths, |path| {
        let Some(at) = existing(path, root)? else {
            return Ok(());
        };
        let is_directory = FileType::from_raw_mode(rustix::fs::fstat(&at)?.st_mode) == FileType::Directory;
        match (is_directory, &empty, null_used) {
            (false, _, false) => {
                null_used = true;
                move_onto(null, at.as_fd())
            }
            (false, _, true) => move_onto(copy_of(null)?.as_fd(), at.as_fd()),
            (true, Some(empty), _) => move_onto(copy_of(empty.as_fd())?.as_fd(), at.as_fd()),
            (true, None, _) => {
                let attr = libc::MOUNT_ATTR_RDONLY
                    | libc::MOUNT_ATTR_NOSUID
                    | libc::MOUNT_ATTR_NODEV
                    | libc::MOUNT_ATTR_NOEXEC;
                let made = make_tmpfs(label, attr)?;
                move_onto(made.as_fd(), at.as_fd())?;
                empty = Some(made);
                Ok(())
            }
        }
    })
}

/// A clone of a mount that is attached in our own namespace; before 6.15 the kernel clones no detached one.
fn copy_of(mount: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(rustix::mount::open_tree(mount, c"", flags)?)
}

/// Opens what may be missing.
fn existing(path: &CStr, root: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    match resolve::open(root, path, OFlags::PATH) {
        Ok(at) => Ok(Some(at)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn read_only(path: &CStr, root: BorrowedFd<'_>) -> Result<()> {
    let Some(at) = existing(path, root)? else {
        return Ok(());
    };
    let flags = OpenTreeFlags::from_bits_retain(libc::AT_RECURSIVE as u32)
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(&at, c"", flags)?;
    sys::mount_setattr(tree.as_fd(), true, MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() })?;
    move_onto(tree.as_fd(), at.as_fd())
}

/// `pivot_root(".", ".")` stacks the old root on the new one; it is then let go with all that is below it.
fn pivot(root: BorrowedFd<'_>) -> Result<()> {
    rustix::process::fchdir(root)?;
    rustix::process::pivot_root(c".", c".")?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir(c"/")?)
}
