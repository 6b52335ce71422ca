//! The network that comes with berth: a bridge of its own with masquerading, for a node without a cluster's network.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use berth_api::cni::config::NetworkList;
use serde_json::json;

use super::{Config, Error};

/// The built-in network of one daemon.
#[derive(Clone, Debug)]
pub(crate) struct BuiltIn {
    tag: String,
    leases: PathBuf,
    /// Where the subnet, once picked, is kept: pods of an earlier daemon live in it.
    kept: PathBuf,
    subnet: String,
    subnet6: String,
}

impl BuiltIn {
    /// `None` when it is off.
    pub(crate) fn new(config: &Config, tag: &str, data: &Path) -> Option<Self> {
        config.default.then(|| Self {
            tag: tag.to_owned(),
            leases: data.join("ipam"),
            kept: data.join("default-subnet"),
            subnet: config.default_subnet.clone(),
            subnet6: config.default_subnet6.clone(),
        })
    }

    /// Name of its bridge.
    pub(crate) fn bridge(&self) -> String {
        format!("berth-{}", self.tag)
    }

    /// Its configuration.
    ///
    /// # Errors
    /// No free subnet is left, or the choice cannot be kept.
    pub(crate) fn list(&self) -> Result<NetworkList, Error> {
        let subnet = self.subnet()?;
        let mut ranges = vec![json!([{ "subnet": subnet }])];
        if !self.subnet6.is_empty() {
            ranges.push(json!([{ "subnet": self.subnet6 }]));
        }
        let conf = json!({
            "cniVersion": "1.1.0",
            "name": format!("berth-{}", self.tag),
            "plugins": [{
                "type": "bridge",
                "bridge": self.bridge(),
                "isGateway": true,
                "isDefaultGateway": true,
                "ipMasq": true,
                "hairpinMode": true,
                "capabilities": { "portMappings": true },
                "nftTable": format!("berth-{}", self.tag),
                "ipam": { "type": "host-local", "ranges": ranges, "dataDir": self.leases },
            }],
        });
        NetworkList::parse("the built-in network", conf.to_string().as_bytes())
            .map_err(|e| Error::BuiltIn(e.to_string()))
    }

    fn subnet(&self) -> Result<String, Error> {
        if self.subnet != "auto" {
            return Ok(self.subnet.clone());
        }
        if let Ok(kept) = fs::read_to_string(&self.kept) {
            return Ok(kept.trim().to_owned());
        }
        let routes = fs::read_to_string("/proc/net/route")
            .map_err(|e| Error::BuiltIn(format!("read the host's routes: {e}")))?;
        let subnet = pick(&self.tag, &parse_routes(&routes)).ok_or_else(|| {
            Error::BuiltIn("every candidate subnet collides with a route of the host; set default_subnet".into())
        })?;
        match crate::ledger::write_whole(&self.kept, subnet.as_bytes()) {
            // No daemon has made the data root yet: `berthd check` only looks.
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::BuiltIn(format!("keep the subnet in {}: {e}", self.kept.display())))
            }
            _ => Ok(subnet),
        }
    }
}

/// Address and mask of each IPv4 route. Source: /proc/net/route, hex in network byte order as the host stores it.
pub(super) fn parse_routes(table: &str) -> Vec<(u32, u32)> {
    let number = |hex: &str| u32::from_str_radix(hex, 16).ok().map(u32::from_be);
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        Some((number(fields.get(1)?)?, number(fields.get(7)?)?))
    };
    table.lines().skip(1).filter_map(route).collect()
}

/// A /20 of 10.128.0.0/9 that begins at the tag's place and overlaps no route but the default one.
pub(super) fn pick(tag: &str, routes: &[(u32, u32)]) -> Option<String> {
    const BASE: u32 = 0x0A80_0000;
    const MASK: u32 = 0xFFFF_F000;
    const COUNT: u32 = 1 << 11;
    let begin = u32::from_str_radix(tag, 16).unwrap_or(0) % COUNT;
    let candidates = (0..COUNT).map(|i| BASE + (((begin + i) % COUNT) << 12));
    let collides =
        |subnet: u32| routes.iter().any(|(to, mask)| *mask != 0 && (to & MASK & mask) == (subnet & MASK & mask));
    candidates.into_iter().find(|s| !collides(*s)).map(|s| format!("{}/20", Ipv4Addr::from(s)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_avoids_the_hosts_routes() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                     eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                     eth0\t0000800A\t00000000\t0001\t0\t0\t0\t00F0FFFF\t0\t0\t0\n";
        let routes = parse_routes(table);
        assert_eq!(routes, [(0, 0), (0x0A80_0000, 0xFFFF_F000)]);
        assert_eq!(pick("000000", &[]).as_deref(), Some("10.128.0.0/20"));
        assert_eq!(pick("000000", &routes).as_deref(), Some("10.128.16.0/20"));
        assert_eq!(pick("000000", &[(0x0A00_0000, 0xFF00_0000)]), None);
    }

    #[test]
    fn the_subnet_is_kept_where_there_is_a_data_root_and_told_where_there_is_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let subnet = |data: &Path| {
            let config = Config { default: true, ..Config::default() };
            BuiltIn::new(&config, "000000", data).expect("it is on").subnet().expect("a subnet")
        };
        let told = subnet(&dir.path().join("absent"));
        assert_eq!(fs::read_dir(dir.path()).expect("a list").count(), 0);
        assert_eq!(subnet(dir.path()), told);
        assert_eq!(fs::read_to_string(dir.path().join("default-subnet")).expect("kept"), told);
    }
}
