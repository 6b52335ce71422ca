//! New limits for a container or a pod. The limits are written down before they are applied, and applied again by a daemon
//! that finds them: what the status tells is what is in force, whenever a daemon is killed.

use std::sync::Arc;

use berth_api::cri::LinuxContainerResources;
use prost::Message;

use super::lifecycle::{Phase, Refused};
use super::task::Task;
use super::view::{PodLimits, PodState};
use super::{Error, blocking, container_steps, decode};
use crate::ids::ContainerId;
use crate::ledger::{ContainerLimits, PodLimitsRecord};
use crate::spec;

impl Task {
    /// The story of UpdateContainerResources.
    pub(super) async fn update(&mut self, id: &ContainerId, asked: &LinuxContainerResources) -> Result<(), Error> {
        let container = self.containers.get(id).ok_or_else(|| Error::NoContainer(id.clone()))?;
        let refused = match container.phase {
            Phase::Created | Phase::Running { .. } | Phase::Stopping { .. } => None,
            Phase::Creating => Some(Refused::Creating),
            Phase::Exited(_) => Some(Refused::Exited),
            Phase::Lost => Some(Refused::Lost),
            Phase::Removing => Some(Refused::Removing),
        };
        if let Some(source) = refused {
            return Err(Error::Refused { container: id.clone(), source });
        }
        let old = container.resources.clone();
        let new = spec::merged_resources(&old, asked);
        // Told of the request first, then of the sum: an error names a field that the client has set, where it can.
        let v2 = self.shared.host.cgroups.is_v2();
        spec::limits("linux", asked, v2)?;
        spec::limits("linux", &new, v2)?;
        check_score(&new)?;
        step!("update_container::intent", self.keep(id, &new, &old).await)?;
        if let Err(error) = step!("update_container::shim-update", self.apply(id, &new).await) {
            if is_silence(&error) {
                // Whether they are in force is not known: the shim may read the request yet. The record says what was
                // asked for last, and a daemon that finds it asks for it again.
                return Err(error);
            }
            let refused = error;
            // The shim left everything as it was, and so must the record: the next daemon applies what it finds.
            let undone = step!("update_container::intent-undo", self.keep(id, &old, &old).await);
            if let Err(error) = undone {
                tracing::error!(pod = %self.id, container = %id, error = super::chain(&error), "take back the record of limits that were refused");
            }
            return Err(refused);
        }
        self.limited(id, new);
        Ok(())
    }

    /// Applies what an earlier daemon's update wrote down, and tells what is in force. `alive`: the container has a shim
    /// that answers.
    pub(super) async fn find_limits(&mut self, id: &ContainerId, alive: bool) {
        let found = match self.shared.ledger.container_limits(&self.id, id) {
            None => return,
            Some(Ok(record)) => decode::<LinuxContainerResources>(&record.wanted)
                .and_then(|wanted| Ok((wanted, decode::<LinuxContainerResources>(&record.before)?))),
            Some(Err((path, problem))) => Err(format!("{}: {problem}", path.display())),
        };
        let (wanted, before) = match found {
            Ok(found) => found,
            Err(problem) => {
                tracing::error!(pod = %self.id, container = %id, problem, "the record of updated limits cannot be read; those of the request are told");
                return;
            }
        };
        if !alive {
            return self.limited(id, Arc::unwrap_or_clone(wanted));
        }
        match step!("recover::limits", self.apply(id, &wanted).await) {
            Err(error @ Error::Shim { source: crate::task::Error::Refused { .. }, .. }) => {
                // Nobody was told that they are in force.
                tracing::warn!(pod = %self.id, container = %id, error = super::chain(&error), "limits that an earlier daemon wrote down are refused");
                if let Err(error) = self.keep(id, &before, &before).await {
                    tracing::error!(pod = %self.id, container = %id, error = super::chain(&error), "take back the record of limits that were refused");
                }
                self.limited(id, Arc::unwrap_or_clone(before));
            }
            other => {
                if let Err(error) = other {
                    tracing::error!(pod = %self.id, container = %id, error = super::chain(&error), "apply limits that an earlier daemon wrote down");
                }
                self.limited(id, Arc::unwrap_or_clone(wanted));
            }
        }
    }

