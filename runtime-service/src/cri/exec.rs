//! ExecSync: a command in a running container, without the pod's task.

use std::time::Duration;

use berth_api::cri::{ContainerState, ExecSyncRequest, ExecSyncResponse};
use tokio::sync::oneshot;
use tonic::Status;

use super::status;
use crate::ids::exec_id;
use crate::pods::Pods;
use crate::serve::subject;
use crate::task;

pub(super) async fn sync(pods: &Pods, request: ExecSyncRequest) -> Result<ExecSyncResponse, Status> {
    let (pod, id, view) = pods.find_container(&request.container_id)?;
    subject(|s| {
        s.pod = pod.id.to_string();
        s.container = id.to_string();
    });
    if request.cmd.first().is_none_or(|c| c.is_empty()) {
        return Err(Status::invalid_argument("cmd: empty"));
    }
    let timeout = u64::try_from(request.timeout).map(Duration::from_secs);
    let timeout = timeout.map_err(|_| Status::invalid_argument(format!("timeout: {} is negative", request.timeout)))?;
    let shim = view.shim.clone().filter(|_| view.state() == ContainerState::ContainerRunning);
    let shim = shim.ok_or_else(|| Status::failed_precondition(format!("container {id} is not running")))?;
    let mut process = (*view.process).clone();
    process["args"] = request.cmd.into();
    process["terminal"] = false.into();
    let process = process.to_string().into_bytes();
    let exec = exec_id().map_err(|e| Status::internal(format!("make an exec id: {e}")))?;
    let bundle = pods.shared().ledger.roots.bundle(&id);
    // In a task of its own, so that a client that goes away is noticed here and cleaned up after, not merely dropped.
    let (here, gone) = oneshot::channel::<()>();
    let container = id.clone();
    let run = tokio::spawn(async move {
        let client_gone = async {
            let _ = gone.await;
        };
        task::exec_sync(&shim, (container.as_str(), &exec), &bundle, process, timeout, client_gone).await
    });
    let finished = run.await.map_err(|_| Status::internal("the exec's task panicked"))?;
    drop(here);
    let finished = finished.map_err(|e| status::of_task(&format!("exec in container {id}"), &e))?;
    let exit_code = i32::try_from(finished.code).unwrap_or(255);
    Ok(ExecSyncResponse { stdout: finished.stdout, stderr: finished.stderr, exit_code })
}
