//! The `host-local` plugin, alone: called by another plugin that delegates its `ipam` to it.

use berth_api::cni::call::Call;
use berth_api::cni::result::AddResult;

use crate::config::Network;
use crate::error::Error;
use crate::ipam::local::Local;
use crate::skel::Plugin;

/// See `ipam::local`.
pub struct HostLocal;

impl Plugin for HostLocal {
    fn operations(&self) -> &'static [&'static str] {
        &["ipam_add", "ipam_del", "ipam_gc"]
    }

    fn add(&self, call: &Call, network: &Network) -> Result<AddResult, Error> {
        Local::of(call, network)?.add()
    }

    fn del(&self, call: &Call, network: &Network) -> Result<(), Error> {
        Local::of(call, network)?.del()
    }

    fn check(&self, call: &Call, network: &Network) -> Result<(), Error> {
        let result = network.prev_result()?.ok_or_else(|| Error::config("prevResult", "is missing"))?;
        Local::of(call, network)?.check(&result)
    }

    fn gc(&self, call: &Call, network: &Network) -> Result<(), Error> {
        Local::of(call, network)?.gc(&network.valid_attachments()?)
    }

    fn status(&self, call: &Call, network: &Network) -> Result<(), Error> {
        Local::of(call, network)?.status()
    }
}
