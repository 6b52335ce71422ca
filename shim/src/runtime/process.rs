//! The `process` of a spec, as deeds of the child and the program at their end.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use berth_api::shim::Effective;
use oci_spec::runtime::{PosixRlimitType, Process};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::process::{Gid, Resource, Rlimit, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::capabilities;
use super::idmap::Mapping;
use super::plan::{Deed, Program, Seccomp};
use super::process_deeds::ProcessDeed;
use super::{Error, Stdio, selinux};
use crate::sys::Strings;

/// What a process without a PATH is looked for in; as execvp(3) of the C library.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// What becomes of 0, 1 and 2, with the terminal already made.
pub(super) enum Connected {
    Pipes([OwnedFd; 3]),
    Terminal(OwnedFd),
}

/// Deeds and program of one process.
pub(super) struct Planned {
    /// In order, for a child that is in its namespaces and has its root.
    pub(super) deeds: Vec<Deed>,
    pub(super) program: Program,
    /// `args[0]`.
    pub(super) name: String,
    /// SELinux's, which exec gives it or fails.
    pub(super) label: Option<String>,
}

/// The user namespace that a process is to be in.
pub(super) struct Users<'a> {
    pub(super) namespace: OwnedFd,
    pub(super) mapping: &'a Mapping,
    /// `CLONE_NEW…` of namespaces that are made anew in it.
    pub(super) renewed: u64,
}

/// Plans a process. What the host withholds is left out and told in `effective`.
///
/// # Errors
/// A field that is wrong or not supported.
pub(super) fn plan(
    process: &Process,
    environment: Vec<CString>,
    seccomp: Option<Seccomp>,
    connected: Connected,
    users: Option<Users<'_>>,
    effective: &mut Effective,
) -> Result<Planned, Error> {
    refuse(process)?;
    let user = process.user();
    let cwd = c_string("process.cwd", process.cwd().to_string_lossy().as_ref())?;
    if !cwd.as_bytes().starts_with(b"/") {
        return Err(Error::refused("process.cwd", format!("{cwd:?} is not an absolute path")));
    }
    let args = process.args().as_deref().unwrap_or_default();
    let name = args.first().cloned().unwrap_or_default();
    if name.is_empty() {
        return Err(Error::refused("process.args", "there is no program to execute"));
    }
    let candidates = candidates(&name, &environment)?;
    let argv = args.iter().map(|arg| c_string("process.args", arg)).collect::<Result<Vec<_>, _>>()?;

    let no_new_privileges = process.no_new_privileges().unwrap_or(false);
    let held = capabilities::held()?;
    // In a user namespace of its own a process is given every right over that, whatever the host withholds from us.
    let grantable = if users.is_some() { capabilities::known() } else { held };
    let (granted, withheld) = capabilities::grant(process.capabilities().as_ref(), grantable);
    effective.withheld_capabilities = withheld;

    let inside = users.is_some();
    let label = selinux::label("process.selinuxLabel", process.selinux_label().as_deref())?;
    let keyring = || -> Result<ProcessDeed, Error> {
        let label = label.clone().map(|label| Ok((open_proc()?, label))).transpose()?;
        Ok(ProcessDeed::SessionKeyring { label })
    };
    let mut deeds = Vec::with_capacity(24);
    if users.is_none() {
        deeds.push(keyring()?);
    }
    let owner = users.as_ref().map_or(Ok(user.uid()), |users| users.mapping.user(user.uid()))?;
    deeds.push(connect(connected, owner)?);
    deeds.push(ProcessDeed::EnterDirectory { path: cwd.clone() });
    if let Some(value) = oom_score_adj(process.oom_score_adj(), held, effective)? {
        deeds.push(value);
    }
    if let Some(profile) = process.apparmor_profile().as_deref().filter(|profile| !profile.is_empty()) {
        let command = c_string("process.apparmorProfile", &format!("exec {profile}"))?;
        deeds.push(ProcessDeed::AppArmorOnExec { proc: open_proc()?, command });
    }
    if let Some(label) = &label {
        deeds.push(ProcessDeed::SelinuxOnExec { proc: open_proc()?, label: label.clone() });
    }
    for rlimit in process.rlimits().iter().flatten() {
        let (resource, name) = resource(rlimit.typ());
        let asked = Limit { soft: rlimit.soft(), hard: rlimit.hard() };
        if asked.soft > asked.hard {
            return Err(Error::refused("process.rlimits", format!("{name}: soft is above hard")));
        }
        let given = match held.contains(CapabilitySet::SYS_RESOURCE) {
            true => asked,
            false => asked.within(rustix::process::getrlimit(resource).maximum),
        };
        if given != asked {
            effective.lowered_rlimits.push((name.into(), given.soft, given.hard));
        }
        deeds.push(ProcessDeed::Rlimit { resource, limit: given.to_kernel(), name: name.into() });
    }
    if let Some(Users { namespace, renewed, .. }) = users {
        // What needs rights over the host is done; the keyring is one of the namespace's users.
        let keyring = keyring()?;
        deeds.push(ProcessDeed::EnterUsers { namespace, renewed });
        deeds.push(keyring);
    }
    let dropped = if inside { capabilities::known() } else { capabilities::bounding() } - granted.bounding;
    if !dropped.is_empty() {
        deeds.push(ProcessDeed::DropBounding(dropped));
    }
    if no_new_privileges {
        deeds.push(ProcessDeed::NoNewPrivileges);
    }
    let groups = user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid)).collect();
    deeds.push(ProcessDeed::User { uid: Uid::from_raw(user.uid()), gid: Gid::from_raw(user.gid()), groups });
    deeds.push(ProcessDeed::EnterDirectoryAsUser { path: cwd });
    deeds.push(ProcessDeed::Capabilities {
        sets: until_exec(granted.sets, seccomp.is_some() && !no_new_privileges),
        ambient: granted.ambient,
    });
    const DEFAULT_UMASK: u32 = 0o022; // OCI runtime-spec, user.umask: "if unspecified, MUST NOT be modified": a login's
    deeds.push(ProcessDeed::End { umask: Mode::from_raw_mode(user.umask().unwrap_or(DEFAULT_UMASK) & 0o777) });

    let program = Program { seccomp, candidates, argv: Strings::new(argv), envp: Strings::new(environment) };
    let label = process.selinux_label().clone().filter(|_| label.is_some());
    Ok(Planned { deeds: deeds.into_iter().map(Deed::Process).collect(), program, name, label })
}

