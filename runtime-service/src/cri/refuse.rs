//! Every field is honoured or refused, never ignored: here are those that are refused, each with its path.

use berth_api::cri::*;
use tonic::Status;

use super::{bounds, enums};

/// Collects nothing: the first field that asks for what is not there ends the request.
fn refuse(path: &str) -> Result<(), Status> {
    Err(Status::invalid_argument(format!("{path}: not supported yet")))
}

fn refuse_if(set: bool, path: &str) -> Result<(), Status> {
    if set { refuse(path) } else { Ok(()) }
}

pub(super) fn run_pod_sandbox(request: &RunPodSandboxRequest) -> Result<(), Status> {
    let Some(config) = &request.config else { return Ok(()) };
    bounds::sandbox(config)?;
    sandbox("config", config)
}

pub(super) fn create_container(request: &CreateContainerRequest) -> Result<(), Status> {
    if let Some(config) = &request.sandbox_config {
        sandbox("sandbox_config", config)?;
    }
    let Some(config) = &request.config else { return Ok(()) };
    bounds::container(config)?;
    enums::container("config", config)?;
    refuse_if(config.windows.is_some(), "config.windows")?;
    refuse_if(!config.cdi_devices.is_empty(), "config.CDI_devices")?;
    let security = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
    let Some(security) = security else { return Ok(()) };
    let path = |name: &str| format!("config.linux.security_context.{name}");
    if let Some(options) = &security.namespace_options {
        modes(options, &path("namespace_options"))?;
    }
    Ok(())
}

fn sandbox(root: &str, config: &PodSandboxConfig) -> Result<(), Status> {
    refuse_if(config.windows.is_some(), &format!("{root}.windows"))?;
    enums::sandbox(root, config)?;
    let security = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
    let Some(security) = security else { return Ok(()) };
    let path = |name: &str| format!("{root}.linux.security_context.{name}");
    if let Some(options) = &security.namespace_options {
        modes(options, &path("namespace_options"))?;
        let target = options.pid() == NamespaceMode::Target || !options.target_id.is_empty();
        if target {
            let path = path("namespace_options.target_id");
            return Err(Status::invalid_argument(format!("{path}: a sandbox has no container to share with")));
        }
    }
    Ok(())
}

/// A group is the user's. Source: CRI `LinuxSandboxSecurityContext.run_as_group`.
pub(super) fn group_without_user(config: &PodSandboxConfig) -> Result<(), Status> {
    let security = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
    match security {
        Some(security) if security.run_as_group.is_some() && security.run_as_user.is_none() => {
            let path = "config.linux.security_context.run_as_group";
            Err(Status::invalid_argument(format!("{path}: needs run_as_user as well")))
        }
        _ => Ok(()),
    }
}

/// A network or IPC namespace is the pod's or the host's; no container has one to itself.
fn modes(options: &NamespaceOption, path: &str) -> Result<(), Status> {
    for (field, mode) in [("network", options.network()), ("ipc", options.ipc())] {
        if !matches!(mode, NamespaceMode::Pod | NamespaceMode::Node) {
            let mode = mode.as_str_name();
            return Err(Status::invalid_argument(format!("{path}.{field}: {mode} is neither POD nor NODE")));
        }
    }
    Ok(())
}
