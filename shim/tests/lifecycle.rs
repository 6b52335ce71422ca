//! A container from `start` to `Shutdown`, as its daemon sees it.

mod common;

use std::os::unix::net::UnixStream;

use common::{Plan, Streams, alive, code, deadline, process, shim, start, until};
use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::Client;
use protobuf::Message;
use ttrpc::Code;

#[tokio::test]
async fn a_container_runs_and_its_output_and_end_are_recorded() {
    let task = Plan::new(&["sh", "-c", "echo out; echo err >&2; exit 7"]).create().await;
    assert_eq!(task.state().await.unwrap().status.unwrap(), api::Status::CREATED);
    let pid = task.start("").await.unwrap();
    assert!(pid > 0);
    assert_eq!(task.wait("").await.unwrap(), 7);
    assert_eq!(task.log(), "stdout F out\nstderr F err\n");
    assert_eq!(common::mode(&task.path("0.log")), 0o640);
    let record = task.exit_record();
    assert_eq!((record.status, record.oom_killed), (7, false));
    let state = task.state().await.unwrap();
    assert_eq!((state.status.unwrap(), state.exit_status), (api::Status::STOPPED, 7));
    task.finish().await;
}

#[tokio::test]
async fn everything_written_before_the_end_is_in_the_log_when_wait_answers() {
    let task = Plan::new(&["sh", "-c", "seq 1 20000"]).start().await;
    assert_eq!(task.wait("").await.unwrap(), 0);
    let expected: String = (1..=20000).map(|n| format!("stdout F {n}\n")).collect();
    assert_eq!(task.log(), expected);
    task.finish().await;
}

#[tokio::test]
async fn a_child_that_holds_the_pipes_does_not_hold_up_the_end() {
    let task = Plan::new(&["sh", "-c", "setsid sleep 1000 & echo over"]).start().await;
    assert_eq!(task.wait("").await.unwrap(), 0);
    assert_eq!(task.log(), "stdout F over\n");
    assert_eq!(task.pids().await, Vec::<u32>::new());
    task.finish().await;
}

#[tokio::test]
async fn in_the_hosts_pid_namespace_the_rest_dies_with_the_init() {
    let mut plan = Plan::new(&["sh", "-c", "setsid sleep 1000 & echo $!; sleep 0.2"]);
    plan.spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "pid");
    let task = plan.start().await;
    assert_eq!(task.wait("").await.unwrap(), 0);
    let child: u32 = task.log().trim_start_matches("stdout F ").trim().parse().unwrap();
    assert!(!alive(child));
    task.finish().await;
}

/// Its memory goes before anything else of it does, and holds no pipe up.
#[tokio::test]
async fn in_the_hosts_pid_namespace_the_end_waits_for_what_is_slow_to_die() {
    let mut plan =
        Plan::new(&["sh", "-c", "setsid dd if=/dev/zero of=/dev/null bs=512M >/dev/null 2>&1 & echo $!; wait"]);
    plan.spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "pid");
    let task = plan.start().await;
    until("its number is told", || !task.log().is_empty()).await;
    let child: u32 = task.log().trim_start_matches("stdout F ").trim().parse().unwrap();
    let resident = || {
        let pages = std::fs::read_to_string(format!("/proc/{child}/statm")).unwrap();
        pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    until("it has its memory", || resident() > 500 << 20).await;
    task.kill("", 9, false).await.unwrap();
    assert_eq!(task.wait("").await.unwrap(), 137);
    assert!(!alive(child));
    task.finish().await;
}

#[tokio::test]
async fn signals_reach_the_init_and_kill_ends_it() {
    let task =
        Plan::new(&["sh", "-c", "trap 'echo got; exit 3' TERM; echo up; while :; do sleep 0.05; done"]).start().await;
    until("the trap is set", || task.log() == "stdout F up\n").await;
    task.kill("", 15, false).await.unwrap();
    assert_eq!(task.wait("").await.unwrap(), 3);
    assert_eq!(task.log(), "stdout F up\nstdout F got\n");
    assert_eq!(code(task.kill("", 15, false).await.unwrap_err()).0, Code::NOT_FOUND);
    task.finish().await;

    for all in [false, true] {
        let task = Plan::new(&["sleep", "1000"]).start().await;
        assert_eq!(task.pids().await.len(), 1);
        task.kill("", 9, all).await.unwrap();
        assert_eq!(task.wait("").await.unwrap(), 137);
        assert_eq!(task.exit_record().status, 137);
        task.finish().await;
    }
}

