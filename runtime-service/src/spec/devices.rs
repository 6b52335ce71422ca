//! Device nodes of a container and the rules of its device cgroup.

use serde_json::{Value, json};

/// A device of the host as it shall appear in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostDevice {
    /// Path in the container.
    pub(crate) path: String,
    /// `c` or `b`.
    pub(crate) kind: char,
    pub(crate) major: u64,
    pub(crate) minor: u64,
    /// Permission bits and owner of the host's node.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Any of `r`, `w` and `m`.
    pub(crate) access: String,
}

/// What every container may use, by kind, major, minor and access. Source: runc's default; the nodes themselves are made
/// by the runtime.
const ALWAYS: &[(char, Option<i64>, Option<i64>, &str)] = &[
    ('c', None, None, "m"),
    ('b', None, None, "m"),
    ('c', Some(1), Some(3), "rwm"), // null
    ('c', Some(1), Some(5), "rwm"), // zero
    ('c', Some(1), Some(7), "rwm"), // full
    ('c', Some(1), Some(8), "rwm"), // random
    ('c', Some(1), Some(9), "rwm"), // urandom
    ('c', Some(5), Some(0), "rwm"), // tty
    ('c', Some(5), Some(2), "rwm"), // ptmx
    ('c', Some(136), None, "rwm"),  // pts
];

/// `linux.devices`.
pub(super) fn nodes(devices: &[HostDevice]) -> Value {
    let node = |d: &HostDevice| {
        json!({"path": d.path, "type": d.kind.to_string(), "major": d.major, "minor": d.minor,
               "fileMode": d.mode, "uid": d.uid, "gid": d.gid})
    };
    devices.iter().map(node).collect()
}

/// `linux.resources.devices`: everything for a privileged container, else nothing but the named ones.
pub(super) fn rules(devices: &[HostDevice], privileged: bool) -> Value {
    if privileged {
        return json!([{"allow": true, "access": "rwm"}]);
    }
    let mut rules = vec![json!({"allow": false, "access": "rwm"})];
    for (kind, major, minor, access) in ALWAYS {
        let mut rule = json!({"allow": true, "type": kind.to_string(), "access": access});
        if let Some(major) = major {
            rule["major"] = (*major).into();
        }
        if let Some(minor) = minor {
            rule["minor"] = (*minor).into();
        }
        rules.push(rule);
    }
    for d in devices {
        rules.push(
            json!({"allow": true, "type": d.kind.to_string(), "major": d.major, "minor": d.minor, "access": d.access}),
        );
    }
    Value::Array(rules)
}
