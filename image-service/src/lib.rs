//! From an image's name to a container's root file system, described: registry client, layer store, catalog, and the
//! CRI ImageService. [`Images`] is the only door.
//!
//! Mounts nothing, starts nothing, and knows no pod: a root is returned as data for whoever mounts it.
// The names of failpoints lie in a linker section, which the lint counts as unsafe: only a test build has them.
#![cfg_attr(not(feature = "failpoints"), forbid(unsafe_code))]
#![cfg_attr(feature = "failpoints", deny(unsafe_code))]

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use berth_api::cri::image_service_server::{ImageService, ImageServiceServer};
use berth_api::pull::pulls_server::{Pulls, PullsServer};

// Macros first: they are seen by what follows.
#[macro_use]
mod failpoint;
#[macro_use]
mod sync;

mod catalog;
mod config;
mod cri;
mod digest;
mod error;
mod files;
mod flight;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod layer;
mod lookup;
mod manifest;
mod merged;
mod progress;
mod pull;
mod pulls;
mod records;
mod reference;
mod registry;
mod snapshot;
mod store;
mod unpack;
mod usage;

pub use config::{Config, Registry, SnapshotterKind};
pub use error::{Error, LayerFailure, RegistryFailure};
#[cfg(feature = "failpoints")]
pub use failpoint::failpoints;
use store::Store;
pub use usage::Layer;

/// An image's identity: the digest of its configuration, `sha256:` and 64 hex digits. The same in every answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageId(pub(crate) digest::Digest);

impl ImageId {
    /// Parses `sha256:` and 64 lower-case hex digits.
    pub fn parse(text: &str) -> Option<Self> {
        digest::Digest::parse(text).map(Self)
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is known of an image that is here.
#[derive(Clone, Debug)]
pub struct Image {
    /// Digest of the configuration.
    pub id: ImageId,
    /// Full references with a tag that name it.
    pub repo_tags: Vec<String>,
    /// Full references with the digest its registry served it by.
    pub repo_digests: Vec<String>,
    /// Bytes on disk: unpacked layers, manifests and configuration. Layers shared with other images count in each.
    pub size: u64,
    /// What the image says about running it.
    pub config: RuntimeConfig,
}

/// The `config` object of an image's configuration (OCI image-spec, "config").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeConfig {
    /// Program and first arguments.
    pub entrypoint: Vec<String>,
    /// Default arguments, or program and arguments when there is no entrypoint.
    pub cmd: Vec<String>,
    /// `KEY=VALUE` strings.
    pub env: Vec<String>,
    /// Working directory; empty means `/`.
    pub working_dir: String,
    /// `user`, `uid`, `user:group` …; empty means root.
    pub user: String,
    /// Signal that asks the program to end; empty means SIGTERM.
    pub stop_signal: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `port/protocol`.
    pub exposed_ports: Vec<String>,
    /// Paths that want a volume of their own.
    pub volumes: Vec<String>,
}

/// A container's root as mounts for somebody else to make, in this order, all on the same target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rootfs {
    /// One overlay or one bind.
    pub mounts: Vec<MountSpec>,
}

/// One mount as data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountSpec {
    /// File system type: `overlay`, or `bind`.
    pub kind: String,
    /// `overlay`, or the directory to bind.
    pub source: String,
    /// `mount(8)` options. For overlay `lowerdir=TOP:…:BASE` (`:` and `\` in a path escaped by `\`), `upperdir=`,
    /// `workdir=`. Lower directories are `ROOT/l/N` with small numbers: relative to `ROOT/l` even 500 of them fit the
    /// 4096 bytes that mount(2) takes.
    pub options: Vec<String>,
}

/// The image service. Cheap to clone; all clones are one service.
#[derive(Clone)]
pub struct Images {
    store: Arc<Store>,
}

impl Images {
    /// Opens the store and clears away what an earlier daemon left half done. One daemon at a time may have it open.
    ///
    /// # Errors
    /// The directories cannot be made or read. A damaged record is reported in the log and dropped, never fatal; one of a
    /// newer format is kept, see [`Images::unreadable`].
    pub async fn open(config: Config) -> Result<Self, Error> {
        Ok(Self { store: Store::open(config).await? })
    }

    /// Records of a newer format that were found, and are kept: their paths and what is the matter.
    pub fn unreadable(&self) -> Vec<String> {
        self.store.catalog.newer()
    }

    /// CRI's ImageService.
    pub fn image_service(&self) -> ImageServiceServer<impl ImageService + use<>> {
        ImageServiceServer::new(cri::Service(Arc::clone(&self.store)))
    }

    /// berth.v1's Pulls: a pull with its progress.
    pub fn pull_service(&self) -> PullsServer<impl Pulls + use<>> {
        PullsServer::new(pulls::Service(Arc::clone(&self.store)))
    }

