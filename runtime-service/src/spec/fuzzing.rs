//! What images and clients say of a container's process, for `test/fuzz`.

use berth_api::cri;
use prost::Message;
use serde_json::Value;

use super::{Held, ImageDefaults, Input, PodParts, User, build, resolve_user, stop_signal};

/// Every capability that this code knows.
const ALL: u64 = (1 << 41) - 1;

/// passwd and group with a user between them, a line of dashes before each: ids are never the one that means "leave it",
/// and the primary group is among the groups.
pub fn users(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.splitn(3, "---\n");
    let [user, passwd, group] = [(); 3].map(|()| parts.next().unwrap_or_default());
    let user = user.trim_end_matches('\n');
    // An image names its signal in as free a text.
    let image = ImageDefaults { stop_signal: user.into(), ..Default::default() };
    assert!((1..=64).contains(&stop_signal(&Default::default(), &image)));
    let named = cri::LinuxContainerSecurityContext { run_as_username: user.into(), ..Default::default() };
    for security in [named, Default::default()] {
        if let Ok(user) = resolve_user(&security, user, passwd, group) {
            assert!(user.uid != u32::MAX && user.gid != u32::MAX && !user.groups.contains(&u32::MAX));
            assert_eq!(user.groups.first(), Some(&user.gid));
            assert!(!user.home.is_empty());
        }
    }
}

/// A profile of a node: what is taken of it is a filter that the OCI spec knows.
pub fn seccomp_profiles(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for granted in [&[][..], &["SYS_ADMIN", "NET_ADMIN"]] {
        if let Ok(filter) = super::seccomp::from_file(&text, granted) {
            assert!(filter["defaultAction"].is_string() && filter["syscalls"].is_array());
        }
    }
}

/// A CreateContainer's `ContainerConfig` and the image's configuration (its JSON is decoded elsewhere): the spec is an OCI
/// spec, and no path in it that must be absolute is not.
pub fn container_requests(data: &[u8]) {
    let Ok(config) = cri::ContainerConfig::decode(data) else { return };
    let parts = PodParts {
        net: Some("/run/berth/p/P/ns/net".into()),
        pid: Some("/run/berth/p/P/ns/pid".into()),
        shm: "/run/berth/p/P/shm".into(),
        hostname: "web-0".into(),
        ..Default::default()
    };
    let image = ImageDefaults { cmd: vec!["/bin/true".into()], ..Default::default() };
    let signal = stop_signal(&config, &image);
    assert!((1..=64).contains(&signal), "{signal}");
    for cgroup_v2 in [false, true] {
        let built = build(&Input {
            pod: "P",
            config: &config,
            image: &image,
            user: &User { home: "/root".into(), ..Default::default() },
            parts: &parts,
            target_pid: None,
            held: &Held::from_mask(ALL),
            devices: &[],
            seccomp_profile: Some("{\"defaultAction\":\"SCMP_ACT_ALLOW\"}"),
            apparmor_profile: None,
            labels: None,
            cgroup_path: "/berth/C",
            cgroup_v2,
        });
        match built {
            Ok(spec) => check(spec),
            Err(invalid) => assert!(!invalid.field.is_empty() && !invalid.problem.is_empty()),
        }
    }
}

fn check(spec: Value) {
    assert!(spec["process"]["cwd"].as_str().is_some_and(|cwd| cwd.starts_with('/')));
    let parsed = serde_json::from_value::<oci_spec::runtime::Spec>(spec.clone());
    let parsed = parsed.unwrap_or_else(|error| panic!("{error}: {spec}"));
    for mount in parsed.mounts().iter().flatten() {
        assert!(mount.destination().is_absolute(), "{mount:?}");
    }
}
