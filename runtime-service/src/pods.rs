//! The directory of pods: names and ids → handles. A name that is taken is joined by a retry, not failed on.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use berth_api::cri;
use prost::Message;

use crate::ids::{ContainerId, PodId};
use crate::ledger::PodRecord;
use crate::pod::{self, Answer, ContainerView, Pod, PodState, Shared};

/// Every pod of this daemon; clones share.
#[derive(Clone)]
pub(crate) struct Pods {
    shared: Arc<Shared>,
    directory: Arc<Mutex<Directory>>,
    /// Records that were found and could not be read, and why.
    unreadable: Arc<OnceLock<Vec<String>>>,
}

#[derive(Default)]
struct Directory {
    pods: BTreeMap<PodId, Pod>,
    names: HashMap<cri::PodSandboxMetadata, PodId>,
}

/// Why an id led nowhere.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookupError {
    #[error("no {what} has the id {id:?}")]
    None { what: &'static str, id: String },
    #[error("{id:?} is the beginning of more than one {what}'s id: {}", .all.join(", "))]
    Ambiguous { what: &'static str, id: String, all: Vec<String> },
    #[error("the {0} id is empty")]
    Empty(&'static str),
}

impl LookupError {
    /// Of `found`, the ids that begin with `id`, more than one. Names the first few.
    fn ambiguous(what: &'static str, id: &str, found: impl Iterator<Item = impl ToString>) -> Self {
        const NAMED: usize = 8;
        let mut all: Vec<String> = found.take(NAMED + 1).map(|id| id.to_string()).collect();
        if all.len() > NAMED {
            all[NAMED] = "…".into();
        }
        Self::Ambiguous { what, id: id.into(), all }
    }
}

/// Why RunPodSandbox was not answered with an id.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error("pod {name} exists as {existing} {difference}")]
    Exists { name: String, existing: PodId, difference: &'static str },
    #[error("make an id")]
    Random(#[source] std::io::Error),
    #[error(transparent)]
    Network(#[from] crate::network::Error),
    #[error(transparent)]
    Invalid(#[from] crate::spec::Invalid),
    #[error("pod {name} ({id})")]
    Pod { name: String, id: PodId, source: Arc<pod::Error> },
}

impl Pods {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, directory: Arc::default(), unreadable: Arc::default() }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Adopts what an earlier daemon left, and sweeps what no record explains.
    ///
    /// # Errors
    /// The records' directory cannot be read.
    pub(crate) async fn recover(&self) -> Result<(), pod::Error> {
        let ledger = self.shared.ledger.clone();
        pod::blocking(move || {
            ledger.begin().map_err(|source| pod::Error::Ledger { deed: "make the directories of records", source })
        })
        .await?;
        let forget = self.forgetter();
        let recovered = pod::recover(&self.shared, forget).await?;
        self.shared.metrics.unreadable(recovered.unreadable.len());
        let _ = self.unreadable.set(recovered.unreadable.clone());
        {
            let mut directory = self.directory();
            for pod in &recovered.pods {
                let view = pod.view();
                let metadata = view.config().metadata.clone().unwrap_or_default();
                directory.names.insert(metadata, pod.id.clone());
                directory.pods.insert(pod.id.clone(), pod.clone());
            }
            self.shared.metrics.pods(directory.pods.len());
        }
        tracing::info!(pods = recovered.pods.len(), unreadable = recovered.unreadable.len(), "recovered");
        pod::sweep(&self.shared, &recovered).await
    }

    /// Records that could not be read at start, and why.
    pub(crate) fn unreadable(&self) -> &[String] {
        self.unreadable.get().map_or(&[], Vec::as_slice)
    }

    /// RunPodSandbox: makes the pod, or joins the one that the same request is making or has made.
    pub(crate) async fn run(&self, request: cri::RunPodSandboxRequest) -> Result<PodId, RunError> {
        let metadata = request.config.as_ref().and_then(|c| c.metadata.clone()).unwrap_or_default();
        let name = format!("{}/{} (attempt {})", metadata.namespace, metadata.name, metadata.attempt);
        loop {
            let (pod, joined) = self.reserve(&metadata, &request)?;
            crate::serve::subject(|s| s.pod = pod.id.to_string());
            let started = pod.started().await;
            let view = pod.view();
            match started {
                Ok(()) if !joined || *view.request == request && view.state == PodState::Ready => return Ok(pod.id),
                Ok(()) => {
                    let difference = match *view.request == request {
                        true => "and was stopped already",
                        false => "with another content",
                    };
                    return Err(RunError::Exists { name, existing: pod.id, difference });
                }
                // Somebody else's attempt failed and could not be taken back in full. This one may have better luck.
                Err(_) if joined && view.failed.is_some() && *view.request == request => {
                    if let Err(source) = pod.remove_pod().await
                        && !matches!(*source, pod::Error::Ended(_))
                    {
                        return Err(RunError::Pod { name, id: pod.id, source });
                    }
                }
                Err(source) => return Err(RunError::Pod { name, id: pod.id, source }),
            }
        }
    }

    /// The pod of this name: a new one, or the one there is (`true`).
    fn reserve(
        &self,
        metadata: &cri::PodSandboxMetadata,
        request: &cri::RunPodSandboxRequest,
    ) -> Result<(Pod, bool), RunError> {
        let existing = {
            let directory = self.directory();
            directory.names.get(metadata).and_then(|id| directory.pods.get(id)).cloned()
        };
        if let Some(pod) = existing {
            return Ok((pod, true));
        }
        let config = request.config.clone().unwrap_or_default();
        let network = self.shared.networks.plan(&config)?;
        let id = PodId::random().map_err(RunError::Random)?;
        let mut directory = self.directory();
        // Between the two looks another request of the same name may have come first.
        if let Some(pod) = directory.names.get(metadata).and_then(|id| directory.pods.get(id)) {
            return Ok((pod.clone(), true));
        }
        let record = PodRecord {
            created_at_ns: pod::now_ns(),
            boot_id: self.shared.boot_id.clone(),
            request: request.encode_to_vec(),
            network,
            selinux: self.shared.selinux.of_pod(&id, &config)?,
            id: id.clone(),
        };
        let forget = self.forgetter();
        let pod = pod::begin(self.shared.clone(), record, Arc::new(request.clone()), forget);
        directory.names.insert(metadata.clone(), id.clone());
        directory.pods.insert(id, pod.clone());
        self.shared.metrics.pods(directory.pods.len());
        Ok((pod, false))
    }

    /// Called when a pod is gone for good.
    fn forgetter(&self) -> impl Fn(&PodId) + Clone + Send + 'static {
        let (directory, metrics) = (self.directory.clone(), self.shared.metrics.clone());
        let shared = self.shared.clone();
        move |id: &PodId| {
            shared.selinux.forget(id);
            let mut directory = directory.lock().unwrap_or_else(PoisonError::into_inner);
            directory.pods.remove(id);
            directory.names.retain(|_, named| named != id);
            metrics.pods(directory.pods.len());
        }
    }

    /// Every pod, by id.
    pub(crate) fn all(&self) -> Vec<Pod> {
        self.directory().pods.values().cloned().collect()
    }

    /// The pod with this id or the only one whose id begins so.
    pub(crate) fn find(&self, id: &str) -> Result<Pod, LookupError> {
        let what = "pod sandbox";
        if id.is_empty() {
            return Err(LookupError::Empty(what));
        }
        let directory = self.directory();
        if let Some(pod) = PodId::parse(id).and_then(|id| directory.pods.get(&id)) {
            return Ok(pod.clone());
        }
        let matching = || directory.pods.values().filter(|p| p.id.as_str().starts_with(id));
        let mut found = matching();
        match (found.next(), found.next()) {
            (Some(pod), None) => Ok(pod.clone()),
            (None, _) => Err(LookupError::None { what, id: id.into() }),
            (Some(_), Some(_)) => Err(LookupError::ambiguous(what, id, matching().map(|pod| &pod.id))),
        }
    }

    /// The container with this id or the only one whose id begins so, as its pod last published it.
    pub(crate) fn find_container(&self, id: &str) -> Result<(Pod, ContainerId, Arc<ContainerView>), LookupError> {
        let what = "container";
        if id.is_empty() {
            return Err(LookupError::Empty(what));
        }
        let exact = ContainerId::parse(id);
        let mut found = Vec::new();
        for pod in self.all() {
            let view = pod.view();
            if let Some(exact) = &exact {
                if let Some(container) = view.containers.get(exact) {
                    return Ok((pod, exact.clone(), container.clone()));
                }
                continue;
            }
            for (key, container) in view.containers.iter().filter(|(key, _)| key.as_str().starts_with(id)) {
                found.push((pod.clone(), key.clone(), container.clone()));
            }
        }
        match found.len() {
            0 | 1 => found.pop().ok_or_else(|| LookupError::None { what, id: id.into() }),
            _ => Err(LookupError::ambiguous(what, id, found.iter().map(|(_, key, _)| key))),
        }
    }

    /// RemovePodSandbox; a pod that somebody else removed meanwhile is removed.
    pub(crate) async fn remove(&self, pod: Pod) -> Answer<()> {
        match pod.remove_pod().await {
            Err(error) if matches!(*error, pod::Error::Ended(_)) => Ok(()),
            other => other,
        }
    }

    fn directory(&self) -> MutexGuard<'_, Directory> {
        // Nothing in the directory is ever half-changed, so a panic elsewhere does not spoil it.
        self.directory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
