//! Small files of the cgroup file systems: written whole, read whole.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::runtime::Error;

/// Writes one value with one write.
///
/// # Errors
/// The file, the value, the kernel's answer.
pub(super) fn write(directory: &Path, file: &str, value: &str) -> Result<(), Error> {
    try_write(directory, file, value).map_err(|errno| refused(directory, file, value, errno))
}

/// As `write`, with the plain number for callers that know what to do about some.
pub(super) fn try_write(directory: &Path, file: &str, value: &str) -> rustix::io::Result<()> {
    let fd = rustix::fs::open(directory.join(file), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&fd, value.as_bytes()).map(drop)
}

pub(super) fn refused(directory: &Path, file: &str, value: &str, errno: Errno) -> Error {
    Error::Limit { file: directory.join(file), value: value.to_owned(), source: errno.into() }
}

/// The first page of a file, without white space around it.
pub(super) fn read_small(file: &Path) -> rustix::io::Result<String> {
    let fd = rustix::fs::open(file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = [0; 4096];
    let read = rustix::io::read(&fd, &mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..read]).trim().to_owned())
}

/// A file that takes several values, one for each write.
pub(super) struct Writer {
    path: PathBuf,
    fd: OwnedFd,
}

impl Writer {
    pub(super) fn open(directory: &Path, file: &str) -> Result<Writer, Error> {
        let path = directory.join(file);
        match rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => Ok(Writer { path, fd }),
            Err(errno) => Err(Error::step(format!("open {path:?}"), errno)),
        }
    }

    pub(super) fn write(&self, value: &str) -> Result<(), Error> {
        match rustix::io::write(&self.fd, value.as_bytes()) {
            Ok(_) => Ok(()),
            Err(errno) => Err(Error::step(format!("write {value:?} to {:?}", self.path), errno)),
        }
    }
}

/// The number after `key` in a file of `key number` lines.
pub(super) fn read_key(file: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(name, _)| *name == key).and_then(|(_, value)| value.trim().parse().ok())
}

/// The cgroups right below.
pub(super) fn children(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// Every process in a cgroup and below it. A cgroup that is gone has none.
///
/// # Errors
/// The file that cannot be read.
pub(super) fn pids(directory: &Path) -> Result<Vec<i32>, Error> {
    let file = directory.join("cgroup.procs");
    let mut pids: Vec<i32> = match fs::read_to_string(&file) {
        Ok(text) => text.lines().filter_map(|line| line.parse().ok()).collect(),
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        // A v2 cgroup with threads of its own kind: they are counted where their processes are.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Vec::new(),
        Err(error) => return Err(Error::step(format!("read {file:?}"), error)),
    };
    for child in children(directory) {
        pids.extend(self::pids(&child)?);
    }
    Ok(pids)
}

/// The cgroup has been removed, before or while its file was open.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}
