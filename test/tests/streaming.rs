//! Exec and port-forward as the community's client does them, over both of its transports.

use std::process::Stdio;

use berth_test::cli::fed;
use berth_test::cri::script;
use berth_test::node::Options;
use berth_test::{Node, pod, until};

const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_has_both_outputs_and_the_exit_code() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("exec")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    for transport in TRANSPORTS {
        let exec = |shell: &str| {
            node.crictl_command(&["exec", "-r", transport, &c.id, "sh", "-c", shell]).output().expect("run nsenter")
        };
        let output = exec("echo out; echo err >&2");
        assert_eq!(text(&output.stdout), "out\n", "{transport}: {output:?}");
        assert!(text(&output.stderr).contains("err\n"), "{transport}: {output:?}");
        assert!(output.status.success(), "{transport}: {output:?}");
        assert!(text(&exec("exit 7").stderr).contains("exit code 7"), "{transport}");
        let missing = node.crictl_command(&["exec", "-r", transport, &c.id, "/no/such/program"]).output();
        let missing = missing.expect("run nsenter");
        assert!(!missing.status.success(), "{transport}: {missing:?}");
        assert!(text(&missing.stderr).contains("/no/such/program"), "{transport}: {missing:?}");
    }
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_reads_its_input_to_the_end() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("stdin")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    // More than every buffer on the way holds, both ways at once.
    let input: Vec<u8> = (0..4_000_000_u32).map(|n| (n % 251) as u8).collect();
    for transport in TRANSPORTS {
        let output = fed(node.crictl_command(&["exec", "-i", "-r", transport, &c.id, "cat"]), &input);
        assert!(output.status.success(), "{transport}: {}", text(&output.stderr));
        assert!(output.stdout == input, "{transport}: {} bytes of {}", output.stdout.len(), input.len());
        // One that does not read must end all the same.
        let output = fed(node.crictl_command(&["exec", "-i", "-r", transport, &c.id, "true"]), &input);
        assert!(output.status.success(), "{transport}: {}", text(&output.stderr));
    }
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_ends_with_its_client() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("gone")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    for (transport, seconds) in [("spdy", "501"), ("websocket", "502")] {
        let sleepers = || node.enclosure().running(&format!("sleep {seconds}"));
        // Its input is a flood that it never reads: the daemon must see its client go though it cannot read on.
        let mut flood = node.crictl_command(&["exec", "-i", "-r", transport, &c.id, "sleep", seconds]);
        let zero = std::fs::File::open("/dev/zero").expect("open /dev/zero");
        let mut flood = flood.stdin(zero).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("run nsenter");
        let mut quiet =
            node.crictl_command(&["exec", "-r", transport, &c.id, "sh", "-c", &format!("sleep {seconds}; :")]);
        let mut quiet = quiet.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("run nsenter");
        until("both run", 15, async || sleepers() == 2).await;
        node.enclosure().kill_by_words(&["crictl", seconds], "KILL");
        for client in [&mut flood, &mut quiet] {
            client.wait().expect("wait for the client");
        }
        until("both are gone", 15, async || sleepers() == 0).await;
    }
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_keeps_the_output_open_does_not_hold_an_exec() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("child")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    let output = node.crictl_command(&["exec", &c.id, "sh", "-c", "echo before; sleep 600 & exit 3"]).output();
    let output = output.expect("run nsenter");
    assert_eq!(text(&output.stdout), "before\n");
    assert!(text(&output.stderr).contains("exit code 3"), "{output:?}");
    pod.end().await;
    node.assert_nothing_left();
}

/// The page that an httpd in a pod of its own gives, and crictl's forwarding to it.
async fn forwarded(options: Options, host_network: bool) {
    let node = Node::start_with(options).await;
    let mut config = pod("forward");
    if host_network {
        let linux = config.linux.as_mut().expect("linux");
        let options = linux.security_context.as_mut().and_then(|s| s.namespace_options.as_mut()).expect("options");
        options.set_network(berth_api::cri::NamespaceMode::Node);
    }
    let pod = node.run_pod(config).await;
    let mut config = script(
        "c",
        "mkdir /w; echo page > /w/index.html; head -c 3000000 /dev/zero > /w/big; \
         exec httpd -f -p 127.0.0.1:8081 -h /w",
    );
    if host_network {
        let linux = config.linux.as_mut().expect("linux");
        let options = linux.security_context.as_mut().and_then(|s| s.namespace_options.as_mut()).expect("options");
        options.set_network(berth_api::cri::NamespaceMode::Node);
    }
    let c = pod.run(config).await;
    let mut v6 = script("v6", "exec nc -lk -p 8082 -s ::1 -e echo six");
    v6.linux = c_linux(host_network);
    pod.run(v6).await.listens(&[8081, 8082]).await;
    until("httpd answers", 15, async || {
        c.try_exec(["wget", "-qO-", "http://127.0.0.1:8081"], 5).await.is_ok_and(|a| a.exit_code == 0)
    })
    .await;
    for (transport, port) in [("spdy", 9081), ("websocket", 9082)] {
        let mut forward = node.crictl_command(&[
            "port-forward",
            "-r",
            transport,
            &pod.id,
            &format!("{port}:8081"),
            &format!("{}:8082", port + 10),
        ]);
        let mut forward = forward.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("run nsenter");
        let get = |path: &str| {
            node.enclosure().shell(&format!("busybox wget -qO- http://127.0.0.1:{port}/{path} | sha256sum"))
        };
        let page = "busybox wget -qO- http://127.0.0.1:".to_owned() + &port.to_string();
        let answers =
            || node.enclosure().command("sh").args(["-c", &page]).output().is_ok_and(|o| o.stdout == b"page\n");
        until("the port is forwarded", 15, async || answers()).await;
        let whole = node.enclosure().shell("head -c 3000000 /dev/zero | sha256sum");
        assert_eq!(get("big"), whole, "{transport}");
        // Many at once.
        let many = format!("for n in $(seq 40); do busybox wget -qO- http://127.0.0.1:{port}/big | wc -c & done; wait");
        assert_eq!(node.enclosure().shell(&many), "3000000\n".repeat(40), "{transport}");
        let six = format!("busybox nc -w 5 127.0.0.1 {} </dev/null", port + 10);
        assert_eq!(node.enclosure().shell(&six), "six\n", "{transport}");
        node.enclosure().kill_by_words(&["crictl", &pod.id], "KILL");
        forward.wait().expect("wait for crictl");
    }
    pod.end().await;
    node.assert_nothing_left();
}

fn c_linux(host_network: bool) -> Option<berth_api::cri::LinuxContainerConfig> {
    let mut linux = script("x", "x").linux.expect("linux");
    if host_network {
        let options = linux.security_context.as_mut().and_then(|s| s.namespace_options.as_mut()).expect("options");
        options.set_network(berth_api::cri::NamespaceMode::Node);
    }
    Some(linux)
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_forwarded_into_a_pod() {
    forwarded(Options::default(), false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_forwarded_to_a_pod_on_the_hosts_network() {
    forwarded(Options::default(), true).await;
}
