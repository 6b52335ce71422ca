//! The life of a sandbox container's only process: it waits, and as pid 1 reaps what is left to it. It does nothing else,
//! opens nothing, and needs no file but its own.

use crate::sys;

/// Returns the exit status: 0 when SIGTERM or SIGINT ended it.
pub fn run() -> i32 {
    // Blocked and read from a descriptor: pid 1 is sent no signal whose handling it left at the default.
    let Ok(signals) = sys::signalfd(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT]) else { return 1 };
    loop {
        match sys::next_signal(&signals) {
            Ok((libc::SIGCHLD, _)) => reap_all(),
            Ok(_) => return 0,
            Err(_) => return 1,
        }
    }
}

fn reap_all() {
    while matches!(rustix::process::wait(rustix::process::WaitOptions::NOHANG), Ok(Some(_))) {}
}
