//! How a container's end is seen, what it means, and what follows from it.

use std::time::{Duration, SystemTime};

use berth_api::shim::OomLimit;

use super::lifecycle::{Act, End, Event, Phase, Reason};
use super::task::{Fact, Task};
use super::view::PodState;
use super::{Error, blocking};
use crate::ids::ContainerId;
use crate::task::Exit;

impl Task {
    /// Waits for the container's end in a task of its own, which tells the owner.
    pub(super) fn watch(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(shim) = container.shim.clone() else { return };
        let (facts, id) = (self.facts.clone(), id.clone());
        let watcher = tokio::spawn(async move {
            let fact = match shim.wait(id.as_str(), "").await {
                Ok(exit) => Fact::Ended { container: id, exit },
                Err(error) => Fact::ShimGone { container: id, cause: error.to_string() },
            };
            let _ = facts.send(fact);
        });
        container.watcher = Some(watcher.abort_handle());
    }

    /// An end, or a shim that is gone.
    pub(super) async fn see_container(&mut self, fact: Fact) {
        match fact {
            Fact::Ended { container, exit } => {
                let end = self.end_of(&container, exit).await;
                self.ended(&container, end).await;
            }
            Fact::ShimGone { container, cause } => self.shim_gone(&container, &cause).await,
            Fact::KeeperGone => {}
        }
    }

    async fn end_of(&self, id: &ContainerId, exit: Exit) -> End {
        let record = super::container_steps::exit_record(self.shared.ledger.roots.bundle(id)).await;
        let oom = match &record {
            Some(record) => record.oom_killed,
            // Another runtime's shim leaves no record, and its container's cgroup is there until Delete.
            None => self.containers.get(id).is_some_and(|c| self.shared.host.cgroups.oom_killed(&c.record.cgroup_path)),
        };
        let record_limit = record.as_ref().and_then(|r| r.oom_limit.clone());
        // A daemon that was killed between the start and its record of it knows from the shim.
        let kept = record.as_ref().and_then(|r| moment(r.started_at_ns?));
        let started = self.started_at(id).or(kept);
        let code = i32::try_from(exit.status).unwrap_or(255);
        let asked = self.containers.get(id).is_some_and(|c| matches!(c.phase, Phase::Stopping { .. }));
        let oom = oom
            && match code {
                137 => !record.as_ref().is_some_and(|r| r.killed_by_request),
                // One of its processes was killed, and that is taken for why it failed, unless somebody stopped it.
                _ => code != 0 && !asked,
            };
        let keeper_died = code == 137 && !oom && self.keeper_died(id).await;
        let own_words = match code {
            137 => String::new(),
            code => format!(" and one of its processes was killed; it ended with exit code {code} by itself"),
        };
        let (reason, message) = match code {
            0 => (Reason::Completed, String::new()),
            _ if oom && record.is_none() => (Reason::OOMKilled, format!("a memory limit was reached{own_words}")),
            _ if oom => (Reason::OOMKilled, format!("{}{own_words}", oom_message(record_limit.as_ref()))),
            137 if keeper_died => (Reason::PodNamespaceDied, "the pod's namespace keeper died".to_owned()),
            _ => (Reason::Error, String::new()),
        };
        let at = moment(exit.at_ns).unwrap_or_else(SystemTime::now);
        End { code, at, started, reason, message }
    }

    /// The container was killed because its pod's pid 1 died. The kernel kills the others first and lets pid 1 go last, so
    /// its death may be seen only a moment after theirs.
    async fn keeper_died(&self, id: &ContainerId) -> bool {
        const MOMENT: Duration = Duration::from_millis(100);
        let asked = self.containers.get(id).is_some_and(|c| matches!(c.phase, Phase::Stopping { .. }));
        let shared = self.held.namespaces.iter().any(|n| n == "pid");
        match self.held.keeper {
            _ if !shared || asked => false,
            None => true,
            Some(keeper) => tokio::time::timeout(MOMENT, crate::sandbox::watch_keeper(keeper)).await.is_ok(),
        }
    }

