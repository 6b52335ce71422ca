//! CHECK, GC, STATUS, VERSION, errors, versions and other people's plugins, on a real kernel.

mod host;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use host::{Host, addresses, binary};
use serde_json::{Value, json};

#[test]
fn check_tells_what_has_changed() {
    let changes = [
        ("a", "ip address del 10.88.0.2/24 dev eth0", "address 10.88.0.2/24"),
        ("a", "ip route del default", "route to 0.0.0.0/0"),
        ("a", "ip -6 route del default", "route to ::/0"),
        ("a", "ip link set eth0 down", "is down"),
        ("a", "ip link set eth0 name eth7", "is gone"),
        ("host", "ip link set VETH nomaster", "is not on bridge berth-test"),
        ("host", "ip link set VETH down", "is down"),
        ("host", "ip link del VETH", "is gone"),
        ("host", "ip link del berth-test", "bridge berth-test is gone"),
        ("host", "nft flush ruleset", "10.88.0.0/24 is not masqueraded"),
        ("host", "rm IPAM/10.88.0.2", "10.88.0.2 is not leased to eth0 of a"),
    ];
    for (namespace, change, problem) in changes {
        let host = Host::new();
        let result = host.add("a");
        let check = host.bridge("CHECK", "a").with("prevResult", result.to_value("1.1.0".parse().unwrap()));
        check.ok();
        let ipam = host.path("ipam/pods").display().to_string();
        host.run(namespace, &change.replace("VETH", &result.interfaces[1].name).replace("IPAM", &ipam));
        let (code, text) = check.error();
        assert!(code == 101 && text.contains(problem), "{change}: {code} {text}");
    }
}

#[test]
fn check_without_the_result_is_refused() {
    let host = Host::new();
    host.add("a");
    assert_eq!(host.bridge("CHECK", "a").error(), (7, "prevResult: is missing: ".into()));
}

#[test]
fn gc_takes_devices_and_leases_of_all_but_the_valid() {
    let host = Host::new();
    ["a", "b", "c"].iter().for_each(|pod| drop(host.add(pod)));
    let gc = host.bridge("GC", "");
    assert_eq!(gc.error().0, 7);
    gc.with("cni.dev/valid-attachments", json!([{"containerID": "b", "ifname": "eth0"}])).ok();
    assert_eq!(host.leases(), ["10.88.0.3", "fd00:88::3", "owners/b,eth0"]);
    assert_eq!(host.links().len(), 2);
    assert!(host.reaches("b", "10.88.0.1"));
}

#[test]
fn status_tells_an_exhausted_range_and_a_name_that_is_taken() {
    let host = Host::new();
    let small = json!({"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/30"}]], "dataDir": host.path("ipam")});
    host.bridge("STATUS", "").ok();
    host.bridge("STATUS", "").with("ipam", small.clone()).ok();
    host.namespace("a");
    host.bridge("ADD", "a").with("ipam", small.clone()).ok();
    let (code, text) = host.bridge("STATUS", "").with("ipam", small.clone()).error();
    assert!(code == 50 && text.contains("every address of 10.88.0.0/30"), "{code} {text}");
    host.namespace("b");
    let (code, text) = host.bridge("ADD", "b").with("ipam", small).error();
    assert!(code == 11 && text.contains("10.88.0.0/30 (10.88.0.1-10.88.0.2) of network \"pods\""), "{code} {text}");
    host.run("host", "ip link add berth-veth type veth peer name berth-peer");
    let (code, text) = host.bridge("STATUS", "").with("bridge", json!("berth-veth")).error();
    assert!(code == 7 && text.contains("no bridge but veth"), "{code} {text}");
}

#[test]
fn every_version_is_answered_in_kind() {
    let host = Host::new();
    for plugin in ["bridge", "host-local", "loopback"] {
        let answer = host.call(plugin, "VERSION", "").with("cniVersion", json!("0.4.0")).ok();
        let all = json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
        assert_eq!(answer, json!({"cniVersion": "0.4.0", "supportedVersions": all}));
    }
    host.namespace("a");
    for (version, family, mtu) in [
        ("0.3.1", json!("4"), Value::Null),
        ("0.4.0", json!("4"), Value::Null),
        ("1.0.0", Value::Null, Value::Null),
        ("1.1.0", Value::Null, json!(1500)),
    ] {
        let result = host.bridge("ADD", "a").with("cniVersion", json!(version)).ok();
        let seen = (&result["cniVersion"], &result["ips"][0]["version"], &result["interfaces"][2]["mtu"]);
        assert_eq!(seen, (&json!(version), &family, &mtu));
    }
}

#[test]
fn a_call_that_cannot_be_served_says_why() {
    let host = Host::new();
    host.namespace("a");
    let add = || host.bridge("ADD", "a");
    let cases = [
        (add().with("vlan", json!(5)), 7, "vlan: is an option of the reference plugin that berth's does not support"),
        (add().with("hairpinmode", json!(true)), 7, "did you mean \"hairpinMode\"?"),
        (add().with("cniVersion", json!("9.9.9")), 1, "\"9.9.9\""),
        (add().with("name", json!("../x")), 7, "cannot be the name of a network"),
        (add().env("CNI_IFNAME", ""), 4, "ADD requires CNI_IFNAME"),
        (add().env("CNI_IFNAME", "a/b"), 4, "CNI_IFNAME has an invalid value"),
        (add().env("CNI_CONTAINERID", "../x"), 4, "CNI_CONTAINERID has an invalid value"),
        (add().env("CNI_NETNS", "/nowhere"), 5, "open network namespace /nowhere: nothing is there"),
        (add().env("CNI_NETNS", "/etc/hostname"), 5, "open network namespace /etc/hostname: not a namespace"),
        (add().with("ipam", json!({"type": "no-such"})), 7, "no plugin \"no-such\" in CNI_PATH"),
        (add().with("x", json!("y".repeat(1 << 20))), 6, "larger than 1048576 bytes"),
    ];
    for (call, code, problem) in cases {
        let error = call.error();
        assert!(error.0 == code && error.1.contains(problem), "{error:?} is not {code} {problem}");
        host.assert_no_pod_left();
    }
}

