//! The pair of devices between a pod and its bridge. One message makes it whole: the pod's end is born in the pod,
//! the host's end on the bridge. Moving a device into a namespace afterwards would cost 13 ms (an RCU grace period).

use std::net::IpAddr;

use nix::errno::Errno;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute};
use rtnetlink::{LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth};
use sha2::{Digest, Sha256};

use super::{Device, Links, Mac, is};
use crate::error::Error;
use crate::netns::Netns;

/// One pod's pair: who it is for decides all its names, so that a repetition finds it.
#[derive(Debug)]
pub(crate) struct Veth<'a> {
    /// Name of the host's end.
    pub(crate) host: String,
    /// Hardware address of the host's end.
    pub(crate) host_mac: Mac,
    /// Name of the pod's end.
    pub(crate) ifname: &'a str,
}

/// Whether this call made the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Made {
    /// It did, and takes it back if it fails later.
    Now,
    /// An earlier one did.
    Before,
}

impl<'a> Veth<'a> {
    /// The pair of one interface of one pod.
    pub(crate) fn of(container_id: &str, ifname: &'a str) -> Self {
        let hash = Sha256::digest(format!("{container_id}\0{ifname}"));
        // Network managers know by the prefix `veth` that the device is none of theirs. 44 bits: a thousand pods share
        // a name with a probability of 3 in 10^8.
        let digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let host_mac = [0x02, hash[6], hash[7], hash[8], hash[9], hash[10]];
        Veth { host: format!("veth{}", &digits[..11]), host_mac, ifname }
    }

    /// Makes the pair, or finds that it is there and whole.
    ///
    /// # Errors
    /// The pod has another device of this name, or the kernel refused.
    pub(crate) fn ensure(
        &self,
        links: &mut Links,
        bridge: &Device,
        pod: &Netns,
        pod_mac: Mac,
        mtu: Option<u32>,
    ) -> Result<Made, Error> {
        match self.create(links, bridge, pod, pod_mac, mtu) {
            Err(e) if is(&e, Errno::EEXIST) => {}
            Err(e) => return Err(Error::kernel("create device pair", self.pair(pod))(e)),
            Ok(()) => return Ok(Made::Now),
        }
        if self.is_whole(links, pod)? {
            let port = LinkUnspec::new_with_name(&self.host).controller(bridge.index).up().build();
            links.change(port).map_err(Error::kernel("put on the bridge", &self.host))?;
            return Ok(Made::Before);
        }
        // What has our name leads into another namespace: a pod of this id was there before and its namespace is gone
        // or going. Or only the pod's name is taken, by a device that is not ours; then the second attempt fails too.
        links.remove(&self.host).map_err(Error::kernel("remove stale device", &self.host))?;
        self.create(links, bridge, pod, pod_mac, mtu).map_err(Error::kernel("create device pair", self.pair(pod)))?;
        Ok(Made::Now)
    }

