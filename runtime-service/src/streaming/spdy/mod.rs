//! SPDY/3.1 on a connection: streams that the client opens, for exec, attach and port-forward.
//!
//! Windows: moby/spdystream, which kubectl, crictl and the kubelet use, neither keeps within them nor opens them, so that
//! ours are opened as bytes are passed on, theirs are not looked at, and what bounds memory is that a connection is not
//! read while one of its streams has too much waiting.

pub(super) mod frame;
pub(super) mod headers;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use self::frame::{Broken, Decoder, Event};
use self::headers::Headers;
use super::session::{Framing, Inlet, Input, Output, Reader, Reset, Session, Streams, input};
use super::status::Form;
use super::wire::{Gone, Source, Wire};

/// A stream's bytes after which its window is opened again; half of the window that the draft begins with.
const WINDOW: u32 = 32 << 10;
/// Streams that may be refused before the connection is.
const REFUSALS: u32 = 1000;
/// Streams of one exec or attach: error, stdin, stdout, stderr, resize.
const SESSION_STREAMS: usize = 5;

/// A stream that the client has opened.
pub(super) struct Stream {
    pub(super) id: u32,
    pub(super) headers: Headers,
    pub(super) input: Input,
    pub(super) output: Output,
    /// Counted among the connection's streams while it is here.
    pub(super) place: Place,
}

/// One of a connection's places for streams.
pub(super) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that takes streams.
pub(super) struct Connection {
    pub(super) streams: mpsc::Receiver<Stream>,
    pub(super) wire: Arc<Wire>,
    pub(super) reader: Reader,
}

/// Why a connection ended otherwise than by its client's leave.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Broken(#[from] Broken),
    #[error("stream {0} comes out of turn")]
    Order(u32),
    #[error("data for stream {0}, which was never opened")]
    NoStream(u32),
    #[error("{REFUSALS} streams were refused")]
    Flood,
    #[error("the client went away while its input waited")]
    Gone,
}

impl From<Gone> for Ended {
    fn from(Gone: Gone) -> Self {
        Self::Gone
    }
}

/// Takes at most `most` streams at a time, or in all when they are a session's.
pub(super) fn accept(wire: Wire, source: Source, most: usize, in_all: bool) -> Connection {
    let wire = Arc::new(wire);
    let (opened, streams) = mpsc::channel(SESSION_STREAMS);
    let mut connection = Taking {
        decoder: Decoder::new(),
        wire: wire.clone(),
        opened,
        inlets: HashMap::new(),
        resets: HashMap::new(),
        open: Arc::new(AtomicUsize::new(0)),
        most,
        in_all,
        last: 0,
        refused: 0,
    };
    let task = tokio::spawn(async move {
        let mut source = source;
        match connection.take_all(&mut source).await {
            Ok(()) => {}
            Err(error @ (Ended::Io(_) | Ended::Gone)) => tracing::debug!(%error, "a streaming connection ended"),
            Err(error) => {
                tracing::warn!(%error, "a streaming client broke the protocol");
                source.part(&connection.wire, &frame::go_away(connection.last)).await;
            }
        }
        connection.wire.set_gone();
    });
    Connection { streams, wire, reader: Reader { task } }
}

/// The reading side of a connection.
struct Taking {
    decoder: Decoder,
    wire: Arc<Wire>,
    opened: mpsc::Sender<Stream>,
    /// Streams whose client has not ended its side.
    inlets: HashMap<u32, (Inlet, u32)>,
    /// Streams that we may still write to, also after the client has ended its side.
    resets: HashMap<u32, Reset>,
    open: Arc<AtomicUsize>,
    most: usize,
    in_all: bool,
    /// The last stream that was opened.
    last: u32,
    refused: u32,
}

impl Taking {
    async fn take_all(&mut self, source: &mut Source) -> Result<(), Ended> {
        loop {
            while let Some(event) = self.decoder.next(&mut source.bytes)? {
                match event {
                    Event::Open { stream, headers, fin } => self.open(stream, headers, fin).await?,
                    Event::Data { stream, bytes, fin } => {
                        if stream > self.last {
                            return Err(Ended::NoStream(stream));
                        }
                        self.data(stream, bytes, fin).await?;
                    }
                    Event::More { stream, fin: true } => drop(self.inlets.remove(&stream)),
                    Event::Reset { stream } => {
                        // Before the end of its input is seen, which would be an end as it should be.
                        if let Some(reset) = self.resets.remove(&stream) {
                            reset.set();
                        }
                        self.inlets.remove(&stream);
                    }
                    // Odd ids are the client's; an even one would answer a ping of ours.
                    Event::Ping { id } if !id.is_multiple_of(2) => self.wire.answer(&frame::ping(id)).await?,
                    Event::More { .. } | Event::Ping { .. } | Event::GoAway | Event::Nothing => {}
                }
            }
            let goes_on = tokio::select! {
                more = source.more(&self.wire) => more?,
                // All that belong to the session are there.
                () = self.opened.closed(), if self.in_all => {
                    self.in_all = false;
                    self.decoder.no_more_streams();
                    true
                }
            };
            if !goes_on {
                return Ok(());
            }
        }
    }

