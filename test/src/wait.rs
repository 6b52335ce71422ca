//! Waiting for something to become true, without a sleep that is too short on one machine and too long on another.

use std::time::{Duration, Instant};

/// How many times slower than usual this machine is: `BERTH_TEST_SLOWNESS`, for one that is emulated. All deadlines of
/// the tests are longer by that.
pub fn slowness() -> u32 {
    std::env::var("BERTH_TEST_SLOWNESS").ok().map_or(1, |times| times.parse().expect("BERTH_TEST_SLOWNESS is a number"))
}

/// How long to wait for what usually comes within `seconds`, on this machine.
pub fn patience(seconds: u64) -> Duration {
    Duration::from_secs(seconds) * slowness()
}

/// Time between two looks.
const STEP: Duration = Duration::from_millis(20);

/// Looks until `condition` holds; panics after `seconds`, saying `what` did not happen.
pub async fn until<F: AsyncFnMut() -> bool>(what: &str, seconds: u64, mut condition: F) {
    let end = Instant::now() + patience(seconds);
    while !condition().await {
        assert!(Instant::now() < end, "not within {seconds} s: {what}");
        tokio::time::sleep(STEP).await;
    }
}

/// The same for a blocking condition outside async code.
pub fn until_blocking(what: &str, seconds: u64, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + patience(seconds);
    while !condition() {
        assert!(Instant::now() < end, "not within {seconds} s: {what}");
        std::thread::sleep(STEP);
    }
}
