//! New limits for containers and pods that exist: in force at once, all or none, told truthfully, kept over a restart.

use berth_api::cri::{
    ContainerConfig, ContainerState, LinuxContainerResources, PodSandboxStatusRequest, UpdateContainerResourcesRequest,
    UpdatePodSandboxResourcesRequest,
};
use berth_test::cri::{Container, script};
use berth_test::kernel::{capability, cgroup_v2};
use berth_test::node::Options;
use berth_test::{Node, Pod, pod, until};
use tonic::{Code, Status};

const MIB: i64 = 1 << 20;

fn limited(name: &str, command: &str, resources: LinuxContainerResources) -> ContainerConfig {
    let mut config = script(name, command);
    config.linux.get_or_insert_default().resources = Some(resources);
    config
}

async fn update(container: &Container<'_>, resources: LinuxContainerResources) -> Result<(), Status> {
    let request = UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        linux: Some(resources),
        ..Default::default()
    };
    container.node().runtime().update_container_resources(request).await.map(drop)
}

async fn refused(container: &Container<'_>, resources: LinuxContainerResources, code: Code, name: &str) {
    let refused = update(container, resources).await.expect_err(name);
    assert_eq!(refused.code(), code, "{refused}");
    assert!(refused.message().contains(name), "{name:?} is not in: {refused}");
}

async fn told(container: &Container<'_>) -> LinuxContainerResources {
    container.status().await.resources.and_then(|r| r.linux).expect("a status has the limits")
}

async fn memory(container: &Container<'_>) -> String {
    container.limit("memory", "memory.limit_in_bytes", "memory.max").await
}

#[tokio::test]
async fn limits_change_while_it_runs_and_what_is_left_out_stays() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("running")).await;
    let before = LinuxContainerResources {
        memory_limit_in_bytes: 64 * MIB,
        memory_swap_limit_in_bytes: 64 * MIB,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        cpu_shares: 512,
        ..Default::default()
    };
    let c = pod.run(limited("c", "exec sleep 1000", before.clone())).await;
    let asked = LinuxContainerResources { memory_limit_in_bytes: 128 * MIB, cpu_quota: 20_000, ..Default::default() };
    update(&c, asked).await.expect("more memory, less CPU");
    assert_eq!(memory(&c).await, (128 * MIB).to_string());
    if cgroup_v2() {
        assert_eq!(c.limit("cpu", "", "cpu.max").await, "20000 100000");
        assert_eq!(c.limit("memory", "", "memory.swap.max").await, "0");
    } else {
        assert_eq!(c.limit("cpu", "cpu.cfs_quota_us", "").await, "20000");
        assert_eq!(c.limit("memory", "memory.memsw.limit_in_bytes", "").await, (128 * MIB).to_string());
    }
    let expected = LinuxContainerResources {
        memory_limit_in_bytes: 128 * MIB,
        // It had no swap and has none.
        memory_swap_limit_in_bytes: 128 * MIB,
        cpu_quota: 20_000,
        ..before
    };
    assert_eq!(told(&c).await, expected);

    // Down again, and a quota that is none.
    let asked = LinuxContainerResources { memory_limit_in_bytes: 32 * MIB, cpu_quota: -1, ..Default::default() };
    update(&c, asked).await.expect("less memory, all CPU");
    assert_eq!(memory(&c).await, (32 * MIB).to_string());
    let quota = if cgroup_v2() { "max 100000" } else { "-1" };
    assert_eq!(c.limit("cpu", "cpu.cfs_quota_us", "cpu.max").await, quota);

    let cpus = LinuxContainerResources { cpuset_cpus: "0".into(), ..Default::default() };
    update(&c, cpus).await.expect("one CPU");
    assert_eq!(c.process_status("Cpus_allowed_list").await, "0");
    let now = told(&c).await;

    if node.is_berth() {
        let annotations = [("a.b/c".to_owned(), "1".to_owned())].into();
        let request = UpdateContainerResourcesRequest { container_id: c.id.clone(), annotations, ..Default::default() };
        let refused = node.runtime().update_container_resources(request).await.expect_err("nobody reads them");
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains("annotations: \"a.b/c\""), "{refused}");
        // Empty: nothing changes.
        update(&c, LinuxContainerResources::default()).await.expect("nothing to do");
        node.kill_daemon().await;
        node.restart().await;
        assert_eq!(told(&c).await, now, "a restart changes nothing");
        assert_eq!(memory(&c).await, (32 * MIB).to_string());
    }
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_created_container_starts_with_its_new_limits_and_an_ended_one_has_none() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("created")).await;
    let c = pod.create(limited("c", "exec sleep 1000", LinuxContainerResources::default())).await;
    let asked = LinuxContainerResources { memory_limit_in_bytes: 48 * MIB, oom_score_adj: 400, ..Default::default() };
    update(&c, asked).await.expect("update before the start");
    c.start().await.expect("start");
    assert_eq!(memory(&c).await, (48 * MIB).to_string());
    assert_eq!(c.shell("cat /proc/1/oom_score_adj /proc/self/oom_score_adj").await, "400\n400\n");
    c.stop(0).await.expect("stop");
    refused(&c, LinuxContainerResources::default(), Code::FailedPrecondition, "it has exited").await;
    let request = UpdateContainerResourcesRequest { container_id: "0".repeat(64), ..Default::default() };
    let unknown = node.runtime().update_container_resources(request).await.expect_err("no such container");
    assert_eq!(unknown.code(), Code::NotFound);
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn an_update_is_done_in_full_or_not_at_all() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("whole")).await;
    let before = LinuxContainerResources { memory_limit_in_bytes: 64 * MIB, cpu_shares: 512, ..Default::default() };
    let c = pod.run(limited("c", "exec sleep 1000", before)).await;
    let told_before = told(&c).await;
    let kernel = async || (memory(&c).await, c.limit("cpu", "cpu.shares", "cpu.weight").await);
    let kernel_before = kernel().await;
    // A CPU that no host has is refused by the kernel, after memory and shares were written.
    let asked = LinuxContainerResources {
        memory_limit_in_bytes: 128 * MIB,
        cpu_shares: 1024,
        cpuset_cpus: "8000".into(),
        ..Default::default()
    };
    refused(&c, asked, Code::InvalidArgument, "cpuset.cpus").await;
    assert_eq!((told(&c).await, kernel().await), (told_before.clone(), kernel_before.clone()));
    for (asked, field) in [
        (LinuxContainerResources { cpu_shares: -1, ..Default::default() }, "linux.cpu_shares"),
        (LinuxContainerResources { cpuset_mems: "x".into(), ..Default::default() }, "linux.cpuset_mems"),
        (LinuxContainerResources { oom_score_adj: 1001, ..Default::default() }, "linux.oom_score_adj"),
        (
            LinuxContainerResources { memory_swap_limit_in_bytes: MIB, ..Default::default() },
            "linux.memory_swap_limit_in_bytes",
        ),
    ] {
        refused(&c, asked, Code::InvalidArgument, field).await;
    }
    if node.is_berth() {
        node.kill_daemon().await;
        node.restart().await;
        assert_eq!((told(&c).await, kernel().await), (told_before, kernel_before), "nothing was written down either");
    }
    pod.end().await;
    node.assert_nothing_left();
}

