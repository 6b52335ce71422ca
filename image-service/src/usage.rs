//! How much space containers' own files take. Counted in the background and remembered: a request never walks a disk.
//!
//! A count of everything is begun when somebody asks and the last one is old; one that took long is not soon repeated. A
//! container that was made since is counted by itself, for which a request waits no longer than it says.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{AtFlags, Dir, FileType, OFlags};
use tokio::sync::Notify;

use crate::catalog::Space;
use crate::files;

/// Age at which a count is made anew.
const FRESH: Duration = Duration::from_secs(10);
/// A count rests this many times as long as it took: counting takes at most a tenth of one processor.
const REST: u32 = 9;
/// Directories deeper than this are not counted.
const DEPTH_MAX: usize = 128;
/// Where a container's own files are, beside what the snapshotter needs. One of them is there.
const OWN: [&str; 2] = ["upper", "fs"];

/// The last count.
#[derive(Clone, Default)]
pub(crate) struct Containers {
    state: Arc<Mutex<State>>,
    /// A count of everything has ended.
    done: Arc<Notify>,
}

#[derive(Default)]
struct State {
    space: Space,
    /// By container.
    layers: HashMap<String, Layer>,
    counted: Option<Instant>,
    took: Duration,
    counting: bool,
    /// Containers that are being counted by themselves.
    alone: HashSet<String>,
}

/// What a container's own files took when they were counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Bytes on disk, a file with several names once.
    pub bytes: u64,
    /// Files, directories and whatever else has an inode.
    pub inodes: u64,
    /// When they were counted.
    pub at: SystemTime,
}

impl Layer {
    fn now(Space { bytes, inodes }: Space) -> Self {
        Self { bytes, inodes, at: SystemTime::now() }
    }
}

impl Containers {
    /// The last count of everything. Begins another in the background if it is old; the first is waited for.
    pub(crate) async fn space(&self, rootfs: PathBuf) -> Space {
        // Listened for before the look, so that an end between the two is not missed.
        let mut done = pin!(self.done.notified());
        done.as_mut().enable();
        self.refresh(&rootfs);
        if self.lock().counted.is_none() {
            done.await; // one that failed is told where it was made
        }
        self.lock().space
    }

    /// The last count of each of these containers. One that was never counted is counted now; what is not known after
    /// `patience` is left out this time.
    pub(crate) async fn layers(
        &self,
        rootfs: PathBuf,
        ids: impl IntoIterator<Item = String>,
        patience: Duration,
    ) -> HashMap<String, Layer> {
        let ids: Vec<String> = ids.into_iter().collect();
        let new: Vec<String> = {
            let mut state = self.lock();
            let unknown = ids.iter().filter(|id| !state.layers.contains_key(*id) && !state.alone.contains(*id));
            let new: Vec<String> = unknown.cloned().collect();
            state.alone.extend(new.iter().cloned());
            new
        };
        if !new.is_empty() {
            let (this, rootfs) = (self.clone(), rootfs.clone());
            let counting = tokio::task::spawn_blocking(move || this.count_alone(&rootfs, new));
            let _ = tokio::time::timeout(patience, counting).await; // what is not there yet is there next time
        }
        self.refresh(&rootfs);
        let state = self.lock();
        ids.into_iter().filter_map(|id| state.layers.get(&id).map(|layer| (id, *layer))).collect()
    }

    /// Begins a count of everything, if one is due.
    fn refresh(&self, rootfs: &Path) {
        {
            let mut state = self.lock();
            let rest = FRESH.max(state.took * REST);
            if state.counting || state.counted.is_some_and(|then| then.elapsed() <= rest) {
                return;
            }
            state.counting = true;
        }
        let (this, rootfs) = (self.clone(), rootfs.to_owned());
        tokio::task::spawn_blocking(move || {
            let begun = Instant::now();
            let counted = count_all(&rootfs);
            let mut state = this.lock();
            match counted {
                Ok((space, layers)) => (state.space, state.layers) = (space, layers),
                Err(error) => tracing::warn!(%error, "containers' files cannot be counted"),
            }
            (state.counted, state.took, state.counting) = (Some(Instant::now()), begun.elapsed(), false);
            drop(state);
            this.done.notify_waiters();
        });
    }

