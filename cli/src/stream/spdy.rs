//! SPDY/3.1 as a client: opens streams, writes them, hands on what comes. Only what Kubernetes' protocols need of it.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Mutex, mpsc};

/// Pieces that may wait for whoever reads a stream.
const WAITING: usize = 16;
/// Bytes of a piece.
const PIECE: usize = 16 << 10;
/// Bytes of a control frame behind its first eight; those of the protocols here have some hundred.
const CONTROL_MAX: usize = 16 << 10;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
/// Why a stream is reset: it is not needed any more.
const CANCEL: u32 = 5;

/// A connection, with or without TLS.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

pub(super) enum Event {
    Accepted,
    Bytes(Vec<u8>),
}

/// The way to the other side; shared by all that write.
type Out = Arc<Mutex<Writer>>;
pub(super) type Listeners = Arc<Mutex<HashMap<u32, mpsc::Sender<Event>>>>;

/// A connection on which streams can be opened.
pub(crate) struct Connection {
    out: Out,
    listeners: Listeners,
    last: Mutex<u32>,
    closed: tokio::sync::watch::Receiver<bool>,
    reader: tokio::task::JoinHandle<()>,
}

/// A stream's two ways.
pub(crate) struct Stream {
    pub(crate) output: Output,
    pub(crate) input: Input,
}

/// To the other side.
pub(crate) struct Output {
    out: Out,
    stream: u32,
}

/// From the other side.
pub(crate) struct Input {
    events: mpsc::Receiver<Event>,
}

impl Connection {
    pub(crate) fn new(stream: Box<dyn Duplex>) -> Self {
        let (read, write) = tokio::io::split(stream);
        let (out, listeners) = (Arc::new(Mutex::new(Writer::new(write))), Listeners::default());
        let (tell, closed) = tokio::sync::watch::channel(false);
        let (answers, all) = (out.clone(), listeners.clone());
        let reader = tokio::spawn(async move {
            let mut read = read;
            // Whatever ended it, it is the end.
            let _ = read_frames(&mut read, &answers, &all).await;
            // Everybody who listens hears it.
            all.lock().await.clear();
            tell.send_replace(true);
        });
        Self { out, listeners, last: Mutex::new(0), closed, reader }
    }

    /// Opens a stream and waits until the other side has taken it.
    pub(crate) async fn open(&self, headers: &[(&str, &str)]) -> io::Result<Stream> {
        let mut last = self.last.lock().await;
        let id = if *last == 0 { 1 } else { *last + 2 };
        let (sender, events) = mpsc::channel(WAITING);
        self.listeners.lock().await.insert(id, sender);
        let mut body = id.to_be_bytes().to_vec();
        body.extend([0; 6]);
        body.extend(header_block(headers, *last == 0));
        send(&self.out, &[&control(SYN_STREAM, body.len())[..], &body].concat()).await?;
        *last = id;
        drop(last);
        let mut input = Input { events };
        match input.events.recv().await {
            Some(Event::Accepted) => Ok(Stream { output: Output { out: self.out.clone(), stream: id }, input }),
            _ => Err(io::Error::new(io::ErrorKind::ConnectionRefused, "the runtime refused a stream")),
        }
    }

    /// Resolves when the other side has hung up.
    pub(crate) async fn closed(&self) {
        // An error says that the reader is gone, too.
        let _ = self.closed.clone().wait_for(|closed| *closed).await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Output {
    pub(crate) async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(PIECE) {
            send(&self.out, &[&data(self.stream, piece.len(), false)[..], piece].concat()).await?;
        }
        Ok(())
    }

    /// Says that nothing follows.
    pub(crate) async fn end(&self) -> io::Result<()> {
        send(&self.out, &data(self.stream, 0, true)).await
    }

    /// Says that nothing of the stream is wanted any more, either way.
    pub(crate) async fn reset(&self) -> io::Result<()> {
        let (stream, why) = (self.stream.to_be_bytes(), CANCEL.to_be_bytes());
        send(&self.out, &[&control(RST_STREAM, 8)[..], &stream[..], &why[..]].concat()).await
    }
}

impl Input {
    /// The next piece; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            match self.events.recv().await? {
                Event::Bytes(bytes) => return Some(bytes),
                Event::Accepted => {}
            }
        }
    }
}

