//! What ADD answers and what is handed on as `prevResult`: interfaces, addresses, routes, DNS.
//! Held in the form of the newest version; older ones are conversions at the edge.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::version::{UnknownVersion, Version};

/// A network as attached to one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddResult {
    /// Devices that were made or used; those with a sandbox are inside the pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// The pod's addresses, in order of preference.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpConfig>,
    /// Routes inside the pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Name servers of this network.
    #[serde(default, skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
}

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address, `aa:bb:cc:dd:ee:ff`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Path of the namespace it is in; empty: the host's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// In bytes. Since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Path of a vhost-user socket. Since 1.1.0.
    #[serde(default, rename = "socketPath", skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// Address of a PCI device. Since 1.1.0.
    #[serde(default, rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

/// An address of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Address and length of its network's prefix.
    pub address: Cidr,
    /// The way out, when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Index into `interfaces` of the device that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// A route inside the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub dst: Cidr,
    /// Next hop; without it the address's gateway of the same family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// Bytes. Since 1.1.0, as the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Maximal segment size advertised to the destination, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// The kernel's metric: lower wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Routing table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// `RT_SCOPE_*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

/// Name service of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Addresses, in order of preference.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// Local domain.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Search list for short names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options of the resolver.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Dns::default()
    }
}

/// An address together with the length of its network's prefix, `10.1.2.3/24`. Host bits are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// Pairs them; `None` if the prefix is longer than the address.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let max = if address.is_ipv4() { 32 } else { 128 };
        (prefix <= max).then_some(Cidr { address, prefix })
    }

    /// The address with its host bits.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Bits of the prefix.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The network: the same without host bits.
    pub fn network(&self) -> Cidr {
        let host_bits = |width: u32| width - u32::from(self.prefix);
        let address = match self.address {
            IpAddr::V4(ip) => {
                IpAddr::from((u32::from(ip) & u32::MAX.checked_shl(host_bits(32)).unwrap_or(0)).to_be_bytes())
            }
            IpAddr::V6(ip) => {
                IpAddr::from((u128::from(ip) & u128::MAX.checked_shl(host_bits(128)).unwrap_or(0)).to_be_bytes())
            }
        };
        Cidr { address, prefix: self.prefix }
    }

    /// Whether `address` is in the network; never, if it is of the other family.
    pub fn contains(&self, address: IpAddr) -> bool {
        Cidr::new(address, self.prefix)
            .is_some_and(|other| address.is_ipv4() == self.address.is_ipv4() && other.network() == self.network())
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// Text that is not an address with a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotCidr(pub String);

impl fmt::Display for NotCidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not an address with a prefix length, as 10.1.2.3/24 is", self.0)
    }
}

impl std::error::Error for NotCidr {}

impl FromStr for Cidr {
    type Err = NotCidr;

    fn from_str(text: &str) -> Result<Self, NotCidr> {
        let parse = || {
            let (address, prefix) = text.split_once('/')?;
            Cidr::new(address.parse().ok()?, prefix.parse().ok()?)
        };
        parse().ok_or_else(|| NotCidr(text.into()))
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// JSON that is not a result.
#[derive(Debug)]
pub enum ResultError {
    /// It says no version, or one that is not spoken.
    Version(UnknownVersion),
    /// Its version is fine and its content is not; the text names the field.
    Content(serde_json::Error),
}

impl fmt::Display for ResultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ResultError::Version(e) => write!(f, "result: {e}"),
            ResultError::Content(e) => write!(f, "result: {e}"),
        }
    }
}

impl std::error::Error for ResultError {}

impl AddResult {
    /// The addresses alone, without prefixes.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.ips.iter().map(|ip| ip.address.address())
    }

    /// Reads a result of any version that berth speaks.
    ///
    /// # Errors
    /// A version that is not spoken, or content that its version does not allow. Unknown fields are ignored: they may
    /// come from a newer plugin.
    pub fn from_value(json: Value) -> Result<(Version, Self), ResultError> {
        let said = json.get("cniVersion").and_then(Value::as_str).unwrap_or_default();
        let version = said.parse().map_err(ResultError::Version)?;
        let result = serde_json::from_value(json).map_err(ResultError::Content)?;
        Ok((version, result))
    }

    /// Writes it in the form of `version`; what that version has no field for is left out.
    pub fn to_value(&self, version: Version) -> Value {
        let mut object = match serde_json::to_value(self) {
            Ok(Value::Object(object)) => object,
            // Strings, numbers and lists only: neither a key that is no string nor a failing `Serialize` is in there.
            other => unreachable!("a result is an object: {other:?}"),
        };
        if version < Version::V1_1_0 {
            each(&mut object, "interfaces", |i| drop_keys(i, &["mtu", "socketPath", "pciID"]));
            each(&mut object, "routes", |r| drop_keys(r, &["mtu", "advmss", "priority", "table", "scope"]));
        }
        if version < Version::V1_0_0 {
            each(&mut object, "ips", |ip| {
                let six = ip.get("address").and_then(Value::as_str).is_some_and(|a| a.contains(':'));
                ip.insert("version".into(), if six { "6" } else { "4" }.into());
            });
        }
        object.insert("cniVersion".into(), version.as_str().into());
        Value::Object(object)
    }
}