#[tokio::test]
async fn a_paused_container_stands_still_and_dies_of_a_kill() {
    let task = Plan::new(&["sleep", "1000"]).start().await;
    let pause = api::PauseRequest { id: task.id.clone(), ..Default::default() };
    let resume = api::ResumeRequest { id: task.id.clone(), ..Default::default() };
    task.task.pause(deadline(), &pause).await.unwrap();
    assert_eq!(task.state().await.unwrap().status.unwrap(), api::Status::PAUSED);
    let refused = task.exec("e", &process(&["true"]), Streams::default()).await.unwrap_err();
    assert_eq!(code(refused), (Code::FAILED_PRECONDITION, format!("container {:?} is paused", task.id)));
    task.task.resume(deadline(), &resume).await.unwrap();
    assert_eq!(task.state().await.unwrap().status.unwrap(), api::Status::RUNNING);
    task.exec("e", &process(&["true"]), Streams::default()).await.unwrap();
    task.task.pause(deadline(), &pause).await.unwrap();
    task.kill("", 9, false).await.unwrap();
    assert_eq!(task.wait("").await.unwrap(), 137);
    task.finish().await;
}

#[tokio::test]
async fn a_real_time_signal_is_delivered() {
    let task = Plan::new(&["sh", "-c", "trap 'exit 4' 37; echo up; while :; do sleep 0.05; done"]).start().await;
    until("the trap is set", || task.log() == "stdout F up\n").await;
    task.kill("", 37, false).await.unwrap();
    assert_eq!(task.wait("").await.unwrap(), 4);
    task.finish().await;
}

#[tokio::test]
async fn a_memory_limit_that_kills_is_told_from_a_kill() {
    let mut plan = Plan::new(&["sh", "-c", "exec busybox tail /dev/zero"]);
    plan.spec["linux"]["resources"] = serde_json::json!({ "memory": { "limit": 16 << 20, "swap": 16 << 20 } });
    let task = plan.start().await;
    assert_eq!(task.wait("").await.unwrap(), 137);
    assert!(task.exit_record().oom_killed);
    task.finish().await;
}

#[tokio::test]
async fn a_program_that_cannot_be_executed_fails_the_start_with_its_cause() {
    for (program, expected, text) in [
        ("/bin/x", Code::NOT_FOUND, "exec \"/bin/x\": no such file or directory"),
        ("/etc", Code::PERMISSION_DENIED, "exec \"/etc\": permission denied"),
    ] {
        let task = Plan::new(&[program]).create().await;
        assert_eq!(code(task.start("").await.unwrap_err()), (expected, text.to_owned()));
        assert_eq!(task.exit_record().status, 128);
        assert_eq!(task.wait("").await.unwrap(), 128);
        task.finish().await;
    }
}

#[tokio::test]
async fn a_container_that_was_never_started_can_be_killed_or_deleted() {
    let task = Plan::new(&["sleep", "1000"]).create().await;
    task.kill("", 9, false).await.unwrap();
    assert_eq!(task.wait("").await.unwrap(), 137);
    assert_eq!(code(task.start("").await.unwrap_err()).0, Code::FAILED_PRECONDITION);
    task.finish().await;

    let task = Plan::new(&["sh", "-c", "echo ran"]).create().await;
    let log = task.path("0.log");
    let dir = std::fs::canonicalize(task.dir.path()).unwrap();
    task.delete("").await.unwrap();
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "", "{dir:?}");
    let shutdown = api::ShutdownRequest { id: task.id.clone(), ..Default::default() };
    task.task.shutdown(deadline(), &shutdown).await.unwrap();
}

#[tokio::test]
async fn what_is_wrong_is_refused_with_its_name() {
    let task = Plan::new(&["sleep", "1000"]).start().await;
    assert_eq!(code(task.create().await.unwrap_err()).0, Code::ALREADY_EXISTS);
    assert_eq!(code(task.start("").await.unwrap_err()).0, Code::FAILED_PRECONDITION);
    assert_eq!(code(task.delete("").await.unwrap_err()).0, Code::FAILED_PRECONDITION);
    assert_eq!(
        code(task.wait("nobody").await.unwrap_err()),
        (Code::NOT_FOUND, "process \"nobody\" is not known".into())
    );
    let other = api::StateRequest { id: "other".into(), ..Default::default() };
    assert_eq!(code(task.task.state(deadline(), &other).await.unwrap_err()).0, Code::NOT_FOUND);
    let streams = Streams { stdout: "binary:///bin/logger", ..Streams::default() };
    task.exec("bad", &process(&["true"]), streams).await.unwrap();
    let (refused, text) = code(task.start("bad").await.unwrap_err());
    assert_eq!((refused, &*text), (Code::INVALID_ARGUMENT, "stdout: scheme \"binary\" is not supported"));
    task.kill("", 9, true).await.unwrap();
    task.wait("").await.unwrap();
    task.finish().await;
}

