//! A client's connection after the upgrade: frames written whole by whoever has one, bytes read by one task.
//! Nothing is queued on the way out: who writes waits for the client, and so does the process behind it.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, watch};

use super::spdy::frame as spdy;
use super::websocket::frame as websocket;

/// Bytes asked for in one read: few from a client that says little, more from one that fills them.
const READ: (usize, usize) = (2 << 10, 16 << 10);

/// How long what a client sends is thrown away once it has broken the rules.
const PARTING: Duration = Duration::from_secs(1);

/// Pause between two signs of life to a client that is not read from.
const BEAT: Duration = Duration::from_secs(3);

/// A connection, with or without TLS.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The client is not there any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone;

/// The way to the client; shared by all that write.
pub(super) struct Wire {
    out: Mutex<Out>,
    begun: Instant,
    /// When a byte was last moved, in milliseconds since `begun`.
    moved: AtomicU64,
    gone: watch::Sender<bool>,
    /// The same connection by another descriptor, to see its end while nothing is read from it.
    twin: Option<std::net::TcpStream>,
    idle: Duration,
}

struct Out {
    io: WriteHalf<Box<dyn Duplex>>,
    /// A frame was begun and not ended: whatever followed would be read as its rest.
    torn: bool,
    carrier: Carrier,
}

/// What the frames of a connection go in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carrier {
    /// Nothing.
    Plain,
    /// They are WebSocket's own.
    WebSocket,
    /// Messages of WebSocket.
    Tunnel,
}

/// The way from the client.
pub(super) struct Source {
    io: ReadHalf<Box<dyn Duplex>>,
    tunnel: Option<(websocket::Decoder, BytesMut)>,
    /// What was read and not yet taken.
    pub(super) bytes: BytesMut,
    size: usize,
}

/// Both ways of a connection, which is given up when nothing moves for `idle`.
pub(super) fn open(
    io: Box<dyn Duplex>,
    twin: Option<std::net::TcpStream>,
    carrier: Carrier,
    idle: Duration,
) -> (Wire, Source) {
    let (read, write) = tokio::io::split(io);
    let wire = Wire {
        out: Mutex::new(Out { io: write, torn: false, carrier }),
        begun: Instant::now(),
        moved: AtomicU64::new(0),
        gone: watch::Sender::new(false),
        twin,
        idle,
    };
    let tunnel = (carrier == Carrier::Tunnel).then(Default::default);
    (wire, Source { io: read, tunnel, bytes: BytesMut::new(), size: READ.0 })
}

impl Wire {
    /// Writes a frame. Given up half-way, the connection is at its end.
    pub(super) async fn send(&self, head: &[u8], payload: &[u8]) -> Result<(), Gone> {
        let mut out = self.out.lock().await;
        self.write(&mut out, head, payload).await?;
        self.touch();
        Ok(())
    }

    /// Says that nothing will follow.
    pub(super) async fn shut(&self) {
        let mut out = self.out.lock().await;
        if !out.torn && out.carrier != Carrier::Plain {
            let _ = out.io.write_all(&websocket::close(websocket::NORMAL)).await;
        }
        out.torn = true;
        let _ = out.io.shutdown().await;
    }

    /// The same without the word that a carrier has for it.
    async fn shut_rudely(&self) {
        let mut out = self.out.lock().await;
        out.torn = true;
        let _ = out.io.shutdown().await;
    }

    pub(super) fn set_gone(&self) {
        self.gone.send_replace(true);
    }

    /// Resolves when the client is gone.
    pub(super) async fn gone(&self) {
        // The sender is in `self`, so that there is no error.
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
    }

    /// Resolves when the client has closed its side, though nobody reads.
    async fn closed(&self) {
        let twin = self.twin.as_ref().and_then(|twin| TcpStream::from_std(twin.try_clone().ok()?).ok());
        let Some(twin) = twin else { return std::future::pending().await };
        loop {
            match twin.ready(Interest::READABLE).await {
                Ok(ready) if !ready.is_read_closed() => {
                    // Bytes that wait are no news; the next event is.
                    let _ = twin.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
                }
                _ => return,
            }
        }
    }

    /// Resolves when nothing has moved for too long.
    async fn idled(&self) {
        loop {
            let moved = self.begun + Duration::from_millis(self.moved.load(Ordering::Relaxed)) + self.idle;
            if moved <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(moved.into()).await;
        }
    }

