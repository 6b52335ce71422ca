//! What a containerd is told, in which order, and that nobody waits for it. Needs root, busybox-static and perl.

mod common;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use common::{Plan, Streams, Task, alive, deadline, process, until};
use containerd_shim_protos::api::{self, Empty, ForwardRequest, PauseRequest, ResumeRequest, ShutdownRequest};
use containerd_shim_protos::events::task::{TaskDelete, TaskExecStarted, TaskExit};
use containerd_shim_protos::shim_async::{Events, create_events};
use protobuf::Message;
use tokio::sync::watch;
use ttrpc::r#async::{Server, TtrpcContext};

/// Who listens, and may be slow to answer.
struct Containerd {
    told: Arc<Mutex<Vec<Told>>>,
    answers: watch::Sender<bool>,
    dir: tempfile::TempDir,
    _server: Server,
}

/// Topic and process.
type Told = (String, String);

struct Listener {
    told: Arc<Mutex<Vec<Told>>>,
    answers: watch::Receiver<bool>,
}

#[async_trait]
impl Events for Listener {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        self.answers.clone().wait_for(|answers| *answers).await.unwrap();
        let envelope = request.envelope.unwrap();
        let event = &envelope.event.value;
        let process = match &*envelope.topic {
            "/tasks/exit" => TaskExit::parse_from_bytes(event).unwrap().id,
            "/tasks/delete" => TaskDelete::parse_from_bytes(event).unwrap().id,
            "/tasks/exec-started" => TaskExecStarted::parse_from_bytes(event).unwrap().exec_id,
            _ => String::new(),
        };
        self.told.lock().unwrap().push((envelope.topic.clone(), process));
        Ok(Empty::new())
    }
}

impl Containerd {
    async fn listen() -> Containerd {
        let dir = tempfile::tempdir().unwrap();
        let (told, answers) = (Arc::<Mutex<Vec<Told>>>::default(), watch::Sender::new(true));
        let listener = Arc::new(Listener { told: told.clone(), answers: answers.subscribe() });
        let address = format!("unix://{}", dir.path().join("events.sock").display());
        let mut server = Server::new().bind(&address).unwrap().register_service(create_events(listener));
        server.start().await.unwrap();
        Containerd { told, answers, dir, _server: server }
    }

    fn address(&self) -> PathBuf {
        self.dir.path().join("events.sock")
    }

    fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap().clone()
    }

    fn topics(&self) -> Vec<String> {
        self.told().into_iter().map(|(topic, _)| topic).collect()
    }
}

/// Keeps a file from being opened, by a lease; who opens it waits.
struct Held {
    child: Child,
    says: std::io::Lines<BufReader<ChildStdout>>,
}

