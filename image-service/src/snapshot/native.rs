//! The root as a plain copy of all layers, for file systems that overlayfs cannot use. Blocks are shared where the file
//! system can (reflinks).

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, Timespec};

use super::make;
use crate::catalog::Pin;
use crate::error::Error;
use crate::files;
use crate::merged::{Found, MergedDir, in_layer, join};
use crate::records::{EMPTY_LAYER, Records};
use crate::{MountSpec, Rootfs};

/// Copies the image's tree to `fs`, unless it is there, and describes a bind mount of it.
pub(super) fn prepare(records: &Records, directory: &Path, pin: &Pin) -> Result<Rootfs, Error> {
    let target = directory.join("fs");
    if !target.is_dir() {
        let copied = step!("create_container::snapshot_copy", copy(records, directory, pin)?);
        copied.map_err(Error::io("copy the image to", &target))?;
    }
    let source = target.to_string_lossy().into_owned();
    let options = vec!["rbind".to_owned(), "rw".to_owned()];
    Ok(Rootfs { mounts: vec![MountSpec { kind: "bind".to_owned(), source, options }] })
}

/// Under another name first, so that a copy is whole or not there.
fn copy(records: &Records, directory: &Path, pin: &Pin) -> Result<io::Result<()>, Error> {
    let layers = records.open_layers()?;
    let copy = || {
        let own = files::open_own(directory)?;
        files::remove(&own, b"fs.tmp")?;
        make(&directory.join("fs.tmp"))?;
        let numbers = if pin.layers.is_empty() { vec![EMPTY_LAYER] } else { pin.layers.clone() };
        let mut tree =
            Tree { layers: &layers, target: files::open_own(&directory.join("fs.tmp"))?, linked: HashMap::new() };
        tree.copy(MergedDir::root(numbers))?;
        fs::rename(directory.join("fs.tmp"), directory.join("fs"))
    };
    Ok(copy())
}

struct Tree<'a> {
    layers: &'a OwnedFd,
    target: OwnedFd,
    /// Where an inode with more than one name was put first.
    linked: HashMap<(u64, u64), Vec<u8>>,
}

impl Tree<'_> {
    fn copy(&mut self, root: MergedDir) -> io::Result<()> {
        let mut todo = vec![root];
        // Last made, first timed: a directory's time is set when nothing more goes into it.
        let mut times: Vec<(Vec<u8>, Timespec)> = Vec::new();
        while let Some(dir) = todo.pop() {
            times.push((dir.path.clone(), self.describe(&dir)?));
            for name in dir.names(self.layers)? {
                match dir.lookup(self.layers, &name)? {
                    Found::Nothing => {} // a whiteout
                    Found::Directory(below, _) => {
                        let parent = files::open(&self.target, &dir.path, OFlags::RDONLY | OFlags::DIRECTORY)?;
                        rustix::fs::mkdirat(&parent, name.as_slice(), Mode::RWXU)?;
                        todo.push(below);
                    }
                    Found::Other(fd, stat) => self.node(&dir, &name, &fd, &stat)?,
                }
            }
        }
        for (path, time) in times.into_iter().rev() {
            let dir = files::open(&self.target, &path, OFlags::RDONLY | OFlags::DIRECTORY)?;
            rustix::fs::futimens(&dir, &files::times(time))?;
        }
        Ok(())
    }

    fn describe(&self, dir: &MergedDir) -> io::Result<Timespec> {
        let top = dir.layers.first().copied().unwrap_or(EMPTY_LAYER);
        let model = files::open(self.layers, &in_layer(top, &dir.path), OFlags::RDONLY | OFlags::DIRECTORY)?;
        let target = files::open(&self.target, &dir.path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let stat = rustix::fs::fstat(&model)?;
        files::copy_metadata(&model, &target, &stat)?;
        Ok(files::mtime(&stat))
    }

    fn node(&mut self, dir: &MergedDir, name: &[u8], fd: &OwnedFd, stat: &rustix::fs::Stat) -> io::Result<()> {
        let parent = files::open(&self.target, &dir.path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        if stat.st_nlink > 1 {
            if let Some(first) = self.linked.get(&(stat.st_dev, stat.st_ino)) {
                return Ok(rustix::fs::linkat(&self.target, first.as_slice(), &parent, name, AtFlags::empty())?);
            }
            self.linked.insert((stat.st_dev, stat.st_ino), join(&dir.path, name));
        }
        files::copy_node(fd, stat, &parent, name)
    }
}
