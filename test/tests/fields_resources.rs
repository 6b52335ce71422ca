//! Limits of a container, each read back from the kernel; see `fields.tsv`.

use berth_api::cri::{CgroupDriver, ContainerConfig, HugepageLimit, LinuxContainerResources, RuntimeConfigRequest};
use berth_test::cri::script;
use berth_test::kernel::{capability, cgroup_v2};
use berth_test::{Node, Pod, pod};
use tonic::Code;

/// `name` is in `message`; shows it all when it is not.
fn names(message: &str, name: &str) {
    assert!(message.contains(name), "{name:?} is not in: {message}");
}

fn limited(name: &str, resources: LinuxContainerResources) -> ContainerConfig {
    let mut config = script(name, "exec sleep 1000");
    config.linux.get_or_insert_default().resources = Some(resources);
    config
}

async fn refused(pod: &Pod<'_>, resources: LinuxContainerResources, field: &str) {
    let refused = pod.try_create(limited("bad", resources)).await.err().expect(field);
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    names(refused.message(), field);
}

#[tokio::test]
async fn a_kubelet_is_told_who_makes_the_cgroups() {
    let node = Node::start().await;
    let answer = node.runtime().runtime_config(RuntimeConfigRequest::default()).await.expect("RuntimeConfig");
    let told = answer.into_inner().linux.expect("what is Linux's").cgroup_driver();
    // A node here lives in a pid namespace of its own, where systemd's driver is never used; see hack/vm-guest/systemd.
    assert_eq!(told, CgroupDriver::Cgroupfs);
    node.assert_nothing_left();
}

#[tokio::test]
async fn memory_and_swap_are_limited_as_asked() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("memory")).await;
    const MIB: i64 = 1 << 20;
    let asked = |memory: i64, swap: i64| LinuxContainerResources {
        memory_limit_in_bytes: memory,
        memory_swap_limit_in_bytes: swap,
        ..Default::default()
    };
    for (name, memory, swap) in [("memory", 64 * MIB, 0), ("no-swap", 64 * MIB, 64 * MIB), ("some", 64 * MIB, 80 * MIB)]
    {
        let c = pod.run(limited(name, asked(memory, swap))).await;
        assert_eq!(c.limit("memory", "memory.limit_in_bytes", "memory.max").await, memory.to_string());
        if swap != 0 {
            // Version 1 counts memory and swap together, as CRI does; version 2 counts swap alone.
            let expected = if cgroup_v2() { swap - memory } else { swap };
            let found = c.limit("memory", "memory.memsw.limit_in_bytes", "memory.swap.max").await;
            assert_eq!(found, expected.to_string(), "{name}");
        }
        let told = c.status().await.resources.and_then(|r| r.linux).expect("a status has the limits");
        assert_eq!((told.memory_limit_in_bytes, told.memory_swap_limit_in_bytes), (memory, swap));
    }
    refused(&pod, asked(64 * MIB, 32 * MIB), "config.linux.resources.memory_swap_limit_in_bytes").await;
    refused(&pod, asked(-5, 0), "config.linux.resources.memory_limit_in_bytes").await;
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn cpu_shares_quota_and_period_are_the_kernels() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("cpu")).await;
    let asked =
        LinuxContainerResources { cpu_shares: 512, cpu_quota: 20_000, cpu_period: 50_000, ..Default::default() };
    let c = pod.run(limited("c", asked.clone())).await;
    if cgroup_v2() {
        assert_eq!(c.limit("cpu", "", "cpu.max").await, "20000 50000");
        let weight: u64 = c.limit("cpu", "", "cpu.weight").await.parse().expect("a number");
        assert!((2..100).contains(&weight), "less than the default: {weight}");
    } else {
        for (file, value) in [("cpu.shares", "512"), ("cpu.cfs_quota_us", "20000"), ("cpu.cfs_period_us", "50000")] {
            assert_eq!(c.limit("cpu", file, "").await, value, "{file}");
        }
    }
    let told = c.status().await.resources.and_then(|r| r.linux).expect("a status has the limits");
    assert_eq!((told.cpu_shares, told.cpu_quota, told.cpu_period), (512, 20_000, 50_000));
    refused(&pod, LinuxContainerResources { cpu_shares: -1, ..Default::default() }, "resources.cpu_shares").await;
    refused(&pod, LinuxContainerResources { cpu_quota: -2, ..Default::default() }, "resources.cpu_quota").await;
    refused(&pod, LinuxContainerResources { cpu_period: -1, ..Default::default() }, "resources.cpu_period").await;
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_cpuset_pins_the_container() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("cpuset")).await;
    let asked = LinuxContainerResources { cpuset_cpus: "0".into(), cpuset_mems: "0".into(), ..Default::default() };
    let c = pod.run(limited("c", asked)).await;
    assert_eq!(c.process_status("Cpus_allowed_list").await, "0");
    assert_eq!(c.process_status("Mems_allowed_list").await, "0");
    assert_eq!(c.limit("cpuset", "cpuset.cpus", "cpuset.cpus").await, "0");
    assert_eq!(c.limit("cpuset", "cpuset.mems", "cpuset.mems").await, "0");
    for (cpus, mems, field) in [("x", "", "cpuset_cpus"), ("3-1", "", "cpuset_cpus"), ("", "0,,1", "cpuset_mems")] {
        let asked =
            LinuxContainerResources { cpuset_cpus: cpus.into(), cpuset_mems: mems.into(), ..Default::default() };
        refused(&pod, asked, &format!("config.linux.resources.{field}")).await;
    }
    // A list that is well formed and that this host does not have is the kernel's to refuse.
    let asked = LinuxContainerResources { cpuset_cpus: "8000".into(), ..Default::default() };
    let refused = pod.try_create(limited("absent", asked)).await.err().expect("no CPU 8000");
    names(refused.message(), "cpuset.cpus");
    pod.end().await;
    node.assert_nothing_left();
}

