//! User namespaces: of the spec's own making, and the keeper's. Needs root and busybox-static.

mod support;

use berth_shim::runtime::MountSpec;
use serde_json::{Value, json};
use support::*;

const IDS: &str = "0:200000:1000";

fn mapping() -> Value {
    json!([{"containerID": 0, "hostID": 200_000, "size": 1000}])
}

/// A container in a user namespace that is made for it, as containerd asks for one.
fn mapped(script: &str) -> Bundle {
    let kinds = ["mount", "pid", "network", "ipc", "uts", "user"];
    let namespaces: Vec<Value> = kinds.iter().map(|kind| json!({"type": kind})).collect();
    Bundle::sh(script)
        .set("/linux/namespaces", json!(namespaces))
        .set("/linux/uidMappings", mapping())
        .set("/linux/gidMappings", mapping())
}

fn with_ids(mut mount: MountSpec) -> MountSpec {
    mount.options.extend([format!("uidmap={IDS}"), format!("gidmap={IDS}")]);
    mount
}

#[test]
fn the_specs_mappings_make_a_user_namespace_and_map_the_root() {
    let script = "id -u; tr -s ' ' </proc/self/uid_map; stat -c %u:%g /bin/busybox /dev /dev/null; echo x >/made; \
                  stat -c %u:%g /made; umount /proc 2>/dev/null || echo locked; grep -c . /proc/1/status >/dev/null";
    let bundle = mapped(script);
    let bind =
        MountSpec { kind: "bind".into(), source: bundle.image().display().to_string(), options: vec!["rbind".into()] };
    for mount in [bundle.overlay(), bind] {
        let ended = bundle.run_on(with_ids(mount)).expect("run");
        let expected = "0\n 0 200000 1000\n0:0\n0:0\n0:0\n0:0\nlocked\n";
        assert_eq!((ended.stdout.as_str(), ended.stderr.as_str(), ended.status), (expected, "", 0));
    }
}

#[test]
fn mappings_and_user_namespaces_come_together() {
    let one = |bundle: Bundle| bundle.run().expect_err("refused").message();
    let without = mapped("true").set("/linux/uidMappings", json!([])).set("/linux/gidMappings", json!([]));
    assert_eq!(one(without), "linux.uidMappings: a user namespace needs them");
    let half = mapped("true").set("/linux/gidMappings", json!([]));
    assert_eq!(one(half), "linux.uidMappings: and gidMappings come together");
    let hosts = Bundle::sh("true").set("/linux/uidMappings", mapping()).set("/linux/gidMappings", mapping());
    assert_eq!(one(hosts), "linux.uidMappings: need a user namespace");
    let user = mapped("true").set("/process/user", json!({"uid": 1000, "gid": 0}));
    assert_eq!(one(user), "linux.uidMappings: user 1000 is not mapped");
}
