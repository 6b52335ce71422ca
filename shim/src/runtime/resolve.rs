//! Paths inside a container's root, resolved by descriptor so that no link of the image leads out of it.
//! Everything here runs in the child of the clone: nothing allocates.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, Result};

const PATH_MAX: usize = 4096; // bytes with the NUL; limits.h
const NAME_MAX: usize = 255; // bytes of one component; limits.h
const DEPTH_MAX: usize = 128; // components held open at once; deeper paths are refused with ENAMETOOLONG
const LINKS_MAX: usize = 40; // as the kernel's MAXSYMLINKS
const RACES_MAX: usize = 32; // attempts while somebody renames below us

/// What is to be at the end of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
}

/// Opens what `path` names inside `root`: links are followed as if `root` were `/`, magic links of procfs never.
pub(super) fn open(root: BorrowedFd<'_>, path: &CStr, flags: OFlags) -> Result<OwnedFd> {
    open_with(root, path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// Opens a directory at `path` inside `root` without following any link: `ELOOP` if there is one.
pub(super) fn open_plain_directory(root: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd> {
    open_with(root, path, OFlags::PATH | OFlags::DIRECTORY, ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS)
}

fn open_with(root: BorrowedFd<'_>, path: &CStr, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd> {
    for _ in 0..RACES_MAX {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // The kernel could not rule out that a rename led `..` out of the root.
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Opens what `path` names inside `root`, making what is missing: directories 0755, an empty file 0644 at the end if
/// that is what is wanted. A link that dangles leads to where its target is made.
pub(super) fn make(root: BorrowedFd<'_>, path: &CStr, kind: Kind) -> Result<OwnedFd> {
    match open(root, path, OFlags::PATH) {
        Err(Errno::NOENT) => Walk::new(root, path)?.walk(kind),
        found => found,
    }
}

/// A walk from the root, one component at a time, each opened without following.
struct Walk<'a> {
    root: BorrowedFd<'a>,
    /// The directories from the root to here, without the root.
    held: [Option<OwnedFd>; DEPTH_MAX],
    depth: usize,
    /// What is still to be walked, at the end of the buffer.
    rest: [u8; PATH_MAX],
    start: usize,
    links: usize,
}

impl<'a> Walk<'a> {
    fn new(root: BorrowedFd<'a>, path: &CStr) -> Result<Self> {
        let mut walk =
            Walk { root, held: [const { None }; DEPTH_MAX], depth: 0, rest: [0; PATH_MAX], start: PATH_MAX, links: 0 };
        walk.prepend(path.to_bytes())?;
        Ok(walk)
    }

    /// Puts `path` before what is still to be walked.
    fn prepend(&mut self, path: &[u8]) -> Result<()> {
        let needed = path.len() + 1;
        if needed > self.start {
            return Err(Errno::NAMETOOLONG);
        }
        self.start -= 1;
        self.rest[self.start] = b'/';
        self.start -= path.len();
        self.rest[self.start..self.start + path.len()].copy_from_slice(path);
        Ok(())
    }

    fn here(&self) -> BorrowedFd<'_> {
        match self.depth.checked_sub(1).and_then(|top| self.held[top].as_ref()) {
            Some(fd) => fd.as_fd(),
            None => self.root,
        }
    }

    fn skip_slashes(&mut self) {
        while self.start < PATH_MAX && self.rest[self.start] == b'/' {
            self.start += 1;
        }
    }

    /// Takes the next component as a C string, and says whether it is the last. `None` at the end.
    fn next(&mut self, name: &mut [u8; NAME_MAX + 1]) -> Result<Option<(usize, bool)>> {
        self.skip_slashes();
        let begin = self.start;
        while self.start < PATH_MAX && self.rest[self.start] != b'/' {
            self.start += 1;
        }
        let length = self.start - begin;
        if length == 0 {
            return Ok(None);
        }
        if length > NAME_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        name[..length].copy_from_slice(&self.rest[begin..self.start]);
        name[length] = 0;
        self.skip_slashes();
        Ok(Some((length, self.start == PATH_MAX)))
    }

    fn walk(mut self, kind: Kind) -> Result<OwnedFd> {
        let mut name = [0; NAME_MAX + 1];
        while let Some((length, last)) = self.next(&mut name)? {
            match &name[..length] {
                b"." => {}
                b".." => self.up(),
                _ => {
                    let component = CStr::from_bytes_with_nul(&name[..length + 1]).map_err(|_| Errno::INVAL)?;
                    let wanted = if last { kind } else { Kind::Directory };
                    if let Some(file) = self.enter(component, wanted, last)? {
                        return Ok(file);
                    }
                }
            }
        }
        match self.depth.checked_sub(1).and_then(|top| self.held[top].take()) {
            Some(directory) => Ok(directory),
            None => open(self.root, c".", OFlags::PATH),
        }
    }

    fn up(&mut self) {
        if let Some(top) = self.depth.checked_sub(1) {
            self.held[top] = None;
            self.depth = top;
        }
    }

    /// Goes into `component`, making it if it is missing. Returns it if it is no directory and the last one.
    fn enter(&mut self, component: &CStr, wanted: Kind, last: bool) -> Result<Option<OwnedFd>> {
        for _ in 0..RACES_MAX {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(self.here(), component, flags, Mode::empty()) {
                Ok(fd) => return self.arrive(fd, last),
                Err(Errno::NOENT) => self.create(component, wanted)?,
                Err(error) => return Err(error),
            }
        }
        Err(Errno::AGAIN)
    }

    fn create(&self, component: &CStr, wanted: Kind) -> Result<()> {
        let made = match wanted {
            Kind::Directory => rustix::fs::mkdirat(self.here(), component, Mode::from_raw_mode(0o755)),
            Kind::File => rustix::fs::openat(
                self.here(),
                component,
                OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::from_raw_mode(0o644),
            )
            .map(drop),
        };
        match made {
            Err(Errno::EXIST) => Ok(()),
            other => other,
        }
    }

    fn arrive(&mut self, fd: OwnedFd, last: bool) -> Result<Option<OwnedFd>> {
        match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
            FileType::Directory => {
                if self.depth == DEPTH_MAX {
                    return Err(Errno::NAMETOOLONG);
                }
                self.held[self.depth] = Some(fd);
                self.depth += 1;
                Ok(None)
            }
            FileType::Symlink => self.follow(fd.as_fd()).map(|()| None),
            _ if last => Ok(Some(fd)),
            _ => Err(Errno::NOTDIR),
        }
    }

    fn follow(&mut self, link: BorrowedFd<'_>) -> Result<()> {
        self.links += 1;
        if self.links > LINKS_MAX {
            return Err(Errno::LOOP);
        }
        let mut buffer = [MaybeUninit::uninit(); PATH_MAX];
        let (target, _) = rustix::fs::readlinkat_raw(link, c"", &mut buffer)?;
        let absolute = target.first() == Some(&b'/');
        let target: &[u8] = target;
        self.prepend(target)?;
        while absolute && self.depth > 0 {
            self.up();
        }
        Ok(())
    }
}

/// True if `fd` is on a procfs.
pub(super) fn is_proc(fd: BorrowedFd<'_>) -> Result<bool> {
    Ok(rustix::fs::fstatfs(fd)?.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

/// Type and device number of what `name` is in `directory`, without following.
pub(super) fn device_at(directory: BorrowedFd<'_>, name: &CStr) -> Result<(FileType, u64)> {
    let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok((FileType::from_raw_mode(stat.st_mode), stat.st_rdev))
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::os::unix::fs::symlink;

    use super::*;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(directory.path(), flags, Mode::empty()).expect("open it");
        (directory, fd)
    }

    fn c(path: &str) -> CString {
        CString::new(path).expect("no NUL")
    }

    #[test]
    fn missing_directories_and_files_are_made_inside() {
        let (directory, root) = root();
        make(root.as_fd(), &c("/a/b/c"), Kind::Directory).expect("make directory");
        make(root.as_fd(), &c("a/./b/../x/file"), Kind::File).expect("make file");
        assert!(directory.path().join("a/b/c").is_dir());
        assert!(directory.path().join("a/x/file").is_file());
    }

    #[test]
    fn links_stay_inside_also_when_they_dangle() {
        let (directory, root) = root();
        let outside = tempfile::tempdir().expect("temporary directory");
        for (link, target) in [
            ("absolute", outside.path().join("made").to_string_lossy().into_owned()),
            ("up", format!("../../../../../..{}/made", outside.path().display())),
        ] {
            symlink(&target, directory.path().join(link)).expect("link");
            make(root.as_fd(), &c(&format!("/{link}/deep")), Kind::File).expect("make through it");
        }
        assert_eq!(std::fs::read_dir(outside.path()).expect("read it").count(), 0);
        let inside = directory.path().join(outside.path().strip_prefix("/").expect("absolute"));
        assert!(inside.join("made/deep").is_file());
    }

    #[test]
    fn the_link_of_many_images_to_a_missing_stub_gets_its_file() {
        let (directory, root) = root();
        std::fs::create_dir(directory.path().join("etc")).expect("mkdir");
        symlink("../run/systemd/resolve/stub-resolv.conf", directory.path().join("etc/resolv.conf")).expect("link");
        make(root.as_fd(), &c("/etc/resolv.conf"), Kind::File).expect("make");
        assert!(directory.path().join("run/systemd/resolve/stub-resolv.conf").is_file());
    }

    #[test]
    fn loops_files_on_the_way_and_long_names_are_errors() {
        let (directory, root) = root();
        symlink("b", directory.path().join("a")).expect("link");
        symlink("a", directory.path().join("b")).expect("link");
        std::fs::write(directory.path().join("file"), "").expect("write");
        let fail = |path: &str| make(root.as_fd(), &c(path), Kind::Directory).expect_err("must fail");
        assert_eq!(fail("a/x"), Errno::LOOP);
        assert_eq!(fail("file/x/y"), Errno::NOTDIR);
        assert_eq!(fail(&format!("new/{}", "n".repeat(256))), Errno::NAMETOOLONG);
        assert_eq!(fail(&"d/".repeat(DEPTH_MAX + 1)), Errno::NAMETOOLONG);
    }

    #[test]
    fn a_directory_that_must_be_plain_is_not_reached_through_a_link() {
        let (directory, root) = root();
        std::fs::create_dir(directory.path().join("real")).expect("mkdir");
        symlink("real", directory.path().join("proc")).expect("link");
        assert_eq!(open_plain_directory(root.as_fd(), c"/proc").expect_err("a link"), Errno::LOOP);
        open_plain_directory(root.as_fd(), c"/real").expect("a directory");
    }
}
