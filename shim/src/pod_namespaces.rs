//! Makes a pod's namespaces and its /dev/shm, and pins them as files so that they outlive every process in the pod.
//! Removes nothing that it did not make in the same call: unpinning is the daemon's.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, UnmountFlags, fsconfig_create, fsmount, fsopen,
};
use rustix::process::{Signal, WaitId, WaitIdOptions};
use rustix::thread::ThreadNameSpaceType;
use serde::{Deserialize, Serialize};

use crate::pod_first::{self, Labels, Place, Told};
use crate::runtime::idmap::{Mapping, Run};
use crate::runtime::{SysctlOwner, sysctl_path};
use crate::sealed;
use crate::step;
use crate::sys;

/// What is asked for: one JSON object on stdin.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    /// Where the pins go: `net`, `ipc`, `uts`, `pid`. Made if it is missing.
    dir: PathBuf,
    namespaces: Vec<Kind>,
    /// Ids of a user namespace that owns the others. `None`: the host's.
    #[serde(default)]
    user: Option<Users>,
    /// Needs the UTS namespace. Empty: left as it is.
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    sysctls: BTreeMap<String, String>,
    #[serde(default)]
    shm: Option<Shm>,
    /// SELinux's, of pid 1 and of what is mounted.
    #[serde(default)]
    labels: Option<Labels>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Network,
    Ipc,
    Uts,
    Pid,
}

impl Kind {
    /// Name of the pin, and of the link in `/proc/PID/ns`.
    fn file(self) -> &'static str {
        match self {
            Kind::Network => "net",
            Kind::Ipc => "ipc",
            Kind::Uts => "uts",
            Kind::Pid => "pid",
        }
    }

    /// As setns(2) names it, for a process that is in it.
    fn entered(self) -> ThreadNameSpaceType {
        match self {
            Kind::Network => ThreadNameSpaceType::NETWORK,
            Kind::Ipc => ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION,
            Kind::Uts => ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME,
            Kind::Pid => ThreadNameSpaceType::empty(),
        }
    }

    /// The flag for this process; pid 1 of the pid namespace is a clone.
    fn unshared(self) -> u64 {
        match self {
            Kind::Network => libc::CLONE_NEWNET as u64,
            Kind::Ipc => libc::CLONE_NEWIPC as u64,
            Kind::Uts => libc::CLONE_NEWUTS as u64,
            Kind::Pid => 0,
        }
    }
}

/// How ids in the pod are the host's.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Users {
    uids: Vec<Ids>,
    gids: Vec<Ids>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ids {
    container: u32,
    host: u32,
    length: u32,
}

impl Users {
    fn mapping(&self) -> Mapping {
        let runs =
            |ids: &[Ids]| ids.iter().map(|i| Run { container: i.container, host: i.host, length: i.length }).collect();
        Mapping { uids: runs(&self.uids), gids: runs(&self.gids) }
    }

    /// What root of the pod is on the host.
    fn root(&self) -> (u32, u32) {
        let first = |ids: &[Ids]| ids.iter().find(|ids| ids.container == 0).map_or(0, |ids| ids.host);
        (first(&self.uids), first(&self.gids))
    }
}

/// The pod's /dev/shm.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shm {
    path: PathBuf,
    size_bytes: u64,
}

/// The answer: one JSON line on stdout.
#[derive(Debug, Default, Serialize)]
struct Answer {
    /// Pid 1 of the shared pid namespace, in the namespace of the caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
}

#[derive(Debug, Serialize)]
struct Failure {
    error: String,
    step: &'static str,
}

/// The step, what was done, why not.
#[derive(Debug, thiserror::Error)]
#[error("{deed}: {source}")]
struct Error {
    step: &'static str,
    deed: String,
    source: io::Error,
}

