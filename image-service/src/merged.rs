//! Layers seen through one another, as overlayfs would show them, without mounting anything.
//!
//! All layers lie below one directory under small numbers, and no path here has a symlink in it, so a look-up is one
//! openat2(2) per layer and holds no descriptor in between. Changes nothing.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Stat};

use crate::files::{self, Node};

/// Most links followed on one way; as in Linux.
pub(crate) const LINKS_MAX: usize = 40;

/// A directory of the merged view.
#[derive(Clone, Debug)]
pub(crate) struct MergedDir {
    /// From the root, without a symlink on the way.
    pub(crate) path: Vec<u8>,
    /// The layers that have a part in it, top first.
    pub(crate) layers: Vec<u32>,
}

/// What a name in a merged directory is.
pub(crate) enum Found {
    Nothing,
    /// The directory, and the topmost of its parts, whose metadata it shows.
    Directory(MergedDir, OwnedFd),
    /// Opened with `O_PATH`.
    Other(OwnedFd, Stat),
}

impl MergedDir {
    /// The root of these layers, top first.
    pub(crate) fn root(layers: Vec<u32>) -> Self {
        Self { path: Vec::new(), layers }
    }

    /// Looks a name up; `layers` is the directory in which all layers lie.
    pub(crate) fn lookup(&self, layers: &OwnedFd, name: &[u8]) -> io::Result<Found> {
        let path = join(&self.path, name);
        let mut parts = Vec::new();
        let mut top = None;
        for number in &self.layers {
            match files::look(layers, &in_layer(*number, &path))? {
                Node::Nothing => {}
                Node::Directory(fd) => {
                    let opaque = files::is_opaque(&fd)?;
                    parts.push(*number);
                    top.get_or_insert(fd);
                    if opaque {
                        break;
                    }
                }
                // A file hides what is below; below a directory it is itself hidden.
                Node::Other(fd, stat) => {
                    if top.is_none() && !files::is_whiteout(&stat) {
                        return Ok(Found::Other(fd, stat));
                    }
                    break;
                }
            }
        }
        Ok(match top {
            Some(fd) => Found::Directory(Self { path, layers: parts }, fd),
            None => Found::Nothing,
        })
    }

    /// The names in it, each once, without those that are whited out.
    pub(crate) fn names(&self, layers: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
        let mut names = std::collections::BTreeSet::new();
        for number in &self.layers {
            if let Node::Directory(fd) = files::look(layers, &in_layer(*number, &self.path))? {
                names.extend(files::names(&fd)?);
            }
        }
        Ok(names.into_iter().collect())
    }

    /// Resolves a path from here, which must be the root, following symlinks inside it.
    pub(crate) fn resolve(&self, layers: &OwnedFd, path: &[u8]) -> io::Result<Found> {
        let mut todo: VecDeque<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
        let mut trail: Vec<Self> = Vec::new();
        let mut at = self.clone();
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == b".." {
                at = trail.pop().unwrap_or_else(|| self.clone());
                continue;
            }
            match at.lookup(layers, &name)? {
                Found::Directory(below, fd) => {
                    if todo.is_empty() {
                        return Ok(Found::Directory(below, fd));
                    }
                    trail.push(std::mem::replace(&mut at, below));
                }
                Found::Other(fd, stat) if files::kind(&stat) == FileType::Symlink => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(rustix::io::Errno::LOOP.into());
                    }
                    let target = rustix::fs::readlinkat(&fd, c"", Vec::new())?.into_bytes();
                    if target.starts_with(b"/") {
                        at = self.clone();
                        trail.clear();
                    }
                    for component in components(&target).collect::<Vec<_>>().into_iter().rev() {
                        todo.push_front(component.to_vec());
                    }
                }
                Found::Other(..) if !todo.is_empty() => return Ok(Found::Nothing),
                end => return Ok(end),
            }
        }
        match files::look(layers, &in_layer(at.layers.first().copied().unwrap_or_default(), &at.path))? {
            Node::Directory(fd) => Ok(Found::Directory(at, fd)),
            _ => Ok(Found::Nothing),
        }
    }
}

/// The path of something in a layer, from the directory of all layers.
pub(crate) fn in_layer(number: u32, path: &[u8]) -> Vec<u8> {
    join(number.to_string().as_bytes(), path)
}

pub(crate) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    match (dir.is_empty(), name.is_empty()) {
        (true, _) => name.to_vec(),
        (_, true) => dir.to_vec(),
        _ => [dir, name].join(&b'/'),
    }
}

/// The components that mean something: `..` stays.
pub(crate) fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."))
}

/// The components of an archive's path made plain, `..` taken off the text as Go's `path.Clean` does and never leading
/// above the root; and whether it tried to.
pub(crate) fn clean(path: &[u8]) -> (Vec<&[u8]>, bool) {
    let mut clean = Vec::new();
    let mut escapes = false;
    for part in components(path) {
        match part {
            b".." => escapes |= clean.pop().is_none(),
            _ => clean.push(part),
        }
    }
    (clean, escapes)
}
