//! A container of another runtime's shim: started, found again, cleaned up after. What is not in containerd's contract
//! (the log, the events) is ours to add.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use berth_api::shim::{LOGGER_FILE, LoggerConfig};
use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::{Events, create_events};
use sha2::{Digest, Sha256};
use tokio::net::UnixListener;
use tokio::process::Command;
use ttrpc::asynchronous::{Server, TtrpcContext};

use super::handler::Foreign;
use super::spawn::{NAMESPACE, connect, parse};
use super::{Config, Error, SHIM, Shim};
use crate::host::aside::{Aside, Late};

/// In the bundle: the shim's address, as containerd keeps it. There until its Delete has succeeded.
const ADDRESS_FILE: &str = "address";

/// In the bundle: the shim's binary, as containerd keeps it. Written before it is started, and there until its Delete has
/// succeeded: what it left can be cleaned up though the handler is not configured any more.
const PROGRAM_FILE: &str = "shim-binary-path";

/// In the bundle of a container whose shim goes on for others: its Delete has succeeded.
const DELETED_FILE: &str = "deleted";

/// The shim that is driven by runc's command line.
pub(super) const RUNC_SHIM: &str = "containerd-shim-runc-v2";

/// Where containerd's shims keep their sockets.
const SOCKETS: &str = "/run/containerd/s";

/// In the bundle: what the shim has to say. containerd makes a FIFO of it; a shim writes to a file as well, and needs
/// nobody to read it.
const LOG_FILE: &str = "log";

/// In the bundle: which runtime the runc shim's Create was given, which its `delete` wants to know.
const RUNTIME_FILE: &str = "runtime";

/// Where shims publish what happens, below the run root.
const EVENTS_SOCKET: &str = "events.sock";

/// Threads that open logs, and how long that may take.
static LOGS: Aside = Aside::new(64);
const LOG_PATIENCE: Duration = Duration::from_secs(10);

/// Accepts the events of shims, which do not start without somebody who does. What they tell is known by Wait; the socket
/// is there so that they need not wait for an answer.
pub(crate) struct EventSink {
    server: Server,
}

struct Deaf;

#[async_trait]
impl Events for Deaf {
    async fn forward(&self, _: &TtrpcContext, request: api::ForwardRequest) -> ttrpc::Result<api::Empty> {
        tracing::debug!(topic = request.envelope.topic, "an event of a shim");
        Ok(api::Empty::new())
    }
}

impl EventSink {
    /// Listens below `run`.
    ///
    /// # Errors
    /// The socket cannot be bound, e.g. since its path is longer than an address.
    pub(crate) async fn listen(run: &Path) -> io::Result<Self> {
        let path = run.join(EVENTS_SOCKET);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        let mut server = Server::new().add_listener(listener.into()).register_service(create_events(Arc::new(Deaf)));
        server.start().await.map_err(io::Error::other)?;
        Ok(Self { server })
    }

    pub(crate) async fn end(mut self) {
        let _ = self.server.shutdown().await;
    }
}

/// The URI of a container's output, and what its logger is told, in the bundle.
///
/// # Errors
/// There is no logger, or the bundle cannot be written.
pub(crate) async fn log_uri(config: &Config, bundle: &Path, log: &str) -> Result<String, Error> {
    if log.is_empty() {
        return Ok(String::new());
    }
    let path = bundle.join(LOGGER_FILE);
    let io = |source| Error::Io { deed: format!("write {}", path.display()), source };
    // A logger cannot answer Create: what it would meet is met here.
    let path_of_log = log.to_owned();
    let late = |Late| Err(io::Error::new(io::ErrorKind::TimedOut, "its file system does not answer"));
    let opened = LOGS.run(LOG_PATIENCE, move || open_log(&path_of_log)).await.unwrap_or_else(late);
    opened.map_err(|source| Error::Io { deed: format!("open the log {log}"), source })?;
    let told = serde_json::to_vec(&LoggerConfig { path: log.into() }).map_err(|e| io(e.into()))?;
    std::fs::write(&path, told).map_err(io)?;
    let logger = config.binary(SHIM).map_err(Error::NoBinary)?;
    // Ids and run roots have no letter that a query must hide; see `ids` and `serve`.
    Ok(format!("binary://{}?logger={}", logger.display(), bundle.display()))
}

/// A regular file, or to be one: what the logger takes.
fn open_log(path: &str) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = nix::libc::O_NONBLOCK | nix::libc::O_NOFOLLOW | nix::libc::O_NOCTTY;
    let file = std::fs::File::options().append(true).create(true).mode(0o640).custom_flags(flags).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "a log is a regular file, and this is none")),
    }
}

fn command(program: &Path, (run, daemon): (&Path, &Path), bundle: &Path, id: &str) -> Command {
    let mut command = Command::new(program);
    // Not marked as an errand: what `start` leaves behind has no session of its own, and stays.
    command
        .args(["-namespace", NAMESPACE, "-address"])
        .arg(daemon)
        .args(["-publish-binary", "/bin/false", "-id", id, "-bundle"])
        .arg(bundle)
        .env("TTRPC_ADDRESS", run.join(EVENTS_SOCKET))
        .current_dir(bundle)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn answer(config: &Config, mut command: Command, method: &'static str) -> Result<Vec<u8>, Error> {
    let path = PathBuf::from(command.as_std().get_program());
    let limit = config.timeout();
    let output = tokio::time::timeout(limit, command.output()).await;
    let output = output.map_err(|_| Error::Deadline { method, seconds: limit.as_secs() })?;
    let output = output.map_err(|source| Error::Spawn { path, source })?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(Error::Start(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))),
    }
}