/// A filter without no_new_privs needs CAP_SYS_ADMIN until it is installed. Keeping it until then gives the program
/// nothing: exec computes the permitted set anew from the inheritable, bounding and ambient sets alone
/// (capabilities(7), "Transformation of capabilities during execve"), and with no_new_privs it is not kept.
fn until_exec(sets: CapabilitySets, filter_needs_admin: bool) -> CapabilitySets {
    if !filter_needs_admin {
        return sets;
    }
    CapabilitySets {
        effective: sets.effective | CapabilitySet::SYS_ADMIN,
        permitted: sets.permitted | CapabilitySet::SYS_ADMIN,
        ..sets
    }
}

pub(super) fn refuse(process: &Process) -> Result<(), Error> {
    let set = [
        ("process.commandLine", process.command_line().is_some()),
        ("process.ioPriority", process.io_priority().is_some()),
        ("process.scheduler", process.scheduler().is_some()),
        ("process.execCPUAffinity", process.exec_cpu_affinity().is_some()),
    ];
    match set.into_iter().find(|(_, is_set)| *is_set) {
        Some((field, _)) => Err(Error::refused(field, "not supported yet")),
        None => Ok(()),
    }
}

pub(super) fn c_string(field: &str, text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::refused(field, format!("{text:?} contains a NUL byte")))
}

/// `process.env` as the kernel wants it.
///
/// # Errors
/// A value with a NUL byte.
pub(super) fn environment(process: &Process) -> Result<Vec<CString>, Error> {
    process.env().iter().flatten().map(|entry| c_string("process.env", entry)).collect()
}

/// Where the program may be: itself if its name has a slash, else in each absolute directory of the process's PATH.
pub(super) fn candidates(name: &str, environment: &[CString]) -> Result<Vec<CString>, Error> {
    if name.contains('/') {
        return Ok(vec![c_string("process.args", name)?]);
    }
    let path = environment.iter().rev().find_map(|entry| entry.to_bytes().strip_prefix(b"PATH="));
    let path = path.unwrap_or(DEFAULT_PATH.as_bytes());
    // As Go's LookPath, and unlike execvp, a relative directory is no place to look for a program.
    let directories = path.split(|b| *b == b':').filter(|directory| directory.starts_with(b"/"));
    directories
        .map(|directory| {
            let mut whole = directory.to_vec();
            whole.push(b'/');
            whole.extend_from_slice(name.as_bytes());
            CString::new(whole).map_err(|_| Error::refused("process.args", "the program's name contains a NUL byte"))
        })
        .collect()
}

