//! The file behind a log.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::Sink;
use crate::step;

/// A file that is only ever appended to, by this process alone.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
}

impl LogFile {
    pub(super) fn open(path: &Path) -> io::Result<LogFile> {
        Ok(LogFile { path: path.to_owned(), file: open(path)? })
    }
}

/// O_CLOEXEC is std's own doing.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

impl Sink for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn cut(&mut self, bytes: u64) -> io::Result<()> {
        match bytes {
            0 => Ok(()),
            _ => self.file.set_len(self.file.metadata()?.len().saturating_sub(bytes)),
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        let new = step!("reopen_log::open-new", open(&self.path))?;
        step!("reopen_log::swap", self.file = new);
        Ok(())
    }
}
