//! Deeds of the child that make the process what its spec says: namespaces, cgroup, limits, user, capabilities.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Resource, Rlimit, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets, CpuSet, LinkNameSpaceType, ThreadNameSpaceType};

use super::plan::{Failure, State};
use super::report::Detail;
use super::resolve;
use crate::sys;

type Result<T> = std::result::Result<T, Failure>;

#[derive(Debug)]
pub(super) enum ProcessDeed {
    /// Out of reach of processes of the container and of the shim's session; files get the modes they are made with.
    Begin,
    /// Moves itself by writing to `tasks`: a task that moves itself needs no lock that waits for the whole machine.
    EnterCgroups {
        tasks: Vec<(String, OwnedFd)>,
    },
    /// A namespace that exists.
    Enter {
        namespace: OwnedFd,
        kind: LinkNameSpaceType,
        path: String,
    },
    /// Those of another process, by its pidfd.
    EnterAll {
        process: OwnedFd,
        kinds: ThreadNameSpaceType,
    },
    /// From now on `/proc/self/cgroup` begins where the process is.
    NewCgroupNamespace,
    Hostname(Vec<u8>),
    Domainname(Vec<u8>),
    /// Through the host's procfs, opened by the parent.
    OomScoreAdj {
        proc: OwnedFd,
        value: CString,
    },
    /// The AppArmor profile, from exec on: `exec NAME`, through the host's procfs.
    AppArmorOnExec {
        proc: OwnedFd,
        command: CString,
    },
    /// The SELinux label, from exec on, through the host's procfs.
    SelinuxOnExec {
        proc: OwnedFd,
        label: CString,
    },
    Rlimit {
        resource: Resource,
        limit: Rlimit,
        name: String,
    },
    /// What becomes 0, 1 and 2.
    Stdio {
        fds: [OwnedFd; 3],
    },
    /// The slave of a pty becomes 0, 1 and 2 and the controlling terminal, and belongs to the user.
    Terminal {
        slave: OwnedFd,
        uid: u32,
    },
    /// Before the user is changed: root may enter what the user may not, and the other way round on some file systems.
    EnterDirectory {
        path: CString,
    },
    /// Again as the user, if it was not possible before.
    EnterDirectoryAsUser {
        path: CString,
    },
    /// With a SELinux label, told through the host's procfs, if the process is to have one: it would not be let near one
    /// with the shim's.
    SessionKeyring {
        label: Option<(OwnedFd, CString)>,
    },
    /// The user namespace, and in it new namespaces of these kinds: of the mounts, which are then locked as they are to
    /// all who have only the rights of this user namespace, and of the cgroups.
    EnterUsers {
        namespace: OwnedFd,
        renewed: u64,
    },
    /// Files are made as this user of the host from now on, until the user is changed.
    MakeFilesAs {
        uid: u32,
        gid: u32,
    },
    /// Takes these out of the bounding set.
    DropBounding(CapabilitySet),
    User {
        uid: Uid,
        gid: Gid,
        groups: Vec<Gid>,
    },
    Capabilities {
        sets: CapabilitySets,
        ambient: CapabilitySet,
    },
    NoNewPrivileges,
    /// umask, signals, and out of reach again: changing the user has undone it.
    End {
        umask: Mode,
    },
}

