//! The container's log file: written in batches, opened anew on request, and what happens when its disk refuses.
//! Knows files and lines; when to read and when to wait is `io::pump`'s.
//!
//! The file is only touched on a thread of its own (`disk`), since a disk may hang in the kernel for ever: then the
//! container waits, and the shim answers.
//!
//! A write that fails is tried again for `PATIENCE`; meanwhile nothing is read, so the container waits at its pipe.
//! Then whole lines are dropped and counted, and as soon as a write succeeds a marker line says how many.

mod disk;
mod file;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzzing;
mod time;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Mutex, OwnedMutexGuard, oneshot};

use disk::Disk;
pub(crate) use file::LogFile;
pub(crate) use frame::Stream;
use frame::{Framer, columns, record};
use time::Clock;

use crate::error::plain;
use crate::say;

/// How long a failing write is repeated before lines are dropped.
const PATIENCE: Duration = Duration::from_secs(5);
/// First and longest pause between two tries.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));
/// Bytes of records that go out in one write, give or take a line.
const BATCH: usize = 64 * 1024;

/// Where records go; its failures are what this room is about, so that a test must be able to cause them.
pub(crate) trait Sink: Send {
    /// Writes as much as it can of `bytes`.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Takes the last `bytes` bytes back.
    fn cut(&mut self, bytes: u64) -> io::Result<()>;
    /// Goes on in a new file at the same path; on an error it stays with the old one.
    fn reopen(&mut self) -> io::Result<()>;
}

#[derive(Debug)]
enum Health {
    Well,
    Retrying { since: Instant, next: Instant, pause: Duration },
    Dropping { lines: u64, next: Instant, reason: String },
}

/// Whether more can be framed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    Ready,
    /// The disk refuses; ask again then, and read nothing until then.
    NotBefore(Instant),
}

/// One log, of one or two streams.
#[derive(Debug)]
pub(crate) struct Log<S = LogFile> {
    sink: S,
    clock: Clock,
    framers: [Framer; 2],
    /// Whole records not yet written.
    out: Vec<u8>,
    /// The stream's last record in the file is a P whose line goes on.
    unfinished: [bool; 2],
    /// The file ends within a record that could not be taken back.
    torn: bool,
    health: Health,
    dropped: u64,
}

/// A log that both streams' pumps and the reopening share. Whoever has it may have to wait for the disk.
#[derive(Clone, Debug)]
pub(crate) struct SharedLog {
    log: Arc<Mutex<Log>>,
    disk: Arc<Disk>,
}

impl SharedLog {
    /// Opens or creates the file at `path`, mode 0640.
    ///
    /// # Errors
    /// What open answers.
    pub(crate) fn open(path: &Path) -> io::Result<SharedLog> {
        let log = Log::new(LogFile::open(path)?);
        Ok(SharedLog { log: Arc::new(Mutex::new(log)), disk: Arc::default() })
    }

    /// For what does not touch the file.
    pub(crate) async fn lock(&self) -> OwnedMutexGuard<Log> {
        self.log.clone().lock_owned().await
    }

    /// See `Log::settle`.
    pub(crate) async fn settle(&self) -> Readiness {
        let log = self.lock().await;
        match log.at_rest(Instant::now()) {
            Some(readiness) => readiness,
            None => self.on_disk(log, |log| log.settle(Instant::now())).await,
        }
    }

    /// See `Log::give_up`.
    pub(crate) async fn give_up(&self) {
        let log = self.lock().await;
        self.on_disk(log, |log| log.give_up(Instant::now())).await;
    }

    /// See `Log::reopen`. Returns the lines dropped so far.
    pub(crate) async fn reopen(&self) -> io::Result<u64> {
        let log = self.lock().await;
        self.on_disk(log, |log| log.reopen(Instant::now()).map(|()| log.dropped())).await
    }

