//! Moves bytes between a process and its log or its client, without ever keeping the shim's main thread waiting.
//! Reads no more while the log or the client cannot take it: then the process waits.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until};

use super::clients::Clients;
use super::log::{Readiness, SharedLog, Stream, wall_clock};
use crate::{say, sys};

/// Bytes read at once: little for a stream that says little, much in a flood.
const READ_MIN: usize = 4 * 1024;
const READ_MAX: usize = 64 * 1024;
/// How long a stream is silent before its buffer is given back.
const IDLE: Duration = Duration::from_secs(1);
/// Pause before a terminal that nobody has open is looked at again.
const HANGUP_PAUSE: Duration = Duration::from_millis(100);

/// How far the process has come, as the pumps need to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// It may write, or open its terminal again.
    Alive,
    /// It is dead: what comes is what was on its way.
    Dead,
    /// Take what is there and end.
    Stop,
}

/// Told by `Io` to its pumps.
pub(super) type Stages = watch::Receiver<Stage>;

async fn reached(stages: &mut Stages, stage: Stage) {
    // An error says that the sender is gone, and `Io` with it.
    let _ = stages.wait_for(|now| *now >= stage).await;
}

fn stage(stages: &Stages) -> Stage {
    match stages.has_changed() {
        Ok(_) => *stages.borrow(),
        Err(_) => Stage::Stop,
    }
}

/// A pipe or a terminal's master, shared by reading, writing and resizing.
pub(super) type Source = Arc<AsyncFd<OwnedFd>>;

/// Copies a pipe or a terminal to the log and to attached clients until its end.
pub(super) async fn to_log(source: Source, log: SharedLog, clients: Arc<Clients>, stream: Stream, mut stages: Stages) {
    let mut buffer = Buffer::default();
    loop {
        settle(&log, &mut stages).await;
        let wakes_at = log.lock().await.wakes_at();
        match buffer.fill(&source, wakes_at, &mut stages).await {
            Filled::Bytes(length) => {
                let mut rest = &buffer.bytes[..length];
                clients.tell(stream, rest);
                while !rest.is_empty() {
                    let used = log.lock().await.take(stream, rest, wall_clock());
                    rest = &rest[used..];
                    settle(&log, &mut stages).await;
                }
                buffer.adapt(length);
                // Requests have their turn between two batches of a flood.
                tokio::task::yield_now().await;
            }
            Filled::Woken => {}
            Filled::Idle => {
                if buffer.release() {
                    log.lock().await.shrink();
                    sys::trim_memory();
                }
            }
            Filled::End => break,
        }
    }
    log.lock().await.end(stream, wall_clock());
    settle(&log, &mut stages).await;
}

/// Copies a pipe or a terminal to attached clients alone; without one it is thrown away.
pub(super) async fn to_clients(source: Source, clients: Arc<Clients>, stream: Stream, mut stages: Stages) {
    let mut buffer = Buffer::default();
    loop {
        match buffer.fill(&source, None, &mut stages).await {
            Filled::Bytes(length) => {
                clients.tell(stream, &buffer.bytes[..length]);
                buffer.adapt(length);
                tokio::task::yield_now().await;
            }
            Filled::Woken => {}
            Filled::Idle => {
                if buffer.release() {
                    sys::trim_memory();
                }
            }
            Filled::End => return,
        }
    }
}

/// Waits until the log can take more, or gives it up when the pump has to stop.
async fn settle(log: &SharedLog, stages: &mut Stages) {
    loop {
        let Readiness::NotBefore(next) = log.settle().await else {
            return;
        };
        tokio::select! {
            () = sleep_until(next.into()) => {}
            () = reached(stages, Stage::Stop) => return log.give_up().await,
        }
    }
}

/// Copies a terminal or a FIFO to a FIFO or a terminal until the end of either.
pub(super) async fn copy(from: Source, to: Source, mut stages: Stages) {
    let mut buffer = Buffer::default();
    loop {
        match buffer.fill(&from, None, &mut stages).await {
            Filled::Bytes(length) => {
                let mut rest = &buffer.bytes[..length];
                while !rest.is_empty() {
                    let written = tokio::select! {
                        biased;
                        written = to.async_io(tokio::io::Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, rest)?)) => written,
                        () = reached(&mut stages, Stage::Stop) => return,
                    };
                    match written {
                        Ok(length) => rest = &rest[length..],
                        Err(_) => return,
                    }
                }
                buffer.adapt(length);
            }
            Filled::Woken => {}
            Filled::Idle => {
                buffer.release();
            }
            Filled::End => return,
        }
    }
}

enum Filled {
    Bytes(usize),
    Woken,
    Idle,
    End,
}

#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
}

impl Buffer {
    /// Reads what there is, waiting for it if need be.
    async fn fill(&mut self, source: &AsyncFd<OwnedFd>, wakes_at: Option<Instant>, stages: &mut Stages) -> Filled {
        loop {
            let mut guard = None;
            if stage(stages) < Stage::Stop {
                tokio::select! {
                    biased;
                    ready = source.readable() => match ready {
                        Ok(ready) => guard = Some(ready),
                        Err(error) => {
                            say!("wait for output: {error}");
                            return Filled::End;
                        }
                    },
                    () = reached(stages, Stage::Stop) => {}
                    () = until(wakes_at) => return Filled::Woken,
                    () = sleep(IDLE), if !self.bytes.is_empty() => return Filled::Idle,
                }
            }
            if self.bytes.is_empty() {
                self.bytes = vec![0; READ_MIN];
            }
            match rustix::io::read(source, &mut self.bytes) {
                Ok(0) => return Filled::End,
                Ok(length) => return Filled::Bytes(length),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => match guard {
                    Some(mut ready) => ready.clear_ready(),
                    None => return Filled::End,
                },
                // A terminal that nobody has open: for ever when the process is dead.
                Err(Errno::IO) if stage(stages) >= Stage::Dead => return Filled::End,
                Err(Errno::IO) => {
                    tokio::select! {
                        () = sleep(HANGUP_PAUSE) => {}
                        () = reached(stages, Stage::Dead) => {}
                    }
                }
                Err(errno) => {
                    say!("read output: {errno}");
                    return Filled::End;
                }
            }
        }
    }

    /// Makes room for a flood, step by step, and takes it back.
    fn adapt(&mut self, length: usize) {
        let size = self.bytes.len();
        if length == size && size < READ_MAX {
            self.bytes = vec![0; (size * 4).min(READ_MAX)];
        } else if length < size / 4 && size > READ_MIN {
            self.bytes = vec![0; (size / 2).max(READ_MIN)];
        }
    }

    /// Gives the memory back; says whether it was much.
    fn release(&mut self) -> bool {
        let much = self.bytes.len() > READ_MIN;
        self.bytes = Vec::new();
        much
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Throws a terminal's output away, so that its process does not wait for ever.
pub(super) async fn discard(from: Source, mut stages: Stages) {
    let mut buffer = Buffer::default();
    while !matches!(buffer.fill(&from, None, &mut stages).await, Filled::End) {}
}
