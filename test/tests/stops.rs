//! Stopping a container: the signal, the grace period, and the kill.

use std::time::{Duration, Instant};

use berth_api::cri::ContainerState;
use berth_test::cri::script;
use berth_test::wait::patience;
use berth_test::{Container, Node, has, pod, until};

const STUBBORN: &str = "trap 'echo told' TERM; echo up; while :; do sleep 0.1; done";

/// It is being stopped: a stubborn container has heard of it.
async fn stops(c: &Container<'_>) {
    until("the signal arrives", 15, async || c.logged("stdout").contains("told")).await;
}

#[tokio::test]
async fn the_stop_signal_is_given_time() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("polite")).await;
    let c =
        pod.run(script("c", "trap 'echo leaving; sleep 1; exit 3' TERM; echo up; while :; do sleep 0.1; done")).await;
    c.said().await;
    c.stop(20).await.expect("StopContainer");
    let status = c.ended().await;
    assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
    assert_eq!(c.logged("stdout"), "up\nleaving\n");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn stop_kills_after_the_grace_period() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("stubborn")).await;
    let c = pod.run(script("c", STUBBORN)).await;
    c.said().await;
    let began = Instant::now();
    c.stop(2).await.expect("StopContainer");
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(2) && took < patience(10), "{took:?}");
    assert_eq!(c.status().await.exit_code, 137);
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_second_stop_may_shorten_the_first() {
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let pod = node.run_pod(pod("shorter")).await;
    let c = pod.run(script("c", STUBBORN)).await;
    c.said().await;
    // Longer than a client waits for its answer.
    let first = c.stop(100_000);
    let second = async {
        stops(&c).await;
        c.stop(1).await
    };
    let (first, second) = tokio::join!(first, second);
    first.expect("the long StopContainer");
    second.expect("the short StopContainer");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_stopping_container_still_answers() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("answers")).await;
    let c = pod.run(script("c", STUBBORN)).await;
    c.said().await;
    // Status and exec wait for no stop: this one does not end before both are answered.
    let stop = c.stop(100_000);
    let ask = async {
        stops(&c).await;
        assert_eq!(c.status().await.state(), ContainerState::ContainerRunning);
        assert_eq!(c.shell("echo still here").await, "still here\n");
        c.stop(0).await
    };
    let (stopped, ended) = tokio::join!(stop, ask);
    stopped.expect("StopContainer");
    ended.expect("StopContainer that does not wait");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn what_cannot_be_killed_is_told_and_its_end_is_seen_when_it_comes() {
    if !has("cgroup-v1", "what_cannot_be_killed_is_told_and_its_end_is_seen_when_it_comes") {
        return;
    }
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let pod = node.run_pod(pod("stuck")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    let frozen = c.freeze().await;
    let (first, second) = tokio::join!(c.stop(0), c.stop(0));
    for refused in [first, second] {
        let refused = refused.expect_err("it does not go");
        assert!(refused.message().contains("did not end"), "{refused}");
    }
    assert_eq!(c.status().await.state(), ContainerState::ContainerRunning);
    drop(frozen);
    assert_eq!(c.ended().await.exit_code, 137);
    pod.end().await;
    node.assert_nothing_left();
}

/// Neither is a container that stops: one was never started, the other has lost its shim.
#[tokio::test]
async fn whoever_stops_what_cannot_be_killed_is_answered_in_every_state() {
    if !has("cgroup-v1", "whoever_stops_what_cannot_be_killed_is_answered_in_every_state") {
        return;
    }
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let pod = node.run_pod(pod("stuck")).await;
    let created = pod.create(script("created", "exec sleep 1000")).await;
    let lost = pod.run(script("lost", "exec sleep 1000")).await;
    let frozen = (created.freeze().await, lost.freeze().await);
    assert_eq!(node.signal_shim(&lost.id, "KILL"), 1);
    until("its shim is missed", 15, async || lost.status().await.state() == ContainerState::ContainerUnknown).await;
    for _ in 0..2 {
        let (first, second) = tokio::join!(created.stop(0), lost.stop(0));
        for refused in [first, second] {
            let refused = refused.expect_err("it does not go");
            assert!(refused.message().contains("did not end"), "{refused}");
        }
    }
    drop(frozen);
    assert_eq!(created.ended().await.exit_code, 137);
    let ended = lost.ended().await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "ShimDied"));
    pod.end().await;
    node.assert_nothing_left();
}
