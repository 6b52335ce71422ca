use super::*;

fn input_for(check: impl FnOnce(&mut cri::ContainerConfig, &mut PodParts)) -> Result<Value, Invalid> {
    let mut config = cri::ContainerConfig { command: vec!["/bin/true".into()], ..Default::default() };
    let mut parts = PodParts {
        net: Some("/run/berth/p/P/ns/net".into()),
        ipc: Some("/run/berth/p/P/ns/ipc".into()),
        uts: Some("/run/berth/p/P/ns/uts".into()),
        shm: "/run/berth/p/P/shm".into(),
        hostname: "web-0".into(),
        ..Default::default()
    };
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().namespace_options.get_or_insert_default().pid =
        cri::NamespaceMode::Container.into();
    check(&mut config, &mut parts);
    let labels = Labels { process: Some("u:r:p:s0".into()), mount: "u:r:m:s0".into() };
    build(&Input {
        pod: "P",
        config: &config,
        image: &Default::default(),
        user: &User { home: "/root".into(), ..Default::default() },
        parts: &parts,
        target_pid: None,
        held: &Held::from_mask((1 << 41) - 1),
        devices: &[],
        seccomp_profile: None,
        apparmor_profile: None,
        labels: Some(&labels),
        cgroup_path: "/berth/C",
        cgroup_v2: true,
    })
}

/// Every key that we write is one that the OCI spec knows: what `oci-spec` reads and writes again is what we wrote.
#[test]
fn the_spec_is_an_oci_spec() {
    let value = input_for(|config, _| {
        let linux = config.linux.get_or_insert_default();
        let security = linux.security_context.get_or_insert_default();
        security.seccomp = Some(Default::default());
        linux.resources = Some(cri::LinuxContainerResources {
            cpu_shares: 512,
            cpu_quota: 50_000,
            cpu_period: 100_000,
            memory_limit_in_bytes: 64 << 20,
            memory_swap_limit_in_bytes: 64 << 20,
            cpuset_cpus: "0-1".into(),
            unified: [("memory.high".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        });
    })
    .expect("builds");
    let spec: oci_spec::runtime::Spec = serde_json::from_value(value.clone()).expect("an OCI spec");
    let again = serde_json::to_value(&spec).expect("json");
    assert_no_key_lost("", &value, &again);
    assert_eq!(
        (&value["process"]["selinuxLabel"], &value["linux"]["mountLabel"]),
        (&"u:r:p:s0".into(), &"u:r:m:s0".into())
    );
}

fn assert_no_key_lost(path: &str, ours: &Value, theirs: &Value) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in a {
                let path = format!("{path}.{key}");
                assert_no_key_lost(&path, value, b.get(key).unwrap_or_else(|| panic!("{path} is no key of the spec")));
            }
        }
        (Value::Array(a), Value::Array(b)) => assert_eq!(a.len(), b.len(), "{path}"),
        _ => {}
    }
}

#[test]
fn environment_is_bytes_and_the_last_one_wins() {
    let value = input_for(|config, _| {
        for (key, value) in [("A", &b"1"[..]), ("A", b"2"), ("HOME", b"/elsewhere")] {
            config.envs.push(cri::KeyValue { key: key.into(), value: value.to_vec() });
        }
    })
    .expect("builds");
    let env = value["process"]["env"].as_array().expect("env").clone();
    assert!(env.contains(&"A=2".into()) && !env.contains(&"A=1".into()), "{env:?}");
    assert!(env.contains(&"HOME=/elsewhere".into()) && env.contains(&"HOSTNAME=web-0".into()), "{env:?}");

    let value = input_for(|config, _| config.envs.push(cri::KeyValue { key: "B".into(), value: vec![0xff] }));
    let value = value.expect("builds");
    assert!(value["annotations"][berth_api::shim::ENV_ANNOTATION].is_string());
}

#[test]
fn a_volume_over_a_file_of_ours_replaces_it_and_parents_come_first() {
    let value = input_for(|config, _| {
        for path in ["/a/b/c", "/a", "/etc/hosts"] {
            config.mounts.push(cri::Mount {
                container_path: path.into(),
                host_path: "/h".into(),
                ..Default::default()
            });
        }
    })
    .expect("builds");
    let all: Vec<_> = value["mounts"].as_array().expect("mounts").iter().map(|m| m["destination"].clone()).collect();
    assert_eq!(all.iter().filter(|d| **d == "/etc/hosts").count(), 1);
    let at = |path: &str| all.iter().position(|d| d == path).expect(path);
    assert!(at("/a") < at("/a/b/c"));
}

#[test]
fn privileged_hides_nothing_and_filters_nothing() {
    let value = input_for(|config, _| {
        let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.privileged = true;
        security.seccomp = Some(Default::default());
    })
    .expect("builds");
    assert!(value["linux"].get("maskedPaths").is_none() && value["linux"].get("seccomp").is_none());
    assert_eq!(value["linux"]["resources"]["devices"][0]["allow"], true);
}

#[test]
fn a_shared_pid_namespace_must_be_there() {
    let shared = |config: &mut cri::ContainerConfig| {
        let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.namespace_options.get_or_insert_default().pid = cri::NamespaceMode::Pod.into();
    };
    let error = input_for(|config, _| shared(config)).expect_err("no shared pid namespace").to_string();
    assert!(error.contains("namespace_options.pid"), "{error}");
    let value = input_for(|config, parts| {
        shared(config);
        parts.pid = Some("/run/berth/p/P/ns/pid".into());
    });
    let namespaces = value.expect("builds")["linux"]["namespaces"].clone();
    assert!(
        namespaces.as_array().expect("list").iter().any(|n| n["type"] == "pid" && n["path"] == "/run/berth/p/P/ns/pid")
    );
}

#[test]
fn without_a_score_a_container_gets_zero_and_not_the_daemons() {
    let value = input_for(|_, _| {}).expect("builds");
    assert_eq!(value["process"]["oomScoreAdj"], 0);
}
