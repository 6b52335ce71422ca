//! What the program `count` of the test images (hack/images.c) writes, computed again, and a reader that compares a CRI
//! log with it byte for byte. Holds one line at a time, however long the log.

/// The image that has it.
pub const IMAGE: &str = "registry.k8s.io/berth-test/count:1";

/// Most bytes of content in one record. Source: `max_container_log_line_size` of containerd's CRI.
const RECORD_MAX: usize = 16 << 10;

/// Length of a record's time: RFC 3339, nanoseconds, UTC.
const TIME: &[u8] = b"dddd-dd-ddTdd:dd:dd.dddddddddZ";

const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// How the program's output ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself: the last thing in the log is its count of lines.
    Counted,
    /// By SIGKILL at any byte: the log is the beginning of what it would have written.
    Cut,
}

/// Reads a container's log from its first record to its last, file by file.
#[derive(Debug)]
pub struct Reader {
    letters: Vec<u8>,
    stdout: Output,
    stderr: Output,
    /// Records read.
    pub records: u64,
}

/// How far one of the two outputs was read.
#[derive(Debug, Default)]
struct Output {
    /// Number of the current line.
    line: u64,
    /// Bytes of it that were read.
    at: usize,
    /// All of it.
    expected: Vec<u8>,
    /// Bytes read.
    bytes: u64,
    /// The last record that this output can have was read.
    over: Option<End>,
}

impl Default for Reader {
    fn default() -> Self {
        let letters = LETTERS.iter().copied().cycle().take(50_000 + LETTERS.len()).collect();
        let mut reader = Self { letters, stdout: Output::default(), stderr: Output::default(), records: 0 };
        reader.stdout.expected = reader.line(0);
        reader.stderr.expected = mark(0);
        reader
    }
}

/// Line `number` of standard error.
fn mark(number: u64) -> Vec<u8> {
    format!("mark {}\n", number + 1).into_bytes()
}

impl Reader {
    /// Bytes of standard output read so far.
    pub fn bytes(&self) -> u64 {
        self.stdout.bytes
    }

    /// Line `number` of standard output.
    fn line(&self, number: u64) -> Vec<u8> {
        let length = match number {
            n if n % 101 == 7 => 16384 - 11,
            n if n % 101 == 57 => 16385 - 11,
            n if n % 211 == 13 => 50_000,
            n => 200 + usize::try_from(n * 7919 % 1500).expect("small"),
        };
        let begin = usize::try_from(number % 36).expect("small");
        let mut line = format!("{number:010} ").into_bytes();
        line.extend_from_slice(&self.letters[begin..begin + length]);
        line.push(b'\n');
        line
    }

    /// Reads the next file of the log.
    ///
    /// # Errors
    /// The first record that is not what it must be, with its number in the file.
    pub fn read(&mut self, file: &[u8]) -> Result<(), String> {
        let mut rest = file;
        let mut number = 0u64;
        while !rest.is_empty() {
            number += 1;
            let used = self.record(rest).map_err(|problem| {
                let shown = String::from_utf8_lossy(&rest[..rest.len().min(160)]).into_owned();
                format!("record {number} of a file of {} bytes: {problem}\n{shown}", file.len())
            })?;
            rest = &rest[used..];
        }
        self.records += number;
        Ok(())
    }

    /// Reads one record from the beginning of `bytes`; gives its length.
    fn record(&mut self, bytes: &[u8]) -> Result<usize, String> {
        let prefix = TIME.len() + " stdout F ".len();
        let head = bytes.get(..prefix).ok_or("it is cut off")?;
        let is_time =
            head.iter().zip(TIME).all(|(is, form)| if *form == b'd' { is.is_ascii_digit() } else { is == form });
        if !is_time {
            return Err("it does not begin with a time".into());
        }
        let (is_stdout, full) = match &head[TIME.len()..] {
            b" stdout F " => (true, true),
            b" stdout P " => (true, false),
            b" stderr F " => (false, true),
            b" stderr P " => (false, false),
            _ => return Err("no stream and tag after the time".into()),
        };
        let content = &bytes[prefix..];
        // Where the record ends follows from what must be in it, so that no byte need be looked for.
        let output = if is_stdout { &mut self.stdout } else { &mut self.stderr };
        let length = output.take(content, full)?;
        if output.at == output.expected.len() {
            output.line += 1;
            output.at = 0;
            let number = output.line;
            let next = if is_stdout { self.line(number) } else { mark(number) };
            let output = if is_stdout { &mut self.stdout } else { &mut self.stderr };
            output.expected = next;
        }
        Ok(prefix + length)
    }

