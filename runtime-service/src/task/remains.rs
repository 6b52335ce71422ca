//! The processes of one container's shim, found by where they stand: a shim works in its bundle. For one that does not
//! answer, and one whose address nobody lived to write down.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::ledger::ProcessId;

/// How long a killed shim may take to be gone. One that hangs in the kernel goes when that lets it.
const DYING: Duration = Duration::from_secs(2);

/// Time between two looks.
const STEP: Duration = Duration::from_millis(2);

/// Bytes of a process's name that the kernel keeps. Source: `TASK_COMM_LEN` in the kernel's sched.h, without its NUL.
const NAME_MAX: usize = 15;

/// Kills every process called `program` that works in the bundle and has not gone by itself in `patience`, and waits
/// until none is left. Blocks.
///
/// # Errors
/// /proc cannot be read, or one does not go.
pub(crate) fn end(bundle: &Path, program: &str, patience: Duration) -> io::Result<()> {
    let place = match fs::metadata(bundle) {
        Ok(metadata) => (metadata.dev(), metadata.ino()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let patient = Instant::now() + patience;
    let deadline = patient + DYING;
    loop {
        let found = at_work(place, program)?;
        let Some(first) = found.first() else { return Ok(()) };
        if Instant::now() > deadline {
            return Err(io::Error::other(format!("process {} was killed and does not go", first.pid)));
        }
        // Again each time: a `start` that is killed may just have forked.
        if Instant::now() >= patient {
            found.iter().try_for_each(ProcessId::kill)?;
        }
        std::thread::sleep(STEP);
    }
}

/// By the directory itself and not its path, which in a container's own tree may be another's.
fn at_work(place: (u64, u64), program: &str) -> io::Result<Vec<ProcessId>> {
    let name = &program.as_bytes()[..program.len().min(NAME_MAX)];
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // First who it is, then whether it is one: it is killed only if it still is who it was before.
        let Some(process) = ProcessId::of(pid) else { continue };
        let works_there = fs::metadata(entry.path().join("cwd")).is_ok_and(|cwd| (cwd.dev(), cwd.ino()) == place);
        if works_there && fs::read(entry.path().join("comm")).is_ok_and(|comm| comm.trim_ascii_end() == name) {
            let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            // What writes the log for another's shim ends with the container's output.
            if arguments.split(|byte| *byte == 0).nth(1) != Some(b"logger") {
                found.push(process);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn one_that_goes_by_itself_is_not_killed() {
        let bundle = tempfile::tempdir().expect("a directory");
        let mut going = Command::new("sleep").arg("0.2").current_dir(bundle.path()).spawn().expect("run sleep");
        let ended = std::thread::spawn(move || going.wait().expect("it is ours"));
        end(bundle.path(), "sleep", Duration::from_secs(60)).expect("it goes");
        assert!(ended.join().expect("no panic").success(), "it was killed");
    }

    #[test]
    fn only_those_of_the_name_in_the_place_are_ended() {
        let (bundle, other) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("another"));
        let sleep =
            |directory: &Path| Command::new("sleep").arg("1000").current_dir(directory).spawn().expect("run sleep");
        let (mut here, mut there) = (sleep(bundle.path()), sleep(other.path()));
        end(bundle.path(), "cat", Duration::ZERO).expect("nobody is called so");
        assert!(here.try_wait().expect("it is ours").is_none());
        let ending = std::thread::spawn({
            let bundle = bundle.path().to_owned();
            move || end(&bundle, "sleep", Duration::ZERO)
        });
        // Until it is waited for it is there.
        assert!(!here.wait().expect("it is ours").success());
        ending.join().expect("no panic").expect("it goes");
        assert!(there.try_wait().expect("it is ours").is_none());
        there.kill().and_then(|()| there.wait()).expect("end it");
        end(Path::new("/no/such/bundle"), "sleep", Duration::ZERO).expect("nobody works there");
    }
}
