//! The options of `bridge`, for `test/fuzz`.

use berth_api::cni::call::{Call, is_ifname};

use super::options::Options;
use super::ports::mappings;
use crate::config::Network;

pub(crate) fn options(call: &Call, network: &Network) {
    if let Ok(options) = Options::of(call, network) {
        assert!(is_ifname(&options.bridge) && options.mtu != Some(0));
    }
    let _ = mappings(network);
}
