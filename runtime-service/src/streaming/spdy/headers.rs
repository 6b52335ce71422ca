//! SPDY's header blocks: names and values, compressed with one zlib stream per direction. Pure.
//!
//! We only ever say "no headers", so nothing is compressed here: our blocks are stored ones, written by hand.

use std::collections::BTreeMap;

use flate2::{Decompress, FlushDecompress, Status};

/// What both sides begin with. Source: "SPDY Protocol – Draft 3.1", 2.6.10.1.
const DICTIONARY: &[u8] = include_bytes!("dictionary.bin");

/// Bytes of one block when inflated. What is longer is a bomb.
const BLOCK_MAX: usize = 16 << 10;
/// Names in one block.
const NAMES_MAX: u32 = 64;

/// Names in lower case → values.
pub(crate) type Headers = BTreeMap<String, String>;

/// What is wrong with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    #[error("is not compressed as SPDY wants it")]
    Zlib,
    #[error("has more than {BLOCK_MAX} bytes")]
    Bomb,
    #[error("has more than {NAMES_MAX} names")]
    Names,
    #[error("ends too early")]
    Short,
    #[error("goes on after its last name")]
    Long,
    #[error("is not text")]
    Text,
    #[error("has a name twice")]
    Twice,
}

/// The reading side of one connection.
#[derive(Debug)]
pub(crate) struct Inflater {
    zlib: Decompress,
}

impl Inflater {
    pub(crate) fn new() -> Self {
        Self { zlib: Decompress::new(true) }
    }

    /// Reads the next block.
    ///
    /// # Errors
    /// After any, the connection's blocks can no longer be read.
    pub(crate) fn block(&mut self, compressed: &[u8]) -> Result<Headers, Broken> {
        parse(&self.inflate(compressed)?)
    }

    fn inflate(&mut self, mut compressed: &[u8]) -> Result<Vec<u8>, Broken> {
        let mut plain = Vec::new();
        let mut piece = [0; 2048];
        loop {
            let (read, written) = (self.zlib.total_in(), self.zlib.total_out());
            let result = self.zlib.decompress(compressed, &mut piece, FlushDecompress::Sync);
            let (read, written) = ((self.zlib.total_in() - read) as usize, (self.zlib.total_out() - written) as usize);
            compressed = &compressed[read..];
            plain.extend_from_slice(&piece[..written]);
            if plain.len() > BLOCK_MAX {
                return Err(Broken::Bomb);
            }
            match result {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.zlib.set_dictionary(DICTIONARY).map_err(|_| Broken::Zlib)?;
                }
                Err(_) | Ok(Status::StreamEnd) => return Err(Broken::Zlib),
                Ok(_) if read == 0 && written == 0 => {
                    return if compressed.is_empty() { Ok(plain) } else { Err(Broken::Zlib) };
                }
                Ok(_) => {}
            }
        }
    }
}

pub(crate) fn parse(block: &[u8]) -> Result<Headers, Broken> {
    let mut rest = block;
    let count = number(&mut rest)?;
    if count > NAMES_MAX {
        return Err(Broken::Names);
    }
    let mut headers = Headers::new();
    for _ in 0..count {
        let name = text(&mut rest)?.to_ascii_lowercase();
        let value = text(&mut rest)?.to_owned();
        if headers.insert(name, value).is_some() {
            return Err(Broken::Twice);
        }
    }
    if rest.is_empty() { Ok(headers) } else { Err(Broken::Long) }
}

fn number(rest: &mut &[u8]) -> Result<u32, Broken> {
    let (bytes, after) = rest.split_first_chunk::<4>().ok_or(Broken::Short)?;
    *rest = after;
    Ok(u32::from_be_bytes(*bytes))
}

fn text<'a>(rest: &mut &'a [u8]) -> Result<&'a str, Broken> {
    let length = number(rest)? as usize;
    let (bytes, after) = rest.split_at_checked(length).ok_or(Broken::Short)?;
    *rest = after;
    std::str::from_utf8(bytes).map_err(|_| Broken::Text)
}