impl Held {
    fn hold(path: &Path) -> Held {
        // F_SETLEASE, F_GETLEASE; F_WRLCK until somebody waits.
        let script = "$SIG{IO} = q(IGNORE); $| = 1; open(F, q(<), $ARGV[0]) or die $!; fcntl(F, 1024, 1) or die $!; \
                      print qq(held\n); select(undef, undef, undef, 0.005) while fcntl(F, 1025, 0) == 1; \
                      print qq(wanted\n); <STDIN>";
        let mut command = Command::new("perl");
        command.args(["-e", script]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let says = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut held = Held { child, says };
        held.hear("held");
        held
    }

    fn hear(&mut self, word: &str) {
        assert_eq!(self.says.next().unwrap().unwrap(), word);
    }

    /// Waits for somebody who opens it.
    async fn wanted(mut self) -> Held {
        let waited = tokio::task::spawn_blocking(move || {
            self.hear("wanted");
            self
        });
        waited.await.unwrap()
    }

    fn let_go(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

async fn end(task: Task) {
    task.kill("", 9, true).await.unwrap();
    task.wait("").await.unwrap();
    task.finish().await;
}

#[tokio::test]
async fn an_exec_that_is_slow_to_start_holds_up_no_other() {
    let containerd = Containerd::listen().await;
    for heard in [false, true] {
        let plan = Plan::new(&["sleep", "100000"]);
        let slow = plan.dir.path().join("image/bin/slow");
        std::fs::write(&slow, "#!/bin/sh\nexit 3\n").unwrap();
        std::fs::set_permissions(&slow, PermissionsExt::from_mode(0o755)).unwrap();
        let task = if heard { plan.spawn_told(&containerd.address()).await } else { plan.spawn().await };
        task.create().await.unwrap();
        task.start("").await.unwrap();
        task.exec("slow", &process(&["slow"]), Streams::default()).await.unwrap();
        task.exec("quick", &process(&["sh", "-c", "exit 4"]), Streams::default()).await.unwrap();

        let held = Held::hold(&slow);
        let quick = async {
            let held = held.wanted().await;
            task.start("quick").await.unwrap();
            assert_eq!(task.wait("quick").await.unwrap(), 4);
            task.delete("quick").await.unwrap();
            held
        };
        let mut start = Box::pin(task.start("slow"));
        let held = tokio::select! {
            biased;
            started = &mut start => panic!("the slow one was there first: {started:?}"),
            held = quick => held,
        };
        held.let_go();
        assert!(start.await.unwrap() > 0);
        assert_eq!(task.wait("slow").await.unwrap(), 3);
        task.delete("slow").await.unwrap();
        end(task).await;
    }
    let told = containerd.told();
    let of = |process: &str| -> Vec<&str> {
        told.iter().filter(|(_, of)| of == process).map(|(topic, _)| topic.as_str()).collect()
    };
    for process in ["slow", "quick"] {
        assert_eq!(of(process), ["/tasks/exec-started", "/tasks/exit", "/tasks/delete"], "{told:?}");
    }
}

#[tokio::test]
async fn an_end_is_told_after_the_start_and_before_the_deletion() {
    let containerd = Containerd::listen().await;
    let task = Plan::new(&["true"]).spawn_told(&containerd.address()).await;
    // Who deletes a container that was never started waits for its end with the one who tells of it.
    for _ in 0..20 {
        task.create().await.unwrap();
        task.delete("").await.unwrap();
    }
    // And this one ends as soon as it has been started.
    for _ in 0..20 {
        task.create().await.unwrap();
        task.start("").await.unwrap();
        task.wait("").await.unwrap();
        task.delete("").await.unwrap();
    }
    task.create().await.unwrap();
    task.finish().await;
    let topics = containerd.topics();
    let never = ["/tasks/create", "/tasks/exit", "/tasks/delete"];
    let (first, second) = topics.split_at(20 * never.len());
    assert!(first.chunks(never.len()).all(|topics| topics == never), "{first:?}");
    let usual = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"];
    let (second, last) = second.split_at(20 * usual.len());
    assert!(second.chunks(usual.len()).all(|topics| topics == usual), "{second:?}");
    assert_eq!(last, never);
}

#[tokio::test]
async fn execs_that_end_at_once_are_told_each_in_its_order() {
    let containerd = Containerd::listen().await;
    let task = Plan::new(&["sleep", "100000"]).spawn_told(&containerd.address()).await;
    task.create().await.unwrap();
    task.start("").await.unwrap();
    let run = |n: u32| {
        let task = &task;
        async move {
            let exec_id = format!("e{n}");
            task.exec(&exec_id, &process(&["true"]), Streams::default()).await.unwrap();
            task.start(&exec_id).await.unwrap();
            task.wait(&exec_id).await.unwrap();
            task.delete(&exec_id).await.unwrap();
        }
    };
    for batch in 0..5 {
        tokio::join!(run(batch * 4), run(batch * 4 + 1), run(batch * 4 + 2), run(batch * 4 + 3));
    }
    end(task).await;
    let mut of = HashMap::<String, Vec<String>>::new();
    for (topic, process) in containerd.told() {
        of.entry(process).or_default().push(topic);
    }
    for n in 0..20 {
        assert_eq!(of[&format!("e{n}")], ["/tasks/exec-started", "/tasks/exit", "/tasks/delete"]);
    }
}

#[tokio::test]
async fn a_shim_that_is_shut_down_first_tells_what_waits() {
    let containerd = Containerd::listen().await;
    containerd.answers.send_replace(false);
    let task = Plan::new(&["true"]).spawn_told(&containerd.address()).await;
    task.create().await.unwrap();
    task.start("").await.unwrap();
    task.wait("").await.unwrap();
    task.delete("").await.unwrap();
    let shim = task.connect().await.unwrap().shim_pid;
    task.task.shutdown(deadline(), &ShutdownRequest { id: task.id.clone(), ..Default::default() }).await.unwrap();
    // Much longer than the answer needs, and much shorter than it would wait.
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert!(alive(shim), "it is gone with {:?}", containerd.topics());
    let refused = task.create().await.unwrap_err();
    assert_eq!(common::code(refused), (ttrpc::Code::UNAVAILABLE, "the shim is shutting down".into()));
    containerd.answers.send_replace(true);
    until("the shim has ended", || !alive(shim)).await;
    assert_eq!(containerd.topics(), ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]);
}

#[tokio::test]
async fn a_containerd_that_takes_nothing_keeps_no_shim_alive() {
    let containerd = Containerd::listen().await;
    containerd.answers.send_replace(false);
    let task = Plan::new(&["true"]).spawn_told(&containerd.address()).await;
    task.create().await.unwrap();
    task.start("").await.unwrap();
    task.wait("").await.unwrap();
    let bundle = task.path("bundle");
    let dir = task.dir.path().to_owned();
    task.delete("").await.unwrap();
    let shim = task.connect().await.unwrap().shim_pid;
    task.task.shutdown(deadline(), &ShutdownRequest { id: task.id.clone(), ..Default::default() }).await.unwrap();
    until("the shim has ended", || !alive(shim)).await;
    let said = std::fs::read_to_string(bundle.join("shim.log")).unwrap();
    assert!(said.contains("drop the last events, 4: "), "{dir:?}: {said}");
}

/// Asks for something, and does not stay for the answer.
fn hang_up_after(address: &str, method: &str, request: &impl Message) {
    let mut asked = ttrpc::Request::new();
    asked.service = "containerd.task.v3.Task".into();
    asked.method = method.into();
    asked.payload = request.write_to_bytes().unwrap();
    let asked = asked.write_to_bytes().unwrap();
    // The length, the number of the stream, that it is a request, no flags.
    let header = [&(asked.len() as u32).to_be_bytes()[..], &1_u32.to_be_bytes(), &[1, 0]].concat();
    let mut connection = UnixStream::connect(address.strip_prefix("unix://").unwrap()).unwrap();
    connection.write_all(&[header, asked].concat()).unwrap();
}

#[tokio::test]
async fn a_pause_comes_to_its_end_though_its_client_does_not_wait() {
    let containerd = Containerd::listen().await;
    let script = "for i in $(seq 100); do sleep 1000 & done; wait";
    let task = Plan::new(&["sh", "-c", script]).spawn_told(&containerd.address()).await;
    task.create().await.unwrap();
    task.start("").await.unwrap();
    while task.pids().await.len() < 101 {}
    hang_up_after(&task.address, "Pause", &PauseRequest { id: task.id.clone(), ..Default::default() });
    until("it is told", || containerd.topics().last().unwrap() == "/tasks/paused").await;
    assert_eq!(task.state().await.unwrap().status.unwrap(), api::Status::PAUSED);
    let request = ResumeRequest { id: task.id.clone(), ..Default::default() };
    task.task.resume(deadline(), &request).await.unwrap();
    end(task).await;
}
