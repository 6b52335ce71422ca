//! The shim runs from a read-only clone of its binary, so that no container can ever write the host's (CVE-2019-5736).
//! Makes nothing that has to be undone: the clone is a mount in nobody's namespace and goes with its last process.
//!
//! A process of a container can come by a handle on the shim's binary: an image whose program is `/proc/self/exe` is
//! executed by a child of the shim. While a shim runs, most kernels refuse to write its binary (6.11 and 6.12.0 do
//! not), but a handle that was kept would do once the last one has ended. A handle on a read-only mount never does:
//! an overlay without an upper directory has nothing to write to, and cannot be remounted to have it. It costs no
//! memory: what is mapped from it are the page cache's pages of the file below.
//!
//! berthd keeps such a clone and starts its shims from there, which costs nothing at a start. A shim that finds itself
//! anywhere else (started by containerd, or by hand) makes its own and executes itself again, for about a millisecond.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags, StatVfsMountFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};

use crate::say;
use crate::sys::{self, MountAttr};

/// The binary of this process; for this process alone.
const SELF: &str = "/proc/self/exe";

/// Returns when this process runs from a mount that cannot be written; if it does not, executes the same command anew
/// from one.
///
/// # Errors
/// No read-only clone can be made: then no container may be started.
pub(crate) fn ensure() -> io::Result<()> {
    if is_sealed()? {
        return Ok(());
    }
    let binary = std::fs::read_link(SELF)?;
    let (_clone, path) = overlay(&binary).or_else(|error| {
        say!("clone {binary:?} as an overlay: {error}; as a read-only bind mount instead");
        bind()
    })?;
    match execute(&path)? {}
}

fn is_sealed() -> io::Result<bool> {
    Ok(rustix::fs::statvfs(SELF)?.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// The clone as it is to be kept open, and the binary's path in it.
type Clone = (OwnedFd, PathBuf);

/// An overlay of the binary's directory, and of an empty one since the kernel wants two.
fn overlay(binary: &Path) -> io::Result<Clone> {
    let (Some(directory), Some(name)) = (binary.parent(), binary.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags, Mode::empty())?;
    let empty = mounted("tmpfs", None)?;
    // By descriptor: a path could hold the colon that parts it from the next.
    let lower = format!("{}:{}", path_of(&directory), path_of(&empty));
    let mount = mounted("overlay", Some(&lower))?;
    let path = Path::new(&path_of(&mount)).join(name);
    Ok((mount, path))
}

fn mounted(kind: &str, lower: Option<&str>) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    if let Some(lower) = lower {
        rustix::mount::fsconfig_set_string(context.as_fd(), "lowerdir", lower)?;
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
    Ok(rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// For a binary that no overlay can stand on. A container with CAP_SYS_ADMIN could undo it, but one with that can do
/// more harm by other ways.
fn bind() -> io::Result<Clone> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = rustix::mount::open_tree(CWD, SELF, flags)?;
    let read_only = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
    sys::mount_setattr(mount.as_fd(), false, read_only)?;
    let path = path_of(&mount).into();
    Ok((mount, path))
}

fn path_of(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// This process, from `path`, with the same name and arguments.
fn execute(path: &Path) -> io::Result<Infallible> {
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_else(|| OsString::from("containerd-shim-berth-v1"));
    Err(Command::new(path).arg0(name).args(args).exec())
}
