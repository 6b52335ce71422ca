//! What network plugins and their configuration files say, for `test/fuzz`.

use berth_api::cni::config::{Extras, NetworkList};
use berth_api::cni::result::AddResult;
use serde_json::Value;

use super::builtin::{parse_routes, pick};
use super::plugin::failure;

/// A file of a network, a plugin's result or error, the kernel's routes: what is taken can be passed on and read again.
pub fn network_answers(data: &[u8]) {
    for list in [NetworkList::parse("file", data), NetworkList::parse_single("file", data)] {
        match list {
            Ok(list) => {
                for plugin in &list.plugins {
                    let stdin = list.stdin(plugin, &Extras::default());
                    let said: Value = serde_json::from_slice(&stdin).expect("a plugin's configuration is JSON");
                    assert_eq!(said["name"], list.name.as_str());
                    // It names a file of the plugin directories.
                    assert!(!plugin.kind.is_empty() && !plugin.kind.contains('/'), "{:?}", plugin.kind);
                }
            }
            Err(error) => assert!(error.to_string().starts_with("file: ")),
        }
    }
    if let Ok(json) = serde_json::from_slice::<Value>(data)
        && let Ok((version, result)) = AddResult::from_value(json)
    {
        let written = result.to_value(version);
        let (again, read) = AddResult::from_value(written.clone()).expect("what was written can be read");
        assert_eq!((again, read.to_value(version)), (version, written));
    }
    let text = String::from_utf8_lossy(data);
    let _ = failure(&text, &text, "exit status: 1").to_string();
    let routes = parse_routes(&text);
    if let Some(subnet) = pick("0a1b2c", &routes) {
        assert!(subnet.ends_with("/20"), "{subnet}");
    }
}
