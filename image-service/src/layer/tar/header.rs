//! The 512-byte header block: checksum, formats, number fields.

use super::{BLOCK, Extent, Result, refuse, sparse, until_nul};

/// A number field. Octal fields hold no more than 36 bits, base-256 ones are refused beyond 63.
pub(super) type Number = i64;

pub(super) struct Header([u8; BLOCK]);

#[derive(PartialEq)]
enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl Header {
    pub(super) fn new(block: [u8; BLOCK]) -> Result<Self> {
        let header = Self(block);
        let blank = |at: usize| {
            if (148..156).contains(&at) { b' ' } else { block[at] }
        };
        let unsigned: i64 = (0..BLOCK).map(|at| i64::from(blank(at))).sum();
        let signed: i64 = (0..BLOCK).map(|at| i64::from(blank(at) as i8)).sum(); // some old tars summed signed chars
        let stated = number(&block[148..156])?;
        if stated != unsigned && stated != signed {
            return refuse("not a tar header: wrong checksum");
        }
        Ok(header)
    }

    fn format(&self) -> Format {
        match &self.0[257..265] {
            b"ustar  \0" => Format::Gnu,
            magic if magic.starts_with(b"ustar\0") && &self.0[508..512] == b"tar\0" => Format::Star,
            magic if magic.starts_with(b"ustar\0") => Format::Ustar,
            _ => Format::V7,
        }
    }

    pub(super) fn kind(&self) -> u8 {
        self.0[156]
    }

    pub(super) fn path(&self) -> Vec<u8> {
        let name = until_nul(&self.0[..100]);
        let prefix = match self.format() {
            Format::Ustar => until_nul(&self.0[345..500]),
            Format::Star => until_nul(&self.0[345..476]),
            Format::V7 | Format::Gnu => Vec::new(),
        };
        if prefix.is_empty() { name } else { [prefix, name].join(&b'/') }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        until_nul(&self.0[157..257])
    }

    pub(super) fn size(&self) -> Result<u64> {
        unsigned("size", &self.0[124..136])
    }

    pub(super) fn mode(&self) -> Result<u64> {
        unsigned("mode", &self.0[100..108])
    }

    pub(super) fn uid(&self) -> Result<Number> {
        number(&self.0[108..116])
    }

    pub(super) fn gid(&self) -> Result<Number> {
        number(&self.0[116..124])
    }

    pub(super) fn mtime(&self) -> Result<i64> {
        number(&self.0[136..148])
    }

    pub(super) fn device_major(&self) -> Result<u32> {
        self.device(329)
    }

    pub(super) fn device_minor(&self) -> Result<u32> {
        self.device(337)
    }

    fn device(&self, at: usize) -> Result<u32> {
        if self.format() == Format::V7 {
            return Ok(0);
        }
        let number = unsigned("device number", &self.0[at..at + 8])?;
        // Linux: 12 bits major, 20 bits minor.
        let most = if at == 329 { 0xfff } else { 0xf_ffff };
        if number > most { refuse(format!("device number {number} out of range")) } else { Ok(number as u32) }
    }

    /// Old GNU sparse header: apparent size, the first extents, and whether extension blocks follow.
    pub(super) fn sparse(&self) -> Result<(u64, Vec<Extent>, bool)> {
        if self.format() != Format::Gnu {
            return refuse("sparse entry in an archive that is not GNU's");
        }
        let mut extents = Vec::new();
        sparse::pairs(&self.0[386..482], &mut extents)?;
        Ok((unsigned("size", &self.0[483..495])?, extents, self.0[482] != 0))
    }
}

/// A number field that must not be negative.
pub(super) fn unsigned(what: &str, field: &[u8]) -> Result<u64> {
    let number = number(field)?;
    u64::try_from(number).or_else(|_| refuse(format!("{what} {number} is negative")))
}

/// Octal text, padded with spaces and NULs, or two's complement big-endian when the first bit is set.
fn number(field: &[u8]) -> Result<Number> {
    if field[0] & 0x80 != 0 {
        return binary(field);
    }
    let text = field.split(|byte| *byte == 0).find(|part| !part.is_empty()).unwrap_or_default().trim_ascii();
    text.iter().try_fold(0i64, |sum, digit| match digit {
        b'0'..=b'7' => Ok(sum << 3 | i64::from(digit - b'0')),
        _ => refuse("number field is not octal"),
    })
}

fn binary(field: &[u8]) -> Result<Number> {
    let negative = field[0] & 0x40 != 0;
    let first = if negative { i128::from(field[0] as i8) } else { i128::from(field[0] & 0x7f) };
    let sum = field[1..].iter().fold(first, |sum, byte| sum << 8 | i128::from(*byte));
    i64::try_from(sum).or_else(|_| refuse("number field out of range"))
}
