//! What no record explains: of a pod whose record somebody removed, or that was half removed when a daemon ended.

use std::path::Path;
use std::time::Duration;

use futures::future::join_all;
use serde_json::Value;

use super::recover::{ANSWER, Recovered};
use super::task::Shared;
use super::teardown::{let_go_of, unpin_all};
use super::{Error, blocking};
use crate::host::systemd;
use crate::ids::PodId;
use crate::ledger::{Held, gone};
use crate::netns;
use crate::spec::Scope;
use crate::task::{self as shim_task, SHIM, end_remains, foreign};

/// Removes what no record explains. Right only when every record has been looked at.
///
/// # Errors
/// A directory cannot be read. What cannot be removed is logged and left.
pub(crate) async fn sweep(shared: &Shared, recovered: &Recovered) -> Result<(), Error> {
    let known = recovered.known.clone();
    let ledger = shared.ledger.clone();
    let is_known = known.clone();
    let strays =
        blocking(move || ledger.strays(|name| is_known.contains(name)).map_err(Error::ledger("look for leftovers")));
    let (bundles, others): (Vec<_>, Vec<_>) =
        strays.await?.into_iter().partition(|dir| dir.starts_with(shared.ledger.roots.bundles()));
    // What runs in a pod's namespaces ends before these go.
    join_all(bundles.iter().map(|dir| remove(dir, end_container(shared, dir)))).await;
    join_all(others.iter().map(|dir| remove(dir, let_go(shared, dir)))).await;
    if let Err(error) = shared.parents.sweep() {
        tracing::error!(%error, "remove parent cgroups that an earlier daemon made");
    }
    let roots = shared.images.rootfs_list().await;
    let roots = roots.map_err(|source| Error::Image { reference: "list of rootfs".into(), source })?;
    for id in roots.into_iter().filter(|id| !known.contains(super::image_volumes::owner(id))) {
        if let Err(error) = shared.images.remove_rootfs(&id).await {
            tracing::error!(container = id, error = super::chain(&error), "remove a rootfs that no record explains");
        }
    }
    if let Err(error) = shared.images.sweep().await {
        tracing::error!(error = super::chain(&error), "remove layers that nobody needs");
    }
    Ok(())
}

/// Whatever is there besides files is let go of first: a directory with something mounted in it is not removed.
async fn remove(dir: &Path, letting_go: impl Future<Output = Result<(), Error>>) {
    tracing::warn!(path = %dir.display(), "remove what no record explains");
    let removed = async {
        letting_go.await?;
        let path = dir.to_owned();
        blocking(move || {
            gone(std::fs::remove_dir_all(&path)).map_err(|source| Error::Io { deed: "remove", path, source })
        })
        .await
    };
    if let Err(error) = step!("recover::sweep", removed.await) {
        tracing::error!(path = %dir.display(), error = super::chain(&error), "remove what no record explains");
    }
}

/// Namespaces and their keeper, where it is a pod's run directory.
async fn let_go(shared: &Shared, dir: &Path) -> Result<(), Error> {
    let (roots, path) = (shared.ledger.roots.clone(), dir.to_owned());
    let id = dir.file_name().and_then(|name| name.to_str()).and_then(PodId::parse);
    blocking(move || match id {
        Some(id) if path == roots.pod_run(&id) => let_go_of(&roots, &id, &Held::default()),
        _ => unpin_all(&path),
    })
    .await
}

/// The container of a bundle and its shim, by what the bundle says of itself.
async fn end_container(shared: &Shared, bundle: &Path) -> Result<(), Error> {
    let Some(id) = bundle.file_name().and_then(|name| name.to_str()) else { return Ok(()) };
    let cgroup = cgroup_of(bundle, id);
    // A sandbox container may have a record though this one has none.
    let shared_shim = foreign::owes(bundle) && sandbox_of(bundle).is_some_and(|sandbox| sandbox != id);
    let io = |deed: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { deed, path, source }
    };
    if let Some(cgroup) = cgroup.clone() {
        let cgroups = shared.host.cgroups.clone();
        blocking(move || cgroups.kill(&cgroup).map_err(io("kill what is in cgroup", Path::new(&cgroup)))).await?;
    }
    if let Ok(shim) = shim_task::connect_bundle(&shared.shim_binaries, bundle).await {
        // One that does not answer is killed all the same.
        let _ = tokio::time::timeout(ANSWER, shim.delete(id, "")).await;
        if !shared_shim {
            let _ = tokio::time::timeout(ANSWER, shim.shutdown(id)).await;
        }
    }
    let program = foreign::program(bundle).unwrap_or_else(|| SHIM.into());
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let place = bundle.to_owned();
    blocking(move || end_remains(&place, &name, Duration::ZERO).map_err(io("end the shim that works in", &place)))
        .await?;
    if foreign::owes(bundle) {
        let daemon = (shared.ledger.roots.run.as_path(), shared.socket.as_path());
        let cleaned = foreign::clean_up(&shared.shim_binaries, &program, daemon, bundle, id).await;
        let cleaned = cleaned.and_then(|()| match shared_shim {
            true => Ok(()),
            false => foreign::remove_socket(&program, daemon.1, bundle, id),
        });
        // Its runtime may have been uninstalled since; what it remembers is no more than files.
        if let Err(error) = cleaned {
            tracing::warn!(path = %bundle.display(), error = super::chain(&error), "clean up after a shim");
        }
    }
    if let Some(cgroup) = cgroup {
        let cgroups = shared.host.cgroups.clone();
        let scope = Scope::of(&cgroup);
        blocking(move || cgroups.remove(&cgroup).map_err(io("remove cgroup", Path::new(&cgroup)))).await?;
        if let Some(scope) = scope {
            systemd::stop_scope(&shared.host.cgroups, &scope).await.map_err(Error::Systemd)?;
        }
    }
    let rootfs = bundle.join("rootfs");
    blocking(move || netns::unpin(&rootfs).map_err(io("unmount", &rootfs))).await
}

/// The pod whose containers share a shim, by what that was told.
fn sandbox_of(bundle: &Path) -> Option<String> {
    let spec: Value = serde_json::from_slice(&std::fs::read(bundle.join("config.json")).ok()?).ok()?;
    spec["annotations"]["io.kubernetes.cri.sandbox-id"].as_str().map(str::to_owned)
}

/// The container's cgroup, by the spec in its bundle; only one that bears its id, so that never another's is emptied.
fn cgroup_of(bundle: &Path, id: &str) -> Option<String> {
    let spec: Value = serde_json::from_slice(&std::fs::read(bundle.join("config.json")).ok()?).ok()?;
    let path = spec["linux"]["cgroupsPath"].as_str()?;
    (path.rsplit('/').next() == Some(id)).then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cgroup_that_bears_the_id_is_the_containers() {
        let bundle = tempfile::tempdir().expect("a directory");
        let of = |path: &str| {
            let spec = serde_json::json!({"linux": {"cgroupsPath": path}});
            std::fs::write(bundle.path().join("config.json"), spec.to_string()).expect("write it");
            cgroup_of(bundle.path(), "abc")
        };
        assert_eq!(of("/kubepods/pod1/abc").as_deref(), Some("/kubepods/pod1/abc"));
        assert_eq!((of("/kubepods/pod1"), of("/"), of("")), (None, None, None));
        std::fs::write(bundle.path().join("config.json"), "{").expect("cut it short");
        assert_eq!(cgroup_of(bundle.path(), "abc"), None);
    }
}
