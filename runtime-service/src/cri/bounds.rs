//! How long names, labels and annotations may be. They are kept, and every list tells them again.

use std::collections::HashMap;

use berth_api::cri::{ContainerConfig, PodSandboxConfig};
use tonic::Status;

/// Bytes of a name. Kubernetes' are at most 253.
const NAME_MAX: usize = 1024;
/// Bytes of a label, key and value. Source: containerd's `labels.Validate`; Kubernetes' are a tenth of it.
const LABEL_MAX: usize = 4096;
/// Labels of one object.
const LABELS_MAX: usize = 1024;
/// Bytes of all annotations of one object: twice what Kubernetes lets a pod have (`TotalAnnotationSizeLimitB`).
const ANNOTATIONS_MAX: usize = 512 << 10;
/// Bytes of a field's key that a message shows.
const SHOWN: usize = 64;

/// Of `PodSandboxConfig`.
pub(super) fn sandbox(config: &PodSandboxConfig) -> Result<(), Status> {
    let metadata = config.metadata.as_ref();
    names(metadata.into_iter().flat_map(|m| [("name", &m.name), ("namespace", &m.namespace), ("uid", &m.uid)]))?;
    labels(&config.labels)?;
    annotations(&config.annotations)
}

/// Of `ContainerConfig`.
pub(super) fn container(config: &ContainerConfig) -> Result<(), Status> {
    names(config.metadata.iter().map(|m| ("name", &m.name)))?;
    labels(&config.labels)?;
    annotations(&config.annotations)
}

fn names<'a>(fields: impl Iterator<Item = (&'a str, &'a String)>) -> Result<(), Status> {
    for (field, value) in fields {
        if value.len() > NAME_MAX {
            return too_long(&format!("config.metadata.{field}"), value.len(), NAME_MAX);
        }
    }
    Ok(())
}

fn labels(labels: &HashMap<String, String>) -> Result<(), Status> {
    if labels.len() > LABELS_MAX {
        let problem = format!("config.labels: {} of them, at most {LABELS_MAX} are taken", labels.len());
        return Err(Status::invalid_argument(problem));
    }
    match labels.iter().find(|(key, value)| key.len() + value.len() > LABEL_MAX) {
        Some((key, value)) => {
            let shown: String = key.chars().take(SHOWN).collect();
            too_long(&format!("config.labels[{shown:?}]"), key.len() + value.len(), LABEL_MAX)
        }
        None => Ok(()),
    }
}

fn annotations(annotations: &HashMap<String, String>) -> Result<(), Status> {
    match annotations.iter().map(|(key, value)| key.len() + value.len()).sum() {
        sum if sum > ANNOTATIONS_MAX => too_long("config.annotations", sum, ANNOTATIONS_MAX),
        _ => Ok(()),
    }
}

fn too_long(path: &str, length: usize, most: usize) -> Result<(), Status> {
    Err(Status::invalid_argument(format!("{path}: {length} bytes, at most {most} are taken")))
}
