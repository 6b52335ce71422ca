//! A file of an image, read across its layers without a mount: `/etc/passwd` and its like.

use std::collections::HashMap;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FileType, Mode, OFlags};

use crate::digest::Digest;
use crate::error::Error;
use crate::files;
use crate::merged::{Found, MergedDir};
use crate::records::EMPTY_LAYER;

/// Bytes remembered in all. Beyond it everything is forgotten: it is cheap to read again.
const REMEMBERED_MAX: usize = 512 << 10;

/// Files read before. An image never changes, so neither do these.
#[derive(Default)]
pub(crate) struct Remembered {
    shelf: Mutex<Shelf>,
}

#[derive(Default)]
struct Shelf {
    bytes: usize,
    files: HashMap<(Digest, String), Contents>,
}

/// A file's bytes, or that there is none.
type Contents = Option<Arc<[u8]>>;

impl Remembered {
    pub(crate) fn get(&self, image: Digest, path: &str) -> Option<Contents> {
        let shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        shelf.files.get(&(image, path.to_owned())).cloned()
    }

    pub(crate) fn put(&self, image: Digest, path: &str, contents: &Contents) {
        let cost = path.len() + 128 + contents.as_ref().map_or(0, |bytes| bytes.len());
        if cost > REMEMBERED_MAX / 4 {
            return;
        }
        let mut shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        if shelf.bytes + cost > REMEMBERED_MAX {
            *shelf = Shelf::default();
        }
        if shelf.files.insert((image, path.to_owned()), contents.clone()).is_none() {
            shelf.bytes += cost;
        }
    }
}

/// Whether there is a directory at the path; `None` if there is nothing.
pub(crate) fn is_directory(
    layers: &OwnedFd,
    numbers: Vec<u32>,
    path: &str,
    image: Digest,
) -> Result<Option<bool>, Error> {
    let numbers = if numbers.is_empty() { vec![EMPTY_LAYER] } else { numbers };
    let found = MergedDir::root(numbers).resolve(layers, path.as_bytes());
    match found {
        Ok(Found::Nothing) => Ok(None),
        Ok(Found::Directory(..)) => Ok(Some(true)),
        Ok(Found::Other(..)) => Ok(Some(false)),
        Err(error) => Err(Error::File { image: image.to_string(), path: path.to_owned(), why: error.to_string() }),
    }
}

/// Reads a regular file of at most `max` bytes; `None` if there is none at that path.
pub(crate) fn read(
    layers: &OwnedFd,
    numbers: Vec<u32>,
    path: &str,
    max: usize,
    image: Digest,
) -> Result<Contents, Error> {
    let refuse = |why: String| Error::File { image: image.to_string(), path: path.to_owned(), why };
    let found = MergedDir::root(numbers).resolve(layers, path.as_bytes()).map_err(|error| refuse(error.to_string()))?;
    let node = match found {
        Found::Nothing => return Ok(None),
        Found::Directory(..) => return Err(refuse("is a directory".to_owned())),
        Found::Other(node, stat) if files::kind(&stat) == FileType::RegularFile => node,
        Found::Other(..) => return Err(refuse("is not a regular file".to_owned())),
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(files::proc_path(&node), flags, Mode::empty());
    let file = std::fs::File::from(file.map_err(|error| refuse(error.to_string()))?);
    let mut bytes = Vec::new();
    file.take(max as u64 + 1).read_to_end(&mut bytes).map_err(|error| refuse(error.to_string()))?;
    if bytes.len() > max {
        return Err(refuse(format!("exceeds {max} bytes")));
    }
    Ok(Some(bytes.into()))
}