fn each(object: &mut Map<String, Value>, list: &str, change: impl Fn(&mut Map<String, Value>)) {
    let items = object.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
    items.filter_map(Value::as_object_mut).for_each(change);
}

fn drop_keys(object: &mut Map<String, Value>, keys: &[&str]) {
    object.retain(|key, _| !keys.contains(&key.as_str()));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn full() -> AddResult {
        AddResult {
            interfaces: vec![
                Interface { name: "berth0".into(), mac: "02:00:00:00:00:01".into(), ..Default::default() },
                Interface {
                    name: "eth0".into(),
                    mac: "02:00:00:00:00:02".into(),
                    sandbox: "/run/netns/a".into(),
                    mtu: Some(1450),
                    socket_path: "/s".into(),
                    pci_id: "0000:00:1f.6".into(),
                },
            ],
            ips: vec![
                IpConfig {
                    address: "10.1.2.3/24".parse().unwrap(),
                    gateway: Some("10.1.2.1".parse().unwrap()),
                    interface: Some(1),
                },
                IpConfig { address: "fd00::3/64".parse().unwrap(), gateway: None, interface: Some(1) },
            ],
            routes: vec![Route {
                dst: "0.0.0.0/0".parse().unwrap(),
                gw: Some("10.1.2.1".parse().unwrap()),
                mtu: Some(1400),
                advmss: Some(1360),
                priority: Some(100),
                table: Some(254),
                scope: Some(0),
            }],
            dns: Dns { nameservers: vec!["10.1.2.1".into()], search: vec!["x.test".into()], ..Default::default() },
        }
    }

    #[test]
    fn the_newest_form_loses_nothing() {
        let json = full().to_value(Version::V1_1_0);
        assert_eq!(json["interfaces"][1]["pciID"], "0000:00:1f.6");
        assert_eq!(AddResult::from_value(json).unwrap(), (Version::V1_1_0, full()));
    }

    #[test]
    fn version_1_0_0_has_no_mtu() {
        let json = full().to_value(Version::V1_0_0);
        let expected = json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": "berth0", "mac": "02:00:00:00:00:01"},
                {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/a"},
            ],
            "ips": [
                {"address": "10.1.2.3/24", "gateway": "10.1.2.1", "interface": 1},
                {"address": "fd00::3/64", "interface": 1},
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.2.1"}],
            "dns": {"nameservers": ["10.1.2.1"], "search": ["x.test"]},
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn older_versions_say_the_family_of_an_address() {
        for version in [Version::V0_3_1, Version::V0_4_0] {
            let json = full().to_value(version);
            assert_eq!((&json["ips"][0]["version"], &json["ips"][1]["version"]), (&json!("4"), &json!("6")));
            let (read, back) = AddResult::from_value(json).unwrap();
            assert_eq!(read, version);
            assert_eq!(back.ips, full().ips);
            assert_eq!(back.dns, full().dns);
        }
    }

    #[test]
    fn a_result_without_a_spoken_version_is_refused() {
        for json in [json!({"ips": []}), json!({"cniVersion": "0.2.0", "ip4": {}})] {
            assert!(matches!(AddResult::from_value(json), Err(ResultError::Version(_))));
        }
        let bad = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.1.2.3"}]});
        assert!(AddResult::from_value(bad).unwrap_err().to_string().contains("\"10.1.2.3\""));
    }

    #[test]
    fn an_empty_result_is_its_version_alone() {
        assert_eq!(AddResult::default().to_value(Version::V1_1_0), json!({"cniVersion": "1.1.0"}));
    }

    #[test]
    fn a_network_holds_its_addresses_and_no_others() {
        let cases = [
            ("10.1.2.3/24", "10.1.2.0/24", "10.1.2.255", "10.1.3.0"),
            ("10.1.2.3/32", "10.1.2.3/32", "10.1.2.3", "10.1.2.4"),
            ("10.1.2.3/0", "0.0.0.0/0", "255.255.255.255", "::1"),
            ("fd00::5:6/112", "fd00::5:0/112", "fd00::5:ffff", "fd00::6:0"),
            ("fd00::5/0", "::/0", "ff02::1", "10.1.2.3"),
        ];
        for (text, network, inside, outside) in cases {
            let cidr: Cidr = text.parse().unwrap();
            assert_eq!(cidr.network().to_string(), network);
            assert!(cidr.contains(inside.parse().unwrap()), "{inside} in {cidr}");
            assert!(!cidr.contains(outside.parse().unwrap()), "{outside} in {cidr}");
        }
    }

    #[test]
    fn cidr_refuses_what_is_none() {
        for text in ["10.0.0.1", "10.0.0.1/33", "fe80::1/129", "10.0.0/8", "/8", "10.0.0.1/-1"] {
            assert_eq!(text.parse::<Cidr>(), Err(NotCidr(text.into())));
        }
    }
}