    /// The image that `reference` names: an id, `sha256:…`, a unique beginning of an id, a tag, a digest, or both.
    ///
    /// # Errors
    /// A malformed reference; an id prefix that two images share.
    pub async fn find(&self, reference: &str) -> Result<Option<Image>, Error> {
        self.store.catalog.find(reference)
    }

    /// A regular file of the image, found across its layers as a container would see it, symlinks resolved inside the
    /// root. `None` if it is not there. Small files are remembered: asking again costs a map look-up.
    ///
    /// # Errors
    /// No such image; not a regular file, larger than `max` bytes, or unreadable.
    pub async fn read_file(&self, image: &ImageId, path: &str, max: usize) -> Result<Option<Vec<u8>>, Error> {
        if let Some(contents) = self.store.remembered.get(image.0, path)
            && contents.as_ref().is_none_or(|bytes| bytes.len() <= max)
        {
            return Ok(contents.map(|bytes| bytes.to_vec()));
        }
        let Some((leases, numbers)) = self.store.catalog.lease_image(image.0) else {
            return Err(Error::NotFound { image: image.to_string() });
        };
        let (records, id, name) = (self.store.records.clone(), image.0, path.to_owned());
        let read = unpack::blocking("reading", move || {
            let contents = lookup::read(&records.open_layers()?, numbers, &name, max, id);
            drop(leases);
            contents
        });
        let contents = read.await??;
        self.store.remembered.put(image.0, path, &contents);
        Ok(contents.map(|bytes| bytes.to_vec()))
    }

    /// Makes `ROOTFS/CONTAINER` and says what to mount. The image's layers stay as long as it exists. Asked again for
    /// the same container it answers the same and keeps what was written.
    ///
    /// # Errors
    /// No such image; a container id that is no file name; the disk refuses.
    pub async fn prepare_rootfs(&self, image: &ImageId, container: &str) -> Result<Rootfs, Error> {
        self.prepare(image, container, snapshot::prepare).await
    }

    /// As `prepare_rootfs`, of a root that nobody writes: an image as a volume. `name` is a container's that nobody else
    /// has, and is removed and listed as one.
    ///
    /// # Errors
    /// As of `prepare_rootfs`.
    pub async fn prepare_volume(&self, image: &ImageId, name: &str) -> Result<Rootfs, Error> {
        self.prepare(image, name, snapshot::prepare_volume).await
    }

    /// Whether a path of the image is a directory, links resolved inside the root. `None`: there is nothing.
    ///
    /// # Errors
    /// No such image; a layer that cannot be read.
    pub async fn is_directory(&self, image: &ImageId, path: &str) -> Result<Option<bool>, Error> {
        let Some((leases, numbers)) = self.store.catalog.lease_image(image.0) else {
            return Err(Error::NotFound { image: image.to_string() });
        };
        let (records, id, name) = (self.store.records.clone(), image.0, path.to_owned());
        unpack::blocking("looking", move || {
            let found = lookup::is_directory(&records.open_layers()?, numbers, &name, id);
            drop(leases);
            found
        })
        .await?
    }

    async fn prepare(&self, image: &ImageId, container: &str, make: snapshot::Make) -> Result<Rootfs, Error> {
        check_container(container)?;
        let store = Arc::clone(&self.store);
        let Some((pin, new)) = store.catalog.pin(container, image.0) else {
            return Err(Error::NotFound { image: image.to_string() });
        };
        let container = container.to_owned();
        unpack::blocking("preparing", move || {
            let prepared = make(store.config.snapshotter, &store.records, &container, &pin);
            if let (Err(_), true) = (&prepared, new) {
                if let Err(error) = snapshot::remove(&store.records, &container) {
                    tracing::warn!(
                        container,
                        error = error.chain(),
                        "writable layer half made stays until it is removed"
                    );
                } else {
                    store.catalog.unpin(&container);
                }
            }
            prepared
        })
        .await?
    }

    /// Removes a container's writable layer, which must no longer be mounted. Absent is fine. Needs no disk space.
    ///
    /// # Errors
    /// The disk refuses.
    pub async fn remove_rootfs(&self, container: &str) -> Result<(), Error> {
        check_container(container)?;
        let (records, name) = (self.store.records.clone(), container.to_owned());
        unpack::blocking("removing", move || snapshot::remove(&records, &name)).await??;
        match self.store.catalog.unpin(container) {
            // Its image was removed while it ran: it was the last to need the layers, perhaps.
            Some(pin) if self.store.catalog.image(pin.image).is_none() => {
                self.store.sweep(Some(pin.layers.into_iter().collect())).await
            }
            _ => Ok(()),
        }
    }

    /// Removes layers that no image lists and no container stands on: what a removal or a pull that was killed left. For
    /// the daemon's start, when it knows its containers.
    ///
    /// # Errors
    /// The disk refuses.
    pub async fn sweep(&self) -> Result<(), Error> {
        self.store.sweep(None).await
    }

