//! Named steps of operations: where one stands can be told, and a test can kill this process there. Without the feature
//! `failpoints` nobody can be killed.

/// Runs an expression as a named step: `step!("run_pod::ns-pin", pin())`.
///
/// In a build with the feature `failpoints` the process dies by SIGKILL before or after it when `BERTH_FAILPOINT` says
/// so (`NAME:before`, `NAME:after`, with `:N` for the N-th time only).
macro_rules! step {
    ($name:literal, $body:expr) => {{
        #[cfg(feature = "failpoints")]
        {
            #[allow(unsafe_code)]
            #[linkme::distributed_slice($crate::failpoint::DAEMON_STEPS)]
            static NAME: &str = $name;
            $crate::failpoint::reach($name, "before");
        }
        let stage = $crate::inflight::Stage::enter($name);
        let value = $body;
        drop(stage);
        #[cfg(feature = "failpoints")]
        $crate::failpoint::reach($name, "after");
        value
    }};
}

/// Every step of this crate, in no order. Its name is its own: the linker knows one of each for the whole program.
#[cfg(feature = "failpoints")]
#[allow(unsafe_code)]
#[linkme::distributed_slice]
pub static DAEMON_STEPS: [&'static str];

/// The names of this binary's steps, sorted, those of the image store included.
#[cfg(feature = "failpoints")]
pub fn names() -> Vec<&'static str> {
    let mut names: Vec<_> = DAEMON_STEPS.iter().copied().chain(berth_image_service::failpoints()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(feature = "failpoints")]
pub(crate) fn reach(name: &str, side: &str) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};
    struct Armed {
        name: String,
        side: String,
        nth: u32,
    }
    static ARMED: LazyLock<Option<Armed>> = LazyLock::new(|| {
        let value = std::env::var("BERTH_FAILPOINT").ok()?;
        // The name itself has `::` in it, so the side and the count are taken from the end.
        let (rest, nth) = match value.rsplit_once(':') {
            Some((rest, n)) if n.parse::<u32>().is_ok() => (rest.to_owned(), n.parse().unwrap_or(1)),
            _ => (value.clone(), 1),
        };
        let (name, side) = rest.rsplit_once(':')?;
        Some(Armed { name: name.to_owned(), side: side.to_owned(), nth })
    });
    static SEEN: AtomicU32 = AtomicU32::new(0);
    if let Some(armed) = ARMED.as_ref()
        && armed.name == name
        && armed.side == side
        && SEEN.fetch_add(1, Ordering::SeqCst) + 1 == armed.nth
    {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
        loop {
            std::thread::park();
        }
    }
}
