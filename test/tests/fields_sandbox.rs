//! Fields of RunPodSandboxRequest, each proven by what a container or the kernel shows of it; see `fields.tsv`.

use std::path::{Path, PathBuf};

use berth_api::cri::{
    Capability, ContainerConfig, HugepageLimit, Int64Value, LinuxContainerResources, LinuxSandboxSecurityContext,
    NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxStatusRequest, PortMapping, Protocol, SecurityProfile,
    security_profile::ProfileType,
};
use berth_test::cri::script;
use berth_test::kernel::cgroup_v2;
use berth_test::node::Options;
use berth_test::{Node, Pod, pod};
use serde_json::{Value, json};
use tonic::Code;

fn security(config: &mut PodSandboxConfig) -> &mut LinuxSandboxSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// A user with no capability at all.
fn unprivileged(name: &str) -> ContainerConfig {
    let mut config = script(name, "exec sleep 1000");
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.run_as_user = Some(Int64Value { value: 1000 });
    security.capabilities = Some(Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() });
    config
}

/// `name` is in `message`; shows it all when it is not.
fn names(message: &str, name: &str) {
    assert!(message.contains(name), "{name:?} is not in: {message}");
}

async fn info(node: &Node, pod: &Pod<'_>) -> Value {
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
    let answer = node.runtime().pod_sandbox_status(request).await.expect("PodSandboxStatus").into_inner();
    serde_json::from_str(&answer.info["info"]).expect("`info` is JSON")
}

