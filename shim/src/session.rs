//! Kills an exec'd process with everything it started, and nothing else of its container.

use std::collections::BTreeSet;

use rustix::process::{Pid, PidfdFlags};

use crate::sys;

/// Passes over the container's processes: each kills what the one before saw born.
const PASSES: usize = 16;

/// Kills `leader`, its session and the descendants of either, among `members()` of its container.
pub(crate) fn kill(leader: i32, members: impl Fn() -> Vec<i32>) {
    for _ in 0..PASSES {
        let living: Vec<Living> = members().into_iter().filter_map(Living::look).collect();
        let doomed = family(leader, living.iter().map(|process| process.kin));
        let mut killed = false;
        for process in living.iter().filter(|process| doomed.contains(&process.kin.pid)) {
            killed |= sys::signal(&process.pidfd, libc::SIGKILL).is_ok();
        }
        if !killed {
            return;
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kin {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) session: i32,
}

struct Living {
    kin: Kin,
    /// Opened before `kin` was read: whoever has the number later is not signalled.
    pidfd: std::os::fd::OwnedFd,
}

impl Living {
    /// `None` for a process that has ended.
    fn look(pid: i32) -> Option<Living> {
        let pidfd = rustix::process::pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Living { kin: parse(pid, &stat)?, pidfd })
    }
}

/// Source: proc_pid_stat(5). The name, second, may hold spaces and parentheses. `None` for a zombie.
pub(crate) fn parse(pid: i32, stat: &str) -> Option<Kin> {
    let (_, after) = stat.rsplit_once(") ")?;
    let mut fields = after.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    Some(Kin { pid, parent, session })
}

/// Those of the leader's session and their descendants.
pub(crate) fn family(leader: i32, all: impl Iterator<Item = Kin> + Clone) -> BTreeSet<i32> {
    let mut family: BTreeSet<i32> =
        all.clone().filter(|kin| kin.pid == leader || kin.session == leader).map(|kin| kin.pid).collect();
    family.insert(leader);
    loop {
        let before = family.len();
        for kin in all.clone() {
            if family.contains(&kin.parent) {
                family.insert(kin.pid);
            }
        }
        if family.len() == before {
            return family;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_past_its_name() {
        let kin = Kin { pid: 7, parent: 5, session: 3 };
        for (stat, expected) in [
            ("7 (sh) S 5 4 3 0 -1", Some(kin)),
            ("7 (a) b (c) R 5 4 3 0 -1", Some(kin)),
            ("7 (sh) Z 5 4 3 0 -1", None),
            ("7 (sh", None),
        ] {
            assert_eq!(parse(7, stat), expected, "{stat}");
        }
    }

    #[test]
    fn a_family_is_the_session_and_all_that_descend_from_it() {
        let kin = |pid, parent, session| Kin { pid, parent, session };
        // 1 is the container's init; 10 the exec; 12 a daemon's child in its own session; 20 belongs to the init.
        let all = [kin(13, 12, 13), kin(12, 11, 12), kin(11, 10, 10), kin(10, 0, 10), kin(1, 0, 1), kin(20, 1, 1)];
        // 14's parent is dead, but it is still in the session.
        let all = all.into_iter().chain([kin(14, 1, 10)]);
        assert_eq!(family(10, all), BTreeSet::from([10, 11, 12, 13, 14]));
    }
}
