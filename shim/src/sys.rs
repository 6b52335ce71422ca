//! System calls that no crate wraps safely. All `unsafe` of the crate.
//! What the child of `clone3` calls allocates nothing and locks nothing; it is marked "child".

use std::ffi::{CStr, CString, c_char, c_void};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// A result of the kernel: `-1` means errno.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Clones this process and runs `child` in the copy, which ends with it. Returns the child's pid and pidfd.
///
/// The copy has its own memory (no `CLONE_VM`), every handled signal back at its default, and is born in `cgroup`, an
/// open directory of the v2 tree. It shares the state of every lock of other threads as it was: `child` must allocate
/// and lock nothing.
///
/// # Errors
/// What clone3 answers, e.g. `EAGAIN` at the limit of processes.
pub(crate) fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>, child: impl FnOnce()) -> io::Result<(i32, OwnedFd)> {
    // Source: struct clone_args in include/uapi/linux/sched.h, its second version (CLONE_ARGS_SIZE_VER2).
    #[repr(C, align(8))]
    #[derive(Default)]
    struct CloneArgs {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
        cgroup: u64,
    }
    const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: flags | libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // JUSTIFICATION: no crate wraps clone3.
    // SAFETY: `args` is a clone_args of the size told and outlives the call; without CLONE_VM and with no stack given
    // the child returns here on its own copy of this stack, as after fork.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match check(result)? {
        0 => {
            child();
            exit_now(128)
        }
        pid => {
            // SAFETY: the kernel has just put a new descriptor there.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok((pid as i32, pidfd))
        }
    }
}

/// Ends the process at once, without destructors or `atexit`. Child.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: exit_group takes a number and does not return.
    unsafe { libc::_exit(status) }
}

/// What `mount_setattr` changes. Bits are `MOUNT_ATTR_…`, propagation `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED` or 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MountAttr {
    pub(crate) set: u64,
    pub(crate) clear: u64,
    pub(crate) propagation: u64,
}

impl MountAttr {
    pub(crate) fn is_empty(&self) -> bool {
        *self == MountAttr::default()
    }
}

/// `mount_setattr` on the mount whose root `mount` is. Child.
pub(crate) fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, attr: MountAttr) -> rustix::io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    set_mount_attr(
        mount,
        flags,
        &RawMountAttr { attr_set: attr.set, attr_clr: attr.clear, propagation: attr.propagation, userns_fd: 0 },
    )
}

/// Makes a detached mount show the owners of its files as a user namespace maps them.
///
/// # Errors
/// `EINVAL` when its file system cannot, or it is mapped already.
pub(crate) fn mount_idmap(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let raw = RawMountAttr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: namespace.as_raw_fd() as u64,
    };
    set_mount_attr(mount, libc::AT_EMPTY_PATH, &raw)
}

/// Source: struct mount_attr in include/uapi/linux/mount.h.
#[repr(C)]
struct RawMountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

fn set_mount_attr(mount: BorrowedFd<'_>, flags: libc::c_int, raw: &RawMountAttr) -> rustix::io::Result<()> {
    // JUSTIFICATION: rustix has no mount_setattr.
    // SAFETY: the path is NUL-terminated, `raw` is a mount_attr of the size told; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(raw),
            size_of::<RawMountAttr>(),
        )
    };
    errno(result)
}

/// As `check`, with the error as a plain number: no allocation.
fn errno(result: libc::c_long) -> rustix::io::Result<()> {
    if result < 0 {
        // SAFETY: errno of this thread, just set by the call.
        Err(rustix::io::Errno::from_raw_os_error(unsafe { *libc::__errno_location() }))
    } else {
        Ok(())
    }
}