/// A block without names, as the `first` or a later one of its connection.
pub(crate) fn empty_block(first: bool) -> Vec<u8> {
    stored(&0_u32.to_be_bytes(), first)
}

/// `plain` in a stored block, and an empty one behind it: a reader knows by that one that nothing is held back.
fn stored(plain: &[u8], first: bool) -> Vec<u8> {
    // zlib's header with the flag for a dictionary, and the dictionary's Adler-32. Source: RFC 1950, 2.2.
    const BEGIN: [u8; 6] = [0x78, 0x20, 0xe3, 0xc6, 0xa7, 0xc2];
    const FLUSH: [u8; 5] = [0, 0, 0, 0xff, 0xff];
    let length = plain.len() as u16;
    let mut block = if first { BEGIN.to_vec() } else { Vec::new() };
    block.push(0);
    block.extend_from_slice(&length.to_le_bytes());
    block.extend_from_slice(&(!length).to_le_bytes());
    block.extend_from_slice(plain);
    block.extend_from_slice(&FLUSH);
    block
}

/// A client's block.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn test_block(headers: &[(&str, &str)], first: bool) -> Vec<u8> {
    let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        plain.extend_from_slice(&(text.len() as u32).to_be_bytes());
        plain.extend_from_slice(text.as_bytes());
    }
    stored(&plain, first)
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};

    use super::*;

    /// Compresses as other clients do.
    fn deflated(zlib: &mut Compress, plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(plain.len() + 1024);
        zlib.compress_vec(plain, &mut out, FlushCompress::Sync).expect("room");
        out
    }

    fn compressor() -> Compress {
        let mut zlib = Compress::new(Compression::best(), true);
        zlib.set_dictionary(DICTIONARY).expect("a dictionary");
        zlib
    }

    fn plain(headers: &[(&str, &str)]) -> Vec<u8> {
        let stored = test_block(headers, false);
        stored[5..stored.len() - 5].to_vec()
    }

    #[test]
    fn the_blocks_of_a_connection_are_one_zlib_stream() {
        let (mut zlib, mut inflater) = (compressor(), Inflater::new());
        for port in ["80", "8080"] {
            let block = deflated(&mut zlib, &plain(&[("Streamtype", "data"), ("port", port)]));
            let headers = inflater.block(&block).expect("a good block");
            assert_eq!(headers, [("port".into(), port.into()), ("streamtype".into(), "data".into())].into());
        }
    }

    #[test]
    fn our_own_blocks_are_good_zlib() {
        let mut inflater = Inflater::new();
        for first in [true, false, false] {
            assert_eq!(inflater.block(&empty_block(first)), Ok(Headers::new()));
        }
    }

    #[test]
    fn a_bomb_is_not_inflated() {
        let bomb = deflated(&mut compressor(), &vec![0; 8 << 20]);
        assert!(bomb.len() < 16 << 10, "{}", bomb.len());
        assert_eq!(Inflater::new().block(&bomb), Err(Broken::Bomb));
    }

    #[test]
    fn a_bad_block_is_told_by_what_is_wrong() {
        let block = |plain: &[u8]| Inflater::new().block(&deflated(&mut compressor(), plain));
        assert_eq!(block(&65_u32.to_be_bytes()), Err(Broken::Names));
        assert_eq!(block(&u32::MAX.to_be_bytes()), Err(Broken::Names));
        assert_eq!(block(&[0, 0, 0, 1, 0, 0, 0, 9, b'x']), Err(Broken::Short));
        assert_eq!(block(&[0, 0, 0, 0, 1]), Err(Broken::Long));
        assert_eq!(block(&[0, 0, 0, 1, 0, 0, 0, 1, 0xff, 0, 0, 0, 0]), Err(Broken::Text));
        assert_eq!(block(&plain(&[("a", "1"), ("A", "2")])), Err(Broken::Twice));
        assert_eq!(Inflater::new().block(b"no zlib at all"), Err(Broken::Zlib));
        assert_eq!(Inflater::new().block(b""), Err(Broken::Short));
    }
}
