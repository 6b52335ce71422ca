//! Images made of layers, and put into a registry.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::registry::Registry;
use super::tar::gzip;

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// A layer: what is served, and what it unpacks to.
#[derive(Clone)]
pub struct Layer {
    pub media_type: &'static str,
    pub blob: Vec<u8>,
    pub tar: Vec<u8>,
}

impl Layer {
    pub fn gzip(tar: Vec<u8>) -> Self {
        Self { media_type: "application/vnd.oci.image.layer.v1.tar+gzip", blob: gzip(&tar), tar }
    }

    pub fn zstd(tar: Vec<u8>) -> Self {
        Self { media_type: "application/vnd.oci.image.layer.v1.tar+zstd", blob: super::tar::zstd(&tar), tar }
    }

    pub fn plain(tar: Vec<u8>) -> Self {
        Self { media_type: "application/vnd.oci.image.layer.v1.tar", blob: tar.clone(), tar }
    }

    pub fn digest(&self) -> String {
        digest(&self.blob)
    }
}

/// An image and how it is described.
pub struct Image {
    pub layers: Vec<Layer>,
    /// The `config` object of its configuration.
    pub config: Value,
    pub docker: bool,
}

impl Image {
    pub fn new(layers: Vec<Layer>) -> Self {
        Self { layers, config: json!({}), docker: false }
    }

    pub fn config_bytes(&self) -> Vec<u8> {
        let diff_ids: Vec<String> = self.layers.iter().map(|layer| digest(&layer.tar)).collect();
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = json!({
            "os": "linux", "architecture": architecture, "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        serde_json::to_vec(&config).unwrap()
    }

    pub fn id(&self) -> String {
        digest(&self.config_bytes())
    }

    pub fn manifest(&self) -> Vec<u8> {
        let config = self.config_bytes();
        let (manifest, kind) = match self.docker {
            true => (DOCKER_MANIFEST, "application/vnd.docker.container.image.v1+json"),
            false => (OCI_MANIFEST, "application/vnd.oci.image.config.v1+json"),
        };
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| {
                let media_type =
                    if self.docker { "application/vnd.docker.image.rootfs.diff.tar.gzip" } else { layer.media_type };
                json!({ "mediaType": media_type, "digest": layer.digest(), "size": layer.blob.len() })
            })
            .collect();
        let document = json!({
            "schemaVersion": 2, "mediaType": manifest, "layers": layers,
            "config": { "mediaType": kind, "digest": digest(&config), "size": config.len() },
        });
        serde_json::to_vec(&document).unwrap()
    }

    /// Puts it into the registry under `name`; the manifest's digest.
    pub fn push(&self, registry: &Registry, name: &str) -> String {
        for layer in &self.layers {
            registry.put_blob(&layer.blob);
        }
        registry.put_blob(&self.config_bytes());
        let media_type = if self.docker { DOCKER_MANIFEST } else { OCI_MANIFEST };
        registry.put_manifest(name, media_type, &self.manifest())
    }
}

/// An index of these entries: media type, bytes, and a platform as `os/architecture`.
pub fn index(entries: &[(&str, &[u8], Option<&str>)]) -> Vec<u8> {
    let manifests: Vec<Value> = entries
        .iter()
        .map(|(media_type, bytes, platform)| {
            let mut entry = json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() });
            if let Some((os, architecture)) = platform.and_then(|platform| platform.split_once('/')) {
                entry["platform"] = json!({ "os": os, "architecture": architecture });
            }
            entry
        })
        .collect();
    serde_json::to_vec(&json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests })).unwrap()
}

pub fn platform() -> &'static str {
    if std::env::consts::ARCH == "aarch64" { "linux/arm64" } else { "linux/amd64" }
}