/// On version 2 the kernel would kill for it.
#[tokio::test]
async fn memory_in_use_is_not_taken_away() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("used")).await;
    let before = LinuxContainerResources { memory_limit_in_bytes: 128 * MIB, ..Default::default() };
    // The shell holds 40 MB of its own.
    let hold = "x=$(head -c 40000000 /dev/zero | tr '\\0' x); touch /ready; while :; do sleep 1; done";
    let c = pod.run(limited("c", hold, before)).await;
    until("it holds its memory", 30, async || c.shell("ls /").await.contains("ready")).await;
    let asked = LinuxContainerResources { memory_limit_in_bytes: 16 * MIB, ..Default::default() };
    refused(&c, asked, Code::FailedPrecondition, "memory").await;
    assert_eq!(memory(&c).await, (128 * MIB).to_string());
    assert_eq!(c.status().await.state(), ContainerState::ContainerRunning);
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn the_oom_score_follows_for_every_process_as_far_as_the_host_lets() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("score")).await;
    let before = LinuxContainerResources { oom_score_adj: 100, ..Default::default() };
    let c = pod.run(limited("c", "sleep 999 & exec sleep 1000", before)).await;
    let scores = "for p in /proc/[0-9]*; do grep -q ^sleep $p/comm && cat $p/oom_score_adj; done | sort -u";
    update(&c, LinuxContainerResources { oom_score_adj: 700, ..Default::default() }).await.expect("raise");
    assert_eq!(c.shell(scores).await, "700\n");
    assert_eq!(told(&c).await.oom_score_adj, 700);
    update(&c, LinuxContainerResources { oom_score_adj: -900, ..Default::default() }).await.expect("lower");
    let lowest: i64 = c.shell(scores).await.trim().parse().expect("one number");
    assert_eq!(told(&c).await.oom_score_adj, lowest, "what is told is what the kernel has");
    let held = node.enclosure().shell("sed -n 's/^CapBnd:\t//p' /proc/1/status");
    match u64::from_str_radix(held.trim(), 16).expect("a mask") & capability("SYS_RESOURCE") {
        0 => assert!((-900..=100).contains(&lowest), "{lowest}"),
        _ => assert_eq!(lowest, -900),
    }
    pod.end().await;
    node.assert_nothing_left();
}

