//! The options of host-local: the network's `ipam`, and addresses asked for by the call.

use std::net::IpAddr;
use std::path::PathBuf;

use berth_api::cni::call::Call;
use berth_api::cni::result::{Cidr, Dns, Route};
use serde_json::Value;

use super::range::{Range, RangeSet};
use crate::config::{DeserializeAt, Network, all_known};
use crate::error::Error;

/// Keys of `ipam`; a single range may be written beside them.
pub(crate) const KEYS: &[&str] = &["type", "ranges", "routes", "dataDir", "resolvConf"];
const KEYS_WITH_RANGE: &[&str] =
    &["type", "ranges", "routes", "dataDir", "resolvConf", "subnet", "rangeStart", "rangeEnd", "gateway", "exclude"];

/// Where leases are when the network does not say. Source: the reference plugin, so that both see each other's.
const DATA_DIR: &str = "/var/lib/cni/networks";

/// What host-local is to do for a network.
#[derive(Debug)]
pub(crate) struct Config {
    /// A pod gets one address of each.
    pub(crate) sets: Vec<RangeSet>,
    pub(crate) routes: Vec<Route>,
    pub(crate) data_dir: PathBuf,
    /// A file like /etc/resolv.conf that says the network's name servers.
    resolv_conf: Option<PathBuf>,
    /// Addresses that the call asks for.
    pub(crate) requested: Vec<IpAddr>,
}

impl Config {
    /// Reads them.
    pub(crate) fn of(call: &Call, network: &Network) -> Result<Self, Error> {
        let Some(Value::Object(ipam)) = network.config.get("ipam") else {
            return Err(Error::config("ipam", "is missing"));
        };
        all_known(ipam.keys(), "ipam.", KEYS_WITH_RANGE)?;
        let data_dir = match ipam.get("dataDir") {
            None => DATA_DIR.into(),
            Some(Value::String(dir)) if dir.is_empty() => DATA_DIR.into(),
            Some(Value::String(dir)) => PathBuf::from(dir),
            Some(_) => return Err(Error::config("ipam.dataDir", "is not a string")),
        };
        if !data_dir.is_absolute() {
            return Err(Error::config("ipam.dataDir", format!("{} is not absolute", data_dir.display())));
        }
        let config = Config {
            sets: range_sets(ipam)?,
            routes: ipam.get("routes").map_or(Ok(Vec::new()), |routes| Vec::deserialize_at(routes, "ipam.routes"))?,
            data_dir,
            resolv_conf: match ipam.get("resolvConf") {
                None => None,
                Some(Value::String(path)) => Some(PathBuf::from(path)).filter(|path| !path.as_os_str().is_empty()),
                Some(_) => return Err(Error::config("ipam.resolvConf", "is not a string")),
            },
            requested: requested(call, network)?,
        };
        Ok(config)
    }

    /// Checks that each address asked for is offered. Only ADD asks: DEL must not fail for what cannot be had.
    pub(crate) fn check_requested(&self) -> Result<(), Error> {
        match self.requested.iter().find(|ip| !self.sets.iter().any(|set| set.range_of(**ip).is_some())) {
            Some(ip) => Err(Error::config("runtimeConfig.ips", format!("{ip} is not offered by {}", list(&self.sets)))),
            None => Ok(()),
        }
    }

    /// What `resolvConf` says.
    pub(crate) fn dns(&self) -> Result<Dns, Error> {
        let Some(path) = &self.resolv_conf else { return Ok(Dns::default()) };
        Ok(dns_of(&std::fs::read_to_string(path).map_err(Error::file("read", path))?))
    }
}

/// All ranges, for a message.
pub(crate) fn list(sets: &[RangeSet]) -> String {
    sets.iter().map(RangeSet::to_string).collect::<Vec<_>>().join(", ")
}

fn range_sets(ipam: &serde_json::Map<String, Value>) -> Result<Vec<RangeSet>, Error> {
    let mut sets = Vec::new();
    if ipam.contains_key("subnet") {
        let range = Range::parse(&Value::Object(ipam.clone()), "ipam")?;
        sets.push(RangeSet::new(vec![range], "ipam")?);
    }
    match ipam.get("ranges") {
        None => {}
        Some(Value::Array(list)) => {
            for (i, set) in list.iter().enumerate() {
                let key = format!("ipam.ranges[{i}]");
                let Value::Array(ranges) = set else { return Err(Error::config(key, "is not a list")) };
                let numbered = ranges.iter().enumerate();
                let parsed = numbered.map(|(j, range)| Range::parse(range, &format!("{key}[{j}]")));
                sets.push(RangeSet::new(parsed.collect::<Result<_, _>>()?, &key)?);
            }
        }
        Some(_) => return Err(Error::config("ipam.ranges", "is not a list")),
    }
    if sets.is_empty() {
        return Err(Error::config("ipam.ranges", "is missing or empty"));
    }
    for (i, set) in sets.iter().enumerate() {
        if let Some(other) = sets[..i].iter().find(|other| other.overlaps(set)) {
            return Err(Error::config("ipam.ranges", format!("{set} overlaps {other}")));
        }
    }
    Ok(sets)
}

