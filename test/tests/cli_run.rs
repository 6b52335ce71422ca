//! `berth run`: one container in one step, in the foreground or not, and nothing left of what was to go.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use berth_test::cli::Ran;
use berth_test::{Node, until};

/// Process id of the `berth` that a command runs: nsenter becomes it after one fork, so it is nsenter's child.
fn berth_pid(nsenter: u32) -> u32 {
    let path = format!("/proc/{nsenter}/task/{nsenter}/children");
    let children = std::fs::read_to_string(path).unwrap_or_default();
    children.trim().parse().unwrap_or(nsenter)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_foreground_shows_the_output_and_ends_with_the_exit_code() {
    let node = Node::start().await;
    let script = "echo out; echo err >&2; printf unfinished; exit 7";
    let ran: Ran = node.berth_run(&["--rm"], &["sh", "-c", script]).output().expect("run nsenter").into();
    assert_eq!((ran.code, ran.out.as_str()), (7, "out\nunfinished"), "{ran:?}");
    assert!(ran.err.starts_with("berth: pod ") && ran.err.ends_with("\nerr\n"), "{ran:?}");
    assert_eq!(node.berth(&["pods", "-q"]), "", "--rm removes the pod");
    let logs = node.dir().join("logs");
    assert_eq!(std::fs::read_dir(logs).expect("the log directory").count(), 0, "--rm removes the log");
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_rm_the_pod_is_stopped_and_stays_to_be_looked_at() {
    let node = Node::start().await;
    let output = node.berth_run(&["--name", "once"], &["echo", "hello"]).output().expect("run nsenter");
    assert!(output.status.success());
    let pod = node.berth(&["pods", "-q", "--name", "^once$", "--state", "notready"]);
    let id = node.berth(&["ps", "-aq", "--name", "^once$"]);
    assert_eq!(node.berth(&["logs", id.trim()]), "hello\n");
    node.berth(&["rmp", pod.trim()]);
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn detached_it_prints_the_id_and_goes() {
    let node = Node::start().await;
    let flags = ["-d", "--name", "web", "-e", "A=1 2", "-v", "/etc/hostname:/seen:ro", "-u", "1000:100", "-w", "/tmp"];
    let ran: Ran = node.berth_run(&flags, &["sleep", "1000"]).output().expect("run nsenter").into();
    let id = ran.out.trim();
    assert_eq!((ran.code, id.len(), ran.err.as_str()), (0, 64, ""), "{ran:?}");
    let seen = node.berth(&[
        "exec",
        "-s",
        id,
        "sh",
        "-c",
        "echo $A; id -u; id -g; pwd; hostname; test -s /seen && echo mounted",
    ]);
    assert_eq!(seen, "1 2\n1000\n100\n/tmp\nweb\nmounted\n");
    let listed = node.berth_json(&["ps", "-o", "json"]);
    assert_eq!(listed["containers"][0]["labels"]["io.kubernetes.pod.name"], "web");
    node.berth(&["rmp", "-af"]);
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_started_is_taken_back() {
    let node = Node::start().await;
    let ran: Ran = node.berth_run(&[], &["/no/such/program"]).output().expect("run nsenter").into();
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.starts_with("berth: start container ") && ran.err.contains("/no/such/program"), "{ran:?}");
    let ran = node.try_berth(&["run", "--pull", "never", "registry.k8s.io/none:1"]);
    assert_eq!((ran.code, ran.err.as_str()), (1, "berth: image registry.k8s.io/none:1 is not on the node\n"));
    assert_eq!(node.berth(&["pods", "-q"]), "");
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_ends_the_container_and_shows_its_last_words() {
    let node = Node::start().await;
    let script = "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    let mut command = node.berth_run(&["--rm"], &["sh", "-c", script]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run nsenter");
    let mut out = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
    assert_eq!(out.next().expect("a line").expect("text"), "ready");
    let kill = std::process::Command::new("kill").args(["-INT", &berth_pid(child.id()).to_string()]).status();
    assert!(kill.expect("run kill").success());
    let rest: Vec<String> = out.map(|line| line.expect("text")).collect();
    let ended: Ran = child.wait_with_output().expect("wait for berth").into();
    assert_eq!((ended.code, rest), (5, vec!["bye".to_owned()]), "{ended:?}");
    assert!(ended.err.contains("berth: stopping the container"), "{ended:?}");
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_pulls_what_is_absent() {
    let node = Node::start().await;
    node.berth(&["rmi", berth_test::cri::IMAGE]);
    let output = node.berth_run(&["--rm"], &["true"]).output().expect("run nsenter");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    until("the image is there", 1, async || node.berth(&["images"]).contains("registry.k8s.io/busybox")).await;
}
