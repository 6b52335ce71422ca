//! What may be asked of a process when. Pure: no clock, no IO.

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// Exit code, or 128 + signal.
    pub(crate) status: u32,
    /// Nanoseconds since the epoch.
    pub(crate) at: i64,
}

/// A process's life; the same for the container's init and for what is exec'd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Known, and an init also set up but for exec.
    Created,
    /// Let go; exec has not yet succeeded or failed.
    Starting,
    Running,
    /// Reaped; its last output and its record are under way.
    Ending(End),
    /// Everything is written; `Wait` has its answer.
    Ended(End),
}

/// What a caller wants of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Start,
    /// To run another process beside it.
    Exec,
    Signal,
    Delete,
    Resize,
    /// To see what it writes, and to type.
    Attach,
    /// To change its limits.
    Update,
}

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("has not been started")]
    NotStarted,
    #[error("has been started already")]
    Started,
    #[error("is running")]
    Running,
    #[error("has ended")]
    Ended,
}

/// Whether `ask` may be done to a process in `phase`.
///
/// # Errors
/// Why it may not.
pub(crate) fn allow(phase: Phase, ask: Ask) -> Result<(), Refused> {
    use Phase::{Created, Ended, Ending, Running, Starting};
    match (ask, phase) {
        (Ask::Start, Created) => Ok(()),
        (Ask::Start, Starting | Running) => Err(Refused::Started),
        (Ask::Exec, Running) => Ok(()),
        (Ask::Exec, Created | Starting) => Err(Refused::NotStarted),
        (Ask::Signal | Ask::Resize | Ask::Attach | Ask::Update, Created | Starting | Running) => Ok(()),
        (Ask::Start | Ask::Exec | Ask::Signal | Ask::Resize | Ask::Attach | Ask::Update, Ending(_) | Ended(_)) => {
            Err(Refused::Ended)
        }
        // A process that was never started ends when it is deleted; one that is ending is waited for.
        (Ask::Delete, Created | Ending(_) | Ended(_)) => Ok(()),
        (Ask::Delete, Starting | Running) => Err(Refused::Running),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_ask_is_allowed_in_its_phases_only() {
        use Refused::{Ended, NotStarted, Running, Started};
        let ended = Phase::Ended(End { status: 0, at: 0 });
        let phases = [Phase::Created, Phase::Starting, Phase::Running, Phase::Ending(End { status: 0, at: 0 }), ended];
        for (ask, expected) in [
            (Ask::Start, [Ok(()), Err(Started), Err(Started), Err(Ended), Err(Ended)]),
            (Ask::Exec, [Err(NotStarted), Err(NotStarted), Ok(()), Err(Ended), Err(Ended)]),
            (Ask::Signal, [Ok(()), Ok(()), Ok(()), Err(Ended), Err(Ended)]),
            (Ask::Resize, [Ok(()), Ok(()), Ok(()), Err(Ended), Err(Ended)]),
            (Ask::Attach, [Ok(()), Ok(()), Ok(()), Err(Ended), Err(Ended)]),
            (Ask::Update, [Ok(()), Ok(()), Ok(()), Err(Ended), Err(Ended)]),
            (Ask::Delete, [Ok(()), Err(Running), Err(Running), Ok(()), Ok(())]),
        ] {
            for (phase, expected) in phases.into_iter().zip(expected) {
                assert_eq!(allow(phase, ask), expected, "{ask:?} when {phase:?}");
            }
        }
    }
}
