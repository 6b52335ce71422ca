//! SPDY/3.1 frames as bytes: a decoder that is fed, and functions that write. Pure; no socket is known here.
//!
//! Source: "SPDY Protocol – Draft 3.1". Data is passed on piece by piece, so no frame is ever kept whole but a control
//! frame, and that is at most [`CONTROL_MAX`] bytes.

use bytes::{Buf, Bytes, BytesMut};

use super::headers::{self, Headers, Inflater};

/// Bytes of a control frame behind its first eight; Kubernetes' clients need some hundred.
const CONTROL_MAX: usize = 16 << 10;
/// Bytes of data in one event.
const PIECE: usize = 16 << 10;
/// Bytes of data in one frame that we write; its length field has 24 bits.
pub(crate) const DATA_MAX: usize = 1 << 20;

const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// What the other side said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Open {
        stream: u32,
        headers: Headers,
        fin: bool,
    },
    Data {
        stream: u32,
        bytes: Bytes,
        fin: bool,
    },
    /// More headers of a stream, which nobody needs.
    More {
        stream: u32,
        fin: bool,
    },
    Reset {
        stream: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
    /// A frame without meaning for us: SETTINGS, WINDOW_UPDATE, SYN_REPLY.
    Nothing,
}

/// Why a connection cannot go on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    #[error("a control frame of SPDY version {0}, not 3")]
    Version(u16),
    #[error("a control frame of {0} bytes; at most {CONTROL_MAX} are taken")]
    TooLong(usize),
    #[error("a control frame of unknown type {0}")]
    Type(u16),
    #[error("a frame of type {kind} with {length} bytes")]
    Length { kind: u16, length: usize },
    #[error("a frame for stream 0")]
    StreamZero,
    #[error("a header block that {0}")]
    Headers(#[from] headers::Broken),
    #[error("a new stream where none may come any more")]
    Late,
}

/// Turns bytes into events.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// Inside a data frame: its stream, how much is to come, and whether the stream ends with it.
    data: Option<(u32, usize, bool)>,
    /// Until no stream may come any more.
    inflater: Option<Inflater>,
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Self { data: None, inflater: Some(Inflater::new()) }
    }

    /// No new stream is expected: the memory for its headers is given back, and one that comes breaks the connection.
    pub(crate) fn no_more_streams(&mut self) {
        self.inflater = None;
    }

    /// The next event in `input`; `None` when there are too few bytes. What it used is gone from `input`.
    ///
    /// # Errors
    /// The bytes are no SPDY; nothing that follows can be understood.
    pub(crate) fn next(&mut self, input: &mut BytesMut) -> Result<Option<Event>, Broken> {
        if let Some((stream, rest, fin)) = self.data.take() {
            return Ok(self.piece(input, stream, rest, fin));
        }
        let Some((first, second)) = input.first_chunk::<8>().map(|head| {
            let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            (word(0), word(4))
        }) else {
            return Ok(None);
        };
        let (flags, length) = ((second >> 24) as u8, (second & 0x00ff_ffff) as usize);
        if first & 0x8000_0000 == 0 {
            input.advance(8);
            return match first {
                0 => Err(Broken::StreamZero),
                stream => Ok(self.piece(input, stream, length, flags & FLAG_FIN != 0)),
            };
        }
        let (version, kind) = ((first >> 16 & 0x7fff) as u16, (first & 0xffff) as u16);
        if version != VERSION {
            return Err(Broken::Version(version));
        }
        if length > CONTROL_MAX {
            return Err(Broken::TooLong(length));
        }
        if input.len() < 8 + length {
            return Ok(None);
        }
        input.advance(8);
        let body = input.split_to(length);
        self.control(kind, flags & FLAG_FIN != 0, &body).map(Some)
    }

    fn piece(&mut self, input: &mut BytesMut, stream: u32, rest: usize, fin: bool) -> Option<Event> {
        let length = rest.min(input.len()).min(PIECE);
        if rest > 0 && length == 0 {
            self.data = Some((stream, rest, fin));
            return None;
        }
        let bytes = input.split_to(length).freeze();
        if rest > length {
            self.data = Some((stream, rest - length, fin));
        }
        Some(Event::Data { stream, bytes, fin: fin && rest == length })
    }

    fn control(&mut self, kind: u16, fin: bool, body: &[u8]) -> Result<Event, Broken> {
        let wrong = Broken::Length { kind, length: body.len() };
        let word = |at: usize| {
            let bytes = body.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_be_bytes(bytes))
        };
        let stream = || match word(0).map(|id| id & 0x7fff_ffff) {
            None => Err(Broken::Length { kind, length: body.len() }),
            Some(0) => Err(Broken::StreamZero),
            Some(id) => Ok(id),
        };
        match kind {
            SYN_STREAM => {
                let (stream, block) = (stream()?, body.get(10..).ok_or(wrong)?);
                let headers = self.inflater.as_mut().ok_or(Broken::Late)?.block(block)?;
                Ok(Event::Open { stream, headers, fin })
            }
            SYN_REPLY | HEADERS => {
                let (stream, block) = (stream()?, body.get(4..).ok_or(wrong)?);
                // Only for what comes after it: the blocks of a connection are one compressed stream.
                if let Some(inflater) = &mut self.inflater {
                    inflater.block(block)?;
                }
                Ok(if kind == HEADERS { Event::More { stream, fin } } else { Event::Nothing })
            }
            RST_STREAM if body.len() == 8 => Ok(Event::Reset { stream: stream()? }),
            PING => word(0).filter(|_| body.len() == 4).map(|id| Event::Ping { id }).ok_or(wrong),
            GOAWAY if body.len() == 8 => Ok(Event::GoAway),
            WINDOW_UPDATE if body.len() == 8 => Ok(Event::Nothing),
            SETTINGS => {
                let count = word(0).ok_or(Broken::Length { kind, length: body.len() })?;
                match u64::from(count) * 8 + 4 == body.len() as u64 {
                    true => Ok(Event::Nothing),
                    false => Err(wrong),
                }
            }
            RST_STREAM | GOAWAY | WINDOW_UPDATE => Err(wrong),
            kind => Err(Broken::Type(kind)),
        }
    }
}

