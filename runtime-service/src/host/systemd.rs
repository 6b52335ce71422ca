//! systemd as the maker of cgroups: a scope for each container, into which its shim is put and below which, since it is
//! delegated, the container's own cgroup is berth's affair as with the other driver; and one for pid 1 of a pod.
//!
//! Source: systemd's CGROUP_DELEGATION.md: there is one writer to each cgroup, and one who is not systemd writes only
//! below a unit with Delegate=.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cgroups_rs::systemd::SystemdClient;
use cgroups_rs::systemd::props::PropertiesBuilder;

use super::Cgroups;
use super::aside::{Aside, Late};
use crate::spec::Scope;

/// Where the shim goes: a cgroup that has processes of its own gives its children no controllers.
const SHIM_CGROUP: &str = "shim";

/// Inode of the first pid namespace, systemd's. Source: the kernel's include/linux/proc_ns.h, PROC_PID_INIT_INO.
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// Longest wait for systemd.
const DEADLINE: Duration = Duration::from_secs(20);

/// How long processes of a scope that is stopped may take to end before they are killed. The container's are dead by
/// then; its shim needs milliseconds.
const STOP: Duration = Duration::from_secs(5);

/// Longest pause between two looks whether systemd has done its job.
const LOOK: Duration = Duration::from_millis(5);

/// Why systemd's driver cannot be used here; `None`: it can.
pub(crate) fn obstacle(cgroups: &Cgroups) -> Option<&'static str> {
    // sd_booted(3).
    if !Path::new("/run/systemd/system").is_dir() {
        return Some("systemd is not this host's init");
    }
    if fs::metadata("/proc/self/ns/pid").is_ok_and(|namespace| namespace.ino() != FIRST_PID_NAMESPACE) {
        return Some("berthd is in a pid namespace of its own, and systemd does not know its numbers");
    }
    if !cgroups.is_v2() {
        return Some("the host's cgroups are not version 2 alone (systemd.unified_cgroup_hierarchy=1 makes them so)");
    }
    if !Path::new("/run/dbus/system_bus_socket").exists() {
        return Some("there is no D-Bus system bus: install dbus");
    }
    None
}

/// Who is put into a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Member {
    /// A container's shim, which has to be out of the container's way.
    Shim(u32),
    /// Pid 1 of a pod, which is alone there.
    Keeper(u32),
}

/// Makes the scope with this process in it. It ends with its last process.
///
/// # Errors
/// systemd's answer, or that it did not do it within 20 s; in words for the operator.
pub(crate) async fn start_scope(cgroups: &Cgroups, scope: &Scope, member: Member) -> Result<(), String> {
    let (Member::Shim(pid) | Member::Keeper(pid)) = member;
    let directory = cgroups.v2_directory(&scope.path).ok_or("the host has no cgroup version 2")?;
    let scope = scope.clone();
    bounded(move || {
        let mut properties = PropertiesBuilder::default_cgroup(&scope.slice, &scope.unit)
            .description(format!("berth, {}", scope.unit))
            .pids(vec![pid])
            .timeout_stop_usec(u64::try_from(STOP.as_micros()).unwrap_or(u64::MAX))
            .build();
        // Without it there is systemd's DefaultTasksMax, which nobody asked for; the container's own limit is below.
        properties.push(("TasksMax", u64::MAX.into()));
        let client = SystemdClient::new(&scope.unit, properties).map_err(|e| e.to_string())?;
        client.start().map_err(|e| format!("start {} in {}: {e}", scope.unit, scope.slice))?;
        let there = arrived(&directory, pid).and_then(|()| match member {
            Member::Shim(pid) => put_aside(&directory, pid),
            Member::Keeper(_) => Ok(()),
        });
        there.map_err(|e| format!("{} in {}: {e}", scope.unit, scope.slice))
    })
    .await
}

/// systemd's answer is the promise of a job, not its end.
fn arrived(scope: &Path, pid: u32) -> Result<(), String> {
    let begun = Instant::now();
    let mut pause = Duration::from_micros(200);
    let is_there = || {
        let members = fs::read_to_string(scope.join("cgroup.procs")).unwrap_or_default();
        members.lines().any(|line| line.parse() == Ok(pid))
    };
    while !is_there() {
        if begun.elapsed() > DEADLINE {
            return Err(format!("process {pid} was not put into it within {} s", DEADLINE.as_secs()));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LOOK);
    }
    Ok(())
}

fn put_aside(scope: &Path, pid: u32) -> Result<(), String> {
    let aside = scope.join(SHIM_CGROUP);
    let moved = made(fs::create_dir(&aside)).and_then(|()| fs::write(aside.join("cgroup.procs"), pid.to_string()));
    moved.map_err(|e| format!("move the shim to {}: {e}", aside.display()))
}

fn made(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Ends what is left of a scope. One that is empty ends by itself, and then this does nothing.
///
/// # Errors
/// systemd's answer, in words for the operator.
pub(crate) async fn stop_scope(cgroups: &Cgroups, scope: &Scope) -> Result<(), String> {
    let directory: Option<PathBuf> = cgroups.v2_directory(&scope.path).filter(|directory| directory.exists());
    if directory.is_none() {
        return Ok(());
    }
    let unit = scope.unit.clone();
    bounded(move || {
        let client = SystemdClient::new(&unit, Vec::new()).map_err(|e| e.to_string())?;
        client.stop().map_err(|e| format!("stop {unit}: {e}"))
    })
    .await
}

/// Calls on D-Bus block, and have no deadline of their own. systemd does one after the other; those of one that hangs
/// must not take up more threads than these.
static CALLS: Aside = Aside::new(8);

async fn bounded(work: impl FnOnce() -> Result<(), String> + Send + 'static) -> Result<(), String> {
    let late = |Late| Err(format!("systemd did not answer within {} s", (DEADLINE * 2).as_secs()));
    CALLS.run(DEADLINE * 2, work).await.unwrap_or_else(late)
}
