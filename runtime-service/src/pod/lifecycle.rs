//! What may happen to a container, as a pure function: no clock, no IO.
//!
//! ```text
//!   Creating ──created──► Created ──start──► Running ──stop──► Stopping ──deadline──► (kill)
//!                            │                  │                  │
//!                            │ start failed     │ exited           │ exited
//!                            ▼                  ▼                  ▼
//!                          Exited ◄──────────────────────────────────  ◄── killed ── Lost (shim gone)
//!   every phase ──remove──► (kill, if it has processes) ──► Removing
//! ```

use std::time::{Instant, SystemTime};

use serde::{Deserialize, Serialize};

/// Where a container stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Phase {
    /// Being made; a crash here means teardown.
    Creating,
    /// Parked before exec.
    Created,
    /// The init runs.
    Running { pid: u32, since: SystemTime },
    /// Asked to end; killed at `kill_at`, not for the first time when it was killed `kills` times before.
    Stopping { pid: u32, since: SystemTime, kill_at: Instant, kills: u32 },
    /// Over.
    Exited(End),
    /// The shim is gone; its container is being killed by cgroup. Shown as UNKNOWN until that has succeeded.
    Lost,
    /// Being removed.
    Removing,
}

/// How a container ended. The table of `docs/exit-reasons.md`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct End {
    /// Exit code, or 128 + signal.
    pub(crate) code: i32,
    /// When the init was seen to end.
    pub(crate) at: SystemTime,
    /// When the init was let go; `None` if it never ran.
    pub(crate) started: Option<SystemTime>,
    /// Why, in the words that CRI's `reason` field carries.
    pub(crate) reason: Reason,
    /// For a person: what failed, on what.
    pub(crate) message: String,
}

/// CRI's `ContainerStatus.reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reason {
    /// Exit code 0.
    Completed,
    /// Another exit code or a signal.
    Error,
    /// A process of the container was killed for its memory limit and the init died of SIGKILL.
    OOMKilled,
    /// The init could not be executed; code 128.
    StartError,
    /// The shim died and the daemon killed the container; code 137.
    ShimDied,
    /// The node was booted since; code 255.
    NodeReboot,
    /// The pod's namespace keeper died and took the shared pid namespace along; code 137.
    PodNamespaceDied,
}

impl Reason {
    /// The word as CRI carries it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::OOMKilled => "OOMKilled",
            Self::StartError => "StartError",
            Self::ShimDied => "ShimDied",
            Self::NodeReboot => "NodeReboot",
            Self::PodNamespaceDied => "PodNamespaceDied",
        }
    }
}

/// Everything that can happen to a container.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    /// Asked: let the init go.
    Start,
    /// Asked: end by `kill_at`.
    Stop { kill_at: Instant },
    /// Asked: remove.
    Remove,
    /// Seen: the shim has parked the init.
    Created,
    /// Seen: exec succeeded.
    Started { pid: u32, at: SystemTime },
    /// Seen: it is over.
    Ended(End),
    /// Seen: the shim does not answer any more.
    ShimGone,
    /// The clock passed `kill_at`.
    DeadlinePassed,
}

/// What the owner has to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Ask the shim to release the init.
    Release,
    /// Send the stop signal.
    Signal,
    /// Kill everything in the container through the shim.
    Kill,
    /// It was killed and is still there: tell those who wait, and kill it once more.
    KillAgain,
    /// Kill everything in the container by its cgroup: there is no shim.
    KillByCgroup,
    /// Take everything down.
    TearDown,
}

/// Why a request is refused in this phase. Becomes FailedPrecondition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("it is still being created")]
    Creating,
    #[error("it is running already")]
    Running,
    #[error("it has exited")]
    Exited,
    #[error("its shim is gone and it is being killed")]
    Lost,
    #[error("it is being removed")]
    Removing,
}

