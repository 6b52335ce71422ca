//! How much space containers' own files take. Counted in the background and remembered: a request never walks a disk.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, OFlags};

use crate::catalog::Space;
use crate::files;

/// Age at which a count is made anew.
const FRESH: Duration = Duration::from_secs(10);
/// Directories deeper than this are not counted.
const DEPTH_MAX: usize = 128;

/// The last count.
#[derive(Clone, Default)]
pub(crate) struct Containers {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    space: Space,
    counted: Option<Instant>,
    counting: bool,
}

impl Containers {
    /// The last count. Begins another in the background if it is old; the first is waited for.
    pub(crate) async fn space(&self, rootfs: PathBuf) -> Space {
        let (first, due) = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let due = !state.counting && state.counted.is_none_or(|then| then.elapsed() > FRESH);
            state.counting |= due;
            (state.counted.is_none(), due)
        };
        if due {
            let shared = Arc::clone(&self.state);
            let counting = tokio::task::spawn_blocking(move || {
                let space = count(&rootfs);
                let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
                match space {
                    Ok(space) => state.space = space,
                    Err(error) => tracing::warn!(%error, "containers' files cannot be counted"),
                }
                (state.counted, state.counting) = (Some(Instant::now()), false);
            });
            if first {
                let _ = counting.await; // a count that failed is told above
            }
        }
        self.state.lock().unwrap_or_else(PoisonError::into_inner).space
    }
}

fn count(rootfs: &std::path::Path) -> io::Result<Space> {
    let mut space = Space::default();
    let top = files::open_own(rootfs)?;
    let mut open = vec![(names(&top)?, top)];
    while let Some((todo, dir)) = open.last_mut() {
        let Some(name) = todo.pop() else {
            open.pop();
            continue;
        };
        // What a container removes meanwhile is not counted.
        let Ok(stat) = rustix::fs::statat(&*dir, name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        space.bytes += stat.st_blocks as u64 * 512;
        space.inodes += 1;
        if files::kind(&stat) == FileType::Directory
            && let Ok(below) = files::open(&*dir, name.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY)
            && open.len() < DEPTH_MAX
        {
            open.push((names(&below)?, below));
        }
    }
    Ok(space)
}

fn names(dir: &OwnedFd) -> io::Result<Vec<std::ffi::CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}
