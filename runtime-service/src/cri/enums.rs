//! Enumerations with a number that has no name: refused by the field's path. prost would take the default in its place, so
//! that a client of a later CRI would get something else than it asked for. A filter by such a state would match nothing.

use berth_api::cri::security_profile::ProfileType;
use berth_api::cri::*;
use tonic::Status;

fn known<E: TryFrom<i32>>(number: i32, root: &str, field: &str) -> Result<(), Status> {
    match E::try_from(number) {
        Ok(_) => Ok(()),
        Err(_) => Err(Status::invalid_argument(format!("{root}.{field}: {number} is no value of its enumeration"))),
    }
}

/// Of `PodSandboxConfig`, which is at `root` of its request.
pub(super) fn sandbox(root: &str, config: &PodSandboxConfig) -> Result<(), Status> {
    for (index, mapping) in config.port_mappings.iter().enumerate() {
        known::<Protocol>(mapping.protocol, root, &format!("port_mappings[{index}].protocol"))?;
    }
    let Some(security) = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref()) else { return Ok(()) };
    let root = &format!("{root}.linux.security_context");
    namespaces(root, security.namespace_options.as_ref())?;
    known::<SupplementalGroupsPolicy>(security.supplemental_groups_policy, root, "supplemental_groups_policy")?;
    profile(root, "seccomp", security.seccomp.as_ref())?;
    profile(root, "apparmor", security.apparmor.as_ref())
}

/// Of `ContainerConfig`, which is at `root` of its request.
pub(super) fn container(root: &str, config: &ContainerConfig) -> Result<(), Status> {
    for (index, mount) in config.mounts.iter().enumerate() {
        known::<MountPropagation>(mount.propagation, root, &format!("mounts[{index}].propagation"))?;
    }
    known::<Signal>(config.stop_signal, root, "stop_signal")?;
    let Some(security) = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref()) else { return Ok(()) };
    let root = &format!("{root}.linux.security_context");
    namespaces(root, security.namespace_options.as_ref())?;
    known::<SupplementalGroupsPolicy>(security.supplemental_groups_policy, root, "supplemental_groups_policy")?;
    profile(root, "seccomp", security.seccomp.as_ref())?;
    profile(root, "apparmor", security.apparmor.as_ref())
}

pub(super) fn sandbox_filter(filter: Option<&PodSandboxFilter>) -> Result<(), Status> {
    let state = filter.and_then(|filter| filter.state.as_ref());
    state.map_or(Ok(()), |state| known::<PodSandboxState>(state.state, "filter", "state.state"))
}

pub(super) fn container_filter(filter: Option<&ContainerFilter>) -> Result<(), Status> {
    let state = filter.and_then(|filter| filter.state.as_ref());
    state.map_or(Ok(()), |state| known::<ContainerState>(state.state, "filter", "state.state"))
}

fn namespaces(root: &str, options: Option<&NamespaceOption>) -> Result<(), Status> {
    let Some(options) = options else { return Ok(()) };
    let users = options.userns_options.as_ref().map_or(0, |users| users.mode);
    for (field, mode) in
        [("network", options.network), ("pid", options.pid), ("ipc", options.ipc), ("userns_options.mode", users)]
    {
        known::<NamespaceMode>(mode, root, &format!("namespace_options.{field}"))?;
    }
    Ok(())
}

fn profile(root: &str, field: &str, profile: Option<&SecurityProfile>) -> Result<(), Status> {
    let kind = profile.map_or(0, |profile| profile.profile_type);
    known::<ProfileType>(kind, root, &format!("{field}.profile_type"))
}
