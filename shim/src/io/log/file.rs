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

/// Only a plain file: opening a FIFO would wait for a reader, and a link leads to where someone else may write. O_CLOEXEC
/// is std's own doing.
fn open(path: &Path) -> io::Result<File> {
    const NO_FILE: &str = "a log is a regular file, and this is none: remove what is there";
    let refused = || io::Error::new(io::ErrorKind::InvalidInput, NO_FILE);
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_NOCTTY;
    let opened = OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(flags).open(path);
    let file = opened.map_err(|error| match error.raw_os_error() {
        // A link; a FIFO without a reader, or a socket.
        Some(libc::ELOOP | libc::ENXIO) => refused(),
        _ => error,
    })?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(refused()) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_plain_file_is_refused_at_once() {
        let dir = tempfile::tempdir().expect("make a directory");
        let at = |name: &str| dir.path().join(name);
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a FIFO");
        let _reader =
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(at("fifo")).expect("its reader");
        rustix::fs::mknodat(rustix::fs::CWD, at("unread"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .expect("a FIFO");
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).expect("a socket");
        std::os::unix::fs::symlink("elsewhere", at("link")).expect("a link");
        for name in ["fifo", "unread", "socket", "link"] {
            let error = open(&at(name)).expect_err(name);
            assert!(error.to_string().contains("regular file"), "{name}: {error}");
        }
        assert!(!at("elsewhere").exists(), "nothing was made through the link");
        open(&at("plain")).expect("a file is made");
        open(&at("plain")).expect("and taken up again");
    }
}
