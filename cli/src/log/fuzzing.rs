//! Log files, which a container's output fills, for `test/fuzz`: that takes this file and those that it uses, since the client
//! is a binary.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::line::{Stream, parse};
use super::tail;

/// A file that every input is written to.
pub(crate) struct LogFile(File);

impl LogFile {
    /// # Errors
    /// It cannot be made.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        File::options().read(true).write(true).create(true).truncate(true).open(path).map(Self)
    }

    /// A log of any content: the last lines begin where a line begins, more of them begin no later, and a line that is in
    /// form has a time and ends where it ends.
    ///
    /// # Panics
    /// When that is broken, or the file cannot be written.
    pub(crate) fn feed(&self, data: &[u8]) {
        let Self(file) = self;
        file.set_len(0).and_then(|()| file.write_all_at(data, 0)).expect("write a log");
        for stream in [None, Some(Stream::Stdout), Some(Stream::Stderr)] {
            let mut before = data.len() as u64;
            for lines in 0..4 {
                let start = tail::start(file, lines, stream).expect("read a log");
                assert!(start <= before, "{lines} lines begin at {start}, fewer at {before}");
                before = start;
                let at_a_line = start == 0 || data.get(start as usize - 1) == Some(&b'\n') || lines == 0;
                assert!(at_a_line, "{lines} lines begin at {start}");
            }
        }
        for line in data.split(|byte| *byte == b'\n').filter_map(parse) {
            assert!(!line.text.contains(&b'\n') && line.time.contains('T'));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::LogFile;
    use crate::kept;

    #[test]
    fn kept_inputs_are_borne() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = LogFile::at(&directory.path().join("log")).expect("a file");
        kept::feed_each(&[("log_lines", &|data| file.feed(data))]);
    }
}
