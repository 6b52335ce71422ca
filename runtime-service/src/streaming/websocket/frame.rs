//! WebSocket frames as bytes, on the server's side: a decoder that is fed, and functions that write. Pure; no socket is
//! known here. Source: RFC 6455, 5. Data is passed on piece by piece, so the length of a message does not matter.

use bytes::{Buf, Bytes, BytesMut};

/// Bytes of data in one event.
const PIECE: usize = 16 << 10;
/// Bytes of a control frame. Source: RFC 6455, 5.5.
const CONTROL_MAX: u64 = 125;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const FIN: u8 = 0x80;

/// The session is over as it should be. Source: RFC 6455, 7.4.1.
pub(crate) const NORMAL: u16 = 1000;
/// The other side broke the protocol.
pub(crate) const PROTOCOL_ERROR: u16 = 1002;

/// What the client said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A piece of a message: whether it begins and whether it ends with it.
    Data {
        begins: bool,
        bytes: Bytes,
        ends: bool,
    },
    Ping(Bytes),
    Pong,
    Close,
}

/// Why a connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    #[error("a frame with reserved bits")]
    Reserved,
    #[error("a frame that is not masked")]
    Unmasked,
    #[error("a frame of unknown type {0}")]
    Type(u8),
    #[error("a control frame that is long or in parts")]
    Control,
    #[error("a continuation of nothing, or a new message inside another")]
    Order,
    #[error("a length in more bytes than it needs")]
    Length,
}

#[derive(Debug)]
struct Payload {
    rest: u64,
    mask: [u8; 4],
    at: usize,
    begins: bool,
    last_frame: bool,
}

/// Turns bytes into events.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    payload: Option<Payload>,
    /// Between two frames of one message.
    within: bool,
}

impl Decoder {
    /// The next event in `input`; `None` when there are too few bytes. What it used is gone from `input`.
    ///
    /// # Errors
    /// The bytes are no WebSocket of a client; nothing that follows can be understood.
    pub(crate) fn next(&mut self, input: &mut BytesMut) -> Result<Option<Event>, Broken> {
        if let Some(payload) = self.payload.take() {
            return Ok(self.piece(input, payload));
        }
        let Some(&[first, second]) = input.first_chunk() else { return Ok(None) };
        if first & 0x70 != 0 {
            return Err(Broken::Reserved);
        }
        if second & 0x80 == 0 {
            return Err(Broken::Unmasked);
        }
        let kind = first & 0x0f;
        let last_frame = first & FIN != 0;
        let (length, head) = match second & 0x7f {
            126 => match input.get(2..4) {
                Some(bytes) => (bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b)), 4),
                None => return Ok(None),
            },
            127 => match input.get(2..10) {
                Some(bytes) => (bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b)), 10),
                None => return Ok(None),
            },
            short => (u64::from(short), 2),
        };
        if head == 4 && length < 126 || head == 10 && (length <= 0xffff || length >> 63 != 0) {
            return Err(Broken::Length);
        }
        let mask = match input.get(head..head + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()) {
            Some(mask) => mask,
            None => return Ok(None),
        };
        match kind {
            CLOSE | PING | PONG if !last_frame || length > CONTROL_MAX => Err(Broken::Control),
            CLOSE | PING | PONG => {
                if input.len() < head + 4 + length as usize {
                    return Ok(None);
                }
                input.advance(head + 4);
                let bytes = unmask(input.split_to(length as usize), mask, 0);
                Ok(Some(match kind {
                    CLOSE => Event::Close,
                    PING => Event::Ping(bytes),
                    _ => Event::Pong,
                }))
            }
            CONTINUATION | TEXT | BINARY => {
                if (kind == CONTINUATION) != self.within {
                    return Err(Broken::Order);
                }
                input.advance(head + 4);
                let begins = !self.within;
                self.within = !last_frame;
                Ok(self.piece(input, Payload { rest: length, mask, at: 0, begins, last_frame }))
            }
            other => Err(Broken::Type(other)),
        }
    }

    fn piece(&mut self, input: &mut BytesMut, mut payload: Payload) -> Option<Event> {
        let length = payload.rest.min(PIECE as u64).min(input.len() as u64) as usize;
        if payload.rest > 0 && length == 0 {
            self.payload = Some(payload);
            return None;
        }
        let bytes = unmask(input.split_to(length), payload.mask, payload.at);
        let begins = std::mem::take(&mut payload.begins);
        payload.rest -= length as u64;
        payload.at = (payload.at + length) % 4;
        let ends = payload.rest == 0 && payload.last_frame;
        if payload.rest > 0 {
            self.payload = Some(payload);
        }
        Some(Event::Data { begins, bytes, ends })
    }
}

