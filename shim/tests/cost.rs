//! What a shim costs: its memory does not grow with what its container did, and the calls' times are printed.
//! For real figures give the release binary: `BERTH_SHIM=PATH cargo test … --test cost -- --nocapture`.

mod common;

use std::time::{Duration, Instant};

use common::{Plan, Streams, Task, process};
use containerd_shim_protos::api;

/// One kind of memory of a process, in KiB.
fn memory(pid: u32, kind: &str) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find(|line| line.split(':').next() == Some(kind)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn exec_true(task: &Task) {
    let (out, end) = task.fifo("out");
    let tied = format!("berth+fifo://{}", out.display());
    task.exec("e", &process(&["true"]), Streams { stdout: &tied, ..Streams::default() }).await.unwrap();
    task.start("e").await.unwrap();
    assert_eq!(task.wait("e").await.unwrap(), 0);
    task.delete("e").await.unwrap();
    drop(end);
    std::fs::remove_file(out).unwrap();
}

#[tokio::test]
async fn memory_does_not_grow_with_what_was_logged_and_executed() {
    let script =
        "read go </dev/null; busybox awk 'BEGIN { for (i = 0; i < 200000; i++) print i, \"some words\" }'; sleep 1000";
    let task = Plan::new(&["sh", "-c", script]).create().await;
    let pid = task.connect().await.unwrap().shim_pid;
    println!("created: anonymous {} KiB, PSS {} KiB", memory(pid, "Pss_Anon"), memory(pid, "Pss"));
    task.start("").await.unwrap();
    for _ in 0..10 {
        exec_true(&task).await;
    }
    let before = memory(pid, "Pss_Anon");
    common::until("everything is logged", || task.log().ends_with("stdout F 199999 some words\n")).await;
    for _ in 0..100 {
        exec_true(&task).await;
    }
    // A silent stream's buffers go after a second, and so does the log's thread.
    common::until("what was needed is given back", || memory(pid, "Pss_Anon") <= before + 64).await;
    let after = memory(pid, "Pss_Anon");
    println!("after 10 execs {before} KiB, after 100 more and 4 MB of log {after} KiB, PSS {} KiB", memory(pid, "Pss"));
    task.kill("", 9, true).await.unwrap();
    task.wait("").await.unwrap();
    task.finish().await;
}

/// How often a process has read from anything.
fn reads(pid: u32) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    io.lines().find_map(|line| line.strip_prefix("syscr: ")).unwrap().parse().unwrap()
}

#[tokio::test]
async fn the_cgroup_is_asked_for_a_pause_only_where_somebody_pauses() {
    const ROUNDS: u64 = 100;
    let task = Plan::new(&["sleep", "1000"]).start().await;
    let shim = task.connect().await.unwrap().shim_pid;
    let asked = async || {
        let before = reads(shim);
        for _ in 0..ROUNDS {
            task.state().await.unwrap();
        }
        reads(shim) - before
    };
    let never = asked().await;
    let (id, context) = (task.id.clone(), common::deadline);
    task.task.pause(context(), &api::PauseRequest { id: id.clone(), ..Default::default() }).await.unwrap();
    task.task.resume(context(), &api::ResumeRequest { id, ..Default::default() }).await.unwrap();
    let once = asked().await;
    println!("reads for {ROUNDS} times State: {never}, and {once} once it was paused");
    assert!(once >= never + ROUNDS, "{never} and {once}");
    task.kill("", 9, true).await.unwrap();
    task.wait("").await.unwrap();
    task.finish().await;
}

/// Prints, since other work on the machine moves them.
#[tokio::test]
async fn each_call_answers_and_its_time_is_printed() {
    const ROUNDS: usize = 30;
    let mut times: Vec<(&str, Vec<Duration>)> =
        ["spawn", "create", "start", "exec", "kill", "delete"].map(|name| (name, Vec::new())).into();
    for _ in 0..ROUNDS {
        let plan = Plan::new(&["sleep", "1000"]);
        let mut begun = Instant::now();
        let mut lap = |times: &mut Vec<(&str, Vec<Duration>)>, index: usize| {
            times[index].1.push(begun.elapsed());
            begun = Instant::now();
        };
        let task = plan.spawn().await;
        lap(&mut times, 0);
        task.create().await.unwrap();
        lap(&mut times, 1);
        task.start("").await.unwrap();
        lap(&mut times, 2);
        task.exec("e", &process(&["true"]), Streams::default()).await.unwrap();
        task.start("e").await.unwrap();
        assert_eq!(task.wait("e").await.unwrap(), 0);
        task.delete("e").await.unwrap();
        lap(&mut times, 3);
        task.kill("", 9, true).await.unwrap();
        assert_eq!(task.wait("").await.unwrap(), 137);
        lap(&mut times, 4);
        task.delete("").await.unwrap();
        lap(&mut times, 5);
        let shutdown = api::ShutdownRequest { id: task.id.clone(), ..Default::default() };
        task.task.shutdown(common::deadline(), &shutdown).await.unwrap();
    }
    for (name, all) in &mut times {
        all.sort_unstable();
        println!("{name}: least {:?}, p50 {:?}, p95 {:?}", all[0], all[ROUNDS / 2], all[ROUNDS * 95 / 100]);
        assert!(all[ROUNDS / 2] < Duration::from_secs(1), "{name}");
    }
}

/// Milliseconds of processor time so far.
fn processor_ms(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<u64> =
        stat.rsplit_once(") ").unwrap().1.split(' ').filter_map(|field| field.parse().ok()).collect();
    // utime and stime, after one field that is no number; USER_HZ is 100.
    (fields[10] + fields[11]) * 10
}

/// Prints, as above.
#[tokio::test]
async fn what_is_written_is_logged_and_its_cost_is_printed() {
    let flood = "yes 'some words to make the line longer' | head -c 100000000";
    let lines = "busybox awk 'BEGIN { for (i = 0; i < 50000; i++) { print i; fflush() } }'";
    for (name, script) in [("100 MB at once", flood), ("50000 lines one by one", lines)] {
        let task = Plan::new(&["sh", "-c", script]).create().await;
        let pid = task.connect().await.unwrap().shim_pid;
        let (begun, used) = (Instant::now(), processor_ms(pid));
        task.start("").await.unwrap();
        assert_eq!(task.wait("").await.unwrap(), 0);
        println!("{name}: {:?}, {} ms of the shim", begun.elapsed(), processor_ms(pid) - used);
        task.finish().await;
    }
}
