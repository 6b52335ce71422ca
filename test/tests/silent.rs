//! A shim that is there and says nothing: stopped, or held by the kernel. It is waited for as long as it is configured, then
//! killed, and its pod goes on.

use berth_api::cri::ContainerState;
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
    std::fs::remove_file(log).expect("remove the FIFO");
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
        std::fs::remove_file(log).expect("remove the FIFO");
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
        std::fs::remove_file(log).expect("remove the FIFO");
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
