//! What the node says of itself: Version, Status, RuntimeConfig.

use std::collections::HashMap;

use berth_api::cri::*;
use futures::future::join_all;
use nix::sys::statvfs::{FsFlags, statvfs};
use serde_json::json;
use tonic::Status;

use crate::pods::Pods;
use crate::spec::Driver;
use crate::task::{KEEPER, SHIM};

/// The kubelet's own API version, fixed since its beginning. Source: CRI `VersionResponse.version`.
const KUBELET_API: &str = "0.1.0";

pub(super) fn version() -> VersionResponse {
    VersionResponse {
        version: KUBELET_API.into(),
        runtime_name: "berth".into(),
        runtime_version: env!("CARGO_PKG_VERSION").into(),
        runtime_api_version: "v1".into(),
    }
}

/// The cgroup driver.
pub(super) fn runtime_config(driver: Driver) -> RuntimeConfigResponse {
    let driver = match driver {
        Driver::Cgroupfs => CgroupDriver::Cgroupfs,
        Driver::Systemd => CgroupDriver::Systemd,
    };
    RuntimeConfigResponse { linux: Some(LinuxRuntimeConfiguration { cgroup_driver: driver.into() }) }
}

/// Accepts a pod CIDR that is one, and does nothing with it: the cluster's CNI configuration says the subnet.
pub(super) fn update_runtime_config(
    request: UpdateRuntimeConfigRequest,
) -> Result<UpdateRuntimeConfigResponse, Status> {
    let cidr = request.runtime_config.and_then(|c| c.network_config).map(|n| n.pod_cidr).unwrap_or_default();
    for part in cidr.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (address, prefix) = part.split_once('/').unwrap_or((part, ""));
        let bits = address.parse::<std::net::IpAddr>().ok().map(|ip| if ip.is_ipv4() { 32 } else { 128 });
        let valid = matches!((bits, prefix.parse::<u8>()), (Some(bits), Ok(prefix)) if prefix <= bits);
        if !valid {
            return Err(Status::invalid_argument(format!(
                "runtime_config.network_config.pod_cidr: {part:?} is no ADDRESS/PREFIX"
            )));
        }
    }
    if !cidr.is_empty() {
        tracing::info!(cidr, "the kubelet named a pod CIDR; pods get their addresses from the CNI configuration");
    }
    Ok(UpdateRuntimeConfigResponse {})
}

/// Computes the node's conditions when asked, so that they become true and false again by themselves.
pub(crate) struct NodeStatus;

impl NodeStatus {
    pub(super) async fn status(&self, pods: &Pods, request: StatusRequest) -> Result<StatusResponse, Status> {
        let conditions = vec![runtime_ready(pods), network_ready(pods)];
        let mut info = HashMap::new();
        if request.verbose {
            let shared = pods.shared();
            let network = shared.networks.current();
            let facts = json!({
                "cgroups": shared.host.cgroups.describe(),
                "withheld": shared.host.withheld,
                "dataRoot": shared.ledger.roots.data,
                "runRoot": shared.ledger.roots.run,
                "bootId": shared.boot_id,
                "unreadableRecords": pods.unreadable(),
                "network": network.as_ref().ok(),
                "networkProblem": network.as_ref().err().map(|e| e.to_string()),
            });
            info.insert("config".to_owned(), facts.to_string());
        }
        let (handler, features) = features(pods).await;
        let mut runtime_handlers = vec![RuntimeHandler { name: String::new(), features: Some(handler) }];
        let others = pods.shared().handlers.all().map(async |other| {
            let recursive_read_only_mounts = other.features().await.knows("rro");
            let features = RuntimeHandlerFeatures { recursive_read_only_mounts, ..Default::default() };
            RuntimeHandler { name: other.name.clone(), features: Some(features) }
        });
        runtime_handlers.extend(join_all(others).await);
        Ok(StatusResponse {
            status: Some(RuntimeStatus { conditions }),
            info,
            runtime_handlers,
            features: Some(features),
        })
    }
}

/// Nothing is promised that was not tried; a shim that is missing is told of in the conditions.
async fn features(pods: &Pods) -> (RuntimeHandlerFeatures, RuntimeFeatures) {
    let shared = pods.shared();
    let known = match shared.features.get(&shared.shim_binaries, &shared.ledger.roots).await {
        Ok(known) => known.clone(),
        Err(error) => {
            tracing::warn!(error = crate::pod::chain(&error), "cannot tell what the shim can do on this kernel");
            Default::default()
        }
    };
    let handler = RuntimeHandlerFeatures {
        recursive_read_only_mounts: known.recursive_read_only,
        user_namespaces: known.user_namespaces,
    };
    let features = RuntimeFeatures {
        supplemental_groups_policy: true,
        // /proc and /sys are mounted with the rights of the host, so that it is no other case.
        user_namespaces_host_network: known.user_namespaces,
        // By the same call as the other.
        mount_options: known.recursive_read_only,
    };
    (handler, features)
}

fn condition(kind: &str, reason: &str, problem: Result<(), String>) -> RuntimeCondition {
    let (status, reason, message) = match problem {
        Ok(()) => (true, String::new(), String::new()),
        Err(message) => (false, reason.to_owned(), message),
    };
    RuntimeCondition { r#type: kind.into(), status, reason, message }
}

fn runtime_ready(pods: &Pods) -> RuntimeCondition {
    let shared = pods.shared();
    let binaries = [SHIM, KEEPER].into_iter().try_for_each(|name| shared.shim_binaries.binary(name).map(drop));
    if let Err(problem) = binaries {
        return condition("RuntimeReady", "ShimMissing", Err(problem));
    }
    let roots = &shared.ledger.roots;
    let writable = [("data", &roots.data), ("run", &roots.run)].into_iter().try_for_each(|(name, path)| {
        let vfs = statvfs(path).map_err(|e| format!("{name} root {}: {e}", path.display()))?;
        match vfs.flags().contains(FsFlags::ST_RDONLY) {
            true => Err(format!(
                "{name} root {} is on a file system that is mounted read-only: look in the kernel's log for why it became \
                 so, then remount it writable",
                path.display()
            )),
            false => Ok(()),
        }
    });
    condition("RuntimeReady", "RootReadOnly", writable)
}

/// `NetworkPluginNotReady` is a word that tools look for. Source: the kubelet's node conditions.
fn network_ready(pods: &Pods) -> RuntimeCondition {
    let networks = &pods.shared().networks;
    let usable = networks.current().and_then(|network| networks.check_plugins(&network));
    condition("NetworkReady", "NetworkPluginNotReady", usable.map_err(|e| e.to_string()))
}
