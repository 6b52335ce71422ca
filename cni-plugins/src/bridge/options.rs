//! The options of the `bridge` plugin.

use berth_api::cni::call::{Call, is_ifname, is_name};
use berth_api::cni::result::Dns;
use serde::Deserialize;
use serde_json::Value;

use crate::config::{DeserializeAt, Network};
use crate::error::Error;
use crate::link::bridge::BridgeSpec;
use crate::link::{Mac, mac_from_text};

const KEYS: &[&str] = &[
    "bridge",
    "isGateway",
    "isDefaultGateway",
    "forceAddress",
    "ipMasq",
    "ipMasqBackend",
    "hairpinMode",
    "promiscMode",
    "mtu",
    "nftTable",
];

/// What the reference plugin has and this one has not: to be told from a typing error.
const NOT_YET: &[&str] = &[
    "vlan",
    "vlanTrunk",
    "preserveDefaultVlan",
    "enabledad",
    "macspoofchk",
    "disableContainerInterface",
    "portIsolation",
];

/// Smallest and largest MTU of an Ethernet device that carries IPv4. Source: RFC 791 and `ETH_MAX_MTU`.
const MTU: std::ops::RangeInclusive<u32> = 68..=65535;

/// What the network's author may say.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Written {
    bridge: String,
    is_gateway: bool,
    is_default_gateway: bool,
    force_address: bool,
    ip_masq: bool,
    ip_masq_backend: Option<String>,
    hairpin_mode: bool,
    promisc_mode: bool,
    mtu: u32,
    nft_table: String,
}

impl Default for Written {
    fn default() -> Self {
        Written {
            // Source: the reference plugin.
            bridge: "cni0".into(),
            is_gateway: false,
            is_default_gateway: false,
            force_address: false,
            ip_masq: false,
            ip_masq_backend: None,
            hairpin_mode: false,
            promisc_mode: false,
            mtu: 0,
            nft_table: "berth".into(),
        }
    }
}

/// The options, checked.
#[derive(Debug)]
pub(super) struct Options {
    /// Name of the bridge.
    pub(super) bridge: String,
    /// The bridge has the gateway's address, and the host forwards.
    pub(super) is_gateway: bool,
    /// The pod's default route leads there.
    pub(super) is_default_gateway: bool,
    /// An address of the bridge that is in the gateway's way is taken from it.
    pub(super) force_address: bool,
    /// What leaves the pod's network carries the host's address.
    pub(super) ip_masq: bool,
    /// The bridge sends a pod's packets back to it, if they are for it.
    pub(super) hairpin: bool,
    promiscuous: bool,
    /// Bytes, of both ends and of a new bridge; `None`: the kernel's default.
    pub(super) mtu: Option<u32>,
    /// nftables table for masquerade.
    pub(super) nft_table: String,
    /// The pod's hardware address, if the call asks for one.
    pub(super) mac: Option<Mac>,
    /// What the network says of name servers.
    pub(super) dns: Dns,
}

impl Options {
    /// Reads and checks them.
    pub(super) fn of(call: &Call, network: &Network) -> Result<Self, Error> {
        if let Some(key) = NOT_YET.iter().find(|key| network.config.contains_key(**key)) {
            return Err(Error::config(*key, "is an option of the reference plugin that berth's does not support"));
        }
        let written: Written = network.options(KEYS)?;
        if !is_ifname(&written.bridge) {
            return Err(Error::config("bridge", format!("{:?} cannot be the name of a device", written.bridge)));
        }
        if !is_name(&written.nft_table) {
            return Err(Error::config("nftTable", format!("{:?} cannot be the name of a table", written.nft_table)));
        }
        if written.hairpin_mode && written.promisc_mode {
            return Err(Error::config("promiscMode", "cannot go with hairpinMode: packets would come twice"));
        }
        if written.mtu != 0 && !MTU.contains(&written.mtu) {
            return Err(Error::config(
                "mtu",
                format!("{} is not within {} to {}", written.mtu, MTU.start(), MTU.end()),
            ));
        }
        match written.ip_masq_backend.as_deref() {
            None | Some("" | "nftables") => {}
            Some(other) => {
                return Err(Error::config("ipMasqBackend", format!("{other:?} is not supported, only \"nftables\"")));
            }
        }
        let has_ipam = network.config.get("ipam").and_then(Value::as_object).is_some_and(|ipam| !ipam.is_empty());
        if !has_ipam && (written.is_gateway || written.is_default_gateway || written.ip_masq) {
            return Err(Error::config("ipam", "is missing: isGateway, isDefaultGateway and ipMasq need addresses"));
        }
        Ok(Options {
            bridge: written.bridge,
            is_gateway: written.is_gateway || written.is_default_gateway,
            is_default_gateway: written.is_default_gateway,
            force_address: written.force_address,
            ip_masq: written.ip_masq,
            hairpin: written.hairpin_mode,
            promiscuous: written.promisc_mode,
            mtu: Some(written.mtu).filter(|mtu| *mtu != 0),
            nft_table: written.nft_table,
            mac: asked_mac(call, network)?,
            dns: network.config.get("dns").map_or(Ok(Dns::default()), |dns| Dns::deserialize_at(dns, "dns"))?,
        })
    }

