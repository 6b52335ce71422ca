//! What a pod gets from `bridge`, on a real kernel.

mod host;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use berth_api::cni::result::AddResult;
use host::{Host, addresses, binary};
use serde_json::{Value, json};

#[test]
fn two_pods_reach_each_other_and_the_gateway_over_both_families() {
    let host = Host::new();
    host.add("a");
    assert_eq!(addresses(&host.add("b")), ["10.88.0.3", "fd00:88::3"]);
    for address in ["10.88.0.3", "10.88.0.1", "fd00:88::3", "fd00:88::1"] {
        assert!(host.reaches("a", address), "{address}");
    }
}

#[test]
fn a_result_tells_bridge_and_both_ends() {
    let host = Host::new();
    let result = host.add("a");
    let names: Vec<_> = result.interfaces.iter().map(|i| i.name.as_str()).collect();
    assert_eq!((names[0], names[2]), ("berth-test", "eth0"));
    assert_eq!(host.links(), [names[0], names[1]]);
    assert_eq!(result.interfaces[2].sandbox, host.path("a").display().to_string());
    assert!(result.ips.iter().all(|ip| ip.interface == Some(2)));
    for (namespace, interface) in [("host", 0), ("host", 1), ("a", 2)] {
        let interface = &result.interfaces[interface];
        let shown = host.run(namespace, &format!("cat /sys/class/net/{}/address || true; ip -j link", interface.name));
        assert!(shown.contains(&interface.mac), "{} has not {}", interface.name, interface.mac);
    }
}

#[test]
fn an_address_of_version_6_is_usable_at_once() {
    let host = Host::new();
    host.add("a");
    let shown = host.run("a", "ip -6 address show dev eth0 scope global");
    assert!(shown.contains("fd00:88::2/64") && !shown.contains("tentative"), "{shown}");
}

#[test]
fn add_twice_gives_one_address_and_one_device() {
    let host = Host::new();
    let first = host.add("a");
    assert_eq!(host.add("a"), first);
    assert_eq!(host.links().len(), 2);
    assert_eq!(host.leases(), ["10.88.0.2", "fd00:88::2", "owners/a,eth0"]);
}

#[test]
fn a_repeated_add_mends_what_was_lost() {
    let host = Host::new();
    let result = host.add("a");
    host.run("a", "ip link set eth0 down && ip address flush dev eth0");
    host.run("host", &format!("ip link set {} nomaster && nft flush ruleset", result.interfaces[1].name));
    assert_eq!(host.add("a"), result);
    host.bridge("CHECK", "a").with("prevResult", result.to_value("1.1.0".parse().unwrap())).ok();
    assert!(host.reaches("a", "10.88.0.1"));
}

#[test]
fn del_removes_the_device_of_a_namespace_that_is_not_ours() {
    let host = Host::new();
    host.add("a");
    host.bridge("DEL", "a").ok();
    host.assert_no_pod_left();
    assert!(!host.try_run("a", "ip link show eth0").0);
    host.bridge("DEL", "a").ok();
}

#[test]
fn del_of_an_owned_namespace_leaves_a_device_that_is_silent_and_goes_with_it() {
    let host = Host::new();
    let veth = host.add("a").interfaces[1].name.clone();
    host.bridge("DEL", "a").owned().ok();
    assert_eq!(host.leases(), Vec::<String>::new());
    let links: Value = serde_json::from_str(&host.run("host", &format!("ip -j link show {veth}"))).unwrap();
    assert_eq!(links[0]["master"], Value::Null);
    assert_eq!(links[0]["operstate"], "DOWN");
    let inside: Value = serde_json::from_str(&host.run("a", "ip -j address show dev eth0")).unwrap();
    assert_eq!(inside[0]["addr_info"], json!([]));
    host.bridge("DEL", "a").owned().ok();
    host.drop_namespace("a");
    host.until_links_are(&["berth-test"]);
}

#[test]
fn del_succeeds_without_a_namespace() {
    let host = Host::new();
    for (pod, owned) in [("a", false), ("b", true)] {
        host.add(pod);
        host.drop_namespace(pod);
        fs::remove_file(host.path(pod)).unwrap();
        let call = host.bridge("DEL", pod);
        let call = if owned { call.owned() } else { call };
        call.ok();
        call.env("CNI_NETNS", "").ok();
    }
    host.until_links_are(&["berth-test"]);
    host.assert_no_pod_left();
}

