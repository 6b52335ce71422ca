//! What an operator may set about images. The daemon reads the file and fills in the directories; this crate knows of
//! no file.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// Configuration of the image service. The two directories are the daemon's to set; the rest is the TOML table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where content, layers and catalog are kept (`DATA/images`).
    #[serde(skip)]
    pub root: PathBuf,
    /// Where containers' writable layers are kept (`DATA/rootfs`).
    #[serde(skip)]
    pub rootfs_dir: PathBuf,
    /// How a container's root is made from layers.
    pub snapshotter: SnapshotterKind,
    /// Rules per registry host; a host without a rule is asked itself, over HTTPS (HTTP when it is loopback).
    pub registries: Vec<Registry>,
    /// Layers fetched and unpacked at once, over all pulls.
    pub max_concurrent_downloads: usize,
    /// Seconds without one byte from a registry after which a request is given up and tried again.
    pub progress_timeout_seconds: u64,
    /// Seconds a pull goes on when nobody waits for it any more. Its partial blobs are kept.
    pub abandon_after_seconds: u64,
}

/// How a container's root is made from layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotterKind {
    /// Layers are the lower directories of an overlay mount.
    Overlay,
    /// Layers are copied into one directory, for file systems that overlayfs cannot use.
    Native,
}

/// How one registry host is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// Host and port as they stand in a reference (`registry.k8s.io`, `127.0.0.1:5000`), or `*` for every host that has
    /// no rule of its own.
    pub host: String,
    /// Base addresses (`http://127.0.0.1:5000`) tried in this order before the host itself.
    pub mirrors: Vec<String>,
    /// Speak HTTP to the host itself. Loopback hosts are always spoken to over HTTP unless `ca_file` is set.
    pub plain_http: bool,
    /// PEM file of authorities trusted for this host and its mirrors beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Send the credentials of a pull to the mirrors too. Without it only the host named in the reference sees them.
    pub credentials_to_mirrors: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/var/lib/berth/images"),
            rootfs_dir: PathBuf::from("/var/lib/berth/rootfs"),
            snapshotter: SnapshotterKind::Overlay,
            registries: Vec::new(),
            max_concurrent_downloads: 4,
            progress_timeout_seconds: 60,
            abandon_after_seconds: 300,
        }
    }
}

impl Config {
    /// The rule for `host`: its own, else that of `*`.
    pub(crate) fn registry(&self, host: &str) -> Registry {
        let named = |name: &str| self.registries.iter().find(|registry| registry.host == name);
        named(host).or_else(|| named("*")).cloned().unwrap_or_default()
    }

    pub(crate) fn progress_timeout(&self) -> Duration {
        Duration::from_secs(self.progress_timeout_seconds)
    }

    pub(crate) fn abandon_after(&self) -> Duration {
        Duration::from_secs(self.abandon_after_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_and_an_unknown_key_refused() {
        let text = "max_concurrent_downloads = 2\nsnapshotter = 'native'\n[[registries]]\nhost = '*'\nmirrors = ['http://127.0.0.1:5000']\n";
        let config: Config = toml::from_str(text).unwrap();
        assert_eq!(config.snapshotter, SnapshotterKind::Native);
        assert_eq!(config.registry("docker.io").mirrors, ["http://127.0.0.1:5000"]);
        let error = toml::from_str::<Config>("max_downloads = 2").unwrap_err();
        assert!(error.to_string().contains("max_downloads"), "{error}");
    }

    #[test]
    fn a_host_of_its_own_wins_over_the_star() {
        let star = Registry { host: "*".into(), plain_http: true, ..Registry::default() };
        let own = Registry { host: "a.example".into(), ..Registry::default() };
        let config = Config { registries: vec![star.clone(), own.clone()], ..Config::default() };
        assert_eq!(config.registry("a.example"), own);
        assert_eq!(config.registry("b.example"), star);
        assert_eq!(Config::default().registry("b.example"), Registry::default());
    }
}
