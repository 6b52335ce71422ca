//! Starting a shim by containerd's contract, and finding one again.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::Deserialize;
use tokio::net::UnixStream;
use tokio::process::Command;
use ttrpc::asynchronous::{Client, transport::Socket};

use super::client::{TASK_V2, TASK_V3};
use super::{Config, Error, SHIM, Sealed, Shim};

/// containerd's namespace argument; berth has one.
pub(super) const NAMESPACE: &str = "berth";

/// Longest path a unix socket address holds, its NUL left out. Source: `sun_path` in unix(7).
const SUN_PATH_MAX: usize = 107;

/// A shim's JSON answer to `start` (containerd's bootstrap parameters); a plain address is version 2.
#[derive(Deserialize)]
struct Bootstrap {
    version: u32,
    address: String,
    protocol: String,
}

/// Runs `start` in the bundle, for the daemon with this run root and socket, and connects to what it answers.
///
/// # Errors
/// The binary is missing, does not start, or its answer is no address that can be reached.
pub(crate) async fn start(
    config: &Config,
    sealed: &Sealed,
    (run, daemon): (&Path, &Path),
    bundle: &Path,
    id: &str,
) -> Result<Shim, Error> {
    let binary = config.binary(SHIM).map_err(Error::NoBinary)?;
    let spawn = |source| Error::Spawn { path: binary.clone(), source };
    let program = sealed.program(&binary).map_err(spawn)?;
    let mut command = Command::new(&program.path);
    crate::errands::mark(&mut command, run);
    let child = command
        .arg0(&binary)
        .args(["-namespace", NAMESPACE, "-address"])
        .arg(daemon)
        .args(["-id", id, "-bundle"])
        .arg(bundle)
        .args(["-in-bundle", "start"])
        .current_dir(bundle)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(spawn)?;
    let limit = config.timeout();
    let output = tokio::time::timeout(limit, child.wait_with_output()).await;
    let output = output.map_err(|_| Error::Deadline { method: "start", seconds: limit.as_secs() })?.map_err(spawn)?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(Error::Start(format!("{}: {}", output.status, text.trim())));
    }
    let answer = String::from_utf8_lossy(&output.stdout);
    let (address, task) = parse(answer.trim()).map_err(Error::Start)?;
    connect(&address, task, config).await
}

/// Connects to the shim of a bundle, berth's or another's, if one listens there.
///
/// # Errors
/// Nobody listens.
pub(crate) async fn connect_bundle(config: &Config, bundle: &Path) -> Result<Shim, Error> {
    match super::foreign::connect_bundle(config, bundle).await {
        Some(other) => other,
        None => connect(&bundle.join(berth_api::shim::SOCKET_FILE), TASK_V3, config).await,
    }
}

pub(super) fn parse(answer: &str) -> Result<(PathBuf, &'static str), String> {
    let (address, task) = if answer.starts_with('{') {
        let bootstrap: Bootstrap = serde_json::from_str(answer).map_err(|e| format!("answer {answer:?}: {e}"))?;
        if bootstrap.protocol != "ttrpc" {
            return Err(format!("answer {answer:?}: protocol {:?} is not ttrpc", bootstrap.protocol));
        }
        (bootstrap.address, if bootstrap.version >= 3 { TASK_V3 } else { TASK_V2 })
    } else {
        (answer.to_owned(), TASK_V2)
    };
    match address.strip_prefix("unix://") {
        Some(path) if path.starts_with('/') => Ok((path.into(), task)),
        _ => Err(format!("answer {answer:?}: no unix:///PATH address")),
    }
}

pub(super) async fn connect(path: &Path, task: &'static str, config: &Config) -> Result<Shim, Error> {
    let stream = dial(path).await.map_err(|source| Error::Connect { address: path.display().to_string(), source })?;
    Ok(Shim::new(Client::new(Socket::new(stream)), task, config.timeout()))
}

/// A path longer than a socket address is reached through a descriptor of its directory.
pub(super) async fn dial(path: &Path) -> io::Result<UnixStream> {
    if path.as_os_str().len() <= SUN_PATH_MAX {
        return UnixStream::connect(path).await;
    }
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = File::options().read(true).custom_flags(nix::libc::O_PATH | nix::libc::O_DIRECTORY).open(dir)?;
    UnixStream::connect(Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_answer() {
        let v3 = r#"{"version":3,"address":"unix:///run/x/task.sock","protocol":"ttrpc"}"#;
        assert_eq!(parse(v3), Ok(("/run/x/task.sock".into(), TASK_V3)));
        let v2 = r#"{"version":2,"address":"unix:///s","protocol":"ttrpc"}"#;
        assert_eq!(parse(v2), Ok(("/s".into(), TASK_V2)));
        assert_eq!(parse("unix:///s"), Ok(("/s".into(), TASK_V2)));
        for bad in ["", "vsock://1", r#"{"version":3,"address":"unix:///s","protocol":"grpc"}"#, "{"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