#[test]
fn del_succeeds_when_only_the_file_of_the_pin_is_left() {
    let host = Host::new();
    host.add("a");
    host.drop_namespace("a");
    host.bridge("DEL", "a").owned().ok();
    host.bridge("DEL", "never-added").ok();
    host.until_links_are(&["berth-test"]);
    host.assert_no_pod_left();
}

#[test]
fn a_pod_of_the_same_id_in_a_new_namespace_replaces_the_silent_device() {
    let host = Host::new();
    host.add("a");
    host.bridge("DEL", "a").owned().ok();
    // The old namespace lives on, as one with a process in it does.
    let (a, old) = (host.path("a"), host.path("old"));
    fs::write(&old, "").unwrap();
    assert!(Command::new("mount").arg("--bind").args([a, old]).status().unwrap().success());
    host.drop_namespace("a");
    host.namespace("a");
    host.add("a");
    assert!(host.reaches("a", "10.88.0.1"));
    assert_eq!(host.links().len(), 2);
}

#[test]
fn sixteen_pods_at_once_share_one_bridge_and_no_address() {
    let host = Host::new();
    let names: Vec<String> = (0..16).map(|i| format!("p{i}")).collect();
    names.iter().for_each(|name| drop(host.namespace(name)));
    let results: Vec<AddResult> = std::thread::scope(|scope| {
        let calls: Vec<_> = names.iter().map(|name| scope.spawn(|| host.bridge("ADD", name).result())).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    let distinct: BTreeSet<String> = results.iter().flat_map(addresses).collect();
    assert_eq!(distinct.len(), 32);
    assert_eq!(host.links().len(), 17);
    assert_eq!(host.run("host", "nft list ruleset").matches("masquerade").count(), 2);
    assert!(host.reaches("p0", &addresses(&results[15])[0]));
    std::thread::scope(|scope| {
        names.iter().for_each(|name| drop(scope.spawn(|| host.bridge("DEL", name).ok())));
    });
    host.assert_no_pod_left();
}

/// A machine beyond the host that knows nothing of pods: it answers only to the host's own address.
fn world(host: &Host) {
    let world = host.namespace("world");
    host.run("host", &format!("ip link add uplink type veth peer name downlink netns {}", world.display()));
    host.run("host", "ip address add 192.0.2.1/24 dev uplink && ip address add 2001:db8::1/64 dev uplink nodad");
    host.run("host", "ip link set uplink up");
    host.run("world", "ip address add 192.0.2.2/24 dev downlink && ip address add 2001:db8::2/64 dev downlink nodad");
    host.run("world", "ip link set downlink up");
}

#[test]
fn what_leaves_the_subnet_carries_the_host_s_address() {
    let host = Host::new();
    world(&host);
    host.add("a");
    assert!(host.reaches("a", "192.0.2.2"));
    assert!(host.reaches("a", "2001:db8::2"));
    // Without the rule the world has nobody to answer to; and the next pod brings it back.
    host.run("host", "nft flush ruleset");
    assert!(!host.try_run("a", "busybox ping -c1 -W1 192.0.2.2").0);
    host.add("b");
    assert!(host.reaches("a", "192.0.2.2"));
}

/// What `bridge forwarding` says of the bridge of the tests.
fn obstacles(host: &Host) -> Vec<String> {
    let said = host.run("host", &format!("{} forwarding berth-test", binary("bridge").display()));
    said.lines().map(str::to_string).collect()
}

#[test]
fn a_policy_that_drops_what_is_forwarded_is_told_with_the_cure() {
    for (setup, where_) in [
        // As Docker leaves it.
        (
            "iptables -N DOCKER-USER && iptables -A FORWARD -j DOCKER-USER && iptables -P FORWARD DROP",
            "table ip filter, chain FORWARD ",
        ),
        ("iptables -P FORWARD DROP", "table ip filter, chain FORWARD "),
        (
            "nft add table inet strict && nft 'add chain inet strict onward { type filter hook forward priority 10; policy drop; }'",
            "table inet strict, chain onward ",
        ),
    ] {
        let host = Host::new();
        world(&host);
        host.add("a");
        assert_eq!(obstacles(&host), Vec::<String>::new());
        assert!(host.reaches("a", "192.0.2.2"));
        host.run("host", setup);
        // It is so on a real kernel, and so is the cure.
        assert!(!host.try_run("a", "busybox ping -c1 -W1 192.0.2.2").0, "{setup}");
        let said = obstacles(&host);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].starts_with(where_), "{said:?}");
        let (_, cure) = said[0].split_once("; run: ").unwrap();
        assert_eq!(cure.contains("DOCKER-USER"), setup.contains("DOCKER-USER"), "{cure}");
        host.run("host", cure);
        assert!(host.reaches("a", "192.0.2.2"), "{cure}");
        assert_eq!(obstacles(&host), Vec::<String>::new());
    }
}

