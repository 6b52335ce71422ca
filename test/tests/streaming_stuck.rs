//! Streams that stand still: clients that do not read, that want nothing of a stream any more, whose pod is stopped, or
//! whose daemon ends. None of it is another stream's loss.

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use berth_api::cri::PortForwardRequest;
use berth_test::cri::script;
use berth_test::node::Options;
use berth_test::spdy::{self, syn_stream};
use berth_test::stream::{ERROR, STDIN, STDOUT};
use berth_test::{Node, Pod, pod, until};

/// Ports of the pods here: one that says `y` without end, and one that says what it hears.
const FLOOD: &str = "7001";
const ECHO: &str = "7002";
const SERVERS: &str = "nc -lk -s 127.0.0.1 -p 7001 -e yes & exec nc -lk -s 127.0.0.1 -p 7002 -e cat";

/// Returns when nothing more comes to a client that does not read: its buffers are full, and so are the daemon's.
async fn stuck(stream: &TcpStream) {
    let mut before = 0;
    until("the client's buffers are full", 60, async || {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = rustix::io::ioctl_fionread(stream).expect("FIONREAD");
        std::mem::replace(&mut before, now) == now && now > 0
    })
    .await;
}

/// A port-forward by hand.
struct Forward {
    stream: TcpStream,
    opened: bool,
    /// Streams of which the server has said its last.
    ended: HashSet<u32>,
}

impl Forward {
    async fn of(pod: &Pod<'_>, node: &Node) -> Self {
        let request = PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![] };
        let url = node.runtime().port_forward(request).await.expect("PortForward").into_inner().url;
        let (answer, stream) = node.spdy(&url, "portforward.k8s.io");
        assert_eq!(answer.status, 101, "{}", answer.head);
        Self { stream, opened: false, ended: HashSet::new() }
    }

    /// Opens the error stream with this number, and the data stream with the next.
    fn open(&mut self, error: u32, port: &str) {
        for (stream, kind) in [(error, "error"), (error + 2, "data")] {
            let id = error.to_string();
            let headers = [("streamtype", kind), ("port", port), ("requestid", &id)];
            let frame = syn_stream(stream, &headers, !std::mem::replace(&mut self.opened, true));
            self.stream.write_all(&frame).expect("open a stream");
        }
    }

    fn send(&mut self, stream: u32, bytes: &[u8], last: bool) {
        let mut frame = stream.to_be_bytes().to_vec();
        frame.push(last.into());
        frame.extend(&(bytes.len() as u32).to_be_bytes()[1..]);
        frame.extend(bytes);
        self.stream.write_all(&frame).expect("send a frame");
    }

    fn reset(&mut self, stream: u32) {
        let frame = [&[0x80, 3, 0, 3, 0, 0, 0, 8][..], &stream.to_be_bytes(), &[0, 0, 0, 5]].concat();
        self.stream.write_all(&frame).expect("reset a stream");
    }

    /// The next data, `None` at the end. Whatever is no frame of the server's is a failure.
    fn receive(&mut self) -> Option<(u32, Vec<u8>)> {
        loop {
            let mut head = [0; 8];
            match self.stream.read_exact(&mut head) {
                Ok(()) => {}
                Err(error) if [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset].contains(&error.kind()) => {
                    return None;
                }
                Err(error) => panic!("nothing comes: {error}"),
            }
            let length = u32::from_be_bytes([0, head[5], head[6], head[7]]);
            let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            // SYN_REPLY, SETTINGS, WINDOW_UPDATE; and no stream of these tests has a larger number.
            assert!([0x8003_0002, 0x8003_0004, 0x8003_0009].contains(&first) || first < 20, "no frame: {head:?}");
            let mut payload = vec![0; length as usize];
            self.stream.read_exact(&mut payload).expect("a whole frame");
            if head[0] & 0x80 == 0 {
                if head[4] & 1 != 0 {
                    self.ended.insert(first);
                }
                return Some((first, payload));
            }
        }
    }

    /// Receives until this has come on a stream.
    fn hears(&mut self, stream: u32, text: &str) {
        let mut heard = Vec::new();
        while heard != text.as_bytes() {
            let (from, bytes) = self.receive().expect("it goes on");
            if from == stream {
                heard.extend(bytes);
            }
        }
    }

    /// Receives until a stream is ended by the server.
    fn ends(&mut self, stream: u32) {
        while !self.ended.contains(&stream) {
            self.receive().expect("it goes on");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_its_client_resets_while_it_is_blocked_costs_the_others_nothing() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("reset")).await;
    pod.run(script("c", SERVERS)).await.listens(&[7001, 7002]).await;
    let mut forward = Forward::of(&pod, &node).await;
    forward.open(1, ECHO);
    forward.send(3, b"first", false);
    forward.hears(3, "first");
    // Two floods: the client of the second has said before that it will send nothing, as kubectl has.
    for (error, says_all) in [(5, false), (9, true)] {
        forward.open(error, FLOOD);
        if says_all {
            forward.send(error + 2, b"", true);
        }
        stuck(&forward.stream).await;
        forward.reset(error + 2);
        forward.send(3, error.to_string().as_bytes(), false);
        forward.hears(3, &error.to_string());
        forward.ends(error);
    }
    forward.send(3, b"last", true);
    forward.hears(3, "last");
    forward.ends(3);
    drop(forward);
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_forward_ends_with_its_pod() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("stopped")).await;
    pod.run(script("c", SERVERS)).await.listens(&[7001, 7002]).await;
    let mut forward = Forward::of(&pod, &node).await;
    forward.open(1, ECHO);
    forward.send(3, b"hello", false);
    forward.hears(3, "hello");
    let mut idle = Forward::of(&pod, &node).await;
    pod.stop().await.expect("StopPodSandbox");
    while forward.receive().is_some() {}
    assert_eq!(idle.receive(), None, "it is hung up on, too");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_whose_client_does_not_read_is_told_of_the_daemons_end_behind_its_output() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("drained")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    let mut channels = node.websocket(&c.exec_url(&["yes", "channels"]).await, "v5.channel.k8s.io");
    channels.until(STDOUT, "channels\n");
    let mut streams = node.spdy_exec(&c.exec_url(&["yes", "streams"]).await);
    streams.until("streams\n");
    for stream in [channels.stream(), streams.stream()] {
        stuck(stream).await;
    }
    node.enclosure().kill(node.daemon_pid().expect("the daemon runs"), "TERM");
    until("the execs are cut off", 15, async || {
        node.enclosure().running("yes channels") + node.enclosure().running("yes streams") == 0
    })
    .await;
    let told = [channels.receive_all()[usize::from(ERROR)].clone(), streams.rest(spdy::ERROR)];
    for why in told.map(|why| String::from_utf8_lossy(&why).into_owned()) {
        assert!(why.contains("Failure") && why.contains("berthd is ending"), "{why:?}");
    }
    until("the daemon ends", 30, async || node.daemon_pid().is_none()).await;
    node.restart().await;
    pod.end().await;
    node.assert_nothing_left();
}

