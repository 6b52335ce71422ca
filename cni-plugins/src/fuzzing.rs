//! What the plugins are told, by their caller and by the kernel, for `test/fuzz`: each function panics when a promise is
//! broken.

pub use crate::nat::fuzzing::netlink_answers;

use berth_api::cni::call::Call;
use serde_json::{Map, Value};

use crate::config::Network;
use crate::ipam::config::Config;
use crate::ipam::store::parse;

/// A call: the environment's variables a line each, an empty line, the configuration. The options of every plugin, the
/// ranges and the lease files.
pub fn plugin_calls(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (environment, config) = text.split_once("\n\n").unwrap_or(("", &text));
    let variable = |name: &str| {
        environment.lines().filter_map(|line| line.split_once('=')).find(|(n, _)| *n == name).map(|(_, v)| v.into())
    };
    let call = Call::from_env(variable);
    if let Ok(call) = &call {
        assert!(!call.container_id.contains('/') && call.ifname.len() <= 15);
    }
    if let (Some(owner), _) = parse(&text) {
        assert!(!owner.container_id.is_empty() && !owner.ifname.is_empty());
    }
    let Ok(config) = serde_json::from_str::<Map<String, Value>>(config) else { return };
    let Ok(network) = Network::new(config) else { return };
    assert!(!network.name.contains('/'));
    if let Ok(Some(result)) = network.prev_result() {
        result.to_value(network.version);
    }
    let _ = network.valid_attachments();
    let call = call.unwrap_or_else(|_| {
        let plain = [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c"), ("CNI_NETNS", "/n"), ("CNI_IFNAME", "eth0")];
        Call::from_env(|name| plain.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).into())).expect("a call")
    });
    crate::bridge::fuzzing::options(&call, &network);
    if let Ok(config) = Config::of(&call, &network) {
        assert!(config.data_dir.is_absolute());
        let _ = config.check_requested();
        for set in &config.sets {
            for last in [None, config.requested.first().copied()] {
                assert!(set.after(last).take(3).all(|ip| set.range_of(ip).is_some()), "{set}");
            }
        }
    }
}

#[cfg(test)]
#[path = "../../test/fuzz/kept.rs"]
mod kept;

#[cfg(test)]
mod tests {
    use super::kept;

    #[test]
    fn kept_inputs_of_every_target_are_borne() {
        kept::feed_each(&[("plugin_calls", &super::plugin_calls), ("kernel_files", &super::netlink_answers)]);
    }
}
