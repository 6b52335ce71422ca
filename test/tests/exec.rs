//! Commands run in a container, and what becomes of them.

use berth_api::cri::ExecSyncRequest;
use berth_test::cri::script;
use berth_test::wait::patience;
use berth_test::{Node, pod, until};
use tonic::Code;

#[tokio::test]
async fn output_streams_and_exit_code_come_back_apart() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("exec")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    let answer = c.try_exec(["sh", "-c", "echo out; echo err >&2; exit 7"], 10).await.expect("ExecSync");
    assert_eq!(
        (answer.stdout.as_slice(), answer.stderr.as_slice(), answer.exit_code),
        (&b"out\n"[..], &b"err\n"[..], 7)
    );
    let megabyte = c.try_exec(["sh", "-c", "head -c 1048576 /dev/zero"], 30).await.expect("ExecSync");
    assert_eq!(megabyte.stdout.len(), 1 << 20);
    assert!(megabyte.stdout.iter().all(|byte| *byte == 0));
    assert_eq!(c.shell("hostname; id -u; cat /proc/1/comm").await, "exec\n0\nsleep\n");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn more_output_than_a_message_holds_is_cut_and_no_error() {
    const MESSAGE: usize = 16 << 20;
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let pod = node.run_pod(pod("much")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    let both = |out: usize, err: usize| {
        format!("head -c {out} /dev/zero; head -c {err} /dev/zero >&2; head -c {out} /dev/zero >/dev/null; exit 3")
    };
    for (out, err) in [(17 << 20, 0), (0, 17 << 20), (9 << 20, 9 << 20), (17 << 20, 1000)] {
        // The kubelet's client and crictl's take no more than this.
        let mut client = node.runtime().max_decoding_message_size(MESSAGE);
        let cmd = ["sh", "-c", &both(out, err)].map(str::to_owned).to_vec();
        let request = ExecSyncRequest { container_id: c.id.clone(), cmd, timeout: 60 };
        let answer = client.exec_sync(request).await.expect("ExecSync").into_inner();
        let (kept_out, kept_err) = (answer.stdout.len(), answer.stderr.len());
        let kept = kept_out + kept_err;
        assert!(kept <= MESSAGE && kept > MESSAGE - (4 << 10), "{kept_out} and {kept_err} bytes of {out} and {err}");
        assert!(kept_out <= out && kept_err <= err && kept_err >= err.min(MESSAGE / 2 - 4096), "{kept_err} of {err}");
        assert_eq!(answer.exit_code, 3);
        let told = format!("stdout={} stderr={}", out - kept_out, err - kept_err);
        assert!(node.log_tail().contains(&told), "{told} is not in the log\n{}", node.log_tail());
    }
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_command_that_its_shim_does_not_begin_ends_at_its_deadline_and_leaves_nothing() {
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let pod = node.run_pod(pod("held")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    let bundle = node.enclosure().path(node.dir().join("run/c").join(&c.id));
    let fifos = || {
        let names = std::fs::read_dir(&bundle).expect("the bundle").flatten();
        names.filter(|entry| entry.file_name().to_string_lossy().starts_with("x-")).count()
    };
    c.stop_shim();
    let late = c.try_exec(["sleep", "4724"], 1).await.expect_err("past its deadline");
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    assert!(late.message().contains("did not end within 1 s"), "{late}");
    // The shim does then what it was told, and is told to undo it.
    assert_ne!(node.signal_shim(&c.id, "CONT"), 0);
    until("what told of it is gone", 15, async || fifos() == 0).await;
    until("the command is gone", 15, async || !c.shell("ps").await.contains("sleep 4724")).await;
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_command_past_its_deadline_is_killed() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("late")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    // A child that keeps the output open delays no answer of berth's: nobody waits that long for one.
    let text = if node.is_berth() { "sleep 1000 & exec sleep 4722" } else { "exec sleep 4722" };
    let late = c.try_exec(["sh", "-c", text], 1).await.expect_err("past its deadline");
    if node.is_berth() {
        assert_eq!(late.code(), Code::DeadlineExceeded);
    }
    until("its processes are gone", 5, async || !c.shell("ps").await.contains("sleep 4722")).await;
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_child_that_keeps_the_output_open_delays_no_exit_code() {
    let node = Node::start().await;
    if !node.is_berth() {
        // It waits for the child.
        return;
    }
    let pod = node.run_pod(pod("child")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    // One call without a deadline, as the kubelet may ask for it: a hang is then the tests' own to end.
    for (deadline, seconds) in [(20, "4725"), (0, "4726")] {
        let text = format!("sleep {seconds} & echo out; echo err >&2; exit 7");
        let answer = tokio::time::timeout(patience(30), c.try_exec(["sh", "-c", &text], deadline)).await;
        let answer = answer.expect("it hangs").expect("ExecSync");
        assert_eq!(
            (answer.stdout.as_slice(), answer.stderr.as_slice(), answer.exit_code),
            (&b"out\n"[..], &b"err\n"[..], 7)
        );
        assert_eq!(node.enclosure().running(&format!("sleep {seconds}")), 1, "the child was to outlast the command");
    }
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_command_dies_with_its_client() {
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let pod = node.run_pod(pod("client")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    let runs = || node.enclosure().running("sleep 4723") > 0;
    tokio::select! {
        ended = c.try_exec(["sleep", "4723"], 0) => panic!("the command outlasts the client: {ended:?}"),
        () = until("the command runs", 15, async || runs()) => {}
    }
    until("the command is gone", 5, async || !runs()).await;
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_command_that_cannot_run_says_why() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("cannot")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    let missing = c.try_exec(["/no/such/program"], 10).await;
    let told = match missing {
        Ok(answer) => String::from_utf8_lossy(&answer.stderr).into_owned(),
        Err(error) => error.message().to_owned(),
    };
    assert!(told.contains("/no/such/program"), "{told}");
    c.stop(0).await.expect("StopContainer");
    let exited = c.try_exec(["true"], 10).await.expect_err("it does not run");
    if node.is_berth() {
        assert!(exited.message().contains(&c.id), "{}", exited.message());
        assert_eq!(exited.code(), Code::FailedPrecondition);
    }
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn fifty_commands_at_once_all_answer() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("many")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    let answers = futures::future::join_all((0..50).map(|n| {
        let c = &c;
        async move { (n, c.shell(&format!("echo {n}")).await) }
    }))
    .await;
    for (n, said) in answers {
        assert_eq!(said, format!("{n}\n"));
    }
    pod.end().await;
    node.assert_nothing_left();
}
