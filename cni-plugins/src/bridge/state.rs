//! CHECK: asks the kernel whether the attachment is as ADD left it.

use std::path::Path;

use berth_api::cni::call::Call;
use berth_api::cni::result::AddResult;

use super::options::Options;
use super::ports::{self, Mapping};
use crate::error::Error;
use crate::ipam::Ipam;
use crate::link::Links;
use crate::link::pod::PodLinks;
use crate::link::veth::{Veth, are_pair};
use crate::nat::Masquerade;
use crate::netns::Netns;

pub(super) fn check(
    call: &Call,
    options: &Options,
    mappings: &[Mapping],
    ipam: &Ipam<'_>,
    result: &AddResult,
) -> Result<(), Error> {
    let changed = |what: String| Err(Error::Changed(what));
    let mut links = Links::open().map_err(Error::kernel("open netlink socket for", &options.bridge))?;
    let Some(bridge) = options.bridge_spec().find_bridge(&mut links)? else {
        return changed(format!("bridge {} is gone", options.bridge));
    };
    let veth = Veth::of(&call.container_id, &call.ifname);
    let Some(host) = veth.find(&mut links)? else { return changed(format!("device {} is gone", veth.host)) };
    if host.controller != Some(bridge.index) {
        return changed(format!("device {} is not on bridge {}", veth.host, options.bridge));
    }
    if !host.up || !bridge.up {
        return changed(format!("device {} or bridge {} is down", veth.host, options.bridge));
    }
    let pod = Netns::open(call.netns.as_deref().unwrap_or(Path::new("")))?;
    let inside = PodLinks::open(&pod, &call.ifname)?.check(result)?;
    if !are_pair(&host, &inside) {
        return changed(format!("{} in {} does not lead to {}", call.ifname, pod.path().display(), veth.host));
    }
    if options.ip_masq {
        let mut masquerade = Masquerade::open(&options.nft_table)?;
        for ip in &result.ips {
            let subnet = ip.address.network();
            if !masquerade.has(subnet)? {
                return changed(format!("{subnet} is not masqueraded by nftables table {}", options.nft_table));
            }
        }
    }
    if let Some(port) = ports::missing(call, options, mappings, result)? {
        return changed(format!("host port {port} is not published in nftables table {}", options.nft_table));
    }
    ipam.check(result)
}