/// The next phase and what to do. `Err` refuses, `Ok((same, None))` is an idempotent yes.
pub(crate) fn next(now: &Phase, event: Event) -> Result<(Phase, Option<Act>), Refused> {
    use Phase::*;
    Ok(match (now.clone(), event) {
        // Facts come first: they are true in whatever phase they find us.
        (Removing, Event::Ended(_) | Event::ShimGone | Event::DeadlinePassed) => (Removing, None),
        (Exited(end), Event::Ended(_) | Event::ShimGone | Event::DeadlinePassed) => (Exited(end), None),
        (_, Event::Ended(end)) => (Exited(end), None),
        (_, Event::ShimGone) => (Lost, Some(Act::KillByCgroup)),
        (Creating, Event::Created) => (Created, None),
        (Created, Event::Started { pid, at }) => (Running { pid, since: at }, None),
        (Stopping { pid, since, kill_at, kills }, Event::DeadlinePassed) => {
            let act = if kills == 0 { Act::Kill } else { Act::KillAgain };
            (Stopping { pid, since, kill_at, kills: kills.saturating_add(1) }, Some(act))
        }
        (phase, Event::DeadlinePassed | Event::Created | Event::Started { .. }) => (phase, None),

        (Created, Event::Start) => (Created, Some(Act::Release)),
        (Running { .. } | Stopping { .. }, Event::Start) => return Err(Refused::Running),
        (Exited(_), Event::Start) => return Err(Refused::Exited),
        (Creating, Event::Start | Event::Stop { .. }) => return Err(Refused::Creating),
        (Lost, Event::Start) => return Err(Refused::Lost),
        (Removing, Event::Start) => return Err(Refused::Removing),

        // A container that never ran has no process of its own to be asked politely.
        (Created, Event::Stop { .. }) => (Created, Some(Act::Kill)),
        (Running { pid, since }, Event::Stop { kill_at }) => {
            (Stopping { pid, since, kill_at, kills: 0 }, Some(Act::Signal))
        }
        // A second stop may only bring the end nearer, and the signal is not sent twice.
        (Stopping { pid, since, kill_at, kills: 0 }, Event::Stop { kill_at: new }) => {
            (Stopping { pid, since, kill_at: kill_at.min(new), kills: 0 }, None)
        }
        // It was killed: it has its time to be gone.
        (phase @ Stopping { .. }, Event::Stop { .. }) => (phase, None),
        (phase @ (Exited(_) | Lost | Removing), Event::Stop { .. }) => (phase, None),

        (Removing, Event::Remove) => (Removing, None),
        (_, Event::Remove) => (Removing, Some(Act::TearDown)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn end(code: i32) -> End {
        End { code, at: SystemTime::UNIX_EPOCH, started: None, reason: Reason::Error, message: String::new() }
    }

    fn phases() -> Vec<Phase> {
        let since = SystemTime::UNIX_EPOCH;
        vec![
            Phase::Creating,
            Phase::Created,
            Phase::Running { pid: 7, since },
            Phase::Stopping { pid: 7, since, kill_at: Instant::now(), kills: 0 },
            Phase::Exited(end(3)),
            Phase::Lost,
            Phase::Removing,
        ]
    }

    #[test]
    fn an_end_is_final() {
        for phase in phases() {
            let (after, act) = next(&phase, Event::Ended(end(9))).expect("a fact is never refused");
            match phase {
                Phase::Exited(first) => assert_eq!(after, Phase::Exited(first)),
                Phase::Removing => assert_eq!(after, Phase::Removing),
                _ => assert_eq!(after, Phase::Exited(end(9))),
            }
            assert_eq!(act, None);
        }
    }

    #[test]
    fn start_is_only_for_what_was_created() {
        for phase in phases() {
            match (&phase, next(&phase, Event::Start)) {
                (Phase::Created, Ok((Phase::Created, Some(Act::Release)))) => {}
                (Phase::Created, other) => panic!("{other:?}"),
                (_, Err(_)) => {}
                (phase, other) => panic!("{phase:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_second_stop_only_shortens() {
        let now = Instant::now();
        let since = SystemTime::UNIX_EPOCH;
        let at = |s| Phase::Stopping { pid: 7, since, kill_at: now + Duration::from_secs(s), kills: 0 };
        let stop = |s| Event::Stop { kill_at: now + Duration::from_secs(s) };
        assert_eq!(next(&at(10), stop(2)), Ok((at(2), None)));
        assert_eq!(next(&at(2), stop(10)), Ok((at(2), None)));
    }

    #[test]
    fn what_does_not_die_is_killed_again_and_told() {
        let (kill_at, since) = (Instant::now(), SystemTime::UNIX_EPOCH);
        let killed = |kills| Phase::Stopping { pid: 7, since, kill_at, kills };
        assert_eq!(next(&killed(0), Event::DeadlinePassed), Ok((killed(1), Some(Act::Kill))));
        assert_eq!(next(&killed(1), Event::DeadlinePassed), Ok((killed(2), Some(Act::KillAgain))));
        // Asked once more, it keeps the time it has to be gone.
        let sooner = kill_at.checked_sub(Duration::from_secs(1)).unwrap_or(kill_at);
        assert_eq!(next(&killed(1), Event::Stop { kill_at: sooner }), Ok((killed(1), None)));
    }

    #[test]
    fn stop_and_remove_of_what_is_over_is_a_yes() {
        for phase in [Phase::Exited(end(0)), Phase::Lost, Phase::Removing] {
            assert_eq!(next(&phase, Event::Stop { kill_at: Instant::now() }), Ok((phase.clone(), None)));
        }
        assert_eq!(next(&Phase::Removing, Event::Remove), Ok((Phase::Removing, None)));
        assert_eq!(next(&Phase::Exited(end(0)), Event::Remove), Ok((Phase::Removing, Some(Act::TearDown))));
    }

    #[test]
    fn a_lost_shim_means_kill_by_cgroup_in_every_live_phase() {
        for phase in phases() {
            let (after, act) = next(&phase, Event::ShimGone).expect("a fact is never refused");
            match phase {
                Phase::Exited(_) | Phase::Removing => assert_eq!(act, None),
                _ => assert_eq!((after, act), (Phase::Lost, Some(Act::KillByCgroup))),
            }
        }
    }
}
