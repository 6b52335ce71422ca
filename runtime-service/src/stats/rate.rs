//! From sums of processor time to a rate, as a pure function of samples.

use std::time::{Duration, Instant};

/// A rate over less than this would mostly tell how the kernel's ticks fell.
const SPAN_MIN: Duration = Duration::from_secs(1);

/// Of one container or pod: the sample that the rate is counted from, and the one that takes its place.
#[derive(Clone, Debug)]
pub(super) struct Rate {
    from: Option<Sample>,
    next: Sample,
}

/// Processor time used so far, at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) used_ns: u64,
}

impl Rate {
    pub(super) fn new(first: Sample) -> Self {
        Self { from: None, next: first }
    }

    /// When the newest sample that is kept was taken.
    pub(super) fn last_seen(&self) -> Instant {
        self.next.at
    }

    /// Use in billionths of a processor since an earlier sample that is at least `SPAN_MIN` old. `None` until there is
    /// one. Samples that follow each other closely (several clients) do not shorten the span.
    pub(super) fn see(&mut self, now: Sample) -> Option<u64> {
        if now.used_ns < self.next.used_ns {
            // Another cgroup of the same name: what went before says nothing about it.
            *self = Self::new(now);
            return None;
        }
        if now.at.saturating_duration_since(self.next.at) >= SPAN_MIN {
            self.from = Some(self.next);
            self.next = now;
        }
        let from = self.from?;
        let span = now.at.saturating_duration_since(from.at).as_nanos();
        let used = u128::from(now.used_ns.saturating_sub(from.used_ns));
        u64::try_from((used * 1_000_000_000).checked_div(span)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(start: Instant, ms: u64, used_ms: u64) -> Sample {
        Sample { at: start + Duration::from_millis(ms), used_ns: used_ms * 1_000_000 }
    }

    #[test]
    fn the_first_sample_has_no_rate_and_the_second_has_that_of_the_time_between() {
        let start = Instant::now();
        let mut rate = Rate::new(sample(start, 0, 100));
        assert_eq!(rate.see(sample(start, 500, 200)), None, "too near");
        assert_eq!(rate.see(sample(start, 2_000, 1_100)), Some(500_000_000), "one second in two");
        assert_eq!(rate.see(sample(start, 12_000, 1_100)), Some(0), "idle since");
    }

    #[test]
    fn clients_that_ask_one_after_the_other_do_not_shorten_the_span() {
        let start = Instant::now();
        let mut rate = Rate::new(sample(start, 0, 0));
        assert_eq!(rate.see(sample(start, 10_000, 10_000)), Some(1_000_000_000));
        // A moment later: still counted from the start, not from the moment before.
        assert_eq!(rate.see(sample(start, 10_001, 10_000)), Some(999_900_009));
    }

    #[test]
    fn a_sum_that_falls_begins_anew() {
        let start = Instant::now();
        let mut rate = Rate::new(sample(start, 0, 5_000));
        assert_eq!(rate.see(sample(start, 5_000, 10)), None);
        assert_eq!(rate.see(sample(start, 7_000, 2_010)), Some(1_000_000_000));
    }
}
