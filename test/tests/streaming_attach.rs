//! Attach: clients come and go, the container and its log never notice.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};

use berth_api::cri::ContainerConfig;
use berth_test::cri::script;
use berth_test::stream::{ERROR, RESIZE, STDIN, STDOUT};
use berth_test::wait::patience;
use berth_test::{Container, Node, pod, until};

fn with_stdin(mut config: ContainerConfig) -> ContainerConfig {
    config.stdin = true;
    config
}

/// crictl's client on pipes.
struct Client {
    child: Child,
    said: std::sync::mpsc::Receiver<String>,
}

impl Client {
    fn attach(c: &Container<'_>, transport: &str) -> Self {
        let mut command = c.node().crictl_command(&["attach", "-i", "-r", transport, &c.id]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("run nsenter");
        let (tell, said) = std::sync::mpsc::channel();
        let output = BufReader::new(child.stdout.take().expect("stdout is piped"));
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let _ = tell.send(line);
            }
        });
        Self { child, said }
    }

    fn types(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("stdin is piped");
        writeln!(stdin, "{line}").expect("type a line");
    }

    fn hears(&self, line: &str) {
        loop {
            let said = self.said.recv_timeout(patience(15)).unwrap_or_else(|e| panic!("{line:?} does not come: {e}"));
            if said == line {
                return;
            }
        }
    }

    fn ends(mut self) {
        drop(self.child.stdin.take());
        let status = self.child.wait().expect("wait for crictl");
        assert!(status.success(), "{status}");
    }
}

fn kill_clients(c: &Container<'_>) {
    c.node().enclosure().kill_by_words(&["crictl", &c.id], "KILL");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attached_client_types_and_reads() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("attach")).await;
    let c = pod.run(with_stdin(script("c", "while read line; do echo got $line; done"))).await;
    for transport in ["spdy", "websocket"] {
        let mut clients = [Client::attach(&c, transport), Client::attach(&c, transport)];
        for (number, client) in clients.iter_mut().enumerate() {
            client.types(&format!("{transport} {number}"));
            client.hears(&format!("got {transport} {number}"));
        }
        // Now that both are there: both hear what either types.
        for typist in 0..clients.len() {
            clients[typist].types(&format!("{transport} of {typist}"));
            clients.iter().for_each(|client| client.hears(&format!("got {transport} of {typist}")));
        }
        kill_clients(&c);
        clients.iter_mut().for_each(|client| drop(client.child.wait()));
    }
    // The container's input is still open, for a client of another daemon too.
    node.kill_daemon().await;
    node.restart().await;
    let mut client = Client::attach(&c, "spdy");
    client.types("again");
    client.hears("got again");
    c.stop(0).await.expect("StopContainer");
    client.ends();
    let log = c.logged("stdout");
    for line in ["got spdy 0", "got spdy 1", "got websocket 0", "got websocket 1", "got again"] {
        assert_eq!(log.lines().filter(|l| *l == line).count(), 1, "{line}: {log}");
    }
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn input_that_is_once_ends_with_its_first_client() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("once")).await;
    for transport in ["spdy", "websocket"] {
        let mut config = with_stdin(script(transport, "cat; echo end; exit 3"));
        config.stdin_once = true;
        let c = pod.run(config).await;
        let mut client = Client::attach(&c, transport);
        client.types("hello");
        client.hears("hello");
        drop(client.child.stdin.take());
        client.hears("end");
        client.ends();
        assert_eq!(c.ended().await.exit_code, 3);
    }
    // One that is killed has left, too.
    let mut config = with_stdin(script("killed", "cat; exit 4"));
    config.stdin_once = true;
    let c = pod.run(config).await;
    let mut client = Client::attach(&c, "spdy");
    client.types("hello");
    client.hears("hello");
    kill_clients(&c);
    assert_eq!(c.ended().await.exit_code, 4);
    let _ = client.child.wait();
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attached_terminal_has_a_size_and_one_stream() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("terminal")).await;
    let mut config = with_stdin(script("c", "while read line; do stty size; echo to-stderr >&2; done"));
    config.tty = true;
    let c = pod.run(config).await;
    let mut client = node.websocket(&c.attach_url(true).await, "v5.channel.k8s.io");
    client.send(RESIZE, br#"{"Width":111,"Height":33}"#);
    // The size is set by another call than the one that types.
    until("the size is there", 15, async || c.shell("stty size < /proc/1/fd/0").await == "33 111\n").await;
    client.send(STDIN, b"go\r");
    client.until(STDOUT, "to-stderr\r\n");
    let whole = "go\r\n33 111\r\nto-stderr\r\n";
    until("the log has it too", 15, async || c.logged("stdout") == whole).await;
    assert_eq!(c.logged("stderr"), "");
    c.stop(0).await.expect("StopContainer");
    let end = client.receive_all();
    assert!(String::from_utf8_lossy(&end[usize::from(ERROR)]).contains("Success"), "{end:?}");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attached_client_that_does_not_read_is_cut_off_and_costs_the_container_nothing() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("slow")).await;
    let flood = "read go; yes 0123456789012345678901234567890123456789012345678 | head -n 600000; echo done; exec cat";
    let c = pod.run(with_stdin(script("c", flood))).await;
    let mut client = node.websocket(&c.attach_url(false).await, "v5.channel.k8s.io");
    client.send(STDIN, b"go\n");
    // It reads nothing of 30 MB.
    until("the log has everything", 30, async || {
        let log = std::fs::read(c.log_path()).unwrap_or_default();
        log.ends_with(b" stdout F done\n")
    })
    .await;
    assert_eq!(c.log().len(), 600_001);
    let end = client.receive_all();
    let why = String::from_utf8_lossy(&end[usize::from(ERROR)]).into_owned();
    assert!(why.contains("Failure") && why.contains("was not read"), "{why}");
    assert!(end[usize::from(STDOUT)].len() < 30_000_000);
    // Whoever reads may attach.
    let mut client = node.websocket(&c.attach_url(false).await, "v4.channel.k8s.io");
    client.send(STDIN, b"there\n");
    client.until(STDOUT, "there\n");
    c.stop(0).await.expect("StopContainer");
    assert!(String::from_utf8_lossy(&client.receive_all()[usize::from(ERROR)]).contains("Success"));
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_without_a_log_can_be_attached_to() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("unlogged")).await;
    let mut config = with_stdin(script("c", "while read line; do echo got $line; echo err $line >&2; done"));
    config.log_path = String::new();
    let c = pod.run(config).await;
    let mut client = node.websocket(&c.attach_url(false).await, "v5.channel.k8s.io");
    client.send(STDIN, b"a\n");
    client.until(STDOUT, "got a\n");
    c.stop(0).await.expect("StopContainer");
    pod.end().await;
    node.assert_nothing_left();
}
