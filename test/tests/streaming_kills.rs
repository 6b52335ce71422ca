//! A daemon that is killed while it streams: the exec ends with it, the container goes on, and nothing is left.

use std::process::Stdio;

use berth_test::cri::script;
use berth_test::node::Options;
use berth_test::{Node, pod, until};

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_whose_daemon_is_killed_at_any_step_leaves_nothing() {
    let node = Node::start_with(Options { failpoints: true, ..Default::default() }).await;
    let pod = node.run_pod(pod("killed")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    for step in ["shim-exec", "shim-start", "shim-delete"] {
        for side in ["before", "after"] {
            let point = format!("exec_stream::{step}:{side}");
            node.stop_daemon().await;
            node.restart_with(&[("BERTH_FAILPOINT", &point)]).await;
            // One that goes on by itself, unless the step comes at its end.
            let command = if step == "shim-delete" { "true" } else { "sleep 600" };
            let exec = node.crictl_command(&["exec", "-i", &c.id, "sh", "-c", command]);
            let mut exec = { exec }.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("run nsenter");
            until(&format!("the daemon dies at {point}"), 15, async || node.daemon_pid().is_none()).await;
            exec.wait().expect("wait for crictl");
            node.restart_with(&[]).await;
            let sleepers =
                || node.enclosure().processes().iter().filter(|(_, line)| line.contains("sleep 600")).count();
            until(&format!("the exec of {point} ends"), 15, async || sleepers() == 0).await;
            assert_eq!(c.shell("echo well").await, "well\n", "{point}");
        }
    }
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_ends_with_its_daemon() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("killed")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    let exec = node.crictl_command(&["exec", &c.id, "sleep", "600"]);
    let mut exec = { exec }.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("run nsenter");
    let sleepers = || node.enclosure().processes().iter().filter(|(_, line)| line == "sleep 600").count();
    until("the exec runs", 15, async || sleepers() == 1).await;
    node.kill_daemon().await;
    exec.wait().expect("wait for crictl");
    until("the exec ends", 15, async || sleepers() == 0).await;
    node.restart().await;
    assert_eq!(c.shell("echo well").await, "well\n");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attached_client_whose_daemon_is_killed_costs_the_container_nothing() {
    let node = Node::start_with(Options { failpoints: true, ..Default::default() }).await;
    let pod = node.run_pod(pod("killed")).await;
    let mut config = script("c", "while read line; do echo got $line; done");
    config.stdin = true;
    let c = pod.run(config).await;
    node.stop_daemon().await;
    node.restart_with(&[("BERTH_FAILPOINT", "attach::shim-attach:before")]).await;
    let attach = node.crictl_command(&["attach", "-i", &c.id]);
    let mut attach = { attach }.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("run");
    until("the daemon dies", 15, async || node.daemon_pid().is_none()).await;
    attach.wait().expect("wait for crictl");
    node.restart_with(&[]).await;
    assert_eq!(c.shell("echo well").await, "well\n");
    pod.end().await;
    node.assert_nothing_left();
}
