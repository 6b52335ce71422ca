//! Published ports: what arrives at a port of the host goes to a port of a pod. In the same table as masquerade:
//!
//! ```text
//! table inet TABLE {
//!   map ports4 { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
//!     elements = { 0.0.0.0 . tcp . 8080 comment "CONTAINER-ID,eth0 default/web" : 10.88.0.2 . 80 } }
//!   chain publish { type nat hook prerouting priority dstnat          (publish-local: hook output)
//!     fib daddr type local dnat ip to ip daddr . meta l4proto . th dport map @ports4
//!     fib daddr type local dnat ip to 0.0.0.0 . meta l4proto . th dport map @ports4 }
//!   chain publish-10.88.0.0/16 { type nat hook postrouting priority srcnat
//!     ct status dnat ip saddr { 10.88.0.0/16, 127.0.0.0/8 } ip daddr 10.88.0.0/16 masquerade }
//!   chain guard-BRIDGE { type filter hook prerouting priority raw
//!     iifname BRIDGE ip saddr 127.0.0.0/8 drop
//!     iifname BRIDGE ip daddr 127.0.0.0/8 drop }
//! }
//! ```
//!
//! and ports6 beside ports4. Chains and maps are static; a pod adds and removes elements, and nothing is executed. The
//! address 0 in a key is any address of the host. An element's comment is its owner: who holds a port is asked of the
//! kernel, and a change made between the question and the transaction refuses the transaction.
//!
//! From 127.0.0.1 the packet must leave by the bridge, which the kernel allows only with `route_localnet`; the guard
//! keeps pods from reaching what listens on the host's 127.0.0.1 by it (CVE-2020-8558). ::1 has no such switch.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use berth_api::cni::config::Attachment;
use berth_api::cni::result::Cidr;
use nix::errno::Errno;

use super::expression::{Expression, Family, octets};
use super::message::{self, Batch, Place, attribute, attributes};
use super::socket::NfSocket;
use crate::error::Error;
use crate::link::is;

const PUBLISH: &str = "publish";
const PUBLISH_LOCAL: &str = "publish-local";

/// How often a transaction is tried against a ruleset that others change all the while.
const ROUNDS: usize = 100;

/// A transport protocol that has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// `IPPROTO_*`.
    const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}

/// One port of the host and where it leads. Both addresses are of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Published {
    pub(crate) protocol: Protocol,
    /// Of the host; unspecified (0.0.0.0, ::) is every one.
    pub(crate) host: IpAddr,
    pub(crate) host_port: u16,
    /// Of the pod.
    pub(crate) pod: IpAddr,
    pub(crate) pod_port: u16,
}

impl Published {
    fn family(&self) -> Family {
        Family::of(self.pod)
    }

    fn key(&self) -> Vec<u8> {
        let protocol = [self.protocol.number(), 0, 0, 0];
        [&octets(self.host)[..], &protocol, &self.host_port.to_be_bytes(), &[0, 0]].concat()
    }

    fn data(&self) -> Vec<u8> {
        [&octets(self.pod)[..], &self.pod_port.to_be_bytes(), &[0, 0]].concat()
    }

    /// Both want packets of one kind.
    fn clashes(&self, other: &Published) -> bool {
        let same = |a: IpAddr, b: IpAddr| a == b || a.is_unspecified() || b.is_unspecified();
        self.family() == other.family()
            && (self.protocol, self.host_port) == (other.protocol, other.host_port)
            && same(self.host, other.host)
    }

    fn decode(family: Family, key: &[u8], data: &[u8]) -> Option<Self> {
        let width = family.width() as usize;
        let address = |bytes: &[u8]| match family {
            Family::V4 => bytes.first_chunk::<4>().map(|b| IpAddr::V4(Ipv4Addr::from(*b))),
            Family::V6 => bytes.first_chunk::<16>().map(|b| IpAddr::V6(Ipv6Addr::from(*b))),
        };
        let port = |bytes: Option<&[u8]>| bytes?.first_chunk::<2>().map(|b| u16::from_be_bytes(*b));
        let protocol = match key.get(width)? {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            _ => return None,
        };
        Some(Published {
            protocol,
            host: address(key)?,
            host_port: port(key.get(width + 4..))?,
            pod: address(data)?,
            pod_port: port(data.get(width..))?,
        })
    }
}

