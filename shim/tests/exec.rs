//! Processes exec'd into a container, through FIFOs and terminals.

mod common;

use std::io::{Read, Write};
use std::time::Duration;

use common::{Plan, Streams, Task, alive, code, deadline, process, until};
use containerd_shim_protos::api;
use ttrpc::Code;

async fn sleeper() -> Task {
    Plan::new(&["sleep", "100000"]).start().await
}

/// Waits until so many processes are in the container.
async fn members(task: &Task, expected: usize) {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        let found = task.pids().await.len();
        if found == expected {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{found} processes, not {expected}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn end(task: Task) {
    task.kill("", 9, true).await.unwrap();
    task.wait("").await.unwrap();
    task.finish().await;
}

/// Everything until the end of the FIFO, which must come.
async fn read_all(mut fifo: std::fs::File) -> String {
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        match fifo.read(&mut buffer) {
            Ok(0) => return String::from_utf8(all).unwrap(),
            Ok(length) => all.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                assert!(std::time::Instant::now() < deadline, "no end of the FIFO");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn output_and_exit_code_come_back() {
    for tied in [false, true] {
        let task = sleeper().await;
        let ((out, out_end), (err, err_end)) = (task.fifo("out"), task.fifo("err"));
        let name = |path: std::path::PathBuf| match tied {
            true => format!("berth+fifo://{}", path.display()),
            false => path.to_str().unwrap().to_owned(),
        };
        let streams = Streams { stdout: &name(out), stderr: &name(err), ..Streams::default() };
        task.exec("e", &process(&["sh", "-c", "echo out; echo err >&2; exit 5"]), streams).await.unwrap();
        assert!(task.start("e").await.unwrap() > 0);
        assert_eq!(task.wait("e").await.unwrap(), 5);
        assert_eq!((read_all(out_end).await, read_all(err_end).await), ("out\n".into(), "err\n".into()));
        assert_eq!(task.delete("e").await.unwrap().exit_status, 5);
        assert_eq!(code(task.wait("e").await.unwrap_err()).0, Code::NOT_FOUND);
        end(task).await;
    }
}

#[tokio::test]
async fn an_exec_is_as_likely_to_be_killed_for_memory_as_its_container() {
    let mut plan = Plan::new(&["sleep", "100000"]);
    plan.spec["process"]["oomScoreAdj"] = 300.into();
    let task = plan.start().await;
    let (out, out_end) = task.fifo("out");
    let streams = Streams { stdout: out.to_str().unwrap(), ..Streams::default() };
    task.exec("e", &process(&["cat", "/proc/self/oom_score_adj"]), streams).await.unwrap();
    task.start("e").await.unwrap();
    assert_eq!(task.wait("e").await.unwrap(), 0);
    assert_eq!(read_all(out_end).await, "300\n");
    end(task).await;
}

#[tokio::test]
async fn input_ends_when_it_is_closed() {
    let task = sleeper().await;
    let ((stdin, _), (out, out_end)) = (task.fifo("in"), task.fifo("out"));
    let streams = Streams { stdin: stdin.to_str().unwrap(), stdout: out.to_str().unwrap(), ..Streams::default() };
    task.exec("cat", &process(&["cat"]), streams).await.unwrap();
    task.start("cat").await.unwrap();
    let mut writer = std::fs::OpenOptions::new().write(true).open(&stdin).unwrap();
    writer.write_all(b"through the container").unwrap();
    drop(writer);
    let close = api::CloseIORequest { id: task.id.clone(), exec_id: "cat".into(), stdin: true, ..Default::default() };
    task.task.close_io(deadline(), &close).await.unwrap();
    assert_eq!(task.wait("cat").await.unwrap(), 0);
    assert_eq!(read_all(out_end).await, "through the container");
    end(task).await;
}

#[tokio::test]
async fn a_tied_process_dies_with_its_client_and_takes_its_family_along() {
    let task = sleeper().await;
    let (out, out_end) = task.fifo("out");
    let name = format!("berth+fifo://{}", out.display());
    let script = "setsid sh -c 'sleep 1000; true' & sleep 1000 & sleep 1000; true";
    task.exec("tied", &process(&["sh", "-c", script]), Streams { stdout: &name, ..Streams::default() }).await.unwrap();
    let pid = task.start("tied").await.unwrap();
    // The init, and two shells with three children.
    members(&task, 6).await;
    drop(out_end);
    until("the exec'd process is dead", || !alive(pid)).await;
    members(&task, 1).await;
    assert_eq!(task.state().await.unwrap().status.unwrap(), api::Status::RUNNING);
    end(task).await;
}

#[tokio::test]
async fn a_tied_process_without_a_client_is_not_started() {
    let task = sleeper().await;
    let (out, out_end) = task.fifo("out");
    drop(out_end);
    let name = format!("berth+fifo://{}", out.display());
    task.exec("tied", &process(&["true"]), Streams { stdout: &name, ..Streams::default() }).await.unwrap();
    let (refused, text) = code(task.start("tied").await.unwrap_err());
    assert_eq!(refused, Code::FAILED_PRECONDITION);
    assert!(text.starts_with("open stdout at ") && text.ends_with("no such device or address"), "{text}");
    end(task).await;
}

#[tokio::test]
async fn a_kill_of_all_takes_an_execs_children_along() {
    let task = sleeper().await;
    task.exec("e", &process(&["sh", "-c", "sleep 1000 & sleep 1000; true"]), Streams::default()).await.unwrap();
    task.start("e").await.unwrap();
    members(&task, 4).await;
    task.kill("e", 9, true).await.unwrap();
    assert_eq!(task.wait("e").await.unwrap(), 137);
    members(&task, 1).await;
    end(task).await;
}

#[tokio::test]
async fn a_missing_program_fails_the_start_and_leaves_the_container_alone() {
    let task = sleeper().await;
    task.exec("e", &process(&["/bin/x"]), Streams::default()).await.unwrap();
    let refused = code(task.start("e").await.unwrap_err());
    assert_eq!(refused, (Code::NOT_FOUND, "exec \"/bin/x\": no such file or directory".into()));
    assert_eq!(task.wait("e").await.unwrap(), 128);
    task.delete("e").await.unwrap();
    assert_eq!(task.state().await.unwrap().status.unwrap(), api::Status::RUNNING);
    end(task).await;
}

#[tokio::test]
async fn an_exec_in_a_container_that_does_not_run_is_refused() {
    let task = Plan::new(&["true"]).create().await;
    let refused = task.exec("e", &process(&["true"]), Streams::default()).await.unwrap_err();
    assert_eq!(code(refused).0, Code::FAILED_PRECONDITION);
    task.start("").await.unwrap();
    task.wait("").await.unwrap();
    let refused = task.exec("e", &process(&["true"]), Streams::default()).await.unwrap_err();
    assert_eq!(code(refused).0, Code::FAILED_PRECONDITION);
    task.finish().await;
}

#[tokio::test]
async fn a_terminal_is_typed_at_read_and_resized() {
    let task = sleeper().await;
    let ((stdin, _), (out, mut out_end)) = (task.fifo("in"), task.fifo("out"));
    let streams =
        Streams { terminal: true, stdin: stdin.to_str().unwrap(), stdout: out.to_str().unwrap(), ..Streams::default() };
    let mut spec = process(&["sh", "-c", "read go; tty; stty size; exit 6"]);
    spec["terminal"] = true.into();
    task.exec("tty", &spec, streams).await.unwrap();
    task.start("tty").await.unwrap();
    let resize = api::ResizePtyRequest {
        id: task.id.clone(),
        exec_id: "tty".into(),
        width: 132,
        height: 43,
        ..Default::default()
    };
    task.task.resize_pty(deadline(), &resize).await.unwrap();
    std::fs::OpenOptions::new().write(true).open(&stdin).unwrap().write_all(b"go\n").unwrap();
    assert_eq!(task.wait("tty").await.unwrap(), 6);
    let mut seen = [0; 4096];
    let length = out_end.read(&mut seen).unwrap();
    assert_eq!(std::str::from_utf8(&seen[..length]).unwrap(), "go\r\n/dev/pts/0\r\n43 132\r\n");
    end(task).await;
}

/// Starts a script on a terminal whose reader takes a page at most. Returns the FIFO, its reading end and the pid.
async fn on_a_terminal_that_is_not_read(task: &Task, script: &str) -> (std::path::PathBuf, std::fs::File, u32) {
    let (out, out_end) = task.fifo("out");
    assert_eq!(rustix::pipe::fcntl_setpipe_size(&out_end, 4096).unwrap(), 4096);
    let name = format!("berth+fifo://{}", out.display());
    let mut spec = process(&["sh", "-c", script]);
    spec["terminal"] = true.into();
    task.exec("tty", &spec, Streams { terminal: true, stdout: &name, ..Streams::default() }).await.unwrap();
    let pid = task.start("tty").await.unwrap();
    (out, out_end, pid)
}

#[tokio::test]
async fn a_terminals_last_output_waits_for_a_reader_that_is_slow_and_for_none_that_is_gone() {
    let task = sleeper().await;
    for reads in [true, false] {
        let script = "head -c 10000 /dev/zero | tr '\\000' x";
        let (out, out_end, pid) = on_a_terminal_that_is_not_read(&task, script).await;
        // It need not wait for its reader itself: what is more than a FIFO holds fits into its terminal.
        until("the process is dead", || !alive(pid)).await;
        // Longer than what a log or another client has.
        tokio::time::sleep(Duration::from_secs(4)).await;
        match reads {
            true => assert_eq!(read_all(out_end).await.len(), 10_000),
            false => drop(out_end),
        }
        assert_eq!(task.wait("tty").await.unwrap(), 0);
        task.delete("tty").await.unwrap();
        std::fs::remove_file(out).unwrap();
    }
    end(task).await;
}

/// Nobody reads its last output, and its container does not wait for that.
#[tokio::test]
async fn an_exec_keeps_its_end_when_its_container_is_deleted_before_its_last_output_is_read() {
    let task = sleeper().await;
    let script = "head -c 10000 /dev/zero | tr '\\000' x; exit 7";
    let (_out, out_end, pid) = on_a_terminal_that_is_not_read(&task, script).await;
    let deleted = async {
        until("the process is dead", || !alive(pid)).await;
        task.kill("", 9, true).await.unwrap();
        task.wait("").await.unwrap();
        task.delete("").await.unwrap();
    };
    let (end, ()) = tokio::join!(task.wait("tty"), deleted);
    assert_eq!(end.unwrap(), 7);
    drop(out_end);
    task.shut_down().await;
}

#[tokio::test]
async fn many_execs_at_once_each_get_their_own_end() {
    let task = sleeper().await;
    let run = |n: u32| {
        let task = &task;
        async move {
            let exec_id = format!("e{n}");
            task.exec(&exec_id, &process(&["sh", "-c", &format!("exit {n}")]), Streams::default()).await.unwrap();
            task.start(&exec_id).await.unwrap();
            assert_eq!(task.wait(&exec_id).await.unwrap(), n);
            task.delete(&exec_id).await.unwrap();
        }
    };
    for batch in 0..5 {
        let (a, b, c, d) = (batch * 4, batch * 4 + 1, batch * 4 + 2, batch * 4 + 3);
        tokio::join!(run(a), run(b), run(c), run(d));
    }
    end(task).await;
}
