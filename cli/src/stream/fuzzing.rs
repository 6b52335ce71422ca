//! What a runtime's streaming server sends, for `test/fuzz`: that takes this file and `spdy`, since the client is a binary.

use std::io::ErrorKind;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Mutex, mpsc};

use super::spdy::{Duplex, Event, Listeners, Writer, read_frames};

/// Streams that somebody listens to; more may be spoken of.
const STREAMS: [u32; 2] = [1, 3];

/// How often a stream was accepted, its bytes, and whether it ended before the connection.
type Heard = (usize, Vec<u8>, bool);

/// Frames, in pieces whose length the first byte says: what is heard and what is answered does not depend on how they are
/// cut, and no byte is made.
///
/// # Panics
/// When that is broken.
pub(crate) fn feed(data: &[u8]) {
    let Some((step, frames)) = data.split_first() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let [whole, cut] =
        [frames.len().max(1), usize::from(*step).max(1)].map(|step| runtime.block_on(hear(frames, step)));
    assert_eq!(cut, whole);
    let bytes: usize = whole.0.iter().map(|(_, bytes, _)| bytes.len()).sum();
    assert!(bytes <= frames.len(), "{bytes} of {}", frames.len());
}

/// What is heard, and how it ends.
async fn hear(frames: &[u8], step: usize) -> ([Heard; 2], ErrorKind) {
    let (ours, theirs) = tokio::io::duplex(step);
    let (mut read, write) = tokio::io::split(Box::new(ours) as Box<dyn Duplex>);
    let (mut answers, mut send) = tokio::io::split(theirs);
    let listeners = Listeners::default();
    let mut events = Vec::new();
    for stream in STREAMS {
        let (sender, receiver) = mpsc::channel(1);
        listeners.lock().await.insert(stream, sender);
        events.push(receiver);
    }
    let reading = {
        let listeners = listeners.clone();
        async move {
            let out = Mutex::new(Writer::new(write));
            let ended = read_frames(&mut read, &out, &listeners).await.expect_err("its end is one");
            let open: Vec<u32> = listeners.lock().await.drain().map(|(stream, _)| stream).collect();
            (ended.kind(), open)
        }
    };
    let sending = async {
        let _ = send.write_all(frames).await;
        let _ = send.shutdown().await;
    };
    let answered = async {
        let mut all = Vec::new();
        let _ = answers.read_to_end(&mut all).await;
        // Answers to pings, each a frame of twelve bytes.
        assert!(all.len() <= frames.len());
    };
    let (mut third, mut first) = (events.pop().expect("two"), events.pop().expect("two"));
    let ((kind, open), (), (), first, third) =
        tokio::join!(reading, sending, answered, listen(&mut first), listen(&mut third));
    let [a, b] = STREAMS.map(|stream| !open.contains(&stream));
    ([(first.0, first.1, a), (third.0, third.1, b)], kind)
}

async fn listen(events: &mut mpsc::Receiver<Event>) -> (usize, Vec<u8>) {
    let (mut accepted, mut all) = (0, Vec::new());
    while let Some(event) = events.recv().await {
        match event {
            Event::Accepted => accepted += 1,
            Event::Bytes(bytes) => all.extend(bytes),
        }
    }
    (accepted, all)
}

#[cfg(test)]
mod tests {
    #[test]
    fn kept_inputs_are_borne() {
        crate::kept::feed_each(&[("client_spdy", &super::feed)]);
    }

    /// A length that is claimed is no memory.
    #[test]
    fn a_control_frame_that_is_too_long_is_the_end() {
        let frame = |length: u32| [&[1, 0x80, 3, 0, 6][..], &length.to_be_bytes(), &vec![0; length as usize]].concat();
        for (length, kind) in [(4, std::io::ErrorKind::UnexpectedEof), (1 << 20, std::io::ErrorKind::InvalidData)] {
            let data = frame(length);
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            assert_eq!(runtime.block_on(super::hear(&data[1..], 100)).1, kind, "{length}");
        }
    }
}
