//! Splits a stream into lines and writes them as records of the CRI log format:
//! `<time> <stdout|stderr> <F|P> <content>\n`, at most 16 KiB of content each, P where the line goes on.

use memchr::memchr;

use super::time::TIME_LEN;

/// Content bytes of one record. Source: `max_container_log_line_size` of containerd's CRI, which readers reckon with.
pub(super) const LINE_MAX: usize = 16 * 1024;

/// Bytes of a record before its content: time, stream and tag with a space after each.
pub(super) const PREFIX_LEN: usize = TIME_LEN + 1 + 6 + 1 + 1 + 1;

/// Which of the process's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    /// Both, in the order of their file descriptors.
    pub(super) const ALL: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

    pub(crate) fn index(self) -> usize {
        self as usize
    }

    fn name(self) -> &'static [u8; 6] {
        match self {
            Stream::Stdout => b"stdout",
            Stream::Stderr => b"stderr",
        }
    }
}

/// Appends one record.
pub(super) fn record(out: &mut Vec<u8>, time: &[u8; TIME_LEN], stream: Stream, full: bool, parts: [&[u8]; 2]) {
    out.reserve(PREFIX_LEN + parts[0].len() + parts[1].len() + 1);
    out.extend_from_slice(time);
    out.push(b' ');
    out.extend_from_slice(stream.name());
    out.extend_from_slice(if full { b" F " } else { b" P " });
    out.extend_from_slice(parts[0]);
    out.extend_from_slice(parts[1]);
    out.push(b'\n');
}

/// Stream and whether the line ends there, as a record's columns say; `None` for a piece of one.
pub(super) fn columns(record: &[u8]) -> Option<(Stream, bool)> {
    let name = record.get(TIME_LEN + 1..TIME_LEN + 7)?;
    let stream = Stream::ALL.into_iter().find(|stream| stream.name() == name)?;
    match record.get(PREFIX_LEN - 3..PREFIX_LEN)? {
        b" F " => Some((stream, true)),
        b" P " => Some((stream, false)),
        _ => None,
    }
}

/// One stream's place in its current line.
#[derive(Debug, Default)]
pub(super) struct Framer {
    /// The line so far, but for what went out as P; less than or just `LINE_MAX` bytes.
    carry: Vec<u8>,
    /// Parts of this line went out as P.
    open: bool,
    /// The rest of this line is dropped.
    skip: bool,
}

impl Framer {
    /// Frames from the beginning of `input` until it is used up or `out` has `limit` bytes; returns how much it used.
    pub(super) fn frame(
        &mut self,
        stream: Stream,
        input: &[u8],
        time: &[u8; TIME_LEN],
        out: &mut Vec<u8>,
        limit: usize,
    ) -> usize {
        let mut used = 0;
        while used < input.len() && out.len() < limit {
            let rest = &input[used..];
            if self.skip {
                used += self.skipped(rest);
                continue;
            }
            let room = LINE_MAX - self.carry.len();
            // One byte more than there is room for: the end of a line that fits exactly.
            match memchr(b'\n', &rest[..rest.len().min(room + 1)]) {
                Some(end) => {
                    record(out, time, stream, true, [&self.carry, &rest[..end]]);
                    self.begin();
                    used += end + 1;
                }
                None if rest.len() > room => {
                    record(out, time, stream, false, [&self.carry, &rest[..room]]);
                    self.carry.clear();
                    self.open = true;
                    used += room;
                }
                None => {
                    self.carry.extend_from_slice(rest);
                    used = input.len();
                }
            }
        }
        used
    }

    /// The stream is at its end: what is left of a line without an end goes out as P.
    pub(super) fn end(&mut self, stream: Stream, time: &[u8; TIME_LEN], out: &mut Vec<u8>) {
        if !self.carry.is_empty() {
            record(out, time, stream, false, [&self.carry, b""]);
        }
        self.begin();
        self.carry = Vec::new();
    }

    /// Drops everything of `input`; returns how many lines began there.
    pub(super) fn drop_lines(&mut self, input: &[u8]) -> u64 {
        let mut begun = 0;
        let mut used = 0;
        while used < input.len() {
            begun += u64::from(!self.skip);
            self.skip = true;
            used += self.skipped(&input[used..]);
        }
        begun
    }

