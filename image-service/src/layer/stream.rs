//! A layer's bytes on their way: counted, hashed, and decompressed by what they are, not by what they are called.

use std::cell::RefCell;
use std::io::{self, BufReader, Read};
use std::rc::Rc;

use sha2::{Digest as _, Sha256};

use crate::digest::Digest;

/// Compressed bytes read at once.
const INPUT: usize = 64 << 10;
/// Unpacked bytes buffered for headers; contents bypass it.
const OUTPUT: usize = 32 << 10;
/// Largest zstd window taken, as a power of two: 128 MiB, what `zstd --long` uses.
const WINDOW_LOG_MAX: u32 = 27;
/// A stream may unpack to this many times its size. Deflate cannot do more than 1032.
pub(crate) const RATIO_MAX: u64 = 1000;
/// Unpacked bytes before the ratio is looked at.
const RATIO_FROM: u64 = 64 << 20;

/// Bytes and digest of what went through a [`Meter`].
#[derive(Default)]
pub(crate) struct Count {
    pub(crate) bytes: u64,
    hasher: Sha256,
}

impl Count {
    /// The digest so far.
    pub(crate) fn digest(&self) -> Digest {
        Digest::finish(self.hasher.clone())
    }
}

/// Counts and hashes what is read through it. The count is read by others on the same thread.
pub(crate) struct Meter<R> {
    inner: R,
    count: Rc<RefCell<Count>>,
}

impl<R> Meter<R> {
    pub(crate) fn new(inner: R) -> (Self, Rc<RefCell<Count>>) {
        let count = Rc::new(RefCell::new(Count::default()));
        (Self { inner, count: Rc::clone(&count) }, count)
    }
}

impl<R: Read> Read for Meter<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        let mut count = self.count.borrow_mut();
        count.bytes += got as u64;
        count.hasher.update(&buffer[..got]);
        Ok(got)
    }
}

/// Stops a stream that grows beyond all reason.
struct Bounded<R> {
    inner: R,
    unpacked: u64,
    compressed: Rc<RefCell<Count>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        self.unpacked += got as u64;
        if self.unpacked > RATIO_FROM && self.unpacked / RATIO_MAX > self.compressed.borrow().bytes {
            return Err(io::Error::other(Bomb));
        }
        Ok(got)
    }
}

/// The error inside an `io::Error` when the limit is hit.
#[derive(Debug, thiserror::Error)]
#[error("unpacks to more than {RATIO_MAX} times its size")]
pub(crate) struct Bomb;

/// The archive inside a compressed stream, hashed, and what was counted of it.
pub(crate) type Unpacked<'a> = BufReader<Meter<Box<dyn Read + 'a>>>;

/// Decompresses `source`, whose own count is `compressed`, by its first bytes.
///
/// # Errors
/// A compression we do not speak; a broken header.
pub(crate) fn unpack<'a>(
    source: impl Read + 'a,
    compressed: Rc<RefCell<Count>>,
) -> io::Result<(Unpacked<'a>, Rc<RefCell<Count>>)> {
    let (start, source) = peek(source)?;
    let compression = sniff(&start)?;
    let source = BufReader::with_capacity(INPUT, io::Cursor::new(start).chain(source));
    let inner: Box<dyn Read + 'a> = match compression {
        Compression::None => Box::new(source),
        Compression::Gzip => {
            let inner = flate2::bufread::MultiGzDecoder::new(source);
            Box::new(Bounded { inner, unpacked: 0, compressed })
        }
        Compression::Zstd => {
            let mut inner = zstd::stream::read::Decoder::with_buffer(source)?;
            inner.window_log_max(WINDOW_LOG_MAX)?;
            Box::new(Bounded { inner, unpacked: 0, compressed })
        }
    };
    let (meter, count) = Meter::new(inner);
    Ok((BufReader::with_capacity(OUTPUT, meter), count))
}

enum Compression {
    None,
    Gzip,
    Zstd,
}

/// The first bytes, enough for any magic, however little each read gives.
fn peek<R: Read>(mut source: R) -> io::Result<(Vec<u8>, R)> {
    let mut start = Vec::with_capacity(8);
    (&mut source).take(8).read_to_end(&mut start)?;
    Ok((start, source))
}

fn sniff(start: &[u8]) -> io::Result<Compression> {
    let unsupported = |name: &str| Err(io::Error::other(format!("{name} is not supported")));
    match start {
        [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Compression::Zstd),
        // A skippable frame: zstd:chunked puts them at the end, others may begin with one.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Compression::Zstd),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => unsupported("xz"),
        [b'B', b'Z', b'h', ..] => unsupported("bzip2"),
        _ => Ok(Compression::None),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn unpacked(bytes: &[u8]) -> io::Result<(Vec<u8>, Digest, Digest)> {
        let (source, compressed) = Meter::new(bytes);
        let (mut stream, count) = unpack(source, Rc::clone(&compressed))?;
        let mut out = Vec::new();
        stream.read_to_end(&mut out)?;
        let digests = (count.borrow().digest(), compressed.borrow().digest());
        Ok((out, digests.0, digests.1))
    }

    #[test]
    fn every_compression_is_seen_from_its_bytes() {
        let text = b"the same bytes".repeat(10_000);
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        let zstd = zstd::encode_all(text.as_slice(), 1).unwrap();
        let two = [gzip(&text[..70_000]), gzip(&text[70_000..])].concat();
        for bytes in [text.clone(), gzip(&text), two, zstd.clone(), [skippable.clone(), zstd, skippable].concat()] {
            let (out, diff_id, blob) = unpacked(&bytes).unwrap();
            assert!(out == text);
            assert_eq!((diff_id, blob), (Digest::of(&text), Digest::of(&bytes)));
        }
        assert_eq!(unpacked(b"").unwrap().0, b"");
    }

    #[test]
    fn bombs_and_foreign_formats_are_refused() {
        let bomb = zstd::encode_all(io::repeat(0).take(100 << 20), 19).unwrap();
        assert!(unpacked(&bomb).unwrap_err().get_ref().unwrap().is::<Bomb>());
        assert!(unpacked(b"\xfd7zXZ\0...").unwrap_err().to_string().contains("xz"));
        assert!(unpacked(b"BZh9...").unwrap_err().to_string().contains("bzip2"));
        let cut = gzip(&[7; 100_000]);
        assert_eq!(unpacked(&cut[..cut.len() - 9]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        // A window of 2 GiB, which a decoder would have to set aside.
        assert!(unpacked(&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0, 0, 0]).is_err());
    }
}
