//! What this kernel can do, each tried on something that nobody sees: for the daemon's Status, and its refusals.

use std::io;
use std::os::fd::AsFd;

use berth_api::shim::Features;
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use crate::failpoint;
use crate::sys::{self, MountAttr};

/// Tries everything once.
///
/// # Errors
/// The kernel answers with something else than yes or no, as to one who is not root.
pub(crate) fn probe() -> io::Result<Features> {
    Ok(Features { recursive_read_only: recursive_read_only()? })
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
