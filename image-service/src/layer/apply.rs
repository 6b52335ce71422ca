//! Puts an archive's entries into a layer's directory, in overlay form.
//!
//! A layer is unpacked while the layers below it may still be on their way, so that all can go at once. What cannot be
//! known without them is written down ([`Loose`]): directories that no entry described, whiteouts that may hide nothing.
//! `settle.rs` ties that up when they are there. If an entry turns out to depend on a layer below in another way (a
//! hardlink to one of its files, a path through one of its symlinks), the layer is unpacked again, with them in view.
//!
//! Every path is walked component by component, each opened beneath the descriptor of the one before without following
//! links; symlinks are resolved here, inside the layer's root.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, XattrFlags};
use rustix::io::Errno;

use super::tar::{Archive, Entry, Extent, Kind, TarError, escape};
use crate::error::LayerFailure;
use crate::files::{self, Node};
use crate::merged::{Found, LINKS_MAX, MergedDir, clean, components, in_layer, join};

/// Directories kept open between entries; neighbours in an archive mostly share theirs.
const OPEN_MAX: usize = 64;
/// Bytes moved at once.
const BUFFER: usize = 128 << 10;
const BLOCK: u64 = 4096; // bytes a file's size is rounded up to when space is summed up

/// What is known of the layers below.
pub(crate) enum Below {
    /// There are none, or they are all here: their numbers, top first.
    Known(Vec<u32>),
    /// Still on their way.
    Unknown,
}

/// What went into a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// File contents, rounded up to whole blocks.
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

/// What must be looked at again when the layers below are there.
#[derive(Default)]
pub(crate) struct Loose {
    /// Directories that no entry described; the root's path is empty.
    pub(super) implied: HashSet<Vec<u8>>,
    /// Whiteouts, by the path of what they hide.
    pub(super) whiteouts: Vec<Vec<u8>>,
    /// Modification times of directories, set last: each entry inside changes them.
    pub(super) times: Vec<(Vec<u8>, Timespec)>,
    pub(crate) usage: Usage,
}

/// Why an archive could not be applied.
pub(crate) enum Refusal {
    /// It needs the layers below to be known.
    NeedsBelow,
    Failed(LayerFailure),
}

impl From<LayerFailure> for Refusal {
    fn from(failure: LayerFailure) -> Self {
        Self::Failed(failure)
    }
}

type Result<T> = std::result::Result<T, Refusal>;

/// A directory of the layer being written.
struct Level {
    fd: OwnedFd,
    /// From the layer's root, without symlinks.
    path: Vec<u8>,
    /// The same directory in the layers below.
    below: MergedDir,
}

struct Apply<'a> {
    /// Where all layers lie.
    layers: &'a OwnedFd,
    /// The one being written.
    number: u32,
    root: Rc<Level>,
    /// The layers below are in view.
    known: bool,
    /// By their path, which is the shortest way there: no symlink was followed.
    open: HashMap<Vec<u8>, Rc<Level>>,
    loose: Loose,
    buffer: Vec<u8>,
}

/// Unpacks `archive` into layer `number`, whose directory exists and is empty.
pub(crate) fn apply<R: Read>(archive: &mut Archive<R>, layers: &OwnedFd, number: u32, below: Below) -> Result<Loose> {
    let (known, below) = match below {
        Below::Known(numbers) => (true, numbers),
        Below::Unknown => (false, Vec::new()),
    };
    let open_root = || files::open(layers, &in_layer(number, b""), OFlags::RDONLY | OFlags::DIRECTORY);
    let fd = open_root().map_err(failed(b"/", "open"))?;
    let root = Rc::new(Level { fd, path: Vec::new(), below: MergedDir::root(below) });
    let loose = Loose { implied: HashSet::from([Vec::new()]), ..Loose::default() };
    let mut apply = Apply { layers, number, root, known, open: HashMap::new(), loose, buffer: vec![0; BUFFER] };
    while let Some(entry) = archive.next().map_err(broken)? {
        apply.entry(archive, &entry)?;
    }
    Ok(apply.loose)
}

