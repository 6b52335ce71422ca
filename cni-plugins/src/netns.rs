//! Enters a pod's network namespace for the length of one closure, on the process's only thread.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};

use crate::error::Error;

/// A network namespace that is held open, so that it cannot go while we work.
#[derive(Debug)]
pub(crate) struct Netns {
    path: PathBuf,
    file: File,
}

impl Netns {
    /// Opens the namespace at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        Netns::open_if_there(path)?.ok_or_else(|| {
            let what = if path.exists() {
                (ErrorKind::InvalidInput, "not a namespace")
            } else {
                (ErrorKind::NotFound, "nothing is there")
            };
            Error::file("open network namespace", path)(io::Error::new(what.0, what.1))
        })
    }

    /// As `open`; `None` when there is nothing at `path`, or only the file on which a namespace was mounted.
    pub(crate) fn open_if_there(path: &Path) -> Result<Option<Self>, Error> {
        match File::open(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::file("open network namespace", path)(e)),
            Ok(file) => Ok(is_namespace(&file).then(|| Netns { path: path.into(), file })),
        }
    }

    /// For a message to the kernel that names the namespace.
    pub(crate) fn raw_fd(&self) -> i32 {
        self.file.as_raw_fd()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `f` inside and comes back. What `f` opens (a netlink socket, a file of /proc/sys/net) stays inside.
    pub(crate) fn inside<T>(&self, f: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let home = Path::new("/proc/thread-self/ns/net");
        let here = File::open(home).map_err(Error::file("open", home))?;
        let enter = |to: &File, path: &Path| {
            setns(to, CloneFlags::CLONE_NEWNET).map_err(|e| Error::file("enter network namespace", path)(e.into()))
        };
        enter(&self.file, &self.path)?;
        let result = f();
        enter(&here, home)?;
        result
    }
}

fn is_namespace(file: &File) -> bool {
    nix::sys::statfs::fstatfs(file).is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}