impl std::fmt::Display for Published {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let host = std::net::SocketAddr::new(self.host, self.host_port);
        write!(f, "{host}/{}", self.protocol.name())
    }
}

/// An element and whose it is: container id and interface, then a name for people.
#[derive(Clone, Debug)]
pub(super) struct Element {
    pub(super) published: Published,
    pub(super) comment: String,
}

/// Whose comment it is.
fn is_of(comment: &str, owner: &Attachment) -> bool {
    comment.split(' ').next() == Some(&prefix(owner))
}

fn prefix(owner: &Attachment) -> String {
    format!("{},{}", owner.container_id, owner.ifname)
}

/// The ports of one table.
pub(crate) struct Ports<'a> {
    table: &'a str,
    socket: NfSocket,
}

impl<'a> Ports<'a> {
    /// Opens a socket in the namespace that the thread is in; touches nothing.
    pub(crate) fn open(table: &'a str) -> Result<Self, Error> {
        let socket = NfSocket::open().map_err(Error::kernel("open netfilter socket for table", table))?;
        Ok(Ports { table, socket })
    }

    /// Publishes exactly these for `owner`, called `name` by people: all of them or, on an error, what was there.
    ///
    /// # Errors
    /// `Error::PortTaken` names the holder of a port that is somebody else's.
    pub(crate) fn publish(
        &mut self,
        (owner, name): (&Attachment, &str),
        wanted: &[Published],
        subnets: &[Cidr],
        bridge: &str,
    ) -> Result<(), Error> {
        let comment = format!("{} {name}", prefix(owner));
        let table = self.table;
        let refused = |e| Error::kernel("publish ports in nftables table", table)(e);
        for _ in 0..ROUNDS {
            let generation = self.socket.generation().map_err(refused)?;
            let there = self.elements()?;
            for one in wanted {
                let holder = there.iter().find(|e| e.published.clashes(one) && !is_of(&e.comment, owner));
                if let Some(holder) = holder {
                    return Err(Error::PortTaken { port: one.to_string(), holder: holder_of(&holder.comment) });
                }
            }
            let mut batch = Batch::new(self.table);
            batch.only_at(generation);
            self.add_static(&mut batch, subnets, bridge)?;
            let mine = || there.iter().filter(|e| is_of(&e.comment, owner));
            for old in mine().filter(|e| !wanted.contains(&e.published)) {
                batch.remove_element(map_of(old.published.family()), &old.published.key());
            }
            for new in wanted.iter().filter(|w| !mine().any(|e| e.published == **w)) {
                batch.add_element(map_of(new.family()), &new.key(), &new.data(), &comment);
            }
            match step!("cni_add::publish", self.socket.transact(batch)) {
                Err(e) if is_restart(&e) => continue,
                done => return done.map_err(refused),
            }
        }
        Err(refused(io::ErrorKind::ResourceBusy.into()))
    }

    /// Ends every publication of the owner; there may be none.
    pub(crate) fn withdraw(&mut self, owner: &Attachment) -> Result<(), Error> {
        for _ in 0..ROUNDS {
            let mut batch = Batch::new(self.table);
            let generation = self.socket.generation().map_err(Error::kernel("look at nftables table", self.table))?;
            batch.only_at(generation);
            let mine: Vec<_> = self.elements()?.into_iter().filter(|e| is_of(&e.comment, owner)).collect();
            if mine.is_empty() {
                return Ok(());
            }
            for Element { published, .. } in &mine {
                batch.remove_element(map_of(published.family()), &published.key());
            }
            match step!("cni_del::withdraw", self.socket.transact(batch)) {
                Err(e) if is_restart(&e) => continue,
                done => return done.map_err(Error::kernel("withdraw ports from nftables table", self.table)),
            }
        }
        Err(Error::kernel("withdraw ports from nftables table", self.table)(io::ErrorKind::ResourceBusy.into()))
    }

