//! Ties up a layer's loose ends once the layers below it are there: directories that no entry described look like the
//! ones below, whiteouts that hide nothing go, and directories get their times.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, OFlags, Timespec};

use super::apply::{Loose, Usage};
use crate::files::{self, Node};
use crate::merged::{Found, MergedDir, components, in_layer, join};

/// Whether a layer could be settled.
pub(crate) enum Settled {
    Done(Usage),
    /// An undescribed directory is something else below: the layer must be unpacked with the layers below in view.
    NeedsBelow,
}

/// Settles layer `number` on the layers `below`, top first.
pub(crate) fn settle(mut loose: Loose, layers: &OwnedFd, number: u32, below: Vec<u32>) -> io::Result<Settled> {
    let mut view = View { layers, number, known: HashMap::new() };
    let root = (!view.hides(b"")?).then(|| MergedDir::root(below));
    view.known.insert(Vec::new(), root);
    let mut implied: Vec<Vec<u8>> = loose.implied.iter().cloned().collect();
    implied.sort(); // a directory before what is in it
    for path in implied {
        match view.adopt(&path, &loose)? {
            Adopted::Time(time) => loose.times.push((path, time)),
            Adopted::Nothing => {}
            Adopted::Refused => return Ok(Settled::NeedsBelow),
        }
    }
    for path in std::mem::take(&mut loose.whiteouts) {
        if view.drop_idle_whiteout(&path, &loose)? {
            loose.usage.inodes -= 1;
        }
    }
    for (path, time) in &loose.times {
        // By now a later entry may have put something else there.
        if let Node::Directory(fd) = files::look(layers, &in_layer(number, path))? {
            rustix::fs::futimens(&fd, &files::times(*time))?;
        }
    }
    Ok(Settled::Done(loose.usage))
}

enum Adopted {
    Time(Timespec),
    Nothing,
    Refused,
}

struct View<'a> {
    layers: &'a OwnedFd,
    number: u32,
    /// What is below each of this layer's directories asked about so far.
    known: HashMap<Vec<u8>, Option<MergedDir>>,
}

impl View<'_> {
    /// Gives an implied directory the looks of the one below.
    fn adopt(&mut self, path: &[u8], loose: &Loose) -> io::Result<Adopted> {
        let own = match files::look(self.layers, &in_layer(self.number, path))? {
            Node::Directory(fd) => fd,
            _ => return Ok(Adopted::Nothing),
        };
        let Some(found) = self.find(path, loose)? else {
            return Ok(Adopted::Refused);
        };
        let Some(below) = found else {
            return Ok(Adopted::Nothing);
        };
        let Some(top) = below.layers.first() else {
            return Ok(Adopted::Nothing);
        };
        let model = files::open(self.layers, &in_layer(*top, path), OFlags::RDONLY | OFlags::DIRECTORY)?;
        let stat = rustix::fs::fstat(&model)?;
        files::copy_metadata(&model, &own, &stat)?;
        Ok(Adopted::Time(files::mtime(&stat)))
    }

    /// Removes a whiteout that hides nothing: in a directory that only one layer has, overlayfs would list its name.
    fn drop_idle_whiteout(&mut self, path: &[u8], loose: &Loose) -> io::Result<bool> {
        let (parent, name) = split(path);
        if let Some(Some(below)) = self.find(parent, loose)?
            && !matches!(below.lookup(self.layers, name)?, Found::Nothing)
        {
            return Ok(false);
        }
        let Node::Directory(dir) = files::look(self.layers, &in_layer(self.number, parent))? else {
            return Ok(false);
        };
        match files::look(&dir, name)? {
            Node::Other(_, stat) if files::is_whiteout(&stat) => {
                rustix::fs::unlinkat(&dir, name, AtFlags::empty())?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// What lies below the directory `path` of this layer: nothing, or a directory. `None` if an implied directory lies
    /// over something that is not one.
    fn find(&mut self, path: &[u8], loose: &Loose) -> io::Result<Option<Option<MergedDir>>> {
        let mut at: Vec<u8> = Vec::new();
        for name in components(path) {
            let parent = at.clone();
            at = join(&at, name);
            if self.known.contains_key(&at) {
                continue;
            }
            let below = self.known.get(&parent).cloned().flatten();
            let below = match below {
                Some(dir) if !self.hides(&at)? => match dir.lookup(self.layers, name)? {
                    Found::Directory(dir, _) => Some(dir),
                    Found::Nothing => None,
                    Found::Other(..) if loose.implied.contains(&at) => return Ok(None),
                    Found::Other(..) => None,
                },
                _ => None,
            };
            self.known.insert(at.clone(), below);
        }
        Ok(Some(self.known.get(path).cloned().flatten()))
    }

    fn hides(&self, path: &[u8]) -> io::Result<bool> {
        match files::look(self.layers, &in_layer(self.number, path))? {
            Node::Directory(fd) => files::is_opaque(&fd),
            _ => Ok(true),
        }
    }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}
