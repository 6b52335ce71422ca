//! What Task's stdin, stdout and stderr strings mean. Pure.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use berth_api::shim::{ATTACH_SCHEME, LOG_SCHEME, TIED_FIFO_SCHEME};

use super::log::Stream;

/// Where one of a process's streams comes from or goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Nothing to read; what is written is thrown away.
    Nothing,
    /// A FIFO; a tied one's process is killed when its last reader has gone.
    Fifo { path: PathBuf, tied: bool },
    /// Clients that attach; as stdin `once` ends it with its first client.
    Clients { once: bool },
    /// The container's log.
    Log { path: PathBuf, stream: Stream },
}

/// Empty, a path, `berth+attach://[?once=true]`, `cri+file:///PATH?stream=stdout|stderr` or `berth+fifo:///PATH`, with PATH percent-encoded.
///
/// # Errors
/// Why it is none of these.
pub(crate) fn parse(text: &str) -> Result<Target, String> {
    if text.is_empty() {
        return Ok(Target::Nothing);
    }
    if text.starts_with('/') {
        return Ok(Target::Fifo { path: text.into(), tied: false });
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(format!("{text:?} is neither an absolute path nor a URI"));
    };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    match (scheme, query) {
        (ATTACH_SCHEME, "" | "once=true") if path.is_empty() => Ok(Target::Clients { once: !query.is_empty() }),
        (LOG_SCHEME, "stream=stdout") => Ok(Target::Log { path: decode(path)?, stream: Stream::Stdout }),
        (LOG_SCHEME, "stream=stderr") => Ok(Target::Log { path: decode(path)?, stream: Stream::Stderr }),
        (LOG_SCHEME, _) => Err(format!("{text:?} names neither stream=stdout nor stream=stderr")),
        (TIED_FIFO_SCHEME, "") => Ok(Target::Fifo { path: decode(path)?, tied: true }),
        ("fifo", "") => Ok(Target::Fifo { path: decode(path)?, tied: false }),
        ("fifo" | TIED_FIFO_SCHEME, _) => Err(format!("{text:?} has a query, a FIFO takes none")),
        _ => Err(format!("scheme {scheme:?} is not supported")),
    }
}

fn decode(path: &str) -> Result<PathBuf, String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte == b'%' {
            // Digits alone: a number may have a sign.
            let code = after.get(..2).filter(|two| two.iter().all(u8::is_ascii_hexdigit));
            let code = code.and_then(|two| std::str::from_utf8(two).ok());
            let code = code.and_then(|two| u8::from_str_radix(two, 16).ok());
            bytes.push(code.ok_or_else(|| format!("{path:?} has a percent sign without two hex digits"))?);
            rest = &after[2..];
        } else {
            bytes.push(byte);
            rest = after;
        }
    }
    if bytes.first() != Some(&b'/') || bytes.contains(&0) {
        return Err(format!("{path:?} is not an absolute path"));
    }
    Ok(PathBuf::from(OsString::from_vec(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fifo(path: &str, tied: bool) -> Target {
        Target::Fifo { path: path.into(), tied }
    }

    fn log(path: &str, stream: Stream) -> Target {
        Target::Log { path: path.into(), stream }
    }

    #[test]
    fn known_forms_are_parsed() {
        for (text, expected) in [
            ("", Target::Nothing),
            ("/run/f", fifo("/run/f", false)),
            ("/run/a%20b", fifo("/run/a%20b", false)),
            ("fifo:///run/f", fifo("/run/f", false)),
            ("berth+fifo:///run/f%3Fx", fifo("/run/f?x", true)),
            ("berth+attach://", Target::Clients { once: false }),
            ("berth+attach://?once=true", Target::Clients { once: true }),
            ("cri+file:///var/log/0.log?stream=stdout", log("/var/log/0.log", Stream::Stdout)),
            ("cri+file:///a%20b%25?stream=stderr", log("/a b%", Stream::Stderr)),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for text in [
            "relative",
            "binary:///bin/logger",
            "file:///tmp/x",
            "cri+file:///a",
            "cri+file:///a?stream=both",
            "cri+file://host/a?stream=stdout",
            "cri+file:///a%2?stream=stdout",
            "cri+file:///a%zz?stream=stdout",
            "cri+file:///a%+1?stream=stdout",
            "cri+file:///a%00?stream=stdout",
            "berth+fifo:///a?b",
            "berth+attach:///a",
            "berth+attach://?once=maybe",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