trait OrFail<T> {
    fn or_fail(self, step: &'static str, deed: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> OrFail<T> for Result<T, E> {
    fn or_fail(self, step: &'static str, deed: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error { step, deed: deed(), source: source.into() })
    }
}

/// The whole program: reads the order, makes what it says, answers. Returns the exit status.
pub fn run() -> i32 {
    let mut undo = Undo::default();
    // Before anything else: it may begin this program anew.
    let sealed = sealed::ensure().or_fail("seal", || "run from a read-only clone of the binary".into());
    match sealed.and_then(|()| order()).and_then(|order| fulfil(&order, &mut undo)) {
        Ok(()) => 0,
        Err(error) => {
            undo.all();
            let failure = Failure { error: error.to_string(), step: error.step };
            // With nobody to read it there is nothing more to say than the exit status.
            let _ = answer(&failure);
            1
        }
    }
}

fn order() -> Result<Order, Error> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).or_fail("read-order", || "read the order".into())?;
    serde_json::from_str(&text).or_fail("read-order", || "parse the order".into())
}

fn answer(answer: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    io::stdout().write_all(&line)
}

fn fulfil(order: &Order, undo: &mut Undo) -> Result<(), Error> {
    let flags = order.namespaces.iter().map(|kind| kind.unshared()).fold(0, |all, flag| all | flag);
    let first = match &order.user {
        Some(users) => Some(owner(order, users, flags, undo)?),
        None => {
            step!("keeper::ns-create", sys::unshare(flags)).or_fail("ns-create", || "make the namespaces".into())?;
            None
        }
    };
    if order.namespaces.contains(&Kind::Network) {
        step!("keeper::lo-up", sys::loopback_up()).or_fail("lo-up", || "bring lo up".into())?;
    }
    hostname(order)?;
    sysctls(order)?;
    directory(&order.dir, undo)?;
    for kind in order.namespaces.iter().filter(|kind| **kind != Kind::Pid) {
        pin(&order.dir, kind.file(), Path::new("/proc/self/ns"), undo)?;
    }
    if let Some(first) = &first {
        pin(&order.dir, "user", &PathBuf::from(format!("/proc/{}/ns", first.pid)), undo)?;
    }
    if let Some(shm) = &order.shm {
        mount_shm(shm, order, undo)?;
    }
    if let Some(labels) = order.labels.as_ref().filter(|_| order.namespaces.contains(&Kind::Ipc)) {
        label_queues(labels).or_fail("mqueue-label", || format!("label the pod's /dev/mqueue {:?}", labels.mount))?;
    }
    match (order.namespaces.contains(&Kind::Pid), first) {
        (true, Some(first)) => stays(order, first, undo),
        (true, None) => {
            let (place, told) = place(order)?;
            let clone = |stay: &OwnedFd, signals: &OwnedFd| {
                let pid_1 = || pid_1(stay, signals, Some(&place));
                step!("keeper::pid-clone", sys::clone3(libc::CLONE_NEWPID as u64, None, pid_1))
            };
            let first = First::cloned(clone, undo)?;
            drop(place);
            settled(order, Some(told))?;
            stays(order, first, undo)
        }
        (false, first) => {
            // It was there to be the first of its namespaces, which their pins keep now.
            drop(first);
            step!("keeper::reply", answer(&Answer::default())).or_fail("reply", || "answer".into())
        }
    }
}

/// The user namespace and, owned by it, the others: of a child, since nobody comes back from such a one, and the pins
/// are of the host's mounts. This process enters those that it has to set up; it has the rights of the host over them.
fn owner(order: &Order, users: &Users, flags: u64, undo: &mut Undo) -> Result<First, Error> {
    let pid = if order.namespaces.contains(&Kind::Pid) { libc::CLONE_NEWPID as u64 } else { 0 };
    let flags = libc::CLONE_NEWUSER as u64 | flags | pid;
    let (place, told) = if pid == 0 { (None, None) } else { Some(place(order)?).unzip() };
    let clone = |stay: &OwnedFd, signals: &OwnedFd| {
        step!("keeper::user-clone", sys::clone3(flags, None, || pid_1(stay, signals, place.as_ref())))
    };
    let first = First::cloned(clone, undo)?;
    drop(place);
    settled(order, told)?;
    step!("keeper::user-map", users.mapping().write(first.pid))
        .or_fail("user-map", || format!("map the ids of the user namespace as {users:?}"))?;
    let kinds = order.namespaces.iter().map(|kind| kind.entered()).fold(ThreadNameSpaceType::empty(), |all, k| all | k);
    if !kinds.is_empty() {
        step!("keeper::ns-enter", rustix::thread::move_into_thread_name_spaces(first.pidfd.as_fd(), kinds))
            .or_fail("ns-enter", || "enter the namespaces".into())?;
    }
    Ok(first)
}

