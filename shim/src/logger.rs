//! The log of a container that another runtime's shim runs: `containerd-shim-berth-v1 logger BUNDLE`, which such a shim
//! starts by the URI `binary://…?logger=BUNDLE` and gives the container's output. So it does not pass the daemon either.
//!
//! Source of the contract: containerd's runtime/v2/logging: descriptors 3 and 4 are stdout and stderr, the closing of 5
//! says that we are ready, SIGTERM that nothing more will come.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use berth_api::shim::messages::{ReopenLogRequest, ReopenLogResponse};
use berth_api::shim::{LOGGER_FILE, LOGGER_SOCKET_FILE, LoggerConfig, service as private};
use rustix::fs::{Mode, OFlags};
use tokio::signal::unix::{SignalKind, signal};
use ttrpc::r#async::{Server, TtrpcContext};
use ttrpc::{Code, get_status};

use crate::error::text;
use crate::io::Plumbing;
use crate::io::log::{SharedLog, Stream};
use crate::{say, sys};

/// Where the contract puts the container's output.
const STREAMS: [(&str, Stream); 2] = [("/proc/self/fd/3", Stream::Stdout), ("/proc/self/fd/4", Stream::Stderr)];
/// In the bundle: what went wrong in a logger's life.
const OWN_LOG: &str = "logger.log";

/// The whole life of a logger.
///
/// # Errors
/// The bundle does not say where the log is, the log cannot be opened, or the descriptors are not there.
pub(crate) fn run(bundle: &Path) -> io::Result<()> {
    std::env::set_current_dir(bundle)?;
    let config: LoggerConfig = serde_json::from_slice(&std::fs::read(LOGGER_FILE)?)?;
    let own = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC;
    if let Ok(own) = rustix::fs::open(OWN_LOG, own, Mode::from_raw_mode(0o600)) {
        rustix::stdio::dup2_stderr(&own)?;
    }
    let log = SharedLog::open(&config.path)?;
    let mut ours = Plumbing::default();
    for (path, stream) in STREAMS {
        // A descriptor of our own on the same pipe; the one that was given is closed below with all others.
        let pipe = rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        ours.logged.push((pipe, Some(log.clone()), stream));
    }
    ours.logs.push((config.path, log));
    // Another may have been killed here; a container has one logger.
    let _ = std::fs::remove_file(LOGGER_SOCKET_FILE);
    let mask = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(LOGGER_SOCKET_FILE);
    rustix::process::umask(mask);
    let listener = listener?;
    sys::one_arena();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_io_events_per_tick(32).build()?;
    runtime.block_on(serve(ours, listener))
}

async fn serve(ours: Plumbing, listener: UnixListener) -> io::Result<()> {
    let mut told = signal(SignalKind::terminate())?;
    // Says that we are ready: from here on SIGTERM may come. Ours are others: these three were open all the while.
    sys::close_range(3, 5);
    // As the shim's: what ends a session or a service must not end a log.
    let _deaf = [SignalKind::interrupt(), SignalKind::hangup()].map(signal);
    let mut io = ours.run(None).map_err(io::Error::other)?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let service = Arc::new(Service { reopen: io.reopener() });
    let mut server = Server::new().add_listener(listener.into()).register_service(private::create_shim(service));
    server.start().await.map_err(io::Error::other)?;
    tokio::select! {
        () = io.copied() => {}
        _ = told.recv() => {}
    }
    io.drain().await;
    let _ = std::fs::remove_file(LOGGER_SOCKET_FILE);
    Ok(())
}

struct Service {
    reopen: crate::io::Reopener,
}

#[async_trait]
impl private::Shim for Service {
    async fn reopen_log(&self, _: &TtrpcContext, _: ReopenLogRequest) -> ttrpc::Result<ReopenLogResponse> {
        match self.reopen.reopen().await {
            Ok(dropped_lines) => Ok(ReopenLogResponse { dropped_lines, ..Default::default() }),
            Err(error) => {
                say!("{}", text(&error));
                Err(ttrpc::Error::RpcStatus(get_status(Code::INTERNAL, text(&error))))
            }
        }
    }
}
