//! The binaries that a container can see running (the shim's, the keeper's) on mounts that nobody can write, from which they
//! are started; why is told in the shim's `sealed.rs`, by which they make such a mount for themselves, at the cost of a
//! second exec, when they were not started from one.
//! A mount is in no namespace: there is nothing to undo, and it goes when neither this daemon nor a shim uses it.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Config, KEEPER, SHIM};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};

/// The clones of the binaries' directories as they last were.
pub(crate) struct Sealed {
    known: Mutex<HashMap<PathBuf, Known>>,
    /// A directory without anything in it, on a mount of our namespace: kernels before 6.15 make no overlay of another.
    empty: PathBuf,
}

/// What is known of a directory.
struct Known {
    /// Of the binaries in it, when it was cloned.
    versions: Vec<(OsString, Version)>,
    /// `None` when it could not be cloned, which has been said.
    clone: Option<Arc<OwnedFd>>,
}

/// What changes when a file is replaced or written.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Version {
    file: (u64, u64),
    changed: (i64, i64),
}

impl Version {
    fn of(metadata: &Metadata) -> Self {
        Self { file: (metadata.dev(), metadata.ino()), changed: (metadata.ctime(), metadata.ctime_nsec()) }
    }
}

/// Where to execute a binary; keep it until that is done.
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    _clone: Option<Arc<OwnedFd>>,
}

impl Sealed {
    /// With the clones made already of the binaries that are there, so that no pod waits for them. Makes the directory
    /// `empty`.
    pub(crate) fn new(config: &Config, empty: PathBuf) -> Self {
        let sealed = Self { known: Mutex::default(), empty };
        for binary in [SHIM, KEEPER].into_iter().filter_map(|name| config.binary(name).ok()) {
            // Who starts one hears of what goes wrong.
            let _ = sealed.program(&binary);
        }
        sealed
    }

    /// `binary` in a clone of its directory, made anew when another version of it was installed. The binary itself where
    /// it cannot be cloned.
    ///
    /// # Errors
    /// The binary is not there.
    pub(crate) fn program(&self, binary: &Path) -> io::Result<Program> {
        let (Some(directory), Some(name)) = (binary.parent(), binary.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let version = (name.to_owned(), Version::of(&std::fs::metadata(binary)?));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let clone = match known.get(directory) {
            Some(known) if known.versions.contains(&version) => known.clone.clone(),
            _ => {
                // Before: what is replaced meanwhile is another version when it is asked for.
                let versions = [SHIM, KEEPER].into_iter().filter_map(|name| {
                    let metadata = std::fs::metadata(directory.join(name)).ok()?;
                    Some((name.into(), Version::of(&metadata)))
                });
                let versions = versions.collect();
                let clone = overlay(directory, &self.empty).inspect_err(|error| {
                    tracing::warn!(binary = %binary.display(), %error, "it cannot be cloned as an overlay; each process of it clones it for itself");
                });
                let clone = clone.ok().map(Arc::new);
                let known_now = Known { versions, clone: clone.clone() };
                known.insert(directory.to_owned(), known_now);
                clone
            }
        };
        let path = match &clone {
            Some(clone) => Path::new(&path_of(clone.as_fd())).join(name),
            None => binary.to_owned(),
        };
        Ok(Program { path, _clone: clone })
    }
}

fn path_of(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// An overlay without an upper directory, of the binaries' directory and an empty one: the kernel wants two.
fn overlay(directory: &Path, empty: &Path) -> io::Result<OwnedFd> {
    let directory = opened(directory)?;
    match std::fs::create_dir(empty) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let empty = opened(empty)?;
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // By descriptor: a path could hold the colon that parts it from the next.
    let lower = format!("{}:{}", path_of(&directory), path_of(&empty));
    fsconfig_set_string(context.as_fd(), "lowerdir", lower.as_str())?;
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)?)
}

fn opened(directory: &Path) -> io::Result<File> {
    let flags = nix::libc::O_PATH | nix::libc::O_DIRECTORY;
    File::options().read(true).custom_flags(flags).open(directory)
}