/// Where pid 1 is to live.
fn place(order: &Order) -> Result<(Place, Told), Error> {
    Place::prepare(order.labels.as_ref()).or_fail("pid-1", || match &order.labels {
        Some(labels) => format!("make a root for pid 1 of the pod, labelled {labels:?}"),
        None => "make an empty root for pid 1 of the pod".into(),
    })
}

fn settled(order: &Order, told: Option<Told>) -> Result<(), Error> {
    told.map_or(Ok(()), Told::wait).or_fail("pid-1", || match &order.labels {
        Some(labels) => format!(
            "give pid 1 of the pod a root of its own and the SELinux label {:?} (`ausearch -m avc` tells what was denied)",
            labels.process
        ),
        None => "give pid 1 of the pod a root of its own, and take its rights".into(),
    })
}

fn hostname(order: &Order) -> Result<(), Error> {
    if order.hostname.is_empty() {
        return Ok(());
    }
    let deed = || format!("set the hostname {:?}", order.hostname);
    if !order.namespaces.contains(&Kind::Uts) {
        return Err(rustix::io::Errno::PERM).or_fail("hostname", deed);
    }
    step!("keeper::hostname", rustix::system::sethostname(order.hostname.as_bytes())).or_fail("hostname", deed)
}

/// Only what belongs to a namespace just made: anything else would change the host.
fn sysctls(order: &Order) -> Result<(), Error> {
    for (name, value) in &order.sysctls {
        let deed = || format!("write {value:?} to sysctl {name:?}");
        let (path, owner) = sysctl_path(name).ok_or(rustix::io::Errno::INVAL).or_fail("sysctl", deed)?;
        let kind = match owner {
            SysctlOwner::Network => Kind::Network,
            SysctlOwner::Ipc => Kind::Ipc,
            SysctlOwner::Uts => Kind::Uts,
            SysctlOwner::Host => return Err(rustix::io::Errno::PERM).or_fail("sysctl", deed),
        };
        if !order.namespaces.contains(&kind) {
            return Err(rustix::io::Errno::PERM).or_fail("sysctl", deed);
        }
        let path = Path::new("/proc/sys").join(path);
        step!("keeper::sysctl", write_sysctl(&path, value, order.user.as_ref())).or_fail("sysctl", deed)?;
    }
    Ok(())
}

/// Some files of a namespace belong to root of the user namespace that owns it, and no right overrides that (since Linux
/// 6.9 those of IPC); the others belong to root of the host.
fn write_sysctl(path: &Path, value: &str, users: Option<&Users>) -> io::Result<()> {
    let written = fs::write(path, value);
    let Some(users) = users else { return written };
    if !written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
        return written;
    }
    let (own, theirs) = (rustix::process::geteuid(), rustix::process::Uid::from_raw(users.root().0));
    rustix::thread::set_thread_res_uid(own, theirs, own)?;
    let written = fs::write(path, value);
    rustix::thread::set_thread_res_uid(own, own, own)?;
    written
}

