//! Links, addresses, routes, firewall objects and sockets of the network namespace we are in.

use std::fs;
use std::process::Command;

use serde_json::Value;

use super::Seen;

pub(super) fn look(seen: &mut Seen) {
    for link in json("ip", &["-j", "link", "show"]) {
        seen.add("link", text(&link, "ifname"));
    }
    for link in json("ip", &["-j", "address", "show"]) {
        for address in link["addr_info"].as_array().into_iter().flatten() {
            seen.add("address", format!("{} {}", text(&link, "ifname"), text(address, "local")));
        }
    }
    for family in ["-4", "-6"] {
        for route in json("ip", &["-j", family, "route", "show", "table", "all"]) {
            seen.add("route", format!("{} {} {}", text(&route, "dev"), text(&route, "dst"), text(&route, "table")));
        }
    }
    firewall(seen);
    sockets(seen);
}

fn firewall(seen: &mut Seen) {
    let objects = json("nft", &["-j", "list", "ruleset"]);
    for object in objects.iter().filter_map(|o| o.as_object()).flatten() {
        let (sort, of) = object;
        let path = ["family", "table", "chain", "name"].map(|key| text(of, key)).join(" ");
        let path = path.split_whitespace().collect::<Vec<_>>().join(" ");
        match sort.as_str() {
            "metainfo" => continue,
            "rule" => seen.add("nft", format!("rule {path} {}", of["expr"])),
            "set" | "map" => {
                seen.add("nft", format!("{sort} {path}"));
                for element in of["elem"].as_array().into_iter().flatten() {
                    seen.add("nft", format!("element {path} {element}"));
                }
            }
            _ => seen.add("nft", format!("{sort} {path}")),
        }
    }
}

fn sockets(seen: &mut Seen) {
    // Num RefCount Protocol Flags Type St Inode Path; unnamed sockets belong to their process.
    for line in fs::read_to_string("/proc/net/unix").unwrap_or_default().lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // One line for the listener and one for each accepted connection; only the listener has __SO_ACCEPTCON.
        if let (Some(path), Some(&"00010000")) = (fields.get(7), fields.get(3)) {
            seen.add("socket", *path);
        }
    }
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        for line in fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // State 0A is LISTEN, 07 an unconnected datagram socket.
            if let (Some(local), Some(&("0A" | "07"))) = (fields.get(1), fields.get(3)) {
                seen.add("socket", format!("{table} {local}"));
            }
        }
    }
}

/// The array that a tool prints, or what it wraps (`{"nftables": […]}`).
fn json(program: &str, arguments: &[&str]) -> Vec<Value> {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|e| panic!("run {program} (hack/deps installs it): {e}"));
    // `ip -6` on a kernel without IPv6 fails; a family that is not there holds nothing.
    let value: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let list = value.get("nftables").cloned().unwrap_or(value);
    match list {
        Value::Array(items) => items,
        _ => Vec::new(),
    }
}

fn text(value: &Value, key: &str) -> String {
    match &value[key] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}
