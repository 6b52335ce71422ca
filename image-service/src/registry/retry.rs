//! When to ask again, and how long to wait. Pure.

use std::time::Duration;

use crate::error::RegistryFailure;

/// Times a request is made of the last place that could answer it.
pub(super) const ATTEMPTS: u32 = 5;
/// Times of one that has another behind it.
pub(super) const ATTEMPTS_OF_MIRROR: u32 = 2;
/// Longest wait that a registry's `Retry-After` is honoured for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(5);

/// A failure, and how long the registry asked us to wait.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) why: RegistryFailure,
    pub(super) retry_after: Option<Duration>,
}

impl From<RegistryFailure> for Failed {
    fn from(why: RegistryFailure) -> Self {
        Self { why, retry_after: None }
    }
}

impl Failed {
    /// How long to wait before attempt number `next` (the second is 2), or that another would not help. `luck` is
    /// between 0 and 1: a crowd of nodes must not come back all at once.
    pub(super) fn wait(&self, next: u32, luck: f64) -> Option<Duration> {
        let again = match &self.why {
            RegistryFailure::Unreachable(_) | RegistryFailure::Stalled(_) | RegistryFailure::TooManyRequests(_) => true,
            RegistryFailure::Status(code, _) => *code == 408 || *code >= 500,
            _ => false,
        };
        if !again {
            return None;
        }
        let backoff = FIRST.saturating_mul(1 << next.saturating_sub(2).min(8)).min(LONGEST);
        let backoff = backoff.mul_f64(0.5 + luck.clamp(0.0, 1.0) / 2.0);
        Some(self.retry_after.map_or(backoff, |asked| asked.min(RETRY_AFTER_MAX).max(backoff)))
    }
}

/// A number between 0 and 1 that differs from call to call and node to node; not for secrets.
pub(super) fn luck() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    f64::from(RandomState::new().hash_one(0) as u32) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_the_registry_is_obeyed_within_reason() {
        let busy = |seconds| Failed {
            why: RegistryFailure::TooManyRequests(String::new()),
            retry_after: Some(Duration::from_secs(seconds)),
        };
        let broken = Failed::from(RegistryFailure::Status(503, String::new()));
        let waits: Vec<_> = (2..=5).map(|next| broken.wait(next, 1.0).unwrap().as_millis()).collect();
        assert_eq!(waits, [250, 500, 1000, 2000]);
        assert!(broken.wait(2, 0.0).unwrap() < broken.wait(2, 1.0).unwrap());
        assert_eq!(busy(7).wait(2, 0.5), Some(Duration::from_secs(7)));
        assert_eq!(busy(100_000).wait(2, 0.5), Some(RETRY_AFTER_MAX));
        for final_answer in [
            RegistryFailure::NotFound(String::new()),
            RegistryFailure::Unauthorized(String::new()),
            RegistryFailure::Status(400, String::new()),
            RegistryFailure::Size { expected: 1, actual: 2 },
        ] {
            assert_eq!(Failed::from(final_answer).wait(2, 0.5), None);
        }
    }
}