/// The deed for 0, 1 and 2. A pipe or socket is given to the user, who may want to open it again as /dev/stdout.
fn connect(connected: Connected, uid: u32) -> Result<ProcessDeed, Error> {
    let fds = match connected {
        Connected::Terminal(slave) => return Ok(ProcessDeed::Terminal { slave, uid }),
        Connected::Pipes(fds) => fds,
    };
    for fd in &fds {
        let stat = rustix::fs::fstat(fd).map_err(|e| Error::step("look at a descriptor of stdio", e))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if matches!(kind, FileType::Fifo | FileType::Socket) && stat.st_uid != uid {
            rustix::fs::fchown(fd, Some(rustix::fs::Uid::from_raw(uid)), None)
                .map_err(|e| Error::step(format!("give stdio to user {uid}"), e))?;
        }
    }
    Ok(ProcessDeed::Stdio { fds })
}

/// The shim's own score before it lowered that: what a process gets that asks for none.
pub(crate) static INHERITED_OOM_SCORE_ADJ: std::sync::OnceLock<i32> = std::sync::OnceLock::new();

/// Without CAP_SYS_RESOURCE nobody goes below what he has himself (strictly: below the lowest a capable ancestor set,
/// which cannot be read): clamped to that.
fn oom_score_adj(
    asked: Option<i32>,
    held: CapabilitySet,
    effective: &mut Effective,
) -> Result<Option<ProcessDeed>, Error> {
    let Some(asked) = asked.or(INHERITED_OOM_SCORE_ADJ.get().copied()) else { return Ok(None) };
    if !(-1000..=1000).contains(&asked) {
        return Err(Error::refused("process.oomScoreAdj", format!("{asked} is not between -1000 and 1000")));
    }
    let proc = open_proc()?;
    let mut value = asked;
    if !held.contains(CapabilitySet::SYS_RESOURCE) {
        let own = read_small(proc.as_fd(), c"self/oom_score_adj");
        let own = own.map_err(|e| Error::step("read /proc/self/oom_score_adj", std::io::Error::from(e)))?;
        value = asked.max(own.trim().parse().unwrap_or(0));
    }
    if value != asked {
        effective.oom_score_adj = Some(value);
    }
    Ok(Some(ProcessDeed::OomScoreAdj { proc, value: c_string("process.oomScoreAdj", &value.to_string())? }))
}

/// The host's procfs, for a child that will see another.
fn open_proc() -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(c"/proc", flags, Mode::empty()).map_err(|e| Error::step("open /proc", std::io::Error::from(e)))
}

fn read_small(directory: impl AsFd, path: &std::ffi::CStr) -> rustix::io::Result<String> {
    let file = rustix::fs::openat(directory, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = [0; 64];
    let read = rustix::io::read(&file, &mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..read]).into_owned())
}

/// A resource limit with the kernel's infinity (all ones) as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit {
    soft: u64,
    hard: u64,
}

impl Limit {
    fn within(self, maximum: Option<u64>) -> Limit {
        let hard = self.hard.min(maximum.unwrap_or(u64::MAX));
        Limit { soft: self.soft.min(hard), hard }
    }

    fn to_kernel(self) -> Rlimit {
        let finite = |value: u64| (value != u64::MAX).then_some(value);
        Rlimit { current: finite(self.soft), maximum: finite(self.hard) }
    }
}

