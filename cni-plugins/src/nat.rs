//! Masquerade for pods, in one static nftables table over netlink; no `nft` is executed.
//!
//! ```text
//! table inet TABLE {
//!   chain masq-10.88.0.0/16 { type nat hook postrouting priority srcnat
//!     ip saddr 10.88.0.0/16 ip daddr != 10.88.0.0/16 ip daddr != 224.0.0.0/4 masquerade }
//! }
//! ```
//!
//! One chain per subnet, made whole in one transaction by whoever finds it missing, and kept. Nothing in it is of one
//! pod: deleting an element costs 9 ms, since the kernel lets no nftables socket close before a grace period has
//! passed after any deletion (`nft_rcv_nl_event`).

mod expression;
mod forward;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod message;
mod publish;
mod socket;

use std::io;

use berth_api::cni::result::Cidr;
use nix::errno::Errno;

use crate::error::Error;
use crate::link::is;
use expression::{Expression, Family};
pub(crate) use forward::obstacles;
use message::{Batch, Place};
pub(crate) use publish::{Ports, Protocol, Published};
use socket::NfSocket;

/// The table of one or more networks.
pub(crate) struct Masquerade<'a> {
    table: &'a str,
    socket: NfSocket,
}

impl<'a> Masquerade<'a> {
    /// Opens a socket in the namespace that the thread is in; touches nothing.
    pub(crate) fn open(table: &'a str) -> Result<Self, Error> {
        let socket = NfSocket::open().map_err(Error::kernel("open netfilter socket for table", table))?;
        Ok(Masquerade { table, socket })
    }

    /// Masquerades what comes from `subnet` and leaves it.
    pub(crate) fn ensure(&mut self, subnet: Cidr) -> Result<(), Error> {
        if self.has(subnet)? {
            return Ok(());
        }
        let made = step!("cni_add::nft", self.socket.transact(batch(self.table, subnet)));
        made.map_err(Error::kernel("masquerade", self.thing(subnet)))
    }

    /// Whether it is. Somebody may have flushed the ruleset since.
    pub(crate) fn has(&mut self, subnet: Cidr) -> Result<bool, Error> {
        match self.socket.ask(message::get_chain(self.table, &chain_of(subnet))) {
            Ok(()) => Ok(true),
            Err(e) if is(&e, Errno::ENOENT) => Ok(false),
            Err(e) => Err(Error::kernel("look for", self.thing(subnet))(e)),
        }
    }

    /// Whether the kernel has nftables and we may use them.
    pub(crate) fn usable(&mut self) -> io::Result<()> {
        self.socket.ask(message::get_generation())
    }

    fn thing(&self, subnet: Cidr) -> String {
        format!("{subnet} in nftables table {}", self.table)
    }
}

/// Name of a subnet's chain. Letters that `nft` can read back: it takes no colon.
fn chain_of(subnet: Cidr) -> String {
    format!("masq-{}", subnet.to_string().replace(':', "_"))
}

/// The whole of a subnet. The rule is replaced and not added: two calls at once leave one.
fn batch(table: &str, subnet: Cidr) -> Batch {
    let chain = chain_of(subnet);
    let family = Family::of(subnet.address());
    let mut batch = Batch::new(table);
    batch.add_table();
    batch.add_chain(&chain, Place::Source);
    batch.flush_chain(&chain);
    let rule = [
        Expression::IsFamily(family),
        Expression::LoadSource(family),
        Expression::IsWithin(subnet),
        Expression::LoadDestination(family),
        Expression::IsOutside(subnet),
        Expression::LoadDestination(family),
        Expression::IsOutside(family.multicast()),
        Expression::Masquerade,
    ];
    batch.add_rule(&chain, &rule);
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_named_so_that_nft_can_read_it() {
        assert_eq!(chain_of("10.88.0.0/16".parse().unwrap()), "masq-10.88.0.0/16");
        assert_eq!(chain_of("fd00:1::/64".parse().unwrap()), "masq-fd00_1__/64");
    }
}