#[test]
fn loopback_comes_up_and_goes_down() {
    let host = Host::new();
    host.namespace("a");
    let call = |verb| {
        let mut call = host.call("loopback", verb, "a").env("CNI_IFNAME", "lo");
        call.config = json!({"cniVersion": "1.0.0", "name": "lo", "type": "loopback"});
        call
    };
    assert!(call("CHECK").error().1.contains("is down"));
    for _ in 0..2 {
        assert_eq!(addresses(&call("ADD").result()), ["127.0.0.1", "::1"]);
    }
    call("CHECK").ok();
    assert!(host.reaches("a", "127.0.0.1"));
    let chained = call("ADD").with("prevResult", json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}]}));
    assert_eq!(addresses(&chained.result()), ["10.0.0.2"]);
    call("DEL").owned().ok();
    call("CHECK").ok();
    call("DEL").ok();
    assert!(call("CHECK").error().1.contains("is down"));
    call("DEL").env("CNI_NETNS", "/nowhere").ok();
}

#[test]
fn host_local_alone_serves_another_bridge() {
    let host = Host::new();
    let call = |verb| host.call("host-local", verb, "a");
    let result = call("ADD").result();
    assert_eq!(addresses(&result), ["10.88.0.2", "fd00:88::2"]);
    call("CHECK").with("prevResult", result.to_value("1.1.0".parse().unwrap())).ok();
    call("DEL").ok();
    call("DEL").ok();
    host.assert_no_pod_left();
}

#[test]
fn the_operator_s_host_local_wins_over_ours() {
    let host = Host::new();
    let theirs = host.path("theirs");
    fs::create_dir(&theirs).unwrap();
    let script = "#!/bin/sh\ncat >/dev/null\n[ $CNI_COMMAND = ADD ] || exit 0\n\
        echo '{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"10.88.0.200/24\",\"gateway\":\"10.88.0.1\"}]}'\n";
    fs::write(theirs.join("host-local"), script).unwrap();
    fs::set_permissions(theirs.join("host-local"), fs::Permissions::from_mode(0o755)).unwrap();
    let ours = binary("bridge").parent().unwrap().display().to_string();
    let path = |order: [&str; 2]| order.join(":");
    let theirs = theirs.display().to_string();
    host.namespace("a");
    let result = host.bridge("ADD", "a").env("CNI_PATH", &path([&theirs, &ours])).result();
    assert_eq!(addresses(&result), ["10.88.0.200"]);
    host.namespace("b");
    let result = host.bridge("ADD", "b").env("CNI_PATH", &path([&ours, &theirs])).result();
    assert_eq!(addresses(&result)[0], "10.88.0.2");
}

/// Where Debian keeps the reference plugins (`containernetworking-plugins`).
const DEBIAN: &str = "/usr/lib/cni";

#[test]
fn the_reference_bridge_s_result_is_read_and_its_host_local_serves_ours() {
    let host = Host::new();
    host.namespace("a");
    let ipam = json!({"type": "host-local", "ranges": [[{"subnet": "10.77.0.0/24"}]], "dataDir": host.path("ipam")});
    let mut theirs = host.bridge("ADD", "a").program(format!("{DEBIAN}/bridge")).env("CNI_PATH", DEBIAN);
    theirs.config = json!({
        "cniVersion": "1.0.0", "name": "pods", "type": "bridge", "bridge": "berth-ref", "isGateway": true, "ipam": ipam,
    });
    assert_eq!(addresses(&theirs.result()), ["10.77.0.2"]);
    theirs.env("CNI_COMMAND", "DEL").ok();
    host.run("host", "ip link del berth-ref");
    host.namespace("b");
    let mut ours = host.bridge("ADD", "b").env("CNI_PATH", DEBIAN);
    ours.config = json!({
        "cniVersion": "1.0.0", "name": "pods", "type": "bridge", "bridge": "berth-test", "isGateway": true, "ipam": ipam,
    });
    // The reference plugin leaves an address just freed for last.
    assert_eq!(addresses(&ours.result()), ["10.77.0.3"]);
    assert!(host.reaches("b", "10.77.0.1"));
    ours.clone().env("CNI_COMMAND", "GC").with("cni.dev/valid-attachments", json!([])).ok();
    ours.env("CNI_COMMAND", "DEL").ok();
    let left: Vec<_> = host.leases().into_iter().filter(|name| !name.starts_with("last_reserved_ip")).collect();
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn the_reference_portmap_takes_our_result() {
    let host = Host::new();
    host.namespace("a");
    let result = host.bridge("ADD", "a").with("cniVersion", json!("1.0.0")).ok();
    let mut portmap = host.bridge("ADD", "a").program(format!("{DEBIAN}/portmap")).env("CNI_PATH", DEBIAN);
    portmap.config = json!({
        "cniVersion": "1.0.0", "name": "pods", "type": "portmap", "prevResult": result,
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
    });
    assert_eq!(addresses(&portmap.result()), ["10.88.0.2", "fd00:88::2"]);
}
