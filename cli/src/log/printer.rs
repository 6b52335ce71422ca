//! Turns log lines back into what the program wrote, on the streams it wrote to.

use std::io::Write;

use jiff::Timestamp;

use super::line::{Stream, parse};
use crate::error::Error;

/// What to print of a log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// Put the time before each of the program's lines.
    pub(crate) timestamps: bool,
    /// Leave out what was written before.
    pub(crate) since: Option<Timestamp>,
    /// Only this stream; none: both.
    pub(crate) stream: Option<Stream>,
    /// Stop after so many bytes.
    pub(crate) limit_bytes: Option<u64>,
}

pub(crate) struct Printer<'a> {
    options: Options,
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
    /// The last piece of each stream did not end a line.
    open: [bool; 2],
    /// Bytes that may still be printed.
    left: u64,
    /// Lines in another form than CRI's.
    strange: u64,
}

impl<'a> Printer<'a> {
    pub(crate) fn new(options: Options, out: &'a mut dyn Write, err: &'a mut dyn Write) -> Self {
        Self { left: options.limit_bytes.unwrap_or(u64::MAX), options, out, err, open: [false; 2], strange: 0 }
    }

    /// As many bytes were printed as were asked for.
    pub(crate) fn is_full(&self) -> bool {
        self.left == 0
    }

    /// How many lines were not in CRI's form and so not printed.
    pub(crate) fn strange(&self) -> u64 {
        self.strange
    }

    /// Prints one line of the log, given without its newline.
    pub(crate) fn line(&mut self, line: &[u8]) -> Result<(), Error> {
        let Some(line) = parse(line) else {
            self.strange += u64::from(!line.is_empty());
            return Ok(());
        };
        if self.options.stream.is_some_and(|only| only != line.stream) {
            return Ok(());
        }
        if let Some(since) = self.options.since
            && line.time.parse::<Timestamp>().is_ok_and(|time| time < since)
        {
            return Ok(());
        }
        let mut bytes = Vec::with_capacity(line.text.len() + 40);
        if self.options.timestamps && !self.open[line.stream as usize] {
            bytes.extend_from_slice(line.time.as_bytes());
            bytes.push(b' ');
        }
        bytes.extend_from_slice(line.text);
        if !line.partial {
            bytes.push(b'\n');
        }
        self.open[line.stream as usize] = line.partial;
        bytes.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= bytes.len() as u64;
        let target = match line.stream {
            Stream::Stdout => &mut self.out,
            Stream::Stderr => &mut self.err,
        };
        target.write_all(&bytes).map_err(Error::Print)
    }

    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        self.out.flush().and_then(|()| self.err.flush()).map_err(Error::Print)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: [&str; 5] = [
        "2024-05-01T12:00:00Z stdout P one ",
        "2024-05-01T12:00:01Z stderr F oops",
        "2024-05-01T12:00:02Z stdout F line",
        "not a log line",
        "2024-05-01T12:00:03Z stdout F two",
    ];

    fn check(options: Options, out: &str, err: &str) {
        let (mut o, mut e) = (Vec::new(), Vec::new());
        let mut printer = Printer::new(options, &mut o, &mut e);
        LOG.iter().for_each(|line| printer.line(line.as_bytes()).unwrap());
        assert_eq!(printer.strange(), 1);
        assert_eq!((String::from_utf8(o).unwrap().as_str(), String::from_utf8(e).unwrap().as_str()), (out, err));
    }

    #[test]
    fn streams_come_out_as_they_went_in() {
        check(Options::default(), "one line\ntwo\n", "oops\n");
    }

    #[test]
    fn a_line_of_the_program_has_one_time() {
        let options = Options { timestamps: true, ..Default::default() };
        check(options, "2024-05-01T12:00:00Z one line\n2024-05-01T12:00:03Z two\n", "2024-05-01T12:00:01Z oops\n");
    }

    #[test]
    fn stream_time_and_size_choose() {
        check(Options { stream: Some(Stream::Stderr), ..Default::default() }, "", "oops\n");
        check(
            Options { since: Some("2024-05-01T12:00:02Z".parse().unwrap()), ..Default::default() },
            "line\ntwo\n",
            "",
        );
        check(Options { limit_bytes: Some(6), ..Default::default() }, "one ", "oo");
    }
}
