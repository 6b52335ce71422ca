//! The daemon's one file that touches mounts which a namespace has, or enters one: it unpins a pod's namespaces, unmounts
//! its /dev/shm, looks around in its network and makes sockets there. Pinning is done by `berth-pod-ns`.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// Calls `look` in each of these pinned network namespaces, one after the other, on a thread that ends with it: a
/// namespace that was entered is not left. Blocks.
///
/// # Errors
/// There is no thread. One that cannot be entered has its own error.
pub(crate) fn look_into<T: Send>(pins: &[PathBuf], look: impl Fn() -> T + Send) -> io::Result<Vec<io::Result<T>>> {
    let enter = |pin: &PathBuf| setns(File::open(pin)?, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
    std::thread::scope(|scope| {
        let visit = move || pins.iter().map(|pin| enter(pin).map(|()| look())).collect();
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, visit)?;
        thread.join().map_err(|_| io::Error::other("the thread in the namespace panicked"))
    })
}

/// A TCP socket, not blocking, of a pinned network namespace; of the daemon's own without one.
///
/// # Errors
/// The namespace is gone, or the kernel refuses.
pub(crate) async fn tcp_socket(pin: Option<&Path>, v6: bool) -> io::Result<OwnedFd> {
    let make = move || {
        let family = if v6 { AddressFamily::INET6 } else { AddressFamily::INET };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        rustix::net::socket_with(family, SocketType::STREAM, flags, None).map_err(io::Error::from)
    };
    let Some(pin) = pin.map(Path::to_owned) else { return make() };
    let made = tokio::task::spawn_blocking(move || look_into(&[pin], make)).await.map_err(io::Error::other)??;
    made.into_iter().next().unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()))?
}

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