/// A vector of strings as exec wants it.
#[derive(Debug)]
pub(crate) struct Strings {
    _owned: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl Strings {
    pub(crate) fn new(strings: Vec<CString>) -> Self {
        let mut pointers: Vec<*const c_char> = strings.iter().map(|s| s.as_ptr()).collect();
        pointers.push(std::ptr::null());
        Strings { _owned: strings, pointers }
    }
}

/// `execve`: returns only with an error. Child.
pub(crate) fn execve(path: &CStr, argv: &Strings, envp: &Strings) -> rustix::io::Errno {
    // JUSTIFICATION: rustix's execve is unsafe and experimental.
    // SAFETY: the pointers are NUL-terminated strings owned by `argv` and `envp`, and the vectors end with null.
    let result =
        unsafe { libc::syscall(libc::SYS_execve, path.as_ptr(), argv.pointers.as_ptr(), envp.pointers.as_ptr()) };
    errno(result).err().unwrap_or(rustix::io::Errno::NOEXEC)
}

/// Puts every signal back to its default, also those ignored by Rust's runtime, and blocks none. Child.
pub(crate) fn default_signals() {
    const LAST_SIGNAL: i32 = 64; // _NSIG
    // Source: the kernel's struct sigaction (handler, flags, restorer, 64-bit mask): all zero is SIG_DFL.
    let default = [0_u64; 4];
    let nothing_blocked = 0_u64;
    for signal in 1..=LAST_SIGNAL {
        // SAFETY: `default` is as large as the kernel's sigaction on every 64-bit architecture, and the mask is 8 bytes.
        // SIGKILL and SIGSTOP answer EINVAL, which changes nothing.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null::<u8>(), 8) };
    }
    // SAFETY: the mask is 8 bytes and outlives the call.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const nothing_blocked,
            std::ptr::null::<u8>(),
            8,
        )
    };
}

/// Closes every descriptor from 3 on but those of `keep`, which must be sorted. Child: nothing that owned one of the
/// others may be used afterwards.
pub(crate) fn close_all_but(keep: &[RawFd]) {
    let mut first: u32 = 3;
    for &fd in keep {
        close_range(first, (fd as u32).wrapping_sub(1));
        first = fd as u32 + 1;
    }
    close_range(first, u32::MAX);
}

/// Closes these descriptors: nothing that owned one of them may be used afterwards.
pub(crate) fn close_range(first: u32, last: u32) {
    if first <= last {
        // SAFETY: numbers only; see above for what the caller gives up.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}

/// Makes the number of `old` mean what `new` is. Child.
pub(crate) fn replace(old: &OwnedFd, new: &OwnedFd) -> rustix::io::Result<()> {
    // JUSTIFICATION: rustix's dup3 wants the owner of `old` to be mutable, which a plan in the child is not.
    // SAFETY: both are open; `old` goes on owning its number, which stays open.
    errno(unsafe { libc::syscall(libc::SYS_dup3, new.as_raw_fd(), old.as_raw_fd(), libc::O_CLOEXEC) })
}

/// A new, empty session keyring, so that the process does not see its parent's. Child.
pub(crate) fn new_session_keyring() -> rustix::io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    errno(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<u8>()) })
}

/// `unshare` for namespaces of a single thread. Child.
pub(crate) fn unshare(namespaces: u64) -> rustix::io::Result<()> {
    // JUSTIFICATION: rustix's unshare is unsafe because of CLONE_FILES.
    // SAFETY: namespaces only, never CLONE_FILES: no descriptor changes its meaning.
    errno(unsafe { libc::syscall(libc::SYS_unshare, namespaces & !(libc::CLONE_FILES as u64)) })
}

/// The user and group that files are made as, by a process that stays what it is otherwise. Child.
pub(crate) fn make_files_as(user: u32, group: u32) {
    // JUSTIFICATION: no crate wraps these.
    // SAFETY: numbers only. Neither call tells whether it succeeded.
    unsafe {
        libc::syscall(libc::SYS_setfsgid, group);
        libc::syscall(libc::SYS_setfsuid, user);
    }
}

/// One instruction of classic BPF, as the kernel's `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BpfInstruction {
    pub(crate) code: u16,
    pub(crate) jump_true: u8,
    pub(crate) jump_false: u8,
    pub(crate) k: u32,
}

