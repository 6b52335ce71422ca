//! Containers on the wire: decode, ask, encode.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use berth_api::cri::*;
use berth_api::encoded::Encoded;
use serde_json::{Value, json};
use tonic::Status;

use super::batches::{Streamed, of_list};
use super::sandbox::{found, matches_labels};
use super::{enums, refuse, status};
use crate::ids::PodId;
use crate::pod::lifecycle::Phase;
use crate::pod::{self, ContainerView};
use crate::pods::Pods;
use crate::serve::subject;

/// Room for a listed container at first, in bytes. Source: what a kubelet gives it comes to about 600.
const LISTED_SIZE: usize = 768;

pub(super) async fn create(pods: &Pods, request: CreateContainerRequest) -> Result<CreateContainerResponse, Status> {
    refuse::create_container(&request)?;
    let config = request.config.as_ref().ok_or_else(|| Status::invalid_argument("config: missing"))?;
    let metadata = config.metadata.as_ref().ok_or_else(|| Status::invalid_argument("config.metadata: missing"))?;
    if metadata.name.is_empty() {
        return Err(Status::invalid_argument("config.metadata.name: empty"));
    }
    let pod = pods.find(&request.pod_sandbox_id)?;
    subject(|s| s.pod = pod.id.to_string());
    let id = pod.create(Arc::new(request)).await.map_err(|e| status::of_pod(&e))?;
    subject(|s| s.container = id.to_string());
    Ok(CreateContainerResponse { container_id: id.into() })
}

pub(super) async fn start(pods: &Pods, request: StartContainerRequest) -> Result<StartContainerResponse, Status> {
    let (pod, id, _) = pods.find_container(&request.container_id)?;
    about(&pod.id, &id);
    pod.start(id).await.map_err(|e| status::of_pod(&e))?;
    Ok(StartContainerResponse {})
}

/// Of an unknown id: a yes.
pub(super) async fn stop(pods: &Pods, request: StopContainerRequest) -> Result<StopContainerResponse, Status> {
    let grace = u64::try_from(request.timeout).map(Duration::from_secs);
    let grace = grace.map_err(|_| Status::invalid_argument(format!("timeout: {} is negative", request.timeout)))?;
    let Some((pod, id, _)) = found(pods.find_container(&request.container_id))? else {
        return Ok(StopContainerResponse {});
    };
    about(&pod.id, &id);
    match pod.stop(id, grace.min(FOREVER)).await {
        Ok(()) => Ok(StopContainerResponse {}),
        Err(error) if gone(&error) => Ok(StopContainerResponse {}),
        Err(error) => Err(status::of_pod(&error)),
    }
}

/// A grace period that nobody outlives, and that a clock can still add.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Of an unknown id: a yes.
pub(super) async fn remove(pods: &Pods, request: RemoveContainerRequest) -> Result<RemoveContainerResponse, Status> {
    let Some((pod, id, _)) = found(pods.find_container(&request.container_id))? else {
        return Ok(RemoveContainerResponse {});
    };
    about(&pod.id, &id);
    match pod.remove_container(id).await {
        Ok(()) => Ok(RemoveContainerResponse {}),
        Err(error) if gone(&error) => Ok(RemoveContainerResponse {}),
        Err(error) => Err(status::of_pod(&error)),
    }
}

/// Removed by somebody else meanwhile.
fn gone(error: &pod::Error) -> bool {
    matches!(error, pod::Error::Ended(_) | pod::Error::NoContainer(_))
}

fn about(pod: &PodId, container: &crate::ids::ContainerId) {
    subject(|s| {
        s.pod = pod.to_string();
        s.container = container.to_string();
    });
}

pub(super) async fn reopen_log(
    pods: &Pods,
    request: ReopenContainerLogRequest,
) -> Result<ReopenContainerLogResponse, Status> {
    let (pod, id, view) = pods.find_container(&request.container_id)?;
    about(&pod.id, &id);
    if view.record.log_path.is_empty() {
        return Err(Status::failed_precondition(format!("container {id} has no log: its output is discarded")));
    }
    let shim = view.shim.as_ref().filter(|_| view.state() == ContainerState::ContainerRunning);
    let shim = shim.ok_or_else(|| Status::failed_precondition(format!("container {id} is not running")))?;
    shim.reopen_log(id.as_str())
        .await
        .map_err(|e| status::of_task(&format!("reopen the log of container {id}"), &e))?;
    Ok(ReopenContainerLogResponse {})
}

pub(super) async fn update(
    pods: &Pods,
    request: UpdateContainerResourcesRequest,
) -> Result<UpdateContainerResourcesResponse, Status> {
    let (pod, id, _) = pods.find_container(&request.container_id)?;
    about(&pod.id, &id);
    if request.windows.is_some() {
        return Err(Status::invalid_argument("windows: this is no Windows host"));
    }
    // They are for plugins of a runtime.
    if let Some(key) = request.annotations.keys().min() {
        return Err(Status::invalid_argument(format!("annotations: {key:?} means nothing here: no plugin reads them")));
    }
    let resources = request.linux.unwrap_or_default();
    pod.update(id, resources).await.map_err(|e| status::of_pod(&e))?;
    Ok(UpdateContainerResourcesResponse {})
}

pub(super) fn list(pods: &Pods, request: ListContainersRequest) -> Result<Encoded<ListContainersResponse>, Status> {
    enums::container_filter(request.filter.as_ref())?;
    let chosen = chosen(pods, request.filter);
    let mut answer = Encoded::with_capacity(chosen.len() * LISTED_SIZE);
    chosen.iter().for_each(|(pod, c)| answer.message(1, Some(&listed(pod, c))));
    Ok(answer)
}

