//! The netfilter netlink socket: a batch is one transaction, applied whole or not at all.

use std::io;

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};

use super::message::{Batch, attribute, number as to_number};
use crate::link::wait_readable;

/// Largest datagram of a dump, in bytes. Source: `netlink_recvmsg`, which makes none larger.
const DUMP_MAX: usize = 32 << 10;
const NLMSG_HEADER: usize = 16;
/// Source: include/uapi/linux/netlink.h.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// A socket and the sequence number of its next message.
pub(super) struct NfSocket {
    socket: Socket,
    next: u32,
}

impl NfSocket {
    pub(super) fn open() -> io::Result<Self> {
        Ok(NfSocket { socket: Socket::new(NETLINK_NETFILTER)?, next: 1 })
    }

    /// Applies a batch; the error is that of its first message that was refused.
    pub(super) fn transact(&mut self, batch: Batch) -> io::Result<()> {
        let first = self.next;
        let (text, last) = batch.finish(first);
        self.next = last + 1;
        self.send(&text)?;
        self.acknowledged(first, last)
    }

    /// Asks one question whose answer does not interest us beyond that there is one.
    pub(super) fn ask(&mut self, mut message: Vec<u8>) -> io::Result<()> {
        let number = self.next;
        self.next += 1;
        message[8..12].copy_from_slice(&number.to_ne_bytes());
        self.send(&message)?;
        self.acknowledged(number, number)
    }

    /// Asks for a list: the payload of each answer.
    pub(super) fn dump(&mut self, mut message: Vec<u8>) -> io::Result<Vec<Vec<u8>>> {
        let number = self.next;
        self.next += 1;
        message[8..12].copy_from_slice(&number.to_ne_bytes());
        self.send(&message)?;
        let mut list = Vec::new();
        loop {
            wait_readable(&self.socket)?;
            let mut buffer = Vec::with_capacity(DUMP_MAX);
            self.socket.recv_from(&mut buffer, 0)?;
            for (kind, _, payload) in messages(&buffer).filter(|(_, of, _)| *of == number) {
                match kind {
                    NLMSG_DONE => return Ok(list),
                    NLMSG_ERROR => {
                        let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                        return Err(io::Error::from_raw_os_error(-code));
                    }
                    _ => list.push(payload.to_vec()),
                }
            }
        }
    }

    /// The number of the ruleset's generation: another one after each transaction.
    pub(super) fn generation(&mut self) -> io::Result<u32> {
        let number = self.next;
        self.next += 1;
        let mut message = super::message::get_generation();
        message[8..12].copy_from_slice(&number.to_ne_bytes());
        self.send(&message)?;
        let mut generation = None;
        loop {
            wait_readable(&self.socket)?;
            let mut buffer = Vec::with_capacity(4 << 10);
            self.socket.recv_from(&mut buffer, 0)?;
            for (kind, _, payload) in messages(&buffer).filter(|(_, of, _)| *of == number) {
                if kind != NLMSG_ERROR {
                    generation =
                        payload.get(super::message::HEADER..).and_then(|a| attribute(a, 1)).and_then(to_number);
                    continue;
                }
                let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                return match (code, generation) {
                    (0, Some(generation)) => Ok(generation),
                    (0, None) => Err(io::ErrorKind::InvalidData.into()),
                    (code, _) => Err(io::Error::from_raw_os_error(-code)),
                };
            }
        }
    }

    fn send(&self, text: &[u8]) -> io::Result<()> {
        let sent = self.socket.send_to(text, &SocketAddr::new(0, 0), 0)?;
        if sent == text.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Reads until the last message is acknowledged, which it is also after an error before it. Answers to
    /// what came before (a batch may be refused in several places) are passed over.
    fn acknowledged(&self, first: u32, last: u32) -> io::Result<()> {
        let mut outcome = Ok(());
        loop {
            wait_readable(&self.socket)?;
            let mut buffer = Vec::with_capacity(16 << 10);
            self.socket.recv_from(&mut buffer, 0)?;
            for (kind, number, payload) in messages(&buffer) {
                if kind != NLMSG_ERROR || !(first..=last).contains(&number) {
                    continue;
                }
                let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                if code != 0 && outcome.is_ok() {
                    outcome = Err(io::Error::from_raw_os_error(-code));
                }
                // A batch whose beginning is refused has no other answer.
                if number == last || number == first && outcome.is_err() {
                    return outcome;
                }
            }
        }
    }
}

/// Kind, sequence number and payload of each message of a datagram.
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let header: &[u8; NLMSG_HEADER] = datagram.first_chunk()?;
        let [l0, l1, l2, l3, k0, k1, _, _, n0, n1, n2, n3, ..] = *header;
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let payload = datagram.get(NLMSG_HEADER..length)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]), u32::from_ne_bytes([n0, n1, n2, n3]), payload))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_cut_into_its_messages() {
        let mut datagram = Vec::new();
        for (length, kind, number) in [(20u32, NLMSG_ERROR, 7u32), (17, 3, 8)] {
            datagram.extend(length.to_ne_bytes());
            datagram.extend(kind.to_ne_bytes());
            datagram.extend([0; 2]);
            datagram.extend(number.to_ne_bytes());
            datagram.extend([0; 4]);
            datagram.extend(vec![1; length as usize - NLMSG_HEADER]);
        }
        let cut: Vec<_> = messages(&datagram).collect();
        assert_eq!(cut, [(NLMSG_ERROR, 7, &[1u8; 4][..]), (3, 8, &[1u8; 1][..])]);
        datagram.truncate(19);
        assert_eq!(messages(&datagram).count(), 0);
    }
}