    /// The first of these that is not published for the owner.
    pub(crate) fn missing(&mut self, owner: &Attachment, wanted: &[Published]) -> Result<Option<Published>, Error> {
        let there = self.elements()?;
        let is_there = |w: &Published| there.iter().any(|e| e.published == *w && is_of(&e.comment, owner));
        Ok(wanted.iter().find(|w| !is_there(w)).copied())
    }

    /// Every element of both maps.
    fn elements(&mut self) -> Result<Vec<Element>, Error> {
        let mut all = Vec::new();
        for family in [Family::V4, Family::V6] {
            let listed = match self.socket.dump(message::list_elements(self.table, map_of(family))) {
                Err(e) if is(&e, Errno::ENOENT) => continue,
                listed => listed.map_err(Error::kernel("list the published ports of nftables table", self.table))?,
            };
            for answer in &listed {
                let list = answer.get(message::HEADER..).and_then(|a| attribute(a, 3)).unwrap_or_default();
                all.extend(attributes(list, 1).into_iter().filter_map(|element| decode(family, element)));
            }
        }
        Ok(all)
    }

    fn has(&mut self, chain: &str) -> Result<bool, Error> {
        match self.socket.ask(message::get_chain(self.table, chain)) {
            Ok(()) => Ok(true),
            Err(e) if is(&e, Errno::ENOENT) => Ok(false),
            Err(e) => Err(Error::kernel("look for a chain in nftables table", self.table)(e)),
        }
    }

    /// What of the chains and maps is not there.
    fn add_static(&mut self, batch: &mut Batch, subnets: &[Cidr], bridge: &str) -> Result<(), Error> {
        batch.add_table();
        if !self.has(PUBLISH_LOCAL)? {
            add_maps_and_chains(batch);
        }
        for subnet in subnets {
            let chain = chain_of(*subnet);
            if !self.has(&chain)? {
                batch.add_chain(&chain, Place::Source);
                batch.flush_chain(&chain);
                add_source_rules(batch, &chain, *subnet);
            }
        }
        let guard = format!("guard-{bridge}");
        if !self.has(&guard)? {
            batch.add_chain(&guard, Place::Raw);
            batch.flush_chain(&guard);
            let family = Family::V4;
            for address in [Expression::LoadSource(family), Expression::LoadDestination(family)] {
                let is_v4 = Expression::IsFamily(family);
                let rule =
                    [Expression::CameBy(bridge), is_v4, address, Expression::IsWithin(loopback()), Expression::Drop];
                batch.add_rule(&guard, &rule);
            }
        }
        Ok(())
    }
}

fn add_maps_and_chains(batch: &mut Batch) {
    // nft's numbers of its types, six bits each in a concatenation. Source: nft's datatype.h.
    let (v4, v6, protocol, port) = (7, 8, 12, 13);
    for family in [Family::V4, Family::V6] {
        let address = if family == Family::V4 { v4 } else { v6 };
        let key = (address << 12 | protocol << 6 | port, family.width() + 8);
        batch.add_map(map_of(family), key, (address << 6 | port, family.width() + 4));
    }
    for (chain, place) in [(PUBLISH, Place::Destination), (PUBLISH_LOCAL, Place::LocalDestination)] {
        batch.add_chain(chain, place);
        batch.flush_chain(chain);
        for family in [Family::V4, Family::V6] {
            let any = if family == Family::V4 { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
            for address in [None, Some(any)] {
                let rule = [
                    Expression::IsFamily(family),
                    Expression::IsForHost,
                    Expression::LoadPublished(family, address),
                    Expression::LookUp(map_of(family)),
                    Expression::SendOn(family),
                ];
                batch.add_rule(chain, &rule);
            }
        }
    }
}

/// A pod that is sent to itself or to a neighbour must not answer past the host, nor anybody to 127.0.0.1.
fn add_source_rules(batch: &mut Batch, chain: &str, subnet: Cidr) {
    let family = Family::of(subnet.address());
    let sources = if family == Family::V4 { vec![subnet, loopback()] } else { vec![subnet] };
    for source in sources {
        let rule = [
            Expression::IsFamily(family),
            Expression::WasSentOn,
            Expression::LoadSource(family),
            Expression::IsWithin(source),
            Expression::LoadDestination(family),
            Expression::IsWithin(subnet),
            Expression::Masquerade,
        ];
        batch.add_rule(chain, &rule);
    }
}

fn loopback() -> Cidr {
    // The prefix is shorter than the address.
    Cidr::new(IpAddr::from([127, 0, 0, 0]), 8).unwrap_or_else(|| unreachable!())
}

const fn map_of(family: Family) -> &'static str {
    match family {
        Family::V4 => "ports4",
        Family::V6 => "ports6",
    }
}

