//! A container's cgroups on this machine. Needs root and busybox-static.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use serde_json::json;
use support::*;

/// A file of the container's cgroup, wherever this host has that controller.
fn limit(path: &str, v1: &str, v2: &str) -> String {
    let found = cgroup_directories(path)
        .into_iter()
        .flat_map(|directory| [directory.join(v1), directory.join(v2)])
        .find(|file| file.is_file());
    let file = found.unwrap_or_else(|| panic!("neither {v1} nor {v2} below {path}"));
    fs::read_to_string(file).expect("read").trim().to_owned()
}

fn is_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Of `Stats`: anonymous memory, all memory and its limit, processes and their limit, microseconds of processor time.
fn used(stats: &protobuf::well_known_types::any::Any) -> [u64; 6] {
    use containerd_shim_protos::{cgroups, cgroups_v2};
    use protobuf::Message;
    if is_v2() {
        assert_eq!(stats.type_url, "io.containerd.cgroups.v2.Metrics");
        let told = cgroups_v2::metrics::Metrics::parse_from_bytes(&stats.value).expect("metrics");
        let (memory, pids) = (&told.memory, &told.pids);
        return [memory.anon, memory.usage, memory.usage_limit, pids.current, pids.limit, told.cpu.usage_usec];
    }
    assert_eq!(stats.type_url, "io.containerd.cgroups.v1.Metrics");
    let told = cgroups::metrics::Metrics::parse_from_bytes(&stats.value).expect("metrics");
    let (memory, pids) = (&told.memory, &told.pids);
    [memory.rss, memory.usage.usage, memory.usage.limit, pids.current, pids.limit, told.cpu.usage.total / 1000]
}

#[test]
fn what_is_used_is_told_in_containerds_words() {
    const TAKEN: u64 = 8_000_000; // bytes
    let bundle = Bundle::sh(&format!("x=$(head -c {TAKEN} /dev/zero | tr '\\000' x); sleep 60; true"))
        .set("/linux/resources", json!({"memory": {"limit": 64 << 20, "swap": 64 << 20}, "pids": {"limit": 50}}));
    let (container, _output) = bundle.start();
    let told = || used(&container.cgroup.stats().expect("stats"));
    until("it has its memory", || matches!(told(), [anonymous, _, _, 2, ..] if anonymous >= TAKEN));
    let [_, memory, limit, _, processes, time] = told();
    assert!(memory >= TAKEN && limit == 64 << 20, "{memory} of {limit}");
    assert!(processes == 50 && time > 0, "{processes} {time}");
    let cgroup = container.cgroup.clone();
    end(container);
    assert!(cgroup.stats().expect_err("it is gone").message().contains("read \""));
}

#[test]
fn limits_are_written_and_updated() {
    let bundle = Bundle::sh("sleep 60").set(
        "/linux/resources",
        json!({
            "memory": {"limit": 64 << 20, "swap": 64 << 20, "reservation": 32 << 20},
            "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0"},
            "pids": {"limit": 50}
        }),
    );
    let (container, _output) = bundle.start();
    let path = bundle.cgroup();
    assert_eq!(limit(&path, "memory.limit_in_bytes", "memory.max"), (64 << 20).to_string());
    assert_eq!(limit(&path, "pids.max", "pids.max"), "50");
    assert_eq!(limit(&path, "cpuset.cpus", "cpuset.cpus"), "0");
    match is_v2() {
        true => assert_eq!(limit(&path, "-", "cpu.max"), "50000 100000"),
        false => {
            assert_eq!(limit(&path, "cpu.shares", "-"), "512");
            assert_eq!(limit(&path, "cpu.cfs_quota_us", "-"), "50000");
            assert_eq!(limit(&path, "memory.soft_limit_in_bytes", "-"), (32 << 20).to_string());
        }
    }
    // Up and down again: memory and swap together may not cross.
    for megabytes in [256, 32] {
        let resources: LinuxResources = serde_json::from_value(json!({
            "memory": {"limit": megabytes << 20, "swap": megabytes << 20}, "cpu": {"quota": -1}, "pids": {"limit": -1}
        }))
        .expect("resources");
        container.cgroup.update(&resources).expect("update");
        assert_eq!(limit(&path, "memory.limit_in_bytes", "memory.max"), (megabytes << 20).to_string());
    }
    assert_eq!(limit(&path, "pids.max", "pids.max"), "max");
    let bad: LinuxResources = serde_json::from_value(json!({"cpu": {"cpus": "99999"}})).expect("resources");
    let error = container.cgroup.update(&bad).expect_err("no such CPU");
    assert!(error.message().contains("99999") && error.message().contains("cpuset.cpus"), "{}", error.message());
    end(container);
    assert_eq!(cgroup_directories(&path), Vec::<PathBuf>::new());
}

