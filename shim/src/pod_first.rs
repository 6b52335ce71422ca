//! What pid 1 of a pod is left with: a root of its own with nothing in it, no rights, no descriptors of the host's, and the
//! system calls of one that waits. The containers of a pod with shared processes see it, and one with CAP_SYS_PTRACE may
//! look through it and make it run what it likes, so there is nothing to see and nothing to do. What it was begun with is
//! seen too: the keeper's binary, which is sealed (`sealed.rs`), its environment, which berthd leaves out, and its order.
//!
//! With SELinux's labels it becomes a program of its own, since a process gets another label only so; its root then holds
//! that program.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen,
};
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::Deserialize;

use crate::sys::{self, BpfInstruction, MountAttr, Strings};

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

/// Its place, made before it is born.
pub(crate) struct Place {
    /// A tmpfs that cannot be written, in no mount namespace.
    root: OwnedFd,
    program: Option<Program>,
    /// An errno, or none.
    answer: OwnedFd,
}

/// What it becomes to have its label.
struct Program {
    label: CString,
    arguments: Strings,
    environment: Strings,
}

/// Where it tells that it could not become what it should.
pub(crate) struct Told(OwnedFd);

impl Place {
    /// Makes its root.
    ///
    /// # Errors
    /// What the kernel answers: EINVAL if its policy does not know the label.
    pub(crate) fn prepare(labels: Option<&Labels>) -> io::Result<(Place, Told)> {
        let root = match labels {
            Some(labels) => with_program(labels)?,
            None => empty()?,
        };
        let program = match labels {
            Some(labels) => Some(Program {
                label: CString::new(labels.process.as_str())?,
                arguments: Strings::new(vec![PROGRAM.to_owned(), CString::new(ARGUMENT)?]),
                environment: Strings::new(Vec::new()),
            }),
            None => None,
        };
        let (told, answer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        Ok((Place { root, program, answer }, Told(told)))
    }

    /// Moves in, and gives up every right; or becomes the program that does, and does not return. What it waits for is
    /// stdin, and `signals` are the only descriptor beside 0, 1 and 2 that is kept. Child.
    ///
    /// # Errors
    /// Has told them.
    pub(crate) fn take(&self, signals: &OwnedFd) -> Result<(), Errno> {
        let taken = match &self.program {
            None => self.move_in().and_then(|()| give_up_rights()),
            Some(program) => self.become_program(program).map(|never| match never {}),
        };
        match taken {
            Ok(()) => {
                let (signals, answer) = (signals.as_raw_fd(), self.answer.as_raw_fd());
                sys::close_all_but(&[signals.min(answer), signals.max(answer)]);
                tell(&self.answer, 0);
                sys::close_all_but(&[signals]);
            }
            Err(errno) => tell(&self.answer, errno.raw_os_error()),
        }
        taken
    }

    fn move_in(&self) -> Result<(), Errno> {
        sys::unshare(libc::CLONE_NEWNS as u64)?;
        rustix::mount::mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        // A directory that every host has, covered for as long as it takes.
        let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(&self.root, c"", rustix::fs::CWD, c"/proc", empty)?;
        rustix::process::fchdir(&self.root)?;
        rustix::process::pivot_root(c".", c".")?;
        rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
        rustix::process::chdir(c"/")
    }

    fn become_program(&self, program: &Program) -> Result<Infallible, Errno> {
        let label = rustix::fs::open(c"/proc/thread-self/attr/exec", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        self.move_in()?;
        // It goes on telling there.
        rustix::stdio::dup2_stdout(&self.answer)?;
        rustix::io::write(&label, program.label.to_bytes())?;
        Err(sys::execve(PROGRAM, &program.arguments, &program.environment))
    }
}

impl Told {
    /// Waits until it is what it should be. Whoever made it must have let go of the `Place`.
    ///
    /// # Errors
    /// Why it is not.
    pub(crate) fn wait(self) -> io::Result<()> {
        let mut errno = [0; 4];
        File::from(self.0).read_exact(&mut errno).map_err(|_| io::Error::other("it ended before it was ready"))?;
        match i32::from_ne_bytes(errno) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// The rest of `take`, for the program that it has become, if it has its signals.
///
/// # Errors
/// Has told them.
pub(crate) fn settle(signals: bool) -> Result<(), Errno> {
    let settled = if signals { give_up_rights() } else { Err(Errno::MFILE) };
    tell(rustix::stdio::stdout(), settled.map_or_else(Errno::raw_os_error, |()| 0));
    settled.inspect(|()| sys::close_range(1, 1))
}

fn tell(to: impl AsFd, errno: i32) {
    let _ = rustix::io::write(to, &errno.to_ne_bytes());
}

fn empty() -> io::Result<OwnedFd> {
    let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "mode", "555")?;
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn with_program(labels: &Labels) -> io::Result<OwnedFd> {
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
    Ok(root)
}

/// No capabilities, and of the system calls those of `WAITING`. Child.
fn give_up_rights() -> Result<(), Errno> {
    rustix::thread::set_no_new_privs(true)?;
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    sys::seccomp_filter(&WAITING, 0)
}

/// Allows to read, to write, to reap, to close and to end; every other call answers EPERM.
// Source of the codes: include/uapi/linux/bpf_common.h, seccomp.h and audit.h.
const WAITING: [BpfInstruction; 15] = {
    const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const NUMBER_AT: u32 = 0;
    const ARCH_AT: u32 = 4;
    const ALLOW: u32 = 0x7fff_0000; // SECCOMP_RET_ALLOW
    const REFUSE: u32 = 0x0005_0000 | libc::EPERM as u32; // SECCOMP_RET_ERRNO
    #[cfg(target_arch = "x86_64")]
    const ARCH: u32 = 0xc000_003e; // AUDIT_ARCH_X86_64
    #[cfg(target_arch = "aarch64")]
    const ARCH: u32 = 0xc000_00b7; // AUDIT_ARCH_AARCH64
    const fn plain(code: u16, k: u32) -> BpfInstruction {
        BpfInstruction { code, jump_true: 0, jump_false: 0, k }
    }
    /// On to the next instruction if it is another, else as far as `ALLOW` is.
    const fn allowed(call: libc::c_long, distance: u8) -> BpfInstruction {
        BpfInstruction { code: JUMP_EQUAL, jump_true: distance, jump_false: 0, k: call as u32 }
    }
    [
        plain(LOAD, ARCH_AT),
        BpfInstruction { code: JUMP_EQUAL, jump_true: 1, jump_false: 0, k: ARCH },
        plain(RETURN, REFUSE),
        plain(LOAD, NUMBER_AT),
        allowed(libc::SYS_read, 9),
        allowed(libc::SYS_write, 8),
        allowed(libc::SYS_wait4, 7),
        allowed(libc::SYS_waitid, 6),
        allowed(libc::SYS_close_range, 5),
        allowed(libc::SYS_rt_sigreturn, 4),
        allowed(libc::SYS_restart_syscall, 3),
        allowed(libc::SYS_exit, 2),
        allowed(libc::SYS_exit_group, 1),
        plain(RETURN, REFUSE),
        plain(RETURN, ALLOW),
    ]
};