    /// The log has no more files.
    ///
    /// # Errors
    /// It does not end as `end` says.
    pub fn finish(&self, end: End) -> Result<(), String> {
        let out = &self.stdout;
        let said = format!("{} lines and {} bytes of line {}", out.line, out.at, out.line);
        match (end, out.over) {
            // A mark for each MiB that was passed.
            (End::Counted, Some(End::Counted)) if out.bytes >> 20 == self.stderr.line => Ok(()),
            (End::Counted, Some(End::Counted)) => Err(format!("{} marks after {said}", self.stderr.line)),
            (End::Counted, _) => Err(format!("the count of lines is missing after {said}")),
            (End::Cut, Some(End::Counted)) => Err(format!("it ended by itself after {said}")),
            (End::Cut, _) => Ok(()),
        }
    }
}

impl Output {
    /// Takes one record's content, which is at the beginning of `content`; gives its length with the newline.
    fn take(&mut self, content: &[u8], full: bool) -> Result<usize, String> {
        if self.over.is_some() {
            return Err("it comes after a part of a line that does not go on".into());
        }
        let left = &self.expected[self.at..];
        if full {
            // The rest of the line, and its end.
            return match left.len() - 1 <= RECORD_MAX && content.starts_with(left) {
                true => Ok(self.advance(left.len())),
                false => Err(self.differs(content, left)),
            };
        }
        let end = format!("end {}\n", self.line);
        if self.at == 0 && content.starts_with(end.as_bytes()) {
            self.over = Some(End::Counted);
            return Ok(end.len());
        }
        let length = match content.get(RECORD_MAX) {
            Some(b'\n') => RECORD_MAX,
            _ => content.iter().position(|b| *b == b'\n').ok_or("it has no end")?,
        };
        if length > RECORD_MAX || length >= left.len() || content[..length] != left[..length] {
            return Err(self.differs(content, left));
        }
        if length < RECORD_MAX {
            self.over = Some(End::Cut);
        }
        self.advance(length);
        Ok(length + 1)
    }

    fn advance(&mut self, bytes: usize) -> usize {
        self.at += bytes;
        self.bytes += bytes as u64;
        bytes
    }

    fn differs(&self, content: &[u8], left: &[u8]) -> String {
        let at = content.iter().zip(left).position(|(a, b)| a != b).unwrap_or(content.len().min(left.len()));
        let show = |bytes: &[u8]| {
            let from = at.saturating_sub(20).min(bytes.len());
            String::from_utf8_lossy(&bytes[from..bytes.len().min(at + 40)]).into_owned()
        };
        format!(
            "byte {} of line {}: there is {:?} where {:?} was written",
            self.at + at,
            self.line,
            show(content),
            show(left)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The log of a program that wrote `lines` lines, in records as the shim makes them.
    fn log(lines: u64) -> Vec<u8> {
        let reader = Reader::default();
        let mut out = Vec::new();
        let mut record = |stream: &str, tag: &str, content: &[u8]| {
            out.extend_from_slice(format!("2026-11-21T02:41:49.120000000Z {stream} {tag} ").as_bytes());
            out.extend_from_slice(content);
            out.push(b'\n');
        };
        let (mut bytes, mut marks) = (0, 0);
        for number in 0..lines {
            let line = reader.line(number);
            bytes += line.len();
            let mut rest = &line[..line.len() - 1];
            while rest.len() > RECORD_MAX {
                record("stdout", "P", &rest[..RECORD_MAX]);
                rest = &rest[RECORD_MAX..];
            }
            record("stdout", "F", rest);
            if bytes >> 20 > marks {
                marks += 1;
                record("stderr", "F", format!("mark {marks}").as_bytes());
            }
        }
        record("stdout", "P", format!("end {lines}").as_bytes());
        out
    }

    fn check(log: &[u8], end: End) -> Result<(), String> {
        let mut reader = Reader::default();
        let half = log.iter().take(log.len() / 2).rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        reader.read(&log[..half])?;
        reader.read(&log[half..])?;
        reader.finish(end)
    }

    #[test]
    fn a_whole_log_is_right_and_every_damage_is_found() {
        let whole = log(2000);
        check(&whole, End::Counted).expect("it is whole");
        check(&whole, End::Cut).expect_err("it was not cut");
        let ends: Vec<usize> = whole.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(at, _)| at + 1).collect();
        for record in [0, 7, 500, 1500, ends.len() - 3] {
            let (from, to) = (ends[record], ends[record + 1]);
            let lost = [&whole[..from], &whole[to..]].concat();
            check(&lost, End::Counted).expect_err("a record is lost");
            let doubled = [&whole[..to], &whole[from..]].concat();
            check(&doubled, End::Counted).expect_err("a record is doubled");
            let torn = [&whole[..to - 9], &whole[to - 8..]].concat();
            check(&torn, End::Counted).expect_err("a byte is lost");
            check(&whole[..to], End::Counted).expect_err("the end is lost");
            check(&whole[..to], End::Cut).expect("its beginning");
            check(&whole[..to - 5], End::Cut).expect_err("the last record is torn");
        }
    }
}