#[test]
fn a_limit_that_is_refused_leaves_no_cgroup() {
    let bundle = Bundle::sh("true").set("/linux/resources", json!({"cpu": {"cpus": "nonsense"}}));
    let error = bundle.run().expect_err("refused");
    assert!(error.message().starts_with("write \"nonsense\" to"), "{}", error.message());
    assert_eq!(cgroup_directories(&bundle.cgroup()), Vec::<PathBuf>::new());
}

#[test]
fn every_process_is_in_every_hierarchy() {
    let bundle = Bundle::sh("sleep 60 & sleep 60");
    let (container, _output) = bundle.start();
    until("both are there", || container.cgroup.pids().expect("pids").len() == 2);
    let membership = fs::read_to_string(format!("/proc/{}/cgroup", container.pid)).expect("read");
    for line in membership.lines() {
        assert!(line.ends_with(&bundle.cgroup()), "{line}");
    }
    end(container);
}

#[test]
fn an_oom_kill_is_known() {
    let bundle = Bundle::sh("dd if=/dev/zero of=/dev/null bs=200M count=1; echo $?; sleep 60")
        .set("/linux/resources", json!({"memory": {"limit": 32 << 20, "swap": 32 << 20}}));
    let (container, _output) = bundle.start();
    until("the kernel has killed", || container.cgroup.oom_kills() > 0);
    end(container);
    let bundle = Bundle::sh("sleep 60");
    let (container, _output) = bundle.start();
    assert_eq!(container.cgroup.oom_kills(), 0);
    end(container);
}

#[test]
fn cgroups_of_the_container_go_with_it() {
    let capabilities = json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
    let bundle =
        Bundle::sh("sleep 60 & for d in /sys/fs/cgroup /sys/fs/cgroup/*; do mkdir $d/own/deep -p; done; sleep 60")
            .set(
                "/process/capabilities",
                json!({"bounding": capabilities, "permitted": capabilities,
            "effective": capabilities}),
            )
            .set("/mounts/6/options", json!(["nosuid", "noexec", "nodev", "rw"]));
    let (container, _output) = bundle.start();
    let path = bundle.cgroup();
    until("its own cgroups are there", || {
        cgroup_directories(&path).iter().any(|directory| directory.join("own/deep").is_dir())
    });
    until("both are there", || container.cgroup.pids().expect("pids").len() >= 2);
    end(container);
    assert_eq!(cgroup_directories(&path), Vec::<PathBuf>::new());
}

#[test]
fn the_containers_cgroup_is_what_it_sees_and_cannot_change() {
    let script = "cat /proc/self/cgroup | grep -v ':/$' | wc -l; touch /sys/fs/cgroup/x 2>/dev/null || echo ro; \
        cat $(ls -d /sys/fs/cgroup/pids /sys/fs/cgroup 2>/dev/null | head -n1)/pids.max; \
        echo 99 > $(ls -d /sys/fs/cgroup/pids /sys/fs/cgroup 2>/dev/null | sort -r | head -n1)/pids.max || echo ro";
    let ended = Bundle::sh(script).set("/linux/resources", json!({"pids": {"limit": 77}})).run().expect("run");
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!(lines[..2], ["0", "ro"], "{ended:?}");
    assert!(lines.contains(&"ro") && ended.stderr.contains("Read-only"), "{ended:?}");
}

#[test]
fn parents_that_are_berths_go_and_others_stay() {
    let root = format!("berth-test-root-{}", std::process::id());
    let bundle = Bundle::sh("true").set("/linux/cgroupsPath", json!(format!("/{root}/pod/deep/ctr")));
    bundle.run().expect("run");
    assert_eq!(cgroup_directories(&format!("/{root}/pod")), Vec::<PathBuf>::new());
    let kept = cgroup_directories(&root);
    assert_ne!(kept, Vec::<PathBuf>::new(), "the daemon's root");
    kept.iter().for_each(|directory| fs::remove_dir(directory).expect("it is empty"));

    let bundle = Bundle::sh("true").set("/linux/cgroupsPath", json!("/others-test/pod/ctr"));
    bundle.run().expect("run");
    assert_eq!(cgroup_directories("/others-test/pod/ctr"), Vec::<PathBuf>::new());
    let left = cgroup_directories("/others-test/pod");
    assert_ne!(left, Vec::<PathBuf>::new());
    for directory in left {
        fs::remove_dir(&directory).expect("remove");
        fs::remove_dir(directory.parent().expect("a parent")).expect("remove");
    }
}

#[test]
fn a_cgroup_with_somebody_in_it_is_not_taken_over() {
    let bundle = Bundle::sh("sleep 60");
    let (container, _output) = bundle.start();
    let second = Bundle::sh("true").set("/linux/cgroupsPath", json!(bundle.cgroup()));
    let error = second.run().expect_err("occupied");
    assert!(error.message().contains("make the cgroup"), "{}", error.message());
    assert!(!container.cgroup.pids().expect("pids").is_empty(), "the first one was killed for it");
    end(container);
}
