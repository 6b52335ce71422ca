//! A container's root from an image's layers, described as mounts for somebody else to make.
//!
//! `ROOTFS/CONTAINER/layers` says what the container stands on and is written first; beside it lie the container's own
//! files. Nothing here is synced: a container does not outlive the boot, and its files need not either.

mod native;
mod overlay;

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::Rootfs;
use crate::catalog::Pin;
use crate::config::SnapshotterKind;
use crate::error::Error;
use crate::files;
use crate::records::{PIN, Records};

/// One of the two below.
pub(crate) type Make = fn(SnapshotterKind, &Records, &str, &Pin) -> Result<Rootfs, Error>;

/// Makes the directory of a container, or takes the one that is there, and describes its root.
pub(crate) fn prepare(kind: SnapshotterKind, records: &Records, container: &str, pin: &Pin) -> Result<Rootfs, Error> {
    let directory = pinned(records, container, pin)?;
    match kind {
        SnapshotterKind::Overlay => overlay::prepare(records, &directory, pin),
        SnapshotterKind::Native => native::prepare(records, &directory, pin),
    }
}

/// The same of a root that nobody writes.
pub(crate) fn prepare_volume(kind: SnapshotterKind, records: &Records, name: &str, pin: &Pin) -> Result<Rootfs, Error> {
    let directory = pinned(records, name, pin)?;
    match kind {
        SnapshotterKind::Overlay => overlay::volume(records, &directory, pin),
        SnapshotterKind::Native => native::prepare(records, &directory, pin),
    }
}

/// A directory with the record of what is stood on.
fn pinned(records: &Records, container: &str, pin: &Pin) -> Result<PathBuf, Error> {
    let directory = records.rootfs.join(container);
    let made = step!("create_container::snapshot_mkdir", make(&directory));
    made.map_err(Error::io("make", &directory))?;
    let place = directory.join(PIN);
    let bytes = serde_json::to_vec(pin).map_err(|error| Error::io("write", &place)(io::Error::from(error)))?;
    // Asked again, it is left as it is: a kill half-way through must not unpin what may be mounted.
    if fs::read(&place).ok().as_ref() != Some(&bytes) {
        step!("create_container::snapshot_pin", fs::write(&place, bytes)).map_err(Error::io("write", &place))?;
    }
    Ok(directory)
}

/// Removes the directory of a container; absent is fine.
pub(crate) fn remove(records: &Records, container: &str) -> Result<(), Error> {
    let path = &records.rootfs;
    let rootfs = files::open_own(path).map_err(Error::io("open", path))?;
    let removed = step!("remove_container::snapshot_remove", files::remove(&rootfs, container.as_bytes()));
    removed.map_err(Error::io("remove", &path.join(container)))
}

/// A directory of ours that may be there already.
fn make(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}
