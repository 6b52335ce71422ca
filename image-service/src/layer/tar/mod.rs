//! Reads a tar archive entry by entry from a stream. Knows the format, touches no disk.
//!
//! POSIX pax, ustar, GNU and V7, read as GNU tar and Go's `archive/tar` do; where those two differ, or a header could be
//! read in two ways, the archive is refused. Every length an archive can claim has a limit, so memory stays small
//! whatever it says.

mod header;
mod pax;
mod sparse;

use std::io::{self, Read};

use header::{Header, Number};
use pax::Records;
pub(crate) use sparse::Extent;

/// Longest path or link target, bytes: `PATH_MAX` without its NUL.
const PATH_MAX: usize = 4095;
/// Largest pax header, bytes. A file's extended attributes travel in it.
const PAX_MAX: u64 = 1 << 20;
/// Largest apparent size of a sparse file, bytes.
const SPARSE_MAX: u64 = 1 << 40;
const BLOCK: usize = 512;

/// What an entry makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    /// Target as it stands in the archive.
    Symlink(Vec<u8>),
    /// Path of an entry of the archive, or of a layer below.
    Hardlink(Vec<u8>),
    Fifo,
    /// Major and minor number.
    Char(u32, u32),
    /// Major and minor number.
    Block(u32, u32),
}

/// One entry's metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// As it stands in the archive: may be absolute, may hold `..`.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permissions, set-id and sticky bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since the epoch and nanoseconds.
    pub(crate) mtime: (i64, u32),
    /// Extended attributes (`SCHILY.xattr.`), in the archive's order.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Apparent size of a file.
    pub(crate) size: u64,
    /// Where the bytes that follow belong, when the file has holes.
    pub(crate) extents: Option<Vec<Extent>>,
}

/// Why an archive is refused.
#[derive(Debug)]
pub(crate) enum TarError {
    /// It is no archive, or one we do not take.
    Refused(String),
    /// The stream failed, or ended too early.
    Read(io::Error),
}

impl From<io::Error> for TarError {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

type Result<T> = std::result::Result<T, TarError>;

fn refuse<T>(why: impl Into<String>) -> Result<T> {
    Err(TarError::Refused(why.into()))
}

/// An archive being read.
pub(crate) struct Archive<R> {
    stream: R,
    /// Bytes of the current entry's data not yet read.
    left: u64,
    /// Padding after them.
    padding: u64,
}

impl<R: Read> Archive<R> {
    pub(crate) fn new(stream: R) -> Self {
        Self { stream, left: 0, padding: 0 }
    }

    /// The stream, to read on behind the archive's end.
    pub(crate) fn into_stream(self) -> R {
        self.stream
    }

    /// The next entry; what is left of the current one's data is skipped. `None` at the end of the archive.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        self.skip(self.left + self.padding)?;
        (self.left, self.padding) = (0, 0);
        let mut records: Option<Records> = None;
        let mut long_path = None;
        let mut long_link = None;
        loop {
            let Some(block) = self.block()? else {
                let dangling = records.is_some() || long_path.is_some() || long_link.is_some();
                return if dangling { refuse("ends after an extended header") } else { Ok(None) };
            };
            let header = Header::new(block)?;
            match header.kind() {
                b'x' => {
                    let body = self.body(header.size()?, PAX_MAX)?;
                    if records.replace(Records::parse(&body)?).is_some() {
                        return refuse("two pax headers for one entry");
                    }
                }
                b'g' => {
                    let body = self.body(header.size()?, PAX_MAX)?;
                    Records::parse(&body)?.check_global()?;
                }
                b'L' => {
                    let body = self.body(header.size()?, PATH_MAX as u64 + 1)?;
                    if long_path.replace(until_nul(&body)).is_some() {
                        return refuse("two long names for one entry");
                    }
                }
                b'K' => {
                    let body = self.body(header.size()?, PATH_MAX as u64 + 1)?;
                    if long_link.replace(until_nul(&body)).is_some() {
                        return refuse("two long links for one entry");
                    }
                }
                _ => {
                    return self.entry(&header, records.unwrap_or_default(), long_path, long_link).map(Some);
                }
            }
        }
    }