async fn info(node: &Node, pod: &Pod<'_>) -> serde_json::Value {
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
    let answer = node.runtime().pod_sandbox_status(request).await.expect("PodSandboxStatus").into_inner();
    serde_json::from_str(&answer.info["info"]).expect("JSON")
}

#[tokio::test]
async fn what_a_pod_may_use_is_told_as_it_was_said_last() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("whole-pod")).await;
    let memory = |mib: i64| LinuxContainerResources { memory_limit_in_bytes: mib * MIB, ..Default::default() };
    let update = async |overhead, resources| {
        let request = UpdatePodSandboxResourcesRequest { pod_sandbox_id: pod.id.clone(), overhead, resources };
        node.runtime().update_pod_sandbox_resources(request).await.map(drop)
    };
    let shown = async || {
        let info = info(&node, &pod).await;
        ["overhead", "resources"].map(|of| info[of]["memoryLimitInBytes"].as_i64().map(|bytes| bytes / MIB))
    };
    assert_eq!(shown().await, [None, None]);
    update(Some(memory(10)), None).await.expect("overhead");
    assert_eq!(shown().await, [Some(10), None]);
    update(None, Some(memory(20))).await.expect("resources");
    assert_eq!(shown().await, [Some(10), Some(20)]);
    let bad = update(None, Some(memory(-20))).await.expect_err("negative");
    assert_eq!(bad.code(), Code::InvalidArgument);
    assert!(bad.message().contains("resources.memory_limit_in_bytes"), "{bad}");
    node.kill_daemon().await;
    node.restart().await;
    assert_eq!(shown().await, [Some(10), Some(20)]);
    pod.stop().await.expect("stop");
    assert_eq!(update(None, Some(memory(30))).await.expect_err("stopped").code(), Code::FailedPrecondition);
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_pods_limits_are_the_old_or_the_new_ones_whenever_the_daemon_dies() {
    let node = Node::start_with(Options { failpoints: true, ..Default::default() }).await;
    let pod = node.run_pod(pod("killed")).await;
    for (side, mib, expected) in [("before", 10, None), ("after", 20, Some(20))] {
        node.kill_daemon().await;
        node.restart_with(&[("BERTH_FAILPOINT", &format!("update_pod::state-commit:{side}"))]).await;
        let resources = LinuxContainerResources { memory_limit_in_bytes: mib * MIB, ..Default::default() };
        let request = UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: pod.id.clone(),
            resources: Some(resources),
            ..Default::default()
        };
        node.runtime().update_pod_sandbox_resources(request).await.expect_err(side);
        until("the daemon is dead", 10, async || node.daemon_pid().is_none()).await;
        node.restart_with(&[]).await;
        let told = info(&node, &pod).await["resources"]["memoryLimitInBytes"].as_i64();
        assert_eq!(told.map(|bytes| bytes / MIB), expected, "{side}");
    }
    pod.end().await;
    node.assert_nothing_left();
}

/// The daemon dies at each step of an update that the kernel refuses: the record is taken back by the next one's look, or
/// was never there, and the limits are what the status tells.
#[tokio::test]
async fn a_refused_update_is_forgotten_whenever_the_daemon_dies() {
    let node = Node::start_with(Options { failpoints: true, ..Default::default() }).await;
    let pod = node.run_pod(pod("refused")).await;
    let before = LinuxContainerResources { memory_limit_in_bytes: 64 * MIB, ..Default::default() };
    let c = pod.run(limited("c", "exec sleep 1000", before)).await;
    for step in ["intent:before", "intent:after", "shim-update:after", "intent-undo:before", "intent-undo:after"] {
        node.kill_daemon().await;
        node.restart_with(&[("BERTH_FAILPOINT", &format!("update_container::{step}"))]).await;
        let asked = LinuxContainerResources {
            memory_limit_in_bytes: 128 * MIB,
            cpuset_cpus: "8000".into(),
            ..Default::default()
        };
        update(&c, asked).await.expect_err(step);
        until("the daemon is dead", 10, async || node.daemon_pid().is_none()).await;
        node.restart_with(&[]).await;
        assert_eq!(memory(&c).await, (64 * MIB).to_string(), "{step}");
        assert_eq!(told(&c).await.memory_limit_in_bytes, 64 * MIB, "{step}");
        assert_eq!(told(&c).await.cpuset_cpus, "", "{step}");
    }
    pod.end().await;
    node.assert_nothing_left();
}
