//! Plugins killed before and after every step they name: the same call repeated succeeds, and DEL leaves nothing.

mod host;

use host::{Call, Host, addresses, failpoints};
use serde_json::json;

/// A call for a pod whose port is published.
fn publishing<'a>(host: &'a Host, verb: &str) -> Call<'a> {
    let mappings = json!([{"hostPort": 8080, "containerPort": 80}]);
    host.bridge(verb, "a").with("runtimeConfig", json!({ "portMappings": mappings }))
}

/// Every step of a binary whose operation is one of these, before and after.
fn steps(plugin: &str, operations: &[&str]) -> Vec<String> {
    let of_ours = |name: &String| operations.iter().any(|op| name.split("::").next() == Some(op));
    let names: Vec<_> = failpoints(plugin).into_iter().filter(of_ours).collect();
    assert!(!names.is_empty());
    names.iter().flat_map(|name| [format!("{name}:before"), format!("{name}:after")]).collect()
}

#[test]
fn a_bridge_killed_in_add_is_finished_by_the_next_and_undone_by_del() {
    for step in steps("bridge", &["cni_add", "ipam_add"]) {
        for repeated in [true, false] {
            let host = Host::new();
            host.namespace("a");
            assert!(publishing(&host, "ADD").dies_at(&step), "{step} was not reached");
            if repeated {
                let result = publishing(&host, "ADD").result();
                assert_eq!(addresses(&result), ["10.88.0.2", "fd00:88::2"], "{step}");
                assert!(host.reaches("a", "10.88.0.1") && host.reaches("a", "fd00:88::1"), "{step}");
                publishing(&host, "CHECK").with("prevResult", result.to_value("1.1.0".parse().unwrap())).ok();
            }
            publishing(&host, "DEL").ok();
            host.assert_no_pod_left();
        }
    }
}

/// The call that comes by a step: each way of undoing has its own.
fn undoing<'a>(host: &'a Host, step: &str) -> Call<'a> {
    let del = publishing(host, "DEL");
    match step {
        _ if step.starts_with("cni_del::veth-delete") => del,
        _ if step.starts_with("ipam_gc") => host.bridge("GC", "").with("cni.dev/valid-attachments", json!([])),
        _ => del.owned(),
    }
}

#[test]
fn a_bridge_killed_in_del_is_finished_by_the_next() {
    for step in steps("bridge", &["cni_del", "ipam_del", "ipam_gc"]) {
        let host = Host::new();
        host.namespace("a");
        publishing(&host, "ADD").ok();
        let call = undoing(&host, &step);
        assert!(call.dies_at(&step), "{step} was not reached");
        call.ok();
        publishing(&host, "DEL").owned().ok();
        host.drop_namespace("a");
        host.until_links_are(&["berth-test"]);
        host.assert_no_pod_left();
        assert_eq!(addresses(&host.add("b")), ["10.88.0.3", "fd00:88::3"], "{step}");
    }
}

#[test]
fn a_bridge_killed_in_add_lets_others_pass() {
    for step in steps("bridge", &["cni_add", "ipam_add"]) {
        let host = Host::new();
        host.namespace("a");
        assert!(publishing(&host, "ADD").dies_at(&step), "{step} was not reached");
        host.add("b");
        host.add("c");
        assert!(host.reaches("b", "10.88.0.1"), "{step}");
        let mut all =
            [addresses(&publishing(&host, "ADD").result()), addresses(&host.add("b")), addresses(&host.add("c"))]
                .concat();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 6, "{step}");
        publishing(&host, "DEL").ok();
        ["b", "c"].iter().for_each(|pod| drop(host.bridge("DEL", pod).ok()));
        host.assert_no_pod_left();
    }
}

#[test]
fn host_local_killed_is_finished_by_the_next() {
    for step in steps("host-local", &["ipam_add", "ipam_del", "ipam_gc"]) {
        let host = Host::new();
        let call = |verb: &str| host.call("host-local", verb, "a");
        let armed = match step.split("::").next() {
            Some("ipam_add") => call("ADD"),
            Some("ipam_del") => call("DEL"),
            _ => call("GC").with("cni.dev/valid-attachments", json!([])),
        };
        if !step.starts_with("ipam_add") {
            call("ADD").ok();
        }
        assert!(armed.dies_at(&step), "{step} was not reached");
        armed.ok();
        call("DEL").ok();
        host.assert_no_pod_left();
    }
}

#[test]
fn loopback_killed_is_finished_by_the_next() {
    for step in steps("loopback", &["lo_add", "lo_del"]) {
        let host = Host::new();
        host.namespace("a");
        let call = |verb: &str| {
            let mut call = host.call("loopback", verb, "a").env("CNI_IFNAME", "lo");
            call.config = json!({"cniVersion": "1.0.0", "name": "lo", "type": "loopback"});
            call
        };
        let (before, verb) = if step.starts_with("lo_add") { ("VERSION", "ADD") } else { ("ADD", "DEL") };
        call(before).ok();
        assert!(call(verb).dies_at(&step), "{step} was not reached");
        call(verb).ok();
        assert_eq!(call("CHECK").run().status.success(), verb == "ADD", "{step}");
    }
}
