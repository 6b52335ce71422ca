//! The steps at which this crate can be killed on purpose, in a build with the feature `failpoints`. Without it
//! `step!` is its expression.

/// `step!("operation::step", expression)`: the expression, with a place to die before and after it.
#[cfg(not(feature = "failpoints"))]
macro_rules! step {
    ($name:expr, $effect:expr) => {
        $effect
    };
}

/// `step!("operation::step", expression)`: the expression, with a place to die before and after it.
#[cfg(feature = "failpoints")]
macro_rules! step {
    ($name:expr, $effect:expr) => {{
        #[allow(unsafe_code)]
        #[linkme::distributed_slice($crate::failpoint::NAMES)]
        static NAME: &str = $name;
        $crate::failpoint::reach(NAME, $crate::failpoint::Side::Before);
        let outcome = $effect;
        $crate::failpoint::reach(NAME, $crate::failpoint::Side::After);
        outcome
    }};
}

#[cfg(feature = "failpoints")]
pub use armed::failpoints;
#[cfg(feature = "failpoints")]
pub(crate) use armed::{NAMES, Side, reach};

#[cfg(feature = "failpoints")]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    /// Every name given to `step!` in this crate.
    #[allow(unsafe_code)]
    #[linkme::distributed_slice]
    pub(crate) static NAMES: [&'static str];

    /// The steps of this crate, sorted, each once.
    pub fn failpoints() -> Vec<&'static str> {
        let mut names = NAMES.to_vec();
        names.sort_unstable();
        names.dedup();
        names
    }

    #[derive(Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Side {
        Before,
        After,
    }

    struct Armed {
        name: String,
        side: Side,
        /// Passes left before it kills; 1 kills on the next.
        passes: AtomicU64,
    }

    fn armed() -> Option<&'static Armed> {
        static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
        ARMED.get_or_init(|| parse(&std::env::var("BERTH_FAILPOINT").ok()?)).as_ref()
    }

    /// `op::step:before`, `op::step:after`, each with `:N` for the N-th time only.
    fn parse(text: &str) -> Option<Armed> {
        let (text, passes) = match text.rsplit_once(':') {
            Some((head, count)) if count.parse::<u64>().is_ok() => (head, count.parse().ok()?),
            _ => (text, 1),
        };
        let (name, side) = text.rsplit_once(':')?;
        let side = match side {
            "before" => Side::Before,
            "after" => Side::After,
            _ => return None,
        };
        Some(Armed { name: name.to_owned(), side, passes: AtomicU64::new(passes) })
    }

    /// Dies by SIGKILL if this is the armed step, side and time: nothing is dropped or flushed on the way.
    pub(crate) fn reach(name: &str, side: Side) {
        let Some(armed) = armed() else { return };
        if armed.name == name && armed.side == side && armed.passes.fetch_sub(1, Ordering::Relaxed) == 1 {
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_variable_names_a_step_a_side_and_a_count() {
            let third = parse("pull_image::ingest:after:3").unwrap();
            assert_eq!(third.name, "pull_image::ingest");
            assert!(third.side == Side::After);
            assert_eq!(third.passes.into_inner(), 3);
            assert_eq!(parse("remove_image::untag:before").unwrap().passes.into_inner(), 1);
            assert!(parse("remove_image::untag").is_none());
        }
    }
}
