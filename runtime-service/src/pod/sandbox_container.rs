//! The sandbox container of a pod whose handler wants one: the first container of a shim's process that has all of the
//! pod's. It is a container like any other, with a record, a phase and a teardown of its own, but nobody asks for it and
//! nobody sees it in a list: it is made by RunPodSandbox, and what ends the pod ends it last.
//!
//! The process is the sandbox container's: no other container's end ends it, and what of it is left goes with that one.

use std::sync::Arc;
use std::time::Duration;

use berth_api::cri;
use prost::Message;
use serde_json::Value;
use tokio::sync::mpsc;

use super::container_steps::{claim_cgroup, now_ns, write_bundle};
use super::lifecycle::{Event, Phase};
use super::task::{Container, Fact, Task};
use super::{Error, another, blocking};
use crate::ids::ContainerId;
use crate::ledger::ContainerRecord;
use crate::sandbox::{PAUSE_PROGRAM, pause_root};
use crate::spec;
use crate::task::{self as shim_task, Foreign, Rootfs, Streams, foreign};

/// How long a shim that was told to shut down may take to go before it is killed.
const GOING: Duration = Duration::from_secs(2);

impl Task {
    /// The sandbox container, if this pod was made with one: whatever the configuration says by now, the shim's process
    /// is as it was begun.
    pub(super) fn sandbox_container(&self) -> Option<&Container> {
        self.containers.get(&ContainerId::of_sandbox(&self.id)).filter(|container| container.record.sandbox)
    }

    pub(super) fn is_sandbox_container(&self, id: &ContainerId) -> bool {
        self.sandbox_container().is_some_and(|container| container.record.id == *id)
    }

    /// Its shim is the pod's, and not its own to end.
    pub(super) fn shares_a_shim(&self, id: &ContainerId) -> bool {
        self.sandbox_container().is_some_and(|sandbox| sandbox.record.id != *id)
    }

    /// Where the cgroup of one that shares a shim is: beside the sandbox container's, with systemd's driver in the scope
    /// that the shim is in.
    pub(super) fn cgroup_beside(&self, id: &ContainerId) -> Option<String> {
        let (above, _) = self.sandbox_container()?.record.cgroup_path.rsplit_once('/')?;
        Some(format!("{above}/{id}"))
    }

    /// Makes and starts the sandbox container, if the pod's handler wants one.
    pub(super) async fn take_sandbox_container(&mut self) -> Result<(), Error> {
        let Some(handler) = self.handler()?.filter(|handler| handler.sandbox_container) else { return Ok(()) };
        let id = ContainerId::of_sandbox(&self.id);
        let (spec, record) = self.decide_sandbox_container(&id, &handler).await?;
        let process = Arc::new(spec["process"].clone());
        self.containers.insert(id.clone(), Container::new(record.clone(), Arc::default(), process));
        self.make_sandbox_container(&id, record, spec, &handler).await?;
        step!("run_pod::sandbox-start", self.release(&id).await)
    }

    async fn decide_sandbox_container(
        &self,
        id: &ContainerId,
        handler: &Foreign,
    ) -> Result<(Value, ContainerRecord), Error> {
        let config = self.config();
        let parent = config.linux.as_ref().map(|l| l.cgroup_parent.as_str()).unwrap_or_default();
        let driver = self.shared.cgroup_driver.suited(parent);
        let cgroup_path = driver.container(&driver.parent(parent, &self.shared.cgroup_root)?, id.as_str());
        let request = spec::sandbox_request(PAUSE_PROGRAM, &config);
        let security = request.linux.as_ref().and_then(|l| l.security_context.clone()).unwrap_or_default();
        let apparmor = self.apparmor(&security).await?;
        let labels = self.shared.selinux.of_container(self.record.selinux.as_ref(), &security)?;
        let mut spec = spec::build_sandbox(
            &request,
            &spec::SandboxPod {
                id: self.id.as_str(),
                config: &config,
                parts: &self.parts(),
                held: &self.shared.host.capabilities,
                apparmor_profile: apparmor.as_deref(),
                labels: labels.as_ref(),
                cgroup_path: &cgroup_path,
                cgroup_v2: self.shared.host.cgroups.is_v2(),
            },
        )?;
        spec["process"]["rlimits"] = self.shared.host.open_files.of_container();
        another::suit(&mut spec, &handler.name, self.may_lower_scores())?;
        let record = ContainerRecord {
            id: id.clone(),
            created_at_ns: now_ns(),
            boot_id: self.shared.boot_id.clone(),
            request: cri::CreateContainerRequest::default().encode_to_vec(),
            image_id: String::new(),
            stop_signal: nix::sys::signal::Signal::SIGTERM as i32,
            cgroup_path,
            log_path: String::new(),
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            volumes: Default::default(),
            sandbox: true,
        };
        Ok((spec, record))
    }