fn resource(kind: PosixRlimitType) -> (Resource, &'static str) {
    match kind {
        PosixRlimitType::RlimitCpu => (Resource::Cpu, "RLIMIT_CPU"),
        PosixRlimitType::RlimitFsize => (Resource::Fsize, "RLIMIT_FSIZE"),
        PosixRlimitType::RlimitData => (Resource::Data, "RLIMIT_DATA"),
        PosixRlimitType::RlimitStack => (Resource::Stack, "RLIMIT_STACK"),
        PosixRlimitType::RlimitCore => (Resource::Core, "RLIMIT_CORE"),
        PosixRlimitType::RlimitRss => (Resource::Rss, "RLIMIT_RSS"),
        PosixRlimitType::RlimitNproc => (Resource::Nproc, "RLIMIT_NPROC"),
        PosixRlimitType::RlimitNofile => (Resource::Nofile, "RLIMIT_NOFILE"),
        PosixRlimitType::RlimitMemlock => (Resource::Memlock, "RLIMIT_MEMLOCK"),
        PosixRlimitType::RlimitAs => (Resource::As, "RLIMIT_AS"),
        PosixRlimitType::RlimitLocks => (Resource::Locks, "RLIMIT_LOCKS"),
        PosixRlimitType::RlimitSigpending => (Resource::Sigpending, "RLIMIT_SIGPENDING"),
        PosixRlimitType::RlimitMsgqueue => (Resource::Msgqueue, "RLIMIT_MSGQUEUE"),
        PosixRlimitType::RlimitNice => (Resource::Nice, "RLIMIT_NICE"),
        PosixRlimitType::RlimitRtprio => (Resource::Rtprio, "RLIMIT_RTPRIO"),
        PosixRlimitType::RlimitRttime => (Resource::Rttime, "RLIMIT_RTTIME"),
    }
}

/// The caller's stdio with the terminal made in `devpts`: what the child gets, and the master for the caller.
///
/// # Errors
/// `Error::Refused` for a terminal in a container without devpts; what the kernel answers.
pub(super) fn connected(
    stdio: Stdio,
    process: &Process,
    devpts: Option<&OwnedFd>,
) -> Result<(Connected, Option<OwnedFd>), Error> {
    let devpts = match (stdio, devpts) {
        (Stdio::Pipes { stdin, stdout, stderr }, _) => return Ok((Connected::Pipes([stdin, stdout, stderr]), None)),
        (Stdio::Terminal, Some(devpts)) => devpts,
        (Stdio::Terminal, None) => {
            return Err(Error::refused("process.terminal", "the container has no devpts mount at /dev/pts"));
        }
    };
    let fail = |e| Error::step("make a terminal in the container's devpts", std::io::Error::from(e));
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::openat(devpts, c"ptmx", flags, Mode::empty()).map_err(fail)?;
    rustix::pty::unlockpt(&master).map_err(fail)?;
    if let Some(size) = process.console_size() {
        let cells = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
        let size = rustix::termios::Winsize {
            ws_row: cells(size.height()),
            ws_col: cells(size.width()),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&master, size).map_err(fail)?;
    }
    let peer = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY | rustix::pty::OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, peer).map_err(fail)?;
    Ok((Connected::Terminal(slave), Some(master)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, environment: &[&str]) -> Vec<String> {
        let environment: Vec<CString> = environment.iter().map(|e| CString::new(*e).expect("no NUL")).collect();
        let found = candidates(name, &environment).expect("candidates");
        found.iter().map(|c| c.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_program_is_looked_for_in_the_path_of_its_own_environment() {
        assert_eq!(found("sh", &["A=b", "PATH=/x:relative::/y/"]), ["/x/sh", "/y//sh"]);
        assert_eq!(found("sh", &[]), ["/bin/sh", "/usr/bin/sh"]);
        assert_eq!(found("./sh", &["PATH=/x"]), ["./sh"]);
        assert_eq!(found("sh", &["PATH=/first", "PATH=/last"]), ["/last/sh"]);
    }

    #[test]
    fn a_limit_is_lowered_to_the_hosts() {
        let asked = Limit { soft: 5000, hard: u64::MAX };
        assert_eq!(asked.within(Some(4096)), Limit { soft: 4096, hard: 4096 });
        assert_eq!(asked.within(None), asked);
        assert_eq!(asked.to_kernel(), Rlimit { current: Some(5000), maximum: None });
    }

    #[test]
    fn admin_is_kept_for_the_filter_only_without_no_new_privs() {
        let sets = CapabilitySets {
            effective: CapabilitySet::KILL,
            permitted: CapabilitySet::KILL,
            inheritable: CapabilitySet::empty(),
        };
        assert_eq!(until_exec(sets, false), sets);
        let kept = until_exec(sets, true);
        assert_eq!(kept.permitted, CapabilitySet::KILL | CapabilitySet::SYS_ADMIN);
        assert_eq!(kept.inheritable, CapabilitySet::empty());
    }
}
