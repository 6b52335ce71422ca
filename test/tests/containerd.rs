//! The other way round: Debian's containerd runs containers with berth's shim.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use berth_test::node::{Options, binary_dir};
use berth_test::wait::patience;
use berth_test::{Node, until};
use serde_json::Value;

const IMAGE: &str = "registry.k8s.io/busybox:1.29";

struct Containerd {
    node: Node,
}

impl Containerd {
    async fn start() -> Self {
        Self { node: Node::start_with(Options { peer: true, ..Default::default() }).await }
    }

    fn ctr(&self, arguments: &[&str]) -> Command {
        let mut command = self.node.enclosure().command("ctr");
        let socket = self.node.dir().join("containerd.sock");
        command.args(["-a", socket.to_str().expect("UTF-8"), "-n", "k8s.io"]).args(arguments);
        command
    }

    fn say(&self, arguments: &[&str]) -> String {
        let output = self.ctr(arguments).output().expect("run ctr");
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "ctr {arguments:?}: {text}\n{}", self.node.log_tail());
        text
    }

    /// Runs a container by our shim, in the background.
    fn run(&self, id: &str, flags: &[&str], command: &[&str]) {
        let shim = binary_dir(false).join("containerd-shim-berth-v1");
        let shim = shim.to_str().expect("UTF-8");
        let mut arguments = vec!["run", "--runtime", shim, "-d"];
        arguments.extend(flags);
        arguments.extend([IMAGE, id]);
        arguments.extend(command);
        self.say(&arguments);
    }

    /// What containerd is told from now on: topic and event.
    fn events(&self) -> Told {
        let mut child = self.ctr(&["events"]).stdout(Stdio::piped()).spawn().expect("run ctr events");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let (sender, events) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                // TIME DATE ZONE NAMESPACE TOPIC {…}
                let Some(at) = line.find('{') else { continue };
                let topic = line[..at].split_whitespace().last().unwrap_or_default().to_owned();
                let _ = sender.send((topic, serde_json::from_str(&line[at..]).unwrap_or_default()));
            }
        });
        Told { child, events }
    }
}

struct Told {
    child: Child,
    events: Receiver<(String, Value)>,
}

impl Told {
    /// The next of the tasks' events.
    fn next(&self) -> (String, Value) {
        loop {
            let (topic, event) = self.events.recv_timeout(patience(20)).expect("an event");
            if topic.starts_with("/tasks/") {
                return (topic, event);
            }
        }
    }

    fn topics<const N: usize>(&self) -> [String; N] {
        std::array::from_fn(|_| self.next().0)
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn containerd_runs_a_container_with_our_shim_and_hears_what_happens() {
    let containerd = Containerd::start().await;
    let told = containerd.events();
    // The subscription is there once it hears of something.
    until("events are told", 20, async || {
        containerd.say(&["namespaces", "label", "k8s.io", "seen=yes"]);
        told.events.recv_timeout(Duration::from_millis(100)).is_ok()
    })
    .await;
    containerd.run("one", &[], &["sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.05; done"]);
    assert_eq!(told.topics(), ["/tasks/create", "/tasks/start"]);
    assert!(containerd.say(&["tasks", "ls"]).contains("RUNNING"));

    assert_eq!(containerd.say(&["tasks", "exec", "--exec-id", "e", "one", "echo", "hello"]), "hello\n");
    assert_eq!(told.topics(), ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"].map(String::from));

    // What its own shim for runc tells in the same words.
    let metrics = containerd.say(&["tasks", "metrics", "--format", "json", "one"]);
    let metrics: Value = serde_json::from_str(&metrics).expect("JSON");
    let number = |value: &Value| value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_default();
    let memory = number(&metrics["memory"]["usage"]["usage"]) + number(&metrics["memory"]["usage"]);
    let time = number(&metrics["cpu"]["usage"]["total"]) + number(&metrics["cpu"]["usage_usec"]);
    assert!(memory > 0 && time > 0 && number(&metrics["pids"]["current"]) > 0, "{metrics}");

    containerd.say(&["tasks", "pause", "one"]);
    assert!(containerd.say(&["tasks", "ls"]).contains("PAUSED"));
    containerd.say(&["tasks", "resume", "one"]);
    assert!(containerd.say(&["tasks", "ls"]).contains("RUNNING"));
    let seen: Vec<String> = (0..3).map(|_| told.next().0).filter(|topic| topic != "/tasks/delete").collect();
    assert_eq!(seen, ["/tasks/paused", "/tasks/resumed"], "and the exec was deleted");

    containerd.say(&["tasks", "kill", "one"]);
    let (topic, exit) = told.next();
    assert_eq!(
        (topic.as_str(), exit["container_id"].as_str(), exit["exit_status"].as_u64()),
        ("/tasks/exit", Some("one"), Some(7))
    );
    containerd.say(&["tasks", "rm", "one"]);
    assert_eq!(told.topics(), ["/tasks/delete"]);
    containerd.say(&["containers", "rm", "one"]);

    // Memory is told as the reason, before the end.
    containerd.run("two", &["--memory-limit", "33554432"], &["sh", "-c", "x=a; while :; do x=$x$x; done"]);
    assert_eq!(told.topics(), ["/tasks/create", "/tasks/start", "/tasks/oom", "/tasks/exit"]);
    containerd.say(&["tasks", "rm", "two"]);
    containerd.say(&["containers", "rm", "two"]);
    // Behind nsenter, whose end is not its.
    containerd.node.enclosure().shell("pkill -x ctr");
    drop(told);
    containerd.node.assert_nothing_left();
}