#[tokio::test]
async fn a_log_that_cannot_be_opened_fails_create_and_create_can_be_repeated() {
    let mut plan = Plan::new(&["true"]);
    let good = plan.create.stdout.clone();
    plan.create.stdout = "cri+file:///nowhere/0.log?stream=stdout".into();
    let task = plan.spawn().await;
    let (refused, text) = code(task.create().await.unwrap_err());
    assert_eq!(
        (refused, &*text),
        (Code::FAILED_PRECONDITION, "open stdout at /nowhere/0.log: no such file or directory")
    );
    let again = api::CreateTaskRequest {
        id: task.id.clone(),
        bundle: task.path("bundle").to_str().unwrap().into(),
        rootfs: vec![api::Mount {
            type_: "bind".into(),
            source: task.path("image").to_str().unwrap().into(),
            options: vec!["rbind".into()],
            ..Default::default()
        }],
        stdout: good,
        ..Default::default()
    };
    task.task.create(deadline(), &again).await.unwrap();
    task.start("").await.unwrap();
    assert_eq!(task.wait("").await.unwrap(), 0);
    task.finish().await;
}

#[tokio::test]
async fn both_names_of_the_task_service_answer() {
    let task = Plan::new(&["sleep", "1000"]).create().await;
    for service in ["containerd.task.v2.Task", "containerd.task.v3.Task"] {
        let request = api::ConnectRequest { id: task.id.clone(), ..Default::default() };
        let mut raw = ttrpc::Request::new();
        raw.service = service.into();
        raw.method = "Connect".into();
        raw.timeout_nano = 5_000_000_000;
        raw.payload = request.write_to_bytes().unwrap();
        let response = task.client.request(raw).await.unwrap();
        let response = api::ConnectResponse::parse_from_bytes(&response.payload).unwrap();
        assert!(response.task_pid > 0, "{service}");
    }
    task.kill("", 9, false).await.unwrap();
    task.wait("").await.unwrap();
    task.finish().await;
}

/// A daemon that puts the shim into a cgroup does so before there is a container.
#[tokio::test]
async fn the_shim_says_who_it_is_before_there_is_a_container() {
    let task = Plan::new(&["true"]).spawn().await;
    let connected = task.connect().await.unwrap();
    assert!(alive(connected.shim_pid) && connected.task_pid == 0, "{connected:?}");
    task.create().await.unwrap();
    let later = task.connect().await.unwrap();
    assert!(later.shim_pid == connected.shim_pid && later.task_pid > 0, "{later:?}");
    task.start("").await.unwrap();
    task.wait("").await.unwrap();
    task.finish().await;
}

#[tokio::test]
async fn starting_twice_gives_the_same_shim() {
    let task = Plan::new(&["true"]).create().await;
    let first = task.connect().await.unwrap().shim_pid;
    let answer = start(&task.path("bundle"), &task.id, &["-in-bundle"]);
    let address = serde_json::from_str::<serde_json::Value>(&answer).unwrap()["address"].as_str().unwrap().to_owned();
    let second = containerd_shim_protos::shim_async::TaskClient::new(Client::connect(&address).await.unwrap());
    let request = api::ConnectRequest { id: task.id.clone(), ..Default::default() };
    assert_eq!(second.connect(deadline(), &request).await.unwrap().shim_pid, first);
    task.start("").await.unwrap();
    task.wait("").await.unwrap();
    task.finish().await;
}

#[tokio::test]
async fn a_dead_shims_container_is_ended_by_the_delete_command() {
    let task = Plan::new(&["sh", "-c", "while :; do sleep 1; done"]).start().await;
    let connected = task.connect().await.unwrap();
    let killed = std::process::Command::new("kill").args(["-KILL", &connected.shim_pid.to_string()]).status().unwrap();
    assert!(killed.success());
    until("the shim is dead", || !alive(connected.shim_pid)).await;
    let bundle = task.path("bundle");
    let mut delete = std::process::Command::new(shim());
    delete.args(["-namespace", "berth", "-id", &task.id, "-bundle"]).arg(&bundle).arg("delete").current_dir(&bundle);
    // What a newer build wrote down is not for this one to touch.
    std::fs::write(bundle.join("exit.json"), r#"{"version":2,"status":0,"exited_at_ns":1,"oom_killed":false}"#)
        .unwrap();
    let output = delete.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("exit.json: a newer shim wrote it, in format 2"), "{said}");
    assert!(alive(connected.task_pid));
    std::fs::remove_file(bundle.join("exit.json")).unwrap();
    let output = delete.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let response = api::DeleteResponse::parse_from_bytes(&output.stdout).unwrap();
    assert_eq!(response.exit_status, 137);
    assert!(!alive(connected.task_pid));
    assert_eq!(common::cgroups(&task.id), Vec::<std::path::PathBuf>::new());
    // A socket whose shim is dead is not in the way of the next.
    assert!(UnixStream::connect(bundle.join("task.sock")).is_err());
    start(&bundle, &task.id, &["-in-bundle"]);
    let client = Client::connect(&format!("unix://{}", bundle.join("task.sock").display())).await.unwrap();
    let shutdown = api::ShutdownRequest { id: task.id.clone(), ..Default::default() };
    containerd_shim_protos::shim_async::TaskClient::new(client).shutdown(deadline(), &shutdown).await.unwrap();
}
