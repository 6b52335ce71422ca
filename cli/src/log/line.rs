//! One line of a log in CRI's form: `TIME STREAM TAGS TEXT`.

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// RFC 3339, as written by the runtime.
    pub(crate) time: &'a str,
    pub(crate) stream: Stream,
    /// The program's line goes on in the next line of this stream.
    pub(crate) partial: bool,
    pub(crate) text: &'a [u8],
}

/// Reads a line without its newline. Nothing when it is not in CRI's form.
pub(crate) fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok().filter(|time| time.contains('T'))?;
    let stream = match parts.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    // Tags may follow the first one after colons; none is defined but the first.
    let partial = match parts.next()?.split(|byte| *byte == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(Line { time, stream, partial, text: parts.next().unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, want: Option<(Stream, bool, &str)>) {
        let got = parse(line.as_bytes());
        let got = got.map(|line| (line.stream, line.partial, String::from_utf8_lossy(line.text).into_owned()));
        assert_eq!(got, want.map(|(stream, partial, text)| (stream, partial, text.to_owned())), "{line}");
    }

    #[test]
    fn lines_are_in_cri_form() {
        check("2024-05-01T12:00:00.123456789Z stdout F hello  world ", Some((Stream::Stdout, false, "hello  world ")));
        check("2024-05-01T12:00:00Z stderr P part", Some((Stream::Stderr, true, "part")));
        check("2024-05-01T12:00:00Z stdout F:more x", Some((Stream::Stdout, false, "x")));
        check("2024-05-01T12:00:00Z stdout F ", Some((Stream::Stdout, false, "")));
        check("2024-05-01T12:00:00Z stdout F", Some((Stream::Stdout, false, "")));
        for wrong in
            ["", "hello", "2024-05-01T12:00:00Z stdlog F x", "2024-05-01T12:00:00Z stdout X x", "{\"log\":\"x\"}"]
        {
            check(wrong, None);
        }
    }
}