/// Addresses asked for: by the capability `ips`, by `args.cni.ips`, or by `IP` in CNI_ARGS.
fn requested(call: &Call, network: &Network) -> Result<Vec<IpAddr>, Error> {
    let mut texts = Vec::new();
    for path in [["runtimeConfig", "ips"].as_slice(), &["args", "cni", "ips"]] {
        if let Some(ips) = network.at(path) {
            texts.extend(Vec::<String>::deserialize_at(ips, &path.join("."))?);
        }
    }
    texts.extend(call.args.get("IP").into_iter().flat_map(|ips| ips.split(',')).map(String::from));
    let parse = |text: &String| {
        let with_prefix = || text.parse::<Cidr>().ok().map(|cidr| cidr.address());
        let ip = text.parse().ok().or_else(with_prefix);
        ip.ok_or_else(|| Error::config("runtimeConfig.ips", format!("{text:?} is no address")))
    };
    texts.iter().map(parse).collect()
}

/// Reads a resolv.conf. Source: resolv.conf(5); of several `domain` or `search` the last counts.
fn dns_of(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace().map(String::from);
        match words.next().as_deref() {
            Some("nameserver") => dns.nameservers.extend(words.next()),
            Some("domain") => dns.domain = words.next().unwrap_or_default(),
            Some("search") => dns.search = words.collect(),
            Some("options") => dns.options.extend(words),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use berth_api::cni::call::Verb;
    use serde_json::json;

    use super::*;

    fn parse(ipam: Value, args: &str) -> Result<Config, Error> {
        let json = json!({"cniVersion": "1.1.0", "name": "n", "ipam": ipam, "runtimeConfig": {"ips": ["10.0.0.9/24"]}});
        let network = Network::new(json.as_object().unwrap().clone()).unwrap();
        Config::of(&Call { args: args.parse().unwrap(), ..Call::new(Verb::Add) }, &network)
    }

    #[test]
    fn dual_stack_is_two_sets() {
        let ranges = json!([[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]]);
        let config = parse(json!({"type": "host-local", "ranges": ranges, "dataDir": "/d"}), "IP=fd00::7").unwrap();
        assert_eq!(config.sets.len(), 2);
        assert_eq!(config.requested, ["10.0.0.9".parse::<IpAddr>().unwrap(), "fd00::7".parse().unwrap()]);
        assert_eq!(config.data_dir, PathBuf::from("/d"));
    }

    #[test]
    fn a_single_range_may_stand_in_ipam_itself() {
        let config =
            parse(json!({"type": "host-local", "subnet": "10.0.0.0/24", "gateway": "10.0.0.254"}), "").unwrap();
        assert_eq!(config.sets.len(), 1);
        assert_eq!(config.data_dir, PathBuf::from(DATA_DIR));
    }

    #[test]
    fn wrong_options_are_named() {
        let of = |ipam, args| parse(ipam, args).and_then(|c| c.check_requested()).unwrap_err().to_string();
        assert_eq!(
            of(json!({"type": "host-local", "datadir": "/d"}), ""),
            "unknown option \"ipam.datadir\"; did you mean \"dataDir\"?"
        );
        assert_eq!(of(json!({"type": "host-local"}), ""), "ipam.ranges: is missing or empty");
        assert_eq!(
            of(json!({"subnet": "10.0.0.0/24", "ranges": [[{"subnet": "10.0.0.0/25"}]]}), ""),
            "ipam.ranges: 10.0.0.0/25 (10.0.0.1-10.0.0.126) overlaps 10.0.0.0/24 (10.0.0.1-10.0.0.254)"
        );
        assert_eq!(
            of(json!({"subnet": "10.1.0.0/24"}), ""),
            "runtimeConfig.ips: 10.0.0.9 is not offered by 10.1.0.0/24 (10.1.0.1-10.1.0.254)"
        );
        assert_eq!(of(json!({"subnet": "10.0.0.0/24"}), "IP=x"), "runtimeConfig.ips: \"x\" is no address");
        assert_eq!(of(json!({"subnet": "10.0.0.0/24", "dataDir": "d"}), ""), "ipam.dataDir: d is not absolute");
    }

    #[test]
    fn a_resolv_conf_is_read() {
        let dns = dns_of("# x\nnameserver 10.0.0.1\nsearch a.test b.test\nsearch c.test\noptions ndots:5 edns0\n");
        let expected = Dns {
            nameservers: vec!["10.0.0.1".into()],
            domain: String::new(),
            search: vec!["c.test".into()],
            options: vec!["ndots:5".into(), "edns0".into()],
        };
        assert_eq!(dns, expected);
    }
}