impl ProcessDeed {
    pub(super) fn run(&self, state: &mut State<'_>) -> Result<()> {
        match self {
            ProcessDeed::Begin => begin(),
            ProcessDeed::EnterCgroups { tasks } => enter_cgroups(tasks),
            ProcessDeed::Enter { namespace, kind, .. } => {
                Ok(rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(*kind))?)
            }
            ProcessDeed::EnterAll { process, kinds } => {
                Ok(rustix::thread::move_into_thread_name_spaces(process.as_fd(), *kinds)?)
            }
            ProcessDeed::NewCgroupNamespace => Ok(sys::unshare(libc::CLONE_NEWCGROUP as u64)?),
            ProcessDeed::Hostname(name) => Ok(rustix::system::sethostname(name)?),
            ProcessDeed::Domainname(name) => Ok(rustix::system::setdomainname(name)?),
            ProcessDeed::OomScoreAdj { proc, value } => oom_score_adj(proc, value),
            ProcessDeed::AppArmorOnExec { proc, command } => {
                write_attribute(proc, c"thread-self/attr/apparmor/exec", command.to_bytes())
            }
            ProcessDeed::SelinuxOnExec { proc, label } => {
                write_attribute(proc, c"thread-self/attr/exec", label.to_bytes())
            }
            ProcessDeed::Rlimit { resource, limit, .. } => Ok(rustix::process::setrlimit(*resource, *limit)?),
            ProcessDeed::Stdio { fds } => stdio([&fds[0], &fds[1], &fds[2]]),
            ProcessDeed::Terminal { slave, uid } => terminal(slave, *uid),
            ProcessDeed::EnterDirectory { path } => match enter_directory(path) {
                Err(Failure { errno: Errno::ACCESS, .. }) => {
                    state.directory_pending = true;
                    Ok(())
                }
                other => other,
            },
            ProcessDeed::EnterDirectoryAsUser { path } => match state.directory_pending {
                true => enter_directory(path),
                false => Ok(()),
            },
            ProcessDeed::SessionKeyring { label: None } => session_keyring(),
            ProcessDeed::SessionKeyring { label: Some((proc, label)) } => {
                write_attribute(proc, c"thread-self/attr/keycreate", label.to_bytes())?;
                session_keyring()?;
                // That of keys to come is the process's own again.
                write_attribute(proc, c"thread-self/attr/keycreate", b"\n")
            }
            ProcessDeed::EnterUsers { namespace, renewed } => enter_users(namespace, *renewed),
            ProcessDeed::MakeFilesAs { uid, gid } => make_files_as(*uid, *gid),
            ProcessDeed::DropBounding(set) => drop_bounding(*set),
            ProcessDeed::User { uid, gid, groups } => become_user(*uid, *gid, groups),
            ProcessDeed::Capabilities { sets, ambient } => set_capabilities(*sets, *ambient),
            ProcessDeed::NoNewPrivileges => Ok(rustix::thread::set_no_new_privs(true)?),
            ProcessDeed::End { umask } => {
                rustix::process::umask(*umask);
                sys::default_signals();
                undumpable()
            }
        }
    }

    pub(super) fn describe(&self, item: u32) -> String {
        match self {
            ProcessDeed::Begin => "begin the session".into(),
            ProcessDeed::EnterCgroups { tasks } => match tasks.get(item as usize) {
                Some((path, _)) => format!("enter the cgroup {path:?}"),
                None => "enter the cgroup".into(),
            },
            ProcessDeed::Enter { kind, path, .. } => {
                format!("enter the namespace {path:?} ({kind:?})")
            }
            ProcessDeed::EnterAll { .. } => "enter the container's namespaces".into(),
            ProcessDeed::NewCgroupNamespace => "make a cgroup namespace".into(),
            ProcessDeed::Hostname(name) => {
                format!("set the hostname {:?}", String::from_utf8_lossy(name))
            }
            ProcessDeed::Domainname(name) => {
                format!("set the domain name {:?}", String::from_utf8_lossy(name))
            }
            ProcessDeed::OomScoreAdj { value, .. } => {
                format!("set oom_score_adj to {}", value.to_string_lossy())
            }
            ProcessDeed::AppArmorOnExec { command, .. } => {
                let profile = command.to_string_lossy();
                format!(
                    "take the AppArmor profile {:?} (is it loaded?)",
                    profile.strip_prefix("exec ").unwrap_or(&profile)
                )
            }
            ProcessDeed::SelinuxOnExec { label, .. } => {
                let label = label.to_string_lossy();
                format!(
                    "take the SELinux label {label:?} (is its type in the policy? `ausearch -m avc` tells what was denied)"
                )
            }
            ProcessDeed::Rlimit { name, limit, .. } => {
                format!("set {name} to {:?}:{:?}", limit.current, limit.maximum)
            }
            ProcessDeed::Stdio { .. } => "connect stdin, stdout and stderr".into(),
            ProcessDeed::Terminal { .. } => "take the terminal".into(),
            ProcessDeed::EnterDirectory { path } | ProcessDeed::EnterDirectoryAsUser { path } => {
                format!("enter the working directory {path:?}")
            }
            ProcessDeed::SessionKeyring { label: None } => "make a session keyring".into(),
            ProcessDeed::SessionKeyring { label: Some((_, label)) } => {
                format!("make a session keyring with the SELinux label {:?}", label.to_string_lossy())
            }
            ProcessDeed::EnterUsers { .. } => "enter the user namespace".into(),
            ProcessDeed::MakeFilesAs { uid, gid } => format!("make files as {uid}:{gid}"),
            ProcessDeed::DropBounding(_) => "drop capabilities from the bounding set".into(),
            ProcessDeed::User { uid, gid, .. } => {
                format!("become user {}:{}", uid.as_raw(), gid.as_raw())
            }
            ProcessDeed::Capabilities { .. } => "set the capabilities".into(),
            ProcessDeed::NoNewPrivileges => "set no_new_privs".into(),
            ProcessDeed::End { .. } => "end the set-up".into(),
        }
    }
}

/// CVE-2016-9962, CVE-2019-5736: until exec no process of the container may look at our memory, descriptors or binary.
fn undumpable() -> Result<()> {
    Ok(rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?)
}