    /// The same for the pod.
    pub(super) fn find_pod_limits(&mut self) {
        let found = match self.shared.ledger.pod_limits(&self.id) {
            None => return,
            Some(Ok(record)) => decode::<LinuxContainerResources>(&record.resources)
                .and_then(|resources| Ok((decode::<LinuxContainerResources>(&record.overhead)?, resources))),
            Some(Err((path, problem))) => Err(format!("{}: {problem}", path.display())),
        };
        let some = |r: Arc<LinuxContainerResources>| (*r != Default::default()).then(|| Arc::unwrap_or_clone(r));
        match found {
            Ok((overhead, resources)) => {
                self.limits = Arc::new(PodLimits { overhead: some(overhead), resources: some(resources) });
            }
            Err(problem) => {
                tracing::error!(pod = %self.id, problem, "the record of the pod's limits cannot be read; those of the request are told");
            }
        }
    }

    /// The story of UpdatePodSandboxResources: whoever asks has changed the pod's cgroup already, which is his. It is told
    /// on.
    pub(super) async fn update_pod(&mut self, limits: PodLimits) -> Result<(), Error> {
        if self.state != PodState::Ready {
            return Err(Error::NotReady { pod: self.id.clone(), why: "it was stopped" });
        }
        let v2 = self.shared.host.cgroups.is_v2();
        let mut new = PodLimits::clone(&self.limits);
        for (field, said, kept) in
            [("overhead", limits.overhead, &mut new.overhead), ("resources", limits.resources, &mut new.resources)]
        {
            if let Some(said) = said {
                // A pod's limits are somebody else's to write; here they must only make sense.
                let checked = LinuxContainerResources { unified: Default::default(), ..said.clone() };
                spec::limits(field, &checked, v2)?;
                *kept = Some(said);
            }
        }
        let bytes = |r: &Option<LinuxContainerResources>| r.as_ref().map(Message::encode_to_vec).unwrap_or_default();
        let record = PodLimitsRecord { overhead: bytes(&new.overhead), resources: bytes(&new.resources) };
        let (ledger, pod) = (self.shared.ledger.clone(), self.id.clone());
        let written = blocking(move || {
            step!("update_pod::state-commit", ledger.limit_pod(&pod, &record))
                .map_err(Error::ledger("record the pod's limits"))
        });
        written.await?;
        self.limits = Arc::new(new);
        Ok(())
    }

    async fn keep(
        &self,
        id: &ContainerId,
        wanted: &LinuxContainerResources,
        before: &LinuxContainerResources,
    ) -> Result<(), Error> {
        let record = ContainerLimits { wanted: wanted.encode_to_vec(), before: before.encode_to_vec() };
        let (ledger, pod, id) = (self.shared.ledger.clone(), self.id.clone(), id.clone());
        let written = blocking(move || {
            ledger.limit_container(&pod, &id, &record).map_err(Error::ledger("record the container's limits"))
        });
        written.await
    }

    async fn apply(&self, id: &ContainerId, limits: &LinuxContainerResources) -> Result<(), Error> {
        let mut resources = spec::limits("linux", limits, self.shared.host.cgroups.is_v2())?;
        if let Some(memory) = resources.get_mut("memory") {
            // Nobody asks for less memory in order to have processes killed.
            memory["checkBeforeUpdate"] = true.into();
        }
        let updated = self.shim(id)?.update(id.as_str(), &resources, limits.oom_score_adj).await;
        updated.map_err(|source| Error::Shim { container: id.clone(), step: "update its limits", source })?;
        match self.handler() {
            Ok(None) => Ok(()),
            _ => self.score(id, limits.oom_score_adj).await,
        }
    }

    fn limited(&mut self, id: &ContainerId, limits: LinuxContainerResources) {
        let bundle = self.shared.ledger.roots.bundle(id);
        if let Some(container) = self.containers.get_mut(id) {
            container.effective = Arc::new(container_steps::effective(&bundle));
            if container.resources.oom_score_adj != limits.oom_score_adj {
                // What is executed beside the init has its score.
                let score = container.effective.oom_score_adj.map_or(limits.oom_score_adj, i64::from);
                Arc::make_mut(&mut container.process)["oomScoreAdj"] = score.into();
            }
            container.resources = Arc::new(limits);
        }
    }
}

fn is_silence(error: &Error) -> bool {
    matches!(error, Error::Shim { source, .. } if source.is_silence())
}

fn check_score(limits: &LinuxContainerResources) -> Result<(), spec::Invalid> {
    match limits.oom_score_adj {
        -1000..=1000 => Ok(()),
        score => Err(spec::Invalid::new("linux.oom_score_adj", format!("{score} is not between -1000 and 1000"))),
    }
}
