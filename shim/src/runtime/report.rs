//! What the child of a clone tells its parent: records of 16 bytes through a pipe that exec closes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::Error;
use super::plan::{Deed, Failure};

/// What an errno alone does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detail {
    None,
    /// A file system of the kernel's is to be mounted on something that is not a plain directory of the image.
    NotPlainDirectory,
    /// The target is on procfs, where a mount could hide what others rely on.
    InsideProc,
    /// What is there already is not the device that is asked for.
    OtherFile,
    /// The working directory is not below the container's root.
    OutsideRoot,
    /// A directory is to be mounted on a file, or a file on a directory.
    OtherKind,
    /// The program is there, the interpreter or loader that it names is not.
    Interpreter,
}

impl Detail {
    const ALL: [Detail; 7] = [
        Detail::None,
        Detail::NotPlainDirectory,
        Detail::InsideProc,
        Detail::OtherFile,
        Detail::OutsideRoot,
        Detail::OtherKind,
        Detail::Interpreter,
    ];

    fn cause(self, errno: Errno) -> io::Error {
        let errno = io::Error::from(errno);
        let text = match self {
            Detail::None => return errno,
            Detail::NotPlainDirectory => "the image has a link or a file there; it must be an ordinary directory",
            Detail::InsideProc => "a mount inside /proc is not allowed",
            Detail::OtherFile => "the image has something else there",
            Detail::OutsideRoot => "the directory is outside of the container's root",
            Detail::OtherKind => "a directory can only be mounted on a directory, and a file on a file",
            Detail::Interpreter => "the program exists, the interpreter it names does not",
        };
        io::Error::new(errno.kind(), text)
    }
}

/// One record: a number of a deed or of one of the moments below, an item of it, errno, detail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    what: u32,
    item: u32,
    errno: i32,
    detail: u32,
}

const READY: u32 = u32::MAX;
const EXEC: u32 = u32::MAX - 1;
const SECCOMP: u32 = u32::MAX - 2;
const SIZE: usize = 16; // bytes of a record: less than PIPE_BUF, so that it is never torn

impl Record {
    pub(super) fn ready() -> Record {
        Record { what: READY, item: 0, errno: 0, detail: 0 }
    }

    pub(super) fn deed(number: usize, failure: Failure) -> Record {
        Record {
            what: number as u32,
            item: failure.item,
            errno: failure.errno.raw_os_error(),
            detail: failure.detail as u32,
        }
    }

    pub(super) fn exec(errno: Errno, detail: Detail) -> Record {
        Record { what: EXEC, item: 0, errno: errno.raw_os_error(), detail: detail as u32 }
    }

    pub(super) fn seccomp(errno: Errno) -> Record {
        Record { what: SECCOMP, item: 0, errno: errno.raw_os_error(), detail: 0 }
    }

    fn to_bytes(self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        bytes[0..4].copy_from_slice(&self.what.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.item.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.errno.to_ne_bytes());
        bytes[12..16].copy_from_slice(&self.detail.to_ne_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; SIZE]) -> Record {
        let [a, b, c, d] = [0, 4, 8, 12].map(|at| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Record {
            what: u32::from_ne_bytes(a),
            item: u32::from_ne_bytes(b),
            errno: i32::from_ne_bytes(c),
            detail: u32::from_ne_bytes(d),
        }
    }
}

/// Tells the parent. Child. If the parent is gone there is nobody to tell.
pub(super) fn write(pipe: &OwnedFd, record: Record) {
    let _ = rustix::io::write(pipe, &record.to_bytes());
}

/// The parent's end: where the records come from and what their numbers mean.
#[derive(Debug)]
pub struct ExecReport {
    pipe: OwnedFd,
    /// For messages, as long as one of them may still fail. They hold the parent's copies of the child's descriptors.
    deeds: Vec<Deed>,
    program: String,
    /// The SELinux label that exec gives it.
    label: Option<String>,
}

impl AsFd for ExecReport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

impl ExecReport {
    pub(super) fn new(pipe: OwnedFd, deeds: Vec<Deed>, program: String, label: Option<String>) -> ExecReport {
        ExecReport { pipe, deeds, program, label }
    }