/// As `super::chain_of`.
fn chain_of(subnet: Cidr) -> String {
    format!("publish-{}", subnet.to_string().replace(':', "_"))
}

/// `ERESTART`, which has no name outside the kernel.
fn is_restart(error: &io::Error) -> bool {
    const ERESTART: i32 = 85; // include/linux/errno.h has 512 and up; this is asm-generic's
    error.raw_os_error() == Some(ERESTART)
}

/// For a person: `default/web (pod CONTAINER-ID)`.
fn holder_of(comment: &str) -> String {
    let (owner, name) = comment.split_once(' ').unwrap_or((comment, ""));
    let id = owner.split(',').next().unwrap_or(owner);
    match (owner.is_empty(), name.is_empty()) {
        (true, _) => "an element that is not berth's".to_owned(),
        (false, true) => format!("pod {id}"),
        (false, false) => format!("pod {name} ({id})"),
    }
}

pub(super) fn decode(family: Family, element: &[u8]) -> Option<Element> {
    let value = |kind: u16| attribute(attribute(element, kind)?, 1);
    let comment = attribute(element, 6).map(message::comment).unwrap_or_default();
    Some(Element { published: Published::decode(family, value(1)?, value(2)?)?, comment })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(host: &str, host_port: u16, protocol: Protocol) -> Published {
        let host: IpAddr = host.parse().unwrap();
        let pod = if host.is_ipv4() { "10.0.0.2" } else { "fd00::2" };
        Published { protocol, host, host_port, pod: pod.parse().unwrap(), pod_port: 80 }
    }

    #[test]
    fn an_element_is_read_as_it_was_written() {
        for one in [published("0.0.0.0", 8080, Protocol::Tcp), published("fd00::1", 53, Protocol::Udp)] {
            assert_eq!(Published::decode(one.family(), &one.key(), &one.data()), Some(one));
        }
    }

    #[test]
    fn any_address_clashes_with_each() {
        use Protocol::{Tcp, Udp};
        let any = published("0.0.0.0", 80, Tcp);
        for (other, expected) in [
            (any, true),
            (published("10.0.0.1", 80, Tcp), true),
            (published("10.0.0.1", 81, Tcp), false),
            (published("10.0.0.1", 80, Udp), false),
            (published("::", 80, Tcp), false),
        ] {
            assert_eq!((any.clashes(&other), other.clashes(&any)), (expected, expected), "{other}");
        }
        assert!(!published("10.0.0.1", 80, Tcp).clashes(&published("10.0.0.2", 80, Tcp)));
    }

    #[test]
    fn a_holder_is_told_by_its_name_and_id() {
        assert_eq!(holder_of("abc,eth0 default/web"), "pod default/web (abc)");
        assert_eq!(holder_of("abc,eth0"), "pod abc");
        let owner = Attachment { container_id: "abc".into(), ifname: "eth0".into() };
        assert!(is_of("abc,eth0 default/web", &owner) && !is_of("abc,eth01", &owner));
    }
}
