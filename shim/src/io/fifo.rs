//! FIFOs between a client and a process: opened without waiting for the other side, and watched for its death.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use tokio::io::Interest;

use crate::{say, sys};

/// For a process to write to. The second descriptor keeps a reader there, so that the process waits instead of dying
/// of SIGPIPE while the client is away or has not come yet.
pub(super) fn for_output(path: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
    let reader = open(path, OFlags::RDONLY)?;
    Ok((blocking(open(path, OFlags::WRONLY)?)?, reader))
}

/// For a process to write to for as long as somebody reads. The second descriptor sees when nobody does any longer.
///
/// # Errors
/// `ENXIO` when nobody reads now.
pub(super) fn for_tied_output(path: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
    Ok((blocking(open(path, OFlags::WRONLY)?)?, open(path, OFlags::WRONLY)?))
}

/// For copies of what a container writes: never waited for. The second descriptor sees when nobody reads any longer.
///
/// # Errors
/// `ENXIO` when nobody reads now.
pub(super) fn for_copies(path: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
    Ok((open(path, OFlags::WRONLY)?, open(path, OFlags::WRONLY)?))
}

/// For what an attached client types, which ends with the client.
pub(super) fn for_typing(path: &Path) -> io::Result<OwnedFd> {
    open(path, OFlags::RDONLY)
}

/// For a process to read from. The second descriptor keeps a writer there: the end of input is when it is closed too,
/// that is after Task's `CloseIO`.
pub(super) fn for_input(path: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
    let reader = blocking(open(path, OFlags::RDONLY)?)?;
    Ok((reader, open(path, OFlags::WRONLY)?))
}

/// Returns when none of these, from `for_tied_output`, has a reader.
pub(super) async fn readers_gone(ties: Vec<OwnedFd>) {
    for tie in ties {
        let gone = async {
            let tie = sys::watch(tie, Interest::ERROR)?;
            tie.ready(Interest::ERROR).await.map(|mut guard| guard.retain_ready())
        };
        if let Err(error) = gone.await {
            say!("watch the reader of a FIFO: {error}");
            std::future::pending::<()>().await;
        }
    }
}

/// The other end of a FIFO never keeps this waiting, nor does a device that somebody put there.
fn open(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let fd = rustix::fs::open(path, flags | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())?;
    match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
        FileType::Fifo => Ok(fd),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a FIFO")),
    }
}

fn blocking(fd: OwnedFd) -> io::Result<OwnedFd> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags - OFlags::NONBLOCK)?;
    Ok(fd)
}
