//! The only waiter: reaps the init, what was exec'd, and orphans of the container that became the shim's.

use std::sync::Arc;

use rustix::process::{WaitOptions, WaitStatus};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::container::Shim;
use crate::io::log::wall_clock;
use crate::lifecycle::End;
use crate::say;

/// Listens for the death of children from now on.
///
/// # Errors
/// What registering the signal answers.
pub(crate) fn listen() -> std::io::Result<Signal> {
    signal(SignalKind::child())
}

/// Reaps whenever a child has died, and tells the shim.
pub(crate) async fn run(mut deaths: Signal, shim: Arc<Shim>) {
    loop {
        reap(&shim);
        if deaths.recv().await.is_none() {
            say!("no more signals of dead children");
            return;
        }
    }
}

/// One signal may stand for many deaths.
fn reap(shim: &Arc<Shim>) {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => {
                let end = End { status: exit_code(status), at: wall_clock() };
                shim.reaped(pid.as_raw_nonzero().get(), end);
            }
            Ok(None) | Err(rustix::io::Errno::CHILD) => return,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => {
                say!("wait for children: {errno}");
                return;
            }
        }
    }
}

/// As a shell counts: 128 + signal for a process that was killed.
fn exit_code(status: WaitStatus) -> u32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code as u32,
        (None, Some(signal)) => 128 + signal as u32,
        // Not reached: only ends are waited for.
        (None, None) => 255,
    }
}