    fn started_at(&self, id: &ContainerId) -> Option<SystemTime> {
        match self.containers.get(id)?.phase {
            Phase::Running { since, .. } | Phase::Stopping { since, .. } => Some(since),
            _ => None,
        }
    }

    /// Records an end before anyone is told, tells those who wait, and lets the shim go.
    pub(super) async fn ended(&mut self, id: &ContainerId, mut end: End) {
        // A clock that stepped back must not make a container end before it began.
        if let Some(started) = end.started {
            end.at = end.at.max(started);
        }
        let (ledger, pod, container, written) = (self.shared.ledger.clone(), self.id.clone(), id.clone(), end.clone());
        let record = blocking(move || {
            step!("stop_container::state-commit", ledger.end_container(&pod, &container, &written))
                .map_err(Error::ledger("record a container's end"))
        });
        if let Err(error) = record.await {
            // The shim's exit file still says it, so nothing is lost while this boot lasts.
            tracing::error!(pod = %self.id, container = %id, error = super::chain(&error), "record an end");
        }
        if self.step(id, Event::Ended(end)).is_err() {
            return;
        }
        let Some(container) = self.containers.get_mut(id) else { return };
        container.give_up_at = None;
        let replies: Vec<_> = container.stopping.drain(..).collect();
        if self.is_sandbox_container(id) && self.state == PodState::Ready {
            tracing::error!(pod = %self.id, "the sandbox container has ended; the pod is not ready any more");
            self.state = PodState::NotReady;
        }
        self.publish();
        for reply in replies {
            let _ = reply.send(Ok(()));
        }
        self.release_shim(id).await;
        self.publish();
    }

    /// The shim died: whatever it kept is killed by cgroup, and only then is the container over.
    pub(super) async fn shim_gone(&mut self, id: &ContainerId, cause: &str) {
        let bundle = self.shared.ledger.roots.bundle(id);
        let started = self.started_at(id).or_else(|| super::container_steps::kept_start(&bundle).map(|(at, _)| at));
        if !matches!(self.step(id, Event::ShimGone), Ok(Some(Act::KillByCgroup))) {
            return;
        }
        tracing::error!(pod = %self.id, container = %id, cause, "the shim died; killing its container by cgroup");
        self.shared.metrics.shim_died();
        self.publish();
        match self.kill_by_cgroup(id).await {
            Ok(()) => {
                // It may have ended and been recorded before its shim died.
                let record = super::container_steps::exit_record(self.shared.ledger.roots.bundle(id)).await;
                let end = match record {
                    Some(record) => {
                        let exit = Exit { status: record.status, at_ns: record.exited_at_ns };
                        let end = self.end_of(id, exit).await;
                        End { started: started.or(end.started), ..end }
                    }
                    None => End {
                        code: 137,
                        at: SystemTime::now(),
                        started,
                        reason: Reason::ShimDied,
                        message: "its shim died; berthd killed the container".to_owned(),
                    },
                };
                if let Some(container) = self.containers.get_mut(id) {
                    container.shim = None;
                }
                self.ended(id, end).await;
            }
            Err(error) => {
                tracing::error!(pod = %self.id, container = %id, error = super::chain(&error), "kill by cgroup; state unknown, trying again");
                let (facts, id) = (self.facts.clone(), id.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    let _ = facts.send(Fact::ShimGone { container: id, cause: "kill again".into() });
                });
            }
        }
    }
}

/// Which limit, at which level.
fn oom_message(limit: Option<&OomLimit>) -> String {
    match limit {
        Some(limit) if limit.own => format!("the container's memory limit of {} bytes was reached", limit.bytes),
        Some(limit) => format!(
            "the memory limit of {} bytes of {}, which the container shares with others, was reached",
            limit.bytes,
            limit.cgroup.display()
        ),
        None => "the host ran out of memory; no limit of the container or above it was reached".to_owned(),
    }
}

/// A moment by the shim's word: nanoseconds since the epoch.
fn moment(ns: i64) -> Option<SystemTime> {
    match u64::try_from(ns) {
        Ok(ns @ 1..) => Some(SystemTime::UNIX_EPOCH + Duration::from_nanos(ns)),
        _ => None,
    }
}