pub(super) async fn read_frames(
    from: &mut ReadHalf<Box<dyn Duplex>>,
    out: &Mutex<Writer>,
    listeners: &Listeners,
) -> io::Result<()> {
    loop {
        let (first, second) = (from.read_u32().await?, from.read_u32().await?);
        let (fin, mut length) = (second >> 24 & 1 != 0, (second & 0x00ff_ffff) as usize);
        if first >> 31 == 0 {
            let listener = listeners.lock().await.get(&first).cloned();
            while length > 0 {
                let mut piece = vec![0; length.min(PIECE)];
                from.read_exact(&mut piece).await?;
                length -= piece.len();
                if let Some(listener) = &listener {
                    // Nobody listens any more: dropped.
                    let _ = listener.send(Event::Bytes(piece)).await;
                }
            }
            if fin {
                listeners.lock().await.remove(&first);
            }
            continue;
        }
        let wrong = |what: String| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        if length > CONTROL_MAX {
            return wrong(format!("a control frame of {length} bytes"));
        }
        let mut body = vec![0; length];
        from.read_exact(&mut body).await?;
        let (kind, word) = ((first & 0xffff) as u16, body.first_chunk::<4>().map(|word| u32::from_be_bytes(*word)));
        match (kind, word) {
            (SYN_REPLY, Some(stream)) => {
                let listener = listeners.lock().await.get(&stream).cloned();
                if let Some(listener) = listener {
                    let _ = listener.send(Event::Accepted).await;
                }
            }
            (RST_STREAM, Some(stream)) => drop(listeners.lock().await.remove(&stream)),
            // Odd numbers would be answers to ours, and we send none.
            (PING, Some(id)) if id % 2 == 0 => {
                send(out, &[&control(PING, 4)[..], &id.to_be_bytes()].concat()).await?;
            }
            (SYN_REPLY | RST_STREAM | PING, None) => {
                return wrong(format!("a control frame of kind {kind} with {length} bytes"));
            }
            _ => {}
        }
    }
}

pub(super) struct Writer {
    io: WriteHalf<Box<dyn Duplex>>,
    /// What is left of the last frame, whose sender may have been dropped meanwhile: it goes before all else.
    rest: Vec<u8>,
}

async fn send(out: &Mutex<Writer>, frame: &[u8]) -> io::Result<()> {
    let mut out = out.lock().await;
    out.settle().await?;
    out.rest = frame.to_vec();
    out.settle().await
}

impl Writer {
    pub(super) fn new(io: WriteHalf<Box<dyn Duplex>>) -> Self {
        Self { io, rest: Vec::new() }
    }

    async fn settle(&mut self) -> io::Result<()> {
        while !self.rest.is_empty() {
            match self.io.write(&self.rest).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                sent => drop(self.rest.drain(..sent)),
            }
        }
        self.io.flush().await
    }
}

fn data(stream: u32, length: usize, fin: bool) -> [u8; 8] {
    head(stream, fin, length)
}

fn control(kind: u16, length: usize) -> [u8; 8] {
    head(0x8003_0000 | u32::from(kind), false, length)
}

fn head(first: u32, fin: bool, length: usize) -> [u8; 8] {
    let second = u32::from(fin) << 24 | (length as u32 & 0x00ff_ffff);
    let (a, b) = (first.to_be_bytes(), second.to_be_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]
}

/// Names and values as SPDY wants them: one zlib stream for all blocks, here of stored pieces.
fn header_block(headers: &[(&str, &str)], first: bool) -> Vec<u8> {
    // zlib's header with the flag for a dictionary, and the Adler-32 of SPDY/3's. Source: RFC 1950, 2.2.
    const BEGIN: [u8; 6] = [0x78, 0x20, 0xe3, 0xc6, 0xa7, 0xc2];
    // An empty piece, by which the reader knows that nothing is held back.
    const FLUSH: [u8; 5] = [0, 0, 0, 0xff, 0xff];
    let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        plain.extend((text.len() as u32).to_be_bytes());
        plain.extend(text.as_bytes());
    }
    let length = plain.len() as u16;
    let mut block = if first { BEGIN.to_vec() } else { Vec::new() };
    block.push(0);
    block.extend(length.to_le_bytes());
    block.extend((!length).to_le_bytes());
    block.extend(plain);
    block.extend(FLUSH);
    block
}
