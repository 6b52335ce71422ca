//! The daemon's one file that touches mounts which a namespace has: it unpins a pod's namespaces and unmounts its /dev/shm.
//! Pinning is done by `berth-pod-ns`.

use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

/// Unmounts what is mounted at `path` and removes the file or directory. Nothing there is a success.
///
/// # Errors
/// The kernel refuses the unmount or the removal.
pub(crate) fn unpin(path: &Path) -> io::Result<()> {
    // Detached, never forced: a namespace goes when its last user does, and a busy mount must not hold up a teardown.
    // More than once, because a crash between two attempts to pin may have stacked them.
    loop {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    let removed = match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir(path),
        Ok(_) => std::fs::remove_file(path),
        Err(e) => Err(e),
    };
    crate::ledger::gone(removed)
}