    async fn open(&mut self, id: u32, headers: Headers, fin: bool) -> Result<(), Ended> {
        if id.is_multiple_of(2) || id <= self.last {
            return Err(Ended::Order(id));
        }
        let first = self.last == 0;
        self.last = id;
        // A stream that we are done with may not be ended by its client for a long time.
        self.inlets.retain(|_, (inlet, _)| !inlet.is_unwanted());
        self.resets.retain(|_, reset| reset.matters());
        if self.open.load(Ordering::Relaxed) >= self.most || self.inlets.len() >= self.most {
            self.refused += 1;
            if self.refused > REFUSALS {
                return Err(Ended::Flood);
            }
            return Ok(self.wire.answer(&frame::refuse(id)).await?);
        }
        self.open.fetch_add(1, Ordering::Relaxed);
        let place = Place(self.open.clone());
        let (inlet, input) = input();
        let reset = Reset::default();
        self.resets.insert(id, reset.clone());
        if !fin {
            self.inlets.insert(id, (inlet, 0));
        }
        self.wire.answer(&frame::reply(id, first)).await?;
        let output = Output { wire: self.wire.clone(), framing: Framing::Spdy { stream: id }, reset };
        let stream = Stream { id, headers, input, output, place };
        // Whoever takes streams is quick, or is gone.
        let _ = self.wire.unless_gone(self.opened.send(stream)).await?;
        Ok(())
    }

    async fn data(&mut self, id: u32, bytes: bytes::Bytes, fin: bool) -> Result<(), Ended> {
        // One that has ended or was refused: what was on its way is dropped.
        let Some((inlet, passed)) = self.inlets.get_mut(&id) else { return Ok(()) };
        *passed += bytes.len() as u32;
        if !bytes.is_empty() {
            inlet.put(bytes, &self.wire).await?;
        }
        if fin {
            self.inlets.remove(&id);
        } else if *passed >= WINDOW {
            let update = frame::window_update(id, std::mem::take(passed));
            self.wire.answer(&update).await?;
        }
        Ok(())
    }
}

/// Why the streams of an exec or attach did not come together.
#[derive(Debug, thiserror::Error)]
pub(super) enum Incomplete {
    #[error("the client went away before it opened its streams")]
    Gone,
    #[error("the client did not open these streams in time: {0}")]
    Late(String),
    #[error("the client opened {0:?} twice")]
    Twice(String),
}

/// Waits for the streams that were asked for, each named by a header, and makes a session of them.
pub(super) async fn session(
    (wire, source): (Wire, Source),
    asked: Streams,
    version: u8,
    within: Duration,
) -> Result<Session, Incomplete> {
    let Connection { mut streams, wire, reader } = accept(wire, source, SESSION_STREAMS, true);
    let wanted = [
        ("error", true),
        ("stdin", asked.stdin),
        ("stdout", asked.stdout),
        ("stderr", asked.stderr && !asked.tty),
        ("resize", asked.tty && version >= 3),
    ];
    let mut missing: Vec<&str> = wanted.iter().filter(|(_, wanted)| *wanted).map(|(name, _)| *name).collect();
    let mut found = HashMap::new();
    let all = async {
        while !missing.is_empty() {
            let stream = streams.recv().await.ok_or(Incomplete::Gone)?;
            let name = stream.headers.get("streamtype").cloned().unwrap_or_default();
            match missing.iter().position(|wanted| *wanted == name) {
                Some(index) => {
                    missing.swap_remove(index);
                    found.insert(name, stream);
                }
                None if found.contains_key(&name) => return Err(Incomplete::Twice(name)),
                // One that was not asked for is nobody's.
                None => {
                    let refusal = frame::refuse(stream.id);
                    wire.send(&refusal, &[]).await.map_err(|Gone| Incomplete::Gone)?;
                }
            }
        }
        Ok(())
    };
    let outcome = tokio::select! {
        outcome = tokio::time::timeout(within, all) => outcome,
        () = wire.gone() => Ok(Err(Incomplete::Gone)),
    };
    match outcome {
        Ok(outcome) => outcome?,
        Err(_) => return Err(Incomplete::Late(missing.join(", "))),
    }
    let mut take = |name: &str| found.remove(name).map(|stream| (stream.input, stream.output));
    let error = take("error").ok_or(Incomplete::Gone)?.1;
    Ok(Session {
        stdin: take("stdin").map(|s| s.0),
        stdout: take("stdout").map(|s| s.1),
        stderr: take("stderr").map(|s| s.1),
        resize: take("resize").map(|s| s.0),
        error,
        form: if version >= 4 { Form::Status } else { Form::Text },
        wire,
        reader,
    })
}