/// Runs `start` in the bundle and connects to what it answers.
///
/// # Errors
/// The binary is missing, does not start, or its answer is no address that can be reached.
pub(crate) async fn start(
    config: &Config,
    handler: &Foreign,
    daemon: (&Path, &Path),
    bundle: &Path,
    id: &str,
) -> Result<Shim, Error> {
    let write = |name: &str, content: &[u8]| {
        let path = bundle.join(name);
        std::fs::write(&path, content).map_err(|source| Error::Io { deed: format!("write {}", path.display()), source })
    };
    let program = handler.binary()?;
    write(LOG_FILE, b"")?;
    step!("create_container::handler-intent", write(PROGRAM_FILE, program.as_os_str().as_bytes()))?;
    let mut command = command(&program, daemon, bundle, id);
    command.arg("start");
    let said = step!("create_container::handler-start", answer(config, command, "start").await)?;
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    step!("create_container::handler-address", write(ADDRESS_FILE, said.as_bytes()))?;
    let (address, task) = parse(&said).map_err(Error::Start)?;
    Ok(connect(&address, task, config).await?.of_another(bundle))
}

/// Connects to the shim of another runtime that a bundle names; `None` when it names none.
///
/// # Errors
/// Nobody listens there.
pub(super) async fn connect_bundle(config: &Config, bundle: &Path) -> Option<Result<Shim, Error>> {
    let path = bundle.join(ADDRESS_FILE);
    let said = match std::fs::read_to_string(&path) {
        Ok(said) => said,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(source) => return Some(Err(Error::Io { deed: format!("read {}", path.display()), source })),
    };
    Some(match parse(said.trim()) {
        Ok((address, task)) => connect(&address, task, config).await.map(|shim| shim.of_another(bundle)),
        Err(problem) => Err(Error::Start(problem)),
    })
}

/// The shim's Delete has succeeded: there is nothing to clean up after it.
pub(crate) fn deleted(bundle: &Path) {
    for name in [ADDRESS_FILE, PROGRAM_FILE] {
        let _ = std::fs::remove_file(bundle.join(name));
    }
}

/// The shim's Delete has succeeded, and the shim goes on for other containers: it and its socket are to be cleaned up.
pub(crate) fn deleted_alone(bundle: &Path) {
    // When this cannot be written, more than is left is cleaned up.
    let _ = std::fs::write(bundle.join(DELETED_FILE), b"");
}

/// Another runtime's shim was to be started in this bundle, and not seen to have let go of everything.
pub(crate) fn owes(bundle: &Path) -> bool {
    bundle.join(PROGRAM_FILE).exists() || has_answered(bundle)
}

/// It was started.
pub(crate) fn has_answered(bundle: &Path) -> bool {
    bundle.join(ADDRESS_FILE).exists()
}

/// The binary that was, or was to be, started in this bundle.
pub(crate) fn program(bundle: &Path) -> Option<PathBuf> {
    let kept = std::fs::read(bundle.join(PROGRAM_FILE)).ok().filter(|path| !path.is_empty())?;
    Some(PathBuf::from(OsString::from_vec(kept)))
}

/// Runs the shim's `delete`, which takes down what a dead one left: the runtime's own record, the mount of the rootfs. The
/// binary is the one that was started; of a bundle that does not tell it is the handler's. Its socket is another call's.
///
/// # Errors
/// The binary is missing, or says that it could not.
pub(crate) async fn clean_up(
    config: &Config,
    program: &Path,
    daemon: (&Path, &Path),
    bundle: &Path,
    id: &str,
) -> Result<(), Error> {
    // One of runc's that died before its Create began has nothing that it could tell runc to delete.
    let knows = !is_runc(program) || bundle.join(RUNTIME_FILE).exists();
    if knows && !bundle.join(DELETED_FILE).exists() {
        let mut command = command(program, daemon, bundle, id);
        command.arg("delete");
        answer(config, command, "delete").await?;
    }
    Ok(())
}

fn is_runc(program: &Path) -> bool {
    program.file_name() == Some(OsStr::new(RUNC_SHIM))
}

/// Removes what a shim that is dead listened at. `daemon` is the socket that it was told.
///
/// # Errors
/// The kernel's answer, with the path.
pub(crate) fn remove_socket(program: &Path, daemon: &Path, bundle: &Path, id: &str) -> Result<(), Error> {
    let Some(socket) = socket(is_runc(program), daemon, bundle, id) else { return Ok(()) };
    match std::fs::remove_file(&socket) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Io { deed: format!("remove {}", socket.display()), source })
        }
        _ => Ok(()),
    }
}

/// Where a shim that is dead listened; `None` for one that is not known.
fn socket(is_runc: bool, daemon: &Path, bundle: &Path, id: &str) -> Option<PathBuf> {
    if let Ok(said) = std::fs::read_to_string(bundle.join(ADDRESS_FILE)) {
        // Only there: what else a shim may have answered is not ours to remove.
        return Some(parse(said.trim()).ok()?.0).filter(|path| path.starts_with(SOCKETS));
    }
    // It did not live to be asked. Source: `SocketAddress` of containerd's shim library.
    let name = is_runc.then(|| Sha256::digest(format!("{}/{NAMESPACE}/{id}", daemon.display())))?;
    Some(Path::new(SOCKETS).join(hex::encode(name)))
}
