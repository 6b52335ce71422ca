//! Files by descriptor: opening without ever following a link, copying with all metadata, removing trees of any depth.
//!
//! Every name here is one component below a descriptor, or a path that openat2(2) resolves beneath one with no symlink
//! on the way. Nothing is resolved by the process's own idea of a path.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

/// Marks a directory that hides what lies below it; overlayfs.
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";

/// A lookup beneath a descriptor that follows nothing and crosses nothing.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Opens beneath `dir`; `path` may have components but no symlink.
pub(crate) fn open(dir: impl AsFd, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    create(dir, path, flags, Mode::empty())
}

/// As [`open`], with the mode of a file that is made.
pub(crate) fn create(dir: impl AsFd, path: &[u8], flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    loop {
        match rustix::fs::openat2(&dir, path, flags, mode, BENEATH) {
            // The kernel saw a rename somewhere while it resolved; it asks to try again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

/// What is at a path.
pub(crate) enum Node {
    Nothing,
    Directory(OwnedFd),
    /// Opened with `O_PATH`.
    Other(OwnedFd, Stat),
}

/// Looks beneath `dir` without following the last component.
pub(crate) fn look(dir: impl AsFd, path: &[u8]) -> io::Result<Node> {
    match open(&dir, path, OFlags::RDONLY | OFlags::DIRECTORY) {
        Ok(fd) => return Ok(Node::Directory(fd)),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOENT) => return Ok(Node::Nothing),
            Some(Errno::NOTDIR | Errno::LOOP) => {}
            _ => return Err(error),
        },
    }
    match open(&dir, path, OFlags::PATH) {
        Ok(fd) => {
            let stat = rustix::fs::fstat(&fd)?;
            Ok(Node::Other(fd, stat))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Node::Nothing),
        Err(error) => Err(error),
    }
}

/// Overlayfs's mark for "nothing here, whatever is below": a character device 0:0.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    kind(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

pub(crate) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Whether a directory hides what lies below it. `dir` must not be an `O_PATH` descriptor.
pub(crate) fn is_opaque(dir: impl AsFd) -> io::Result<bool> {
    let mut value = [0u8; 1];
    match rustix::fs::fgetxattr(dir, OPAQUE, &mut value[..]) {
        Ok(1) => Ok(value == *b"y"),
        Ok(_) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn set_opaque(dir: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(dir, OPAQUE, b"y", XattrFlags::empty())?)
}

/// The path of an open descriptor for calls that take no descriptor. Leads to the very inode, whatever its name is now.
pub(crate) fn proc_path(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

pub(crate) fn mtime(stat: &Stat) -> Timespec {
    Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ }
}

/// Both times the same: an access time would only be the time of unpacking.
pub(crate) fn times(mtime: Timespec) -> Timestamps {
    Timestamps { last_access: mtime, last_modification: mtime }
}

pub(crate) fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}

/// Gives `to` owner, extended attributes (but overlayfs's), mode and time of `from`. Neither is an `O_PATH` descriptor.
pub(crate) fn copy_metadata(from: impl AsFd, to: impl AsFd, stat: &Stat) -> io::Result<()> {
    chown(&to, stat)?;
    copy_xattrs(&from, &to)?;
    rustix::fs::fchmod(&to, permissions(stat.st_mode))?;
    rustix::fs::futimens(&to, &times(mtime(stat)))?;
    Ok(())
}

fn chown(to: impl AsFd, stat: &Stat) -> io::Result<()> {
    Ok(rustix::fs::fchown(to, Some(uid(stat.st_uid)), Some(gid(stat.st_gid)))?)
}

pub(crate) fn uid(id: u32) -> rustix::fs::Uid {
    rustix::fs::Uid::from_raw(id)
}

pub(crate) fn gid(id: u32) -> rustix::fs::Gid {
    rustix::fs::Gid::from_raw(id)
}

fn copy_xattrs(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    let mut names = vec![0u8; 64 << 10]; // the kernel's own limit, XATTR_LIST_MAX
    let length = match rustix::fs::flistxattr(&from, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for name in names[..length].split(|byte| *byte == 0).filter(|name| is_copied(name)) {
        let mut value = vec![0u8; 64 << 10]; // XATTR_SIZE_MAX
        let length = rustix::fs::fgetxattr(&from, name, &mut value[..])?;
        rustix::fs::fsetxattr(&to, name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}

/// Overlayfs's own attributes describe a layer, not a file; the host's labels are the host's.
fn is_copied(name: &[u8]) -> bool {
    !name.is_empty() && !is_overlay_xattr(name) && name != b"security.selinux"
}

pub(crate) fn is_overlay_xattr(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// Copies a node that is not a directory, with all its metadata, to a name that does not exist.
pub(crate) fn copy_node(from: &OwnedFd, stat: &Stat, dir: impl AsFd, name: &[u8]) -> io::Result<()> {
    match kind(stat) {
        FileType::RegularFile => {
            // `from` is O_PATH: opened anew through its own inode, for reading.
            let source = rustix::fs::open(proc_path(from), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            let target = create(dir, name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, Mode::RUSR | Mode::WUSR)?;
            copy_bytes(&source, &target, stat.st_size as u64)?;
            copy_metadata(&source, &target, stat)
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, c"", Vec::new())?;
            rustix::fs::symlinkat(target, &dir, name)?;
            settle_by_name(dir, name, stat)
        }
        kind => {
            rustix::fs::mknodat(&dir, name, kind, permissions(stat.st_mode), stat.st_rdev)?;
            settle_by_name(&dir, name, stat)?;
            let node = open(dir, name, OFlags::PATH)?;
            Ok(rustix::fs::chmod(proc_path(&node), permissions(stat.st_mode))?)
        }
    }
}

fn settle_by_name(dir: impl AsFd, name: &[u8], stat: &Stat) -> io::Result<()> {
    let owner = (Some(uid(stat.st_uid)), Some(gid(stat.st_gid)));
    rustix::fs::chownat(&dir, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(rustix::fs::utimensat(dir, name, &times(mtime(stat)), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Shares the blocks where the file system can, else copies in the kernel, else by hand.
fn copy_bytes(from: &OwnedFd, to: &OwnedFd, size: u64) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let mut left = size;
    while left > 0 {
        match rustix::fs::copy_file_range(from, None, to, None, left as usize) {
            Ok(0) => break,
            Ok(copied) => left -= copied as u64,
            Err(Errno::XDEV | Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP) if left == size => {
                let mut source = std::fs::File::from(from.try_clone()?);
                let mut target = std::fs::File::from(to.try_clone()?);
                io::copy(&mut source, &mut target)?;
                break;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Removes what is at `name` below `dir`, a tree of any depth or nothing at all. Needs no free space, follows no link,
/// crosses no mount, and holds one descriptor however deep the tree is.
pub(crate) fn remove(dir: impl AsFd, name: &[u8]) -> io::Result<()> {
    match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {} // Linux says EISDIR, POSIX EPERM
        Err(error) => return Err(error.into()),
    }
    let mut at = match open(&dir, name, OFlags::RDONLY | OFlags::DIRECTORY) {
        Ok(top) => top,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut above: Vec<Frame> = Vec::new();
    let mut frame = Frame::new(&at, CString::default())?;
    loop {
        if let Some(child) = frame.children.pop() {
            let below = open(&at, child.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY)?;
            above.push(std::mem::replace(&mut frame, Frame::new(&below, child)?));
            at = below;
            continue;
        }
        let Some(parent) = above.pop() else { break };
        // Up by "..": the only way that costs no descriptor per level. It must lead where we came from.
        at = rustix::fs::openat(&at, c"..", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let stat = rustix::fs::fstat(&at)?;
        if (stat.st_dev, stat.st_ino) != parent.id {
            return Err(io::Error::other("directory moved while it was removed"));
        }
        rustix::fs::unlinkat(&at, frame.name.as_c_str(), AtFlags::REMOVEDIR)?;
        frame = parent;
    }
    match rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A directory being removed: its files are gone, these directories are left.
struct Frame {
    name: CString,
    id: (u64, u64),
    children: Vec<CString>,
}

impl Frame {
    fn new(dir: &OwnedFd, name: CString) -> io::Result<Self> {
        let stat = rustix::fs::fstat(dir)?;
        let mut children = Vec::new();
        for child in Dir::read_from(dir)? {
            let child = child?;
            if matches!(child.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            let is_directory = match child.file_type() {
                FileType::Directory => true,
                _ => match rustix::fs::unlinkat(dir, child.file_name(), AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => false,
                    Err(Errno::ISDIR) => true,
                    Err(error) => return Err(error.into()),
                },
            };
            if is_directory {
                children.push(child.file_name().to_owned());
            }
        }
        Ok(Self { name, id: (stat.st_dev, stat.st_ino), children })
    }
}

/// The names in a directory.
pub(crate) fn names(dir: impl AsFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if !matches!(name.as_slice(), b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
}

/// Opens one of our own directories by its path: the operator chose it, links and all.
pub(crate) fn open_own(path: &std::path::Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_deeper_than_any_path_is_removed() {
        let top = tempfile::tempdir().unwrap();
        let root = open_own(top.path()).unwrap();
        std::fs::create_dir(top.path().join("t")).unwrap();
        std::fs::write(top.path().join("canary"), "x").unwrap();
        let mut at = open(&root, b"t", OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
        let name = "d".repeat(100);
        for _ in 0..200 {
            std::os::unix::fs::symlink(top.path(), format!("{}/link", proc_path(&at))).unwrap();
            rustix::fs::mkdirat(&at, name.as_str(), Mode::RWXU).unwrap();
            rustix::fs::mkdirat(&at, "other", Mode::RWXU).unwrap();
            at = open(&at, name.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
        }
        remove(&root, b"t").unwrap();
        remove(&root, b"t").unwrap();
        assert_eq!(names(&root).unwrap(), [b"canary"]);
    }

    #[test]
    fn no_link_is_followed() {
        let top = tempfile::tempdir().unwrap();
        std::fs::create_dir(top.path().join("d")).unwrap();
        std::os::unix::fs::symlink("d", top.path().join("l")).unwrap();
        let root = open_own(top.path()).unwrap();
        assert!(open(&root, b"d", OFlags::RDONLY).is_ok());
        assert!(open(&root, b"l", OFlags::RDONLY).is_err());
        assert!(open(&root, b"l/x", OFlags::RDONLY).is_err());
        assert!(open(&root, b"../d", OFlags::RDONLY).is_err());
        assert!(open(&root, b"/etc", OFlags::RDONLY).is_err());
        assert!(matches!(look(&root, b"l").unwrap(), Node::Other(_, stat) if kind(&stat) == FileType::Symlink));
    }
}