/// A failed read of the stream is told as such: its owner knows why.
fn broken(error: TarError) -> Refusal {
    Refusal::Failed(match error {
        TarError::Refused(why) => LayerFailure::Archive(why),
        TarError::Read(error) => LayerFailure::Compression(error.to_string()),
    })
}

fn refuse<T>(path: &[u8], why: &str) -> Result<T> {
    Err(LayerFailure::Archive(format!("{:.300}: {why}", escape(path))).into())
}

fn failed<E: Into<io::Error>>(path: &[u8], step: &str) -> impl FnOnce(E) -> Refusal {
    let entry = format!("{step} {:.300}", escape(path));
    move |error| LayerFailure::Io { entry, source: Arc::new(error.into()) }.into()
}

impl Apply<'_> {
    fn entry<R: Read>(&mut self, archive: &mut Archive<R>, entry: &Entry) -> Result<()> {
        let path = entry.path.as_slice();
        let (parts, escapes) = clean(path);
        if escapes {
            tracing::warn!(entry = %escape(path), "entry points above the root: kept inside");
        }
        let Some((name, parents)) = parts.split_last() else {
            return self.root_entry(entry);
        };
        // What aufs kept for itself, in images of ten years ago.
        if parts[0].starts_with(b".wh..wh.") && parts[0] != b".wh..wh..opq" {
            return Ok(());
        }
        let parent = parents.join(&b'/');
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            match &entry.kind {
                Kind::File | Kind::Hardlink(_) => return self.whiteout(path, &parent, hidden),
                Kind::Directory if *name != b".wh..wh..opq" => {} // a directory of that name
                _ => return refuse(path, "whiteout that is not a file"),
            }
        }
        let level = self.enter(path, &parent)?;
        match &entry.kind {
            Kind::File => self.file(archive, entry, &level, name),
            Kind::Directory => self.directory(entry, &level, name),
            Kind::Symlink(target) => self.symlink(entry, &level, name, target),
            Kind::Hardlink(target) => self.hardlink(entry, &level, name, target),
            Kind::Fifo => self.node(entry, &level, name, FileType::Fifo, 0),
            Kind::Char(0, 0) => refuse(path, "device 0:0 is how overlayfs marks a whiteout"),
            Kind::Char(major, minor) => {
                self.node(entry, &level, name, FileType::CharacterDevice, rustix::fs::makedev(*major, *minor))
            }
            Kind::Block(major, minor) => {
                self.node(entry, &level, name, FileType::BlockDevice, rustix::fs::makedev(*major, *minor))
            }
        }
    }

    fn root_entry(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != Kind::Directory || components(&entry.path).next() == Some(b"..") {
            return refuse(&entry.path, "only a directory can be the root");
        }
        let root = Rc::clone(&self.root);
        self.describe_directory(entry, &root.fd, Vec::new())
    }

    fn file<R: Read>(&mut self, archive: &mut Archive<R>, entry: &Entry, level: &Level, name: &[u8]) -> Result<()> {
        let path = entry.path.as_slice();
        let fd = self.create(path, level, name, |level| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            files::create(&level.fd, name, flags, Mode::RUSR | Mode::WUSR)
        })?;
        match &entry.extents {
            None => self.copy(archive, path, &fd)?,
            Some(extents) => self.copy_sparse(archive, entry, extents, &fd)?,
        }
        self.loose.usage.bytes += match &entry.extents {
            None => entry.size.next_multiple_of(BLOCK),
            Some(extents) => extents.iter().map(|extent| extent.length.next_multiple_of(BLOCK)).sum(),
        };
        self.describe(entry, &fd)?;
        rustix::fs::futimens(&fd, &files::times(mtime(entry))).map_err(failed(path, "set time of"))
    }

    fn copy<R: Read>(&mut self, archive: &mut Archive<R>, path: &[u8], fd: &OwnedFd) -> Result<()> {
        loop {
            let got = archive.read(&mut self.buffer).map_err(|error| broken(error.into()))?;
            if got == 0 {
                return Ok(());
            }
            write_all(fd, &self.buffer[..got]).map_err(failed(path, "write"))?;
        }
    }

    fn copy_sparse<R: Read>(
        &mut self,
        archive: &mut Archive<R>,
        entry: &Entry,
        extents: &[Extent],
        fd: &OwnedFd,
    ) -> Result<()> {
        let path = entry.path.as_slice();
        rustix::fs::ftruncate(fd, entry.size).map_err(failed(path, "set size of"))?;
        for extent in extents {
            rustix::fs::seek(fd, rustix::fs::SeekFrom::Start(extent.offset)).map_err(failed(path, "seek in"))?;
            let mut left = extent.length;
            while left > 0 {
                let want = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let got = archive.read(&mut self.buffer[..want]).map_err(|error| broken(error.into()))?;
                if got == 0 {
                    return refuse(path, "sparse file ends early");
                }
                write_all(fd, &self.buffer[..got]).map_err(failed(path, "write"))?;
                left -= got as u64;
            }
        }
        Ok(())
    }

    fn directory(&mut self, entry: &Entry, level: &Level, name: &[u8]) -> Result<()> {
        let path = entry.path.as_slice();
        let fd = match files::look(&level.fd, name).map_err(failed(path, "look at"))? {
            Node::Directory(fd) => fd,
            Node::Nothing => self.make_directory(path, level, name)?,
            Node::Other(..) => self.replace_by_directory(path, level, name)?,
        };
        self.describe_directory(entry, &fd, join(&level.path, name))
    }

    fn make_directory(&mut self, path: &[u8], level: &Level, name: &[u8]) -> Result<OwnedFd> {
        rustix::fs::mkdirat(&level.fd, name, Mode::RWXU).map_err(failed(path, "make directory"))?;
        self.loose.usage.inodes += 1;
        self.loose.usage.bytes += BLOCK;
        files::open(&level.fd, name, OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed(path, "open"))
    }

    /// What was there, a whiteout or a file, hid what the layers below have at this name; the directory goes on hiding it.
    fn replace_by_directory(&mut self, path: &[u8], level: &Level, name: &[u8]) -> Result<OwnedFd> {
        rustix::fs::unlinkat(&level.fd, name, AtFlags::empty()).map_err(failed(path, "replace"))?;
        self.open.clear();
        let fd = self.make_directory(path, level, name)?;
        files::set_opaque(&fd).map_err(failed(path, "make opaque"))?;
        Ok(fd)
    }

    fn describe_directory(&mut self, entry: &Entry, fd: &OwnedFd, path: Vec<u8>) -> Result<()> {
        self.describe(entry, fd)?;
        self.loose.implied.remove(&path);
        self.loose.times.push((path, mtime(entry)));
        Ok(())
    }

    fn symlink(&mut self, entry: &Entry, level: &Level, name: &[u8], target: &[u8]) -> Result<()> {
        let path = entry.path.as_slice();
        if target.is_empty() {
            return refuse(path, "symlink to nothing");
        }
        self.create(path, level, name, |level| Ok(rustix::fs::symlinkat(target, &level.fd, name)?))?;
        self.describe_by_name(entry, level, name)
    }

    fn node(&mut self, entry: &Entry, level: &Level, name: &[u8], kind: FileType, device: u64) -> Result<()> {
        let path = entry.path.as_slice();
        let mode = files::permissions(entry.mode);
        self.create(path, level, name, |level| Ok(rustix::fs::mknodat(&level.fd, name, kind, mode, device)?))?;
        self.describe_by_name(entry, level, name)?;
        // The mode again: mknod(2) takes the umask off it and chown(2) the set-id bits.
        let node = files::open(&level.fd, name, OFlags::PATH).map_err(failed(path, "open"))?;
        rustix::fs::chmod(files::proc_path(&node), mode).map_err(failed(path, "set mode of"))?;
        let time = files::times(mtime(entry));
        rustix::fs::utimensat(&level.fd, name, &time, AtFlags::SYMLINK_NOFOLLOW).map_err(failed(path, "set time of"))
    }

    fn hardlink(&mut self, entry: &Entry, level: &Level, name: &[u8], target: &[u8]) -> Result<()> {
        let path = entry.path.as_slice();
        let (parts, _) = clean(target);
        let Some((last, parents)) = parts.split_last() else {
            return refuse(path, "hardlink to the root");
        };
        let parents = parents.join(&b'/');
        let from = self.linked(path, target, &parents, last)?;
        if from.path == level.path && *last == name {
            return refuse(path, "hardlink to itself");
        }
        self.create(path, level, name, |level| {
            Ok(rustix::fs::linkat(&from.fd, *last, &level.fd, name, AtFlags::empty())?)
        })?;
        self.loose.usage.inodes -= 1; // a second name, not a second inode
        Ok(())
    }

    /// The directory of this layer that holds a link's target, which is brought up from below if it is only there.
    fn linked(&mut self, path: &[u8], target: &[u8], parents: &[u8], last: &[u8]) -> Result<Rc<Level>> {
        if !self.known && !self.is_here(parents).map_err(failed(target, "look for"))? {
            return Err(Refusal::NeedsBelow);
        }
        let from = self.enter(target, parents)?;
        match files::look(&from.fd, last).map_err(failed(target, "look at"))? {
            Node::Directory(_) => return refuse(path, "hardlink to a directory"),
            Node::Other(_, stat) if !files::is_whiteout(&stat) => return Ok(from),
            Node::Other(..) => return refuse(path, "hardlink to something that was removed"),
            Node::Nothing if !self.known => return Err(Refusal::NeedsBelow),
            Node::Nothing => {}
        }
        match from.below.lookup(self.layers, last).map_err(failed(target, "look below for"))? {
            Found::Other(fd, stat) => {
                files::copy_node(&fd, &stat, &from.fd, last).map_err(failed(target, "bring up"))?;
                self.loose.usage.inodes += 1;
                self.loose.usage.bytes += (stat.st_size as u64).next_multiple_of(BLOCK);
                Ok(from)
            }
            Found::Directory(..) => refuse(path, "hardlink to a directory"),
            Found::Nothing => refuse(path, "hardlink to something that is not there"),
        }
    }

    /// Whether a directory can be reached in this layer alone, making none.
    fn is_here(&self, path: &[u8]) -> io::Result<bool> {
        if self.open.contains_key(path) {
            return Ok(true);
        }
        Ok(matches!(MergedDir::root(vec![self.number]).resolve(self.layers, path)?, Found::Directory(..)))
    }

    /// Hides something of the layers below. What this layer itself put there stays: a whiteout is for what is below.
    fn whiteout(&mut self, path: &[u8], parent: &[u8], hidden: &[u8]) -> Result<()> {
        if hidden == b".wh..opq" {
            let level = self.enter(path, parent)?;
            self.open.clear(); // what is open at or below it thinks that it sees through
            if level.path.is_empty() {
                let fd = level.fd.try_clone().map_err(failed(path, "open"))?;
                self.root = Rc::new(Level { fd, path: Vec::new(), below: MergedDir::root(Vec::new()) });
            }
            return files::set_opaque(&level.fd).map_err(failed(path, "make opaque"));
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return refuse(path, "whiteout of no name");
        }
        let level = self.enter(path, parent)?;
        match files::look(&level.fd, hidden).map_err(failed(path, "look at"))? {
            Node::Directory(fd) => {
                self.open.clear();
                files::set_opaque(&fd).map_err(failed(path, "make opaque"))
            }
            Node::Other(..) => Ok(()),
            Node::Nothing => {
                let mode = Mode::empty();
                rustix::fs::mknodat(&level.fd, hidden, FileType::CharacterDevice, mode, 0)
                    .map_err(failed(path, "white out"))?;
                self.loose.usage.inodes += 1;
                self.loose.whiteouts.push(join(&level.path, hidden));
                Ok(())
            }
        }
    }

    /// Makes a name with `make`; what this layer had there before goes first.
    fn create<T>(
        &mut self,
        path: &[u8],
        level: &Level,
        name: &[u8],
        make: impl Fn(&Level) -> io::Result<T>,
    ) -> Result<T> {
        self.loose.usage.inodes += 1;
        match make(level) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => return result.map_err(failed(path, "create")),
        }
        files::remove(&level.fd, name).map_err(failed(path, "replace"))?;
        self.open.clear();
        make(level).map_err(failed(path, "create"))
    }

    /// Owner, mode and extended attributes, in the order in which none undoes another.
    fn describe(&self, entry: &Entry, fd: &OwnedFd) -> Result<()> {
        let path = entry.path.as_slice();
        rustix::fs::fchown(fd, Some(files::uid(entry.uid)), Some(files::gid(entry.gid)))
            .map_err(failed(path, "set owner of"))?;
        rustix::fs::fchmod(fd, files::permissions(entry.mode)).map_err(failed(path, "set mode of"))?;
        for (name, value) in wanted_xattrs(entry) {
            let outcome = rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty());
            self.xattr_outcome(path, name, outcome)?;
        }
        Ok(())
    }

    /// The same for what cannot be opened: symlinks, devices, pipes. The mode is the maker's.
    fn describe_by_name(&self, entry: &Entry, level: &Level, name: &[u8]) -> Result<()> {
        let path = entry.path.as_slice();
        let owner = (Some(files::uid(entry.uid)), Some(files::gid(entry.gid)));
        rustix::fs::chownat(&level.fd, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed(path, "set owner of"))?;
        for (key, value) in wanted_xattrs(entry) {
            let node = join(files::proc_path(&level.fd).as_bytes(), name);
            let outcome = rustix::fs::lsetxattr(node.as_slice(), key, value, XattrFlags::empty());
            self.xattr_outcome(path, key, outcome)?;
        }
        let time = files::times(mtime(entry));
        rustix::fs::utimensat(&level.fd, name, &time, AtFlags::SYMLINK_NOFOLLOW).map_err(failed(path, "set time of"))
    }

    /// A file system without some kind of attribute is no reason to refuse an image, unless a program's rights hang on it.
    fn xattr_outcome(&self, path: &[u8], name: &[u8], outcome: rustix::io::Result<()>) -> Result<()> {
        match outcome {
            Err(Errno::OPNOTSUPP | Errno::PERM) if name != b"security.capability" => {
                tracing::debug!(entry = %escape(path), xattr = %escape(name), "attribute not supported here, left out");
                Ok(())
            }
            outcome => outcome.map_err(failed(path, "set extended attribute of")),
        }
    }

    /// The directory at `path`, a cleaned path, made where it is missing. `entry` is for messages.
    fn enter(&mut self, entry: &[u8], path: &[u8]) -> Result<Rc<Level>> {
        if let Some(level) = self.open.get(path) {
            return Ok(Rc::clone(level));
        }
        let (mut level, rest) = self.nearest(path);
        let mut todo: VecDeque<Vec<u8>> = components(rest).map(<[u8]>::to_vec).collect();
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == b".." {
                level = self.up(entry, &level)?;
                continue;
            }
            match self.step(entry, &level, &name)? {
                Step::Into(below) => level = below,
                Step::Link(target) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return refuse(entry, "too many symlinks");
                    }
                    if target.starts_with(b"/") {
                        level = Rc::clone(&self.root);
                    }
                    for component in components(&target).collect::<Vec<_>>().into_iter().rev() {
                        todo.push_front(component.to_vec());
                    }
                }
            }
        }
        if links == 0 {
            if self.open.len() >= OPEN_MAX {
                self.open.clear();
            }
            self.open.insert(path.to_vec(), Rc::clone(&level));
        }
        Ok(level)
    }

    /// The longest beginning of `path` that is open, and the rest.
    fn nearest<'p>(&self, path: &'p [u8]) -> (Rc<Level>, &'p [u8]) {
        let mut head = path;
        while let Some(slash) = head.iter().rposition(|byte| *byte == b'/') {
            head = &head[..slash];
            if let Some(level) = self.open.get(head) {
                return (Rc::clone(level), &path[slash + 1..]);
            }
        }
        (Rc::clone(&self.root), path)
    }

    /// The directory above, walked to from the root: it has no symlinks in its path.
    fn up(&mut self, entry: &[u8], level: &Level) -> Result<Rc<Level>> {
        let mut at = Rc::clone(&self.root);
        let parts: Vec<&[u8]> = components(&level.path).collect();
        for name in &parts[..parts.len().saturating_sub(1)] {
            match self.step(entry, &at, name)? {
                Step::Into(below) => at = below,
                Step::Link(_) => return refuse(entry, "directory changed while it was walked"),
            }
        }
        Ok(at)
    }

    fn step(&mut self, entry: &[u8], level: &Level, name: &[u8]) -> Result<Step> {
        let path = join(&level.path, name);
        let node = files::look(&level.fd, name).map_err(failed(entry, "walk to"))?;
        let nothing = || MergedDir { path: path.clone(), layers: Vec::new() };
        match node {
            Node::Directory(fd) => {
                let hides = level.below.layers.is_empty() || files::is_opaque(&fd).map_err(failed(entry, "walk to"))?;
                let below = match hides {
                    true => Found::Nothing,
                    false => level.below.lookup(self.layers, name).map_err(failed(entry, "walk to"))?,
                };
                let below = match below {
                    Found::Directory(below, _) => below,
                    _ => nothing(),
                };
                Ok(Step::Into(Rc::new(Level { fd, path, below })))
            }
            Node::Other(fd, stat) if files::kind(&stat) == FileType::Symlink => read_link(entry, &fd),
            Node::Other(_, stat) if files::is_whiteout(&stat) => {
                let fd = self.replace_by_directory(entry, level, name)?;
                self.default_directory(entry, &fd)?;
                Ok(Step::Into(Rc::new(Level { fd, below: nothing(), path })))
            }
            Node::Other(..) => refuse(entry, "goes through something that is not a directory"),
            Node::Nothing => self.step_below(entry, level, name, path),
        }
    }

    /// A directory that this layer does not have yet: as it is below, or made up.
    fn step_below(&mut self, entry: &[u8], level: &Level, name: &[u8], path: Vec<u8>) -> Result<Step> {
        match level.below.lookup(self.layers, name).map_err(failed(entry, "walk to"))? {
            Found::Other(fd, stat) if files::kind(&stat) == FileType::Symlink => read_link(entry, &fd),
            Found::Other(..) => refuse(entry, "goes through something that is not a directory"),
            found => {
                let fd = self.make_directory(entry, level, name)?;
                self.default_directory(entry, &fd)?;
                self.loose.implied.insert(path.clone());
                let below = match found {
                    Found::Directory(below, _) => below,
                    _ => MergedDir { path: path.clone(), layers: Vec::new() },
                };
                Ok(Step::Into(Rc::new(Level { fd, path, below })))
            }
        }
    }

    fn default_directory(&self, entry: &[u8], fd: &OwnedFd) -> Result<()> {
        rustix::fs::fchmod(fd, files::permissions(0o755)).map_err(failed(entry, "set mode of the directory of"))?;
        rustix::fs::fchown(fd, Some(files::uid(0)), Some(files::gid(0)))
            .map_err(failed(entry, "set owner of the directory of"))
    }
}

enum Step {
    Into(Rc<Level>),
    Link(Vec<u8>),
}

fn read_link(entry: &[u8], fd: &OwnedFd) -> Result<Step> {
    let target = rustix::fs::readlinkat(fd, c"", Vec::new()).map_err(failed(entry, "follow a symlink to"))?;
    Ok(Step::Link(target.into_bytes()))
}

fn mtime(entry: &Entry) -> Timespec {
    Timespec { tv_sec: entry.mtime.0, tv_nsec: entry.mtime.1.into() }
}

/// The attributes an image may set. Overlayfs's would let it point into other directories, and labels are the host's.
fn wanted_xattrs(entry: &Entry) -> impl Iterator<Item = (&[u8], &[u8])> {
    entry.xattrs.iter().map(|(name, value)| (name.as_slice(), value.as_slice())).filter(|(name, _)| {
        let refused = files::is_overlay_xattr(name);
        if refused {
            tracing::warn!(entry = %escape(&entry.path), xattr = %escape(name), "overlay attribute left out");
        }
        !refused && !matches!(*name, b"security.selinux" | b"security.ima" | b"security.evm")
    })
}

fn write_all(fd: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
