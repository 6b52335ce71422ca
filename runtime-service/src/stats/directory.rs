//! One directory of the kernel's small files, opened once: the way to a container's cgroup is longer than what is then
//! read, and lists walk it for every container of the node.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::host::Cgroups;

/// Room for what one such file says at first, in bytes: `memory.stat`, the longest, has about 2 KiB.
const ROOM: usize = 4096;

/// A directory of files that the kernel makes up when they are read. One that goes away meanwhile has no files.
pub(super) struct Directory(OwnedFd);

/// Which tree a directory is in, and so how its files are called.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

impl Directory {
    /// `None` when there is no such directory.
    pub(super) fn open(path: &Path) -> Option<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, path, flags, Mode::empty()).ok().map(Self)
    }

    /// Where the cgroup `path` has the files of `controller`.
    pub(super) fn of(cgroups: &Cgroups, controller: &str, path: &str) -> Option<(Self, Version)> {
        match cgroups.v1_directory(controller, path) {
            Some(directory) => Some((Self::open(&directory)?, Version::One)),
            None => Some((Self::open(&cgroups.v2_directory(path)?)?, Version::Two)),
        }
    }

    /// A file's text; `None` when it is not there, or no text.
    pub(super) fn read(&self, file: &str) -> Option<String> {
        let file = openat(&self.0, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut text = Vec::with_capacity(ROOM);
        loop {
            rustix::io::read(&file, rustix::buffer::spare_capacity(&mut text)).ok()?;
            // A cgroup's file is one record to the kernel (kernfs: `seq_show`), which fills what it is given: room left
            // over is the end, and asking again would cost as much as the first time.
            if text.len() < text.capacity() {
                return String::from_utf8(text).ok();
            }
            text.reserve(ROOM);
        }
    }

    /// A file that holds one number; `None` for `max` too.
    pub(super) fn number(&self, file: &str) -> Option<u64> {
        self.read(file)?.trim().parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_whatever_its_length() {
        let root = tempfile::tempdir().expect("a directory");
        assert!(Directory::open(&root.path().join("none")).is_none());
        let directory = Directory::open(root.path()).expect("a directory");
        assert_eq!(directory.read("none"), None);
        for length in [0, 1, ROOM - 1, ROOM, ROOM + 1, 3 * ROOM, 5 * ROOM + 7] {
            let text = "x".repeat(length);
            std::fs::write(root.path().join("file"), &text).expect("write");
            assert!(directory.read("file").expect("a file") == text, "{length}");
        }
        for (text, number) in [("12\n", Some(12)), ("max\n", None), ("-1\n", None), ("", None)] {
            std::fs::write(root.path().join("file"), text).expect("write");
            assert_eq!(directory.number("file"), number, "{text:?}");
        }
    }
}