pub(super) fn stream(
    pods: &Pods,
    request: StreamContainersRequest,
) -> Result<Streamed<Encoded<StreamContainersResponse>>, Status> {
    enums::container_filter(request.filter.as_ref())?;
    let wrap = |containers: Vec<Encoded<Container>>| {
        let mut answer = Encoded::with_capacity(containers.len() * LISTED_SIZE);
        containers.iter().for_each(|container| answer.message(1, Some(container)));
        answer
    };
    Ok(of_list(chosen(pods, request.filter), |(pod, c)| listed(&pod, &c), wrap))
}

/// The containers that match every part of the filter, each with its pod's id.
fn chosen(pods: &Pods, filter: Option<ContainerFilter>) -> Vec<(PodId, Arc<ContainerView>)> {
    let filter = filter.unwrap_or_default();
    let wanted = |c: &&Arc<ContainerView>| {
        c.record.id.as_str().starts_with(&filter.id)
            && filter.state.as_ref().is_none_or(|s| s.state == i32::from(c.state()))
            && matches_labels(&filter.label_selector, &c.config().labels)
    };
    let mut chosen = Vec::new();
    for pod in pods.all().iter().filter(|pod| pod.id.as_str().starts_with(&filter.pod_sandbox_id)) {
        chosen.extend(pod.view().containers.values().filter(wanted).map(|c| (pod.id.clone(), c.clone())));
    }
    chosen
}

/// A `Container`, by the numbers of its fields: copies of all the names of a full node would cost more than to send it.
fn listed(pod: &PodId, c: &ContainerView) -> Encoded<Container> {
    let mut container = Encoded::with_capacity(LISTED_SIZE);
    container.text(1, c.record.id.as_str());
    container.text(2, pod.as_str());
    container.message(3, c.config().metadata.as_ref());
    container.message(4, c.config().image.as_ref());
    container.text(5, &c.record.image_id); // image_ref
    container.number(6, i32::from(c.state()).into());
    container.number(7, c.record.created_at_ns);
    container.map(8, &c.config().labels);
    container.map(9, &c.config().annotations);
    container.text(10, &c.record.image_id);
    container
}

pub(super) async fn status(pods: &Pods, request: ContainerStatusRequest) -> Result<ContainerStatusResponse, Status> {
    let (pod, _, view) = pods.find_container(&request.container_id)?;
    let info = match request.verbose {
        true => HashMap::from([("info".to_owned(), info(&pod.id, pods, &view).to_string())]),
        false => HashMap::new(),
    };
    Ok(ContainerStatusResponse { status: Some(encode(&view)), info })
}

/// The status as CRI wants it.
pub(super) fn encode(view: &ContainerView) -> ContainerStatus {
    let config = view.config();
    let mut answer = ContainerStatus {
        id: view.record.id.to_string(),
        metadata: config.metadata.clone(),
        state: view.state().into(),
        created_at: view.record.created_at_ns,
        image: config.image.clone(),
        image_ref: view.record.image_id.clone(),
        image_id: view.record.image_id.clone(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        mounts: mounts(view),
        log_path: view.record.log_path.clone(),
        resources: Some(ContainerResources { linux: Some(resources(view)), windows: None }),
        user: Some(ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: view.record.uid.into(),
                gid: view.record.gid.into(),
                supplemental_groups: view.record.groups.iter().map(|g| i64::from(*g)).collect(),
            }),
        }),
        stop_signal: config.stop_signal,
        ..Default::default()
    };
    match &view.phase {
        Phase::Running { since, .. } | Phase::Stopping { since, .. } => answer.started_at = nanos(*since),
        Phase::Exited(end) => {
            answer.started_at = end.started.map_or(0, nanos);
            answer.finished_at = nanos(end.at);
            answer.exit_code = end.code;
            answer.reason = end.reason.as_str().into();
            answer.message = end.message.clone();
        }
        Phase::Lost => {
            answer.reason = "Unknown".into();
            let killing = "its shim died; berthd is killing the container";
            answer.message = view.kept.as_deref().unwrap_or(killing).into();
        }
        Phase::Creating | Phase::Created | Phase::Removing => {}
    }
    answer
}

/// What was asked, and which image each image volume is.
fn mounts(view: &ContainerView) -> Vec<Mount> {
    let mut mounts = view.config().mounts.clone();
    for (index, id) in &view.record.volumes {
        if let Some(image) = mounts.get_mut(*index).and_then(|mount| mount.image.as_mut()) {
            image.image_ref = id.clone();
        }
    }
    mounts
}

/// What was asked, at first or by an update, but for what the host withheld.
fn resources(view: &ContainerView) -> LinuxContainerResources {
    let mut resources = LinuxContainerResources::clone(&view.resources);
    if let Some(adj) = view.effective.oom_score_adj {
        resources.oom_score_adj = adj.into();
    }
    resources
}

/// What `crictl inspect` shows beside the status.
fn info(pod: &PodId, pods: &Pods, view: &ContainerView) -> Value {
    let bundle = pods.shared().ledger.roots.bundle(&view.record.id);
    let spec = std::fs::read(bundle.join("config.json")).ok().and_then(|b| serde_json::from_slice::<Value>(&b).ok());
    let pid = match view.phase {
        Phase::Running { pid, .. } | Phase::Stopping { pid, .. } => pid,
        _ => 0,
    };
    json!({
        "sandboxID": pod.as_str(),
        "pid": pid,
        "bundle": bundle,
        "cgroupPath": view.record.cgroup_path,
        "effective": *view.effective,
        "stopSignal": view.record.stop_signal,
        "runtimeSpec": spec,
    })
}

pub(super) fn nanos(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