    /// The bridge, as it is to be when it is made.
    pub(super) fn bridge_spec(&self) -> BridgeSpec<'_> {
        BridgeSpec { name: &self.bridge, mtu: self.mtu, promiscuous: self.promiscuous }
    }
}

/// A hardware address asked for: by the capability `mac`, by `args.cni.mac`, or by `MAC` in CNI_ARGS.
fn asked_mac(call: &Call, network: &Network) -> Result<Option<Mac>, Error> {
    let in_config = network.at(&["runtimeConfig", "mac"]).or_else(|| network.at(&["args", "cni", "mac"]));
    let text = match in_config {
        Some(Value::String(text)) => Some(text.as_str()),
        Some(_) => return Err(Error::config("runtimeConfig.mac", "is not a string")),
        None => call.args.get("MAC"),
    };
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    match mac_from_text(text) {
        Some(mac) => Ok(Some(mac)),
        None => Err(Error::config("runtimeConfig.mac", format!("{text:?} is not the address of a device"))),
    }
}

#[cfg(test)]
mod tests {
    use berth_api::cni::call::Verb;
    use serde_json::json;

    use super::*;

    fn parse(extra: Value) -> Result<Options, Error> {
        let mut json = json!({"cniVersion": "1.1.0", "name": "n", "type": "bridge", "ipam": {"type": "host-local"}});
        json.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        Options::of(&Call::new(Verb::Add), &Network::new(json.as_object().unwrap().clone()).unwrap())
    }

    #[test]
    fn a_default_gateway_is_a_gateway() {
        let options = parse(json!({"isDefaultGateway": true, "mtu": 1400})).unwrap();
        assert!(options.is_gateway && options.is_default_gateway && !options.ip_masq);
        assert_eq!((options.bridge.as_str(), options.nft_table.as_str(), options.mtu), ("cni0", "berth", Some(1400)));
    }

    #[test]
    fn keys_of_the_contract_are_no_options() {
        let extra = json!({
            "capabilities": {"ips": true}, "args": {}, "prevResult": {}, "cni.dev/x": 1, "dns": {"domain": "a.test"},
            "runtimeConfig": {"mac": "02:00:00:00:00:01"},
        });
        let options = parse(extra).unwrap();
        assert_eq!(options.mac, Some([2, 0, 0, 0, 0, 1]));
        assert_eq!(options.dns.domain, "a.test");
    }

    #[test]
    fn what_cannot_be_is_named() {
        let cases = [
            (json!({"hairpin": true}), "unknown option \"hairpin\""),
            (json!({"isgateway": true}), "unknown option \"isgateway\"; did you mean \"isGateway\"?"),
            (json!({"bridge": "a/b"}), "bridge: \"a/b\" cannot be the name of a device"),
            (json!({"nftTable": "a b"}), "nftTable: \"a b\" cannot be the name of a table"),
            (json!({"mtu": 20}), "mtu: 20 is not within 68 to 65535"),
            (json!({"ipMasqBackend": "iptables"}), "ipMasqBackend: \"iptables\" is not supported, only \"nftables\""),
            (
                json!({"hairpinMode": true, "promiscMode": true}),
                "promiscMode: cannot go with hairpinMode: packets would come twice",
            ),
            (
                json!({"ipam": {}, "isGateway": true}),
                "ipam: is missing: isGateway, isDefaultGateway and ipMasq need addresses",
            ),
            (json!({"runtimeConfig": {"mac": "x"}}), "runtimeConfig.mac: \"x\" is not the address of a device"),
        ];
        for (extra, problem) in cases {
            let error = parse(extra).unwrap_err().to_string();
            assert!(error.starts_with(problem), "{error}");
        }
        assert!(parse(json!({"mtu": "1400"})).unwrap_err().to_string().contains("1400"));
    }
}
