//! `berth logs` shows what a container wrote: all of it, the end of it, and as it is written, across rotation.

use std::process::Stdio;
use std::time::Duration;

use berth_test::cri::script;
use berth_test::{Node, pod, until};

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_chosen_by_stream_count_and_time() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("logs")).await;
    let lines = "for i in 1 2 3; do echo out $i; sleep 0.05; echo err $i >&2; sleep 0.05; done";
    let writer = pod.run(script("writer", lines)).await;
    writer.ended().await;
    let id = writer.id.as_str();
    let ran = node.try_berth(&["logs", id]);
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("out 1\nout 2\nout 3\n", "err 1\nerr 2\nerr 3\n"));
    let ran = node.try_berth(&["logs", "--tail", "3", id]);
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("out 3\n", "err 2\nerr 3\n"));
    let ran = node.try_berth(&["logs", "--stream", "stderr", "--tail", "1", id]);
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("", "err 3\n"));
    assert_eq!(node.try_berth(&["logs", "--since", "2000-01-01T00:00:00Z", id]).out.lines().count(), 3);
    assert_eq!(node.try_berth(&["logs", "--since", "2100-01-01T00:00:00Z", id]).out, "");
    assert_eq!(node.try_berth(&["logs", "--limit-bytes", "8", "-s", "stdout", id]).out, "out 1\nou");
    let timed = node.try_berth(&["logs", "-t", "--tail", "1", "-s", "stdout", id]).out;
    let log = writer.log();
    let last = log.iter().rfind(|line| line.stream == "stdout").expect("a line");
    assert_eq!(timed, format!("{} out 3\n", last.time));
    // A line that the log holds in pieces is one line again.
    let long = pod.run(script("long", "head -c 50000 /dev/zero | tr '\\0' x; echo; echo end")).await;
    long.ended().await;
    assert_eq!(node.berth(&["logs", "--tail", "2", &long.id]), format!("{}\nend\n", "x".repeat(50_000)));
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn following_loses_and_doubles_nothing_across_rotation() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("follow")).await;
    let count = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; [ $((i % 100)) = 0 ] && sleep 0.05; done";
    let writer = pod.run(script("writer", count)).await;
    let mut command = node.berth_command(&["logs", "-f", &writer.id]);
    let follower = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run nsenter");
    let rotation = async {
        for i in 0..5 {
            tokio::time::sleep(Duration::from_millis(150)).await;
            // As the kubelet does it.
            std::fs::rename(writer.log_path(), format!("{}.{i}", writer.log_path().display())).expect("rotate");
            node.berth(&["logs", "--reopen", "--tail", "0", &writer.id]);
        }
    };
    rotation.await;
    writer.ended().await;
    let output = follower.wait_with_output().expect("wait for berth");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let expected: String = (1..=3000).map(|i| format!("line {i}\n")).collect();
    assert!(
        String::from_utf8_lossy(&output.stdout) == expected,
        "{} lines",
        output.stdout.split(|b| *b == b'\n').count()
    );
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn following_ends_when_the_container_is_removed() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("removed")).await;
    let writer = pod.run(script("writer", "echo here; sleep 1000")).await;
    let mut command = node.berth_command(&["logs", "-f", &writer.id]);
    let mut follower = command.stdout(Stdio::piped()).spawn().expect("run nsenter");
    node.berth(&["rm", "-fk", &writer.id]);
    until("the follower ends", 10, async || follower.try_wait().expect("wait for berth").is_some()).await;
    assert_eq!(String::from_utf8_lossy(&follower.wait_with_output().expect("its output").stdout), "here\n");
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn discarded_output_is_said_to_be_discarded() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("discarded")).await;
    let mut config = script("silent", "echo lost");
    config.log_path = String::new();
    let silent = pod.run(config).await;
    let ran = node.try_berth(&["logs", &silent.id]);
    assert!(ran.code == 1 && ran.err.contains("its output is discarded"), "{ran:?}");
    pod.end().await;
}
