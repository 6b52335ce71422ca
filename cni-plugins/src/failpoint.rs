//! Named steps at which a test build can be made to die, so that a test can kill every plugin before and after each.
//! Without the feature `failpoints` a step is its expression and nothing else.

/// `step!("op::step", expression)`: the expression, as a step that a test can kill before or after.
macro_rules! step {
    ($name:literal, $expression:expr) => {{
        #[cfg(feature = "failpoints")]
        {
            #[linkme::distributed_slice($crate::failpoint::NAMES)]
            static NAME: &str = $name;
            $crate::failpoint::reached(NAME, "before");
        }
        let value = $expression;
        #[cfg(feature = "failpoints")]
        $crate::failpoint::reached($name, "after");
        value
    }};
}

#[cfg(feature = "failpoints")]
pub(crate) use armed::{NAMES, names, reached};

#[cfg(feature = "failpoints")]
mod armed {
    use std::sync::atomic::{AtomicU32, Ordering};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::getpid;

    /// Every step of the binary, in the order of linking.
    #[linkme::distributed_slice]
    pub(crate) static NAMES: [&str];

    /// How often the armed place was reached.
    static PASSED: AtomicU32 = AtomicU32::new(0);

    /// The names whose operation is one of `operations`, sorted.
    pub(crate) fn names(operations: &[&str]) -> Vec<&'static str> {
        let of_ours = |name: &&str| operations.iter().any(|op| name.split("::").next() == Some(op));
        let mut names: Vec<_> = NAMES.iter().copied().filter(of_ours).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Dies when `BERTH_FAILPOINT` is `NAME:PLACE`, or `NAME:PLACE:N` and this is the N-th time.
    pub(crate) fn reached(name: &str, place: &str) {
        let Ok(armed) = std::env::var("BERTH_FAILPOINT") else { return };
        let Some(rest) = armed.strip_prefix(name).and_then(|r| r.strip_prefix(':')) else { return };
        let Some(nth) = rest.strip_prefix(place) else { return };
        let nth = nth.strip_prefix(':').and_then(|n| n.parse().ok()).unwrap_or(1);
        if PASSED.fetch_add(1, Ordering::Relaxed) + 1 == nth {
            // Not a panic: unwinding would run destructors, which a kill does not. It cannot fail for ourselves.
            let _ = kill(getpid(), Signal::SIGKILL);
        }
    }
}
