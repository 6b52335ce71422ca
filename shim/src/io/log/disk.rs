//! The thread on which a log's file is touched: a disk that hangs in the kernel keeps it, and nobody else.
//! Knows nothing of logs: it does one job at a time, the one that the log's owner gives it.
//!
//! It is there only while there is something to write and a little longer, so that a silent container's shim has one
//! thread. Where no thread can be made (a limit of processes) the job is done by the caller, as the lesser evil.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How long the thread waits for another job before it ends.
const IDLE: Duration = Duration::from_secs(1);
/// Bytes; a job is a few calls of the kernel deep.
const STACK: usize = 64 * 1024;

type Job = Box<dyn FnOnce() + Send>;

/// A thread when there is need for one.
#[derive(Default)]
pub(super) struct Disk {
    state: Mutex<State>,
    given: Condvar,
}

#[derive(Default)]
struct State {
    job: Option<Job>,
    /// The thread is there, and looks at `job` before it ends.
    there: bool,
}

impl Disk {
    /// Has `job` done. The one before must be done: who gives jobs holds the log.
    pub(super) fn give(self: &Arc<Self>, job: Job) {
        let mut state = self.lock();
        state.job = Some(job);
        if state.there {
            self.given.notify_one();
            return;
        }
        let disk = self.clone();
        match thread::Builder::new().name("log".into()).stack_size(STACK).spawn(move || disk.work()) {
            Ok(_) => state.there = true,
            Err(_) => {
                let job = state.job.take();
                drop(state);
                job.into_iter().for_each(|job| job());
            }
        }
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.job.take() {
                drop(state);
                job();
                state = self.lock();
                continue;
            }
            let (back, waited) = self.given.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = back;
            if waited.timed_out() && state.job.is_none() {
                state.there = false;
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Disk")
    }
}