    /// The log stays taken until the deed is done, also when nobody waits for it any more.
    async fn on_disk<T: Send + 'static>(
        &self,
        mut log: OwnedMutexGuard<Log>,
        deed: impl FnOnce(&mut Log) -> T + Send + 'static,
    ) -> T {
        let (tell, told) = oneshot::channel();
        self.disk.give(Box::new(move || {
            let result = deed(&mut log);
            drop(log);
            // Nobody waits for it any more.
            let _ = tell.send(result);
        }));
        match told.await {
            Ok(result) => result,
            // Only a panic in the deed drops it untold, and nobody may take that for an answer.
            Err(_) => std::future::pending().await,
        }
    }
}

impl<S: Sink> Log<S> {
    pub(crate) fn new(sink: S) -> Log<S> {
        Log {
            sink,
            clock: Clock::new(),
            framers: Default::default(),
            out: Vec::new(),
            unfinished: [false; 2],
            torn: false,
            health: Health::Well,
            dropped: 0,
        }
    }

    /// Takes in the beginning of `input`, which the stream wrote at about `at` (nanoseconds since the epoch); returns
    /// how much. `settle` must have said `Ready` before.
    pub(crate) fn take(&mut self, stream: Stream, input: &[u8], at: i64) -> usize {
        let framer = &mut self.framers[stream.index()];
        match &mut self.health {
            Health::Dropping { lines, .. } => {
                let begun = framer.drop_lines(input);
                *lines += begun;
                self.dropped += begun;
                input.len()
            }
            _ => framer.frame(stream, input, self.clock.format(at), &mut self.out, BATCH),
        }
    }

    /// The stream is at its end.
    pub(crate) fn end(&mut self, stream: Stream, at: i64) {
        let framer = &mut self.framers[stream.index()];
        match &self.health {
            Health::Dropping { .. } => {}
            _ => framer.end(stream, self.clock.format(at), &mut self.out),
        }
    }

    /// What `settle` would answer, if it had nothing to do for it.
    fn at_rest(&self, now: Instant) -> Option<Readiness> {
        match &self.health {
            Health::Well => self.out.is_empty().then_some(Readiness::Ready),
            Health::Retrying { next, .. } => (now < *next).then_some(Readiness::NotBefore(*next)),
            Health::Dropping { next, .. } => (now < *next).then_some(Readiness::Ready),
        }
    }

    /// Writes what waits, if it is time to try.
    pub(crate) fn settle(&mut self, now: Instant) -> Readiness {
        match &self.health {
            Health::Well => self.flush(now),
            Health::Retrying { next, .. } if now < *next => Readiness::NotBefore(*next),
            Health::Retrying { .. } => self.flush(now),
            Health::Dropping { next, .. } if now < *next => Readiness::Ready,
            Health::Dropping { .. } => {
                self.resume(now);
                Readiness::Ready
            }
        }
    }

    /// When `settle` should be called though nothing was read: while lines are dropped.
    pub(crate) fn wakes_at(&self) -> Option<Instant> {
        match &self.health {
            Health::Dropping { next, .. } => Some(*next),
            _ => None,
        }
    }

    /// Waits no longer for a disk that refuses: for an exit that must be told now.
    pub(crate) fn give_up(&mut self, now: Instant) {
        if matches!(self.health, Health::Retrying { .. }) {
            self.health = Health::Well;
            if let Err(cause) = self.write_out() {
                self.start_dropping(now, cause);
            }
        }
    }

    /// Goes on in a new file at the log's path.
    ///
    /// # Errors
    /// What open answers; the old file stays in use and none was created.
    pub(crate) fn reopen(&mut self, now: Instant) -> io::Result<()> {
        self.sink.reopen()?;
        match &mut self.health {
            Health::Well => {}
            Health::Retrying { next, .. } | Health::Dropping { next, .. } => *next = now,
        }
        self.settle(now);
        Ok(())
    }

    /// Lines dropped since the log was opened first.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Gives back memory that only a flood needed.
    pub(crate) fn shrink(&mut self) {
        self.out.shrink_to_fit();
        self.framers.iter_mut().for_each(Framer::shrink);
    }

