//! The files behind the catalog, and what is done about an end without warning: `open` puts the directory in order
//! before anybody may ask.
//!
//! ```text
//! boot              the boot in which all of this was written or synced: what was not is not trusted after it
//! blobs/HEX         manifests, indexes, configurations, by digest
//! ingest/CHAIN      compressed layers on their way, by the chain id of what they will be
//! layers/CHAIN      record of an unpacked layer
//! l/NUMBER/         its files in overlay form; short names, so that mount options stay short
//! images/HEX        record of an image; an image is what has one
//! ```
//!
//! A record is a JSON object; `version` is the number of its format, 0 if it has none. One of a newer format is kept, and
//! with it everything that it may stand on, which only its writer can tell: nothing is cleared away until it is gone. One
//! that is damaged is dropped, since pulling again repairs it.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::catalog::{Catalog, ImageRecord, LayerRecord, Pin};
use crate::digest::Digest;
use crate::error::Error;
use crate::files;
use crate::manifest::{ConfigFile, DOCUMENT_MAX, Host};
use crate::sync::{Disk, Event, UNFINISHED};

/// How long partial blobs and layers without an image are kept for a pull that may come again.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// Largest record read, bytes.
const RECORD_MAX: u64 = 16 << 20;
/// The newest format of each kind of record that this build knows. It writes no number yet: a build of before there were
/// numbers takes a record with one for damaged. What comes next is 1, and is written.
const FORMAT: u32 = 0;
/// Name of the file in a container's directory that says what it stands on.
pub(crate) const PIN: &str = "layers";
/// Number of the directory that is always empty: what an image without layers stands on.
pub(crate) const EMPTY_LAYER: u32 = 0;

/// The directories.
#[derive(Clone)]
pub(crate) struct Records {
    pub(crate) root: PathBuf,
    pub(crate) rootfs: PathBuf,
    pub(crate) disk: Disk,
}

impl Records {
    pub(crate) fn blob(&self, digest: Digest) -> PathBuf {
        self.root.join("blobs").join(digest.hex())
    }

    pub(crate) fn ingest(&self, chain: Digest) -> PathBuf {
        self.root.join("ingest").join(chain.hex())
    }

    pub(crate) fn layer_record(&self, chain: Digest) -> PathBuf {
        self.root.join("layers").join(chain.hex())
    }

    pub(crate) fn image_record(&self, id: Digest) -> PathBuf {
        self.root.join("images").join(id.hex())
    }

