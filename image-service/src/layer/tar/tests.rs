//! Archives as GNU tar and Python write them, and as an attacker would.

use super::*;

/// A ustar header with a right checksum.
fn header(name: &str, kind: u8, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0000644");
    block[108..115].copy_from_slice(b"0001750");
    block[116..123].copy_from_slice(b"0001751");
    block[124..136].copy_from_slice(format!("{size:012o}").as_bytes());
    block[136..147].copy_from_slice(b"00000000012");
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    sealed(block)
}

fn sealed(mut block: [u8; BLOCK]) -> [u8; BLOCK] {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn padded(body: &[u8]) -> Vec<u8> {
    let mut bytes = body.to_vec();
    bytes.resize(body.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
    let digits = (1..8).find(|digits| (body.len() + digits).to_string().len() == *digits).unwrap();
    [(body.len() + digits).to_string().as_bytes(), &body].concat()
}

fn pax(records: &[Vec<u8>]) -> Vec<u8> {
    let body = records.concat();
    [header("pax", b'x', body.len() as u64).to_vec(), padded(&body)].concat()
}

fn end() -> Vec<u8> {
    vec![0; 2 * BLOCK]
}

/// Path, size and data of every entry, or the refusal.
fn list(parts: &[Vec<u8>]) -> std::result::Result<Vec<(String, u64, Vec<u8>)>, String> {
    let bytes = parts.concat();
    let mut archive = Archive::new(bytes.as_slice());
    let mut entries = Vec::new();
    loop {
        match archive.next() {
            Ok(None) => return Ok(entries),
            Ok(Some(entry)) => {
                let mut data = Vec::new();
                let mut buffer = [0; 100];
                loop {
                    match archive.read(&mut buffer).map_err(|error| error.to_string())? {
                        0 => break,
                        got => data.extend_from_slice(&buffer[..got]),
                    }
                }
                entries.push((escape(&entry.path), entry.size, data));
            }
            Err(TarError::Refused(why)) => return Err(why),
            Err(TarError::Read(error)) => return Err(error.to_string()),
        }
    }
}

fn one(parts: &[Vec<u8>]) -> Entry {
    let bytes = parts.concat();
    Archive::new(bytes.as_slice()).next().unwrap().unwrap()
}

#[test]
fn plain_entries_are_read() {
    let archive = [header("a", b'0', 3).to_vec(), padded(b"abc"), header("d/", b'5', 77).to_vec(), end()];
    let expected = [("a".to_owned(), 3, b"abc".to_vec()), ("d/".to_owned(), 0, vec![])];
    assert_eq!(list(&archive).unwrap(), expected);
    assert_eq!(list(&[]).unwrap(), []);
    assert_eq!(list(&archive[..3]).unwrap().len(), 2, "an end without zero blocks is an end");
    let entry = one(&archive);
    assert_eq!((entry.mode, entry.uid, entry.gid, entry.mtime), (0o644, 0o1750, 0o1751, (10, 0)));
}

#[test]
fn pax_wins_over_the_header() {
    // TARmageddon: the header says 0, so a second reader would take the body for entries.
    let inner = [header("smuggled", b'0', 0).to_vec(), end()].concat();
    let size = inner.len() as u64;
    let grown =
        [pax(&[record("size", size.to_string().as_bytes())]), header("a", b'0', 0).to_vec(), padded(&inner), end()];
    assert_eq!(list(&grown).unwrap(), [("a".to_owned(), size, inner.clone())]);
    let shrunk = [pax(&[record("size", b"0")]), header("a", b'0', size).to_vec(), inner.clone()];
    assert_eq!(list(&shrunk).unwrap().iter().map(|entry| entry.0.as_str()).collect::<Vec<_>>(), ["a", "smuggled"]);
    let names = [
        pax(&[
            record("path", &[b'n'; 300]),
            record("uid", b"4294967294"),
            record("mtime", b"-1.25"),
            record("SCHILY.xattr.user.a", b"\0\n="),
        ]),
        header("short", b'0', 0).to_vec(),
    ];
    let entry = one(&names);
    assert_eq!((entry.path.len(), entry.uid, entry.mtime), (300, 4_294_967_294, (-2, 750_000_000)));
    assert_eq!(entry.xattrs, [(b"user.a".to_vec(), b"\0\n=".to_vec())]);
}

#[test]
fn gnu_long_names_are_read() {
    let name = [b'l'; 250];
    let long = |kind| [header("././@LongLink", kind, 251).to_vec(), padded(&[&name[..], b"\0"].concat())].concat();
    let entry = one(&[long(b'L'), long(b'K'), header("s", b'2', 0).to_vec()]);
    assert_eq!(entry.path, name);
    assert_eq!(entry.kind, Kind::Symlink(name.to_vec()));
    let both = one(&[long(b'L'), pax(&[record("path", b"p")]), header("s", b'0', 0).to_vec()]);
    assert_eq!(both.path, b"p");
}

#[test]
fn sparse_maps_of_all_formats_say_the_same() {
    let expected = Some(vec![Extent { offset: 2, length: 3 }, Extent { offset: 10, length: 0 }]);
    let mut old = header("s", b'S', 3);
    old[257..265].copy_from_slice(b"ustar  \0");
    old[386..398].copy_from_slice(b"00000000002\0");
    old[398..410].copy_from_slice(b"00000000003\0");
    old[410..422].copy_from_slice(b"00000000012\0");
    old[422..434].copy_from_slice(b"00000000000\0");
    old[483..495].copy_from_slice(b"00000000012\0");
    let file = || [header("s", b'0', 3).to_vec(), padded(b"abc")].concat();
    let zero = pax(&[
        record("GNU.sparse.size", b"10"),
        record("GNU.sparse.numblocks", b"2"),
        record("GNU.sparse.offset", b"2"),
        record("GNU.sparse.numbytes", b"3"),
        record("GNU.sparse.offset", b"10"),
        record("GNU.sparse.numbytes", b"0"),
    ]);
    let first = pax(&[record("GNU.sparse.size", b"10"), record("GNU.sparse.map", b"2,3,10,0")]);
    let second = pax(&[
        record("GNU.sparse.major", b"1"),
        record("GNU.sparse.minor", b"0"),
        record("GNU.sparse.name", b"s"),
        record("GNU.sparse.realsize", b"10"),
    ]);
    let mapped = [header("x", b'0', 515).to_vec(), padded(b"2\n2\n3\n10\n0\n"), padded(b"abc")].concat();
    for archive in
        [vec![sealed(old).to_vec(), padded(b"abc")], vec![zero, file()], vec![first, file()], vec![second, mapped]]
    {
        let entry = one(&archive);
        assert_eq!((&entry.extents, entry.size, entry.path.as_slice()), (&expected, 10, &b"s"[..]));
        assert_eq!(list(&archive).unwrap()[0].2, b"abc");
    }
}

#[test]
fn what_has_two_readings_or_none_is_refused() {
    let file = || header("a", b'0', 0).to_vec();
    let raw = |body: &[u8]| [header("pax", b'x', body.len() as u64).to_vec(), padded(body)].concat();
    let field = |at: usize, bytes: &[u8]| {
        let mut block = header("a", b'0', 0);
        block[at..at + bytes.len()].copy_from_slice(bytes);
        sealed(block).to_vec()
    };
    let sparse = |map: &[u8]| {
        let records = pax(&[record("GNU.sparse.size", b"10"), record("GNU.sparse.map", map)]);
        [records, header("s", b'0', 3).to_vec(), padded(b"abc")].concat()
    };
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("one byte", vec![vec![b'a']]),
        ("511 bytes", vec![vec![0; 511]]),
        ("a zip", vec![[b"PK\x03\x04".to_vec(), vec![7; 600]].concat()]),
        (
            "wrong checksum",
            vec![{
                let mut block = header("a", b'0', 0);
                block[0] = b'b';
                block.to_vec()
            }],
        ),
        ("one zero block", vec![vec![0; BLOCK], file()]),
        ("short data", vec![header("a", b'0', 1 << 33).to_vec(), padded(b"abc")]),
        ("type Z", vec![header("a", b'Z', 0).to_vec()]),
        ("contiguous", vec![header("a", b'7', 0).to_vec()]),
        ("volume header", vec![header("a", b'V', 0).to_vec()]),
        ("negative size", vec![field(124, &[0xff; 12])]),
        ("huge size", vec![field(124, &[&[0x80, 0, 0, 0][..], &[0xff; 8]].concat())]),
        ("negative mode", vec![field(100, &[0xff; 8])]),
        ("uid 2^32-1", vec![pax(&[record("uid", b"4294967295")]), file()]),
        ("uid negative", vec![field(108, &[0xff; 8])]),
        ("uid text", vec![field(108, b"root\0\0\0\0")]),
        (
            "bad device",
            vec![{
                let mut block = header("a", b'3', 0);
                block[329..337].copy_from_slice(b"0010000\0");
                sealed(block).to_vec()
            }],
        ),
        ("pax length 0", vec![raw(b"0 path=a\n"), file()]),
        ("pax too long", vec![raw(b"99 path=a\n"), file()]),
        ("pax 10^20", vec![raw(b"100000000000000000000 path=a\n"), file()]),
        ("pax no newline", vec![raw(b"9 path=ab"), file()]),
        ("pax no key", vec![raw(b"6 =ab\n"), file()]),
        ("pax plus sign", vec![raw(b"+10 path=a\n"), file()]),
        ("pax twice the key", vec![pax(&[record("path", b"a"), record("path", b"b")]), file()]),
        ("pax NUL", vec![pax(&[record("path", b"a\0b")]), file()]),
        ("pax size text", vec![pax(&[record("size", b"1k")]), file()]),
        ("pax size empty", vec![pax(&[record("size", b"")]), file()]),
        ("pax mtime text", vec![pax(&[record("mtime", b"1.x")]), file()]),
        ("pax path 1 MiB", vec![pax(&[record("path", &vec![b'a'; 1 << 19])]), file()]),
        ("pax of 100 MiB", vec![header("pax", b'x', 100 << 20).to_vec()]),
        ("pax after pax", vec![pax(&[record("path", b"a")]), pax(&[record("path", b"b")]), file()]),
        ("pax then end", vec![pax(&[record("path", b"a")]), end()]),
        (
            "global path",
            vec![{
                let body = record("path", b"a");
                [header("g", b'g', body.len() as u64).to_vec(), padded(&body)].concat()
            }],
        ),
        ("xattr without a name", vec![pax(&[record("SCHILY.xattr.", b"v")]), file()]),
        ("xattr of 64 KiB + 1", vec![pax(&[record("SCHILY.xattr.user.a", &vec![0; (64 << 10) + 1])]), file()]),
        ("long name of 1 GiB", vec![header("l", b'L', 1 << 30).to_vec()]),
        (
            "two long names",
            vec![header("l", b'L', 2).to_vec(), padded(b"a\0"), header("l", b'L', 2).to_vec(), padded(b"b\0")],
        ),
        ("sparse overlap", vec![sparse(b"0,2,1,1")]),
        ("sparse descending", vec![sparse(b"5,2,1,1")]),
        ("sparse outside", vec![sparse(b"8,3")]),
        ("sparse other sum", vec![sparse(b"0,4")]),
        ("sparse odd", vec![sparse(b"0,3,4")]),
        ("sparse overflow", vec![sparse(b"9223372036854775807,9223372036854775807")]),
        (
            "sparse map of 10^9",
            vec![
                pax(&[record("GNU.sparse.major", b"1"), record("GNU.sparse.realsize", b"10")]),
                header("s", b'0', 1024).to_vec(),
                padded(b"1000000000\n"),
            ],
        ),
        (
            "sparse of 2^62",
            vec![
                pax(&[record("GNU.sparse.size", b"4611686018427387904"), record("GNU.sparse.map", b"")]),
                header("s", b'0', 0).to_vec(),
            ],
        ),
    ];
    for (name, archive) in cases {
        assert!(list(&archive).is_err(), "{name}: {:?}", list(&archive));
    }
}

#[test]
fn names_are_bytes() {
    let archive = [pax(&[record("path", b"\xff\xfe\x1b[31m\n")]), header("a", b'0', 0).to_vec()];
    assert_eq!(one(&archive).path, b"\xff\xfe\x1b[31m\n");
    assert!(!escape(&one(&archive).path).contains(['\x1b', '\n']));
}