    /// Waits until the child is ready at its gate, and lets go of what it was made from.
    pub(super) fn ready(&mut self) -> Result<(), Error> {
        match self.next()? {
            Some(Record { what: READY, .. }) => {
                self.deeds = Vec::new();
                Ok(())
            }
            Some(record) => Err(self.error(record)),
            None => Err(Error::Died(self.program.clone())),
        }
    }

    /// Call it when the descriptor is readable (it blocks until then): `Ok` when exec has succeeded, and also when the
    /// process was killed before it could tell.
    ///
    /// # Errors
    /// The step that failed; `Error::Exec` with the program's path for exec itself. The process exits with 128 by
    /// itself and is to be reaped like any other.
    pub fn outcome(self) -> Result<(), Error> {
        match self.next()? {
            None => Ok(()),
            Some(record) => Err(self.error(record)),
        }
    }

    fn next(&self) -> Result<Option<Record>, Error> {
        let mut bytes = [0; SIZE];
        loop {
            match rustix::io::read(&self.pipe, &mut bytes) {
                Ok(0) => return Ok(None),
                Ok(SIZE) => return Ok(Some(Record::from_bytes(bytes))),
                Ok(_) => return Err(Error::Died(self.program.clone())),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::step("read the report of the new process", errno)),
            }
        }
    }

    /// SELinux answers as the file's mode would, and its word is in another log.
    fn with_label(&self, cause: io::Error) -> io::Error {
        match &self.label {
            Some(label) if cause.kind() == io::ErrorKind::PermissionDenied => {
                let text = format!(
                    "{cause}, as {label:?} (if the file's mode allows it, `ausearch -m avc` tells what did not)"
                );
                io::Error::new(cause.kind(), text)
            }
            _ => cause,
        }
    }

    fn error(&self, record: Record) -> Error {
        let errno = Errno::from_raw_os_error(record.errno);
        let detail = Detail::ALL.into_iter().find(|d| *d as u32 == record.detail).unwrap_or(Detail::None);
        let source = detail.cause(errno);
        match record.what {
            EXEC => Error::Exec { path: self.program.clone(), source: self.with_label(source) },
            SECCOMP => Error::Step { step: "install the seccomp filter".into(), source },
            number => match self.deeds.get(number as usize) {
                // What is asked for cannot be, on whatever host.
                Some(deed) if detail == Detail::OtherKind => {
                    Error::refused(deed.describe(record.item), source.to_string())
                }
                Some(deed) => Error::Step { step: deed.describe(record.item), source },
                None => Error::Step { step: format!("set-up step {number}"), source },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_the_pipe() {
        let failure = Failure::because(Errno::LOOP, Detail::InsideProc).of_item(3);
        let record = Record::deed(7, failure);
        assert_eq!(Record::from_bytes(record.to_bytes()), record);
    }

    #[test]
    fn an_exec_that_is_denied_tells_the_label_it_was_to_have() {
        let report = |label: Option<&str>| {
            let (pipe, _) = rustix::pipe::pipe().expect("a pipe");
            ExecReport::new(pipe, Vec::new(), "sh".into(), label.map(str::to_owned))
        };
        let told = |label, errno| report(label).error(Record::exec(errno, Detail::None)).message();
        assert!(told(Some("u:r:t:s0"), Errno::ACCESS).contains("as \"u:r:t:s0\""));
        assert!(!told(Some("u:r:t:s0"), Errno::NOENT).contains("u:r:t:s0"));
        assert!(!told(None, Errno::ACCESS).contains("ausearch"));
    }

    #[test]
    fn every_detail_has_its_own_number() {
        for (number, detail) in Detail::ALL.into_iter().enumerate() {
            assert_eq!(detail as usize, number);
        }
    }
}
