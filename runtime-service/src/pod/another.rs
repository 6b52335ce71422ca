//! What berth's own shim does for its containers and another runtime's does not, done by the daemon: the score for the
//! kernel's choice of whom to kill, and the telling of it.

use std::fs;
use std::io;
use std::path::Path;

use berth_api::shim::{EFFECTIVE_FILE, Effective};
use serde_json::Value;

use super::lifecycle::Phase;
use super::task::Task;
use super::{Error, blocking};
use crate::ids::ContainerId;
use crate::ledger;
use crate::spec::Invalid;

/// What another runtime cannot know or do of a spec that was made for berth's own. `may_lower`: this host lets a process
/// have a lower score than the daemon's.
pub(super) fn suit(spec: &mut Value, handler: &str, may_lower: bool) -> Result<(), Invalid> {
    if !spec["annotations"][berth_api::shim::ENV_ANNOTATION].is_null() {
        let problem = format!("a value is not UTF-8, which handler {handler} cannot be told");
        return Err(Invalid::new("config.envs", problem));
    }
    // The version whose every runtime reads what the spec holds: crun before 1.9 refuses any but 1.0.
    spec["ociVersion"] = "1.0.2".into();
    // berth's shim takes what it can get; others fail.
    let asked = spec["process"]["oomScoreAdj"].as_i64().unwrap_or(0);
    if let Some(own) = score("self").filter(|own| !may_lower && i64::from(*own) > asked) {
        spec["process"]["oomScoreAdj"] = own.into();
    }
    Ok(())
}

/// Keeps the score that a container has, where it is not the one that was `asked` for.
pub(super) fn keep_score(bundle: &Path, asked: i32, has: Option<i32>) -> io::Result<()> {
    let path = bundle.join(EFFECTIVE_FILE);
    match has.filter(|has| *has != asked) {
        Some(_) => fs::write(path, ledger::encode(&Effective { oom_score_adj: has, ..Effective::default() })?),
        None => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    }
}

impl Task {
    /// Gives every process of the container of another runtime's shim the score that is asked for. One that the host
    /// withholds stays as it is, and is told.
    pub(super) async fn score(&self, id: &ContainerId, asked: i64) -> Result<(), Error> {
        let Some(container) = self.containers.get(id) else { return Ok(()) };
        let asked = i32::try_from(asked).unwrap_or(0);
        let (shared, path) = (self.shared.clone(), container.record.cgroup_path.clone());
        let init = match container.phase {
            Phase::Running { pid, .. } | Phase::Stopping { pid, .. } => i32::try_from(pid).ok(),
            _ => None,
        };
        let bundle = self.shared.ledger.roots.bundle(id);
        blocking(move || {
            let failed = |deed, path: &Path| {
                let path = path.to_owned();
                move |source| Error::Io { deed, path, source }
            };
            let pids =
                shared.host.cgroups.processes(&path).map_err(failed("list the processes of", Path::new(&path)))?;
            for pid in &pids {
                let file = format!("/proc/{pid}/oom_score_adj");
                match fs::write(&file, asked.to_string()) {
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                    // It has ended.
                    Err(error) if score(&pid.to_string()).is_none() => tracing::debug!(pid, %error, "no score"),
                    written => written.map_err(failed("write", Path::new(&file)))?,
                }
            }
            let has = init.or(pids.first().copied()).and_then(|pid| score(&pid.to_string()));
            keep_score(&bundle, asked, has).map_err(failed("write", &bundle.join(EFFECTIVE_FILE)))
        })
        .await
    }
}

/// Of a process by its number; `None` for one that has ended.
fn score(pid: &str) -> Option<i32> {
    fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).ok()?.trim().parse().ok()
}
