//! Exec, Attach and PortForward: what is allowed is decided here, the stream itself is `streaming`'s.

use berth_api::cri::{
    AttachRequest, AttachResponse, ContainerState, ExecRequest, ExecResponse, PortForwardRequest, PortForwardResponse,
};
use tonic::Status;

use crate::ids::ContainerId;
use crate::pod::{ContainerView, Namespaces, PodState};
use crate::pods::Pods;
use crate::serve::subject;
use crate::streaming::{Allowed, Attach, Exec, PortForward, Server, Streams, TokenError};
use crate::task::Shim;

pub(super) fn exec(pods: &Pods, server: &Server, request: ExecRequest) -> Result<ExecResponse, Status> {
    let (pod, id, view) = pods.find_container(&request.container_id)?;
    subject(|s| {
        s.pod = pod.id.to_string();
        s.container = id.to_string();
    });
    if request.cmd.first().is_none_or(|c| c.is_empty()) {
        return Err(Status::invalid_argument("cmd: empty"));
    }
    let asked = Streams { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, tty: request.tty };
    check(asked)?;
    let shim = running(&id, &view)?;
    let mut process = (*view.process).clone();
    process["args"] = request.cmd.into();
    process["terminal"] = request.tty.into();
    if request.tty
        && let Some(env) = process["env"].as_array_mut()
        && !env.iter().any(|entry| entry.as_str().is_some_and(|entry| entry.starts_with("TERM=")))
    {
        env.push("TERM=xterm".into());
    }
    let bundle = pods.shared().ledger.roots.bundle(&id);
    let process = process.to_string().into_bytes();
    let url = server.url(Allowed::Exec(Exec { container: id, shim, bundle, process, streams: asked }));
    Ok(ExecResponse { url: url.map_err(no_token)? })
}

pub(super) fn attach(pods: &Pods, server: &Server, request: AttachRequest) -> Result<AttachResponse, Status> {
    let (pod, id, view) = pods.find_container(&request.container_id)?;
    subject(|s| {
        s.pod = pod.id.to_string();
        s.container = id.to_string();
    });
    let asked = Streams { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, tty: request.tty };
    check(asked)?;
    let shim = running(&id, &view)?;
    if shim.is_of_another() {
        let why = format!("container {id} was made by a handler whose shim no client can attach to");
        return Err(Status::failed_precondition(why));
    }
    for (field, asked, made) in [("stdin", asked.stdin, view.config().stdin), ("tty", asked.tty, view.config().tty)] {
        if asked && !made {
            let why = format!("{field}: container {id} was created without it");
            return Err(Status::failed_precondition(why));
        }
    }
    let bundle = pods.shared().ledger.roots.bundle(&id);
    let url = server.url(Allowed::Attach(Attach { container: id, shim, bundle, streams: asked }));
    Ok(AttachResponse { url: url.map_err(no_token)? })
}

pub(super) fn port_forward(
    pods: &Pods,
    server: &Server,
    request: PortForwardRequest,
) -> Result<PortForwardResponse, Status> {
    let pod = pods.find(&request.pod_sandbox_id)?;
    subject(|s| s.pod = pod.id.to_string());
    let view = pod.view();
    if view.state != PodState::Ready {
        return Err(Status::failed_precondition(format!("pod sandbox {} is not ready", pod.id)));
    }
    let mut ports = Vec::new();
    for (index, port) in request.port.iter().enumerate() {
        let number = u16::try_from(*port).ok().filter(|port| *port != 0);
        let number = number
            .ok_or_else(|| Status::invalid_argument(format!("port[{index}]: {port} is no number from 1 to 65535")))?;
        ports.push(number);
    }
    let network = Namespaces::of(view.config()).own_net.then(|| view.namespaces.join("net"));
    let pod_stops = Box::pin(pod.stops());
    let url = server.url(Allowed::PortForward(PortForward { pod: pod.id.clone(), network, ports, pod_stops }));
    Ok(PortForwardResponse { url: url.map_err(no_token)? })
}

fn check(asked: Streams) -> Result<(), Status> {
    if !(asked.stdin || asked.stdout || asked.stderr) {
        return Err(Status::invalid_argument("stdin, stdout, stderr: one of them must be asked for"));
    }
    if asked.tty && asked.stderr {
        return Err(Status::invalid_argument("stderr: a terminal has no stream for errors; ask for stdout alone"));
    }
    Ok(())
}

fn running(id: &ContainerId, view: &ContainerView) -> Result<Shim, Status> {
    let shim = view.shim.clone().filter(|_| view.state() == ContainerState::ContainerRunning);
    shim.ok_or_else(|| Status::failed_precondition(format!("container {id} is not running")))
}

fn no_token(error: TokenError) -> Status {
    match error {
        TokenError::Full => Status::resource_exhausted(error.to_string()),
        TokenError::Random(_) => Status::internal(crate::pod::chain(&error)),
    }
}
