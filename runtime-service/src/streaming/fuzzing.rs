//! What clients of the streaming server send, for `test/fuzz`.

use bytes::{Bytes, BytesMut};
use hyper::Method;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use super::negotiate::{Kind, negotiate};
use super::portforward::port;
use super::resize::Sizes;
use super::spdy::{frame as spdy_frame, headers};
use super::websocket::channel::Sorter;
use super::websocket::frame as websocket_frame;

/// In pieces whose length the first byte says, or whole.
fn pieces(data: &[u8]) -> (usize, &[u8]) {
    match data.split_first() {
        Some((step, rest)) if *step > 0 => (usize::from(*step), rest),
        Some((_, rest)) => (rest.len().max(1), rest),
        None => (1, data),
    }
}

/// Frames of SPDY: what they say does not depend on how they are cut, no byte of data is lost or made, and what headers
/// hold is within their bounds.
pub fn spdy(data: &[u8]) {
    let (step, wire) = pieces(data);
    let whole = spdy_events(wire, wire.len().max(1));
    assert_eq!(spdy_events(wire, step), whole);
    // The same bytes as one header block, which a fuzzer would hardly compress.
    let block = headers::test_block(&[(&String::from_utf8_lossy(wire), "value")], true);
    if wire.len() < 4096 {
        headers::Inflater::new().block(&block).expect("a good block");
    }
    let _ = headers::parse(wire);
}

/// Events with neighbouring pieces of data put together, and why they end.
fn spdy_events(wire: &[u8], step: usize) -> (Vec<spdy_frame::Event>, Option<spdy_frame::Broken>) {
    use spdy_frame::Event;
    let (mut decoder, mut input, mut events) = (spdy_frame::Decoder::new(), BytesMut::new(), Vec::new());
    let mut fed = 0;
    for part in wire.chunks(step) {
        input.extend_from_slice(part);
        fed += part.len();
        loop {
            match decoder.next(&mut input) {
                Ok(None) => break,
                Err(broken) => return (events, Some(broken)),
                Ok(Some(event)) => push_spdy(&mut events, event),
            }
        }
        // What waits is at most one control frame.
        assert!(input.len() < (16 << 10) + 8, "{} of {fed} bytes wait", input.len());
    }
    let inside = events.iter().map(|event| match event {
        Event::Data { bytes, .. } => bytes.len(),
        _ => 8,
    });
    assert!(inside.sum::<usize>() <= wire.len());
    (events, None)
}

fn push_spdy(events: &mut Vec<spdy_frame::Event>, event: spdy_frame::Event) {
    use spdy_frame::Event;
    if let Event::Open { headers, .. } = &event {
        assert!(headers.len() <= 64 && headers.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>() <= 64 << 10);
    }
    match (events.last_mut(), event) {
        (Some(Event::Data { stream: last, bytes, fin: end @ false }), Event::Data { stream, bytes: more, fin })
            if *last == stream =>
        {
            *bytes = Bytes::from([&bytes[..], &more].concat());
            *end = fin;
        }
        (_, event) => events.push(event),
    }
}

/// Frames of WebSocket and the channels in them: neither depends on how they are cut.
pub fn websocket(data: &[u8]) {
    let (step, wire) = pieces(data);
    for base64 in [false, true] {
        let (whole, cut) = (channel_bytes(wire, wire.len().max(1), base64), channel_bytes(wire, step, base64));
        // What is wrong is seen earlier in small pieces, and something else may be wrong with them first.
        if base64 && whole.1.is_some() {
            assert!(cut.1.is_some(), "whole it is refused: {whole:?}, in pieces not: {cut:?}");
        } else {
            assert_eq!(cut, whole);
        }
    }
}

/// What came on each channel; on none, pings.
type Said = Vec<(Option<u8>, Vec<u8>)>;

/// What is said, and why it ends.
fn channel_bytes(wire: &[u8], step: usize, base64: bool) -> (Said, Option<String>) {
    use websocket_frame::Event;
    let (mut decoder, mut input) = (websocket_frame::Decoder::default(), BytesMut::new());
    let (mut sorter, mut said) = (Sorter::new(base64), Vec::new());
    for part in wire.chunks(step) {
        input.extend_from_slice(part);
        loop {
            let event = match decoder.next(&mut input) {
                Ok(None) => break,
                Err(broken) => return (said, Some(broken.to_string())),
                Ok(Some(event)) => event,
            };
            let (channel, bytes) = match event {
                Event::Data { begins, bytes, ends } => match sorter.sort(begins, bytes, ends) {
                    // A message that is broken somewhere in its middle may have been passed on up to there.
                    Err(_) => return (Vec::new(), Some("base64".into())),
                    Ok(None) => continue,
                    Ok(Some((channel, bytes))) => (Some(channel), bytes),
                },
                Event::Ping(bytes) => (None, bytes),
                Event::Pong => (None, Bytes::from_static(b"pong")),
                Event::Close => return (said, None),
            };
            match said.last_mut() {
                Some((last, together)) if channel.is_some() && *last == channel => together.extend_from_slice(&bytes),
                _ => said.push((channel, bytes.to_vec())),
            }
        }
        assert!(input.len() < 14 + 125, "{} bytes wait", input.len());
    }
    (said, None)
}

/// Heads of requests, one header a line after the method; and what comes on the small streams: sizes, ports, headers.
pub fn stream_requests(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.lines();
    let method = lines.next().unwrap_or_default();
    if let Ok(port) = port(method, &[]) {
        assert_eq!(port.to_string(), method.trim_start_matches('+').trim_start_matches('0'));
    }
    let mut headers = HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
            let _ = headers.try_append(name, value);
        }
    }
    for kind in [Kind::Session, Kind::PortForward] {
        let Ok(method) = Method::from_bytes(method.as_bytes()) else { break };
        match negotiate(kind, &method, &headers) {
            Ok(agreed) => assert!(agreed.version <= 5 && agreed.headers.contains_key("upgrade")),
            Err(refusal) => assert!(refusal.status.is_client_error() && !refusal.text.is_empty()),
        }
    }
    let (step, wire) = pieces(data);
    let (mut whole, mut cut) = (Sizes::default(), Sizes::default());
    let in_pieces: Vec<_> = wire.chunks(step).flat_map(|piece| cut.feed(piece)).collect();
    assert_eq!(in_pieces, whole.feed(wire));
}
