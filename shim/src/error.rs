//! Why a request could not be served. What it means as a ttrpc code is `service`'s to say.

use std::error::Error as StdError;
use std::io;

use crate::lifecycle::{Ask, Refused};
use crate::runtime;

/// Names the object, the deed and the cause; `text` joins them.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("container {0:?} is not known")]
    UnknownContainer(String),
    #[error("process {0:?} is not known")]
    UnknownExec(String),
    #[error("container {0:?} is here already")]
    ContainerExists(String),
    #[error("process {0:?} is here already")]
    ExecExists(String),
    #[error("the shim is shutting down")]
    ShuttingDown,
    #[error("{process} {refused}")]
    Refused { process: String, ask: Ask, refused: Refused },
    /// A field of the request.
    #[error("{field}: {reason}")]
    Invalid { field: &'static str, reason: String },
    #[error("{process} has no terminal")]
    NoTerminal { process: String },
    #[error(transparent)]
    Streams(#[from] crate::io::Error),
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    #[error("{deed}")]
    Failed { deed: String, source: io::Error },
}

impl Error {
    pub(crate) fn failed(deed: impl Into<String>, source: impl Into<io::Error>) -> Error {
        Error::Failed { deed: deed.into(), source: source.into() }
    }
}

/// The error and its causes in one line, e.g. `exec "/bin/x": no such file or directory`.
pub(crate) fn text(error: &dyn StdError) -> String {
    let mut text = plain(error);
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&plain(error));
        cause = error.source();
    }
    text
}

/// An error of the system as strerror says it: a small letter first, and without Rust's number behind it.
pub(crate) fn plain(error: &dyn StdError) -> String {
    let text = error.to_string();
    let Some((plain, _)) = text.split_once(" (os error") else {
        return text;
    };
    let mut plain = plain.to_owned();
    if let Some(first) = plain.get_mut(..1) {
        first.make_ascii_lowercase();
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_follow_the_deed_in_plain_words() {
        let missing = || io::Error::from_raw_os_error(2);
        for (error, expected) in [
            (Error::failed("remove the cgroup", missing()), "remove the cgroup: no such file or directory"),
            (
                runtime::Error::Exec { path: "/bin/x".into(), source: missing() }.into(),
                "exec \"/bin/x\": no such file or directory",
            ),
            (Error::UnknownContainer("a".into()), "container \"a\" is not known"),
        ] {
            assert_eq!(text(&error), expected);
        }
    }
}