/// Sizes that this kernel has huge pages of, as CRI names them.
fn page_sizes() -> Vec<String> {
    let entries = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let name = |e: std::fs::DirEntry| e.file_name().into_string().ok();
    let kib = entries.filter_map(name).filter_map(|n| n.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok());
    let size = |kib: u64| if kib >= 1 << 20 { format!("{}GB", kib >> 20) } else { format!("{}MB", kib >> 10) };
    kib.map(size).collect()
}

#[tokio::test]
async fn huge_pages_are_limited_where_the_host_has_them() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("pages")).await;
    let sizes = page_sizes();
    let limit = |size: &String| HugepageLimit { page_size: size.clone(), limit: 4 << 30 };
    let asked = LinuxContainerResources { hugepage_limits: sizes.iter().map(limit).collect(), ..Default::default() };
    let c = pod.run(limited("c", asked)).await;
    for size in &sizes {
        let files = (format!("hugetlb.{size}.limit_in_bytes"), format!("hugetlb.{size}.max"));
        assert_eq!(c.limit("hugetlb", &files.0, &files.1).await, (4_u64 << 30).to_string(), "{size}");
    }
    let strange = HugepageLimit { page_size: "3MB".into(), limit: 3 << 20 };
    let asked = LinuxContainerResources { hugepage_limits: vec![strange], ..Default::default() };
    let refused = pod.try_create(limited("strange", asked)).await.err().expect("no kernel has pages of 3 MB");
    names(refused.message(), "3MB");
    let nameless = HugepageLimit { page_size: String::new(), limit: 3 << 20 };
    let asked = LinuxContainerResources { hugepage_limits: vec![nameless], ..Default::default() };
    let refused = pod.try_create(limited("nameless", asked)).await.err().expect("pages of no size");
    names(refused.message(), "config.linux.resources.hugepage_limits[0].page_size: empty");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn unified_is_written_on_version_2_and_refused_on_version_1() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("unified")).await;
    let asked = |key: &str| LinuxContainerResources {
        unified: [(key.to_owned(), "33554432".to_owned())].into(),
        ..Default::default()
    };
    if cgroup_v2() {
        let c = pod.run(limited("c", asked("memory.high"))).await;
        assert_eq!(c.limit("memory", "", "memory.high").await, "33554432");
    } else {
        refused(&pod, asked("memory.high"), "config.linux.resources.unified").await;
    }
    for bad in ["../memory.max", "cgroup.procs", "memory"] {
        refused(&pod, asked(bad), "config.linux.resources.unified").await;
    }
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn the_oom_score_is_as_asked_or_as_low_as_the_host_lets_and_told() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("score")).await;
    let held = node.enclosure().shell("sed -n 's/^CapBnd:\t//p' /proc/1/status");
    let held = u64::from_str_radix(held.trim(), 16).expect("a mask");
    let floor: i64 =
        std::fs::read_to_string("/proc/self/oom_score_adj").expect("own score").trim().parse().expect("number");
    for asked in [0, 500, 1000, -900] {
        let lowest = if held & capability("SYS_RESOURCE") == 0 { floor } else { -1000 };
        let given = asked.max(lowest);
        let resources = LinuxContainerResources { oom_score_adj: asked, ..Default::default() };
        let c = pod.run(limited(&format!("score{asked}"), resources)).await;
        let found = std::fs::read_to_string(c.proc("oom_score_adj").await).expect("read a score");
        assert_eq!(found.trim(), given.to_string(), "asked for {asked}");
        let told = c.status().await.resources.and_then(|r| r.linux).expect("a status has the limits");
        assert_eq!(told.oom_score_adj, given, "asked for {asked}");
    }
    let resources = LinuxContainerResources { oom_score_adj: 1001, ..Default::default() };
    refused(&pod, resources, "config.linux.resources.oom_score_adj").await;
    pod.end().await;
    node.assert_nothing_left();
}
