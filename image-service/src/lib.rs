//! From an image's name to a container's root file system, described: registry client, layer store, catalog, and the
//! CRI ImageService. [`Images`] is the only door.
//!
//! Mounts nothing, starts nothing, and knows no pod: a root is returned as data for whoever mounts it.
// The names of failpoints lie in a linker section, which the lint counts as unsafe: only a test build has them.
#![cfg_attr(not(feature = "failpoints"), forbid(unsafe_code))]
#![cfg_attr(feature = "failpoints", deny(unsafe_code))]

use std::collections::BTreeMap;
use std::fmt;

use berth_api::cri::image_service_server::{ImageService, ImageServiceServer};
use berth_api::pull::pulls_server::{Pulls, PullsServer};

mod config;
mod digest;
mod error;
mod files;
mod layer;
mod manifest;
mod merged;
mod reference;
#[macro_use]
mod failpoint;

pub use config::{Config, Registry, SnapshotterKind};
pub use error::Error;
#[cfg(feature = "failpoints")]
pub use failpoint::failpoints;

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
pub struct Images {}

impl Images {
    /// Opens the store and clears away what an earlier daemon left half done.
    ///
    /// # Errors
    /// The directories cannot be made or read. A damaged record is reported in the log and dropped, never fatal.
    pub async fn open(config: Config) -> Result<Self, Error> {
        step!("pull_image::open", Err(unfinished(&config.root)))
    }

    /// CRI's ImageService.
    pub fn image_service(&self) -> ImageServiceServer<impl ImageService> {
        ImageServiceServer::new(rpc::Rpc(self.clone()))
    }

    /// berth.v1's Pulls: a pull with its progress.
    pub fn pull_service(&self) -> PullsServer<impl Pulls> {
        PullsServer::new(rpc::Rpc(self.clone()))
    }

    /// The image that `reference` names: an id, `sha256:…`, a unique beginning of an id, a tag, a digest, or both.
    ///
    /// # Errors
    /// A malformed reference; an id prefix that two images share.
    pub async fn find(&self, reference: &str) -> Result<Option<Image>, Error> {
        Err(Error::NotFound {
            image: reference.to_owned(),
        })
    }

    /// A regular file of the image, found across its layers as a container would see it, symlinks resolved inside the
    /// root. `None` if it is not there. Small files are remembered: asking again costs a map look-up.
    ///
    /// # Errors
    /// Not a regular file, larger than `max` bytes, or unreadable.
    pub async fn read_file(
        &self,
        image: &ImageId,
        path: &str,
        max: usize,
    ) -> Result<Option<Vec<u8>>, Error> {
        Err(Error::NotFound {
            image: format!("{image:?} {path} {max}"),
        })
    }

    /// Makes `ROOTFS/CONTAINER` and says what to mount. The image's layers stay as long as it exists. Asked again for
    /// the same container it answers the same and keeps what was written.
    ///
    /// # Errors
    /// No such image; the disk refuses.
    pub async fn prepare_rootfs(&self, image: &ImageId, container: &str) -> Result<Rootfs, Error> {
        Err(Error::NotFound {
            image: format!("{image:?} {container}"),
        })
    }

    /// Removes a container's writable layer, which must no longer be mounted. Absent is fine. Needs no disk space.
    ///
    /// # Errors
    /// The disk refuses.
    pub async fn remove_rootfs(&self, container: &str) -> Result<(), Error> {
        Err(Error::NotFound {
            image: container.to_owned(),
        })
    }

    /// The containers that have a writable layer.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub async fn rootfs_list(&self) -> Result<Vec<String>, Error> {
        Err(Error::NotFound {
            image: String::new(),
        })
    }
}

fn unfinished(path: &std::path::Path) -> Error {
    Error::Io {
        step: "open",
        path: path.to_owned(),
        source: std::sync::Arc::new(std::io::ErrorKind::Unsupported.into()),
    }
}

mod rpc;