#[test]
fn two_networks_share_a_table() {
    let host = Host::new();
    host.add("a");
    host.namespace("b");
    let ipam = json!({"type": "host-local", "ranges": [[{"subnet": "10.99.0.0/24"}]], "dataDir": host.path("ipam")});
    host.bridge("ADD", "b").with("bridge", json!("berth-other")).with("name", json!("n2")).with("ipam", ipam).ok();
    let rules = host.run("host", "nft list table inet berth-test");
    for subnet in ["10.88.0.0/24", "fd00:88::/64", "10.99.0.0/24"] {
        assert!(rules.contains(&format!("saddr {subnet}")), "{rules}");
    }
}

#[test]
fn a_bridge_keeps_its_addresses_unless_the_gateways_is_forced() {
    let host = Host::new();
    host.add("a");
    let addresses = || host.run("host", "ip -o address show dev berth-test scope global");
    let ipam = |subnet: &str, name: &str| {
        let ranges = json!([[{"subnet": subnet, "gateway": "10.88.0.254"}], [{"subnet": "fd00:99::/64"}]]);
        json!({"type": "host-local", "ranges": ranges, "dataDir": host.path(name)})
    };
    host.namespace("b");
    host.bridge("ADD", "b").with("ipam", ipam("10.88.0.0/24", "ipam-b")).ok();
    for address in ["10.88.0.1/24", "10.88.0.254/24", "fd00:88::1/64", "fd00:99::1/64"] {
        assert!(addresses().contains(address), "{address}: {}", addresses());
    }
    host.namespace("c");
    let forced = host.bridge("ADD", "c").with("ipam", ipam("10.88.0.0/24", "ipam-c")).with("forceAddress", json!(true));
    forced.ok();
    // Of IPv6, what does not overlap is not in the way.
    for (address, stays) in [("10.88.0.1/24", false), ("10.88.0.254/24", true), ("fd00:88::1/64", true)] {
        assert_eq!(addresses().contains(address), stays, "{address}: {}", addresses());
    }
    assert!(host.reaches("c", "10.88.0.254"));
    forced.ok();
}

#[test]
fn mtu_hairpin_mac_and_a_requested_address_are_as_asked() {
    let host = Host::new();
    host.namespace("a");
    let asked = json!({"mac": "02:00:00:00:00:07", "ips": ["10.88.0.77/24"]});
    let result = host.bridge("ADD", "a").with("mtu", json!(1400)).with("runtimeConfig", asked).result();
    assert_eq!(addresses(&result), ["10.88.0.77", "fd00:88::2"]);
    assert_eq!((result.interfaces[2].mac.as_str(), result.interfaces[2].mtu), ("02:00:00:00:00:07", Some(1400)));
    let inside = host.run("a", "ip link show eth0");
    assert!(inside.contains("mtu 1400") && inside.contains("02:00:00:00:00:07"), "{inside}");
    assert!(host.run("host", "bridge -d link").contains("hairpin on"));
    host.namespace("b");
    host.bridge("ADD", "b").with("hairpinMode", json!(false)).ok();
    assert!(host.run("host", "bridge -d link").contains("hairpin off"));
}

#[test]
fn without_ipam_a_pod_has_a_device_and_no_address() {
    let host = Host::new();
    host.namespace("a");
    let mut call = host.bridge("ADD", "a");
    call.config = json!({"cniVersion": "1.0.0", "name": "flat", "type": "bridge", "bridge": "berth-test"});
    let result = call.result();
    assert_eq!((result.interfaces.len(), result.ips.len(), result.routes.len()), (3, 0, 0));
    call.env("CNI_COMMAND", "DEL").ok();
    host.assert_no_pod_left();
}

