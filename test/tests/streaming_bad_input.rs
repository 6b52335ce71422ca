//! What no good client does to the streaming server: it gets a clear answer or is hung up on, and the daemon does not grow.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;

use berth_api::cri::{AttachRequest, ExecRequest, PortForwardRequest};
use berth_test::cri::script;
use berth_test::node::Options;
use berth_test::spdy::syn_stream;
use berth_test::stream::{ERROR, STDOUT, parts, websocket_headers};
use berth_test::{Node, Pod, pod, until};
use tonic::Code;

async fn forward_url(node: &Node, pod: &Pod<'_>) -> String {
    let request = PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![] };
    node.runtime().port_forward(request).await.expect("PortForward").into_inner().url
}

/// The beginning of the frame by which a client is told that it broke the protocol.
const GOAWAY: [u8; 4] = [0x80, 3, 0, 7];

fn is_told(bytes: &[u8]) -> bool {
    bytes.windows(GOAWAY.len()).any(|frame| frame == GOAWAY)
}

/// Reads to the end that the other side makes.
fn to_the_end(mut stream: TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("it is not hung up: {error}"),
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_cannot_be_streamed_are_refused_by_their_rpc() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("refused")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    let id = || c.id.clone();
    let exec = |cmd: &str, stdout, stderr, tty| {
        let cmd = if cmd.is_empty() { vec![] } else { vec![cmd.to_owned()] };
        let request = ExecRequest { container_id: id(), cmd, stdout, stderr, tty, stdin: false };
        let mut runtime = node.runtime();
        async move { runtime.exec(request).await.expect_err("refused") }
    };
    for (error, part) in [
        (exec("", true, false, false).await, "cmd"),
        (exec("true", false, false, false).await, "stdin, stdout, stderr"),
        (exec("true", true, true, true).await, "stderr"),
    ] {
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains(part), "{error}");
    }
    for port in [0, -1, 65536] {
        let request = PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![80, port] };
        let error = node.runtime().port_forward(request).await.expect_err("refused");
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains("port[1]"), "{error}");
    }
    for (stdin, tty, part) in [(true, false, "stdin"), (false, true, "tty")] {
        let request = AttachRequest { container_id: id(), stdin, tty, stdout: true, stderr: false };
        let error = node.runtime().attach(request).await.expect_err("refused");
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        assert!(error.message().starts_with(part), "{error}");
    }
    c.stop(0).await.expect("StopContainer");
    let request = AttachRequest { container_id: id(), stdout: true, ..Default::default() };
    let error = node.runtime().attach(request).await.expect_err("it does not run");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_once_for_what_it_was_given_for_and_by_an_upgrade() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("tokens")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    let url = c.exec_url(&["true"]).await;
    let upgrade = websocket_headers("v5.channel.k8s.io");
    let status = |method: &str, url: &str, headers: &[(&str, &str)]| node.request(method, url, headers).0.status;
    // None of these uses it up.
    assert_eq!(status("PUT", &url, &upgrade), 405);
    assert_eq!(status("POST", &url, &upgrade), 405);
    assert_eq!(status("GET", &url, &[]), 426);
    assert_eq!(status("GET", &url, &[("connection", "upgrade"), ("upgrade", "h2c")]), 426);
    assert_eq!(status("GET", &url, &websocket_headers("v9.channel.k8s.io")), 403);
    let (refused, _) = node.spdy(&url, "v9.channel.k8s.io");
    assert_eq!(refused.status, 403);
    assert!(refused.head.to_lowercase().contains("x-accepted-stream-protocol-versions: v4.channel.k8s.io"));
    assert_eq!(status("GET", &url.replace("/exec/", "/attach/"), &upgrade), 404);
    assert_eq!(status("GET", &url.replace("/exec/", "/portforward/"), &upgrade), 404);
    assert_eq!(status("GET", &url.replace("/exec/", "/run/"), &upgrade), 404);
    let (address, _) = parts(&url);
    assert_eq!(status("GET", &format!("http://{address}/exec/{}", "0".repeat(64)), &upgrade), 404);
    assert_eq!(status("GET", &format!("http://{address}/exec/"), &upgrade), 404);
    // This does.
    let mut client = node.websocket(&url, "v5.channel.k8s.io");
    assert!(String::from_utf8_lossy(&client.receive_all()[usize::from(ERROR)]).contains("Success"));
    assert_eq!(status("GET", &url, &upgrade), 404);
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_a_stream_is_hung_up_on_and_ends_its_exec() {
    // It is not given up for want of streams: that would take longer than anybody waits here.
    let node = Node::start().await;
    let pod = node.run_pod(pod("garbage")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    let before = node.daemon_memory();
    let settings = [&[0x80, 3, 0, 4, 0, 0, 0, 4][..], &[0xff; 4]].concat();
    let header_block_of_nothing = [&[0x80, 3, 0, 1, 0, 0, 0, 14][..], &[0, 0, 0, 1], &[0; 6], b"junk"].concat();
    let stream_nobody_opened = [&[0, 0, 0, 9, 0, 0, 0, 4][..], b"data"].concat();
    let endless_frame = vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff];
    let noise: Vec<u8> = (0..100_000_u32).map(|n| (n.wrapping_mul(n) % 251) as u8).collect();
    for (name, bytes) in [
        ("settings", settings),
        ("a header block of nothing", header_block_of_nothing),
        ("a stream that nobody opened", stream_nobody_opened),
        ("an endless frame", endless_frame),
        ("noise", noise),
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
    ] {
        let (answer, mut stream) = node.spdy(&c.exec_url(&["sleep", "600"]).await, "v4.channel.k8s.io");
        assert_eq!(answer.status, 101, "{}", answer.head);
        // It may be hung up on before it has sent everything.
        let _ = stream.write_all(&bytes);
        let told = to_the_end(stream);
        assert!(is_told(&told), "{name}: it is told {told:x?}");
    }
    // WebSocket: an exec that has begun ends with a client that breaks the rules.
    let sleepers = || node.enclosure().running("sleep 600");
    for first in [0xc2, 0x83, 0x80] {
        let mut client = node.websocket(&c.exec_url(&["sleep", "600"]).await, "v5.channel.k8s.io");
        until("the exec runs", 15, async || sleepers() == 1).await;
        client.send_frame(first, b"x");
        assert_eq!(client.receive_all()[usize::from(STDOUT)], b"");
        until("the exec ends", 15, async || sleepers() == 0).await;
    }
    assert!(node.daemon_memory() < before + (16 << 20), "{} MiB more", (node.daemon_memory() - before) >> 20);
    assert_eq!(c.shell("echo well").await, "well\n");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_opens_no_stream_is_given_up() {
    let config = "[streaming]\nlisten = \"127.0.0.1:10010\"\ncreation_timeout_s = 1\n";
    let node = Node::start_with(Options { config: config.into(), ..Default::default() }).await;
    let pod = node.run_pod(pod("patient")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    let (_, stream) = node.spdy(&c.exec_url(&["sleep", "600"]).await, "v4.channel.k8s.io");
    to_the_end(stream);
    assert_eq!(node.enclosure().running("sleep 600"), 0);
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_streams_is_refused_and_hung_up_on() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("flood")).await;
    let (answer, mut stream) = node.spdy(&forward_url(&node, &pod).await, "portforward.k8s.io");
    assert_eq!(answer.status, 101, "{}", answer.head);
    let before = node.daemon_memory();
    let mut reading = stream.try_clone().expect("another descriptor");
    let answers = std::thread::spawn(move || {
        let mut all = Vec::new();
        let _ = reading.read_to_end(&mut all);
        all
    });
    for n in 0..200_000_u32 {
        let id = n.to_string();
        let frame = syn_stream(2 * n + 1, &[("streamtype", "error"), ("requestid", &id)], n == 0);
        if stream.write_all(&frame).is_err() {
            break;
        }
    }
    let answers = answers.join().expect("no panic");
    assert!(is_told(&answers), "{} bytes of answers", answers.len());
    assert!(node.daemon_memory() < before + (16 << 20), "{} MiB more", (node.daemon_memory() - before) >> 20);
    drop(stream);
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_tls_a_client_needs_a_certificate_of_the_configured_ca() {
    let dir = tempfile::tempdir_in("/tmp").expect("a directory");
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("write a PEM file");
        path.to_str().expect("UTF-8").to_owned()
    };
    let mut authority = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().expect("a key");
    let ca = file("ca.pem", authority.self_signed(&key).expect("a certificate").pem());
    let issuer = rcgen::Issuer::new(authority, key);
    let signed = |name: &str| {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        (file(&format!("{name}.pem"), certificate.pem()), file(&format!("{name}.key"), key.serialize_pem()))
    };
    let ((server, server_key), (client, client_key)) = (signed("server"), signed("client"));
    let config = format!(
        "[streaming]\nlisten = \"127.0.0.1:10010\"\ntls_cert = {server:?}\ntls_key = {server_key:?}\nclient_ca = {ca:?}\n"
    );
    let node = Node::start_with(Options { config, ..Default::default() }).await;
    let pod = node.run_pod(pod("tls")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    for transport in ["spdy", "websocket"] {
        let exec = |more: &[&str]| {
            let mut arguments = vec!["exec", "-r", transport, "--tls-ca", &ca];
            arguments.extend(more);
            arguments.extend([&c.id, "echo", "hello"]);
            node.crictl_command(&arguments).stderr(Stdio::piped()).output().expect("run nsenter")
        };
        let known = exec(&["--tls-cert", &client, "--tls-key", &client_key]);
        assert_eq!(String::from_utf8_lossy(&known.stdout), "hello\n", "{transport}: {known:?}");
        let unknown = exec(&[]);
        assert!(!unknown.status.success() && unknown.stdout.is_empty(), "{transport}: {unknown:?}");
    }
    pod.end().await;
    node.assert_nothing_left();
}