fn directory(dir: &Path, undo: &mut Undo) -> Result<(), Error> {
    let deed = || format!("make the directory {dir:?}");
    match step!("keeper::dir", fs::DirBuilder::new().mode(0o700).create(dir)) {
        Ok(()) => undo.push(Made::Directory(dir.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error).or_fail("ns-dir", deed),
    }
    Ok(())
}

/// A file that keeps the namespace `links/file` alive.
fn pin(dir: &Path, file: &str, links: &Path, undo: &mut Undo) -> Result<(), Error> {
    let (at, link) = (dir.join(file), links.join(file));
    let deed = || format!("pin the {file} namespace at {at:?}");
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    // One that exists is another pod's, or a leftover that the daemon has to undo first.
    step!("keeper::ns-file", rustix::fs::open(&at, flags, Mode::from_raw_mode(0o600))).or_fail("ns-pin", deed)?;
    undo.push(Made::File(at.clone()));
    step!("keeper::ns-pin", rustix::mount::mount_bind(&link, &at)).or_fail("ns-pin", deed)?;
    undo.push(Made::Mount(at.clone()));
    Ok(())
}

fn mount_shm(shm: &Shm, order: &Order, undo: &mut Undo) -> Result<(), Error> {
    let deed = || format!("mount a tmpfs of {} bytes at {:?}", shm.size_bytes, shm.path);
    directory(&shm.path, undo)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let root = order.user.as_ref().map(Users::root);
    let owner = root.map(|(uid, gid)| format!(",uid={uid},gid={gid}")).unwrap_or_default();
    // In quotes: a label may have a comma.
    let label = order.labels.as_ref().map(|labels| format!(",context=\"{}\"", labels.mount)).unwrap_or_default();
    let data = CString::new(format!("mode=1777,size={}{owner}{label}", shm.size_bytes)).or_fail("shm-mount", deed)?;
    step!("keeper::shm-mount", rustix::mount::mount(c"shm", &shm.path, c"tmpfs", flags, data.as_c_str()))
        .or_fail("shm-mount", deed)?;
    undo.push(Made::Mount(shm.path.clone()));
    Ok(())
}

/// There is one for each IPC namespace, and it is every container's of the pod.
fn label_queues(labels: &Labels) -> io::Result<()> {
    let context = match fsopen(c"mqueue", FsOpenFlags::FSOPEN_CLOEXEC) {
        // A kernel without it.
        Err(rustix::io::Errno::NODEV) => return Ok(()),
        context => context?,
    };
    fsconfig_create(context.as_fd())?;
    let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let root = rustix::fs::openat(&mount, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let label = CString::new(labels.mount.as_str())?;
    let flags = rustix::fs::XattrFlags::empty();
    Ok(rustix::fs::fsetxattr(&root, c"security.selinux", label.as_bytes_with_nul(), flags)?)
}

/// The first process of a namespace that only a clone can make: pid 1 of a pid namespace, or the one that a user
/// namespace is made with. It goes when this value does, unless it is told to stay.
struct First {
    pid: i32,
    pidfd: OwnedFd,
    confirmed: OwnedFd,
}

impl First {
    /// `clone` is given what the child waits for and its signals.
    fn cloned(
        clone: impl FnOnce(&OwnedFd, &OwnedFd) -> io::Result<(i32, OwnedFd)>,
        undo: &mut Undo,
    ) -> Result<First, Error> {
        let deed = || "clone pid 1 of the pod".into();
        let pipe = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
        let (stay, confirmed) = pipe.or_fail("pid-clone", || "make a pipe".into())?;
        let signals = keeper_signals().or_fail("pid-clone", || "make a signalfd".into())?;
        let (pid, pidfd) = clone(&stay, &signals).or_fail("pid-clone", deed)?;
        let kept = rustix::io::fcntl_dupfd_cloexec(&pidfd, 3).or_fail("pid-clone", deed)?;
        undo.push(Made::Process(kept));
        Ok(First { pid, pidfd, confirmed })
    }
}

/// Pid 1 stays when this process has answered; until then it goes with it. `dir/keeper` has its number before that, so
/// that it is found by a daemon that did not live to read the answer.
fn stays(order: &Order, first: First, undo: &mut Undo) -> Result<(), Error> {
    let pid = first.pid;
    let record = order.dir.join("keeper");
    undo.push(Made::File(record.clone()));
    step!("keeper::pid-record", fs::write(&record, format!("{pid}\n")))
        .or_fail("pid-record", || format!("write {record:?}"))?;
    pin(&order.dir, "pid", &PathBuf::from(format!("/proc/{pid}/ns")), undo)?;
    step!("keeper::reply", answer(&Answer { pid: Some(pid) })).or_fail("reply", || "answer".into())?;
    step!("keeper::pid-confirm", rustix::io::write(&first.confirmed, b"s"))
        .map(drop)
        .or_fail("reply", || "tell pid 1 to stay".into())
}

/// SIGCHLD, SIGTERM and SIGINT, blocked and read from a descriptor instead.
fn keeper_signals() -> io::Result<OwnedFd> {
    sys::signalfd(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT])
}

/// The life of pid 1: reaps what the pod leaves behind. SIGTERM and SIGINT end it, and the pod's processes with it, but
/// only from outside of the pod. Without a place it ends before anyone else is in the pod.
fn pid_1(stay: &OwnedFd, signals: &OwnedFd, place: Option<&Place>) {
    let _ = rustix::process::setsid();
    let _ = rustix::process::chdir(c"/");
    let _ = rustix::thread::set_name(c"berth-pod-ns");
    // Its memory is the host's.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    // Not even /dev/null, which whoever is root may change by a descriptor of it.
    let stdio = rustix::stdio::dup2_stdin(stay)
        .and_then(|()| rustix::stdio::dup2_stdout(stay))
        .and_then(|()| rustix::stdio::dup2_stderr(stay));
    let settled = match place {
        Some(place) => place.take(signals),
        None => {
            sys::close_all_but(&[signals.as_raw_fd()]);
            Ok(())
        }
    };
    if stdio.is_ok() && settled.is_ok() {
        live(signals);
    }
}

/// The same for one that has become a program of its own.
pub fn go_on() {
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    // They were blocked before, and still are.
    let signals = keeper_signals();
    if pod_first::settle(signals.is_ok()).is_ok()
        && let Ok(signals) = signals
    {
        live(&signals);
    }
}

fn live(signals: &OwnedFd) {
    let mut byte = [0];
    if !matches!(rustix::io::read(rustix::stdio::stdin(), &mut byte), Ok(1)) {
        // Nobody knows of this pod.
        return;
    }
    while let Ok((signal, sender)) = sys::next_signal(signals) {
        match (signal, sender) {
            (libc::SIGCHLD, _) => reap_all(),
            // A sender outside of this pid namespace has no number in it.
            (_, 0) => return,
            _ => {}
        }
    }
}

fn reap_all() {
    while matches!(rustix::process::wait(rustix::process::WaitOptions::NOHANG), Ok(Some(_))) {}
}

/// What was made, to be taken back from the last to the first.
#[derive(Default)]
struct Undo(Vec<Made>);

enum Made {
    Directory(PathBuf),
    File(PathBuf),
    Mount(PathBuf),
    Process(OwnedFd),
}

impl Undo {
    fn push(&mut self, made: Made) {
        self.0.push(made);
    }

    /// Goes on past errors: the daemon undoes what is left by the record of the pod.
    fn all(&mut self) {
        while let Some(made) = self.0.pop() {
            match made {
                Made::Directory(path) => drop(fs::remove_dir(path)),
                Made::File(path) => drop(fs::remove_file(path)),
                Made::Mount(path) => drop(rustix::mount::unmount(&path, UnmountFlags::DETACH)),
                Made::Process(pidfd) => {
                    let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
                    let _ = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_read_whole_or_refused() {
        let json = r#"{"dir":"/run/x","namespaces":["network","ipc","uts","pid"],"hostname":"web-0",
            "sysctls":{"net.ipv4.ip_unprivileged_port_start":"0"},"shm":{"path":"/run/shm","size_bytes":1},
            "labels":{"process":"u:r:t:s0","mount":"u:r:f:s0"}}"#;
        let order: Order = serde_json::from_str(json).expect("an order");
        assert_eq!(order.namespaces, [Kind::Network, Kind::Ipc, Kind::Uts, Kind::Pid]);
        for bad in [r#"{"dir":"/x","namespaces":["user"]}"#, r#"{"dir":"/x","namespaces":[],"other":1}"#] {
            serde_json::from_str::<Order>(bad).expect_err(bad);
        }
    }

    #[test]
    fn answers_are_what_the_daemon_reads() {
        let text = |answer: &Answer| serde_json::to_string(answer).expect("JSON");
        assert_eq!(text(&Answer { pid: Some(4711) }), r#"{"pid":4711}"#);
        assert_eq!(text(&Answer::default()), "{}");
    }
}
