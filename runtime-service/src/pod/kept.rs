//! A pod of which a record cannot be read: a newer berthd wrote it, or it is damaged. It is told as far as it can be,
//! NOTREADY and with containers UNKNOWN, keeps its name, and nothing of it is touched: what runs, runs on, and whoever
//! can read the record finds all as it was.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_api::cri;
use tokio::sync::{mpsc, watch};

use super::lifecycle::Phase;
use super::task::Shared;
use super::view::{ContainerView, PodState, PodView};
use super::{Error, Pod, QUEUE, container_steps, decode};
use crate::inflight::Doing;
use crate::ledger::{ContainerRecord, PodRecord};

/// The pod as its records seem to say; `None` when not even its name can be told.
pub(super) fn keep(shared: &Shared, record: &PodRecord, why: &str) -> Option<Pod> {
    let request: Arc<cri::RunPodSandboxRequest> = decode(&record.request).ok()?;
    request.config.as_ref()?.metadata.as_ref()?;
    let why: Arc<str> = why.into();
    let failed = Arc::new(Error::Kept { pod: record.id.clone(), why: why.clone() });
    let containers = shared.ledger.glimpse_containers(&record.id).into_iter();
    let containers: BTreeMap<_, _> = containers
        .filter_map(|container| {
            shared.parents.adopt(&container.cgroup_path, &container.id);
            Some((container.id.clone(), Arc::new(told(container, &why)?)))
        })
        .collect();
    let view = PodView {
        id: record.id.clone(),
        request,
        created_at_ns: record.created_at_ns,
        state: PodState::NotReady,
        failed: Some(failed.clone()),
        ips: Vec::new(),
        cni_result: None,
        namespaces: shared.ledger.roots.pod_run(&record.id).join("ns"),
        keeper: None,
        limits: Arc::default(),
        containers,
        sandbox_container: None,
    };
    let (asks, mut asked) = mpsc::channel(QUEUE);
    let (view, published) = watch::channel(Arc::new(view));
    // Ends with the last handle.
    tokio::spawn(async move {
        while let Some(ask) = asked.recv().await {
            super::Ask::refuse(ask, failed.clone());
        }
        drop(view);
    });
    Some(Pod { id: record.id.clone(), doing: Doing::default(), asks, view: published, gone: Arc::default() })
}

fn told(record: ContainerRecord, why: &Arc<str>) -> Option<ContainerView> {
    let request: Arc<cri::CreateContainerRequest> = decode(&record.request).ok()?;
    request.config.as_ref()?.metadata.as_ref()?;
    Some(ContainerView {
        record: Arc::new(record),
        resources: Arc::new(container_steps::asked_resources(&request)),
        request,
        phase: Phase::Lost,
        kept: Some(why.clone()),
        shim: None,
        process: Arc::default(),
        effective: Arc::default(),
    })
}
