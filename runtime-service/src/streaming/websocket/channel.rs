//! Kubernetes' channels in WebSocket messages: the first byte of a message says whose it is. Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes};

pub(crate) const STDIN: u8 = 0;
pub(crate) const STDOUT: u8 = 1;
pub(crate) const STDERR: u8 = 2;
pub(crate) const ERROR: u8 = 3;
pub(crate) const RESIZE: u8 = 4;
/// Since v5: its message names a channel that has ended.
pub(crate) const CLOSE: u8 = 255;

/// Sorts the pieces of messages by channel.
#[derive(Debug)]
pub(crate) struct Sorter {
    base64: bool,
    channel: Option<u8>,
    /// Less than four characters of base64.
    carry: Vec<u8>,
    /// The message's base64 has been padded: nothing may follow.
    padded: bool,
}

/// A message that is not base64 though it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message that is not base64")]
pub(crate) struct NotBase64;

impl Sorter {
    pub(crate) fn new(base64: bool) -> Self {
        Self { base64, channel: None, carry: Vec::new(), padded: false }
    }

    /// Channel and content of a piece; `None` for one without content.
    ///
    /// # Errors
    /// In the protocols in base64, a piece that is not.
    pub(crate) fn sort(
        &mut self,
        begins: bool,
        mut bytes: Bytes,
        ends: bool,
    ) -> Result<Option<(u8, Bytes)>, NotBase64> {
        if begins {
            self.channel = None;
            self.padded = false;
        }
        if self.channel.is_none() && bytes.has_remaining() {
            let first = bytes.get_u8();
            self.channel = Some(if self.base64 { first.wrapping_sub(b'0') } else { first });
        }
        let Some(channel) = self.channel else { return Ok(None) };
        let content = if self.base64 { self.decode(&bytes, ends)? } else { bytes };
        Ok((!content.is_empty()).then_some((channel, content)))
    }

    fn decode(&mut self, bytes: &[u8], ends: bool) -> Result<Bytes, NotBase64> {
        if self.padded && !bytes.is_empty() {
            return Err(NotBase64);
        }
        self.carry.extend_from_slice(bytes);
        let whole = self.carry.len() / 4 * 4;
        let content = STANDARD.decode(&self.carry[..whole]).map_err(|_| NotBase64)?;
        self.padded = self.carry[..whole].ends_with(b"=");
        if self.padded && whole < self.carry.len() {
            return Err(NotBase64);
        }
        self.carry.drain(..whole);
        if ends && !self.carry.is_empty() { Err(NotBase64) } else { Ok(content.into()) }
    }
}

/// A whole message for a channel: its head, and what follows.
pub(crate) fn message(channel: u8, bytes: &[u8], base64: bool) -> (Vec<u8>, Option<String>) {
    if base64 {
        let mut text = String::from((b'0' + channel) as char);
        STANDARD.encode_string(bytes, &mut text);
        (super::frame::message(true, text.len()), Some(text))
    } else {
        let mut head = super::frame::message(false, 1 + bytes.len());
        head.push(channel);
        (head, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sort(sorter: &mut Sorter, begins: bool, bytes: &'static [u8], ends: bool) -> Option<(u8, Vec<u8>)> {
        let sorted = sorter.sort(begins, Bytes::from_static(bytes), ends).expect("good");
        sorted.map(|(channel, bytes)| (channel, bytes.to_vec()))
    }

    #[test]
    fn a_message_is_its_first_bytes() {
        let mut sorter = Sorter::new(false);
        assert_eq!(sort(&mut sorter, true, b"\0he", false), Some((STDIN, b"he".to_vec())));
        assert_eq!(sort(&mut sorter, false, b"llo", true), Some((STDIN, b"llo".to_vec())));
        assert_eq!(sort(&mut sorter, true, b"", false), None);
        assert_eq!(sort(&mut sorter, false, b"\xff\0", true), Some((CLOSE, vec![STDIN])));
        assert_eq!(sort(&mut sorter, true, b"", true), None);
    }

    #[test]
    fn base64_may_come_in_any_pieces() {
        let mut sorter = Sorter::new(true);
        assert_eq!(sort(&mut sorter, true, b"0aG", false), None);
        assert_eq!(sort(&mut sorter, false, b"VsbG8=", true), Some((STDIN, b"hello".to_vec())));
        assert_eq!(sorter.sort(true, Bytes::from_static(b"0aGVs!"), true), Err(NotBase64));
        assert_eq!(Sorter::new(true).sort(true, Bytes::from_static(b"0aG"), true), Err(NotBase64));
        // Padding ends a message, in one piece as in many.
        for pieces in [&[&b"0aA==aA=="[..]][..], &[b"0aA==", b"aA=="], &[b"0aA==a", b"A=="], &[b"0aA=", b"=a"]] {
            let mut sorter = Sorter::new(true);
            let sorted: Vec<_> = pieces
                .iter()
                .enumerate()
                .map(|(at, piece)| sorter.sort(at == 0, Bytes::from_static(piece), false))
                .collect();
            assert_eq!(sorted.last(), Some(&Err(NotBase64)), "{pieces:?}");
        }
    }

    #[test]
    fn our_messages() {
        assert_eq!(message(STDOUT, b"hi", false), (vec![0x82, 3, STDOUT], None));
        assert_eq!(message(STDERR, b"hi", true), (vec![0x81, 5], Some("2aGk=".into())));
    }
}
