//! One exec or attach as its relay sees it, whatever the transport: what the client types, where output goes, the word at
//! the end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::spdy::frame as spdy;
use super::status::{End, Form};
use super::websocket::channel;
use super::wire::{Gone, Wire};

/// Pieces of input that may wait for the process: 16 KiB each at most. The next one makes the connection wait.
const WAITING: usize = 4;
/// How long a client may take to close its side after ours is closed.
const LINGER: Duration = Duration::from_secs(5);

/// The streams that a request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Streams {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) tty: bool,
}

/// An exec or attach with its client.
pub(super) struct Session {
    pub(super) stdin: Option<Input>,
    pub(super) stdout: Option<Output>,
    pub(super) stderr: Option<Output>,
    pub(super) error: Output,
    pub(super) resize: Option<Input>,
    pub(super) form: Form,
    pub(super) wire: Arc<Wire>,
    pub(super) reader: Reader,
}

impl Session {
    /// Tells the client how it ended, and hangs up.
    pub(super) async fn close(self, end: &End) {
        // Nobody takes input any more: what still comes is thrown away by the reader.
        drop((self.stdin, self.resize));
        let last = async {
            for output in [self.stdout, self.stderr].into_iter().flatten() {
                output.end().await;
            }
            let told = end.told(self.form);
            if !told.is_empty() {
                let _ = self.error.write(&told).await;
            }
            self.error.end().await;
        };
        let _ = self.wire.while_moving(last).await;
        hang_up(&self.wire, self.reader).await;
    }
}

/// Ends our side, and gives the client time to read all and end its own: a connection that is closed with bytes unread
/// takes what the client has not read yet along.
pub(super) async fn hang_up(wire: &Wire, mut reader: Reader) {
    let _ = wire.while_moving(wire.shut()).await;
    let _ = tokio::time::timeout(LINGER, &mut reader.task).await;
}

/// The task that reads a connection; it ends with this.
pub(super) struct Reader {
    pub(super) task: JoinHandle<()>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whether the client wants nothing of a stream any more, either way; clones share.
#[derive(Clone, Default)]
pub(super) struct Reset(Arc<watch::Sender<bool>>);

impl Reset {
    pub(super) fn set(&self) {
        self.0.send_replace(true);
    }

    fn is_set(&self) -> bool {
        *self.0.borrow()
    }

    /// Resolves once it is set.
    pub(super) async fn happened(&self) {
        // The sender is in `self`, so that there is no error.
        let _ = self.0.subscribe().wait_for(|set| *set).await;
    }

    /// Somebody else would be told.
    pub(super) fn matters(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// What the client sends on one stream.
pub(super) struct Input {
    pieces: mpsc::Receiver<Bytes>,
}

/// The reader's end of an input.
pub(super) struct Inlet {
    pieces: mpsc::Sender<Bytes>,
}

pub(super) fn input() -> (Inlet, Input) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Inlet { pieces: sender }, Input { pieces: receiver })
}

impl Input {
    /// The next piece; `None` at the end, of whatever kind.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        self.pieces.recv().await
    }
}

impl Inlet {
    /// Gives a piece to whoever has the input, waiting until there is room. It is dropped when nobody has.
    pub(super) async fn put(&self, piece: Bytes, wire: &Wire) -> Result<(), Gone> {
        use mpsc::error::TrySendError::{Closed, Full};
        match self.pieces.try_send(piece) {
            Ok(()) | Err(Closed(_)) => Ok(()),
            Err(Full(piece)) => wire.unless_gone(self.pieces.send(piece)).await.map(drop),
        }
    }

    pub(super) fn is_unwanted(&self) -> bool {
        self.pieces.is_closed()
    }
}

/// How a stream's bytes are framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Spdy { stream: u32 },
    Channel { channel: u8, base64: bool },
}

/// One stream to the client.
pub(super) struct Output {
    pub(super) wire: Arc<Wire>,
    pub(super) framing: Framing,
    pub(super) reset: Reset,
}

impl Output {
    /// Writes all of it, as slowly as the client reads, for as long as it wants it.
    pub(super) async fn write(&self, bytes: &[u8]) -> Result<(), Gone> {
        tokio::select! {
            biased;
            () = self.reset.happened() => Err(Gone),
            sent = self.send(bytes) => sent,
        }
    }

    async fn send(&self, bytes: &[u8]) -> Result<(), Gone> {
        match self.framing {
            Framing::Spdy { stream } => {
                for part in bytes.chunks(spdy::DATA_MAX) {
                    self.wire.send(&spdy::data(stream, part.len(), false), part).await?;
                }
                Ok(())
            }
            Framing::Channel { channel, base64 } => {
                let (head, text) = channel::message(channel, bytes, base64);
                self.wire.send(&head, text.as_ref().map_or(bytes, |text| text.as_bytes())).await
            }
        }
    }

    /// Says that nothing follows on this stream; a channel has no such word.
    pub(super) async fn end(self) {
        if let Framing::Spdy { stream } = self.framing
            && !self.reset.is_set()
        {
            let _ = self.wire.send(&spdy::data(stream, 0, true), &[]).await;
        }
    }
}