    /// Drops the line that has begun; returns 1 if there is one that is not yet counted as dropped.
    pub(super) fn drop_line(&mut self) -> u64 {
        let begun = self.open || !self.carry.is_empty();
        if begun {
            self.skip = true;
        }
        self.carry = Vec::new();
        self.open = false;
        u64::from(begun)
    }

    /// Uses up the dropped line's rest; returns its length.
    fn skipped(&mut self, rest: &[u8]) -> usize {
        match memchr(b'\n', rest) {
            Some(end) => {
                self.skip = false;
                end + 1
            }
            None => rest.len(),
        }
    }

    fn begin(&mut self) {
        self.carry.clear();
        self.open = false;
        self.skip = false;
    }

    /// Parts of the current line went out as P.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// Gives back memory that only a long line needed.
    pub(super) fn shrink(&mut self) {
        self.carry.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &[u8; TIME_LEN] = b"2026-11-21T02:41:49.120000000Z";

    /// Frames `pieces` one after another, then ends; returns tag and content length of each record.
    fn check(pieces: &[&[u8]], expected: &[(&str, usize)]) {
        let (mut framer, mut out) = (Framer::default(), Vec::new());
        for piece in pieces {
            assert_eq!(framer.frame(Stream::Stdout, piece, TIME, &mut out, usize::MAX), piece.len());
        }
        framer.end(Stream::Stdout, TIME, &mut out);
        let records: Vec<_> = out
            .split_inclusive(|b| *b == b'\n')
            .map(|r| (if columns(r).unwrap().1 { "F" } else { "P" }, r.len() - PREFIX_LEN - 1))
            .collect();
        assert_eq!(records, expected);
    }

    #[test]
    fn lines_are_split_at_16_kib() {
        let a = |n: usize| vec![b'a'; n];
        let line = |n: usize| [a(n), vec![b'\n']].concat();
        check(&[b"hello\n"], &[("F", 5)]);
        check(&[b"\n\n"], &[("F", 0), ("F", 0)]);
        check(&[b"hel", b"lo", b"\n"], &[("F", 5)]);
        check(&[b"hello"], &[("P", 5)]);
        check(&[], &[]);
        check(&[&line(LINE_MAX)], &[("F", LINE_MAX)]);
        check(&[&a(LINE_MAX), b"\n"], &[("F", LINE_MAX)]);
        check(&[&line(LINE_MAX + 1)], &[("P", LINE_MAX), ("F", 1)]);
        check(&[&a(LINE_MAX), b"a", b"\n"], &[("P", LINE_MAX), ("F", 1)]);
        check(&[&a(LINE_MAX)], &[("P", LINE_MAX)]);
        check(&[&a(3 * LINE_MAX), b"\nx\n"], &[("P", LINE_MAX), ("P", LINE_MAX), ("F", LINE_MAX), ("F", 1)]);
    }

    #[test]
    fn a_record_has_the_columns_readers_expect() {
        let (mut framer, mut out) = (Framer::default(), Vec::new());
        framer.frame(Stream::Stderr, b"a b\n", TIME, &mut out, usize::MAX);
        assert_eq!(out, b"2026-11-21T02:41:49.120000000Z stderr F a b\n");
        assert_eq!(columns(&out), Some((Stream::Stderr, true)));
    }

    #[test]
    fn framing_stops_at_the_limit_and_goes_on_where_it_stopped() {
        let (mut framer, mut out) = (Framer::default(), Vec::new());
        let input = b"1\n2\n3\n";
        let used = framer.frame(Stream::Stdout, input, TIME, &mut out, 1);
        assert_eq!(used, 2);
        framer.frame(Stream::Stdout, &input[used..], TIME, &mut out, usize::MAX);
        assert_eq!(out.iter().filter(|b| **b == b'\n').count(), 3);
    }

    #[test]
    fn dropping_is_of_whole_lines() {
        let (mut framer, mut out) = (Framer::default(), Vec::new());
        framer.frame(Stream::Stdout, b"kept\nbegun", TIME, &mut out, usize::MAX);
        assert_eq!(framer.drop_line(), 1);
        assert_eq!(framer.drop_lines(b" before\nsecond\nthird"), 2);
        assert_eq!(framer.drop_line(), 0);
        out.clear();
        framer.frame(Stream::Stdout, b" goes on\nnew\n", TIME, &mut out, usize::MAX);
        assert_eq!(out, [&TIME[..], b" stdout F new\n"].concat());
    }
}