    /// Puts header and extensions together: pax wins over GNU, GNU over the header.
    fn entry(
        &mut self,
        header: &Header,
        mut records: Records,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry> {
        let path = records.path.take().or(long_path).unwrap_or_else(|| header.path());
        let link = records.link.take().or(long_link).unwrap_or_else(|| header.link());
        let shown = escape(&path);
        if path.len() > PATH_MAX || link.len() > PATH_MAX {
            return refuse(format!("{:.200}: path longer than {PATH_MAX} bytes", shown));
        }
        let stored = match records.size {
            Some(size) => size,
            None => header.size()?,
        };
        let kind = match header.kind() {
            0 | b'0' if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'S' => Kind::File,
            b'1' => Kind::Hardlink(link),
            b'2' => Kind::Symlink(link),
            b'3' => Kind::Char(header.device_major()?, header.device_minor()?),
            b'4' => Kind::Block(header.device_major()?, header.device_minor()?),
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                return refuse(format!("{shown}: unsupported entry type {:?}", char::from(other)));
            }
        };
        // As in Go: what has no content has none, whatever its size field says.
        let stored = if kind == Kind::File { stored } else { 0 };
        (self.left, self.padding) = (stored, padding(stored));
        let (size, extents) = self.sparse(header, &mut records, stored)?;
        Ok(Entry {
            path: records.sparse.name.take().unwrap_or(path),
            kind,
            mode: (header.mode()? & 0o7777) as u32,
            uid: owner("uid", records.uid.map_or_else(|| header.uid(), Ok)?)?,
            gid: owner("gid", records.gid.map_or_else(|| header.gid(), Ok)?)?,
            mtime: records.mtime.map_or_else(|| header.mtime().map(|seconds| (seconds, 0)), Ok)?,
            xattrs: records.xattrs,
            size,
            extents,
        })
    }

    /// The apparent size and the extents of a file with holes, in any of GNU's four spellings.
    fn sparse(&mut self, header: &Header, records: &mut Records, stored: u64) -> Result<(u64, Option<Vec<Extent>>)> {
        let (size, extents) = if header.kind() == b'S' {
            let (size, mut extents, mut more) = header.sparse()?;
            // The map goes on in blocks between header and data; they do not count as data.
            while more {
                let mut block = [0; BLOCK];
                self.stream.read_exact(&mut block)?;
                more = sparse::extension(&block, &mut extents)?;
            }
            (size, extents)
        } else if let Some(size) = records.sparse.size {
            let extents = match records.sparse.map.take() {
                Some(map) => map,
                None if records.sparse.major == Some(1) => self.sparse_map()?,
                None => return refuse("sparse file without a map"),
            };
            (size, extents)
        } else {
            return Ok((stored, None));
        };
        sparse::check(&extents, size, self.left)?;
        if size > SPARSE_MAX {
            return refuse("sparse file of more than 1 TiB");
        }
        Ok((size, Some(extents)))
    }

    /// The map of format 1.0, which stands before the data, padded to whole blocks.
    fn sparse_map(&mut self) -> Result<Vec<Extent>> {
        let mut map = sparse::Map::default();
        loop {
            let mut block = [0; BLOCK];
            if self.left < BLOCK as u64 {
                return refuse("sparse map longer than its file");
            }
            self.stream.read_exact(&mut block)?;
            self.left -= BLOCK as u64;
            if let Some(extents) = map.feed(&block)? {
                return Ok(extents);
            }
        }
    }

    /// Reads data of the current entry; 0 at its end.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let got = self.stream.read(&mut buffer[..want])?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= got as u64;
        Ok(got)
    }

    /// The next header block. `None` at two zero blocks, or where the stream ends between entries.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        if !self.fill(&mut block)? {
            return Ok(None);
        }
        if block.iter().any(|byte| *byte != 0) {
            return Ok(Some(block));
        }
        if self.fill(&mut block)? && block.iter().any(|byte| *byte != 0) {
            return refuse("one zero block between entries");
        }
        Ok(None)
    }

    /// Fills the block; false if the stream is at its end, an error if it ends inside.
    fn fill(&mut self, block: &mut [u8; BLOCK]) -> Result<bool> {
        let mut have = 0;
        while have < BLOCK {
            match self.stream.read(&mut block[have..]) {
                Ok(0) if have == 0 => return Ok(false),
                Ok(0) => return Err(TarError::Read(io::ErrorKind::UnexpectedEof.into())),
                Ok(got) => have += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    fn body(&mut self, size: u64, most: u64) -> Result<Vec<u8>> {
        if size > most {
            return refuse(format!("extended header of {size} bytes, at most {most} are read"));
        }
        let mut body = vec![0; size as usize];
        self.stream.read_exact(&mut body)?;
        self.skip(padding(size))?;
        Ok(body)
    }

    fn skip(&mut self, bytes: u64) -> Result<()> {
        let skipped = io::copy(&mut (&mut self.stream).take(bytes), &mut io::sink())?;
        if skipped < bytes { Err(TarError::Read(io::ErrorKind::UnexpectedEof.into())) } else { Ok(()) }
    }
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn until_nul(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

fn owner(what: &str, number: Number) -> Result<u32> {
    match u32::try_from(number) {
        Ok(id) if id != u32::MAX => Ok(id), // u32::MAX means "leave as it is" to chown(2)
        _ => refuse(format!("{what} {number} out of range")),
    }
}

/// A path as it may stand in a message: no control characters, nothing that is not UTF-8.
pub(crate) fn escape(path: &[u8]) -> String {
    String::from_utf8_lossy(path).escape_debug().to_string()
}

#[cfg(test)]
mod tests;