#[test]
fn routes_of_the_network_are_set_and_masked() {
    let host = Host::new();
    host.namespace("a");
    let mut call = host.bridge("ADD", "a").with("isDefaultGateway", json!(false));
    call.config["ipam"]["routes"] = json!([
        {"dst": "172.30.5.5/16"}, {"dst": "fd99::/32", "gw": "fd00:88::9", "priority": 7, "mtu": 1300},
    ]);
    let result = call.result();
    let routes = host.run("a", "ip route; ip -6 route");
    assert!(routes.contains("172.30.0.0/16 via 10.88.0.1"), "{routes}");
    assert!(routes.contains("fd99::/32 via fd00:88::9") && routes.contains("metric 7 mtu 1300"), "{routes}");
    assert!(!routes.contains("default"), "{routes}");
    let call = call.env("CNI_COMMAND", "CHECK");
    call.clone().with("prevResult", result.to_value("1.1.0".parse().unwrap())).ok();
    host.run("a", "ip route del 172.30.0.0/16");
    let (_, text) = call.with("prevResult", result.to_value("1.1.0".parse().unwrap())).error();
    assert!(text.contains("route to 172.30.5.5/16"), "{text}");
}

#[test]
fn an_add_that_fails_half_way_gives_back_what_it_took() {
    let host = Host::new();
    host.namespace("a");
    host.run("a", "ip link add eth0 type bridge");
    let (code, text) = host.bridge("ADD", "a").error();
    assert!(code == 100 && text.contains("eth0") && text.contains("File exists"), "{code} {text}");
    host.assert_no_pod_left();
    host.run("a", "ip link del eth0");
    // Fails after the device was made: the route leads nowhere.
    let mut call = host.bridge("ADD", "a");
    call.config["ipam"]["routes"] = json!([{"dst": "172.30.0.0/16", "gw": "203.0.113.1"}]);
    let (_, text) = call.error();
    assert!(text.contains("add route to 172.30.0.0/16"), "{text}");
    host.assert_no_pod_left();
    host.add("a");
}

#[test]
fn a_route_that_leads_elsewhere_is_not_taken_for_ours() {
    let host = Host::new();
    host.add("a");
    let ipam = json!({"type": "host-local", "ranges": [[{"subnet": "10.99.0.0/24"}]], "dataDir": host.path("ipam")});
    let second = host.bridge("ADD", "a").env("CNI_IFNAME", "eth1").with("name", json!("n2")).with("ipam", ipam);
    let (code, text) = second.error();
    assert!(code == 100 && text.contains("add route to 0.0.0.0/0") && text.contains("File exists"), "{code} {text}");
    second.with("isDefaultGateway", json!(false)).ok();
    assert!(host.reaches("a", "10.99.0.1") && host.reaches("a", "10.88.0.1"));
}

#[test]
fn an_add_that_fails_leaves_an_earlier_one_alone() {
    let host = Host::new();
    let result = host.add("a");
    let mut call = host.bridge("ADD", "a");
    call.config["ipam"]["routes"] = json!([{"dst": "172.30.0.0/16", "gw": "203.0.113.1"}]);
    call.error();
    host.bridge("CHECK", "a").with("prevResult", result.to_value("1.1.0".parse().unwrap())).ok();
}

#[test]
fn ipv6_is_switched_on_where_a_pod_gets_an_address() {
    let host = Host::new();
    host.namespace("a");
    for namespace in ["host", "a"] {
        host.run(namespace, "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6");
    }
    host.add("a");
    assert!(host.reaches("a", "fd00:88::1"));
}

/// A pod may say that it is a router, and a bridge is in the host's network.
#[test]
fn no_bridge_believes_router_advertisements_of_pods() {
    let host = Host::new();
    let accepts = |device: &str| host.run("host", &format!("cat /proc/sys/net/ipv6/conf/{device}/accept_ra"));
    host.namespace("a");
    let ipam = json!({"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/24"}]], "dataDir": host.path("ipam")});
    let version_4_alone = host.bridge("ADD", "a").with("ipam", ipam);
    for _ in 0..2 {
        version_4_alone.ok();
        assert_eq!(accepts("berth-test"), "0\n");
        // As a bridge that was made by an earlier version.
        host.run("host", "echo 1 >/proc/sys/net/ipv6/conf/berth-test/accept_ra");
    }
}

#[test]
fn a_host_that_begins_to_forward_keeps_the_routers_of_its_uplinks() {
    let host = Host::new();
    for (device, accepts) in [("up0", "1"), ("up1", "0")] {
        host.run("host", &format!("ip link add {device} type veth peer name {device}-peer && ip link set {device} up"));
        host.run("host", &format!("echo {accepts} >/proc/sys/net/ipv6/conf/{device}/accept_ra"));
    }
    host.add("a");
    let accept = host.run("host", "cd /proc/sys/net/ipv6/conf && cat up0/accept_ra up1/accept_ra default/accept_ra");
    assert_eq!(accept, "2\n0\n1\n");
}