async fn patient_for(seconds: u64) -> Node {
    let config = format!("[streaming]\nlisten = \"127.0.0.1:10010\"\nidle_timeout_s = {seconds}\n");
    Node::start_with(Options { config, ..Default::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_lives_and_does_not_read_is_given_up_and_one_that_reads_is_not() {
    let node = patient_for(5).await;
    let pod = node.run_pod(pod("idle")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    let beats = ["sh", "-c", "while :; do echo beat; sleep 0.3; done"];
    let mut reads = node.websocket(&c.exec_url(&beats).await, "v5.channel.k8s.io");
    // They ask whether anybody is there, and the answer waits behind what they do not read.
    let mut channels = node.websocket(&c.exec_url(&["yes", "channels"]).await, "v5.channel.k8s.io");
    stuck(channels.stream()).await;
    channels.send_frame(0x89, b"?");
    let streams = node.spdy_exec(&c.exec_url(&["yes", "streams"]).await);
    stuck(streams.stream()).await;
    streams.stream().write_all(&[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]).expect("send a ping");
    until("they are given up", 30, async || {
        reads.until(STDOUT, "beat\n");
        node.enclosure().running("yes channels") + node.enclosure().running("yes streams") == 0
    })
    .await;
    reads.until(STDOUT, "beat\n");
    drop((reads, streams, channels));
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_idle_timeout_and_with_one_beyond_all_time_a_silent_stream_stays() {
    for seconds in [0, i64::MAX as u64] {
        let node = patient_for(seconds).await;
        let pod = node.run_pod(pod("silent")).await;
        let c = pod.run(script("c", "exec sleep 1000")).await;
        let mut client =
            node.websocket(&c.exec_url(&["sh", "-c", "read line; echo got $line"]).await, "v5.channel.k8s.io");
        // Longer than what 0 once meant.
        tokio::time::sleep(Duration::from_secs(3)).await;
        client.send(STDIN, b"it\n");
        client.until(STDOUT, "got it\n");
        drop(client);
        pod.end().await;
        node.assert_nothing_left();
    }
}
