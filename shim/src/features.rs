//! What this kernel can do, each tried on something that nobody sees: for the daemon's Status, and its refusals.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use berth_api::shim::Features;
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags};

use crate::failpoint;
use crate::runtime::idmap::{Mapping, Run};
use crate::sys::{self, MountAttr};

/// Tries everything once; `layers` is a directory with others in it, where images' layers lie. Leaves the mount
/// namespace.
///
/// # Errors
/// The kernel answers with something else than yes or no, as to one who is not root.
pub(crate) fn probe(layers: &Path) -> io::Result<Features> {
    let recursive_read_only = recursive_read_only()?;
    let users = user_namespaces(layers);
    let user_namespaces = users.is_ok();
    Ok(Features { recursive_read_only, user_namespaces, no_user_namespaces: users.err().unwrap_or_default() })
}

/// A user namespace is made, and an overlay of two directories whose owners are mapped by it. Linux 5.19 does that for
/// the file systems that map owners at all: 6.3 for tmpfs. The answer is why not.
fn user_namespaces(layers: &Path) -> Result<(), String> {
    if failpoint::fallback_forced("userns") {
        return Err("it is forced not to".into());
    }
    let told = |deed: &'static str| move |error: io::Error| format!("{deed}: {error}");
    let all = vec![Run { container: 0, host: 1 << 16, length: 1 << 16 }];
    let mapping = Mapping { uids: all.clone(), gids: all };
    let namespace = mapping.namespace().map_err(told("make a user namespace"))?;
    let deed = "map the owners of the files in the data root";
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(rustix::fs::CWD, layers, flags).map_err(|e| told(deed)(e.into()))?;
    sys::mount_idmap(tree.as_fd(), namespace.as_fd()).map_err(|e| told(deed)(e.into()))?;
    // A clone of a mount that is shared is of its group: what is mounted on it, here and nowhere else, would be on both.
    let private = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
    sys::mount_setattr(tree.as_fd(), false, private).map_err(|e| told("keep the trial to itself")(e.into()))?;
    overlay_of(tree.as_fd(), layers).map_err(told("mount an overlay of layers with mapped owners"))
}

fn overlay_of(mapped: BorrowedFd<'_>, layers: &Path) -> io::Result<()> {
    let mut directories = Vec::new();
    for entry in std::fs::read_dir(layers)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            directories.push(entry.path());
        }
    }
    let [first, second, ..] = directories.as_slice() else { return Err(io::ErrorKind::NotFound.into()) };
    sys::unshare(libc::CLONE_NEWNS as u64)?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change(c"/", private)?;
    let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mapped, c"", rustix::fs::CWD, layers, empty)?;
    // By relative names, since a path may have a colon in it.
    std::env::set_current_dir(layers)?;
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let data = CString::new(format!("lowerdir={}:{}", name(first), name(second)))?;
    Ok(rustix::mount::mount(c"overlay", first.as_path(), c"overlay", MountFlags::RDONLY, data.as_c_str())?)
}

/// A clone of the root's mount, which is in no namespace, is made read-only with all below it. Since Linux 5.12.
fn recursive_read_only() -> io::Result<bool> {
    if failpoint::fallback_forced("rro") {
        return Ok(false);
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(rustix::fs::CWD, c"/", flags)?;
    let attr = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
    known(sys::mount_setattr(tree.as_fd(), true, attr))
}

/// A call or a flag that the kernel does not know is a no.
fn known(result: rustix::io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(Errno::NOSYS | Errno::INVAL) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