fn unmask(mut bytes: BytesMut, mask: [u8; 4], at: usize) -> Bytes {
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte ^= mask[(at + index) % 4];
    }
    bytes.freeze()
}

/// The head of a whole message of `length` bytes.
pub(crate) fn message(text: bool, length: usize) -> Vec<u8> {
    let mut head = vec![FIN | if text { TEXT } else { BINARY }];
    match length {
        0..126 => head.push(length as u8),
        126..0x1_0000 => {
            head.push(126);
            head.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            head.push(127);
            head.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    head
}

/// Answers a ping, which is at most 125 bytes.
pub(crate) fn pong(ping: &[u8]) -> Vec<u8> {
    [&[FIN | PONG, ping.len() as u8], ping].concat()
}

/// Ends the connection.
pub(crate) fn close(code: u16) -> Vec<u8> {
    [&[FIN | CLOSE, 2][..], &code.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: [u8; 4] = [1, 2, 3, 4];

    /// A client's frame.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = message(false, payload.len());
        frame[0] = first;
        frame[1] |= 0x80;
        frame.extend_from_slice(&MASK);
        frame.extend(payload.iter().enumerate().map(|(i, b)| b ^ MASK[i % 4]));
        frame
    }

    fn events(decoder: &mut Decoder, wire: &[u8], step: usize) -> Result<Vec<Event>, Broken> {
        let (mut input, mut events) = (BytesMut::new(), Vec::new());
        for part in wire.chunks(step) {
            input.extend_from_slice(part);
            while let Some(event) = decoder.next(&mut input)? {
                events.push(event);
            }
        }
        Ok(events)
    }

    fn data(begins: bool, bytes: &'static [u8], ends: bool) -> Event {
        Event::Data { begins, bytes: Bytes::from_static(bytes), ends }
    }

    #[test]
    fn messages_come_whole_in_parts_and_with_a_ping_between() {
        let wire = [
            frame(FIN | BINARY, b"\0hello"),
            frame(BINARY, b"\0he"),
            frame(FIN | PING, b"you?"),
            frame(FIN, b"llo"),
            frame(FIN | BINARY, b""),
            frame(FIN | CLOSE, b"\x03\xe8"),
        ]
        .concat();
        let expected = [
            data(true, b"\0hello", true),
            data(true, b"\0he", false),
            Event::Ping(Bytes::from_static(b"you?")),
            data(false, b"llo", true),
            data(true, b"", true),
            Event::Close,
        ];
        assert_eq!(events(&mut Decoder::default(), &wire, wire.len()).expect("good"), expected);
    }

    #[test]
    fn a_message_may_come_byte_by_byte() {
        let wire = frame(FIN | BINARY, b"abcdefg");
        let got = events(&mut Decoder::default(), &wire, 1).expect("good");
        let text: Vec<u8> = got
            .iter()
            .flat_map(|e| match e {
                Event::Data { bytes, .. } => bytes.to_vec(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(text, b"abcdefg");
        assert!(matches!(got.last(), Some(Event::Data { ends: true, .. })));
        assert_eq!(got.iter().filter(|e| matches!(e, Event::Data { begins: true, .. })).count(), 1);
    }

    #[test]
    fn lengths_of_all_three_forms() {
        for length in [0, 125, 126, 0xffff, 0x1_0000] {
            let wire = frame(FIN | BINARY, &vec![b'x'; length]);
            let got = events(&mut Decoder::default(), &wire, wire.len()).expect("good");
            let sum: usize = got
                .iter()
                .map(|e| match e {
                    Event::Data { bytes, .. } => bytes.len(),
                    other => panic!("{other:?}"),
                })
                .sum();
            assert_eq!(sum, length);
        }
    }

    #[test]
    fn what_is_no_frame_breaks_the_connection() {
        let mut unmasked = frame(FIN | BINARY, b"x");
        unmasked[1] &= 0x7f;
        let long = [&[FIN | BINARY, 0x80 | 126, 0, 5][..], &MASK].concat();
        let huge = [&[FIN | BINARY, 0x80 | 127][..], &[0xff; 8], &MASK].concat();
        for (wire, expected) in [
            (unmasked, Broken::Unmasked),
            (frame(FIN | 0x40 | BINARY, b""), Broken::Reserved),
            (frame(FIN | 3, b""), Broken::Type(3)),
            (frame(PING, b""), Broken::Control),
            (frame(FIN | PING, &[0; 126]), Broken::Control),
            (frame(FIN | CONTINUATION, b""), Broken::Order),
            ([frame(BINARY, b"a"), frame(BINARY, b"b")].concat(), Broken::Order),
            (long, Broken::Length),
            (huge, Broken::Length),
        ] {
            assert_eq!(events(&mut Decoder::default(), &wire, wire.len()), Err(expected), "{wire:?}");
        }
    }
}
