//! Processes that the daemon starts for one answer: a plugin, the namespace keeper, a shim's `start`. Killed in the middle,
//! the daemon leaves them running; the next one waits for them before it looks at what there is, since what they make
//! after that look is in nobody's record.
//!
//! A shim and a pod's pid 1, which come of such a process and stay, are told from it by the session of their own.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getsid};
use tokio::process::Command;

/// In the environment of an errand: the run root of the daemon that sent it.
const MARK: &str = "BERTH_DAEMON";

/// How long an earlier daemon's errands may take before they are killed. Each takes milliseconds; a plugin that waits for
/// somebody else is not worth a node that does not come back, and one that is killed is undone like a finished one.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a killed process may take to be gone.
const DYING: Duration = Duration::from_secs(2);

/// Time between two looks.
const STEP: Duration = Duration::from_millis(5);

/// Marks a command as an errand of the daemon with this run root.
pub(crate) fn mark(command: &mut Command, run: &Path) {
    command.env(MARK, run);
}

/// Waits until no errand of an earlier daemon with this run root is left, and kills those that do not end.
///
/// # Errors
/// /proc cannot be read.
pub(crate) async fn settle(run: &Path) -> io::Result<()> {
    let patient_until = Instant::now() + PATIENCE;
    let end = patient_until + DYING;
    loop {
        let left = under_way(run)?;
        let now = Instant::now();
        match left.first() {
            None => return Ok(()),
            // A node that does not come back for it would be worse than what it may leave.
            Some(_) if now >= end => {
                tracing::error!(
                    ?left,
                    "an earlier daemon started what cannot be killed; what it makes may be left behind"
                );
                return Ok(());
            }
            Some(_) if now >= patient_until => {
                tracing::warn!(?left, "kill what an earlier daemon started and what did not end");
                for pid in left {
                    // One that has ended meanwhile needs no signal.
                    let _ = kill(pid, Signal::SIGKILL);
                }
            }
            Some(_) => {}
        }
        tokio::time::sleep(STEP).await;
    }
}

/// Processes with the mark, but for those that made themselves a session to stay in.
fn under_way(run: &Path) -> io::Result<Vec<Pid>> {
    let mut wanted = format!("{MARK}=").into_bytes();
    wanted.extend_from_slice(run.as_os_str().as_encoded_bytes());
    let is_marked = |environment: &[u8]| environment.split(|byte| *byte == 0).any(|entry| entry == wanted);
    let home = fs::read_link("/proc/self/ns/mnt")?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).map(Pid::from_raw) else {
            continue;
        };
        // One that cannot be read has ended, or is a zombie.
        let Ok(environment) = fs::read(entry.path().join("environ")) else { continue };
        if is_marked(&environment) && is_ours(pid, &home) && getsid(Some(pid)).is_ok_and(|session| session != pid) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// It is in the daemon's mount namespace, as every errand is. A container's process may bear any mark.
fn is_ours(pid: Pid, home: &Path) -> bool {
    fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|namespace| namespace == home)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(run: &Path, program: &str, arguments: &[&str]) -> tokio::process::Child {
        let mut command = Command::new(program);
        mark(&mut command, run);
        command.args(arguments).kill_on_drop(true).spawn().expect("run it")
    }

    #[tokio::test]
    async fn an_errand_is_waited_for_and_what_stays_is_not() {
        let run = tempfile::tempdir().expect("make a directory");
        let mut stays = sleeper(run.path(), "setsid", &["sleep", "1000"]);
        let mut errand = sleeper(run.path(), "sleep", &["0.3"]);
        let begun = Instant::now();
        let (settled, _) = tokio::join!(settle(run.path()), errand.wait());
        settled.expect("it ends by itself");
        assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
        assert!(stays.try_wait().expect("it is ours").is_none(), "what made a session of its own goes on");
        settle(Path::new("/another/run/root")).await.expect("another daemon's are not looked at");
    }

    #[tokio::test]
    async fn an_errand_that_does_not_end_is_killed() {
        let run = tempfile::tempdir().expect("make a directory");
        let mut errand = sleeper(run.path(), "sleep", &["1000"]);
        let (settled, status) = tokio::join!(settle(run.path()), errand.wait());
        settled.expect("it is killed");
        assert!(!status.expect("it is ours").success());
    }
}
