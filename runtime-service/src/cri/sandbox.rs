//! Pod sandboxes on the wire: decode, ask, encode.

use std::collections::HashMap;
use std::sync::Arc;

use berth_api::cri::*;
use serde_json::json;
use tonic::Status;

use super::batches::{Streamed, of_list};
use super::{container, enums, refuse, status};
use crate::pod::{self, PodState, PodView};
use crate::pods::Pods;
use crate::sandbox::DriverChoice;
use crate::serve::subject;
use crate::spec::Driver;

pub(super) async fn run(pods: &Pods, request: RunPodSandboxRequest) -> Result<RunPodSandboxResponse, Status> {
    refuse::run_pod_sandbox(&request)?;
    let config = request.config.as_ref().ok_or_else(|| Status::invalid_argument("config: missing"))?;
    let metadata = config.metadata.as_ref().ok_or_else(|| Status::invalid_argument("config.metadata: missing"))?;
    for (field, value) in [("name", &metadata.name), ("namespace", &metadata.namespace), ("uid", &metadata.uid)] {
        if value.is_empty() {
            return Err(Status::invalid_argument(format!("config.metadata.{field}: empty")));
        }
    }
    refuse::group_without_user(config)?;
    pod::check_sandbox(config, cgroup_driver(pods.shared(), config))?;
    let handler = pods.shared().handlers.get(&request.runtime_handler);
    handler.map_err(|problem| Status::invalid_argument(format!("runtime_handler: {problem}")))?;
    can_map_users(pods, config, &request.runtime_handler).await?;
    let id = pods.run(request).await?;
    subject(|s| s.pod = id.to_string());
    Ok(RunPodSandboxResponse { pod_sandbox_id: id.into() })
}

/// A driver that the configuration names is the only one; one that was chosen by itself gives way to what a kubelet
/// expects.
fn cgroup_driver(shared: &pod::Shared, config: &PodSandboxConfig) -> Driver {
    let driver = shared.cgroup_driver;
    let parent = config.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str());
    match shared.config.sandbox.cgroup_driver {
        DriverChoice::Auto => driver.suited(parent),
        DriverChoice::Cgroupfs | DriverChoice::Systemd => driver,
    }
}

/// A user namespace is for hosts that can: that is tried once.
async fn can_map_users(pods: &Pods, config: &PodSandboxConfig, handler: &str) -> Result<(), Status> {
    if pod::users(config)?.is_none() {
        return Ok(());
    }
    let field = "config.linux.security_context.namespace_options.userns_options";
    if !handler.is_empty() {
        return Err(Status::failed_precondition(format!("{field}: handler {handler:?} is not known to map users")));
    }
    let shared = pods.shared();
    let known = shared.features.get(&shared.shim_binaries, &shared.ledger.roots).await;
    let known = known.map_err(|e| status::of_task("what this host can do", &e))?;
    if known.user_namespaces {
        return Ok(());
    }
    let why = &known.no_user_namespaces;
    Err(Status::failed_precondition(format!("{field}: this host cannot: {why}")))
}

/// Of an unknown id: a yes.
pub(super) async fn stop(pods: &Pods, request: StopPodSandboxRequest) -> Result<StopPodSandboxResponse, Status> {
    let Some(pod) = found(pods.find(&request.pod_sandbox_id))? else { return Ok(StopPodSandboxResponse {}) };
    subject(|s| s.pod = pod.id.to_string());
    match pod.stop_pod().await {
        Ok(()) => Ok(StopPodSandboxResponse {}),
        // Removed by somebody else meanwhile.
        Err(error) if matches!(*error, pod::Error::Ended(_)) => Ok(StopPodSandboxResponse {}),
        Err(error) => Err(status::of_pod(&error)),
    }
}

/// Of an unknown id: a yes.
pub(super) async fn remove(pods: &Pods, request: RemovePodSandboxRequest) -> Result<RemovePodSandboxResponse, Status> {
    let Some(pod) = found(pods.find(&request.pod_sandbox_id))? else { return Ok(RemovePodSandboxResponse {}) };
    subject(|s| s.pod = pod.id.to_string());
    pods.remove(pod).await.map_err(|e| status::of_pod(&e))?;
    Ok(RemovePodSandboxResponse {})
}

