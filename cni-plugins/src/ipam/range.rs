//! Ranges of addresses, and walking through them. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use berth_api::cni::result::Cidr;
use serde::Deserialize;
use serde_json::Value;

use crate::config::{DeserializeAt, all_known};
use crate::error::Error;

const KEYS: &[&str] = &["subnet", "rangeStart", "rangeEnd", "gateway", "exclude"];

/// Addresses of one subnet, from first to last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    subnet: Cidr,
    first: IpAddr,
    last: IpAddr,
    /// Never given to a pod.
    pub(crate) gateway: IpAddr,
    exclude: Vec<Cidr>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    subnet: Cidr,
    range_start: Option<IpAddr>,
    range_end: Option<IpAddr>,
    gateway: Option<IpAddr>,
    #[serde(default)]
    exclude: Vec<String>,
}

impl Range {
    /// Reads one range; `key` is its path.
    pub(crate) fn parse(json: &Value, key: &str) -> Result<Self, Error> {
        if let Value::Object(object) = json {
            all_known(object.keys().filter(|k| !is_of_ipam(key, k)), &format!("{key}."), KEYS)?;
        }
        let written = Written::deserialize_at(json, key)?;
        let subnet = written.subnet;
        let wrong = |name: &str, problem: String| Error::config(format!("{key}.{name}"), problem);
        if subnet.network() != subnet {
            return Err(wrong("subnet", format!("{subnet} has host bits; the network is {}", subnet.network())));
        }
        let width = if subnet.address().is_ipv4() { 32 } else { 128 };
        if width - subnet.prefix() < 2 {
            return Err(wrong("subnet", format!("{subnet} has no room for a gateway and a pod")));
        }
        let inside = |name: &str, ip: IpAddr| {
            if subnet.contains(ip) { Ok(ip) } else { Err(wrong(name, format!("{ip} is not in {subnet}"))) }
        };
        let network = number(subnet.address());
        let top = network | (u128::MAX >> (128 - u32::from(width - subnet.prefix())));
        // The last address of an IPv4 subnet is its broadcast address; IPv6 has none.
        let usable_top = if subnet.address().is_ipv4() { top - 1 } else { top };
        let at = |n: u128| address(n, subnet.address().is_ipv4());
        let first = inside("rangeStart", written.range_start.unwrap_or_else(|| at(network + 1)))?;
        let last = inside("rangeEnd", written.range_end.unwrap_or_else(|| at(usable_top)))?;
        let gateway = inside("gateway", written.gateway.unwrap_or_else(|| at(network + 1)))?;
        if number(first) > number(last) {
            return Err(wrong("rangeStart", format!("{first} is after {last}")));
        }
        if number(first) == network || number(last) > usable_top {
            return Err(wrong("subnet", format!("{first} to {last} holds the network's own address")));
        }
        let exclude = written.exclude.iter().map(|text| excluded(text).ok_or(text)).collect::<Result<_, _>>();
        let exclude = exclude.map_err(|text| wrong("exclude", format!("{text:?} is no address and no network")))?;
        Ok(Range { subnet, first, last, gateway, exclude })
    }

    /// Whether a pod may get the address.
    pub(crate) fn offers(&self, ip: IpAddr) -> bool {
        self.subnet.contains(ip)
            && (number(self.first)..=number(self.last)).contains(&number(ip))
            && ip != self.gateway
            && !self.exclude.iter().any(|e| e.contains(ip))
    }

    /// The address as a pod gets it.
    pub(crate) fn with_prefix(&self, ip: IpAddr) -> Option<Cidr> {
        Cidr::new(ip, self.subnet.prefix())
    }

    fn overlaps(&self, other: &Range) -> bool {
        self.subnet.address().is_ipv4() == other.subnet.address().is_ipv4()
            && number(self.first) <= number(other.last)
            && number(other.first) <= number(self.last)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}-{})", self.subnet, self.first, self.last)
    }
}

/// Ranges of one family, of which a pod gets one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RangeSet(Vec<Range>);

