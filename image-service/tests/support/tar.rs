//! Writes tar archives, also such as no tool would.

use std::io::Write;

/// An archive being written.
#[derive(Default)]
pub struct Tar {
    bytes: Vec<u8>,
    owner: (u32, u32),
}

/// One entry's header.
#[derive(Clone)]
pub struct Entry<'a> {
    pub path: &'a [u8],
    pub kind: u8,
    pub mode: u32,
    pub owner: Option<(u32, u32)>,
    pub mtime: &'a str,
    pub link: &'a [u8],
    pub device: (u32, u32),
    pub data: &'a [u8],
    pub records: &'a [(&'a str, &'a [u8])],
}

impl Default for Entry<'_> {
    fn default() -> Self {
        Self {
            path: b"",
            kind: b'0',
            mode: 0o644,
            owner: None,
            mtime: "1700000000.123456789",
            link: b"",
            device: (0, 0),
            data: b"",
            records: &[],
        }
    }
}

impl Tar {
    /// An archive whose entries belong to whoever runs the test, so that no root is needed.
    pub fn own() -> Self {
        let owner = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        Self { bytes: Vec::new(), owner }
    }

    pub fn file(self, path: &str, data: &[u8]) -> Self {
        self.entry(&Entry { path: path.as_bytes(), data, ..Entry::default() })
    }

    pub fn dir(self, path: &str) -> Self {
        self.entry(&Entry { path: path.as_bytes(), kind: b'5', mode: 0o755, ..Entry::default() })
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(&Entry {
            path: path.as_bytes(),
            kind: b'2',
            mode: 0o777,
            link: target.as_bytes(),
            ..Entry::default()
        })
    }

    pub fn hardlink(self, path: &str, target: &str) -> Self {
        self.entry(&Entry { path: path.as_bytes(), kind: b'1', link: target.as_bytes(), ..Entry::default() })
    }

    /// Everything that does not fit a ustar header goes into a pax header, time and owner always.
    pub fn entry(mut self, entry: &Entry) -> Self {
        let owner = entry.owner.unwrap_or(self.owner);
        let (uid, gid) = (owner.0.to_string(), owner.1.to_string());
        let mut records: Vec<(&str, &[u8])> =
            vec![("mtime", entry.mtime.as_bytes()), ("uid", uid.as_bytes()), ("gid", gid.as_bytes())];
        if entry.path.len() > 100 {
            records.push(("path", entry.path));
        }
        if entry.link.len() > 100 {
            records.push(("linkpath", entry.link));
        }
        records.extend(entry.records);
        let body: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.block(&Entry { path: b"pax", kind: b'x', ..Entry::default() }, body.len());
        self.data(&body);
        self.block(entry, entry.data.len());
        self.data(entry.data);
        self
    }

    fn block(&mut self, entry: &Entry, size: usize) {
        let mut block = [0u8; 512];
        let mut put = |at: usize, most: usize, bytes: &[u8]| {
            let bytes = &bytes[..bytes.len().min(most)];
            block[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(0, 100, entry.path);
        put(100, 8, format!("{:07o}\0", entry.mode).as_bytes());
        put(108, 8, b"0000000\0");
        put(116, 8, b"0000000\0");
        put(124, 12, format!("{size:011o}\0").as_bytes());
        put(136, 12, b"00000000000\0");
        put(148, 8, b"        ");
        put(156, 1, &[entry.kind]);
        put(157, 100, entry.link);
        put(257, 8, b"ustar\x0000");
        put(329, 8, format!("{:07o}\0", entry.device.0).as_bytes());
        put(337, 8, format!("{:07o}\0", entry.device.1).as_bytes());
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&block);
    }

    fn data(&mut self, data: &[u8]) {
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub fn end(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }
}

/// A pax record with its length.
pub fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
    let digits = (1..8).find(|digits| (body.len() + digits).to_string().len() == *digits).unwrap();
    [(body.len() + digits).to_string().as_bytes(), &body].concat()
}

/// Bytes that do not compress.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}
