//! Maps of files with holes: where stored bytes belong.

use super::header::unsigned;
use super::{BLOCK, Result, pax, refuse};

/// Most extents of one file; a map of 1 MiB (CVE-2025-58183).
const EXTENTS_MAX: usize = 1 << 16;

/// A run of stored bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Where it begins in the file.
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

pub(super) fn push(extents: &mut Vec<Extent>, offset: u64, length: u64) -> Result<()> {
    if extents.len() >= EXTENTS_MAX {
        return refuse("sparse map of more than 65536 extents");
    }
    extents.push(Extent { offset, length });
    Ok(())
}

/// Extents must ascend without overlap, stay inside the file, and account for every stored byte.
pub(super) fn check(extents: &[Extent], size: u64, stored: u64) -> Result<()> {
    let mut end = 0u64;
    let mut sum = 0u64;
    for extent in extents {
        let next = extent.offset.checked_add(extent.length);
        match next {
            Some(next) if extent.offset >= end && next <= size => end = next,
            _ => return refuse("sparse map out of order or outside its file"),
        }
        sum += extent.length; // cannot overflow: the extents are disjoint and inside `size`
    }
    if sum == stored { Ok(()) } else { refuse("sparse map does not fit the stored bytes") }
}

/// Pairs of 12-byte number fields; an empty one ends the list.
pub(super) fn pairs(fields: &[u8], extents: &mut Vec<Extent>) -> Result<()> {
    for pair in fields.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        push(extents, unsigned("sparse offset", &pair[..12])?, unsigned("sparse length", &pair[12..])?)?;
    }
    Ok(())
}

/// An extension block of the old GNU format; true if another follows.
pub(super) fn extension(block: &[u8; BLOCK], extents: &mut Vec<Extent>) -> Result<bool> {
    pairs(&block[..504], extents)?;
    Ok(block[504] != 0)
}

/// Format 0.1: `offset,length,offset,length…`.
pub(super) fn parse_list(value: &[u8]) -> Result<Vec<Extent>> {
    let mut extents = Vec::new();
    if value.is_empty() {
        return Ok(extents);
    }
    let mut numbers = value.split(|byte| *byte == b',');
    while let Some(offset) = numbers.next() {
        let Some(length) = numbers.next() else {
            return refuse("sparse map with an odd number of numbers");
        };
        push(&mut extents, pax::unsigned(offset)?, pax::unsigned(length)?)?;
    }
    Ok(extents)
}

/// Format 1.0: decimal lines, first the number of extents, then offset and length of each.
#[derive(Default)]
pub(super) struct Map {
    line: Vec<u8>,
    count: Option<u64>,
    offset: Option<u64>,
    extents: Vec<Extent>,
}

impl Map {
    /// Takes one block. The extents once the last line was seen; the rest of that block is padding.
    pub(super) fn feed(&mut self, block: &[u8; BLOCK]) -> Result<Option<Vec<Extent>>> {
        for byte in block {
            if *byte != b'\n' {
                if self.line.len() > 20 {
                    return refuse("malformed sparse map");
                }
                self.line.push(*byte);
                continue;
            }
            let number = pax::unsigned(&std::mem::take(&mut self.line))?;
            match (self.count, self.offset.take()) {
                (None, _) if number > EXTENTS_MAX as u64 => {
                    return refuse("sparse map of more than 65536 extents");
                }
                (None, _) => self.count = Some(number),
                (Some(_), None) => self.offset = Some(number),
                (Some(_), Some(offset)) => push(&mut self.extents, offset, number)?,
            }
            if self.offset.is_none() && self.count == Some(self.extents.len() as u64) {
                return Ok(Some(std::mem::take(&mut self.extents)));
            }
        }
        Ok(None)
    }
}