/// Installs a seccomp filter on this thread. Child.
///
/// # Errors
/// `EACCES` without no_new_privs and without CAP_SYS_ADMIN; `EINVAL` for a program the kernel refuses.
pub(crate) fn seccomp_filter(program: &[BpfInstruction], flags: u32) -> rustix::io::Result<()> {
    const SECCOMP_SET_MODE_FILTER: libc::c_long = 1;
    #[repr(C)]
    struct Program {
        len: u16,
        filter: *const BpfInstruction,
    }
    let Ok(len) = u16::try_from(program.len()) else {
        return Err(rustix::io::Errno::TOOBIG);
    };
    let raw = Program { len, filter: program.as_ptr() };
    // SAFETY: `raw` is a sock_fprog whose length is the slice's; both outlive the call.
    errno(unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags as libc::c_ulong, &raw const raw) })
}

/// One instruction of eBPF, as the kernel's `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EbpfInstruction {
    pub(crate) code: u8,
    /// Destination in the low four bits, source in the high four.
    pub(crate) registers: u8,
    pub(crate) offset: i16,
    pub(crate) immediate: i32,
}

/// The part of `union bpf_attr` that loading and attaching use, zero elsewhere.
#[repr(C, align(8))]
struct BpfAttr([u8; 128]);

impl BpfAttr {
    fn new(fields: &[(usize, &[u8])]) -> Self {
        let mut raw = [0; 128];
        for (offset, bytes) in fields {
            raw[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        BpfAttr(raw)
    }

    fn call(&self, command: libc::c_long) -> io::Result<libc::c_long> {
        // SAFETY: the attribute is 128 bytes of which every pointer inside (see `load_device_program`) outlives it.
        check(unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_ptr(), self.0.len()) })
    }
}

/// Loads a `BPF_PROG_TYPE_CGROUP_DEVICE` program.
///
/// # Errors
/// What the verifier answers.
pub(crate) fn load_device_program(program: &[EbpfInstruction]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    let licence = c"Apache-2.0";
    // Offsets: the anonymous struct for BPF_PROG_LOAD in include/uapi/linux/bpf.h.
    let attr = BpfAttr::new(&[
        (0, &BPF_PROG_TYPE_CGROUP_DEVICE.to_ne_bytes()),
        (4, &(program.len() as u32).to_ne_bytes()),
        (8, &(program.as_ptr() as u64).to_ne_bytes()),
        (16, &(licence.as_ptr() as u64).to_ne_bytes()),
    ]);
    let fd = attr.call(BPF_PROG_LOAD)?;
    // SAFETY: the kernel has just made it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Attaches a device program to a v2 cgroup. Every program attached below and above is asked too.
///
/// # Errors
/// What the kernel answers.
pub(crate) fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    const BPF_PROG_ATTACH: libc::c_long = 8;
    const BPF_CGROUP_DEVICE: u32 = 6;
    const BPF_F_ALLOW_MULTI: u32 = 2;
    let attr = BpfAttr::new(&[
        (0, &cgroup.as_raw_fd().to_ne_bytes()),
        (4, &program.as_raw_fd().to_ne_bytes()),
        (8, &BPF_CGROUP_DEVICE.to_ne_bytes()),
        (12, &BPF_F_ALLOW_MULTI.to_ne_bytes()),
    ]);
    attr.call(BPF_PROG_ATTACH).map(drop)
}

/// Sets `IFF_UP` on the loopback device of the network namespace this thread is in.
///
/// # Errors
/// What the socket or its ioctl answers.
pub(crate) fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // Source: struct ifreq in include/uapi/linux/if.h: 16 bytes of name, then the flags; 40 bytes in all.
    #[repr(C, align(8))]
    struct IfReq {
        name: [u8; 16],
        flags: i16,
        rest: [u8; 22],
    }
    let mut request = IfReq { name: *b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0", flags: libc::IFF_UP as i16, rest: [0; 22] };
    // JUSTIFICATION: one flag of one device is not worth a netlink crate.
    // SAFETY: `request` is as large as the kernel's ifreq and outlives the call.
    check(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, (&raw mut request).cast::<c_void>()) as libc::c_long
    })
    .map(drop)
}

