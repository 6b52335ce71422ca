//! The one way down: Stop, Remove, a failed start and recovery all read the record backwards here.
//! Every step is idempotent, and goes on past the errors of the others.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_api::shim::SOCKET_FILE;
use futures::future::join_all;
use tokio::sync::mpsc;

use super::lifecycle::{Event, Phase};
use super::task::{Container, Fact, Task};
use super::view::PodState;
use super::{Error, Roots, blocking};
use crate::host::systemd;
use crate::ids::{ContainerId, PodId};
use crate::ledger::{Held, ProcessId, gone};
use crate::netns;
use crate::spec::Scope;
use crate::task::{SHIM, end_remains, foreign};

impl Task {
    /// Lets go of the shim of a container that is over: what it held (cgroup, mounts) goes with its Delete. One that does
    /// not answer is killed.
    pub(super) async fn release_shim(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if let Some(watcher) = container.watcher.take() {
            watcher.abort();
        }
        if self.is_sandbox_container(id) {
            return self.release_sandbox_container().await;
        }
        let shared = self.shares_a_shim(id);
        let Some(shim) = self.containers.get_mut(id).and_then(|container| container.shim.take()) else { return };
        // Or one that is to be ended as if it were.
        let mut silent = false;
        match step!("remove_container::shim-delete", shim.delete(id.as_str(), "").await) {
            Ok(_) if shim.is_of_another() => foreign::deleted(&self.shared.ledger.roots.bundle(id)),
            Err(error) if !error.is_not_found() => {
                tracing::warn!(pod = %self.id, container = %id, %error, "the shim's Delete; its cgroup is removed by the daemon");
                // One of another runtime stays while it knows of a container, whatever it answers to Shutdown.
                silent = error.is_silence() || shim.is_of_another();
            }
            _ => {}
        }
        // One that it shares goes on for the others, also when it is silent.
        if shared {
            return self.has_no_shim(id);
        }
        if !silent && let Err(error) = step!("remove_container::shim-shutdown", shim.shutdown(id.as_str()).await) {
            tracing::warn!(pod = %self.id, container = %id, %error, "the shim's Shutdown");
            silent = error.is_silence();
        }
        match silent {
            false => self.has_no_shim(id),
            true => {
                if let Err(error) = self.end_shim(id).await {
                    tracing::error!(pod = %self.id, container = %id, error = super::chain(&error), "a shim that does not answer");
                }
            }
        }
    }

    /// It has gone, or goes by itself.
    pub(super) fn has_no_shim(&mut self, id: &ContainerId) {
        if let Some(container) = self.containers.get_mut(id) {
            container.may_have_shim = false;
        }
    }

    /// Asks it nothing any more.
    pub(super) fn forget_shim(&mut self, id: &ContainerId) {
        if let Some(container) = self.containers.get_mut(id) {
            container.shim = None;
        }
    }

    /// Kills the container's shim, found by its bundle, whether or not it was ever spoken to.
    pub(super) async fn end_shim(&self, id: &ContainerId) -> Result<(), Error> {
        self.end_shim_after(id, Duration::ZERO).await
    }

    /// The same, of one that may go by itself meanwhile.
    pub(super) async fn end_shim_after(&self, id: &ContainerId, patience: Duration) -> Result<(), Error> {
        let bundle = self.shared.ledger.roots.bundle(id);
        let program = foreign::program(&bundle).unwrap_or_else(|| SHIM.into());
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        tracing::info!(pod = %self.id, container = %id, "end what there is of its shim");
        let ended = blocking(move || {
            // With its socket, by which the next daemon would take it for one that died by itself.
            let end = || {
                end_remains(&bundle, &name, patience)?;
                gone(std::fs::remove_file(bundle.join(SOCKET_FILE)))
            };
            let ended = step!("remove_container::shim-kill", end());
            ended.map_err(|source| Error::Io { deed: "end the shim that works in", path: bundle, source })
        });
        ended.await
    }

    /// RemoveContainer: kills what still runs, takes everything down, forgets. Of an unknown id: a yes.
    pub(super) async fn remove_container(
        &mut self,
        id: &ContainerId,
        seen: &mut mpsc::UnboundedReceiver<Fact>,
    ) -> Result<(), Error> {
        let Some(container) = self.containers.get(id) else { return Ok(()) };
        if !matches!(container.phase, Phase::Exited(_) | Phase::Removing) {
            self.kill(id).await?;
            self.settle(std::slice::from_ref(id), seen).await?;
        }
        self.step(id, Event::Remove)?;
        self.publish();
        self.tear_down_container(id).await
    }