    /// The directory in which all layers lie.
    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("l")
    }

    pub(crate) fn open_layers(&self) -> Result<OwnedFd, Error> {
        let path = self.layers();
        files::open_own(&path).map_err(Error::io("open", &path))
    }

    /// Makes the directories, clears rubbish away, and reads everything into a catalog.
    pub(crate) fn open(&self) -> Result<Catalog, Error> {
        for name in ["", "blobs", "ingest", "layers", "l", "images"] {
            make_private(&self.root.join(name))?;
        }
        make_private(&self.rootfs)?;
        self.make_empty_layer()?;
        for name in ["", "blobs", "layers", "images"] {
            self.clear_unfinished(&self.root.join(name))?;
        }
        let catalog = Catalog::default();
        let mut newer = Vec::new();
        let layers = self.read_layers(&mut newer)?;
        let images = self.read_images(&layers, &mut newer)?;
        let listed: HashSet<Digest> = images.iter().flat_map(|(record, _)| record.layers.iter().copied()).collect();
        let pins = self.read_pins(&mut newer)?;
        let pinned: HashSet<u32> = pins.iter().flat_map(|(_, pin)| pin.layers.iter().copied()).collect();
        let same_boot = self.is_same_boot();
        let frozen = !newer.is_empty();
        let needed = |record: &LayerRecord| {
            (frozen && same_boot) || listed.contains(&record.chain) || pinned.contains(&record.number)
        };
        let (kept, unneeded) = sort_out(layers, needed, same_boot);
        // What seems unneeded may be what a record stands on that cannot be read: then it stays on the disk. But after
        // another boot nobody knows it for whole, and nobody here stands on it.
        let dropped = if frozen { &[] } else { unneeded.as_slice() };
        for (record, _) in dropped {
            self.disk.remove(&self.layer_record(record.chain)).map_err(Error::io("remove", &self.root))?;
        }
        kept.into_iter().for_each(|(record, _)| catalog.add_layer(record));
        self.clear_ingest(same_boot, &catalog)?;
        if frozen {
            let numbers = list(&self.layers())?.into_iter().filter_map(|name| name.parse().ok()).collect();
            catalog.freeze(newer, numbers);
        } else {
            self.clear_directories(&catalog, &pinned)?;
        }
        for (record, runtime) in images {
            catalog.put_image(record, runtime);
        }
        self.clear_blobs(&catalog)?;
        for (container, pin) in pins {
            catalog.restore_pin(container, pin);
        }
        // As long as there is something of another boot, this one does not vouch for it.
        if !same_boot && (!frozen || unneeded.is_empty()) {
            self.vouch()?;
        }
        Ok(catalog)
    }

    fn make_empty_layer(&self) -> Result<(), Error> {
        let path = self.layers().join(EMPTY_LAYER.to_string());
        match fs::DirBuilder::new().create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(Error::io("make", &path)(error)),
            _ => fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(Error::io("make", &path)),
        }
    }

    fn clear_unfinished(&self, directory: &Path) -> Result<(), Error> {
        for name in list(directory)? {
            if name.ends_with(UNFINISHED) {
                let path = directory.join(name);
                self.disk.remove(&path).map_err(Error::io("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Every readable layer record, and whether it is young enough to wait for its image.
    fn read_layers(&self, newer: &mut Vec<String>) -> Result<Vec<(LayerRecord, bool)>, Error> {
        let directory = self.root.join("layers");
        let mut records = Vec::new();
        for name in list(&directory)? {
            let path = directory.join(&name);
            let record = read_record::<LayerRecord>(&path).and_then(|record| {
                let there = self.layers().join(record.number.to_string()).is_dir();
                let right = record.chain.hex() == name && record.number != EMPTY_LAYER && there;
                right.then_some(record).ok_or_else(|| damaged("it does not fit its name or its directory"))
            });
            match record {
                Ok(record) => records.push((record, is_fresh(&path))),
                Err(why) => newer.extend(self.keep_or_drop("layer", &path, why)?),
            }
        }
        Ok(records)
    }

    /// Every image whose record, configuration and layers are whole.
    fn read_images(
        &self,
        layers: &[(LayerRecord, bool)],
        newer: &mut Vec<String>,
    ) -> Result<Vec<(ImageRecord, crate::RuntimeConfig)>, Error> {
        // A layer that is missing may be one whose record cannot be read.
        let perhaps_there = !newer.is_empty();
        let have: HashSet<Digest> = layers.iter().map(|(record, _)| record.chain).collect();
        let directory = self.root.join("images");
        let mut images = Vec::new();
        for name in list(&directory)? {
            let path = directory.join(&name);
            let image = read_record::<ImageRecord>(&path).and_then(|record| {
                if record.id.hex() != name {
                    return Err(damaged("it does not fit its name"));
                }
                if let Some(missing) = record.layers.iter().find(|chain| !have.contains(chain)) {
                    let why = format!("layer {missing} is missing");
                    return Err(if perhaps_there { Unreadable::Newer(why) } else { damaged(why) });
                }
                for document in &record.documents {
                    self.read_blob(*document).map_err(|error| damaged(error.chain()))?;
                }
                let config = self.read_blob(record.id).map_err(|error| damaged(error.chain()))?;
                let config = ConfigFile::parse(&config, record.layers.len(), &Host::this(), "configuration");
                let runtime = config.map_err(|error| damaged(error.chain()))?.runtime();
                Ok((record, runtime))
            });
            match image {
                Ok(image) => images.push(image),
                Err(why) => newer.extend(self.keep_or_drop("image", &path, why)?),
            }
        }
        Ok(images)
    }

    /// What is to be told of a record that is kept.
    fn keep_or_drop(&self, kind: &str, path: &Path, why: Unreadable) -> Result<Option<String>, Error> {
        match why {
            Unreadable::Newer(why) => {
                tracing::error!(kind, record = %path.display(), why, "a record cannot be read; it is kept, and no layer is cleared away");
                Ok(Some(format!("{}: {why}", path.display())))
            }
            Unreadable::Damaged(why) => {
                tracing::warn!(kind, record = %path.display(), why, "damaged record dropped; pulling the image again repairs it");
                self.disk.remove(path).map_err(Error::io("remove", path))?;
                Ok(None)
            }
        }
    }

    fn read_pins(&self, newer: &mut Vec<String>) -> Result<Vec<(String, Pin)>, Error> {
        let mut pins = Vec::new();
        for name in list(&self.rootfs)? {
            let path = self.rootfs.join(&name).join(PIN);
            let pin = match read_record::<Pin>(&path) {
                Ok(pin) => pin,
                Err(why @ Unreadable::Newer(_)) => {
                    newer.extend(self.keep_or_drop("container", &path, why)?);
                    nothing()
                }
                // It was never handed out, or a power cut ended the container: it can only be removed.
                Err(Unreadable::Damaged(why)) => {
                    tracing::warn!(container = name, why, "writable layer does not say what it stands on");
                    nothing()
                }
            };
            pins.push((name, pin));
        }
        Ok(pins)
    }

    fn is_same_boot(&self) -> bool {
        matches!((fs::read_to_string(self.root.join("boot")), boot_id()), (Ok(then), Ok(now)) if then == now)
    }

    /// What is there is of this boot from now on. On a full disk it is not: the next start looks through everything once
    /// more, and this one goes on, since somebody has to remove something.
    fn vouch(&self) -> Result<(), Error> {
        let path = self.root.join("boot");
        let now = boot_id().map_err(Error::io("read", Path::new(BOOT_ID)))?;
        let written = self.disk.stage(&path, now.as_bytes()).and_then(|staged| self.disk.rename(&staged));
        match written {
            Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                tracing::warn!(path = %path.display(), %error, "the image store's disk is full: remove images or other files");
                Ok(())
            }
            other => other.map_err(Error::io("write", &path)),
        }
    }

    /// Partial blobs go after a reboot, which may have torn them, after a day, and when their layer is done.
    fn clear_ingest(&self, same_boot: bool, catalog: &Catalog) -> Result<(), Error> {
        let directory = self.root.join("ingest");
        for name in list(&directory)? {
            let path = directory.join(&name);
            let done = Digest::from_hex(&name).is_none_or(|chain| catalog.has_layer(chain));
            if !same_boot || done || !is_fresh(&path) {
                self.disk.remove(&path).map_err(Error::io("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Directories that no record speaks of.
    fn clear_directories(&self, catalog: &Catalog, pinned: &HashSet<u32>) -> Result<(), Error> {
        let directory = self.open_layers()?;
        for name in list(&self.layers())? {
            let number = name.parse::<u32>().ok().filter(|number| number.to_string() == name);
            let known = number.is_some_and(|n| n == EMPTY_LAYER || pinned.contains(&n) || catalog.has_number(n));
            if !known {
                files::remove(&directory, name.as_bytes()).map_err(Error::io("remove", &self.layers().join(&name)))?;
            }
        }
        Ok(())
    }

    fn clear_blobs(&self, catalog: &Catalog) -> Result<(), Error> {
        let directory = self.root.join("blobs");
        let here: Vec<Digest> = list(&directory)?.iter().filter_map(|name| Digest::from_hex(name)).collect();
        for digest in catalog.unneeded_documents(&here.into_iter().collect()) {
            let path = self.blob(digest);
            self.disk.remove(&path).map_err(Error::io("remove", &path))?;
        }
        Ok(())
    }

    /// A document, if its bytes are still what its name says.
    pub(crate) fn read_blob(&self, digest: Digest) -> Result<Vec<u8>, Error> {
        let path = self.blob(digest);
        let bytes = read_bounded(&path, DOCUMENT_MAX as u64).map_err(Error::io("read", &path))?;
        let actual = Digest::of(&bytes);
        if actual == digest { Ok(bytes) } else { Err(Error::wrong_digest(path.display(), digest, actual)) }
    }

    /// Writes a document and syncs it. Its bytes were verified.
    pub(crate) fn write_blob(&self, digest: Digest, bytes: &[u8]) -> Result<(), Error> {
        let path = self.blob(digest);
        if self.read_blob(digest).is_ok() {
            return Ok(());
        }
        write_durably!(&self.disk, "pull_image::blob", &path, bytes).map_err(Error::io("write", &path))
    }

    /// Writes an image's record and syncs it: from here on the image is there.
    pub(crate) fn write_image(&self, record: &ImageRecord) -> Result<(), Error> {
        let path = self.image_record(record.id);
        let bytes = serde_json::to_vec(record).map_err(|error| Error::io("write", &path)(io::Error::from(error)))?;
        write_durably!(&self.disk, "pull_image::image_record", &path, &bytes).map_err(Error::io("write", &path))
    }

    /// Writes a layer's record. It is trusted until the next boot, and beyond once an image was committed on it.
    pub(crate) fn write_layer(&self, record: &LayerRecord) -> Result<(), Error> {
        let path = self.layer_record(record.chain);
        let bytes = serde_json::to_vec(record).map_err(|error| Error::io("write", &path)(io::Error::from(error)))?;
        let staged = self.disk.stage(&path, &bytes).map_err(Error::io("write", &path))?;
        step!("pull_image::layer_commit", self.disk.rename(&staged)).map_err(Error::io("write", &path))
    }

    /// Everything written so far is on the disk when this returns.
    pub(crate) fn sync_layers(&self) -> Result<(), Error> {
        let synced = step!("pull_image::layer_syncfs", self.disk.sync_all(&self.root));
        synced.map_err(Error::io("sync", &self.root))
    }

    /// Removes an image's record, durably: what is deleted stays deleted.
    pub(crate) fn remove_image(&self, id: Digest) -> Result<(), Error> {
        let path = self.image_record(id);
        step!("remove_image::record_delete", self.disk.remove(&path)).map_err(Error::io("remove", &path))?;
        let synced = step!("remove_image::record_dirsync", self.disk.sync_directory_of(&path));
        synced.map_err(Error::io("sync directory of", &path))
    }

    /// Removes a layer: record first, so that a directory half gone is never taken for a layer.
    pub(crate) fn remove_layer(&self, record: &LayerRecord) -> Result<(), Error> {
        let path = self.layer_record(record.chain);
        step!("remove_image::gc_layer_record", self.disk.remove(&path)).map_err(Error::io("remove", &path))?;
        self.remove_layer_files(record.number)
    }

    /// Removes the files of a layer that has no record.
    pub(crate) fn remove_layer_files(&self, number: u32) -> Result<(), Error> {
        let layers = self.open_layers()?;
        let removed = step!("remove_image::gc_layer_files", files::remove(&layers, number.to_string().as_bytes()));
        removed.map_err(Error::io("remove", &self.layers().join(number.to_string())))
    }

    pub(crate) fn remove_blob(&self, digest: Digest) -> Result<(), Error> {
        let path = self.blob(digest);
        step!("remove_image::gc_blob", self.disk.remove(&path)).map_err(Error::io("remove", &path))
    }

    pub(crate) fn remove_ingest(&self, chain: Digest) -> Result<(), Error> {
        let path = self.ingest(chain);
        step!("pull_image::ingest_remove", self.disk.remove(&path)).map_err(Error::io("remove", &path))
    }

    /// For the trace: the caller is told that it is done.
    pub(crate) fn answered(&self) {
        self.disk.note(Event::Answered);
    }
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

fn boot_id() -> io::Result<String> {
    fs::read_to_string(BOOT_ID)
}

/// Makes a directory that only we can enter: layers hold set-uid programs that no user of the host may reach.
fn make_private(path: &Path) -> Result<(), Error> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o700))).map_err(Error::io("make", path))
}

/// The names in one of our directories. Ours are all plain text; others are left alone.
fn list(directory: &Path) -> Result<Vec<String>, Error> {
    let entries = fs::read_dir(directory).map_err(Error::io("list", directory))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("list", directory))?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}

fn read_bounded(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most { Err(io::Error::other("file too large")) } else { Ok(bytes) }
}

/// Why there is no record.
enum Unreadable {
    /// A newer build can tell, or what one wrote is in the way.
    Newer(String),
    Damaged(String),
}

fn damaged(why: impl Into<String>) -> Unreadable {
    Unreadable::Damaged(why.into())
}

#[derive(Deserialize)]
struct Number {
    #[serde(default)]
    version: u32,
}

fn read_record<T: DeserializeOwned>(path: &Path) -> Result<T, Unreadable> {
    let bytes = read_bounded(path, RECORD_MAX).map_err(|error| damaged(error.to_string()))?;
    let Number { version } = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if version > FORMAT {
        let why = format!("a newer berthd wrote it, in format {version}; this one knows formats up to {FORMAT}");
        return Err(Unreadable::Newer(why));
    }
    serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))
}

/// Of a container that does not say what it stands on.
fn nothing() -> Pin {
    Pin { image: Digest::of(b""), layers: Vec::new() }
}

/// Layers, each with whether it is young enough to wait for its image.
type Aged = Vec<(LayerRecord, bool)>;

/// Which layers are kept and which dropped.
fn sort_out(layers: Aged, needed: impl Fn(&LayerRecord) -> bool, same_boot: bool) -> (Aged, Aged) {
    let (mut kept, mut dropped): (Aged, Aged) =
        layers.into_iter().partition(|(record, fresh)| needed(record) || (same_boot && *fresh));
    // A removal that was killed may have taken a layer's parent first. Then nothing can stand on the layer.
    loop {
        let here: HashSet<Digest> = kept.iter().map(|(record, _)| record.chain).collect();
        let whole = |record: &LayerRecord| record.parent.is_none_or(|parent| here.contains(&parent));
        let orphans: Aged = kept.extract_if(.., |(record, _)| !needed(record) && !whole(record)).collect();
        if orphans.is_empty() {
            return (kept, dropped);
        }
        dropped.extend(orphans);
    }
}

/// Young enough to be kept. A clock that went back makes things young, never old.
fn is_fresh(path: &Path) -> bool {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|then| SystemTime::now().duration_since(then).unwrap_or_default() < KEPT)
}