    fn create(
        &self,
        links: &mut Links,
        bridge: &Device,
        pod: &Netns,
        pod_mac: Mac,
        mtu: Option<u32>,
    ) -> std::io::Result<()> {
        let mut peer = one_queue(LinkMessageBuilder::<LinkUnspec>::new())
            .name(self.ifname)
            .address(pod_mac.to_vec())
            .setns_by_fd(pod.raw_fd());
        let mut host = one_queue(LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth))
            .name(&self.host)
            .address(self.host_mac.to_vec())
            .controller(bridge.index)
            .up();
        if let Some(mtu) = mtu {
            peer = peer.mtu(mtu);
            host = host.mtu(mtu);
        }
        let message = host.set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build()))).build();
        step!("cni_add::veth-create", links.create(message))
    }

    /// Whether both ends are there and each other's.
    fn is_whole(&self, links: &mut Links, pod: &Netns) -> Result<bool, Error> {
        let host = self.find(links)?;
        let inside = pod.inside(|| {
            let mut links = Links::open().map_err(Error::kernel("open netlink socket in", pod.path().display()))?;
            links.by_name(self.ifname).map_err(Error::kernel("look for device", self.ifname))
        })?;
        Ok(match (host, inside) {
            (Some(host), Some(inside)) => are_pair(&host, &inside),
            _ => false,
        })
    }

    /// The host's end, if it is there.
    pub(crate) fn find(&self, links: &mut Links) -> Result<Option<Device>, Error> {
        links.by_name(&self.host).map_err(Error::kernel("look for device", &self.host))
    }

    /// Lets the bridge send a pod's packets back to it, for a service that leads to the pod itself.
    pub(crate) fn ensure_hairpin(&self, links: &mut Links) -> Result<(), Error> {
        let port = LinkBridgePort::new(0).name(&self.host).hairpin(true).build();
        let changed = step!("cni_add::hairpin", links.change(port));
        changed.map_err(Error::kernel("set hairpin mode of", &self.host))
    }

    /// Takes the host's end down and off the bridge, where it waits for its namespace to go.
    pub(crate) fn quiet(&self, links: &mut Links) -> Result<(), Error> {
        let message = LinkUnspec::new_with_name(&self.host).nocontroller().down().build();
        match step!("cni_del::host-quiet", links.change(message)) {
            Err(e) if is(&e, Errno::ENODEV) => Ok(()),
            result => result.map_err(Error::kernel("take down and off the bridge", &self.host)),
        }
    }

    /// Deletes the pair, synchronously: 15 ms.
    pub(crate) fn remove(&self, links: &mut Links) -> Result<(), Error> {
        let removed = step!("cni_del::veth-delete", links.remove(&self.host));
        removed.map_err(Error::kernel("delete device", &self.host))
    }

    fn pair(&self, pod: &Netns) -> String {
        format!("{} and {} in {}", self.host, self.ifname, pod.path().display())
    }
}

/// A pair uses one queue unless told otherwise. Said at birth it is made with one; else the kernel makes one for each
/// CPU and takes the others away again, for which it waits twice (`veth_init_queues`, an RCU grace period each).
fn one_queue<T>(builder: LinkMessageBuilder<T>) -> LinkMessageBuilder<T> {
    let builder = builder.append_extra_attribute(LinkAttribute::NumTxQueues(1));
    builder.append_extra_attribute(LinkAttribute::NumRxQueues(1))
}

/// Whether two devices in two namespaces are the ends of one pair.
pub(crate) fn are_pair(host: &Device, inside: &Device) -> bool {
    host.peer == Some(inside.index) && inside.peer == Some(host.index)
}

/// A hardware address that is a function of the pod's first address: when the address is given to another pod, what
/// its neighbours remember of it stays right, and nobody needs to announce it.
pub(crate) fn pod_mac(address: Option<IpAddr>, container_id: &str) -> Mac {
    match address {
        Some(IpAddr::V4(ip)) => {
            let [a, b, c, d] = ip.octets();
            [0x0a, 0x58, a, b, c, d]
        }
        Some(IpAddr::V6(ip)) => hashed(&ip.octets()),
        None => hashed(container_id.as_bytes()),
    }
}

fn hashed(text: &[u8]) -> Mac {
    let hash = Sha256::digest(text);
    [0x06, hash[0], hash[1], hash[2], hash[3], hash[4]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_depend_on_pod_and_interface_alone_and_fit() {
        let id = "ab".repeat(32);
        let veth = Veth::of(&id, "eth0");
        assert_eq!(veth.host, Veth::of(&id, "eth0").host);
        assert_eq!(veth.host.len(), 15);
        let others = [Veth::of(&id, "eth1").host, Veth::of("b", "eth0").host, Veth::of("be", "th0").host];
        assert!(!others.contains(&veth.host));
        assert_ne!(others[1], others[2]);
    }

    #[test]
    fn hardware_addresses_are_local_and_of_one_device() {
        let four = pod_mac(Some("10.1.2.3".parse().unwrap()), "a");
        assert_eq!(four, [0x0a, 0x58, 10, 1, 2, 3]);
        for mac in
            [four, pod_mac(Some("fd00::1".parse().unwrap()), "a"), pod_mac(None, "a"), Veth::of("a", "b").host_mac]
        {
            assert_eq!(mac[0] & 0b11, 0b10);
        }
    }
}
