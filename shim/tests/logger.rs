//! The log of another runtime's container: what was written is in it, in whichever order all of it ends.

mod common;

use std::io::{PipeWriter, Read, Write};
use std::process::{Child, Command};
use std::time::Duration;

use berth_api::shim::LOGGER_FILE;
use common::{records, shim};

/// A logger with its three descriptors as containerd's contract has them, ready.
struct Logger {
    child: Child,
    dir: tempfile::TempDir,
    /// The container's stdout and stderr.
    streams: [Option<PipeWriter>; 2],
}

impl Logger {
    fn start() -> Logger {
        let dir = tempfile::tempdir().unwrap();
        let config = serde_json::json!({ "path": dir.path().join("0.log") });
        std::fs::write(dir.path().join(LOGGER_FILE), config.to_string()).unwrap();
        let [(out, stdout), (err, stderr), (mut ready, not_yet)] = std::array::from_fn(|_| std::io::pipe().unwrap());
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$0\" logger \"$1\" 3<&0 4<&2 5>&1 </dev/null >/dev/null 2>/dev/null"]);
        command.arg(shim()).arg(dir.path()).stdin(out).stderr(err).stdout(not_yet);
        let child = command.spawn().unwrap();
        // Its copies of the pipes.
        drop(command);
        assert_eq!(ready.read(&mut [0]).unwrap(), 0);
        Logger { child, dir, streams: [Some(stdout), Some(stderr)] }
    }

    /// It has the other end of a stream.
    fn reads(&self, pipe: u64) -> bool {
        let pipe = format!("pipe:[{pipe}]");
        let links = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        let target = |entry: std::io::Result<std::fs::DirEntry>| std::fs::read_link(entry.ok()?.path()).ok();
        links.filter_map(target).any(|target| target.to_string_lossy() == pipe)
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// Its log, when it has ended well.
    fn finish(mut self) -> String {
        let ended = self.child.wait().unwrap();
        let said = std::fs::read_to_string(self.dir.path().join("logger.log")).unwrap();
        assert!(ended.success() && said.is_empty(), "{ended}: {said}");
        records(&std::fs::read(self.dir.path().join("0.log")).unwrap())
    }
}

#[tokio::test]
async fn what_waits_in_one_stream_when_the_other_has_ended_is_logged_before_sigterm_ends_it() {
    for (name, first, last) in [("stderr", 0, 1), ("stdout", 1, 0)] {
        let mut logger = Logger::start();
        let ended = logger.streams[first].take().unwrap();
        let pipe = rustix::fs::fstat(&ended).unwrap().st_ino;
        assert!(logger.reads(pipe));
        drop(ended);
        common::until("the stream's end is seen", || !logger.reads(pipe)).await;
        // Now it is waited for as well.
        tokio::time::sleep(Duration::from_millis(50)).await;
        logger.signal("-STOP");
        logger.streams[last].take().unwrap().write_all(b"last words\n").unwrap();
        logger.signal("-TERM");
        logger.signal("-CONT");
        assert_eq!(logger.finish(), format!("{name} F last words\n"));
    }
}

#[tokio::test]
async fn sigterm_ends_a_logger_as_soon_as_it_has_said_that_it_is_ready() {
    for _ in 0..20 {
        let mut logger = Logger::start();
        logger.signal("-TERM");
        logger.streams = [None, None];
        assert_eq!(logger.finish(), "");
    }
}

#[tokio::test]
async fn a_logger_ends_with_its_streams() {
    let mut logger = Logger::start();
    for stream in &mut logger.streams {
        stream.take().unwrap().write_all(b"a line").unwrap();
    }
    let log = logger.finish();
    let mut lines: Vec<&str> = log.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["stderr P a line", "stdout P a line"]);
}