impl RangeSet {
    /// Puts ranges together; `key` is their path.
    pub(crate) fn new(ranges: Vec<Range>, key: &str) -> Result<Self, Error> {
        let Some(first) = ranges.first() else { return Err(Error::config(key, "has no range")) };
        if ranges.iter().any(|r| r.subnet.address().is_ipv4() != first.subnet.address().is_ipv4()) {
            return Err(Error::config(key, "mixes IPv4 and IPv6; a pod gets one address of each set"));
        }
        for (i, range) in ranges.iter().enumerate() {
            if let Some(other) = ranges[..i].iter().find(|other| other.overlaps(range)) {
                return Err(Error::config(key, format!("{range} overlaps {other}")));
            }
        }
        Ok(RangeSet(ranges))
    }

    /// Whether some range of one is also in the other.
    pub(crate) fn overlaps(&self, other: &RangeSet) -> bool {
        self.0.iter().any(|a| other.0.iter().any(|b| a.overlaps(b)))
    }

    /// The range that offers the address.
    pub(crate) fn range_of(&self, ip: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.offers(ip))
    }

    /// Every address that a pod may get, once, beginning after `last`: what was freed a moment ago comes last, while
    /// others may still remember it.
    pub(crate) fn after(&self, last: Option<IpAddr>) -> impl Iterator<Item = IpAddr> + '_ {
        let place = last.and_then(|last| {
            let range = self.0.iter().position(|r| r.subnet.contains(last))?;
            Some((range, number(last).saturating_add(1)))
        });
        let (start, next) = place.unwrap_or((0, number(self.0[0].first)));
        let whole = move |i: usize| (i, number(self.0[i].first), number(self.0[i].last));
        let begin = (start, next, number(self.0[start].last));
        let others = (start + 1..self.0.len()).chain(0..start).map(whole);
        let rest = (start, number(self.0[start].first), next.saturating_sub(1).min(number(self.0[start].last)));
        [begin].into_iter().chain(others).chain([rest]).flat_map(|(i, from, to)| walk(&self.0[i], from, to))
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.0.iter().enumerate() {
            write!(f, "{}{range}", if i > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

/// What the range offers between two numbers, both included; a network that is excluded is passed in one step.
fn walk(range: &Range, from: u128, to: u128) -> impl Iterator<Item = IpAddr> + '_ {
    let four = range.subnet.address().is_ipv4();
    let mut next = Some(from.max(number(range.first)));
    std::iter::from_fn(move || {
        loop {
            let n = next.filter(|n| *n <= to)?;
            let ip = address(n, four);
            if let Some(excluded) = range.exclude.iter().find(|e| e.contains(ip)) {
                let host_bits = if four { 32 } else { 128 } - u32::from(excluded.prefix());
                let top = number(excluded.network().address()) | !u128::MAX.checked_shl(host_bits).unwrap_or(0);
                next = top.checked_add(1);
                continue;
            }
            next = n.checked_add(1);
            if ip != range.gateway {
                return Some(ip);
            }
        }
    })
}

fn excluded(text: &str) -> Option<Cidr> {
    text.parse().ok().or_else(|| {
        let ip: IpAddr = text.parse().ok()?;
        Cidr::new(ip, if ip.is_ipv4() { 32 } else { 128 })
    })
}

/// A range may be written into `ipam` itself, beside ipam's own keys.
fn is_of_ipam(key: &str, name: &str) -> bool {
    key == "ipam" && super::config::KEYS.contains(&name)
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

fn address(n: u128, four: bool) -> IpAddr {
    if four { Ipv4Addr::from(n as u32).into() } else { Ipv6Addr::from(n).into() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn range(json: Value) -> Range {
        Range::parse(&json, "r").unwrap()
    }

    fn walked(set: &RangeSet, last: Option<&str>) -> Vec<String> {
        set.after(last.map(|ip| ip.parse().unwrap())).map(|ip| ip.to_string()).collect()
    }

    #[test]
    fn a_subnet_offers_all_but_its_ends_and_gateway() {
        let set = RangeSet::new(vec![range(json!({"subnet": "10.0.0.0/29"}))], "s").unwrap();
        assert_eq!(walked(&set, None), ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        let six = RangeSet::new(vec![range(json!({"subnet": "fd00::/126"}))], "s").unwrap();
        assert_eq!(walked(&six, None), ["fd00::2", "fd00::3"]);
    }

    #[test]
    fn the_walk_goes_round_and_meets_each_address_once() {
        let ranges = vec![
            range(json!({"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.10", "rangeEnd": "10.0.0.12"})),
            range(json!({"subnet": "10.0.1.0/24", "rangeStart": "10.0.1.10", "rangeEnd": "10.0.1.11"})),
        ];
        let set = RangeSet::new(ranges, "s").unwrap();
        let all = ["10.0.0.10", "10.0.0.11", "10.0.0.12", "10.0.1.10", "10.0.1.11"];
        assert_eq!(walked(&set, None), all);
        assert_eq!(walked(&set, Some("10.0.0.11")), [all[2], all[3], all[4], all[0], all[1]]);
        assert_eq!(walked(&set, Some("10.0.1.11")), all);
        assert_eq!(walked(&set, Some("10.0.1.200")), all);
        assert_eq!(walked(&set, Some("10.0.0.3")), all);
        assert_eq!(walked(&set, Some("192.168.0.1")), all);
    }

    #[test]
    fn what_is_excluded_is_passed_over() {
        let json = json!({"subnet": "10.0.0.0/24", "rangeEnd": "10.0.0.9", "exclude": ["10.0.0.4/30", "10.0.0.2"]});
        let set = RangeSet::new(vec![range(json)], "s").unwrap();
        assert_eq!(walked(&set, None), ["10.0.0.3", "10.0.0.8", "10.0.0.9"]);
        assert!(set.range_of("10.0.0.5".parse().unwrap()).is_none());
        let huge = json!({"subnet": "fd00::/32", "exclude": ["fd00::/64"]});
        let set = RangeSet::new(vec![range(huge)], "s").unwrap();
        assert_eq!(set.after(None).next().unwrap().to_string(), "fd00:0:0:1::");
    }

    #[test]
    fn a_range_that_cannot_be_is_refused_with_its_key() {
        let cases = [
            (json!({"subnet": "10.0.0.1/24"}), "r.subnet: 10.0.0.1/24 has host bits; the network is 10.0.0.0/24"),
            (json!({"subnet": "10.0.0.0/31"}), "r.subnet: 10.0.0.0/31 has no room for a gateway and a pod"),
            (
                json!({"subnet": "10.0.0.0/24", "rangeStart": "10.0.1.1"}),
                "r.rangeStart: 10.0.1.1 is not in 10.0.0.0/24",
            ),
            (json!({"subnet": "10.0.0.0/24", "gateway": "fd00::1"}), "r.gateway: fd00::1 is not in 10.0.0.0/24"),
            (
                json!({"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8"}),
                "r.rangeStart: 10.0.0.9 is after 10.0.0.8",
            ),
            (
                json!({"subnet": "10.0.0.0/24", "rangeEnd": "10.0.0.255"}),
                "r.subnet: 10.0.0.1 to 10.0.0.255 holds the network's own address",
            ),
            (json!({"subnet": "10.0.0.0/24", "exclude": ["x"]}), "r.exclude: \"x\" is no address and no network"),
            (
                json!({"subnet": "10.0.0.0/24", "rangestart": "10.0.0.9"}),
                "unknown option \"r.rangestart\"; did you mean \"rangeStart\"?",
            ),
        ];
        for (json, problem) in cases {
            assert_eq!(Range::parse(&json, "r").unwrap_err().to_string(), problem);
        }
        assert!(Range::parse(&json!({}), "r").unwrap_err().to_string().contains("subnet"));
    }

    #[test]
    fn ranges_of_a_set_are_of_one_family_and_apart() {
        let of = |subnets: &[&str]| {
            RangeSet::new(subnets.iter().map(|s| range(json!({"subnet": s}))).collect(), "s").unwrap_err().to_string()
        };
        assert!(of(&["10.0.0.0/24", "fd00::/64"]).starts_with("s: mixes"));
        assert!(of(&["10.0.0.0/24", "10.0.0.0/25"]).contains("overlaps"));
        assert_eq!(of(&[]), "s: has no range");
    }
}
