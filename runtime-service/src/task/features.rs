//! What the shim can do on this kernel, asked of it once.

use std::process::Stdio;

use berth_api::shim::Features;
use tokio::process::Command;
use tokio::sync::OnceCell;

use super::{Config, Error, SHIM};
use crate::ledger::Roots;

/// The answer, once there was one.
#[derive(Debug, Default)]
pub(crate) struct Known(OnceCell<Features>);

impl Known {
    /// The shim's answer for the daemon with these roots. A failure is not kept: the next asker tries again.
    ///
    /// # Errors
    /// The binary is missing, does not run, or gives no answer.
    pub(crate) async fn get(&self, config: &Config, roots: &Roots) -> Result<&Features, Error> {
        self.0.get_or_try_init(|| ask(config, roots)).await
    }
}

async fn ask(config: &Config, roots: &Roots) -> Result<Features, Error> {
    let binary = config.binary(SHIM).map_err(Error::NoBinary)?;
    let spawn = |source| Error::Spawn { path: binary.clone(), source };
    let mut command = Command::new(&binary);
    crate::errands::mark(&mut command, &roots.run);
    command.arg("-bundle").arg(roots.data.join("images")).arg("features").stdin(Stdio::null()).kill_on_drop(true);
    let limit = config.timeout();
    let output = tokio::time::timeout(limit, command.output()).await;
    let output = output.map_err(|_| Error::Deadline { method: "features", seconds: limit.as_secs() })?;
    let output = output.map_err(spawn)?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(Error::Features(format!("{}: {}", output.status, text.trim())));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| {
        let answer = String::from_utf8_lossy(&output.stdout);
        Error::Features(format!("answer {:?}: {error}", answer.trim()))
    })
}