    fn count_alone(&self, rootfs: &Path, ids: Vec<String>) {
        for id in ids {
            let layer = count_layer(&rootfs.join(&id));
            let mut state = self.lock();
            state.alone.remove(&id);
            match layer {
                Ok(Some(layer)) => {
                    state.layers.insert(id, layer);
                }
                Ok(None) => {} // removed meanwhile
                Err(error) => tracing::warn!(container = id, %error, "a container's files cannot be counted"),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is whole before its lock is let go.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything below, and what each container has of it.
fn count_all(rootfs: &Path) -> io::Result<(Space, HashMap<String, Layer>)> {
    let (mut all, mut layers) = (Space::default(), HashMap::new());
    for entry in std::fs::read_dir(rootfs)? {
        let entry = entry?;
        let Some((space, layer)) = unless_gone(count_container(&entry.path()))? else { continue };
        // With the container's directory itself.
        (all.bytes, all.inodes) = (all.bytes + space.bytes, all.inodes + space.inodes + 1);
        if let (Ok(name), Some(layer)) = (entry.file_name().into_string(), layer) {
            layers.insert(name, layer);
        }
    }
    Ok((all, layers))
}

/// All that is in a container's directory, and what of it is the container's own.
fn count_container(container: &Path) -> io::Result<(Space, Option<Layer>)> {
    let (mut all, mut own) = (Space::default(), None);
    for entry in std::fs::read_dir(container)? {
        let entry = entry?;
        let Some(meta) = unless_gone(entry.metadata())? else { continue };
        (all.bytes, all.inodes) = (all.bytes + meta.blocks() * 512, all.inodes + 1);
        if !meta.is_dir() {
            continue;
        }
        let Some(space) = unless_gone(files::open_own(&entry.path()).and_then(count))? else { continue };
        (all.bytes, all.inodes) = (all.bytes + space.bytes, all.inodes + space.inodes);
        if OWN.iter().any(|name| entry.file_name() == *name) {
            own = Some(Layer::now(space));
        }
    }
    Ok((all, own))
}

/// The container's own files; `None` when it has been removed.
fn count_layer(container: &Path) -> io::Result<Option<Layer>> {
    for name in OWN {
        if let Some(space) = unless_gone(files::open_own(&container.join(name)).and_then(count))? {
            return Ok(Some(Layer::now(space)));
        }
    }
    Ok(None)
}

/// Something that is not there, or is no directory, is nothing to count.
fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What is below a directory, without itself. Holds one open directory a level and the inodes with several names.
fn count(top: OwnedFd) -> io::Result<Space> {
    let mut space = Space::default();
    let mut linked = HashSet::new();
    let mut open = vec![Dir::new(top)?];
    while let Some(dir) = open.last_mut() {
        let Some(entry) = dir.read() else {
            open.pop();
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let here = dir.fd()?;
        // What a container removes meanwhile is not counted.
        let Ok(stat) = rustix::fs::statat(here, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let directory = files::kind(&stat) == FileType::Directory;
        if !directory && stat.st_nlink > 1 && !linked.insert((stat.st_dev, stat.st_ino)) {
            continue;
        }
        space.bytes += stat.st_blocks as u64 * 512;
        space.inodes += 1;
        if directory
            && let Ok(below) = files::open(here, name.to_bytes(), OFlags::RDONLY | OFlags::DIRECTORY)
            && open.len() < DEPTH_MAX
        {
            open.push(Dir::new(below)?);
        }
    }
    Ok(space)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn container(rootfs: &Path, id: &str) -> PathBuf {
        let upper = rootfs.join(id).join("upper");
        fs::create_dir_all(upper.join("deep/er")).expect("make directories");
        fs::create_dir_all(rootfs.join(id).join("work/work")).expect("make directories");
        fs::write(upper.join("deep/er/file"), [7; 100_000]).expect("write");
        fs::hard_link(upper.join("deep/er/file"), upper.join("same")).expect("link");
        upper
    }

    #[tokio::test]
    async fn a_container_has_its_own_files_and_each_of_them_once() {
        let dir = tempfile::tempdir().expect("a directory");
        container(dir.path(), "one");
        let containers = Containers::default();
        let ids = || ["one".to_owned(), "absent".to_owned()];
        let patience = Duration::from_secs(60);
        let known = containers.layers(dir.path().to_owned(), ids(), patience).await;
        assert_eq!(known.len(), 1, "{known:?}");
        let layer = known["one"];
        assert_eq!(layer.inodes, 3, "two directories and a file with two names");
        assert!((100_000..200_000).contains(&layer.bytes), "{layer:?}");
        let all = containers.space(dir.path().to_owned()).await;
        assert_eq!(all.inodes, layer.inodes + 4, "with its directory, upper, and work with one more");
    }

    #[tokio::test]
    async fn one_that_was_made_after_a_count_is_counted_when_asked_for() {
        let dir = tempfile::tempdir().expect("a directory");
        container(dir.path(), "one");
        let containers = Containers::default();
        containers.space(dir.path().to_owned()).await;
        container(dir.path(), "two");
        let patience = Duration::from_secs(60);
        let known = containers.layers(dir.path().to_owned(), ["two".to_owned()], patience).await;
        assert_eq!(known["two"].inodes, 3);
    }
}
