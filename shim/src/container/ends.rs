//! How a container ends: what is done between the death of its init and the first who is told of it.

use std::sync::Arc;
use std::time::Duration;

use berth_api::shim::ExitRecord;
use tokio::io::Interest;
use tokio::time::timeout;

use super::{Shim, pidfd};
use crate::error::text;
use crate::lifecycle::{End, Phase};
use crate::{record, say, sys};

/// How long an end may be kept back for what the init left behind and was killed.
const DYING: Duration = Duration::from_secs(2);

impl Shim {
    /// A child of the shim has been reaped. One that is neither init nor exec'd was an orphan of the container.
    pub(crate) fn reaped(self: &Arc<Self>, pid: i32, end: End) {
        let mut kept = self.lock();
        let Some(kept) = kept.as_mut() else { return };
        let shim = self.clone();
        if kept.init.pid() == pid && !kept.init.is_over() {
            kept.init.set(Phase::Ending(end));
            tokio::spawn(async move { shim.finish_init(end).await });
        } else if let Some(exec_id) = kept.exec_with(pid, end) {
            tokio::spawn(async move { shim.finish_exec(&exec_id, end).await });
        }
    }

    /// The order is the promise: everything of the container dead, its output in the log, the record written, and only
    /// then is anybody told.
    async fn finish_init(&self, end: End) {
        let Some((record, drained)) = self.bury(end) else {
            return;
        };
        drained.await;
        let kept = self.lock();
        let Some(kept) = &*kept else { return };
        if let Err(error) = record::write_exit(&kept.bundle, &record) {
            say!("write the exit record: {error}");
        }
        kept.init.set(Phase::Ended(end));
    }

    /// Kills what the init left behind. Returns the exit record, and the end of all that with the drain of its output.
    fn bury(&self, end: End) -> Option<(ExitRecord, impl Future<Output = ()> + Send + use<>)> {
        let mut kept = self.lock();
        let kept = kept.as_mut()?;
        kept.gate = None;
        let cgroup = &kept.container.cgroup;
        let oom_kills = cgroup.oom_kills();
        let oom_killed = oom_kills > 0;
        let oom_limit = if oom_killed { cgroup.oom_limit() } else { None };
        let killed_by_request = kept.oom_kills_at_sigkill == Some(oom_kills);
        // In a pid namespace of its own the kernel has done it already; in a shared one nobody else does.
        let mut left = kept.members();
        if let Err(error) = cgroup.kill() {
            say!("{}", text(&error));
        }
        if !left.is_empty() {
            // Born meanwhile.
            left.extend(kept.members());
        }
        let drained = kept.init.living.as_mut()?.io.drain();
        let started_at_ns = kept.released_at_ns;
        let record = ExitRecord {
            status: end.status,
            exited_at_ns: end.at,
            oom_killed,
            killed_by_request,
            oom_limit,
            started_at_ns,
        };
        Some((record, async move {
            drained.await;
            // What was killed takes a while to be dead. One that hangs in the kernel is not waited for.
            let _ = timeout(DYING, all_dead(left)).await;
        }))
    }
}

/// One by one: there may be more of them than descriptors.
async fn all_dead(pids: Vec<i32>) {
    for watched in pids.into_iter().filter_map(|pid| sys::watch(pidfd(pid)?, Interest::READABLE).ok()) {
        let _ = watched.readable().await;
    }
}
