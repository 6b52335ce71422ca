//! Named steps at which a test build dies by SIGKILL, before or after, when `BERTH_FAILPOINT` says so.
//! Without the feature `failpoints` a step is its expression and nothing else.

/// `step!("op::step", expression)`: the value of the expression.
///
/// With the feature `failpoints` the process kills itself before or after it when the environment has
/// `BERTH_FAILPOINT=op::step:before` or `:after`, with `:N` for the N-th time only. Not for the child of a clone.
#[cfg(not(feature = "failpoints"))]
#[macro_export]
macro_rules! step {
    ($name:literal, $expression:expr) => {
        $expression
    };
}

/// See the other definition.
#[cfg(feature = "failpoints")]
#[macro_export]
macro_rules! step {
    ($name:literal, $expression:expr) => {{
        #[linkme::distributed_slice($crate::failpoint::NAMES)]
        static NAME: &str = $name;
        static PASSED: ::std::sync::atomic::AtomicU32 = ::std::sync::atomic::AtomicU32::new(0);
        let time = PASSED.fetch_add(1, ::std::sync::atomic::Ordering::Relaxed) + 1;
        $crate::failpoint::die_if($name, "before", time);
        let value = $expression;
        $crate::failpoint::die_if($name, "after", time);
        value
    }};
}

/// Every step of this binary.
#[cfg(feature = "failpoints")]
#[linkme::distributed_slice]
pub static NAMES: [&'static str];

/// Steps of the namespace keeper begin so; the others are the shim's.
const KEEPER: &str = "keeper::";

/// What the shim's `failpoints` prints: its names, one a line, sorted. `None` in a build without failpoints.
pub fn listing() -> Option<String> {
    names(|name| !name.starts_with(KEEPER))
}

/// As `listing`, for the namespace keeper.
pub fn keeper_listing() -> Option<String> {
    names(|name| name.starts_with(KEEPER))
}

fn names(own: fn(&str) -> bool) -> Option<String> {
    #[cfg(feature = "failpoints")]
    {
        let mut names: Vec<&str> = NAMES.iter().copied().filter(|name| own(name)).collect();
        names.sort_unstable();
        names.dedup();
        Some(names.join("\n") + "\n")
    }
    #[cfg(not(feature = "failpoints"))]
    {
        let _ = own;
        None
    }
}

/// Dies by SIGKILL when the environment names this step, this moment and (if it gives a number) this time.
#[cfg(feature = "failpoints")]
pub fn die_if(name: &str, moment: &str, time: u32) {
    let Ok(wanted) = std::env::var("BERTH_FAILPOINT") else {
        return;
    };
    if matches(&wanted, name, moment, time) {
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
            .unwrap_or_else(|_| std::process::abort());
    }
}

/// `wanted` is `op::step:moment` or `op::step:moment:N`.
#[cfg(any(feature = "failpoints", test))]
fn matches(wanted: &str, name: &str, moment: &str, time: u32) -> bool {
    let Some(rest) = wanted.strip_prefix(name).and_then(|rest| rest.strip_prefix(':')) else {
        return false;
    };
    match rest.split_once(':') {
        None => rest == moment,
        Some((m, n)) => m == moment && n.parse() == Ok(time),
    }
}

/// True in a failpoints build whose environment lists `feature` in `BERTH_FORCE_FALLBACK` (comma separated): the code
/// then takes the path of a kernel without that feature.
pub fn fallback_forced(feature: &str) -> bool {
    #[cfg(feature = "failpoints")]
    {
        std::env::var("BERTH_FORCE_FALLBACK").is_ok_and(|list| list.split(',').any(|item| item == feature))
    }
    #[cfg(not(feature = "failpoints"))]
    {
        let _ = feature;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_step_is_named_with_its_moment_and_perhaps_its_time() {
        for (wanted, expected) in [
            ("create::clone:before", true),
            ("create::clone:after", false),
            ("create::clone:before:3", true),
            ("create::clone:before:2", false),
            ("create::clon:before", false),
            ("create::clone2:before", false),
            ("create::clone", false),
            ("create::clone:before:x", false),
        ] {
            assert_eq!(matches(wanted, "create::clone", "before", 3), expected, "{wanted}");
        }
    }
}
