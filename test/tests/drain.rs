//! SIGTERM: what is in progress finishes or is told, new calls are told to come back, containers notice nothing.

use berth_api::cri::{
    ContainerState, ExecSyncRequest, GetEventsRequest, ImageSpec, PodSandboxState, PullImageRequest,
    StopContainerRequest, VersionRequest,
};
use berth_test::cri::script;
use berth_test::node::Options;
use berth_test::stream::{ERROR, STDIN, STDOUT};
use berth_test::{Node, pod, until};
use tonic::Code;

async fn told_to_end(node: &Node) {
    let pid = node.daemon_pid().expect("the daemon runs");
    node.enclosure().kill(pid, "TERM");
    until("new calls are refused", 15, async || {
        let answer = node.runtime().version(VersionRequest::default()).await;
        answer.is_err_and(|e| e.code() == Code::Unavailable && e.message().contains("berthd is ending"))
    })
    .await;
}

async fn ended(node: &Node) {
    // systemd's patience, by hack/systemd/berth.service.
    until("the daemon ends", 30, async || node.daemon_pid().is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_progress_finishes() {
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let runs = node.run_pod(pod("runs")).await;
    // Neither ends before it may, however long it takes until the daemon is told.
    const MAY: &str = "until [ -e /may ]; do sleep 0.05; done";
    let waits = format!("trap '{MAY}; exit 4' TERM; touch /ready; while :; do sleep 0.05; done");
    let c = runs.run(script("c", &waits)).await;
    until("its trap is set", 15, async || c.shell("ls /").await.contains("ready")).await;
    // The exec in another, since it would die with the one that ends.
    let other = runs.run(script("other", "exec sleep 1000")).await;
    let waits = format!("{MAY}; echo done");
    let may = [c.proc("root/may").await, other.proc("root/may").await];
    let held = node.hold_network();
    let (started, (), executed, stopped) = tokio::join!(
        node.try_run_pod(pod("late")),
        async {
            until("the plugin is waited for", 15, async || node.berth(&["debug", "inflight"]).contains("cni-add"))
                .await;
            until("all are in progress", 15, async || {
                let told = node.berth(&["debug", "inflight"]);
                told.contains("ExecSync") && told.contains("StopContainer")
            })
            .await;
            told_to_end(&node).await;
            may.iter().for_each(|may| std::fs::write(may, "").expect("let them end"));
            held.release();
        },
        other.try_exec(["sh", "-c", &waits], 0),
        c.stop(60),
    );
    let late = started.expect("RunPodSandbox finishes");
    assert_eq!(executed.expect("ExecSync finishes").stdout, b"done\n");
    stopped.expect("StopContainer finishes");
    ended(&node).await;
    node.restart().await;
    assert_eq!(late.status().await.state(), PodSandboxState::SandboxReady);
    assert_eq!(c.status().await.exit_code, 4);
    for pod in [late, runs] {
        pod.end().await;
    }
    held.end();
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_finish_is_told_and_loses_nothing() {
    let hangs = "[[images.registries]]\nhost = \"hangs.test\"\nmirrors = [\"http://127.0.0.1:5999\"]\n";
    let node = Node::start_with(Options { config: hangs.into(), ..Default::default() }).await;
    if !node.is_berth() {
        return;
    }
    let pod = node.run_pod(pod("told")).await;
    let c = pod.run(script("c", "trap '' TERM; n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done")).await;
    let mut config = script("typed", "while read line; do echo got $line; done");
    config.stdin = true;
    let typed = pod.run(config).await;
    let mut listener = node.enclosure().command("busybox");
    let mut listener = listener.args(["nc", "-ll", "-p", "5999", "-e", "sleep", "1000"]).spawn().expect("run nsenter");

    // Streams: an attached client, an exec.
    let mut attached = node.websocket(&typed.attach_url(false).await, "v5.channel.k8s.io");
    attached.send(STDIN, b"hello\n");
    attached.until(STDOUT, "got hello\n");
    let url = typed.exec_url(&["sh", "-c", "echo begun; exec sleep 4735"]).await;
    let mut executed = node.websocket(&url, "v5.channel.k8s.io");
    executed.until(STDOUT, "begun\n");
    let heard = std::thread::spawn(move || [attached.receive_all(), executed.receive_all()]);
    let events = node.runtime().get_container_events(GetEventsRequest::default()).await;
    let mut events = events.expect("GetContainerEvents").into_inner();

    // Calls: an exec, a stop, a pull.
    let cmd = ["sleep", "4735"].map(String::from).to_vec();
    let exec = ExecSyncRequest { container_id: c.id.clone(), cmd, timeout: 0 };
    let stop = StopContainerRequest { container_id: c.id.clone(), timeout: 1000 };
    let image = ImageSpec { image: "hangs.test/image:1".into(), ..Default::default() };
    let pull = PullImageRequest { image: Some(image), ..Default::default() };
    let (mut one, mut two, mut three) = (node.runtime(), node.runtime(), node.images());
    let (executing, stopping, pulling, ()) = tokio::join!(
        async { one.exec_sync(exec).await.map(drop) },
        async { two.stop_container(stop).await.map(drop) },
        async { three.pull_image(pull).await.map(drop) },
        async {
            until("all are in progress", 15, async || {
                let told = node.berth(&["debug", "inflight"]);
                ["ExecSync", "StopContainer", "PullImage"].iter().all(|method| told.contains(method))
            })
            .await;
            told_to_end(&node).await;
        },
    );
    for (answer, method) in [(executing, "ExecSync"), (stopping, "StopContainer"), (pulling, "PullImage")] {
        let told = answer.expect_err("it does not finish");
        assert_eq!(told.code(), Code::Unavailable, "{told}");
        assert!(told.message().contains(&format!("before {method} was finished")), "{told}");
    }
    assert!(events.message().await.is_ok_and(|event| event.is_none()), "the events end");
    let [attached, executed] = heard.join().expect("the streams end");
    for (end, told) in [(attached, "attach again"), (executed, "berthd is ending, and the container runs on")] {
        let why = String::from_utf8_lossy(&end[usize::from(ERROR)]).into_owned();
        assert!(why.contains("Failure") && why.contains(told), "{why}");
    }
    ended(&node).await;
    until("the execs end with the daemon", 15, async || node.enclosure().running("sleep 4735") == 0).await;
    node.restart().await;
    for container in [&c, &typed] {
        assert_eq!(container.status().await.state(), ContainerState::ContainerRunning);
    }
    c.stop(0).await.expect("StopContainer");
    let numbers: Vec<_> = c.log().iter().map(|l| String::from_utf8_lossy(&l.text).into_owned()).collect();
    assert_eq!(numbers, (1..=numbers.len()).map(|n| n.to_string()).collect::<Vec<_>>(), "a line is lost or doubled");
    for words in ["nc -ll -p 5999", "sleep 1000"] {
        node.enclosure().kill_by_words(&[words], "KILL");
    }
    listener.wait().expect("wait for the listener");
    pod.end().await;
    node.assert_nothing_left();
}
