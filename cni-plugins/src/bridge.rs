//! The `bridge` plugin: a pair of devices from the pod to a bridge on the host, addresses by an IPAM plugin, the host
//! as gateway, masquerade towards the world, published ports.

mod add;
mod del;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod options;
mod ports;
mod state;

use berth_api::cni::call::{Call, is_ifname};
use berth_api::cni::result::AddResult;

use crate::config::Network;
use crate::error::Error;
use crate::ipam::Ipam;
use crate::link::Links;
use crate::nat::{Masquerade, obstacles};
use crate::skel::Plugin;
use options::Options;

/// `bridge forwarding NAME`: not of the contract, for `berthd check`. One line for each thing that keeps the packets of
/// bridge NAME from being forwarded, with what to do about it; nothing when there is none.
///
/// # Errors
/// The name cannot be a device's, or netfilter cannot be asked.
pub fn forwarding(bridge: &str) -> Result<String, Error> {
    if !is_ifname(bridge) {
        return Err(Error::config("bridge", format!("{bridge:?} cannot be the name of a device")));
    }
    Ok(obstacles(bridge)?.iter().map(|obstacle| format!("{obstacle}\n")).collect())
}

/// See the file's first lines.
pub struct Bridge;

impl Plugin for Bridge {
    fn operations(&self) -> &'static [&'static str] {
        &["cni_add", "cni_del", "ipam_add", "ipam_del", "ipam_gc"]
    }

    fn add(&self, call: &Call, network: &Network) -> Result<AddResult, Error> {
        let options = Options::of(call, network)?;
        let ipam = Ipam::of(call, network)?;
        add::add(call, &options, &ports::mappings(network)?, &ipam)
    }

    fn del(&self, call: &Call, network: &Network) -> Result<(), Error> {
        let options = Options::of(call, network)?;
        let ipam = Ipam::of(call, network)?;
        del::del(call, &options, &ports::mappings(network)?, &ipam)
    }

    fn check(&self, call: &Call, network: &Network) -> Result<(), Error> {
        let options = Options::of(call, network)?;
        let ipam = Ipam::of(call, network)?;
        let result = network.prev_result()?.ok_or_else(|| Error::config("prevResult", "is missing"))?;
        state::check(call, &options, &ports::mappings(network)?, &ipam, &result)
    }

    fn gc(&self, call: &Call, network: &Network) -> Result<(), Error> {
        let options = Options::of(call, network)?;
        let ipam = Ipam::of(call, network)?;
        del::gc(&options, &ipam, &network.valid_attachments()?)
    }

    fn status(&self, call: &Call, network: &Network) -> Result<(), Error> {
        let options = Options::of(call, network)?;
        let unusable = |what: &str, e: std::io::Error| Error::NotAvailable(format!("{what}: {e}"));
        let mut links = Links::open().map_err(|e| unusable("netlink", e))?;
        // A device of another kind in the bridge's place would make every ADD fail.
        options.bridge_spec().find_bridge(&mut links)?;
        if options.ip_masq {
            Masquerade::open(&options.nft_table)?.usable().map_err(|e| unusable("nftables", e))?;
        }
        Ipam::of(call, network)?.status()
    }
}