    fn flush(&mut self, now: Instant) -> Readiness {
        let Err(cause) = self.write_out() else {
            self.health = Health::Well;
            return Readiness::Ready;
        };
        let (since, pause) = match &self.health {
            Health::Retrying { since, pause, .. } => (*since, (*pause * 2).min(PAUSE.1)),
            _ => (now, PAUSE.0),
        };
        if now.duration_since(since) >= PATIENCE {
            self.start_dropping(now, cause);
            return Readiness::Ready;
        }
        let next = now + pause;
        self.health = Health::Retrying { since, next, pause };
        Readiness::NotBefore(next)
    }

    /// Writes all of `out`; on an error what is left of it begins with a whole record.
    fn write_out(&mut self) -> io::Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        let (written, result) = write_records(&mut self.sink, &self.out);
        match result {
            Ok(()) => self.unfinished = [self.framers[0].is_open(), self.framers[1].is_open()],
            Err(_) => {
                for record in self.out[..written].split_inclusive(|byte| *byte == b'\n') {
                    match columns(record) {
                        Some((stream, full)) => self.unfinished[stream.index()] = !full,
                        None => continue,
                    }
                }
                self.torn = written > 0 && self.out[written - 1] != b'\n';
            }
        }
        self.out.drain(..written);
        result
    }

    fn start_dropping(&mut self, now: Instant, cause: io::Error) {
        let mut lines = self
            .out
            .split_inclusive(|byte| *byte == b'\n')
            .filter(|record| columns(record).is_some_and(|(_, full)| full))
            .count() as u64;
        lines += self.framers.iter_mut().map(Framer::drop_line).sum::<u64>();
        self.out = Vec::new();
        self.dropped += lines;
        self.health = Health::Dropping { lines, next: now + PAUSE.1, reason: plain(&cause) };
        say!("log: {cause}: dropping lines");
    }

    /// Ends the lines that were cut off and writes the marker; if that fails, lines go on being dropped.
    fn resume(&mut self, now: Instant) {
        let Health::Dropping { lines, next, reason } = &mut self.health else {
            return;
        };
        let time = self.clock.format(wall_clock());
        let mut out = if self.torn { vec![b'\n'] } else { Vec::new() };
        for stream in Stream::ALL {
            if self.unfinished[stream.index()] {
                record(&mut out, time, stream, true, [b"", b""]);
            }
        }
        let marker = format!("berth: dropped {lines} lines: {reason}");
        record(&mut out, time, Stream::Stderr, true, [marker.as_bytes(), b""]);
        let (written, result) = write_records(&mut self.sink, &out);
        for record in out[..written].split_inclusive(|byte| *byte == b'\n') {
            self.torn = false;
            if let Some((stream, _)) = columns(record) {
                self.unfinished[stream.index()] = false;
            }
        }
        match result {
            Ok(()) => {
                say!("log: written again, {lines} lines dropped");
                self.health = Health::Well;
            }
            Err(_) => *next = now + PAUSE.1,
        }
    }
}

/// Writes all of `records`. On an error a torn record is taken back; returns the length of those written whole.
fn write_records(sink: &mut impl Sink, records: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < records.len() {
        let cause = match sink.write(&records[written..]) {
            Ok(0) => io::ErrorKind::WriteZero.into(),
            Ok(length) => {
                written += length;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => error,
        };
        let whole = memchr::memrchr(b'\n', &records[..written]).map_or(0, |end| end + 1);
        return match sink.cut((written - whole) as u64) {
            Ok(()) => (whole, Err(cause)),
            // It cannot be taken back: then the rest of it must follow.
            Err(_) => (written, Err(cause)),
        };
    }
    (written, Ok(()))
}

/// Nanoseconds since the epoch.
pub(crate) fn wall_clock() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

#[cfg(test)]
mod tests;