    /// What containers' own files took when they were last counted. One that was never counted is counted now; what is
    /// not known after `patience` is left out this time. Never walks a disk for longer.
    pub async fn layers(
        &self,
        containers: impl IntoIterator<Item = String>,
        patience: Duration,
    ) -> HashMap<String, Layer> {
        self.store.containers.layers(self.store.records.rootfs.clone(), containers, patience).await
    }

    /// Where containers' own files lie, as ImageFsInfo names it.
    pub fn container_filesystem(&self) -> &Path {
        &self.store.records.rootfs
    }

    /// The containers that have a writable layer.
    ///
    /// # Errors
    /// None today; listing may come to need the disk.
    pub async fn rootfs_list(&self) -> Result<Vec<String>, Error> {
        Ok(self.store.catalog.containers())
    }
}

/// A container's id becomes a file name.
fn check_container(container: &str) -> Result<(), Error> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if container.len() <= 128 && !container.trim_matches('.').is_empty() && container.bytes().all(good) {
        return Ok(());
    }
    Err(Error::Request { field: "container", why: format!("{container:.130?} is not a container id") })
}

#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod support;

#[cfg(test)]
mod tests {
    use super::support::image::{Image, Layer};
    use super::support::registry::Registry;
    use super::support::tar::Tar;
    use super::*;
    use crate::reference::Reference;
    use crate::registry::Credentials;
    use crate::sync::Event;

    /// The order that a power cut at any instant must find: contents, then the record that speaks of them, then the word.
    #[tokio::test(flavor = "multi_thread")]
    async fn everything_is_on_the_disk_before_a_pull_is_answered() {
        let dir = tempfile::tempdir().unwrap();
        let (root, rootfs_dir) = (dir.path().join("images"), dir.path().join("rootfs"));
        let images = Images::open(Config { root: root.clone(), rootfs_dir, ..Config::default() }).await.unwrap();
        let registry = Registry::start().await;
        let layers = [Tar::own().dir("./").file("a", b"a").end(), Tar::own().file("b", b"b").end()];
        let image = Image::new(layers.map(Layer::gzip).into());
        image.push(&registry, "app:1");
        let reference = Reference::parse(&registry.image("app:1")).unwrap();
        let before = images.store.records.disk.events().len();
        cri::pull(&images.store, &reference, &Credentials::Anonymous).await.unwrap();
        let events = images.store.records.disk.events().split_off(before);

        let all = |wanted: &dyn Fn(&Event) -> bool| -> Vec<usize> {
            events.iter().enumerate().filter(|(_, event)| wanted(event)).map(|(at, _)| at).collect()
        };
        let one = |wanted: Event| match all(&|event| *event == wanted).as_slice() {
            [at] => *at,
            found => panic!("{wanted:?} {} times in {events:#?}", found.len()),
        };
        let inside = |path: &Path, name: &str| path.starts_with(root.join(name));
        let layer_records = all(&|event| matches!(event, Event::Renamed(path) if inside(path, "layers")));
        let blobs = all(&|event| matches!(event, Event::Renamed(path) if inside(path, "blobs")));
        assert_eq!((layer_records.len(), blobs.len()), (2, 2), "{events:#?}");
        // A layer's record is written when its files are; one syncfs covers all of them.
        let synced = one(Event::SyncedAll(root.clone()));
        assert!(layer_records.iter().all(|at| *at < synced), "{events:#?}");
        let record = images.store.records.image_record(digest::Digest::parse(&image.id()).unwrap());
        let record_written = one(Event::Wrote(record.clone()));
        assert!(synced < record_written, "{events:#?}");
        // Each document: bytes, then its name, then the directory, all before the record that lists it.
        for at in blobs {
            let Event::Renamed(path) = &events[at] else { unreachable!() };
            assert!(one(Event::Wrote(path.clone())) < one(Event::SyncedFile(path.clone())), "{events:#?}");
            assert!(one(Event::SyncedFile(path.clone())) < at, "{events:#?}");
            assert_eq!(events[at + 1], Event::SyncedDirectory(root.join("blobs")), "{events:#?}");
            assert!(at + 1 < record_written, "{events:#?}");
        }
        let record_synced = one(Event::SyncedFile(record.clone()));
        let record_there = one(Event::Renamed(record));
        let directory = one(Event::SyncedDirectory(root.join("images")));
        let answered = one(Event::Answered);
        assert!(record_written < record_synced && record_synced < record_there, "{events:#?}");
        assert!(record_there < directory && directory < answered, "{events:#?}");
        assert_eq!(answered, events.len() - 1, "{events:#?}");

        // And what is deleted is durably so before that is answered.
        let before = events.len() + before;
        images.store.remove_image(digest::Digest::parse(&image.id()).unwrap()).await.unwrap();
        let events = images.store.records.disk.events().split_off(before);
        let record = images.store.records.image_record(digest::Digest::parse(&image.id()).unwrap());
        assert_eq!(events[..2], [Event::Removed(record), Event::SyncedDirectory(root.join("images"))]);
    }
}
