//! DEL and GC. The order is the promise: an address is free for others only when nothing answers to it any more.

use berth_api::cni::call::{ARG_NETNS_OWNED, Call};
use berth_api::cni::config::Attachment;

use super::options::Options;
use super::ports::{self, Mapping};
use crate::error::Error;
use crate::ipam::Ipam;
use crate::link::Links;
use crate::link::pod::PodLinks;
use crate::link::veth::Veth;
use crate::nat::Ports;
use crate::netns::Netns;

pub(super) fn del(call: &Call, options: &Options, mappings: &[Mapping], ipam: &Ipam<'_>) -> Result<(), Error> {
    ports::withdraw(call, options, mappings)?;
    let mut links = Links::open().map_err(Error::kernel("open netlink socket for", &options.bridge))?;
    let veth = Veth::of(&call.container_id, &call.ifname);
    if call.args.is_set(ARG_NETNS_OWNED) {
        veth.quiet(&mut links)?;
        remove_addresses(call)?;
    } else {
        veth.remove(&mut links)?;
    }
    step!("cni_del::ipam-free", ipam.del())
}

/// The namespace stays a moment longer; nothing in it may speak under an address that another pod is about to get.
fn remove_addresses(call: &Call) -> Result<(), Error> {
    let Some(path) = &call.netns else { return Ok(()) };
    match Netns::open_if_there(path)? {
        Some(pod) => PodLinks::open(&pod, &call.ifname)?.remove_addresses(),
        None => Ok(()),
    }
}

/// Takes the devices of all but the valid attachments, then frees their leases.
pub(super) fn gc(options: &Options, ipam: &Ipam<'_>, valid: &[Attachment]) -> Result<(), Error> {
    let mut links = Links::open().map_err(Error::kernel("open netlink socket for", &options.bridge))?;
    let stale = ipam.stale(valid)?;
    if !stale.is_empty() {
        let mut ports = Ports::open(&options.nft_table)?;
        stale.iter().try_for_each(|owner| ports.withdraw(owner))?;
    }
    for owner in stale {
        Veth::of(&owner.container_id, &owner.ifname).remove(&mut links)?;
    }
    ipam.gc(valid)
}
