//! The steps of a rule, and how each is told to the kernel.
//! Source of every number: include/uapi/linux/netfilter/nf_tables.h. Registers hold what packets hold, in their order.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use berth_api::cni::result::Cidr;

use super::message::Attributes;

/// The general registers of four bytes each; what is longer goes on in the next ones.
const FIRST: u32 = 8;
const EQUAL: u32 = 0;
const UNEQUAL: u32 = 1;

/// `NF_DROP`.
const DROP: u32 = 0;
/// `RTN_LOCAL`: an address of this host.
const LOCAL: u32 = 2;
/// `IPS_DST_NAT`: the connection's destination was changed.
const DESTINATION_CHANGED: u32 = 0x20;

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
    pub(super) const fn protocol(self) -> u8 {
        match self {
            Family::V4 => 2,
            Family::V6 => 10,
        }
    }

    /// Bytes of an address.
    pub(super) const fn width(self) -> u32 {
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

/// One step of a rule. What it loads is in the first register, unless it says another.
#[derive(Debug)]
pub(super) enum Expression<'a> {
    /// Goes on only with packets of the family.
    IsFamily(Family),
    /// Goes on only with packets that came by the device.
    CameBy(&'a str),
    /// Loads the source address.
    LoadSource(Family),
    /// Loads the destination address.
    LoadDestination(Family),
    /// Goes on only if the loaded address is in the network; spoils the register.
    IsWithin(Cidr),
    /// Goes on only if it is not; spoils the register.
    IsOutside(Cidr),
    /// Goes on only with packets for an address of this host.
    IsForHost,
    /// Goes on only with connections whose destination was changed.
    WasSentOn,
    /// Loads a key of a map of published ports: the address that is given, or that of the packet, then protocol and port.
    LoadPublished(Family, Option<IpAddr>),
    /// Loads what the map has for the key, or ends the rule.
    LookUp(&'a str),
    /// Sends the packet on to the loaded address and port.
    SendOn(Family),
    /// The source address becomes that of the device the packet leaves by.
    Masquerade,
    /// The packet is no more.
    Drop,
}

impl Expression<'_> {
    pub(super) fn write(&self, m: &mut Attributes<'_>) {
        match self {
            Expression::IsFamily(family) => {
                meta(m, 15, FIRST); // the family that the packet really is of
                compare(m, EQUAL, &[family.protocol()]);
            }
            Expression::CameBy(device) => {
                const NAME_BYTES: usize = 16; // IFNAMSIZ
                meta(m, 6, FIRST);
                let mut name = device.as_bytes().to_vec();
                name.resize(NAME_BYTES, 0);
                compare(m, EQUAL, &name);
            }
            Expression::LoadSource(family) => load(m, NETWORK, family.source(), family.width(), FIRST),
            Expression::LoadDestination(family) => {
                load(m, NETWORK, family.source() + family.width(), family.width(), FIRST);
            }
            Expression::IsWithin(network) => compare_prefix(m, EQUAL, *network),
            Expression::IsOutside(network) => compare_prefix(m, UNEQUAL, *network),
            Expression::IsForHost => {
                // Register, result (the kind of address), what to look for (the destination).
                named(m, "fib", |m| [(1, FIRST), (2, 3), (3, 2)].iter().for_each(|(kind, n)| m.number(*kind, *n)));
                compare(m, EQUAL, &LOCAL.to_ne_bytes());
            }
            Expression::WasSentOn => {
                named(m, "ct", |m| [(1, FIRST), (2, 2)].iter().for_each(|(kind, n)| m.number(*kind, *n)));
                masked(m, &DESTINATION_CHANGED.to_ne_bytes());
                compare(m, UNEQUAL, &[0; 4]);
            }
            Expression::LoadPublished(family, address) => {
                match address {
                    Some(address) => immediate(m, &octets(*address)),
                    None => Expression::LoadDestination(*family).write(m),
                }
                let protocol = FIRST + family.width() / 4;
                meta(m, 16, protocol);
                // TCP and UDP have the destination's port at one place.
                load(m, TRANSPORT, 2, 2, protocol + 1);
            }
            Expression::LookUp(map) => named(m, "lookup", |m| {
                m.text(1, map);
                m.number(2, FIRST);
                m.number(3, FIRST);
            }),
            Expression::SendOn(family) => named(m, "nat", |m| {
                const TO_DESTINATION: u32 = 1;
                let port = FIRST + family.width() / 4;
                m.number(1, TO_DESTINATION);
                m.number(2, family.protocol().into());
                [(3, FIRST), (4, FIRST), (5, port), (6, port)].iter().for_each(|(kind, n)| m.number(*kind, *n));
            }),
            Expression::Masquerade => named(m, "masq", |_| {}),
            Expression::Drop => named(m, "immediate", |m| {
                const VERDICT: u32 = 0; // its register
                m.number(1, VERDICT);
                m.nest(2, |m| m.nest(2, |m| m.number(1, DROP)));
            }),
        }
    }
}

fn named(m: &mut Attributes<'_>, name: &str, write: impl FnOnce(&mut Attributes<'_>)) {
    m.nest(1, |m| {
        m.text(1, name);
        m.nest(2, write);
    });
}

/// What the kernel knows of the packet beside its bytes.
fn meta(m: &mut Attributes<'_>, key: u32, register: u32) {
    named(m, "meta", |m| {
        m.number(1, register);
        m.number(2, key);
    });
}

/// Headers to load from.
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;

/// Loads `width` bytes of a header.
fn load(m: &mut Attributes<'_>, header: u32, offset: u32, width: u32, register: u32) {
    named(m, "payload", |m| {
        m.number(1, register);
        m.number(2, header);
        m.number(3, offset);
        m.number(4, width);
    });
}

/// Loads a value that is known.
fn immediate(m: &mut Attributes<'_>, value: &[u8]) {
    named(m, "immediate", |m| {
        m.number(1, FIRST);
        m.nest(2, |m| m.bytes(1, value));
    });
}

fn masked(m: &mut Attributes<'_>, mask: &[u8]) {
    named(m, "bitwise", |m| {
        m.number(1, FIRST);
        m.number(2, FIRST);
        m.number(3, mask.len() as u32);
        m.nest(4, |m| m.bytes(1, mask));
        m.nest(5, |m| m.bytes(1, &vec![0; mask.len()]));
    });
}

fn compare_prefix(m: &mut Attributes<'_>, how: u32, network: Cidr) {
    masked(m, &mask(network.prefix(), octets(network.address()).len()));
    compare(m, how, &octets(network.network().address()));
}

/// Goes on if the register is `value`, or is not.
fn compare(m: &mut Attributes<'_>, how: u32, value: &[u8]) {
    named(m, "cmp", |m| {
        m.number(1, FIRST);
        m.number(2, how);
        m.nest(3, |m| m.bytes(1, value));
    });
}

pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn mask(prefix: u8, width: usize) -> Vec<u8> {
    let bits_of = |byte: usize| usize::from(prefix).saturating_sub(byte * 8).min(8) as u32;
    (0..width).map(|byte| u8::MAX.checked_shl(8 - bits_of(byte)).unwrap_or(0)).collect()
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
}