    /// Whatever there is of a container, in whatever phase.
    pub(super) async fn tear_down_container(&mut self, id: &ContainerId) -> Result<(), Error> {
        self.release_shim(id).await;
        let mut errors = Vec::new();
        // One that nobody spoke to: the daemon that started it died, or its Create was not answered.
        if self.is_sandbox_container(id) {
            errors.extend(self.end_shared_shim().await.err());
        } else if self.containers.get(id).is_some_and(|c| c.may_have_shim) {
            match self.end_shim(id).await {
                Ok(()) => self.has_no_shim(id),
                Err(error) => errors.push(error),
            }
        }
        errors.extend(self.clean_up_after_another(id).await.err());
        let Some(container) = self.containers.get(id) else { return Ok(()) };
        let (shared, user, cgroup) = (self.shared.clone(), id.clone(), container.record.cgroup_path.clone());
        let scope = Scope::of(&cgroup);
        let removed = blocking(move || {
            let cgroups = &shared.host.cgroups;
            step!("remove_container::cgroup-rmdir", cgroups.kill(&cgroup).and_then(|()| cgroups.remove(&cgroup)))
                .and_then(|()| shared.parents.release(&cgroup, &user))
                .map_err(|source| Error::Io { deed: "remove cgroup", path: cgroup.into(), source })
        });
        errors.extend(removed.await.err());
        if let Some(scope) = scope {
            let cgroups = &self.shared.host.cgroups;
            let stopped = step!("remove_container::systemd-scope", systemd::stop_scope(cgroups, &scope).await);
            errors.extend(stopped.map_err(Error::Systemd).err());
        }
        let rootfs = step!("remove_container::snapshot-remove", self.shared.images.remove_rootfs(id.as_str()).await);
        errors.extend(rootfs.err().map(|source| Error::Image { reference: format!("rootfs of {id}"), source }));
        errors.extend(self.let_go_of_volumes(id).await);
        if errors.is_empty() {
            let (ledger, pod, id) = (self.shared.ledger.clone(), self.id.clone(), id.clone());
            let forgotten = blocking(move || {
                let bundle = ledger.roots.bundle(&id);
                step!("remove_container::bundle", gone(std::fs::remove_dir_all(&bundle)))
                    .map_err(|source| Error::Io { deed: "remove", path: bundle, source })?;
                step!("remove_container::record-delete", ledger.forget_container(&pod, &id))
                    .map_err(Error::ledger("forget the container"))
            });
            errors.extend(forgotten.await.err());
        }
        if errors.is_empty() {
            if let Some(container) = self.containers.remove(id) {
                for reply in container.stopping {
                    let _ = reply.send(Ok(()));
                }
            }
            return Ok(());
        }
        Err(Error::Teardown(errors))
    }

    /// What another runtime's shim left that died, or was not there to be asked: its processes first, then its record and
    /// its mount.
    pub(super) async fn clean_up_after_another(&self, id: &ContainerId) -> Result<(), Error> {
        let bundle = self.shared.ledger.roots.bundle(id);
        if !foreign::owes(&bundle) {
            return Ok(());
        }
        self.kill_by_cgroup(id).await?;
        let shared = &self.shared;
        let daemon = (shared.ledger.roots.run.as_path(), shared.socket.as_path());
        // A bundle of an earlier version does not tell.
        let known = || self.handler().ok().flatten()?.binary().ok();
        match foreign::program(&bundle).or_else(known) {
            Some(program) => {
                let cleaned = foreign::clean_up(&shared.shim_binaries, &program, daemon, &bundle, id.as_str()).await;
                let cleaned = cleaned.and_then(|()| match self.shares_a_shim(id) {
                    true => Ok(()),
                    false => foreign::remove_socket(&program, daemon.1, &bundle, id.as_str()),
                });
                cleaned.map_err(|source| Error::Shim {
                    container: id.clone(),
                    step: "clean up after its shim",
                    source,
                })?;
            }
            None => {
                let handler = &self.request.runtime_handler;
                tracing::warn!(pod = %self.id, container = %id, handler, "the handler is not configured any more; what its runtime remembers of the container stays");
            }
        }
        let rootfs = bundle.join("rootfs");
        let unmounted = netns::unpin(&rootfs);
        unmounted.map_err(|source| Error::Io { deed: "unmount", path: rootfs.clone(), source })?;
        let made = std::fs::create_dir(&rootfs);
        if let Err(source) = made
            && source.kind() != std::io::ErrorKind::AlreadyExists
        {
            return Err(Error::Io { deed: "make", path: rootfs, source });
        }
        foreign::deleted(&bundle);
        Ok(())
    }

    /// StopPodSandbox: ends every container, detaches the network, lets the namespaces go. Idempotent.
    ///
    /// A DEL that fails is kept for Remove and the next start; once the namespace is gone it does not keep the pod from
    /// being stopped.
    pub(super) async fn stop_pod(&mut self, seen: &mut mpsc::UnboundedReceiver<Fact>) -> Result<(), Error> {
        let over = |c: &Container| matches!(c.phase, Phase::Exited(_) | Phase::Removing | Phase::Creating);
        let lives = |c: &Container| !over(c) && !c.record.sandbox;
        let live = self.containers.iter().filter(|(_, c)| lives(c)).map(|(id, _)| id.clone()).collect::<Vec<_>>();
        // At once: one whose shim is silent takes as long as that is waited for.
        join_all(live.iter().map(async |id| {
            // One that cannot be killed must not spare the others. What is still there is told below.
            if let Err(error) = self.kill(id).await {
                tracing::warn!(pod = %self.id, container = %id, error = super::chain(&error), "kill the container");
            }
        }))
        .await;
        self.settle(&live, seen).await?;
        // A start that failed is told when it is taken back, and with its error: the asker waits for the first word.
        if self.state != PodState::Starting {
            self.state = PodState::NotReady;
            self.publish();
        }
        self.stop_sandbox_container(seen).await?;
        if let Err(error) = self.detach().await {
            tracing::error!(pod = %self.id, error = super::chain(&error), "CNI DEL failed; it is tried again by RemovePodSandbox and at the next start");
        }
        self.let_go().await?;
        self.held.stopped = true;
        step!("stop_pod::state-commit", self.hold())
    }

