//! A bridge on the host: made by whoever needs it first, kept for ever.

use std::io;
use std::net::IpAddr;

use berth_api::cni::result::Cidr;
use nix::errno::Errno;
use rtnetlink::packet_route::link::InfoKind;
use rtnetlink::{LinkBridge, LinkUnspec};

use super::{Device, Links, Mac, address_of, is};
use crate::error::Error;
use crate::sysctl;

/// What a bridge is to be when it is made.
#[derive(Debug)]
pub(crate) struct BridgeSpec<'a> {
    pub(crate) name: &'a str,
    /// Bytes; `None` lets it follow its ports.
    pub(crate) mtu: Option<u32>,
    /// Also receive what is for others.
    pub(crate) promiscuous: bool,
}

impl BridgeSpec<'_> {
    /// Makes the bridge if it is not there, and brings it up. Any number of calls may do so at once.
    pub(crate) fn ensure(&self, links: &mut Links) -> Result<Device, Error> {
        let device = match self.find_bridge(links)? {
            Some(device) => device,
            None => {
                step!("cni_add::bridge-create", self.create(links))?;
                let gone = || io::Error::from(io::ErrorKind::NotFound);
                self.find_bridge(links)?.ok_or_else(|| Error::kernel("find bridge", self.name)(gone()))?
            }
        };
        // Pods are on it: whoever of them advertises himself as a router is none of the host's, be the network's addresses
        // of IPv4 alone (CVE-2020-10749 and its kin). So it is born down.
        sysctl::refuse_router_advertisements(self.name)?;
        if !device.up {
            let up = LinkUnspec::new_with_index(device.index).up().build();
            links.change(up).map_err(Error::kernel("bring up bridge", self.name))?;
        }
        Ok(device)
    }

    /// The bridge, if it is there.
    ///
    /// # Errors
    /// Something else is there under its name.
    pub(crate) fn find_bridge(&self, links: &mut Links) -> Result<Option<Device>, Error> {
        let found = links.by_name(self.name).map_err(Error::kernel("look for bridge", self.name))?;
        match found.as_ref().map(|device| &device.kind) {
            None | Some(Some(InfoKind::Bridge)) => Ok(found),
            Some(kind) => {
                let kind = kind.as_ref().map_or("a device without a kind".into(), |kind| kind.to_string());
                Err(Error::config("bridge", format!("{:?} is there and is no bridge but {kind}", self.name)))
            }
        }
    }

    fn create(&self, links: &mut Links) -> Result<(), Error> {
        // With an address of its own it keeps it; otherwise it takes the lowest of its ports', which come and go.
        let mac = random_mac().map_err(Error::kernel("choose a hardware address for bridge", self.name))?;
        let mut message = LinkBridge::new(self.name).address(mac.to_vec());
        if let Some(mtu) = self.mtu {
            message = message.mtu(mtu);
        }
        if self.promiscuous {
            message = message.promiscuous(true);
        }
        match links.create(message.build()) {
            // Another call was faster; its bridge is as good as ours.
            Err(e) if is(&e, Errno::EEXIST) => Ok(()),
            result => result.map_err(Error::kernel("create bridge", self.name)),
        }
    }
}

/// Gives the bridge the address at which pods find their way out.
pub(crate) fn ensure_gateway(links: &mut Links, name: &str, bridge: &Device, address: Cidr) -> Result<(), Error> {
    let wrong = |e| Error::kernel("give the gateway's address", format!("{address} to bridge {name}"))(e);
    match step!("cni_add::bridge-address", links.ensure_address(bridge.index, address)) {
        // IPv6 is switched off for new devices here: this one needs it.
        Err(e) if is(&e, Errno::EACCES) && address.address().is_ipv6() => {
            sysctl::enable_ipv6(name)?;
            links.ensure_address(bridge.index, address).map_err(wrong)?;
        }
        result => result.map_err(wrong)?,
    }
    Ok(())
}

/// Takes the addresses from the bridge that are in the way of `gateways`: every other one of IPv4, and those of IPv6
/// whose network overlaps. Source: the reference plugin's `forceAddress`.
pub(crate) fn clear_way(links: &mut Links, name: &str, bridge: &Device, gateways: &[Cidr]) -> Result<(), Error> {
    let wrong = |deed| Error::kernel(deed, format!("of bridge {name}"));
    for message in links.addresses(bridge.index).map_err(wrong("list the addresses"))? {
        let Some(there) = address_of(&message).filter(|there| !gateways.contains(there)) else { continue };
        let overlaps = |gateway: &Cidr| there.contains(gateway.address()) || gateway.contains(there.address());
        let in_the_way = |gateway: &Cidr| match (there.address(), gateway.address()) {
            (IpAddr::V4(_), IpAddr::V4(_)) => true,
            _ => overlaps(gateway),
        };
        if gateways.iter().any(in_the_way) {
            // Before the new one comes: it would go along, as a secondary address of the same network.
            links.remove_address(message).map_err(wrong("remove an address"))?;
        }
    }
    Ok(())
}

fn random_mac() -> io::Result<Mac> {
    let mut mac = Mac::default();
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut mac)?;
    // Locally administered, of one device.
    mac[0] = (mac[0] | 0x02) & !0x01;
    Ok(mac)
}
