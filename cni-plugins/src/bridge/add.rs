//! ADD: each step finds what an earlier, perhaps killed, call left, and goes on from there.

use std::path::Path;

use berth_api::cni::call::Call;
use berth_api::cni::result::{AddResult, Cidr, Interface, IpConfig, Route};

use super::options::Options;
use super::ports::{self, Mapping};
use crate::error::Error;
use crate::ipam::Ipam;
use crate::link::bridge::{clear_way, ensure_gateway};
use crate::link::pod::PodLinks;
use crate::link::veth::{Made, Veth, pod_mac};
use crate::link::{Device, Links, Mac, mac_to_text};
use crate::nat::Masquerade;
use crate::netns::Netns;
use crate::sysctl::ensure_forwarding;

/// What stands around one pod's attachment while it is made.
struct Attaching<'a> {
    call: &'a Call,
    options: &'a Options,
    pod: &'a Netns,
    veth: &'a Veth<'a>,
    mappings: &'a [Mapping],
    links: Links,
}

pub(super) fn add(call: &Call, options: &Options, mappings: &[Mapping], ipam: &Ipam<'_>) -> Result<AddResult, Error> {
    // The call's parser has seen to it that ADD has a namespace.
    let pod = Netns::open(call.netns.as_deref().unwrap_or(Path::new("")))?;
    let veth = Veth::of(&call.container_id, &call.ifname);
    let links = Links::open().map_err(Error::kernel("open netlink socket for", &options.bridge))?;
    let leased = step!("cni_add::ipam-alloc", ipam.add())?;
    let mut attaching = Attaching { call, options, pod: &pod, veth: &veth, mappings, links };
    attaching.attach(leased).inspect_err(|_| attaching.give_back_addresses(ipam))
}

impl Attaching<'_> {
    fn attach(&mut self, leased: AddResult) -> Result<AddResult, Error> {
        let mut result = self.plan(leased);
        let bridge = self.options.bridge_spec().ensure(&mut self.links)?;
        self.ensure_gateways(&bridge, &result)?;
        self.ensure_masquerade(&result)?;
        let asked = self.options.mac;
        let mac = asked.unwrap_or_else(|| pod_mac(result.addresses().next(), &self.call.container_id));
        let made = self.veth.ensure(&mut self.links, &bridge, self.pod, mac, self.options.mtu)?;
        let configured = self.configure(&mut result, &bridge, mac);
        // Last: nobody is sent to a pod that is not there.
        let configured = configured.and_then(|()| ports::publish(self.call, self.options, self.mappings, &result));
        if configured.is_err() && made == Made::Now {
            // The first error is the one to tell; what stays behind, the DEL that follows a failed ADD takes.
            let _ = self.veth.remove(&mut self.links);
        }
        configured.map(|()| result)
    }

    /// Fills in gateways and the default route, as the options say.
    fn plan(&self, leased: AddResult) -> AddResult {
        let mut result = leased;
        if !self.options.dns.is_empty() {
            result.dns = self.options.dns.clone();
        }
        if self.options.is_gateway {
            for ip in result.ips.iter_mut().filter(|ip| ip.gateway.is_none()) {
                ip.gateway = first_of(ip.address.network());
            }
        }
        if self.options.is_default_gateway {
            let new: Vec<_> = result.ips.iter().filter_map(default_route).collect();
            for route in new {
                if !result.routes.iter().any(|r| r.dst == route.dst) {
                    result.routes.push(route);
                }
            }
        }
        result
    }

    fn ensure_gateways(&mut self, bridge: &Device, result: &AddResult) -> Result<(), Error> {
        if !self.options.is_gateway {
            return Ok(());
        }
        let gateway = |ip: &IpConfig| Cidr::new(ip.gateway?, ip.address.prefix());
        let gateways: Vec<Cidr> = result.ips.iter().filter_map(gateway).collect();
        if self.options.force_address {
            clear_way(&mut self.links, &self.options.bridge, bridge, &gateways)?;
        }
        for address in gateways {
            ensure_gateway(&mut self.links, &self.options.bridge, bridge, address)?;
            step!("cni_add::forwarding", ensure_forwarding(address.address()))?;
        }
        Ok(())
    }

    fn ensure_masquerade(&self, result: &AddResult) -> Result<(), Error> {
        if !self.options.ip_masq {
            return Ok(());
        }
        let mut masquerade = Masquerade::open(&self.options.nft_table)?;
        result.ips.iter().try_for_each(|ip| masquerade.ensure(ip.address.network()))
    }

    fn configure(&mut self, result: &mut AddResult, bridge: &Device, mac: Mac) -> Result<(), Error> {
        if self.options.hairpin {
            self.veth.ensure_hairpin(&mut self.links)?;
        }
        let mut inside = PodLinks::open(self.pod, &self.call.ifname)?;
        let gone = || Error::Changed(format!("{} vanished from {}", self.call.ifname, self.pod.path().display()));
        let device = inside.find()?.ok_or_else(gone)?;
        inside.configure(&device, result)?;
        let mac = if device.mac == Mac::default() { mac } else { device.mac };
        result.interfaces = self.interfaces(bridge, mac, device.mtu);
        result.ips.iter_mut().for_each(|ip| ip.interface = Some(result.interfaces.len() - 1));
        Ok(())
    }

    /// The bridge, the host's end, the pod's end: the order in which others look for them.
    fn interfaces(&self, bridge: &Device, pod_mac: Mac, mtu: u32) -> Vec<Interface> {
        let of = |name: &str, mac: Mac, mtu: u32, sandbox: String| Interface {
            name: name.into(),
            mac: mac_to_text(mac),
            sandbox,
            mtu: Some(mtu),
            ..Default::default()
        };
        vec![
            of(&self.options.bridge, bridge.mac, bridge.mtu, String::new()),
            of(&self.veth.host, self.veth.host_mac, mtu, String::new()),
            of(&self.call.ifname, pod_mac, mtu, self.pod.path().to_string_lossy().into_owned()),
        ]
    }

    /// After a failure: the addresses go back, unless an earlier ADD of this pod stands and uses them.
    fn give_back_addresses(&mut self, ipam: &Ipam<'_>) {
        if matches!(self.veth.find(&mut self.links), Ok(None)) {
            // As above.
            let _ = ipam.del();
        }
    }
}

/// The first address of a network, where the gateway is if nobody says otherwise.
fn first_of(network: Cidr) -> Option<std::net::IpAddr> {
    use std::net::IpAddr;
    Some(match network.address() {
        IpAddr::V4(ip) => IpAddr::V4(u32::from(ip).checked_add(1)?.into()),
        IpAddr::V6(ip) => IpAddr::V6(u128::from(ip).checked_add(1)?.into()),
    })
}

fn default_route(ip: &IpConfig) -> Option<Route> {
    let gw = ip.gateway?;
    let any = if gw.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let dst = Cidr::new(any, 0)?;
    Some(Route { dst, gw: Some(gw), mtu: None, advmss: None, priority: None, table: None, scope: None })
}