    /// CNI DEL, once it is owed and until it has succeeded.
    pub(super) async fn detach(&mut self) -> Result<(), Error> {
        let Some(plan) = self.record.network.clone().filter(|_| !self.attachment.deleted()) else { return Ok(()) };
        let netns = self.shared.ledger.roots.pod_run(&self.id).join("ns/net");
        step!("stop_pod::cni-del", self.shared.networks.del(&plan, &self.attachment, &self.id, &netns).await)?;
        self.attachment = self.attachment.clone().after_del();
        let (ledger, id, attachment) = (self.shared.ledger.clone(), self.id.clone(), self.attachment.clone());
        let recorded = blocking(move || {
            step!("stop_pod::cni-record", gone(ledger.attached(&id, &attachment)))
                .map_err(Error::ledger("record that the network let go"))
        });
        recorded.await
    }

    /// The keeper, the pins, /dev/shm.
    async fn let_go(&mut self) -> Result<(), Error> {
        if let Some(watch) = self.keeper_watch.take() {
            watch.abort();
        }
        let (roots, id, held) = (self.shared.ledger.roots.clone(), self.id.clone(), self.held.clone());
        blocking(move || let_go_of(&roots, &id, &held)).await?;
        self.held.keeper = None;
        Ok(())
    }

    /// RemovePodSandbox, and what a failed RunPodSandbox does.
    pub(super) async fn remove_pod(&mut self, seen: &mut mpsc::UnboundedReceiver<Fact>) -> Result<(), Error> {
        if !self.held.stopped {
            self.stop_pod(seen).await?;
        }
        let mut errors = Vec::new();
        // The sandbox container last: the others' shim is its own to end.
        let (sandbox, others): (Vec<_>, Vec<_>) =
            self.all_containers().into_iter().partition(|id| self.is_sandbox_container(id));
        for id in others {
            errors.extend(self.remove_container(&id, seen).await.err());
        }
        if let (true, Some(id)) = (errors.is_empty(), sandbox.first()) {
            errors.extend(self.remove_container(id, seen).await.err());
        }
        errors.extend(self.detach().await.err());
        if !errors.is_empty() {
            return Err(Error::Teardown(errors));
        }
        let (ledger, id) = (self.shared.ledger.clone(), self.id.clone());
        let forgotten = blocking(move || {
            step!("remove_pod::record-delete", ledger.forget_pod(&id)).map_err(Error::ledger("forget the pod"))
        });
        forgotten.await
    }
}

/// Undoes what the namespace keeper did. Idempotent, and right for a pod of which only half was made.
pub(super) fn let_go_of(roots: &Roots, id: &PodId, held: &Held) -> Result<(), Error> {
    let dir = roots.pod_run(id);
    if let Some(keeper) = held.keeper.or_else(|| recorded_keeper(&dir)) {
        step!("stop_pod::keeper-kill", keeper.kill()).map_err(Error::ledger("kill the namespace keeper"))?;
    }
    step!("stop_pod::netns-unmount", unpin_all(&dir))
}

/// Pid 1 of the pod by the keeper's own record, when the daemon did not live to read its answer. By then its number may
/// be another's: it counts only while it lives in the pod's pinned pid namespace.
fn recorded_keeper(dir: &Path) -> Option<ProcessId> {
    let pid: i32 = std::fs::read_to_string(dir.join("ns/keeper")).ok()?.trim().parse().ok()?;
    // First who it is, then whether it is there: it is killed only if it still is who it was before.
    let keeper = ProcessId::of(pid)?;
    let namespace = |path: PathBuf| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    let same = namespace(format!("/proc/{pid}/ns/pid").into())? == namespace(dir.join("ns/pid"))?;
    same.then_some(keeper)
}

/// Unpins everything that a pod's run directory can hold.
pub(super) fn unpin_all(dir: &Path) -> Result<(), Error> {
    for name in ["ns/net", "ns/ipc", "ns/uts", "ns/pid", "ns/user", "ns/keeper", "shm"] {
        let path = dir.join(name);
        netns::unpin(&path).map_err(|source| Error::Io { deed: "unmount", path, source })?;
    }
    let ns = dir.join("ns");
    gone(std::fs::remove_dir(&ns)).map_err(|source| Error::Io { deed: "remove", path: ns, source })
}
