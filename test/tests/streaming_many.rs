//! Hundreds of streams at once, over both transports: what they cost the daemon, and that nothing of it stays.

use berth_test::cri::script;
use berth_test::spdy::{self, Spdy};
use berth_test::stream::{self, WebSocket};
use berth_test::{Container, Node, pod, until};

/// Streams at once, half of them over each transport.
const STREAMS: usize = 500;
/// What they may cost the daemon beside what it had.
const COST_MAX: u64 = 64 << 20;
/// How much more a later round may leave than the first, which made what is kept for the next.
const GROWTH_MAX: u64 = 2 << 20;

/// A client of one exec.
enum Client {
    WebSocket(WebSocket),
    Spdy(Spdy),
}

impl Client {
    async fn exec(c: &Container<'_>, number: usize, command: &[&str]) -> Self {
        let url = c.exec_url(command).await;
        match number % 2 {
            0 => Self::WebSocket(c.node().websocket(&url, "v5.channel.k8s.io")),
            _ => Self::Spdy(c.node().spdy_exec(&url)),
        }
    }

    fn echo(&mut self, line: &str) {
        match self {
            Self::WebSocket(client) => {
                client.send(stream::STDIN, line.as_bytes());
                client.until(stream::STDOUT, line);
            }
            Self::Spdy(client) => {
                client.send(line.as_bytes());
                client.until(line);
            }
        }
    }

    /// Ends its input.
    fn end(&mut self) {
        match self {
            Self::WebSocket(client) => client.send(255, &[stream::STDIN]),
            Self::Spdy(client) => client.end(),
        }
    }

    /// How it ended, by the server's word.
    fn told(&mut self) -> String {
        let told = match self {
            Self::WebSocket(client) => client.receive_all()[usize::from(stream::ERROR)].clone(),
            Self::Spdy(client) => client.rest(spdy::ERROR),
        };
        String::from_utf8_lossy(&told).into_owned()
    }
}

fn descriptors(node: &Node) -> usize {
    std::fs::read_dir(node.daemon_proc("fd")).expect("its descriptors").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_execs_at_once_cost_the_daemon_less_than_64_mib_and_leave_nothing() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("many")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    // One of each transport, so that what is made once is there.
    for number in 0..2 {
        let mut client = Client::exec(&c, number, &["cat"]).await;
        client.echo("first\n");
        client.end();
        assert!(client.told().contains("Success"));
    }
    let idle = (node.daemon_memory(), descriptors(&node));
    let running = |name: &str| node.enclosure().running(name);
    let mut kept = Vec::new();
    for round in 0..3 {
        let mut slow = Vec::new();
        for number in 0..2 {
            // Nobody reads what it writes: it waits, and nobody waits for it.
            slow.push(Client::exec(&c, number, &["yes"]).await);
        }
        let mut clients = Vec::new();
        for number in 0..STREAMS {
            clients.push(Client::exec(&c, number, &["cat"]).await);
        }
        for (number, client) in clients.iter_mut().enumerate() {
            client.echo(&format!("line {number} of round {round}\n"));
        }
        assert_eq!((running("cat"), running("yes")), (STREAMS, 2));
        let cost = node.daemon_memory().saturating_sub(idle.0);
        println!("round {round}: {STREAMS} streams, {} KiB, {} descriptors", cost >> 10, descriptors(&node));
        assert!(cost < COST_MAX, "{} MiB", cost >> 20);
        clients.iter_mut().for_each(Client::end);
        for client in &mut clients {
            assert!(client.told().contains("Success"));
        }
        drop((clients, slow));
        until("what nobody reads is ended with its client", 20, async || running("yes") == 0).await;
        until("every descriptor is closed", 20, async || descriptors(&node) <= idle.1).await;
        kept.push(node.daemon_memory());
        println!("round {round}: {} KiB kept", kept[round].saturating_sub(idle.0) >> 10);
        assert!(kept[round] < kept[0] + GROWTH_MAX, "it grows: {kept:?}");
    }
    pod.end().await;
    node.assert_nothing_left();
}
