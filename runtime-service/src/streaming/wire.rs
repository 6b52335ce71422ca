//! A client's connection after the upgrade: frames written whole by whoever has one, bytes read by one task.
//! Nothing is queued on the way out: who writes waits for the client, and so does the process behind it. One who gives up
//! half-way leaves the rest of his frame to the next.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, watch};

use super::spdy::frame as spdy;
use super::websocket::frame as websocket;

/// Bytes asked for in one read: few from a client that says little, more from one that fills them.
const READ: (usize, usize) = (2 << 10, 16 << 10);

/// How long what a client sends is thrown away once it has broken the rules.
const PARTING: Duration = Duration::from_secs(1);

/// How long such a client may take to let itself be told why.
const LAST_WORD: Duration = Duration::from_secs(5);

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
    moved: Moved,
    gone: watch::Sender<bool>,
    /// The same connection by another descriptor, to see its end while nothing is read from it.
    twin: Option<std::net::TcpStream>,
}

/// When a byte was last moved.
struct Moved {
    begun: Instant,
    /// In milliseconds since `begun`.
    last: AtomicU64,
    /// How long nothing may move; `None`: for ever.
    idle: Option<Duration>,
}

struct Out {
    io: WriteHalf<Box<dyn Duplex>>,
    /// What is left of the frame that was begun last, by somebody who may have given it up since. It goes before all else:
    /// whatever followed its beginning would be read as its rest.
    rest: Bytes,
    /// Nothing of it waits in `io`.
    flushed: bool,
    /// Nothing may follow.
    over: bool,
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

/// Both ways of a connection, which is given up when nothing moves for `idle`; `None` lets it stand.
pub(super) fn open(
    io: Box<dyn Duplex>,
    twin: Option<std::net::TcpStream>,
    carrier: Carrier,
    idle: Option<Duration>,
) -> (Wire, Source) {
    let (read, write) = tokio::io::split(io);
    let wire = Wire {
        out: Mutex::new(Out { io: write, rest: Bytes::new(), flushed: true, over: false, carrier }),
        moved: Moved { begun: Instant::now(), last: AtomicU64::new(0), idle },
        gone: watch::Sender::new(false),
        twin,
    };
    let tunnel = (carrier == Carrier::Tunnel).then(Default::default);
    (wire, Source { io: read, tunnel, bytes: BytesMut::new(), size: READ.0 })
}

impl Wire {
    /// Writes a frame. Given up half-way, the rest of it goes before the next one.
    pub(super) async fn send(&self, head: &[u8], payload: &[u8]) -> Result<(), Gone> {
        let mut out = self.out.lock().await;
        let frame = out.carried(head, payload);
        self.put(&mut out, frame, Some(&self.moved)).await
    }

    /// The same for the task that reads, which waits for others' frames no longer than the connection may stand still.
    pub(super) async fn answer(&self, head: &[u8]) -> Result<(), Gone> {
        self.while_moving(self.send(head, &[])).await?
    }

    /// The answer to a ping of WebSocket, whatever it carries.
    async fn pong(&self, ping: &[u8]) -> Result<(), Gone> {
        let answer = async {
            let mut out = self.out.lock().await;
            self.put(&mut out, websocket::pong(ping), Some(&self.moved)).await
        };
        self.while_moving(answer).await?
    }

    /// Says that nothing will follow.
    pub(super) async fn shut(&self) {
        let mut out = self.out.lock().await;
        let last = match out.carrier {
            Carrier::Plain => Vec::new(),
            Carrier::WebSocket | Carrier::Tunnel => websocket::close(websocket::NORMAL),
        };
        let _ = self.put(&mut out, last, Some(&self.moved)).await;
        out.over = true;
        let _ = out.io.shutdown().await;
    }

    /// The same without the word that a carrier has for it.
    async fn shut_rudely(&self) {
        let mut out = self.out.lock().await;
        let _ = self.put(&mut out, Vec::new(), Some(&self.moved)).await;
        out.over = true;
        let _ = out.io.shutdown().await;
    }

    pub(super) fn set_gone(&self) {
        self.gone.send_replace(true);
    }

    /// Resolves when the client is gone, or as good as gone: nothing has moved for too long.
    pub(super) async fn gone(&self) {
        let seen = async {
            // The sender is in `self`, so that there is no error.
            let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
        };
        tokio::select! {
            () = seen => {}
            () = self.moved.idled() => {}
        }
    }

