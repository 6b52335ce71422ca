//! `berth exec`, `attach` and `port-forward`: streams on the command line.

use std::process::{Command, Stdio};

use berth_test::cli::fed;
use berth_test::cri::script;
use berth_test::{Node, pod, until};

#[tokio::test(flavor = "multi_thread")]
async fn exec_streams_both_ways_and_ends_with_the_programs_code() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("exec")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    let ran = node.try_berth(&["exec", &c.id, "sh", "-c", "printf out; printf err >&2; exit 42"]);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (42, "out", "err"));
    let ran = node.try_berth(&["exec", &c.id, "/no/such/program"]);
    assert!(ran.code == 1 && ran.err.contains("/no/such/program"), "{ran:?}");
    let input: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let output = fed(node.berth_command(&["exec", "-i", &c.id, "cat"]), &input);
    assert!(output.status.success() && output.stdout == input, "{} bytes", output.stdout.len());
    // On a terminal, of which there is one here for the length of the command.
    let berth = node.berth_command(&["exec", "-i", "-t", &c.id, "sh", "-c", "tty; stty size; exit 5"]);
    let words: Vec<_> = std::iter::once(berth.get_program())
        .chain(berth.get_args())
        .map(|word| format!("'{}'", word.to_str().expect("UTF-8")))
        .collect();
    let line = format!("stty rows 44 cols 123; {}", words.join(" "));
    let output =
        Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).output().expect("script");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("/dev/pts/0") && output.status.code() == Some(5), "{said} {output:?}");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn attach_types_and_reads_until_the_container_ends() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("attach")).await;
    let mut config = script("c", "while read line; do echo got $line; done; echo end >&2");
    (config.stdin, config.stdin_once) = (true, true);
    let c = pod.run(config).await;
    let output = fed(node.berth_command(&["attach", "-i", &c.id]), b"one\ntwo\n");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "got one\ngot two\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "end\n");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn port_forward_leads_into_the_pod() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("forward")).await;
    let httpd = "mkdir /w; echo page > /w/index.html; exec httpd -f -p 127.0.0.1:8081 -h /w";
    let _c = pod.run(script("c", httpd)).await;
    let mut forward = node.berth_command(&["port-forward", &pod.id, "9081:8081"]);
    let mut forward = forward.stdout(Stdio::null()).spawn().expect("run nsenter");
    let get = "busybox wget -qO- http://127.0.0.1:9081";
    let page = || node.enclosure().command("sh").args(["-c", get]).output().is_ok_and(|o| o.stdout == b"page\n");
    until("the port is forwarded", 15, async || page()).await;
    let many = format!("for n in 1 2 3 4 5 6 7 8 9; do {get} & done; wait");
    assert_eq!(node.enclosure().shell(&many), "page\n".repeat(9));
    node.enclosure().kill_by_words(&["port-forward"], "TERM");
    forward.wait().expect("wait for berth");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_is_broken_off_costs_other_connections_nothing() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("broken")).await;
    let servers = "nc -lk -s 127.0.0.1 -p 8082 -e yes & \
                   mkdir /w; echo page > /w/index.html; exec httpd -f -p 127.0.0.1:8081 -h /w";
    let _c = pod.run(script("c", servers)).await;
    let mut forward = node.berth_command(&["port-forward", &pod.id, "9081:8081", "9082:8082"]);
    let mut forward = forward.stdout(Stdio::null()).spawn().expect("run nsenter");
    let get = ["sh", "-c", "timeout 20 busybox wget -qO- http://127.0.0.1:9081"];
    let page = || node.enclosure().command(get[0]).args(&get[1..]).output().is_ok_and(|o| o.stdout == b"page\n");
    until("the ports are forwarded", 15, async || page()).await;
    for _ in 0..5 {
        let mut flood = node.connect("127.0.0.1:9082".parse().expect("an address"));
        std::io::Read::read_exact(&mut flood, &mut [0; 100_000]).expect("a flood");
        // With bytes unread: its kernel resets the connection.
        drop(flood);
        assert!(page(), "berth forwards no more");
    }
    // The pod's side is over, too: nothing goes on for nobody.
    until("the floods end", 15, async || node.enclosure().running("yes") == 0).await;
    node.enclosure().kill_by_words(&["port-forward"], "TERM");
    forward.wait().expect("wait for berth");
    pod.end().await;
    node.assert_nothing_left();
}