#[tokio::test]
async fn a_pods_labels_and_annotations_come_back_byte_for_byte() {
    let node = Node::start().await;
    let mut config = pod("labelled");
    for (key, value) in
        [("a/b.c", ""), ("empty", ""), ("text", "\"quoted\"\n\tand ünïcode \u{1F980}\\"), ("", "no key")]
    {
        config.labels.insert(key.into(), value.into());
        config.annotations.insert(key.into(), format!("{value}{value}"));
    }
    config.annotations.insert("large".into(), "x".repeat(100_000));
    let pod = node.run_pod(config.clone()).await;
    let status = pod.status().await;
    assert_eq!((status.labels, status.annotations), (config.labels.clone(), config.annotations.clone()));
    assert_eq!(status.metadata, config.metadata);
    let listed = node.runtime().list_pod_sandbox(berth_api::cri::ListPodSandboxRequest::default()).await;
    let listed = listed.expect("ListPodSandbox").into_inner().items.remove(0);
    assert_eq!((listed.labels, listed.annotations), (config.labels, config.annotations));
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_pods_name_is_all_four_parts_of_its_metadata() {
    let node = Node::start().await;
    let first = node.run_pod(pod("same")).await;
    let changes: [fn(&mut PodSandboxConfig); 4] = [
        |c| c.metadata.as_mut().expect("metadata").name = "other".into(),
        |c| c.metadata.as_mut().expect("metadata").uid += "-other",
        |c| c.metadata.as_mut().expect("metadata").namespace = "other".into(),
        |c| c.metadata.as_mut().expect("metadata").attempt = 1,
    ];
    for change in changes {
        let mut config = first.config.clone();
        change(&mut config);
        let other = node.run_pod(config.clone()).await;
        assert_ne!(other.id, first.id, "{:?}", config.metadata);
        assert_eq!(other.status().await.metadata, config.metadata);
        other.end().await;
    }
    first.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn the_log_directory_holds_the_containers_logs() {
    let node = Node::start().await;
    let mut config = pod("logs");
    let dir = node.dir().join("logs/made/by-berth");
    config.log_directory = dir.to_str().expect("UTF-8").into();
    let pod = node.run_pod(config.clone()).await;
    let mut inside = script("c", "echo here");
    inside.log_path = "deep/er/0.log".into();
    let c = pod.run(inside).await;
    assert_eq!(c.said().await, "here\n");
    assert_eq!(c.log_path(), &dir.join("deep/er/0.log"));
    assert_eq!(c.status().await.log_path, dir.join("deep/er/0.log").to_str().expect("UTF-8"));
    for bad in ["../0.log", "/0.log", "a/../../0.log"] {
        let mut outside = script("outside", "true");
        outside.log_path = bad.into();
        let refused = pod.try_create(outside).await.err().expect("a log path that leaves its directory");
        assert_eq!(refused.code(), Code::InvalidArgument);
        names(refused.message(), "config.log_path");
    }
    pod.end().await;
    config.log_directory = "relative".into();
    let refused = node.try_run_pod(config).await.err().expect("a relative log directory");
    names(refused.message(), "config.log_directory");
    node.assert_nothing_left();
}

/// A plugin that writes down what it is given and gives an address.
const RECORDER: &str = r#"#!/bin/sh
cat >RECORD/$CNI_COMMAND
[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion":"1.0.0","ips":[{"address":"10.99.0.7/24"}]}'
exit 0
"#;

/// Makes the recorder the node's network and gives the directory of what it wrote.
fn record_network(node: &Node) -> PathBuf {
    let record = node.dir().join("record");
    std::fs::create_dir_all(&record).expect("make a directory");
    // In the enclosure's own mount namespace: the host's directory stays as it is.
    node.enclosure().shell("mount -t tmpfs tmpfs /usr/libexec && mkdir -p /usr/libexec/berth/cni");
    let plugin = node.enclosure().path("/usr/libexec/berth/cni/recorder");
    std::fs::write(&plugin, RECORDER.replace("RECORD", record.to_str().expect("UTF-8"))).expect("write a plugin");
    node.enclosure().shell("chmod 755 /usr/libexec/berth/cni/recorder");
    let list = json!({"cniVersion": "1.0.0", "name": "recorded", "plugins": [
        {"type": "recorder", "capabilities": {"portMappings": true, "dns": true}}]});
    std::fs::write(node.dir().join("net.d/10-recorded.conflist"), list.to_string()).expect("write a conflist");
    record
}

#[tokio::test]
async fn published_ports_reach_the_plugin_that_declares_them() {
    let node = Node::start().await;
    let record = record_network(&node);
    let mut config = pod("published");
    let udp = Protocol::Udp.into();
    config.port_mappings = vec![
        PortMapping { protocol: udp, container_port: 53, host_port: 5353, host_ip: "127.0.0.2".into() },
        PortMapping { container_port: 80, host_port: 8080, ..Default::default() },
        PortMapping { container_port: 443, ..Default::default() },
    ];
    let pod = node.run_pod(config).await;
    let given: Value = serde_json::from_slice(&std::fs::read(record.join("ADD")).expect("ADD")).expect("JSON");
    let expected = json!([
        {"protocol": "udp", "containerPort": 53, "hostPort": 5353, "hostIP": "127.0.0.2"},
        {"protocol": "tcp", "containerPort": 80, "hostPort": 8080},
    ]);
    assert_eq!(given["runtimeConfig"]["portMappings"], expected, "{given}");
    let shown = info(&node, &pod).await;
    assert_eq!(shown["portMappings"][2], json!({"protocol": "TCP", "containerPort": 443, "hostPort": 0, "hostIp": ""}));
    pod.end().await;
    assert!(record.join("DEL").exists(), "the plugin is asked to undo it");
}

#[tokio::test]
async fn a_host_port_without_a_plugin_for_it_is_refused_by_name() {
    let node = Node::start().await;
    let list = json!({"cniVersion": "1.0.0", "name": "bare", "plugins": [
        {"type": "bridge", "bridge": "bare", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.91.0.0/24"}]]}}]});
    std::fs::write(node.dir().join("net.d/10-bare.conflist"), list.to_string()).expect("write a conflist");
    let mut config = pod("published");
    config.port_mappings = vec![PortMapping { container_port: 80, host_port: 8080, ..Default::default() }];
    let refused = node.try_run_pod(config.clone()).await.err().expect("no plugin declares portMappings");
    assert_eq!(refused.code(), Code::InvalidArgument);
    for name in ["config.port_mappings", "8080", "portMappings"] {
        names(refused.message(), name);
    }
    // A container's port alone publishes nothing.
    config.port_mappings[0].host_port = 0;
    std::fs::remove_file(node.dir().join("net.d/10-bare.conflist")).expect("remove the conflist");
    node.run_pod(config).await.end().await;
    node.assert_nothing_left();
}

/// Directories of a cgroup in every hierarchy of this host.
fn cgroup_dirs(path: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let below = |dir: &Path| dir.join(path.trim_start_matches('/'));
    if cgroup_v2() {
        return vec![below(root)];
    }
    let entries = std::fs::read_dir(root).expect("read /sys/fs/cgroup").flatten();
    let hierarchies = entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    hierarchies.map(|e| below(&e.path())).filter(|dir| dir.exists()).collect()
}

/// Takes a test's own cgroup away, however the test ends.
struct Parent(String);

impl Drop for Parent {
    fn drop(&mut self) {
        for dir in cgroup_dirs(&self.0) {
            let _ = std::fs::remove_dir(dir);
        }
    }
}

#[tokio::test]
async fn containers_are_in_the_parent_cgroup_in_both_syntaxes() {
    let node = Node::start().await;
    let unique = node.name().replace('-', "");
    let slice = format!("{unique}-burstable-pod1.slice");
    let slices = format!("/{unique}.slice/{unique}-burstable.slice/{slice}");
    for (parent, path) in [(format!("/{}/burstable/pod1", node.name()), None), (slice, Some(slices))] {
        let path = path.unwrap_or_else(|| parent.clone());
        let mut config = pod("grouped");
        config.linux.get_or_insert_default().cgroup_parent = parent.clone();
        let pod = node.run_pod(config).await;
        let c = pod.run(script("c", "exec sleep 1000")).await;
        let controllers: &[&str] = if cgroup_v2() { &[""] } else { &["memory", "cpu", "pids", "devices"] };
        for controller in controllers {
            assert_eq!(c.cgroup(controller).await, format!("{path}/{}", c.id), "{parent} {controller}");
        }
        assert_eq!(info(&node, &pod).await["cgroupParent"], parent.as_str());
        pod.end().await;
        let top = Path::new(&path).components().take(2).collect::<PathBuf>();
        assert_eq!(cgroup_dirs(top.to_str().expect("UTF-8")), Vec::<PathBuf>::new(), "what berth made is gone");
    }
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_parent_cgroup_that_berth_did_not_make_stays() {
    let node = Node::start().await;
    let path = format!("/{}", node.name());
    let _parent = Parent(path.clone());
    let root = if cgroup_v2() { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/memory" };
    let theirs = Path::new(root).join(node.name());
    std::fs::create_dir(&theirs).expect("make a cgroup");
    let mut config = pod("grouped");
    config.linux.get_or_insert_default().cgroup_parent = format!("{path}/pod1");
    let pod = node.run_pod(config).await;
    let (c, d) = (pod.run(script("c", "exec sleep 1000")).await, pod.run(script("d", "exec sleep 1000")).await);
    c.stop(0).await.expect("StopContainer");
    c.remove().await.expect("RemoveContainer");
    assert!(!cgroup_dirs(&format!("{path}/pod1")).is_empty(), "d still needs it");
    // The daemon that goes is not the one that comes: what it made is on record.
    node.kill_daemon().await;
    node.restart().await;
    d.stop(0).await.expect("StopContainer");
    pod.end().await;
    assert_eq!(cgroup_dirs(&path), [theirs]);
}

#[tokio::test]
async fn a_bad_parent_cgroup_is_refused() {
    let node = Node::start().await;
    for bad in ["relative", "/a/../b", "a--b.slice"] {
        let mut config = pod("grouped");
        config.linux.get_or_insert_default().cgroup_parent = bad.into();
        let refused = node.try_run_pod(config).await.err().expect(bad);
        assert_eq!(refused.code(), Code::InvalidArgument);
        names(refused.message(), "config.linux.cgroup_parent");
    }
    node.assert_nothing_left();
}

#[tokio::test]
async fn sysctls_are_the_pods_and_not_the_hosts() {
    let node = Node::start().await;
    let asked = [
        ("net.core.somaxconn", "3333"),
        ("net/ipv4/ip_local_port_range", "20000\t30000"),
        ("kernel.shm_rmid_forced", "1"),
        ("fs.mqueue.msg_max", "99"),
    ];
    let file = |key: &str| format!("cat /proc/sys/{}", key.replace('.', "/"));
    let before: Vec<String> = asked.iter().map(|(key, _)| node.enclosure().shell(&file(key))).collect();
    let mut config = pod("tuned");
    config.linux.get_or_insert_default().sysctls = asked.map(|(k, v)| (k.into(), v.into())).into();
    let pod = node.run_pod(config).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    for ((key, value), host) in asked.into_iter().zip(before) {
        assert_eq!(c.shell(&file(key)).await.trim_end(), value, "{key}");
        assert_eq!(node.enclosure().shell(&file(key)), host, "the host's {key}");
        assert_ne!(host.trim_end(), value, "the test would prove nothing");
    }
    pod.end().await;
    for (key, host_network) in [("vm.swappiness", false), ("kernel.panic", false), ("net.core.somaxconn", true)] {
        let mut config = berth_test::pod("bad");
        config.linux.get_or_insert_default().sysctls.insert(key.into(), "1".into());
        if host_network {
            config.hostname = String::new();
            security(&mut config).namespace_options.get_or_insert_default().network = NamespaceMode::Node.into();
        }
        let refused = node.try_run_pod(config).await.err().expect(key);
        assert_eq!(refused.code(), Code::InvalidArgument);
        names(refused.message(), "config.linux.sysctls");
        names(refused.message(), key);
    }
    for (key, value) in [("net.core.no_such_thing", "1"), ("net.core.somaxconn", "many")] {
        let mut config = berth_test::pod("bad");
        config.linux.get_or_insert_default().sysctls.insert(key.into(), value.into());
        let refused = node.try_run_pod(config).await.err().expect(key);
        assert_eq!(refused.code(), Code::InvalidArgument);
        names(refused.message(), key);
    }
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_pod_may_use_low_ports_and_ping_unless_the_configuration_or_its_sysctls_say_otherwise() {
    let read = "cd /proc/sys/net/ipv4; cat ip_unprivileged_port_start ping_group_range";
    let plain = |config: &str| Options { config: config.into(), ..Default::default() };
    for (config, ports, ping) in [
        ("", true, true),
        ("[sandbox]\nunprivileged_ports = false\n", false, true),
        ("[sandbox]\nunprivileged_icmp = false\n", true, false),
        ("[sandbox]\nunprivileged_ports = false\nunprivileged_icmp = false\n", false, false),
    ] {
        let node = Node::start_with(plain(config)).await;
        let host = node.enclosure().shell(read);
        let kernels = node.enclosure().shell(&format!("unshare --net sh -c '{read}'"));
        let kernels: Vec<_> = kernels.lines().collect();
        let expected = [if ports { "0" } else { kernels[0] }, if ping { "0\t2147483647" } else { kernels[1] }];
        assert!(!["0", "0\t2147483647"].iter().any(|ours| kernels.contains(ours)), "the test would prove nothing");
        let pod = node.run_pod(berth_test::pod("default")).await;
        let c = pod.run(unprivileged("c")).await;
        assert_eq!(c.shell(read).await.lines().collect::<Vec<_>>(), expected, "{config}");
        // What it is for. Who pings by it is no program of the image.
        let said = c.shell("httpd -p 80 -h / 2>&1 && echo bound || true").await;
        names(&said, if ports { "bound" } else { "Permission denied" });
        pod.end().await;
        let mut tuned = berth_test::pod("tuned");
        let asked = [("net.ipv4.ip_unprivileged_port_start", "500"), ("net/ipv4/ping_group_range", "7 9")];
        tuned.linux.get_or_insert_default().sysctls = asked.map(|(k, v)| (k.into(), v.into())).into();
        let pod = node.run_pod(tuned).await;
        let c = pod.run(script("c", "exec sleep 1000")).await;
        assert_eq!(c.shell(read).await, "500\n7\t9\n", "{config}");
        pod.end().await;
        assert_eq!(node.enclosure().shell(read), host, "the host's are its own");
        node.assert_nothing_left();
    }
}

#[tokio::test]
async fn overhead_and_resources_of_a_pod_are_shown() {
    let node = Node::start().await;
    let resources = |scale: i64| LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 10_000 * scale,
        cpu_shares: 100 * scale,
        memory_limit_in_bytes: scale << 20,
        oom_score_adj: 10 * scale,
        cpuset_cpus: format!("0-{scale}"),
        cpuset_mems: "0".into(),
        hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 2 << 20 }],
        unified: [("memory.high".to_owned(), scale.to_string())].into(),
        memory_swap_limit_in_bytes: scale << 21,
    };
    let shown = |scale: i64| {
        json!({"cpuPeriod": 100_000, "cpuQuota": 10_000 * scale, "cpuShares": 100 * scale,
               "memoryLimitInBytes": scale << 20, "oomScoreAdj": 10 * scale,
               "cpusetCpus": format!("0-{scale}"), "cpusetMems": "0",
               "hugepageLimits": [{"pageSize": "2MB", "limit": 2 << 20}],
               "unified": {"memory.high": scale.to_string()}, "memorySwapLimitInBytes": scale << 21})
    };
    let mut config = pod("heavy");
    let linux = config.linux.get_or_insert_default();
    (linux.overhead, linux.resources) = (Some(resources(1)), Some(resources(2)));
    let pod = node.run_pod(config).await;
    let info = info(&node, &pod).await;
    assert_eq!((&info["overhead"], &info["resources"]), (&shown(1), &shown(2)));
    pod.end().await;
    node.assert_nothing_left();
}

/// Processes of the node, by what they run.
fn programs(node: &Node) -> Vec<String> {
    let processes = node.enclosure().processes().into_iter();
    let mut lines: Vec<_> = processes.map(|(_, line)| line).filter(|l| !l.starts_with("nsenter ")).collect();
    lines.sort();
    lines
}

/// Identity, groups, root file system, seccomp and AppArmor of a sandbox are those of its pause process elsewhere.
#[tokio::test]
#[allow(deprecated)]
async fn a_sandbox_runs_no_process_of_its_own() {
    let node = Node::start().await;
    let before = programs(&node);
    for pid in [NamespaceMode::Container, NamespaceMode::Node, NamespaceMode::Pod] {
        let mut config = pod("empty");
        *security(&mut config) = LinuxSandboxSecurityContext {
            namespace_options: Some(NamespaceOption { pid: pid.into(), ..Default::default() }),
            run_as_user: Some(berth_api::cri::Int64Value { value: 1000 }),
            run_as_group: Some(berth_api::cri::Int64Value { value: 1001 }),
            readonly_rootfs: true,
            supplemental_groups: vec![1002],
            supplemental_groups_policy: berth_api::cri::SupplementalGroupsPolicy::Strict.into(),
            seccomp: Some(SecurityProfile {
                profile_type: ProfileType::Localhost.into(),
                localhost_ref: "localhost//no/such/profile".into(),
            }),
            seccomp_profile_path: "localhost//no/such/profile".into(),
            apparmor: Some(SecurityProfile {
                profile_type: ProfileType::Localhost.into(),
                localhost_ref: "no-such-profile".into(),
            }),
            ..Default::default()
        };
        let pod = node.run_pod(config).await;
        let mut new = programs(&node);
        new.retain(|line| !before.contains(line));
        match pid {
            // A shared process namespace has berth's own reaper as process 1: no user's program, and no file system.
            NamespaceMode::Pod => {
                assert_eq!(new.len(), 1, "{new:?}");
                names(&new[0], "berth-pod-ns");
            }
            _ => assert_eq!(new, Vec::<String>::new(), "{pid:?}"),
        }
        pod.end().await;
    }
    let mut group = pod("group");
    security(&mut group).run_as_group = Some(berth_api::cri::Int64Value { value: 1001 });
    let refused = node.try_run_pod(group).await.err().expect("a group without a user");
    assert_eq!(refused.code(), Code::InvalidArgument);
    names(refused.message(), "config.linux.security_context.run_as_group: needs run_as_user");
    let mut nonsense = pod("nonsense");
    security(&mut nonsense).seccomp_profile_path = "nonsense".into();
    let refused = node.try_run_pod(nonsense).await.err().expect("no form of a profile");
    names(refused.message(), "config.linux.security_context.seccomp_profile_path: \"nonsense\" is none of");
    node.assert_nothing_left();
}

#[tokio::test]
async fn the_user_namespace_is_the_nodes() {
    let node = Node::start().await;
    let mut config = pod("user");
    let options = security(&mut config).namespace_options.get_or_insert_default();
    options.userns_options.get_or_insert_default().mode = NamespaceMode::Node.into();
    let options = options.clone();
    let pod = node.run_pod(config).await;
    let mut inside = script("c", "exec sleep 1000");
    let context = inside.linux.get_or_insert_default().security_context.get_or_insert_default();
    context.namespace_options = Some(options);
    let c = pod.run(inside).await;
    let read = "readlink /proc/self/ns/user";
    assert_eq!(c.shell(read).await, node.enclosure().shell(read));
    pod.end().await;
    node.assert_nothing_left();
}
