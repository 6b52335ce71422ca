//! A daemon that is killed while it streams: the exec ends with it, the container goes on, and nothing is left.

use std::io::Write;
use std::process::Stdio;

use berth_test::cri::script;
use berth_test::node::Options;
use berth_test::stream::{STDIN, STDOUT};
use berth_test::{Container, Node, pod, until};

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
            let sleepers = || node.enclosure().running("sleep 600");
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
    let sleepers = || node.enclosure().running("sleep 600");
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
    attach_armed(&c, "before").await;
    assert_eq!(c.shell("echo well").await, "well\n");
    // Its input is still open for the next.
    let mut client = node.websocket(&c.attach_url(false).await, "v5.channel.k8s.io");
    client.send(STDIN, b"again\n");
    client.until(STDOUT, "got again\n");
    drop(client);
    // The shim's answer to the daemon is the container's end.
    let mut config = script("ends", "read line; echo got $line; exit 3");
    config.stdin = true;
    let ends = pod.run(config).await;
    attach_armed(&ends, "after").await;
    assert_eq!(ends.ended().await.exit_code, 3);
    assert_eq!(ends.logged("stdout"), "got typed\n");
    pod.end().await;
    node.assert_nothing_left();
}

/// Attaches a client, which types a line, through a daemon that dies of it; the next one is there when this is over.
async fn attach_armed(c: &Container<'_>, side: &str) {
    let node = c.node();
    node.stop_daemon().await;
    node.restart_with(&[("BERTH_FAILPOINT", &format!("attach::shim-attach:{side}"))]).await;
    let attach = node.crictl_command(&["attach", "-i", &c.id]);
    let mut attach =
        { attach }.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("run nsenter");
    // It may have gone with its daemon already.
    let _ = writeln!(attach.stdin.as_mut().expect("stdin is piped"), "typed");
    until(&format!("the daemon dies {side} it"), 15, async || node.daemon_pid().is_none()).await;
    attach.wait().expect("wait for crictl");
    node.restart_with(&[]).await;
}
