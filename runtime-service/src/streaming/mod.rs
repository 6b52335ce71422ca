//! Exec, Attach and PortForward: an RPC allows a stream and gives its URL, one connection to the server here has it.
//!
//! `server` (HTTP) → `negotiate` → `spdy` or `websocket` make a `session`, `exec` or `attach` relays it; port-forward takes
//! SPDY's streams as they are. What is a frame and what it means is decided by pure code; sockets are in `wire`.

mod attach;
mod exec;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod negotiate;
mod portforward;
mod resize;
mod server;
mod session;
mod spdy;
mod status;
mod tls;
mod token;
mod websocket;
mod wire;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

pub(crate) use attach::Attach;
pub(crate) use exec::Exec;
pub(crate) use portforward::PortForward;
pub(crate) use server::Server;
pub(crate) use session::Streams;
pub(crate) use token::Error as TokenError;

/// The server of exec, attach and port-forward.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `ADDRESS:PORT`; port 0: a free one.
    pub listen: String,
    /// PEM file of the server's certificate and those above it; empty: no TLS.
    pub tls_cert: PathBuf,
    /// PEM file of its key.
    pub tls_key: PathBuf,
    /// PEM file of the CA whose clients are let in; empty: a client needs its token only.
    pub client_ca: PathBuf,
    /// Seconds without a byte in either direction after which a stream is ended; 0: never.
    pub idle_timeout_s: u64,
    /// Seconds that a client may take to open its streams once it is connected, at least 1.
    pub creation_timeout_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:0".into(),
            tls_cert: PathBuf::new(),
            tls_key: PathBuf::new(),
            client_ca: PathBuf::new(),
            idle_timeout_s: 4 * 3600,
            creation_timeout_s: 30,
        }
    }
}

impl Config {
    /// Whether a server can be made of it; whether it may listen there shows when it does.
    ///
    /// # Errors
    /// The address or the certificates are none.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.address()?;
        tls::acceptor(self).map(drop)
    }

    fn address(&self) -> Result<SocketAddr, Error> {
        self.listen.parse().map_err(|_| Error::Address(self.listen.clone()))
    }

    fn idle(&self) -> Option<Duration> {
        (self.idle_timeout_s > 0).then(|| Duration::from_secs(self.idle_timeout_s))
    }

    fn creation(&self) -> Duration {
        Duration::from_secs(self.creation_timeout_s.max(1))
    }
}

/// Why the server cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("listen {0:?} is no ADDRESS:PORT")]
    Address(String),
    #[error("listen at {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("tls_cert and tls_key belong together, and client_ca needs both")]
    TlsHalf,
    #[error("read {path}: {why}")]
    Pem { path: PathBuf, why: String },
    #[error("TLS: {0}")]
    Tls(String),
}

/// What a token allows.
pub(crate) enum Allowed {
    Exec(Exec),
    Attach(Attach),
    PortForward(PortForward),
}
