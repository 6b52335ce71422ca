//! Layers, for `test/fuzz`: archives, what they are compressed with, and where their entries go.

use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::apply::{Below, Loose, Refusal, apply};
use super::settle::settle;
use super::stream::{Meter, unpack};
use super::tar::{Archive, Kind};
use crate::files;
use crate::merged::MergedDir;

const BLOCK: usize = 512;
/// Bytes that are read of what a stream unpacks to: a fuzzer looks for mistakes, not for bombs, which have a test.
const MOST: u64 = 4 << 20;

/// An archive as it is, and with right checksums, which no fuzzer guesses. Whatever it claims, what is read of it is what
/// there is.
pub fn archives(data: &[u8]) {
    read_all(data);
    let mut sealed = data.to_vec();
    for block in sealed.chunks_exact_mut(BLOCK).filter(|block| block.iter().any(|byte| *byte != 0)) {
        seal(block);
    }
    read_all(&sealed);
}

fn seal(block: &mut [u8]) {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn read_all(bytes: &[u8]) {
    let mut archive = Archive::new(bytes);
    let mut read = 0;
    while let Ok(Some(entry)) = archive.next() {
        assert!(entry.path.len() < 4096 && entry.mode <= 0o7777 && entry.mtime.1 < 1_000_000_000);
        assert!(entry.uid != u32::MAX && entry.gid != u32::MAX);
        let mut stored = 0;
        let mut buffer = [0; 300];
        while let Ok(got @ 1..) = archive.read(&mut buffer) {
            stored += got as u64;
        }
        read += stored;
        assert!(read <= bytes.len() as u64);
        assert!(stored == 0 || entry.kind == Kind::File);
        let mut end = 0;
        for extent in entry.extents.iter().flatten() {
            assert!(extent.offset >= end);
            end = extent.offset + extent.length;
            assert!(end <= entry.size);
        }
    }
}

/// A compressed stream: what is counted and hashed of it is what it is.
pub fn compressed_layers(data: &[u8]) {
    let (source, compressed) = Meter::new(data);
    let Ok((stream, count)) = unpack(source, Rc::clone(&compressed)) else { return };
    let mut out = Vec::new();
    let whole = stream.take(MOST).read_to_end(&mut out).is_ok() && (out.len() as u64) < MOST;
    let count = count.borrow();
    assert!(count.bytes >= out.len() as u64 && compressed.borrow().bytes <= data.len() as u64);
    if whole {
        assert_eq!((count.bytes, count.digest()), (out.len() as u64, crate::digest::Digest::of(&out)));
    }
    // Not of an archive's making: nothing is taken for compressed that is not.
    if !matches!(data.first(), Some(0x1f | 0x28 | 0x50..=0x5f | 0xfd | b'B')) {
        assert!(out == data);
    }
}

/// A directory in which layers are unpacked. Nothing else may be in it, since it is what is looked at afterwards.
pub struct LayerDirectory {
    root: PathBuf,
    layers: OwnedFd,
}

/// The layer that is there, below the one that is unpacked.
const BASE: u32 = 1;
const NEW: u32 = 2;

impl LayerDirectory {
    /// Makes a base layer with links that lead astray, and a file that nobody may touch.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn make(root: &Path) -> io::Result<Self> {
        fs::create_dir_all(root.join(format!("l/{BASE}/d/e")))?;
        fs::create_dir_all(root.join("outside"))?;
        fs::write(root.join("outside/keep"), "kept")?;
        let base = root.join(format!("l/{BASE}"));
        fs::write(base.join("f"), "base")?;
        for (name, target) in [("up", "../../../outside"), ("abs", "/outside"), ("in", "d/e"), ("loop", "loop")] {
            symlink(target, base.join(name))?;
        }
        Ok(Self { root: root.into(), layers: files::open_own(&root.join("l"))? })
    }

    /// Unpacks an archive of the entries that the lines say, each `KIND PATH`, `KIND PATH -> TARGET` or a line of contents
    /// before: everything stays below the layer's directory, and the layer below as it was.
    ///
    /// # Panics
    /// When that is broken.
    pub fn feed(&self, data: &[u8]) {
        let archive = archive(data);
        let mut outcome = self.unpack(&archive, Below::Unknown);
        if matches!(outcome, Err(Refusal::NeedsBelow)) {
            outcome = self.unpack(&archive, Below::Known(vec![BASE]));
            assert!(!matches!(outcome, Err(Refusal::NeedsBelow)), "the layers below are in view");
        }
        if let Ok(loose) = outcome {
            let _ = settle(loose, &self.layers, NEW, vec![BASE]);
        }
        // What the container would see, along every path that was named.
        let merged = MergedDir::root(vec![NEW, BASE]);
        for line in data.split(|byte| *byte == b'\n').take(16) {
            let _ = merged.resolve(&self.layers, line.get(2..).unwrap_or_default());
        }
        self.check();
        self.clear();
    }

    fn unpack(&self, archive: &[u8], below: Below) -> Result<Loose, Refusal> {
        self.clear();
        fs::create_dir(self.root.join(format!("l/{NEW}"))).expect("make a layer's directory");
        apply(&mut Archive::new(archive), &self.layers, NEW, below)
    }

    fn clear(&self) {
        files::remove(&self.layers, NEW.to_string().as_bytes()).expect("remove a layer");
    }

    fn check(&self) {
        let names = |dir: &str| {
            let entries = fs::read_dir(self.root.join(dir)).expect("list");
            let mut names: Vec<_> = entries.map(|e| e.expect("an entry").file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names("."), ["l", "outside"]);
        assert_eq!(names("outside"), ["keep"]);
        assert_eq!(names("l"), ["1", "2"]);
        assert_eq!(names("l/1"), ["abs", "d", "f", "in", "loop", "up"]);
        assert_eq!(names("l/1/d"), ["e"]);
        assert!(names("l/1/d/e").is_empty());
        for (file, text) in [("outside/keep", "kept"), ("l/1/f", "base")] {
            assert_eq!(fs::read(self.root.join(file)).expect("a kept file"), text.as_bytes());
        }
    }
}

/// A tar archive of the lines: the first letter is the entry's type as ustar has it (`0` file, `1` hardlink, `2` symlink,
/// `5` directory, …).
fn archive(data: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    for line in data.split(|byte| *byte == b'\n').filter(|line| line.len() > 2) {
        let (kind, rest) = (line[0], &line[2..]);
        let arrow = rest.windows(4).position(|part| part == b" -> ");
        let (path, link) = arrow.map_or((rest, &[][..]), |at| (&rest[..at], &rest[at + 4..]));
        for (long, name) in [(b'L', path), (b'K', link)] {
            if name.len() > 100 {
                archive.extend_from_slice(&header(b"long", b"", long, name.len()));
                archive.extend_from_slice(name);
                archive.resize(archive.len().next_multiple_of(BLOCK), 0);
            }
        }
        let contents: &[u8] = if kind == b'0' { b"new" } else { b"" };
        archive.extend_from_slice(&header(path, link, kind, contents.len()));
        archive.extend_from_slice(contents);
        archive.resize(archive.len().next_multiple_of(BLOCK), 0);
    }
    archive
}

fn header(path: &[u8], link: &[u8], kind: u8, size: usize) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, most: usize, bytes: &[u8]| {
        let length = bytes.len().min(most);
        block[at..at + length].copy_from_slice(&bytes[..length]);
    };
    put(0, 100, path);
    put(100, 8, b"0000755");
    put(108, 8, b"0000000");
    put(116, 8, b"0000000");
    put(124, 12, format!("{size:011o}").as_bytes());
    put(136, 12, b"00000000012");
    put(156, 1, &[kind]);
    put(157, 100, link);
    put(257, 8, b"ustar\x0000");
    seal(&mut block);
    block
}
