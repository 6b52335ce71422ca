//! Makes things durable, and is the only file that does: every fsync, syncfs and commit by rename of this crate is
//! here, in an order that a test reads back.
//!
//! A record is written beside its place, synced, renamed into it, and the directory synced: whole or absent after a
//! power cut. Layers are not synced file by file; one syncfs(2) comes before the record of the image that needs them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Ending of files that are being written. Whatever is found with it at start is rubbish.
pub(crate) const UNFINISHED: &str = ".tmp";

/// What was done to the disk, in order; only a test looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A file's bytes were handed to the kernel.
    Wrote(PathBuf),
    /// A file's bytes are on the disk.
    SyncedFile(PathBuf),
    /// A name now stands for the new file.
    Renamed(PathBuf),
    /// A name is gone.
    Removed(PathBuf),
    /// Names in a directory are on the disk.
    SyncedDirectory(PathBuf),
    /// Everything on the file system is on the disk.
    SyncedAll(PathBuf),
    /// The caller was told that it is done.
    Answered,
}

/// The hand that syncs.
#[derive(Clone, Default)]
pub(crate) struct Disk {
    #[cfg(test)]
    trace: std::sync::Arc<std::sync::Mutex<Vec<Event>>>,
}

/// A file written beside its place.
pub(crate) struct Staged {
    file: File,
    temporary: PathBuf,
    place: PathBuf,
}

impl Disk {
    #[cfg(test)]
    pub(crate) fn note(&self, event: Event) {
        self.trace.lock().unwrap().push(event);
    }

    /// Remembers an event for the trace test; nothing in a real build.
    #[cfg(not(test))]
    pub(crate) fn note(&self, _: Event) {}

    #[cfg(test)]
    pub(crate) fn events(&self) -> Vec<Event> {
        self.trace.lock().unwrap().clone()
    }

    /// Writes `bytes` beside `place`.
    pub(crate) fn stage(&self, place: &Path, bytes: &[u8]) -> io::Result<Staged> {
        let mut temporary = place.as_os_str().to_owned();
        temporary.push(UNFINISHED);
        let temporary = PathBuf::from(temporary);
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes).inspect_err(|_| drop(fs::remove_file(&temporary)))?;
        self.note(Event::Wrote(place.to_owned()));
        Ok(Staged { file, temporary, place: place.to_owned() })
    }

    pub(crate) fn sync_file(&self, staged: &Staged) -> io::Result<()> {
        staged.file.sync_all().inspect_err(|_| drop(fs::remove_file(&staged.temporary)))?;
        self.note(Event::SyncedFile(staged.place.clone()));
        Ok(())
    }

    pub(crate) fn rename(&self, staged: &Staged) -> io::Result<()> {
        fs::rename(&staged.temporary, &staged.place).inspect_err(|_| drop(fs::remove_file(&staged.temporary)))?;
        self.note(Event::Renamed(staged.place.clone()));
        Ok(())
    }

    /// Syncs the directory that `place` is in.
    pub(crate) fn sync_directory_of(&self, place: &Path) -> io::Result<()> {
        let directory = place.parent().unwrap_or(Path::new("/"));
        File::open(directory)?.sync_all()?;
        self.note(Event::SyncedDirectory(directory.to_owned()));
        Ok(())
    }

    /// Syncs the whole file system that `directory` is on; an error of any earlier write to it is told here.
    pub(crate) fn sync_all(&self, directory: &Path) -> io::Result<()> {
        rustix::fs::syncfs(File::open(directory)?)?;
        self.note(Event::SyncedAll(directory.to_owned()));
        Ok(())
    }

    /// Removes a file; absent is fine.
    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => {
                self.note(Event::Removed(path.to_owned()));
                Ok(())
            }
        }
    }
}

/// Writes a file that is whole or absent, and durable when this returns. Four places to die in, named after `$operation`.
macro_rules! write_durably {
    ($disk:expr, $operation:literal, $place:expr, $bytes:expr) => {
        (|| {
            let (disk, place): (&$crate::sync::Disk, &::std::path::Path) = ($disk, $place);
            let staged = step!(concat!($operation, "_write"), disk.stage(place, $bytes))?;
            step!(concat!($operation, "_fsync"), disk.sync_file(&staged))?;
            step!(concat!($operation, "_rename"), disk.rename(&staged))?;
            step!(concat!($operation, "_dirsync"), disk.sync_directory_of(place))
        })()
    };
}
