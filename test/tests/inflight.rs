//! What the daemon is doing is told while it does it: who waits, where it stands, for how long.

use std::time::Duration;

use berth_api::cri::StopContainerRequest;
use berth_test::cri::script;
use berth_test::{Node, pod, until};
use serde_json::Value;

async fn inflight(node: &Node) -> Vec<Value> {
    let text = node.berth(&["debug", "inflight", "-o", "json"]);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_hangs_is_told_with_its_stage_and_age() {
    let node = Node::start().await;
    assert_eq!(inflight(&node).await, Vec::<Value>::new());
    let network = node.hold_network();
    let (running, ()) = tokio::join!(node.run_pod(pod("hanging")), async {
        let mut found = Value::Null;
        until("the plugin is waited for", 10, async || {
            found = inflight(&node).await.into_iter().next().unwrap_or_default();
            found["stage"] == "run_pod::cni-add"
        })
        .await;
        assert_eq!(found["method"], "RunPodSandbox");
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let table = node.berth(&["debug", "inflight"]);
        let line = table.lines().nth(1).expect("a line below the header");
        assert!(line.contains("RunPodSandbox") && line.contains("run_pod::cni-add ("), "{table}");
        let found = inflight(&node).await.remove(0);
        assert!(found["stageAgeSeconds"].as_f64() > Some(1.0) && found["request"].as_u64() > Some(0), "{found}");
        network.release();
    });
    assert_eq!(inflight(&node).await, Vec::<Value>::new());

    // A stop waits for the container, and not behind anything.
    let c = running.run(script("c", "trap '' TERM; touch /ready; while :; do sleep 0.1; done")).await;
    until("its trap is set", 10, async || c.shell("ls /").await.contains("ready")).await;
    let stop = StopContainerRequest { container_id: c.id.clone(), timeout: 60 };
    let mut runtime = node.runtime();
    let stopping = tokio::spawn(async move { runtime.stop_container(stop).await });
    let mut found = Value::Null;
    until("the stop is told", 10, async || {
        found = inflight(&node).await.into_iter().next().unwrap_or_default();
        found["method"] == "StopContainer"
    })
    .await;
    assert_eq!(found["containerId"], c.id.as_str());
    assert!(found["stage"].as_str().is_some_and(|s| s.starts_with("waits for its end, SIGKILL in ")), "{found}");

    let daemon = node.daemon_pid().expect("the daemon runs");
    node.enclosure().shell(&format!("kill -USR1 {daemon}"));
    until("the log tells it", 10, async || node.log_tail().contains("in progress: StopContainer")).await;
    c.stop(0).await.expect("a second stop may shorten the first");
    stopping.await.expect("no panic").expect("the first stop is answered too");
    running.end().await;
    network.end();
    node.assert_nothing_left();
}
