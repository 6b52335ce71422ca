//! Where in a log file the last lines begin, found from its end.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::line::{Stream, parse};

/// Bytes read at a time.
const CHUNK: u64 = 64 << 10;

/// Offset at which the last `lines` lines of the program begin, counting only those of `stream` if one is given. A
/// line that was split in the log counts once. Zero when there are not so many.
pub(crate) fn start(file: &File, lines: u64, stream: Option<Stream>) -> io::Result<u64> {
    let end = file.metadata()?.len();
    if lines == 0 {
        return Ok(end);
    }
    let mut seen = 0;
    // Bytes from the start of a line that has begun in a chunk before this one.
    let mut rest: Vec<u8> = Vec::new();
    let mut offset = end;
    let mut begin = end;
    while offset > 0 {
        let size = CHUNK.min(offset);
        offset -= size;
        let mut bytes = vec![0; size as usize];
        file.read_exact_at(&mut bytes, offset)?;
        bytes.extend_from_slice(&rest);
        let mut line_end = bytes.len();
        while let Some(newline) = bytes[..line_end].iter().rposition(|byte| *byte == b'\n') {
            // What follows the last newline of the file is a line still being written, or nothing.
            let (whole, at) = (&bytes[newline + 1..line_end], offset + newline as u64 + 1);
            if ends_a_line(whole, stream) {
                seen += 1;
                if seen > lines {
                    return Ok(begin);
                }
            }
            if !whole.is_empty() {
                begin = at;
            }
            line_end = newline;
        }
        rest = bytes[..line_end].to_vec();
    }
    Ok(if ends_a_line(&rest, stream) && seen == lines { begin } else { 0 })
}

fn ends_a_line(line: &[u8], stream: Option<Stream>) -> bool {
    parse(line).is_some_and(|line| !line.partial && stream.is_none_or(|only| only == line.stream))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn check(lines: &[String], tail: u64, stream: Option<Stream>, want: &[String]) {
        let mut file = tempfile::tempfile().unwrap();
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        file.write_all(text.as_bytes()).unwrap();
        let start = start(&file, tail, stream).unwrap() as usize;
        assert_eq!(text[start..].lines().collect::<Vec<_>>(), want, "tail {tail}");
    }

    fn log(tags: &str) -> Vec<String> {
        let tags = tags.chars().enumerate();
        tags.map(|(i, tag)| {
            let stream = if tag.is_lowercase() { "stderr" } else { "stdout" };
            format!("2024-05-01T12:00:00Z {stream} {} line {i}", tag.to_uppercase())
        })
        .collect()
    }

    #[test]
    fn the_last_lines_are_whole_ones() {
        let lines = log("FFPPFF");
        check(&lines, 0, None, &[]);
        check(&lines, 1, None, &lines[5..]);
        check(&lines, 2, None, &lines[2..]);
        check(&lines, 3, None, &lines[1..]);
        check(&lines, 4, None, &lines);
        check(&lines, 99, None, &lines);
        check(&[], 3, None, &[]);
    }

    #[test]
    fn a_stream_can_be_counted_alone() {
        let lines = log("FfFfF");
        check(&lines, 1, Some(Stream::Stderr), &lines[2..]);
        check(&lines, 2, Some(Stream::Stdout), &lines[1..]);
    }

    #[test]
    fn lines_across_chunks_are_found() {
        let lines: Vec<String> =
            (0..300).map(|i| format!("2024-05-01T12:00:00Z stdout F {i} {}", "x".repeat(1000))).collect();
        for tail in [1, 64, 65, 66, 200, 299, 300, 301] {
            check(&lines, tail, None, &lines[300usize.saturating_sub(tail as usize)..]);
        }
    }
}