/// The first eight bytes of a frame of data, which must be at most [`DATA_MAX`].
pub(crate) fn data(stream: u32, length: usize, fin: bool) -> [u8; 8] {
    head(stream & 0x7fff_ffff, u8::from(fin), length)
}

/// Accepts a stream. `first` on a connection.
pub(crate) fn reply(stream: u32, first: bool) -> Vec<u8> {
    let block = headers::empty_block(first);
    let mut frame = control(SYN_REPLY, 4 + block.len()).to_vec();
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(&block);
    frame
}

/// Refuses a stream.
pub(crate) fn refuse(stream: u32) -> Vec<u8> {
    // Source: the draft, 2.6.3.
    const REFUSED_STREAM: u32 = 3;
    [&control(RST_STREAM, 8)[..], &stream.to_be_bytes(), &REFUSED_STREAM.to_be_bytes()].concat()
}

pub(crate) fn ping(id: u32) -> Vec<u8> {
    [&control(PING, 4)[..], &id.to_be_bytes()].concat()
}

/// A frame without meaning.
pub(crate) fn no_settings() -> Vec<u8> {
    [&control(SETTINGS, 4)[..], &[0; 4]].concat()
}

/// Says that the other side did wrong; `last` is the last stream that was taken.
pub(crate) fn go_away(last: u32) -> Vec<u8> {
    const PROTOCOL_ERROR: u32 = 1;
    [&control(GOAWAY, 8)[..], &last.to_be_bytes(), &PROTOCOL_ERROR.to_be_bytes()].concat()
}

/// Lets the other side send so many bytes more.
pub(crate) fn window_update(stream: u32, bytes: u32) -> Vec<u8> {
    [&control(WINDOW_UPDATE, 8)[..], &stream.to_be_bytes(), &bytes.to_be_bytes()].concat()
}

fn control(kind: u16, length: usize) -> [u8; 8] {
    head(0x8000_0000 | u32::from(VERSION) << 16 | u32::from(kind), 0, length)
}

fn head(first: u32, flags: u8, length: usize) -> [u8; 8] {
    let second = u32::from(flags) << 24 | (length as u32 & 0x00ff_ffff);
    let (a, b) = (first.to_be_bytes(), second.to_be_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]
}

#[cfg(test)]
mod tests {
    use super::super::headers::test_block;
    use super::*;

    fn events(decoder: &mut Decoder, bytes: &[u8]) -> Result<Vec<Event>, Broken> {
        let mut input = BytesMut::from(bytes);
        let mut events = Vec::new();
        while let Some(event) = decoder.next(&mut input)? {
            events.push(event);
        }
        Ok(events)
    }

    fn open(stream: u32, block: &[u8]) -> Vec<u8> {
        let head = control(SYN_STREAM, 10 + block.len());
        [&head[..], &stream.to_be_bytes(), &[0; 6], block].concat()
    }

