//! nftables messages as bytes: table, chain, rule. Only what `nat` needs.
//! Source of every number: include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h. Values are big-endian there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use berth_api::cni::result::Cidr;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 0x8000;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;

const NEWTABLE: u16 = SUBSYSTEM << 8;
const NEWCHAIN: u16 = SUBSYSTEM << 8 | 3;
const GETCHAIN: u16 = SUBSYSTEM << 8 | 4;
const NEWRULE: u16 = SUBSYSTEM << 8 | 6;
const GETRULE: u16 = SUBSYSTEM << 8 | 7;
const DELRULE: u16 = SUBSYSTEM << 8 | 8;
const GETGEN: u16 = SUBSYSTEM << 8 | 16;

const FAMILY_UNSPEC: u8 = 0;
const FAMILY_INET: u8 = 1;

const HOOK_POSTROUTING: u32 = 4;
/// Where source addresses are changed. Source: `NF_IP_PRI_NAT_SRC`.
const PRIORITY_SRCNAT: u32 = 100;
/// The first general register; the verdict's is 0.
const REGISTER: u32 = 1;
const EQUAL: u32 = 0;
const UNEQUAL: u32 = 1;

/// An address family, as rules tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    pub(super) fn multicast(self) -> Cidr {
        let (first, prefix) = match self {
            Family::V4 => (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4),
            Family::V6 => (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
        };
        // Both prefixes are shorter than their addresses.
        Cidr::new(first, prefix).unwrap_or_else(|| unreachable!())
    }

    /// `NFPROTO_*`.
    const fn protocol(self) -> u8 {
        match self {
            Family::V4 => 2,
            Family::V6 => 10,
        }
    }

    /// Bytes of an address.
    const fn width(self) -> u32 {
        match self {
            Family::V4 => 4,
            Family::V6 => 16,
        }
    }

    /// Offset of the source address in the header; the destination follows it.
    const fn source(self) -> u32 {
        match self {
            Family::V4 => 12,
            Family::V6 => 8,
        }
    }
}

/// One step of a rule; all work on one register.
#[derive(Debug)]
pub(super) enum Expression {
    /// Goes on only with packets of the family.
    IsFamily(Family),
    /// Loads the source address.
    LoadSource(Family),
    /// Loads the destination address.
    LoadDestination(Family),
    /// Goes on only if the loaded address is in the network; spoils the register.
    IsWithin(Cidr),
    /// Goes on only if it is not; spoils the register.
    IsOutside(Cidr),
    /// The source address becomes that of the device the packet leaves by.
    Masquerade,
}

/// Messages of one transaction.
pub(super) struct Batch {
    table: String,
    text: Vec<u8>,
    /// Where each message begins.
    starts: Vec<usize>,
}

impl Batch {
    pub(super) fn new(table: &str) -> Self {
        let mut batch = Batch { table: table.into(), text: Vec::with_capacity(1024), starts: Vec::new() };
        batch.frame(BATCH_BEGIN);
        batch
    }

    /// The bytes, numbered from `first`, and the number of the last message that is acknowledged.
    pub(super) fn finish(mut self, first: u32) -> (Vec<u8>, u32) {
        let last = self.starts.len() - 1;
        // One acknowledgement, of the last real message, tells that all were taken.
        let flags = self.starts[last] + 6;
        self.text[flags] |= NLM_F_ACK as u8;
        self.frame(BATCH_END);
        for (i, start) in self.starts.iter().enumerate() {
            self.text[start + 8..start + 12].copy_from_slice(&(first + i as u32).to_ne_bytes());
        }
        (self.text, first + last as u32)
    }

    pub(super) fn add_table(&mut self) {
        self.message(NEWTABLE, NLM_F_CREATE, |m, table| m.text(1, table));
    }