/// For Stop and Remove an id that nobody has is nothing to do; an empty or ambiguous one is a bad request.
pub(super) fn found<T>(looked_up: Result<T, crate::pods::LookupError>) -> Result<Option<T>, Status> {
    match looked_up {
        Ok(found) => Ok(Some(found)),
        Err(crate::pods::LookupError::None { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The status as CRI wants it.
pub(super) fn encode(view: &PodView) -> PodSandboxStatus {
    let config = view.config();
    let security = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
    let mut ips = view.ips.iter().cloned();
    let network = PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| PodIp { ip }).collect(),
    };
    PodSandboxStatus {
        id: view.id.to_string(),
        metadata: config.metadata.clone(),
        state: state(view).into(),
        created_at: view.created_at_ns,
        network: Some(network),
        linux: Some(LinuxPodSandboxStatus {
            namespaces: Some(Namespace {
                options: Some(security.and_then(|s| s.namespace_options.clone()).unwrap_or_default()),
            }),
        }),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: view.request.runtime_handler.clone(),
    }
}

pub(super) fn status(pods: &Pods, request: PodSandboxStatusRequest) -> Result<PodSandboxStatusResponse, Status> {
    let view = pods.find(&request.pod_sandbox_id)?.view();
    let info = match request.verbose {
        true => info(&view)?,
        false => HashMap::new(),
    };
    Ok(PodSandboxStatusResponse {
        status: Some(encode(&view)),
        info,
        containers_statuses: view.containers.values().map(|c| container::encode(c)).collect(),
        timestamp: pod::now_ns(),
    })
}

pub(super) async fn update(
    pods: &Pods,
    request: UpdatePodSandboxResourcesRequest,
) -> Result<UpdatePodSandboxResourcesResponse, Status> {
    let pod = pods.find(&request.pod_sandbox_id)?;
    subject(|s| s.pod = pod.id.to_string());
    let limits = pod::PodLimits { overhead: request.overhead, resources: request.resources };
    pod.update_pod(limits).await.map_err(|e| status::of_pod(&e))?;
    Ok(UpdatePodSandboxResourcesResponse {})
}

/// What `crictl inspectp` shows beside the status.
fn info(view: &PodView) -> Result<HashMap<String, String>, Status> {
    let config = view.config();
    let resources = |r: &LinuxContainerResources| {
        let pages = r.hugepage_limits.iter();
        let pages = pages.map(|l| json!({"pageSize": l.page_size, "limit": l.limit})).collect::<Vec<_>>();
        json!({"cpuPeriod": r.cpu_period, "cpuQuota": r.cpu_quota, "cpuShares": r.cpu_shares,
               "cpusetCpus": r.cpuset_cpus, "cpusetMems": r.cpuset_mems, "oomScoreAdj": r.oom_score_adj,
               "memoryLimitInBytes": r.memory_limit_in_bytes,
               "memorySwapLimitInBytes": r.memory_swap_limit_in_bytes,
               "hugepageLimits": pages, "unified": r.unified})
    };
    let linux = config.linux.as_ref();
    let sandbox_container = view.sandbox_container.as_ref();
    // Whichever process the pod's namespaces can be found by.
    let pid = view.keeper.or(sandbox_container.and_then(|c| c.pid()?.try_into().ok()));
    let info = json!({
        "pid": pid.unwrap_or(0),
        "sandboxContainer": sandbox_container.map(|c| json!({"pid": c.pid(), "cgroupsPath": c.record.cgroup_path})),
        "namespaces": view.namespaces,
        "cniResult": view.cni_result.as_deref(),
        "logDirectory": config.log_directory,
        "cgroupParent": linux.map(|l| &l.cgroup_parent),
        "overhead": view.limits.overhead.as_ref().map(resources),
        "resources": view.limits.resources.as_ref().map(resources),
        "sysctls": linux.map(|l| &l.sysctls),
        "portMappings": config.port_mappings.iter().map(|m| json!({
            "protocol": m.protocol().as_str_name(), "containerPort": m.container_port,
            "hostPort": m.host_port, "hostIp": m.host_ip})).collect::<Vec<_>>(),
        "failed": view.failed.as_ref().map(|e| pod::chain(&**e)),
    });
    Ok(HashMap::from([("info".to_owned(), info.to_string())]))
}

pub(super) fn list(pods: &Pods, request: ListPodSandboxRequest) -> Result<ListPodSandboxResponse, Status> {
    enums::sandbox_filter(request.filter.as_ref())?;
    let chosen = chosen(pods, request.filter);
    Ok(ListPodSandboxResponse { items: chosen.iter().map(|view| listed(view)).collect() })
}

pub(super) fn stream(
    pods: &Pods,
    request: StreamPodSandboxesRequest,
) -> Result<Streamed<StreamPodSandboxesResponse>, Status> {
    enums::sandbox_filter(request.filter.as_ref())?;
    let wrap = |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes };
    Ok(of_list(chosen(pods, request.filter), |view| listed(&view), wrap))
}

/// The pods that match every part of the filter. One that is still being made is not there yet.
fn chosen(pods: &Pods, filter: Option<PodSandboxFilter>) -> Vec<Arc<PodView>> {
    let filter = filter.unwrap_or_default();
    let wanted = |v: &Arc<PodView>| {
        v.state != PodState::Starting
            && v.id.as_str().starts_with(&filter.id)
            && filter.state.as_ref().is_none_or(|s| s.state == i32::from(state(v)))
            && matches_labels(&filter.label_selector, &v.config().labels)
    };
    pods.all().iter().map(|pod| pod.view()).filter(wanted).collect()
}

fn listed(v: &PodView) -> PodSandbox {
    PodSandbox {
        id: v.id.to_string(),
        metadata: v.config().metadata.clone(),
        state: state(v).into(),
        created_at: v.created_at_ns,
        labels: v.config().labels.clone(),
        annotations: v.config().annotations.clone(),
        runtime_handler: v.request.runtime_handler.clone(),
    }
}

pub(super) fn matches_labels(selector: &HashMap<String, String>, labels: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn state(view: &PodView) -> PodSandboxState {
    match view.state {
        PodState::Ready => PodSandboxState::SandboxReady,
        PodState::Starting | PodState::NotReady => PodSandboxState::SandboxNotready,
    }
}
