//! What can go wrong, told as: what was tried, with which thing, why not, and what to do.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tonic::{Code, Status};

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "no daemon listens at {endpoint}: is berthd running? \
         (systemctl status berthd, or name another socket with --runtime-endpoint)"
    )]
    NoDaemon { endpoint: String },
    #[error("{endpoint} is not open to this user: run as root, or join the group that the socket belongs to")]
    Forbidden { endpoint: String },
    #[error("connect to {endpoint}: {reason}")]
    Connect { endpoint: String, reason: String },
    #[error("endpoint {endpoint:?} is not a Unix socket: write unix:///PATH")]
    Endpoint { endpoint: String },
    #[error("{}", Call { deed, status })]
    Call { deed: String, status: Box<Status> },
    #[error("{deed}: no answer within {} (see --help for the timeout that applies)", crate::human::seconds(*within))]
    Late { deed: String, within: Duration },
    #[error("{path}: {reason}")]
    Config { path: PathBuf, reason: String },
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("remove {path}")]
    Remove { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Refused(String),
    #[error("print")]
    Print(#[source] io::Error),
    #[error("start the runtime of this process")]
    Start(#[source] io::Error),
    /// Several objects were named; these are the ones that failed.
    #[error("{} of the objects failed", .0.len())]
    Several(Vec<Error>),
    /// A program ran and said so by its exit code. Nothing is printed: its output has been.
    #[error("exit code {0}")]
    Exit(i32),
}

impl Error {
    pub(crate) fn call(deed: impl fmt::Display, status: Status) -> Self {
        Self::Call { deed: deed.to_string(), status: Box::new(status) }
    }

    pub(crate) fn usage(reason: impl Into<String>) -> Self {
        Self::Usage(reason.into())
    }

    /// Exit status of the process: that of the program that was run, 2 for a wrong command line, else 1 as crictl's.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            // Beyond what a process can exit with there is only "failed".
            Self::Exit(code) => u8::try_from(*code).unwrap_or(1),
            Self::Usage(_) => 2,
            _ => 1,
        }
    }

    /// Prints to stderr, one line for each thing that failed, causes after colons.
    pub(crate) fn report(&self, debug: bool) {
        match self {
            Self::Exit(_) => {}
            Self::Several(errors) => errors.iter().for_each(|error| error.report(debug)),
            error => {
                let mut line = format!("berth: {error}");
                let mut cause = std::error::Error::source(error);
                while let Some(source) = cause {
                    line += &format!(": {source}");
                    cause = source.source();
                }
                eprintln!("{line}");
                if let (true, Self::Call { status, .. }) = (debug, error) {
                    eprintln!("berth: debug: {status:?}");
                }
            }
        }
    }

    /// The endpoint knows no such RPC or service.
    pub(crate) fn is_unimplemented(&self) -> bool {
        matches!(self, Self::Call { status, .. } if status.code() == Code::Unimplemented)
    }

    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Call { status, .. } if status.code() == Code::NotFound)
    }

    /// One error as it is, several together.
    pub(crate) fn all(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }
}

/// A refused call in words.
struct Call<'a> {
    deed: &'a str,
    status: &'a Status,
}

impl fmt::Display for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { deed, status } = self;
        match status.code() {
            Code::Unimplemented => write!(f, "{deed}: this runtime does not implement it"),
            Code::Unknown | Code::Internal if !status.message().is_empty() => {
                write!(f, "{deed}: {}", status.message())
            }
            code if status.message().is_empty() => write!(f, "{deed}: {code:?}"),
            code => write!(f, "{deed}: {} ({code:?})", status.message()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_deed_reason_and_code() {
        let error = Error::call("start abc", Status::failed_precondition("container abc is running"));
        assert_eq!(error.to_string(), "start abc: container abc is running (FailedPrecondition)");
        assert_eq!(error.exit_code(), 1);
    }

    #[test]
    fn a_program_gives_its_own_exit_code() {
        assert_eq!(Error::Exit(7).exit_code(), 7);
        assert_eq!(Error::Exit(255).exit_code(), 255);
        assert_eq!(Error::Exit(-1).exit_code(), 1);
    }
}