    pub(super) fn add_masquerading_chain(&mut self, chain: &str) {
        self.message(NEWCHAIN, NLM_F_CREATE, |m, table| {
            m.text(1, table);
            m.text(3, chain);
            m.nest(4, |m| {
                m.number(1, HOOK_POSTROUTING);
                m.number(2, PRIORITY_SRCNAT);
            });
            m.text(7, "nat");
        });
    }

    pub(super) fn flush_chain(&mut self, chain: &str) {
        self.message(DELRULE, 0, |m, table| {
            m.text(1, table);
            m.text(2, chain);
        });
    }

    pub(super) fn add_rule(&mut self, chain: &str, expressions: &[Expression]) {
        self.message(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |m, table| {
            m.text(1, table);
            m.text(2, chain);
            m.nest(4, |m| expressions.iter().for_each(|e| e.write(m)));
        });
    }

    fn message(&mut self, kind: u16, flags: u16, write: impl FnOnce(&mut Attributes<'_>, &str)) {
        let start = self.text.len();
        self.starts.push(start);
        header(&mut self.text, kind, flags, FAMILY_INET, 0);
        write(&mut Attributes(&mut self.text), &self.table);
        close(&mut self.text, start);
    }

    /// The first and last message of a batch, which say whose it is.
    fn frame(&mut self, kind: u16) {
        let start = self.text.len();
        self.starts.push(start);
        header(&mut self.text, kind, 0, FAMILY_UNSPEC, SUBSYSTEM);
        close(&mut self.text, start);
    }
}

/// Asks for a chain; `ENOENT` is the answer when it, or its table, is not there.
pub(super) fn get_chain(table: &str, chain: &str) -> Vec<u8> {
    let mut text = Vec::new();
    header(&mut text, GETCHAIN, NLM_F_ACK, FAMILY_INET, 0);
    let mut attributes = Attributes(&mut text);
    attributes.text(1, table);
    attributes.text(3, chain);
    close(&mut text, 0);
    text
}

/// Asks for every chain of every table.
pub(super) fn list_chains() -> Vec<u8> {
    let mut text = Vec::new();
    header(&mut text, GETCHAIN, NLM_F_DUMP, FAMILY_UNSPEC, 0);
    close(&mut text, 0);
    text
}

/// Asks for every rule of a table.
pub(super) fn list_rules(family: u8, table: &str) -> Vec<u8> {
    let mut text = Vec::new();
    header(&mut text, GETRULE, NLM_F_DUMP, family, 0);
    Attributes(&mut text).text(1, table);
    close(&mut text, 0);
    text
}

/// Length of nfnetlink's own header, which comes before the attributes; its first byte is the family.
pub(super) const HEADER: usize = 4;

/// The first attribute of a kind.
pub(super) fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let [l0, l1, k0, k1] = *attributes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = attributes.get(4..length)?;
        if u16::from_ne_bytes([k0, k1]) & !NLA_F_NESTED == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

/// An attribute as text, without the NUL that ends it.
pub(super) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

/// An attribute as a number.
pub(super) fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// Asks for the number of the ruleset's generation, which every kernel with nftables has.
pub(super) fn get_generation() -> Vec<u8> {
    let mut text = Vec::new();
    header(&mut text, GETGEN, NLM_F_ACK, FAMILY_UNSPEC, 0);
    close(&mut text, 0);
    text
}

fn header(text: &mut Vec<u8>, kind: u16, flags: u16, family: u8, resource: u16) {
    text.extend([0; 4]);
    text.extend(kind.to_ne_bytes());
    text.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    text.extend([0; 8]);
    text.extend([family, 0]);
    text.extend(resource.to_be_bytes());
}

fn close(text: &mut [u8], start: usize) {
    let length = (text.len() - start) as u32;
    text[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

impl Expression {
    fn write(&self, m: &mut Attributes<'_>) {
        match self {
            Expression::IsFamily(family) => {
                // Key 15: the family that the packet really is of.
                named(m, "meta", |m| {
                    m.number(1, REGISTER);
                    m.number(2, 15);
                });
                compare(m, EQUAL, &[family.protocol()]);
            }
            Expression::LoadSource(family) => load(m, family.source(), family.width()),
            Expression::LoadDestination(family) => load(m, family.source() + family.width(), family.width()),
            Expression::IsWithin(network) => compare_prefix(m, EQUAL, *network),
            Expression::IsOutside(network) => compare_prefix(m, UNEQUAL, *network),
            Expression::Masquerade => named(m, "masq", |_| {}),
        }
    }
}

fn named(m: &mut Attributes<'_>, name: &str, write: impl FnOnce(&mut Attributes<'_>)) {
    m.nest(1, |m| {
        m.text(1, name);
        m.nest(2, write);
    });
}

/// Loads `width` bytes of the network header.
fn load(m: &mut Attributes<'_>, offset: u32, width: u32) {
    named(m, "payload", |m| {
        m.number(1, REGISTER);
        m.number(2, 1);
        m.number(3, offset);
        m.number(4, width);
    });
}

fn compare_prefix(m: &mut Attributes<'_>, how: u32, network: Cidr) {
    let width = octets(network.address()).len();
    named(m, "bitwise", |m| {
        m.number(1, REGISTER);
        m.number(2, REGISTER);
        m.number(3, width as u32);
        m.nest(4, |m| m.bytes(1, &mask(network.prefix(), width)));
        m.nest(5, |m| m.bytes(1, &vec![0; width]));
    });
    compare(m, how, &octets(network.network().address()));
}

/// Goes on if the register is `value`, or is not.
fn compare(m: &mut Attributes<'_>, how: u32, value: &[u8]) {
    named(m, "cmp", |m| {
        m.number(1, REGISTER);
        m.number(2, how);
        m.nest(3, |m| m.bytes(1, value));
    });
}

fn mask(prefix: u8, width: usize) -> Vec<u8> {
    let bits_of = |byte: usize| usize::from(prefix).saturating_sub(byte * 8).min(8) as u32;
    (0..width).map(|byte| u8::MAX.checked_shl(8 - bits_of(byte)).unwrap_or(0)).collect()
}

/// Writes attributes at the end of a message.
struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = (4 + value.len()) as u16;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn text(&mut self, kind: u16, value: &str) {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat());
    }

    fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    fn nest(&mut self, kind: u16, write: impl FnOnce(&mut Attributes<'_>)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend((kind | NLA_F_NESTED).to_ne_bytes());
        write(&mut Attributes(self.0));
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_has_the_bits_of_its_prefix() {
        for (prefix, width, expected) in [
            (0, 4, vec![0, 0, 0, 0]),
            (4, 4, vec![0xf0, 0, 0, 0]),
            (20, 4, vec![255, 255, 0xf0, 0]),
            (32, 4, vec![255; 4]),
        ] {
            assert_eq!(mask(prefix, width), expected, "/{prefix}");
        }
        assert_eq!(mask(64, 16), [[255; 8], [0; 8]].concat());
    }

    #[test]
    fn a_batch_is_numbered_and_asks_for_one_acknowledgement() {
        let mut batch = Batch::new("t");
        batch.add_table();
        batch.flush_chain("c");
        let (text, last) = batch.finish(5);
        let mut at = 0;
        let mut seen = Vec::new();
        while at < text.len() {
            let word = |i: usize| u32::from_ne_bytes(text[at + i..at + i + 4].try_into().unwrap());
            seen.push((word(4) as u16, word(8), text[at + 6] & NLM_F_ACK as u8 != 0));
            assert_eq!(word(0) % 4, 0);
            at += word(0) as usize;
        }
        assert_eq!(seen, [(BATCH_BEGIN, 5, false), (NEWTABLE, 6, false), (DELRULE, 7, true), (BATCH_END, 8, false)]);
        assert_eq!(last, 7);
    }
}
