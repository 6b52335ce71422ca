//! `berth-pod-ns` as seen from the daemon; the contract is in ARCHITECTURE.md, "The namespace keeper".

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::Error;
use crate::ledger::ProcessId;
use crate::spec::{PodLabels, Users};
use crate::task::Sealed;

/// Pause before a watch that could not be set up is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What the keeper is asked for.
#[derive(Debug, Serialize)]
pub(crate) struct Order {
    pub(crate) dir: PathBuf,
    pub(crate) namespaces: Vec<String>,
    /// The user namespace that owns them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<Users>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) hostname: String,
    pub(crate) sysctls: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) shm: Option<Shm>,
    /// SELinux's, of pid 1 and of what is mounted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) labels: Option<PodLabels>,
}

/// The pod's /dev/shm.
#[derive(Debug, Serialize)]
pub(crate) struct Shm {
    pub(crate) path: PathBuf,
    pub(crate) size_bytes: u64,
}

impl Order {
    /// Asks for a /dev/shm too.
    pub(crate) fn with_shm(mut self, path: PathBuf, size_bytes: u64) -> Self {
        self.shm = Some(Shm { path, size_bytes });
        self
    }
}

/// What the keeper made.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Made {
    /// Pid 1 of the shared pid namespace.
    pub(crate) keeper: Option<ProcessId>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Failed { error: String, step: String },
    Made { pid: Option<i32> },
}

/// Runs the keeper, for the daemon whose run root is `run`, and reads its one answer.
///
/// # Errors
/// Its error with the step, or that it could not be run or did not answer within `deadline`.
pub(crate) async fn run(
    binary: &Path,
    sealed: &Sealed,
    run: &Path,
    order: &Order,
    deadline: Duration,
) -> Result<Made, Error> {
    let spawn = |source| Error::Spawn { path: binary.to_owned(), source };
    let program = sealed.program(binary).map_err(spawn)?;
    let mut command = Command::new(&program.path);
    // Of pid 1 the containers of its pod may see binary and environment.
    command.arg0(binary).env_clear();
    #[cfg(feature = "failpoints")]
    command.envs(std::env::var_os("BERTH_FAILPOINT").map(|armed| ("BERTH_FAILPOINT", armed)));
    crate::errands::mark(&mut command, run);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .map_err(spawn)?;
    let json = serde_json::to_vec(order).map_err(|e| spawn(e.into()))?;
    let talk = async {
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(&json).await.map_err(spawn)?;
        }
        let mut text = String::new();
        if let Some(mut stdout) = child.stdout.take() {
            stdout.read_to_string(&mut text).await.map_err(spawn)?;
        }
        let status = child.wait().await.map_err(spawn)?;
        match serde_json::from_str(&text) {
            Ok(Answer::Failed { error, step }) => Err(Error::Keeper { step, message: error }),
            Ok(Answer::Made { pid }) if status.success() => Ok(pid),
            _ => Err(Error::NoAnswer(format!("{status}, {text:?}"))),
        }
    };
    let pid = tokio::time::timeout(deadline, talk).await.map_err(|_| Error::Deadline(deadline.as_secs()))??;
    match pid {
        None => Ok(Made::default()),
        Some(pid) => match ProcessId::of(pid) {
            Some(keeper) => Ok(Made { keeper: Some(keeper) }),
            None => Err(Error::NoAnswer(format!("pid {pid} is gone already"))),
        },
    }
}

/// Returns when the process is gone.
pub(crate) async fn watch(keeper: ProcessId) {
    // A watch that cannot be had says nothing of the keeper: its pod must not be taken down for that.
    while let Err(error) = wait(keeper).await {
        tracing::warn!(pid = keeper.pid, %error, "watch a namespace keeper; tried again");
        tokio::time::sleep(RETRY).await;
    }
}

async fn wait(keeper: ProcessId) -> io::Result<()> {
    let Some(pidfd) = keeper.open()? else { return Ok(()) };
    // `register` wants a promise in an unsafe block; an `OwnedFd` that is moved in keeps it by itself.
    #[allow(deprecated)]
    let pidfd = AsyncFd::new(pidfd)?;
    pidfd.readable().await.map(drop)
}