    #[test]
    fn a_stream_is_opened_written_to_and_ended() {
        let mut wire = open(1, &test_block(&[("streamtype", "stdin")], true));
        wire.extend([&data(1, 5, false)[..], b"hello", &data(1, 0, true)].concat());
        let expected = [
            Event::Open { stream: 1, headers: [("streamtype".into(), "stdin".into())].into(), fin: false },
            Event::Data { stream: 1, bytes: Bytes::from_static(b"hello"), fin: false },
            Event::Data { stream: 1, bytes: Bytes::new(), fin: true },
        ];
        assert_eq!(events(&mut Decoder::new(), &wire).expect("good"), expected);
        // The same when every byte comes alone, but that data comes in pieces.
        let mut decoder = Decoder::new();
        let mut input = BytesMut::new();
        let mut got = Vec::new();
        for byte in wire {
            input.extend_from_slice(&[byte]);
            while let Some(event) = decoder.next(&mut input).expect("good") {
                got.push(event);
            }
        }
        let (first, rest) = got.split_first().expect("events");
        assert_eq!(first, &expected[0]);
        let text: Vec<u8> = rest
            .iter()
            .flat_map(|e| match e {
                Event::Data { bytes, .. } => bytes.to_vec(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(text, b"hello");
        assert_eq!(rest.last(), Some(&expected[2]));
    }

    #[test]
    fn data_of_a_large_frame_comes_in_pieces() {
        let mut decoder = Decoder::new();
        let wire = [&data(7, 0x00ff_ffff, true)[..], &vec![1; 40 << 10]].concat();
        let got = events(&mut decoder, &wire).expect("good");
        let lengths: Vec<usize> = got
            .iter()
            .map(|e| match e {
                Event::Data { bytes, fin: false, .. } => bytes.len(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(lengths, [PIECE, PIECE, 8 << 10]);
    }

    #[test]
    fn what_is_no_frame_breaks_the_connection() {
        let control = |kind: u16, body: &[u8]| [&super::control(kind, body.len())[..], body].concat();
        for (wire, expected) in [
            (vec![0x80, 2, 0, 1, 0, 0, 0, 0], Broken::Version(2)),
            (b"GET / HTTP/1.1\r\n\r\n".to_vec(), Broken::StreamZero),
            (vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff], Broken::TooLong(0x00ff_ffff)),
            (control(SETTINGS, &[0xff; 4]), Broken::Length { kind: SETTINGS, length: 4 }),
            (control(SYN_STREAM, &[0, 0, 0, 1]), Broken::Length { kind: SYN_STREAM, length: 4 }),
            (control(RST_STREAM, &[0, 0, 0, 0, 0, 0, 0, 1]), Broken::StreamZero),
            (control(77, b""), Broken::Type(77)),
            (data(0, 1, false).to_vec(), Broken::StreamZero),
        ] {
            match events(&mut Decoder::new(), &wire) {
                // The text of an HTTP request is a frame of data for a stream that was never opened: the connection's task
                // refuses that.
                Ok(_) if wire.starts_with(b"GET") => {}
                other => assert_eq!(other, Err(expected), "{wire:?}"),
            }
        }
    }

    #[test]
    fn after_the_last_stream_none_may_come() {
        let mut decoder = Decoder::new();
        events(&mut decoder, &open(1, &test_block(&[], true))).expect("good");
        decoder.no_more_streams();
        assert_eq!(events(&mut decoder, &open(3, &test_block(&[], false))), Err(Broken::Late));
    }

    #[test]
    fn our_own_frames_are_understood() {
        let mut decoder = Decoder::new();
        let wire = [reply(1, true), reply(3, false), ping(9), go_away(3), no_settings()].concat();
        let wire = [wire, window_update(1, 5)].concat();
        let expected =
            [Event::Nothing, Event::Nothing, Event::Ping { id: 9 }, Event::GoAway, Event::Nothing, Event::Nothing];
        assert_eq!(events(&mut decoder, &wire).expect("good"), expected);
        assert_eq!(events(&mut decoder, &refuse(3)).expect("good"), [Event::Reset { stream: 3 }]);
    }

    #[test]
    fn no_bytes_whatever_make_it_panic_or_keep_much() {
        // A small generator, so that a failure is the same each time.
        let mut seed = 1_u64;
        let mut next = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as u8
        };
        for _ in 0..2000 {
            let mut decoder = Decoder::new();
            let mut wire: Vec<u8> = (0..200).map(|_| next()).collect();
            // Half of them begin as a control frame of a known type.
            if next() & 1 == 0 {
                wire[..8].copy_from_slice(&super::control(u16::from(next() % 10), usize::from(next())));
            }
            let mut input = BytesMut::from(&wire[..]);
            while let Ok(Some(_)) = decoder.next(&mut input) {}
        }
    }
}
