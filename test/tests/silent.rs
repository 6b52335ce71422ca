//! A shim that is there and says nothing: stopped, or held by the kernel. It is waited for as long as it is configured, then
//! killed, and its pod goes on.

use berth_api::cri::{
    ContainerConfig, ContainerState, LinuxContainerResources, Mount, UpdateContainerResourcesRequest,
};
use berth_test::cri::script;
use berth_test::hanging::log_that_hangs;
use berth_test::node::Options;
use berth_test::wait::patience;
use berth_test::{Container, Node, pod, until};

/// A node that waits this long for a shim's answer.
async fn node_that_waits(seconds: u64, failpoints: bool) -> Node {
    let config = format!("[shim]\ntimeout_s = {}\n", patience(seconds).as_secs());
    Node::start_with(Options { config, failpoints, ..Default::default() }).await
}

async fn node(failpoints: bool) -> Node {
    node_that_waits(2, failpoints).await
}

#[tokio::test]
async fn one_that_hangs_in_create_is_killed_and_its_pod_goes_on() {
    let node = node(false).await;
    if !node.is_berth() {
        return;
    }
    let pod = node.run_pod(pod("hangs")).await;
    let log = log_that_hangs(&pod, "c");
    let refused = pod.try_create(script("c", "true")).await.err().expect("its shim hangs");
    assert!(refused.message().contains("did not answer Create"), "{refused}");
    assert_eq!(node.shims("berth"), [0_u32; 0], "its shim is left");
    log.release();
    // The same request again is a new attempt.
    let c = pod.run(script("c", "echo works")).await;
    assert_eq!(c.said().await, "works\n");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_daemon_killed_while_it_kills_one_leaves_nothing() {
    let node = node(true).await;
    let pod = node.run_pod(pod("hangs")).await;
    for side in ["before", "after"] {
        node.stop_daemon().await;
        node.restart_with(&[("BERTH_FAILPOINT", &format!("remove_container::shim-kill:{side}"))]).await;
        let log = log_that_hangs(&pod, "c");
        pod.try_create(script("c", "true")).await.err().expect("the daemon dies of it");
        until("the daemon dies", 10, async || node.daemon_pid().is_none()).await;
        node.restart_with(&[]).await;
        assert_eq!(node.shims("berth"), [0_u32; 0], "{side}: its shim is left");
        log.release();
    }
    assert_eq!(pod.run(script("c", "echo works")).await.said().await, "works\n");
    pod.end().await;
    node.assert_nothing_left();
}

/// What could not be taken back is taken back by whoever asks next, for the container or for its pod.
#[tokio::test]
async fn what_a_failed_create_could_not_take_back_is_taken_back_later() {
    let node = node(false).await;
    if !node.is_berth() {
        return;
    }
    let pod = node.run_pod(pod("held")).await;
    for (name, repeated) in [("again", true), ("left", false)] {
        let log = log_that_hangs(&pod, name);
        let (refused, busy) = tokio::join!(pod.try_create(script(name, "echo works")), async {
            until("its shim hangs", 10, async || !node.shims("berth").is_empty()).await;
            let bundles = std::fs::read_dir(node.enclosure().path(node.dir().join("run/c"))).expect("bundles");
            let bundle = bundles.flatten().next().expect("one of them").file_name().into_string().expect("UTF-8");
            let busy = node.dir().join("run/c").join(bundle).join("busy").display().to_string();
            node.enclosure().shell(&format!("mkdir {busy} && mount -t tmpfs busy {busy}"));
            busy
        });
        refused.err().expect("its shim hangs");
        log.release();
        pod.try_create(script(name, "echo works")).await.err().expect("what is there is still busy");
        node.enclosure().shell(&format!("umount {busy}"));
        if repeated {
            let c = pod.run(script(name, "echo works")).await;
            assert_eq!(c.said().await, "works\n");
            c.remove().await.expect("RemoveContainer");
        }
    }
    pod.end().await;
    node.assert_nothing_left();
}

/// The pod's other containers are none the worse for one that an earlier daemon had not finished and this one cannot take
/// back.
#[tokio::test]
async fn one_that_cannot_be_taken_back_at_the_start_does_not_take_its_pod_away() {
    let node = node(false).await;
    if !node.is_berth() {
        return;
    }
    let pod = node.run_pod(pod("held")).await;
    let sibling = pod.run(script("sibling", "exec sleep 1000")).await;
    let log = log_that_hangs(&pod, "half");
    let (refused, busy) = tokio::join!(pod.try_create(script("half", "true")), async {
        until("its shim hangs", 10, async || node.shims("berth").len() > 1).await;
        let bundles = std::fs::read_dir(node.enclosure().path(node.dir().join("run/c"))).expect("bundles");
        let of_half = |name: &String| *name != sibling.id;
        let bundle = bundles.flatten().filter_map(|entry| entry.file_name().into_string().ok()).find(of_half);
        let busy = node.dir().join("run/c").join(bundle.expect("half's")).join("busy").display().to_string();
        node.enclosure().shell(&format!("mkdir {busy} && mount -t tmpfs busy {busy}"));
        node.kill_daemon().await;
        busy
    });
    refused.err().expect("the daemon is killed");
    node.restart().await;
    assert_eq!(sibling.status().await.state(), ContainerState::ContainerRunning);
    assert_eq!(pod.run(script("next", "echo works")).await.said().await, "works\n");
    log.release();
    node.enclosure().shell(&format!("umount {busy}"));
    pod.end().await;
    node.assert_nothing_left();
}

/// A volume of a server that has gone costs those who ask for it, and nobody else.
#[tokio::test]
async fn a_volume_that_does_not_answer_holds_up_nobody_else() {
    let node = node(false).await;
    if !node.is_berth() {
        return;
    }
    let (first, second) = (node.run_pod(pod("first")).await, node.run_pod(pod("second")).await);
    let share = node.dir().join("share");
    std::fs::create_dir(&share).expect("make a directory");
    let hung = node.hang(share.clone());
    let wanting = |name: &str| ContainerConfig {
        mounts: vec![Mount {
            container_path: "/share".into(),
            host_path: share.join("data").display().to_string(),
            ..Default::default()
        }],
        ..script(name, "true")
    };
    // As many as the daemon has workers, and then some.
    let (one, two, works) = tokio::join!(first.try_create(wanting("one")), second.try_create(wanting("two")), async {
        let third = node.run_pod(berth_test::pod("third")).await;
        let works = third.run(script("works", "echo works")).await.said().await;
        third.end().await;
        works
    });
    assert_eq!(works, "works\n");
    for refused in [one, two] {
        let refused = refused.err().expect("it does not answer");
        assert!(refused.message().contains("config.mounts[0].host_path"), "{refused}");
        assert!(refused.message().contains("does not answer"), "{refused}");
    }
    hung.release();
    std::fs::create_dir(share.join("data")).expect("it is back");
    first.run(wanting("one")).await.ended().await;
    first.end().await;
    second.end().await;
    node.assert_nothing_left();
}

/// Whether limits are in force that a shim was asked for and did not answer is not known: they are asked for again.
#[tokio::test]
async fn limits_that_were_not_answered_are_asked_for_again_by_the_next_daemon() {
    let node = node(false).await;
    if !node.is_berth() {
        return;
    }
    let pod = node.run_pod(pod("limits")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    let limit = LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() };
    let request =
        UpdateContainerResourcesRequest { container_id: c.id.clone(), linux: Some(limit), ..Default::default() };
    c.stop_shim();
    let refused = node.runtime().update_container_resources(request).await.expect_err("its shim is silent");
    assert!(refused.message().contains("did not answer Update"), "{refused}");
    node.kill_daemon().await;
    node.signal_shim(&c.id, "CONT");
    node.restart().await;
    let told = c.status().await.resources.and_then(|resources| resources.linux);
    assert_eq!(told.map(|linux| linux.memory_limit_in_bytes), Some(64 << 20));
    assert_eq!(c.limit("memory", "memory.limit_in_bytes", "memory.max").await, (64_u64 << 20).to_string());
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_container_of_one_can_be_stopped_and_removed() {
    let node = node(false).await;
    if !node.is_berth() {
        return;
    }
    let pod = node.run_pod(pod("silent")).await;
    let stopped = pod.run(script("stopped", "exec sleep 1000")).await;
    let removed = pod.create(script("removed", "exec sleep 1000")).await;
    stopped.stop_shim();
    removed.stop_shim();
    stopped.stop(0).await.expect("StopContainer");
    let status = stopped.status().await;
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 137));
    assert_eq!(status.reason, "ShimDied");
    removed.remove().await.expect("RemoveContainer");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_pod_of_many_is_stopped_and_recovered_in_the_time_of_one() {
    // One after the other they would take longer than a client waits for its answer.
    let node = node_that_waits(8, false).await;
    if !node.is_berth() {
        return;
    }
    let pod = node.run_pod(pod("many")).await;
    let mut containers: Vec<Container<'_>> = Vec::new();
    for number in 0..15 {
        containers.push(pod.run(script(&format!("c{number}"), "exec sleep 1000")).await);
    }
    node.kill_daemon().await;
    containers.iter().for_each(Container::stop_shim);
    // And longer than a node is waited for.
    node.restart().await;
    for container in &containers {
        assert_eq!(container.status().await.state(), ContainerState::ContainerRunning, "as it was last seen");
    }
    pod.end().await;
    node.assert_nothing_left();
}
