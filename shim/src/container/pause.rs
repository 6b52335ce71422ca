//! A container that stands still: every process of it, until it is resumed or killed.

use std::time::{Duration, Instant};

use super::Shim;
use crate::error::Error;
use crate::lifecycle::Ask;

/// How long the kernel may take to stop every process; one in uninterruptible sleep cannot be stopped.
const FREEZE: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(1);

impl Shim {
    /// Stops every process; returns when they stand still. One that cannot be stopped undoes it.
    pub(crate) async fn pause(&self, id: &str) -> Result<(), Error> {
        self.freeze(id, true)?;
        let begun = Instant::now();
        while !self.is_paused(id)? {
            if begun.elapsed() > FREEZE {
                self.freeze(id, false)?;
                return Err(Error::failed("stop every process", std::io::Error::from(std::io::ErrorKind::TimedOut)));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Lets them go on.
    pub(crate) fn resume(&self, id: &str) -> Result<(), Error> {
        self.freeze(id, false)
    }

    /// They stand still.
    pub(crate) fn is_paused(&self, id: &str) -> Result<bool, Error> {
        self.with(id, |kept| Ok(kept.pausable && kept.container.cgroup.is_frozen()))
    }

    fn freeze(&self, id: &str, frozen: bool) -> Result<(), Error> {
        self.with(id, |kept| {
            kept.init.allow(Ask::Signal)?;
            kept.pausable |= frozen;
            Ok(kept.container.cgroup.freeze(frozen)?)
        })
    }
}
