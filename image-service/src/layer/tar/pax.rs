//! pax extended headers: `LENGTH KEY=VALUE\n` records.

use super::sparse::{self, Extent};
use super::{PATH_MAX, Result, escape, refuse};

/// Most bytes of one extended attribute, and of all of one file; Linux takes no more than 64 KiB each.
const XATTR_MAX: usize = 64 << 10;
const XATTRS_MAX: usize = 1 << 20;

/// What a pax header says about the next entry.
#[derive(Default)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Sparse,
    seen: Vec<Vec<u8>>,
}

/// `GNU.sparse.` records, of formats 0.0, 0.1 and 1.0.
#[derive(Default)]
pub(super) struct Sparse {
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) map: Option<Vec<Extent>>,
    pub(super) major: Option<u64>,
    offset: Option<u64>,
}

impl Records {
    pub(super) fn parse(mut body: &[u8]) -> Result<Self> {
        let mut records = Self::default();
        while !body.is_empty() {
            let (key, value, rest) = split(body)?;
            records.put(key, value)?;
            body = rest;
        }
        if records.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > XATTRS_MAX {
            return refuse("extended attributes of more than 1 MiB");
        }
        Ok(records)
    }

    /// A global header may hold remarks. Whether it speaks for the entries behind it is read differently by GNU and Go.
    pub(super) fn check_global(&self) -> Result<()> {
        let speaks = |key: &Vec<u8>| {
            matches!(key.as_slice(), b"path" | b"linkpath" | b"size" | b"uid" | b"gid" | b"mtime")
                || key.starts_with(b"SCHILY.xattr.")
                || key.starts_with(b"GNU.sparse.")
        };
        if self.seen.iter().any(speaks) { refuse("global pax header that changes entries") } else { Ok(()) }
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        // Format 0.0 repeats these two; any other repetition has two readings.
        let repeats = matches!(key, b"GNU.sparse.offset" | b"GNU.sparse.numbytes");
        if !repeats {
            if self.seen.iter().any(|seen| seen == key) {
                return refuse(format!("pax key {} twice", escape(key)));
            }
            self.seen.push(key.to_vec());
        }
        match key {
            b"path" => self.path = Some(path(value)?),
            b"linkpath" => self.link = Some(path(value)?),
            b"size" => self.size = Some(unsigned(value)?),
            b"uid" => self.uid = Some(signed(value)?),
            b"gid" => self.gid = Some(signed(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            b"GNU.sparse.name" => self.sparse.name = Some(path(value)?),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.size = Some(unsigned(value)?),
            b"GNU.sparse.major" => self.sparse.major = Some(unsigned(value)?),
            b"GNU.sparse.map" => self.sparse.map = Some(sparse::parse_list(value)?),
            b"GNU.sparse.offset" => self.sparse.offset = Some(unsigned(value)?),
            b"GNU.sparse.numbytes" => {
                let Some(offset) = self.sparse.offset.take() else {
                    return refuse("sparse length without offset");
                };
                sparse::push(self.sparse.map.get_or_insert_default(), offset, unsigned(value)?)?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattr(name, value)?;
                }
            }
        }
        Ok(())
    }

    fn xattr(&mut self, name: &[u8], value: &[u8]) -> Result<()> {
        if name.is_empty() || name.len() > 255 || name.contains(&0) {
            return refuse("extended attribute whose name is not 1 to 255 bytes");
        }
        if value.len() > XATTR_MAX {
            return refuse(format!("extended attribute {} of more than 64 KiB", escape(name)));
        }
        self.xattrs.push((name.to_vec(), value.to_vec()));
        Ok(())
    }
}

/// The first record and what follows it.
fn split(body: &[u8]) -> Result<(&[u8], &[u8], &[u8])> {
    let bad = || refuse("malformed pax record");
    let Some(space) = body.iter().take(8).position(|byte| *byte == b' ') else {
        return bad();
    };
    let Ok(length) = unsigned(&body[..space]) else {
        return bad();
    };
    let length = length as usize; // at most 7 digits
    if length < space + 4 || length > body.len() || body[length - 1] != b'\n' {
        return bad();
    }
    let record = &body[space + 1..length - 1];
    let Some(equals) = record.iter().position(|byte| *byte == b'=') else {
        return bad();
    };
    if equals == 0 {
        return bad();
    }
    Ok((&record[..equals], &record[equals + 1..], &body[length..]))
}

fn path(value: &[u8]) -> Result<Vec<u8>> {
    if value.contains(&0) {
        return refuse("NUL in a pax path");
    }
    if value.len() > PATH_MAX {
        return refuse(format!("{:.200}: path longer than {PATH_MAX} bytes", escape(value)));
    }
    Ok(value.to_vec())
}

/// Decimal digits and nothing else.
pub(super) fn unsigned(value: &[u8]) -> Result<u64> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let number = digits.then(|| std::str::from_utf8(value).ok()?.parse::<u64>().ok()).flatten();
    match number {
        Some(number) if i64::try_from(number).is_ok() => Ok(number),
        _ => refuse(format!("pax number {:.40}", escape(value))),
    }
}

fn signed(value: &[u8]) -> Result<i64> {
    match value.strip_prefix(b"-") {
        Some(rest) => unsigned(rest).map(|number| -(number as i64)),
        None => unsigned(value).map(|number| number as i64),
    }
}

/// `SECONDS[.FRACTION]`, perhaps negative; beyond nanoseconds cut off.
fn time(value: &[u8]) -> Result<(i64, u32)> {
    let mut parts = value.splitn(2, |byte| *byte == b'.');
    let whole = parts.next().unwrap_or_default();
    let seconds = signed(whole)?;
    let mut nanoseconds = 0;
    if let Some(fraction) = parts.next() {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return refuse(format!("pax time {:.40}", escape(value)));
        }
        let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
        nanoseconds = digits.fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    }
    if whole.starts_with(b"-") && nanoseconds > 0 {
        return Ok((seconds - 1, 1_000_000_000 - nanoseconds)); // -1.25 is 0.75 after -2
    }
    Ok((seconds, nanoseconds))
}