/// The kernel can name the working directory from this process's root on. Child.
pub(crate) fn working_directory_is_below_root() -> bool {
    let mut buffer = [0_u8; libc::PATH_MAX as usize];
    // JUSTIFICATION: rustix's getcwd returns an allocated string.
    // SAFETY: the length is the buffer's, which outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) };
    result > 0 && buffer[0] == b'/'
}

/// Blocks `signals` for this thread and gives a descriptor to read them from.
///
/// # Errors
/// What the kernel answers.
pub(crate) fn signalfd(signals: &[libc::c_int]) -> io::Result<OwnedFd> {
    let mask: u64 = signals.iter().map(|signal| 1_u64 << (signal - 1)).sum();
    // JUSTIFICATION: rustix has no signalfd.
    // SAFETY: the kernel's mask is 8 bytes on every architecture, and outlives both calls.
    unsafe {
        let none = std::ptr::null::<u8>();
        check(libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, &raw const mask, none, 8))?;
        let fd = check(libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, 8, libc::SFD_CLOEXEC))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// The next signal from a signalfd and its sender's pid as this process's pid namespace numbers it; 0 if the sender is
/// outside. Child.
pub(crate) fn next_signal(signals: &OwnedFd) -> rustix::io::Result<(libc::c_int, u32)> {
    // Source: struct signalfd_siginfo in include/uapi/linux/signalfd.h: signo, errno, code, pid, …; 128 bytes.
    let mut raw = [0_u8; 128];
    loop {
        match rustix::io::read(signals, &mut raw) {
            Ok(128) => break,
            Ok(_) => return Err(rustix::io::Errno::IO),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    let word = |at: usize| u32::from_ne_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
    Ok((word(0) as libc::c_int, word(12)))
}

/// Which side of a fork this is.
pub(crate) enum Fork {
    Parent,
    Child,
}

/// Forks a process that has one thread.
///
/// # Errors
/// `EAGAIN` at a limit of processes; refused when there is a second thread, whose locks the child could never take.
pub(crate) fn fork() -> io::Result<Fork> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("the process has more than one thread"));
    }
    // JUSTIFICATION: without exec, the server starts with what `start` has set up; no crate makes fork safe.
    // SAFETY: there is one thread, so the child is a whole process.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        _ => Ok(Fork::Parent),
    }
}

/// Sends any signal, also one without a name, to the process behind a pidfd.
///
/// # Errors
/// `ESRCH` when it has been reaped; `EINVAL` for a number that is no signal.
pub(crate) fn signal(pidfd: &OwnedFd, number: i32) -> io::Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // JUSTIFICATION: rustix has no safe way to name a real-time signal, which images use as stop signals.
    // SAFETY: numbers, and a null pointer that the kernel allows.
    match unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), number, info, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// One heap for all threads: one of its own would cost a thread that hardly allocates more than its stack.
pub(crate) fn one_arena() {
    // JUSTIFICATION: glibc's allocator is told by this call alone, since nobody sets a shim's environment.
    // SAFETY: two numbers; before there is a second thread.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Gives free memory of the heap back to the kernel.
pub(crate) fn trim_memory() {
    // JUSTIFICATION: the allocator keeps what a request or a flood needed once; a hundred shims each do.
    // SAFETY: a number; the allocator locks itself.
    unsafe { libc::malloc_trim(0) };
}

/// Watches a descriptor that nobody else has.
///
/// # Errors
/// What epoll answers: a plain file cannot be watched.
pub(crate) fn watch(fd: OwnedFd, interest: tokio::io::Interest) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // JUSTIFICATION: tokio has no safe constructor for an owned descriptor.
    // SAFETY: an `OwnedFd` is open and one and the same until it is dropped, and the watch owns it.
    Ok(unsafe { tokio::io::unix::AsyncFd::register_with_interest(fd, interest) }?)
}