    /// Waits for `deed` while there is a client that it can matter to. For a reader that does not read meanwhile.
    pub(super) async fn unless_gone<T>(&self, deed: impl Future<Output = T>) -> Result<T, Gone> {
        let watched = async {
            tokio::select! {
                () = self.closed() => {}
                () = self.idled() => {}
            }
        };
        tokio::pin!(deed, watched);
        loop {
            tokio::select! {
                biased;
                value = &mut deed => return Ok(value),
                () = &mut watched => return Err(Gone),
                () = tokio::time::sleep(BEAT) => {}
            }
            // Not in the select: a frame that is begun must be ended.
            self.beat().await?;
        }
    }

    /// Says nothing. The end of a client's side comes behind all that it has sent, which is not read now; but to something
    /// that is said to it, the kernel of a client that has died answers at once.
    async fn beat(&self) -> Result<(), Gone> {
        // Somebody says something already.
        let Ok(mut out) = self.out.try_lock() else { return Ok(()) };
        let nothing = match out.carrier {
            Carrier::WebSocket => websocket::pong(&[]),
            // Not a ping: spdystream would answer, and read no stream until the answer is out.
            Carrier::Plain | Carrier::Tunnel => spdy::no_settings(),
        };
        self.write(&mut out, &nothing, &[]).await
    }

    async fn write(&self, out: &mut Out, head: &[u8], payload: &[u8]) -> Result<(), Gone> {
        if out.torn {
            return Err(Gone);
        }
        out.torn = true;
        if out.write(head, payload).await.is_err() {
            self.gone.send_replace(true);
            return Err(Gone);
        }
        out.torn = false;
        Ok(())
    }

    fn touch(&self) {
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved.store(now, Ordering::Relaxed);
    }
}

impl Out {
    async fn write(&mut self, head: &[u8], payload: &[u8]) -> io::Result<()> {
        let length = head.len() + payload.len();
        let tunnelled = self.carrier == Carrier::Tunnel;
        let mut frame = if tunnelled { websocket::message(false, length) } else { Vec::new() };
        frame.reserve_exact(length);
        frame.extend_from_slice(head);
        frame.extend_from_slice(payload);
        self.io.write_all(&frame).await?;
        self.io.flush().await
    }
}

impl Source {
    /// Ends a connection after its last frame: reads on for a moment, since one that is closed with bytes unread takes what
    /// the client has not read yet along.
    pub(super) async fn part(&mut self, wire: &Wire) {
        wire.shut_rudely().await;
        let mut piece = vec![0; READ.1];
        let all = async { while matches!(self.io.read(&mut piece).await, Ok(1..)) {} };
        let _ = tokio::time::timeout(PARTING, all).await;
    }

    /// Reads more into `bytes`; false at the end, or when nothing moves for too long.
    ///
    /// # Errors
    /// The connection's, or a client that breaks WebSocket's rules.
    pub(super) async fn more(&mut self, wire: &Wire) -> io::Result<bool> {
        let Some((decoder, raw)) = &mut self.tunnel else {
            return read(&mut self.io, &mut self.bytes, &mut self.size, wire).await;
        };
        let before = self.bytes.len();
        loop {
            while let Some(event) = decoder.next(raw).map_err(io::Error::other)? {
                match event {
                    websocket::Event::Data { bytes, .. } => self.bytes.extend_from_slice(&bytes),
                    websocket::Event::Ping(ping) => {
                        let mut out = wire.out.lock().await;
                        if !out.torn {
                            out.torn = true;
                            out.io.write_all(&websocket::pong(&ping)).await?;
                            out.io.flush().await?;
                            out.torn = false;
                        }
                    }
                    websocket::Event::Pong => {}
                    websocket::Event::Close => return Ok(false),
                }
                if self.bytes.len() > before {
                    return Ok(true);
                }
            }
            if !read(&mut self.io, raw, &mut self.size, wire).await? {
                return Ok(false);
            }
        }
    }
}

async fn read(
    io: &mut ReadHalf<Box<dyn Duplex>>,
    into: &mut BytesMut,
    size: &mut usize,
    wire: &Wire,
) -> io::Result<bool> {
    into.reserve(*size);
    let length = tokio::select! {
        length = io.read_buf(into) => length?,
        () = wire.idled() => return Ok(false),
    };
    *size = if length >= *size { READ.1 } else { READ.0 };
    wire.touch();
    Ok(length > 0)
}
