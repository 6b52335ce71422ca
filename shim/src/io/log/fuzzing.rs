//! What containers print, for `test/fuzz`.

use super::frame::{Framer, LINE_MAX, PREFIX_LEN, Stream, columns};
use super::time::Clock;

/// Output in pieces whose length the first byte says, each line as often again as the second says: the records say the
/// same bytes, none is longer than readers take, and no byte of the output can end a record or begin one.
pub(crate) fn records(data: &[u8]) {
    let (Some(step), Some(times)) = (data.first(), data.get(1)) else { return };
    let output = data[2..].repeat(usize::from(times % 32).max(1));
    let step = usize::from(*step) * 97 + 1;
    let mut clock = Clock::new();
    let time = clock.format(1_700_000_000_123_456_789);
    let (mut framer, mut out) = (Framer::default(), Vec::new());
    for piece in output.chunks(step) {
        let mut used = 0;
        while used < piece.len() {
            let before = out.len();
            let took = framer.frame(Stream::Stderr, &piece[used..], time, &mut out, before + 1);
            assert!(took > 0 || out.len() > before);
            used += took;
        }
    }
    framer.end(Stream::Stderr, time, &mut out);
    let mut said = Vec::with_capacity(output.len());
    for record in out.split_inclusive(|byte| *byte == b'\n') {
        let (stream, whole) = columns(record).expect("a record");
        let content = &record[PREFIX_LEN..record.len() - 1];
        assert!(stream == Stream::Stderr && content.len() <= LINE_MAX);
        said.extend_from_slice(content);
        if whole {
            said.push(b'\n');
        }
    }
    assert!(said == output, "{} bytes became {}", output.len(), said.len());
}