    /// Waits for `deed` while something moves.
    pub(super) async fn while_moving<T>(&self, deed: impl Future<Output = T>) -> Result<T, Gone> {
        tokio::select! {
            biased;
            value = deed => Ok(value),
            () = self.moved.idled() => Err(Gone),
        }
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

    /// Waits for `deed` while there is a client that it can matter to. For a reader that does not read meanwhile.
    pub(super) async fn unless_gone<T>(&self, deed: impl Future<Output = T>) -> Result<T, Gone> {
        let beating = async {
            loop {
                tokio::time::sleep(BEAT).await;
                if self.beat().await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            value = deed => Ok(value),
            () = self.closed() => Err(Gone),
            () = self.moved.idled() => Err(Gone),
            () = beating => Err(Gone),
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
            Carrier::Plain | Carrier::Tunnel => out.carried(&spdy::no_settings(), &[]),
        };
        // It is no sign of the client's life that its kernel takes this.
        self.put(&mut out, nothing, None).await
    }

    async fn put(&self, out: &mut Out, frame: Vec<u8>, moved: Option<&Moved>) -> Result<(), Gone> {
        if out.over {
            return Err(Gone);
        }
        let put = async {
            out.settle(moved).await?;
            out.rest = frame.into();
            out.settle(moved).await
        };
        if put.await.is_err() {
            out.over = true;
            self.gone.send_replace(true);
            return Err(Gone);
        }
        Ok(())
    }
}

impl Moved {
    fn touch(&self) {
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// Resolves when nothing has moved for too long.
    async fn idled(&self) {
        loop {
            let last = self.begun + Duration::from_millis(self.last.load(Ordering::Relaxed));
            // A time that cannot be told never comes.
            let Some(limit) = self.idle.and_then(|idle| last.checked_add(idle)) else {
                return std::future::pending().await;
            };
            if limit <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(limit.into()).await;
        }
    }
}

impl Out {
    /// A frame in what frames of this connection go in.
    fn carried(&self, head: &[u8], payload: &[u8]) -> Vec<u8> {
        let length = head.len() + payload.len();
        let tunnelled = self.carrier == Carrier::Tunnel;
        let mut frame = if tunnelled { websocket::message(false, length) } else { Vec::new() };
        frame.reserve_exact(length);
        frame.extend_from_slice(head);
        frame.extend_from_slice(payload);
        frame
    }

    /// Sends what is left. Dropped at any moment it loses nothing: what is sent is gone from `rest` at once.
    async fn settle(&mut self, moved: Option<&Moved>) -> io::Result<()> {
        while !self.rest.is_empty() {
            self.flushed = false;
            match self.io.write(&self.rest).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                sent => self.rest.advance(sent),
            }
            if let Some(moved) = moved {
                moved.touch();
            }
        }
        self.rest = Bytes::new();
        if !self.flushed {
            self.io.flush().await?;
            self.flushed = true;
        }
        Ok(())
    }
}

impl Source {
    /// Ends a connection with a last frame: reads on for a moment, since one that is closed with bytes unread takes what the
    /// client has not read yet along.
    pub(super) async fn part(&mut self, wire: &Wire, word: &[u8]) {
        let told = async {
            let _ = wire.send(word, &[]).await;
            wire.shut_rudely().await;
        };
        let _ = tokio::time::timeout(LAST_WORD, told).await;
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
                        wire.pong(&ping).await.map_err(|Gone| io::ErrorKind::NotConnected)?;
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
        () = wire.moved.idled() => return Ok(false),
    };
    *size = if length >= *size { READ.1 } else { READ.0 };
    wire.moved.touch();
    Ok(length > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A connection whose client takes this many bytes before it has to read.
    fn wire(room: usize, carrier: Carrier, idle: Option<Duration>) -> (Wire, tokio::io::DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(room);
        (open(Box::new(ours), None, carrier, idle).0, theirs)
    }

    async fn given_up<T>(deed: impl Future<Output = T>) {
        tokio::select! {
            biased;
            _ = deed => panic!("there is room for all of it"),
            () = tokio::task::yield_now() => {}
        }
    }

    #[tokio::test]
    async fn a_frame_that_is_given_up_is_sent_to_its_end_before_the_next() {
        for carrier in [Carrier::Plain, Carrier::WebSocket, Carrier::Tunnel] {
            let (wire, mut client) = wire(10, carrier, None);
            given_up(wire.send(b"head ", &[b'a'; 100])).await;
            given_up(wire.send(b"never begun ", b"")).await;
            let heard = async {
                let mut heard = Vec::new();
                client.read_to_end(&mut heard).await.expect("the end");
                heard
            };
            let said = async {
                wire.send(b"head ", b"b").await.expect("the client is there");
                wire.shut().await;
            };
            let (heard, ()) = tokio::join!(heard, said);
            let out = wire.out.lock().await;
            let close = if carrier == Carrier::Plain { vec![] } else { websocket::close(websocket::NORMAL) };
            let expected = [out.carried(b"head ", &[b'a'; 100]), out.carried(b"head ", b"b"), close].concat();
            assert_eq!(heard, expected, "{carrier:?}");
        }
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_gone_when_nothing_has_moved_for_too_long() {
        let (wire, _client) = wire(10, Carrier::Plain, Some(Duration::from_millis(50)));
        let writing = wire.send(&[0; 100], &[]);
        let gone = async {
            wire.gone().await;
            // The one who reads waits behind who writes, and no longer than this.
            wire.answer(b"pong").await.expect_err("nothing moves");
            wire.unless_gone(std::future::pending::<()>()).await.expect_err("nothing moves");
        };
        tokio::select! {
            _ = writing => panic!("there is room for all of it"),
            gone = tokio::time::timeout(PATIENCE, gone) => gone.expect("it is given up"),
        }
    }

    #[tokio::test]
    async fn a_time_that_never_comes_is_waited_for() {
        for idle in [None, Some(Duration::MAX), Some(Duration::from_secs(i64::MAX as u64))] {
            let (wire, mut client) = wire(10, Carrier::Plain, idle);
            wire.while_moving(std::future::ready(())).await.expect("it moves");
            given_up(wire.gone()).await;
            wire.answer(b"well").await.expect("it is there");
            let mut heard = [0; 4];
            client.read_exact(&mut heard).await.expect("what was said");
            assert_eq!(&heard, b"well");
        }
    }
}
