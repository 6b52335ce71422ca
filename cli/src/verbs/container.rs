//! `start`, `stop` and `rm`: containers that exist.

use std::path::Path;
use std::time::Duration;

use berth_api::cri::{
    ContainerState, ContainerStatus, ContainerStatusRequest, RemoveContainerRequest, StartContainerRequest,
    StopContainerRequest,
};

use super::choose;
use super::take::{each, named_or_all};
use crate::error::Error;
use crate::node::Node;
use crate::output::{line, short};

#[derive(clap::Args)]
pub(crate) struct Start {
    /// Ids or unambiguous prefixes
    #[arg(required = true, value_name = "CONTAINER-ID")]
    ids: Vec<String>,
}

impl Start {
    pub(crate) async fn run(self, node: &Node) -> Result<(), Error> {
        each(&self.ids, async |id| {
            start(node, id).await?;
            line(id)
        })
        .await
    }
}

#[derive(clap::Args)]
pub(crate) struct Stop {
    /// Ids or unambiguous prefixes
    #[arg(value_name = "CONTAINER-ID")]
    ids: Vec<String>,
    /// All that run
    #[arg(short, long)]
    all: bool,
    /// Seconds from the stop signal to the kill
    #[arg(short, long, default_value_t = 0)]
    timeout: i64,
}

impl Stop {
    pub(crate) async fn run(self, node: &Node) -> Result<(), Error> {
        let ids = named_or_all(self.ids, self.all, async || list(node, false).await).await?;
        if ids.is_empty() {
            return line("No running containers found.");
        }
        each(&ids, async |id| {
            stop(node, id, self.timeout).await?;
            line(id)
        })
        .await
    }
}

#[derive(clap::Args)]
pub(crate) struct Remove {
    /// Ids or unambiguous prefixes
    #[arg(value_name = "CONTAINER-ID")]
    ids: Vec<String>,
    /// All there are
    #[arg(short, long)]
    all: bool,
    /// Kill those that run
    #[arg(short, long)]
    force: bool,
    /// Leave the log file and its rotated parts
    #[arg(short, long)]
    keep_logs: bool,
}

impl Remove {
    pub(crate) async fn run(self, node: &Node) -> Result<(), Error> {
        let ids = named_or_all(self.ids, self.all, async || list(node, true).await).await?;
        each(&ids, async |id| {
            let container = status(node, id).await?;
            if container.state() == ContainerState::ContainerRunning {
                if !self.force {
                    return Err(Error::Refused(format!(
                        "remove container {id}: it is running: stop it first, or --force"
                    )));
                }
                stop(node, &container.id, 0).await?;
            }
            remove(node, &container.id).await?;
            if !self.keep_logs && !container.log_path.is_empty() {
                remove_logs(Path::new(&container.log_path))?;
            }
            line(id)
        })
        .await
    }
}

/// Ids of containers, those that do not run only with `all`.
async fn list(node: &Node, all: bool) -> Result<Vec<String>, Error> {
    let containers = choose::ContainerFilters::default().list(node, None, all).await?;
    Ok(containers.into_iter().map(|container| container.id).collect())
}

pub(super) async fn start(node: &Node, id: &str) -> Result<(), Error> {
    let mut runtime = node.runtime().await?;
    let request = StartContainerRequest { container_id: id.into() };
    node.answer(format!("start container {}", short(id)), None, runtime.start_container(request)).await.map(drop)
}

/// `grace` in seconds; zero kills at once.
pub(super) async fn stop(node: &Node, id: &str, grace: i64) -> Result<(), Error> {
    let mut runtime = node.runtime().await?;
    let request = StopContainerRequest { container_id: id.into(), timeout: grace };
    // The runtime keeps to the grace period; a minute beyond it means that something is stuck.
    let within = Duration::from_secs(grace.max(0).unsigned_abs() + 60);
    node.answer(format!("stop container {}", short(id)), Some(within), runtime.stop_container(request)).await.map(drop)
}

async fn remove(node: &Node, id: &str) -> Result<(), Error> {
    let mut runtime = node.runtime().await?;
    let request = RemoveContainerRequest { container_id: id.into() };
    node.answer(format!("remove container {}", short(id)), None, runtime.remove_container(request)).await.map(drop)
}

pub(super) async fn status(node: &Node, id: &str) -> Result<ContainerStatus, Error> {
    let mut runtime = node.runtime().await?;
    let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
    let deed = format!("look at container {}", short(id));
    let answer = node.quick(&deed, runtime.container_status(request)).await?;
    answer.status.ok_or_else(|| Error::Refused(format!("{deed}: the answer has no status")))
}

/// Removes a log and what rotation left beside it (`LOG.…`). Nothing there is nothing to do.
pub(super) fn remove_logs(log: &Path) -> Result<(), Error> {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name().and_then(|name| name.to_str())) else {
        return Ok(());
    };
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let found = entry.file_name();
        let Some(found) = found.to_str() else {
            continue;
        };
        if found == name || found.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')) {
            let path = entry.path();
            std::fs::remove_file(&path).map_err(|source| Error::Remove { path, source })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_goes_with_its_rotated_parts_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["0.log", "0.log.20240501-120000", "0.log.1.gz", "0.logs", "1.log"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        remove_logs(&dir.path().join("0.log")).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["0.logs", "1.log"]);
        remove_logs(&dir.path().join("none/0.log")).unwrap();
    }
}