    async fn make_sandbox_container(
        &mut self,
        id: &ContainerId,
        record: ContainerRecord,
        spec: Value,
        handler: &Arc<Foreign>,
    ) -> Result<(), Error> {
        let bundle = self.shared.ledger.roots.bundle(id);
        let (ledger, pod, recorded) = (self.shared.ledger.clone(), self.id.clone(), record.clone());
        let begun =
            move || ledger.begin_container(&pod, &recorded).map_err(Error::ledger("record the sandbox container"));
        step!("run_pod::sandbox-record", blocking(begun).await)?;
        let (shared, dir, recorded) = (self.shared.clone(), bundle.clone(), record.clone());
        let written = blocking(move || {
            claim_cgroup(&shared, &recorded)?;
            write_bundle(&dir, &spec)
        });
        step!("run_pod::sandbox-bundle", written.await)?;
        let shim = step!("run_pod::sandbox-shim", self.begin_shim(id, Some(handler), &record.cgroup_path).await)?;
        if let Some(container) = self.containers.get_mut(id) {
            container.shim = Some(shim.clone());
        }
        // Whatever the run root is mounted with: /run is often without exec.
        let options = ["rbind", "ro", "exec", "nosuid", "nodev"].map(str::to_owned).to_vec();
        let source = pause_root(&self.shared.ledger.roots.run).to_string_lossy().into_owned();
        let rootfs = vec![Rootfs { kind: "bind".into(), source, options }];
        let path = bundle.to_string_lossy();
        let created = shim.create(id.as_str(), &path, rootfs, Streams::default(), Some(handler.options()));
        let created = step!("run_pod::sandbox-create", created.await);
        if created.as_ref().is_err_and(shim_task::Error::is_silence) {
            self.forget_shim(id);
        }
        created.map_err(|source| Error::Shim { container: id.clone(), step: "create", source })?;
        self.step(id, Event::Created)?;
        self.watch(id);
        Ok(())
    }

    /// Ends the sandbox container, and with it the shim's process: the pod's others must be over. Idempotent.
    pub(super) async fn stop_sandbox_container(
        &mut self,
        seen: &mut mpsc::UnboundedReceiver<Fact>,
    ) -> Result<(), Error> {
        let Some(container) = self.sandbox_container() else { return Ok(()) };
        let (id, phase) = (container.record.id.clone(), container.phase.clone());
        if !matches!(phase, Phase::Exited(_) | Phase::Removing | Phase::Creating) {
            if let Err(error) = step!("stop_pod::sandbox-kill", self.kill(&id).await) {
                tracing::warn!(pod = %self.id, error = super::chain(&error), "kill the sandbox container");
            }
            self.settle(std::slice::from_ref(&id), seen).await?;
        }
        self.end_shared_shim().await?;
        self.clean_up_after_another(&id).await
    }

    /// Lets the sandbox container go. The shim's process may have others, and is not told to end.
    pub(super) async fn release_sandbox_container(&mut self) {
        let id = ContainerId::of_sandbox(&self.id);
        let Some(shim) = self.containers.get(&id).and_then(|container| container.shim.clone()) else { return };
        match step!("remove_container::shim-delete", shim.delete(id.as_str(), "").await) {
            Ok(_) => foreign::deleted_alone(&self.shared.ledger.roots.bundle(&id)),
            Err(error) if error.is_not_found() => {}
            Err(error) => {
                tracing::warn!(pod = %self.id, %error, "the shim's Delete of the sandbox container; what is left is cleaned up after it");
                if error.is_silence() {
                    self.forget_shim(&id);
                }
            }
        }
    }

    /// Ends the process that has, or had, all of the pod's containers. They are over, or are killed by their cgroups next.
    pub(super) async fn end_shared_shim(&mut self) -> Result<(), Error> {
        let id = ContainerId::of_sandbox(&self.id);
        let bundle = self.shared.ledger.roots.bundle(&id);
        let Some(container) = self.containers.get_mut(&id).filter(|_| foreign::owes(&bundle)) else { return Ok(()) };
        let mut patience = Duration::ZERO;
        if let Some(shim) = container.shim.take() {
            match step!("stop_pod::sandbox-shutdown", shim.shutdown(id.as_str()).await) {
                Ok(()) => patience = GOING,
                Err(error) => tracing::warn!(pod = %self.id, %error, "the Shutdown of the pod's shim"),
            }
        }
        step!("stop_pod::sandbox-shim", self.end_shim_after(&id, patience).await)?;
        self.has_no_shim(&id);
        Ok(())
    }
}