fn begin() -> Result<()> {
    undumpable()?;
    rustix::process::setsid()?;
    rustix::process::umask(Mode::empty());
    Ok(())
}

fn enter_cgroups(tasks: &[(String, OwnedFd)]) -> Result<()> {
    for (item, (_, tasks)) in tasks.iter().enumerate() {
        rustix::io::write(tasks, b"0").map_err(|errno| Failure::from(errno).of_item(item))?;
    }
    run_on_all_processors();
    Ok(())
}

/// The daemon's affinity (systemd's CPUAffinity=) is not the container's: the kernel gives what the cpuset allows. Since
/// Linux 6.2 it keeps an inherited one through a change of cpuset, and this is the only way out of it.
fn run_on_all_processors() {
    let mut all = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|processor| all.set(processor));
    // Refused where a policy has taken the call away: then the container has what the daemon has.
    let _ = rustix::thread::sched_setaffinity(None, &all);
}

fn oom_score_adj(proc: &OwnedFd, value: &CString) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(proc, c"self/oom_score_adj", flags, Mode::empty())?;
    rustix::io::write(&file, value.to_bytes())?;
    Ok(())
}

/// Tells a security module through `file` of `proc`. Source: the kernel's security/apparmor/lsm.c, `do_setattr`;
/// security/selinux/hooks.c, `selinux_lsm_setattr`.
fn write_attribute(proc: &OwnedFd, file: &CStr, value: &[u8]) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(proc, file, flags, Mode::empty())?;
    rustix::io::write(&file, value)?;
    Ok(())
}

fn session_keyring() -> Result<()> {
    match sys::new_session_keyring() {
        // A kernel or an outer seccomp profile without keyrings: then there is none to inherit either.
        Err(Errno::NOSYS | Errno::PERM) => Ok(()),
        other => Ok(other?),
    }
}

/// The three may be numbers 0 to 2 already, in any order: those are first copied out of the way.
fn stdio(fds: [&OwnedFd; 3]) -> Result<()> {
    let mut safe: [Option<OwnedFd>; 3] = [None, None, None];
    for (slot, fd) in safe.iter_mut().zip(fds) {
        if fd.as_raw_fd() <= 2 {
            *slot = Some(rustix::io::fcntl_dupfd_cloexec(fd, 3)?);
        }
    }
    let source = |number: usize| safe[number].as_ref().unwrap_or(fds[number]).as_fd();
    rustix::stdio::dup2_stdin(source(0))?;
    rustix::stdio::dup2_stdout(source(1))?;
    rustix::stdio::dup2_stderr(source(2))?;
    Ok(())
}

fn terminal(slave: &OwnedFd, uid: u32) -> Result<()> {
    rustix::process::ioctl_tiocsctty(slave)?;
    rustix::fs::fchown(slave, Some(rustix::fs::Uid::from_raw(uid)), None)?;
    stdio([slave, slave, slave])
}

/// CVE-2024-21626: no magic link on the way, and the kernel must agree that we are below our root.
fn enter_directory(path: &CString) -> Result<()> {
    let root = rustix::fs::open(c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let directory = resolve::open(root.as_fd(), path, OFlags::PATH | OFlags::DIRECTORY)?;
    rustix::process::fchdir(&directory)?;
    match sys::working_directory_is_below_root() {
        true => Ok(()),
        false => Err(Failure::because(Errno::NOENT, Detail::OutsideRoot)),
    }
}

/// Changing the namespace makes us what a core dump may show; we are not that yet.
fn enter_users(namespace: &OwnedFd, renewed: u64) -> Result<()> {
    rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::User))?;
    undumpable()?;
    if renewed != 0 {
        sys::unshare(renewed)?;
    }
    Ok(())
}

/// On a mount with mapped owners root of the host is nobody, and nobody makes files. What root may do with files is kept.
fn make_files_as(uid: u32, gid: u32) -> Result<()> {
    let sets = rustix::thread::capabilities(None)?;
    sys::make_files_as(uid, gid);
    undumpable()?;
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

fn drop_bounding(set: CapabilitySet) -> Result<()> {
    for capability in set.iter() {
        rustix::thread::remove_capability_from_bounding_set(capability)?;
    }
    Ok(())
}

fn become_user(uid: Uid, gid: Gid, groups: &[Gid]) -> Result<()> {
    rustix::thread::set_keep_capabilities(true)?;
    rustix::thread::set_thread_groups(groups)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

fn set_capabilities(sets: CapabilitySets, ambient: CapabilitySet) -> Result<()> {
    rustix::thread::set_capabilities(None, sets)?;
    rustix::thread::clear_ambient_capability_set()?;
    for capability in ambient.iter() {
        rustix::thread::configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}
