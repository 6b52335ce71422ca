//! Pid 1 of a pod whose containers have SELinux labels: a program of its own, so that it can have the pod's label as well,
//! in a root of its own that is nothing but this program. It sees nothing of the host, and nobody sees the host by it.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen,
};
use serde::Deserialize;

use crate::sys::{self, MountAttr, Strings};

/// SELinux's, of a pod.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Labels {
    pub(crate) process: String,
    pub(crate) mount: String,
}

/// The program's first argument when it is to go on as pid 1.
pub const ARGUMENT: &str = "pid-1";

const PROGRAM: &CStr = c"/berth-pod-ns";

/// Beside the program, in bytes: directories and the rest of its last page.
const ROOM: u64 = 64 << 10;

/// What is made for it before it is born.
pub(crate) struct First {
    /// A tmpfs with the program, which is in no mount namespace.
    root: OwnedFd,
    label: CString,
    arguments: Strings,
    environment: Strings,
    failure: OwnedFd,
}

/// Where it tells that it could not become what it should.
pub(crate) struct Told(OwnedFd);

impl First {
    /// Makes its root.
    ///
    /// # Errors
    /// What the kernel answers: EINVAL if its policy does not know the label.
    pub(crate) fn prepare(labels: &Labels) -> io::Result<(First, Told)> {
        let mut own = File::open("/proc/self/exe")?;
        let size = (own.metadata()?.len() + ROOM).to_string();
        let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (key, value) in [("context", labels.mount.as_str()), ("size", &size), ("mode", "755")] {
            fsconfig_set_string(context.as_fd(), key, value)?;
        }
        fsconfig_create(context.as_fd())?;
        // Not nosuid: a policy may hold that against a change of label.
        let root = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let name = &PROGRAM.to_bytes()[1..];
        let program = rustix::fs::openat(&root, name, flags, Mode::from_raw_mode(0o555))?;
        io::copy(&mut own, &mut File::from(program))?;
        sys::mount_setattr(root.as_fd(), false, MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() })?;
        let (told, failure) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let label = CString::new(labels.process.as_str())?;
        let arguments = Strings::new(vec![PROGRAM.to_owned(), CString::new(ARGUMENT)?]);
        let first = First { root, label, arguments, environment: Strings::new(Vec::new()), failure };
        Ok((first, Told(told)))
    }

    /// Becomes it, with `stay` as stdin. Returns only when that cannot be, and has told why. Child.
    pub(crate) fn become_it(&self, stay: &OwnedFd) {
        let Err(errno) = self.try_it(stay);
        let _ = rustix::io::write(&self.failure, &errno.raw_os_error().to_ne_bytes());
    }

    fn try_it(&self, stay: &OwnedFd) -> Result<std::convert::Infallible, Errno> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let label = rustix::fs::open(c"/proc/thread-self/attr/exec", flags, Mode::empty())?;
        rustix::stdio::dup2_stdin(stay)?;
        sys::unshare(libc::CLONE_NEWNS as u64)?;
        rustix::mount::mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        // A directory that every host has, covered for as long as it takes.
        let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(&self.root, c"", rustix::fs::CWD, c"/proc", empty)?;
        rustix::process::fchdir(&self.root)?;
        rustix::process::pivot_root(c".", c".")?;
        rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
        rustix::process::chdir(c"/")?;
        rustix::io::write(&label, self.label.to_bytes())?;
        Err(sys::execve(PROGRAM, &self.arguments, &self.environment))
    }
}

impl Told {
    /// Waits until it is what it should be. Whoever made it must have let go of the `First` of his.
    ///
    /// # Errors
    /// Why it is not.
    pub(crate) fn wait(self) -> io::Result<()> {
        let mut errno = [0; 4];
        match File::from(self.0).read(&mut errno)? {
            4 => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno))),
            _ => Ok(()),
        }
    }
}
