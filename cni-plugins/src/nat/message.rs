//! nftables messages as bytes: table, chain, rule. Only what `nat` needs.
//! Source of every number: include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h. Values are big-endian there.

use super::expression::Expression;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_EXCL: u16 = 0x200;
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
const NEWSET: u16 = SUBSYSTEM << 8 | 9;
const NEWELEMENT: u16 = SUBSYSTEM << 8 | 12;
const GETELEMENT: u16 = SUBSYSTEM << 8 | 13;
const DELELEMENT: u16 = SUBSYSTEM << 8 | 14;
const GETGEN: u16 = SUBSYSTEM << 8 | 16;

const FAMILY_UNSPEC: u8 = 0;
const FAMILY_INET: u8 = 1;

/// Most bytes of an element's comment, without its NUL. Source: nft's `NFTNL_UDATA_COMMENT_MAXLEN`.
const COMMENT_MAX: usize = 127;

/// Where a chain of ours is entered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// Where the source address of what leaves is changed.
    Source,
    /// Where the destination of what comes from elsewhere is changed.
    Destination,
    /// Where that of what the host itself sends is changed.
    LocalDestination,
    /// Before connections are looked up.
    Raw,
}

impl Place {
    /// Hook, priority, type. Source: `enum nf_inet_hooks`, `enum nf_ip_hook_priorities`.
    const fn parts(self) -> (u32, i32, &'static str) {
        match self {
            Place::Source => (4, 100, "nat"),
            Place::Destination => (0, -100, "nat"),
            Place::LocalDestination => (3, -100, "nat"),
            Place::Raw => (0, -300, "filter"),
        }
    }
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

    pub(super) fn add_chain(&mut self, chain: &str, place: Place) {
        let (hook, priority, kind) = place.parts();
        self.message(NEWCHAIN, NLM_F_CREATE, |m, table| {
            m.text(1, table);
            m.text(3, chain);
            m.nest(4, |m| {
                m.number(1, hook);
                m.number(2, priority as u32);
            });
            m.text(7, kind);
        });
    }

    /// A map from keys of `key` bytes to values of `data` bytes, each a chain of nft's types, which it shows them by.
    pub(super) fn add_map(&mut self, map: &str, (key_type, key): (u32, u32), (data_type, data): (u32, u32)) {
        const IS_MAP: u32 = 0x8;
        // A number within the transaction; rules here name their map.
        let id = self.starts.len() as u32;
        self.message(NEWSET, NLM_F_CREATE, |m, table| {
            m.text(1, table);
            m.text(2, map);
            m.number(3, IS_MAP);
            m.number(4, key_type);
            m.number(5, key);
            m.number(6, data_type);
            m.number(7, data);
            m.number(10, id);
        });
    }

    /// Adds one element, which must not be there. `comment` is shown by nft; 127 bytes at most.
    pub(super) fn add_element(&mut self, map: &str, key: &[u8], data: &[u8], comment: &str) {
        self.message(NEWELEMENT, NLM_F_CREATE | NLM_F_EXCL, |m, table| {
            elements(m, table, map, |m| {
                m.nest(1, |m| m.bytes(1, key));
                m.nest(2, |m| m.bytes(1, data));
                m.bytes(6, &to_user_data(comment));
            });
        });
    }

    /// Removes one element, which must be there.
    pub(super) fn remove_element(&mut self, map: &str, key: &[u8]) {
        self.message(DELELEMENT, 0, |m, table| elements(m, table, map, |m| m.nest(1, |m| m.bytes(1, key))));
    }

    /// The transaction is refused with `ERESTART` when the ruleset was changed since this generation.
    pub(super) fn only_at(&mut self, generation: u32) {
        // The first message is the batch's beginning; numbers of those after it are given at the end.
        let mut value = Vec::new();
        Attributes(&mut value).number(1, generation);
        let at = self.text.len();
        debug_assert_eq!(self.starts.len(), 1, "before any other message");
        self.text.extend(value);
        close(&mut self.text[..], 0);
        debug_assert!(self.text.len() > at);
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

/// Asks for every element of a map.
pub(super) fn list_elements(table: &str, map: &str) -> Vec<u8> {
    let mut text = Vec::new();
    header(&mut text, GETELEMENT, NLM_F_DUMP, FAMILY_INET, 0);
    let mut attributes = Attributes(&mut text);
    attributes.text(1, table);
    attributes.text(2, map);
    close(&mut text, 0);
    text
}

fn elements(m: &mut Attributes<'_>, table: &str, map: &str, element: impl FnOnce(&mut Attributes<'_>)) {
    m.text(1, table);
    m.text(2, map);
    m.nest(3, |m| m.nest(1, element));
}

/// Every attribute of a kind, in their order.
pub(super) fn attributes(mut attributes: &[u8], wanted: u16) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let Some([l0, l1, k0, k1]) = attributes.first_chunk().copied() {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let Some(value) = attributes.get(4..length) else { break };
        if u16::from_ne_bytes([k0, k1]) & !NLA_F_NESTED == wanted {
            found.push(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// An element's comment as nft keeps it: type 0, length, text with its NUL. Source: libnftnl's udata.h.
fn to_user_data(comment: &str) -> Vec<u8> {
    let text = &comment.as_bytes()[..comment.len().min(COMMENT_MAX)];
    [&[0, text.len() as u8 + 1], text, &[0]].concat()
}

/// The comment of user data; empty when it holds another thing.
pub(super) fn comment(user_data: &[u8]) -> String {
    match user_data {
        [0, length, rest @ ..] => rest.get(..usize::from(*length)).map(text).unwrap_or_default(),
        _ => String::new(),
    }
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

/// Writes attributes at the end of a message.
pub(super) struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = (4 + value.len()) as u16;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat());
    }

    pub(super) fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(super) fn nest(&mut self, kind: u16, write: impl FnOnce(&mut Attributes<'_>)) {
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
