//! Images as volumes: which image each mount means, its root as data, and letting go of it. The mounting is the shim's,
//! in the container's own namespace: nothing of it is the host's, and what keeps the layers is a record beside the
//! container's own, `rootfs/CTR.INDEX`.

use std::collections::BTreeMap;

use berth_api::cri::{ContainerConfig, Mount};
use berth_image_service::{Image, ImageId};
use serde_json::Value;

use super::task::{Shared, Task};
use super::{Error, relabel, shim_task};
use crate::ids::ContainerId;
use crate::spec;

/// Image of each mount that has one, by the mount's index.
pub(super) type Volumes = BTreeMap<usize, Image>;

/// The mounts that are images, with their index.
fn of(config: &ContainerConfig) -> impl Iterator<Item = (usize, &Mount)> {
    config.mounts.iter().enumerate().filter(|(_, mount)| spec::is_image_volume(mount))
}

/// What image-service knows a volume by.
fn name(container: &ContainerId, index: usize) -> String {
    format!("{container}.{index}")
}

/// The container that a name of image-service's belongs to.
pub(super) fn owner(name: &str) -> &str {
    name.split_once('.').map_or(name, |(container, _)| container)
}

fn failed(index: usize, problem: impl std::fmt::Display) -> Error {
    Error::ImageVolume { problem: format!("config.mounts[{index}].{problem}") }
}

/// Finds the images, and the directories of them that are asked for.
///
/// # Errors
/// An image that is not here; a sub-path that is not in it, or no directory.
pub(super) async fn find(shared: &Shared, config: &ContainerConfig) -> Result<Volumes, Error> {
    let mut volumes = Volumes::new();
    for (index, mount) in of(config) {
        let reference = mount.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
        let found = shared.images.find(reference).await;
        let found = found.map_err(|error| failed(index, format!("image: {}", super::chain(&error))))?;
        let image = found.ok_or_else(|| Error::NoVolumeImage { index, image: reference.to_owned() })?;
        if !mount.image_sub_path.is_empty() {
            let path = &mount.image_sub_path;
            let directory = shared.images.is_directory(&image.id, path).await;
            match directory.map_err(|error| failed(index, format!("image_sub_path: {}", super::chain(&error))))? {
                Some(true) => {}
                Some(false) => return Err(failed(index, format!("image_sub_path: {path:?} is no directory"))),
                None => return Err(failed(index, format!("image_sub_path: {path:?} is not in the image {reference}"))),
            }
        }
        volumes.insert(index, image);
    }
    Ok(volumes)
}

/// Takes the images' layers for this container, and writes into its spec what to mount.
///
/// # Errors
/// The image has gone meanwhile; the disk refuses.
pub(super) async fn take(
    shared: &Shared,
    container: &ContainerId,
    volumes: &BTreeMap<usize, String>,
    spec: &mut Value,
) -> Result<(), Error> {
    for (index, image) in volumes {
        let id = ImageId::parse(image).ok_or_else(|| failed(*index, format!("image: {image:?} is no id")))?;
        let name = name(container, *index);
        let root = step!("create_container::volume-prepare", shared.images.prepare_volume(&id, &name).await);
        let root = root.map_err(|error| failed(*index, format!("image: {}", super::chain(&error))))?;
        let label = spec["linux"]["mountLabel"].as_str().map(str::to_owned);
        if let Some(label) = label {
            relabel::copies(&root.mounts, &label).await?;
        }
        for mount in root.mounts {
            spec::fill_image_volume(spec, *index, &mount.kind, &mount.source, mount.options);
        }
    }
    Ok(())
}

/// A failure of the shim's that was about one of the volumes.
pub(super) fn blamed(config: &ContainerConfig, error: &shim_task::Error) -> Option<Error> {
    let text = super::chain(error);
    let at = |mount: &Mount| format!("at {:?}", mount.container_path.trim_end_matches('/'));
    of(config).find(|(_, mount)| text.contains(&at(mount))).map(|(index, _)| failed(index, format!("image: {text}")))
}

impl Task {
    /// Lets go of a container's volumes; those that it never had are fine.
    pub(super) async fn let_go_of_volumes(&self, container: &ContainerId) -> Vec<Error> {
        let config = self.containers.get(container).and_then(|c| c.request.config.clone()).unwrap_or_default();
        let mut errors = Vec::new();
        for (index, _) in of(&config) {
            let name = name(container, index);
            let removed = step!("remove_container::volume-remove", self.shared.images.remove_rootfs(&name).await);
            errors.extend(removed.err().map(|source| Error::Image { reference: format!("volume {name}"), source }));
        }
        errors
    }
}
