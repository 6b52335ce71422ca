//! Who else drops what a bridge forwards: chains of other tables whose policy is to drop, Docker's above all. They are
//! looked at and never changed: whoever set the policy wanted it, and a rule of ours in a table of theirs would be
//! gone when they load it anew. An accepting rule of our own table does not help: every chain of a hook must accept.
//! Only policies are told; a rule that rejects may be for somebody else.

use std::fmt;
use std::fs;

use super::message::{self, attribute};
use super::socket::NfSocket;
use crate::error::Error;

/// `NF_INET_FORWARD`.
const HOOK_FORWARD: u32 = 2;
/// `NF_DROP`.
const POLICY_DROP: u32 = 0;
/// Where Docker wants the rules of others: its own chain comes after it. Source: Docker's manual, "Packet filtering and
/// firewalls".
const DOCKER_USER: &str = "DOCKER-USER";

/// What stands in the way of a bridge's packets. In words: where, what it does, what to run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// A chain of nftables, by hand or by the iptables that Debian has.
    Policy { bridge: String, family: &'static str, table: String, chain: String, docker: bool },
    /// The old iptables' filter table, which is not to be seen through nftables.
    Legacy { bridge: String, command: &'static str },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::Policy { bridge, family, table, chain, docker } => {
                write!(
                    f,
                    "table {family} {table}, chain {chain} drops what no rule accepts, and no rule of the table names {bridge}: "
                )?;
                write!(f, "pods reach neither the world nor other bridges; run: ")?;
                let iptables = match (*family, table.as_str()) {
                    ("ip", "filter") => "iptables",
                    ("ip6", "filter") => "ip6tables",
                    _ => {
                        let rule = |device: &str| {
                            format!("nft 'insert rule {family} {table} {chain} {device} \"{bridge}\" accept'")
                        };
                        return write!(f, "{} && {}", rule("iifname"), rule("oifname"));
                    }
                };
                let chain = if *docker { DOCKER_USER } else { chain };
                write!(f, "{iptables} -I {chain} -i {bridge} -j ACCEPT && {iptables} -I {chain} -o {bridge} -j ACCEPT")
            }
            Obstacle::Legacy { bridge, command } => write!(
                f,
                "{command} has a filter table, which nothing but itself can show; if its FORWARD chain drops by policy, run: \
                 {command} -I FORWARD -i {bridge} -j ACCEPT && {command} -I FORWARD -o {bridge} -j ACCEPT"
            ),
        }
    }
}

/// What stands in the way of packets to and from `bridge` in the network namespace we are in.
pub(crate) fn obstacles(bridge: &str) -> Result<Vec<Obstacle>, Error> {
    let fail = |deed| Error::kernel(deed, "of nftables");
    let mut socket = NfSocket::open().map_err(fail("open a socket"))?;
    let chains: Vec<Chain> = socket
        .dump(message::list_chains())
        .map_err(fail("list the chains"))?
        .iter()
        .filter_map(|m| Chain::parse(m))
        .collect();
    let mut found = Vec::new();
    for chain in chains.iter().filter(|chain| chain.drops_forwarded) {
        let rules = message::list_rules(chain.family, &chain.table);
        let rules = socket.dump(rules).map_err(fail("list the rules"))?;
        let Some(family) = chain.family_name().filter(|_| !rules.iter().any(|rule| names(rule, bridge))) else {
            continue;
        };
        let beside = |other: &Chain| (other.family, &other.table) == (chain.family, &chain.table);
        found.push(Obstacle::Policy {
            bridge: bridge.into(),
            family,
            table: chain.table.clone(),
            chain: chain.name.clone(),
            docker: chains.iter().any(|other| beside(other) && other.name == DOCKER_USER),
        });
    }
    for (command, tables) in
        [("iptables-legacy", "/proc/net/ip_tables_names"), ("ip6tables-legacy", "/proc/net/ip6_tables_names")]
    {
        // Not there without the old modules.
        if fs::read_to_string(tables).is_ok_and(|tables| tables.lines().any(|table| table == "filter")) {
            found.push(Obstacle::Legacy { bridge: bridge.into(), command });
        }
    }
    Ok(found)
}

pub(super) struct Chain {
    family: u8,
    table: String,
    name: String,
    drops_forwarded: bool,
}

impl Chain {
    /// From an answer: the header of nfnetlink, then attributes.
    pub(super) fn parse(answer: &[u8]) -> Option<Self> {
        let (&family, attributes) = (answer.first()?, answer.get(message::HEADER..)?);
        let text = |kind| attribute(attributes, kind).map(message::text);
        let hook = attribute(attributes, 4).and_then(|hook| attribute(hook, 1)).and_then(message::number);
        let policy = attribute(attributes, 5).and_then(message::number);
        let drops_forwarded = hook == Some(HOOK_FORWARD) && policy == Some(POLICY_DROP);
        Some(Chain { family, table: text(1)?, name: text(3)?, drops_forwarded })
    }

    /// As `nft` writes it; none for a family whose packets are not routed. Source: `NFPROTO_*`.
    pub(super) fn family_name(&self) -> Option<&'static str> {
        match self.family {
            1 => Some("inet"),
            2 => Some("ip"),
            10 => Some("ip6"),
            _ => None,
        }
    }
}

/// Whether a rule compares something with a device's whole name: that is what it looks like in the message, with the
/// NUL that ends it.
fn names(rule: &[u8], device: &str) -> bool {
    let wanted = [device.as_bytes(), &[0]].concat();
    rule.windows(wanted.len()).any(|part| part == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_that_of_whoever_owns_the_table() {
        let told = |family, table: &str, docker| {
            let (bridge, chain) = ("br0".into(), "FORWARD".into());
            Obstacle::Policy { bridge, family, table: table.into(), chain, docker }.to_string()
        };
        for (text, expected) in [
            (
                told("ip", "filter", false),
                "iptables -I FORWARD -i br0 -j ACCEPT && iptables -I FORWARD -o br0 -j ACCEPT",
            ),
            (
                told("ip", "filter", true),
                "iptables -I DOCKER-USER -i br0 -j ACCEPT && iptables -I DOCKER-USER -o br0 -j ACCEPT",
            ),
            (
                told("ip6", "filter", false),
                "ip6tables -I FORWARD -i br0 -j ACCEPT && ip6tables -I FORWARD -o br0 -j ACCEPT",
            ),
            (
                told("inet", "mine", false),
                "nft 'insert rule inet mine FORWARD iifname \"br0\" accept' && nft 'insert rule inet mine FORWARD oifname \"br0\" accept'",
            ),
        ] {
            assert!(text.ends_with(&format!("run: {expected}")), "{text}");
        }
    }

    #[test]
    fn a_device_is_named_whole_or_not_at_all() {
        assert!(names(b"\x00br0\x00\x00", "br0"));
        assert!(!names(b"\x00br01\x00", "br0"));
    }
}
