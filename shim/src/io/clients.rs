//! Clients that are attached to the container: each gets a copy of its output, and types.
//!
//! The container and its log never wait for a client. What a client has not read yet waits in its FIFO, which is as large
//! as the daemon made it; one whose FIFO is full is cut off.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::log::Stream;
use super::pump::Source;
use super::target::{self, Target};
use super::{Error, Names, fifo, making, opening, watched};

/// Clients at a time.
const CLIENTS: usize = 64;
/// How long what a client typed before it left may take to be read.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Why an attachment has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    ContainerEnded,
    ClientGone,
    FellBehind,
}

/// Everybody who is attached to one process.
#[derive(Debug)]
pub(crate) struct Clients {
    attached: Mutex<Vec<Client>>,
    /// How many there have been.
    count: AtomicU64,
    /// For a container that reads what is typed.
    feed: Option<Arc<Feed>>,
}

/// One that listens.
#[derive(Debug)]
struct Client {
    number: u64,
    /// By stream.
    copies: [Option<OwnedFd>; 2],
    end: oneshot::Sender<End>,
}

impl Clients {
    pub(super) fn new(feed: Option<Feed>) -> Clients {
        Clients { attached: Mutex::default(), count: AtomicU64::new(0), feed: feed.map(Arc::new) }
    }

    fn attached(&self) -> MutexGuard<'_, Vec<Client>> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives everybody a copy, at once or never.
    pub(super) fn tell(&self, stream: Stream, bytes: &[u8]) {
        let mut attached = self.attached();
        let mut index = 0;
        while let Some(client) = attached.get(index) {
            match client.copies[stream.index()].as_ref().map_or(Ok(()), |fifo| write_all(fifo, bytes)) {
                Ok(()) => index += 1,
                Err(end) => {
                    let client = attached.swap_remove(index);
                    // Nobody waits for it any more.
                    let _ = client.end.send(end);
                }
            }
        }
    }

    /// The process is dead: nothing is read any more.
    pub(super) fn stop_typing(&self) {
        if let Some(feed) = &self.feed {
            feed.close();
        }
    }

    /// All has been said.
    pub(super) fn end(&self) {
        for client in self.attached().drain(..) {
            let _ = client.end.send(End::ContainerEnded);
        }
    }
}

/// Either all, or its client's end.
fn write_all(fifo: &OwnedFd, mut bytes: &[u8]) -> Result<(), End> {
    while !bytes.is_empty() {
        match rustix::io::write(fifo, bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Err(End::FellBehind),
            Err(_) => return Err(End::ClientGone),
        }
    }
    Ok(())
}

/// Where clients type: the process's input, a pipe or a terminal.
#[derive(Debug)]
pub(super) struct Feed {
    /// Until the process's input has ended.
    sink: Mutex<Option<Source>>,
    /// It ends with the first client that types.
    once: bool,
}

impl Feed {
    pub(super) fn new(sink: Source, once: bool) -> Feed {
        Feed { sink: Mutex::new(Some(sink)), once }
    }

    fn sink(&self) -> Option<Source> {
        self.sink.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn close(&self) {
        self.sink.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Brings what one client types to the process, until the client's end; a while longer when it `left`.
    async fn bring(&self, typed: Source, mut left: watch::Receiver<bool>) {
        let bring = async {
            let mut piece = vec![0; 4096];
            while let Some(length) = read(&typed, &mut piece).await {
                let Some(sink) = self.sink() else { return };
                let mut rest = &piece[..length];
                while !rest.is_empty() {
                    let written = sink.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, rest)?)).await;
                    match written {
                        Ok(length) => rest = &rest[length..],
                        Err(_) => return,
                    }
                }
            }
        };
        tokio::pin!(bring);
        tokio::select! {
            () = &mut bring => {}
            // An error says that the client left, too.
            () = async { left.wait_for(|left| *left).await.map_or((), |_| ()) } => {
                let _ = timeout(LAST_WORDS, bring).await;
            }
        }
        if self.once {
            self.close();
        }
    }
}

async fn read(from: &Source, into: &mut [u8]) -> Option<usize> {
    let length = from.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut *into)?)).await;
    length.ok().filter(|length| *length > 0)
}

/// A client that is attached for as long as this is there.
#[derive(Debug)]
pub(crate) struct Attached {
    clients: Arc<Clients>,
    number: u64,
    end: Option<oneshot::Receiver<End>>,
    tie: Option<OwnedFd>,
    _left: watch::Sender<bool>,
}

impl Attached {
    /// Waits for its end.
    pub(crate) async fn ended(mut self) -> End {
        let (Some(end), Some(tie)) = (self.end.take(), self.tie.take()) else { return End::ClientGone };
        tokio::select! {
            biased;
            end = end => end.unwrap_or(End::ContainerEnded),
            () = fifo::readers_gone(vec![tie]) => End::ClientGone,
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.clients.attached().retain(|client| client.number != self.number);
    }
}

/// Opens a client's FIFOs and lets it in.
pub(super) fn attach(clients: &Arc<Clients>, names: &Names<'_>) -> Result<Attached, Error> {
    let (out, tie) = match path("stdout", names.stdout)? {
        Some(path) => fifo::for_copies(&path).map_err(opening("stdout", &path))?,
        None => return Err(Error::Target { stream: "stdout", reason: "is empty".into() }),
    };
    let err = match path("stderr", names.stderr)? {
        Some(path) => Some(fifo::for_copies(&path).map_err(opening("stderr", &path))?.0),
        None => None,
    };
    let typed = match (path("stdin", names.stdin)?, &clients.feed) {
        (None, _) => None,
        (Some(path), Some(feed)) => {
            let typed = fifo::for_typing(&path).map_err(opening("stdin", &path))?;
            Some((watched(typed)?, feed.clone()))
        }
        (Some(_), None) => {
            let reason = "the container was created without stdin".into();
            return Err(Error::Target { stream: "stdin", reason });
        }
    };
    let mut attached = clients.attached();
    if attached.len() >= CLIENTS {
        return Err(making("room for another attached client")(Errno::USERS));
    }
    let number = clients.count.fetch_add(1, Ordering::Relaxed);
    let (end, ended) = oneshot::channel();
    attached.push(Client { number, copies: [Some(out), err], end });
    let left = watch::Sender::new(false);
    if let Some((typed, feed)) = typed {
        let leaves = left.subscribe();
        // It ends by itself: with its client or with its process.
        tokio::spawn(async move { feed.bring(typed, leaves).await });
    }
    drop(attached);
    Ok(Attached { clients: clients.clone(), number, end: Some(ended), tie: Some(tie), _left: left })
}

fn path(stream: &'static str, text: &str) -> Result<Option<PathBuf>, Error> {
    match target::parse(text).map_err(|reason| Error::Target { stream, reason })? {
        Target::Nothing => Ok(None),
        Target::Fifo { path, tied: false } => Ok(Some(Path::new(&path).to_owned())),
        _ => Err(Error::Target { stream, reason: format!("{text:?} is no FIFO") }),
    }
}
