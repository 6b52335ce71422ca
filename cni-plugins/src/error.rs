//! What can go wrong in a plugin. Which CNI code that is, is decided in `skel`.

use std::io;
use std::path::{Path, PathBuf};

use berth_api::cni;

/// Why a call failed: the deed and the thing; the cause is the source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The environment does not hold a call.
    #[error(transparent)]
    Call(#[from] cni::call::CallError),
    /// Stdin could not be read.
    #[error("read the configuration from stdin")]
    Stdin(#[source] io::Error),
    /// Stdin holds more than a configuration may.
    #[error("the configuration on stdin is larger than {0} bytes")]
    TooLarge(usize),
    /// Stdin does not hold a JSON object of the right shape.
    #[error("decode the configuration")]
    Decode(#[source] serde_json::Error),
    /// A version that we do not speak.
    #[error(transparent)]
    Version(#[from] cni::version::UnknownVersion),
    /// A key is unknown.
    #[error("unknown option {key:?}{}", suggest(nearest))]
    UnknownOption {
        /// Its path.
        key: String,
        /// The known key most like it, if any is.
        nearest: Option<&'static str>,
    },
    /// A key's value cannot be.
    #[error("{key}: {problem}")]
    Config {
        /// Its path.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file operation failed.
    #[error("{deed} {}", path.display())]
    File {
        /// What was tried.
        deed: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel refused a change or a question about the network.
    #[error("{deed} {thing}")]
    Kernel {
        /// What was tried.
        deed: &'static str,
        /// On what.
        thing: String,
        /// Why not.
        source: io::Error,
    },
    /// No address is free.
    #[error("no free address in {ranges} of network {network:?}")]
    Exhausted {
        /// The ranges that were searched.
        ranges: String,
        /// Whose they are.
        network: String,
    },
    /// A port of the host is somebody else's.
    #[error("host port {port} is held by {holder}: choose another, or take the holder down")]
    PortTaken {
        /// Address, port and protocol.
        port: String,
        /// Pod or process.
        holder: String,
    },
    /// CHECK found something that is not as ADD left it.
    #[error("check: {0}")]
    Changed(String),
    /// STATUS: ADD could not be served.
    #[error("not available: {0}")]
    NotAvailable(String),
    /// The plugin that addresses are delegated to could not be run.
    #[error("run the IPAM plugin {kind:?}")]
    Delegate {
        /// Its name.
        kind: String,
        /// Why not.
        source: io::Error,
    },
    /// The plugin that addresses are delegated to answered with an error of its own.
    #[error("{}", .0.msg)]
    Delegated(cni::error::Error),
}

fn suggest(nearest: &Option<&'static str>) -> String {
    nearest.map(|key| format!("; did you mean {key:?}?")).unwrap_or_default()
}

impl Error {
    /// A key whose value cannot be.
    pub(crate) fn config(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Error::Config { key: key.into(), problem: problem.into() }
    }

    /// For `map_err`: a file operation failed.
    pub(crate) fn file(deed: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Error::File { deed, path: path.into(), source }
    }

    /// For `map_err`: the kernel refused.
    pub(crate) fn kernel(deed: &'static str, thing: impl ToString) -> impl FnOnce(io::Error) -> Self {
        move |source| Error::Kernel { deed, thing: thing.to_string(), source }
    }
}
