//! Exec by the older protocols of clients: what each knows of the exit code, of terminals and of how bytes are written.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use berth_test::cri::script;
use berth_test::{Node, pod, spdy, stream};
use serde_json::{Value, json};

/// What a command is given and gives back: every byte there is.
fn bytes() -> Vec<u8> {
    (0..=255).collect()
}

/// Gives back what it is given, says something of its own, and ends with this code.
fn echo(code: u32) -> String {
    format!("head -c 256; echo err >&2; exit {code}")
}

/// The word at the end is as clients of this protocol read it: since version 4 an object, before it the error's text, and
/// silence for success.
fn assert_ended(protocol: &str, code: u32, word: &[u8]) {
    let told = format!("command terminated with exit code {code}");
    if !["v4.", "v5."].iter().any(|version| protocol.starts_with(version)) {
        let expected = if code == 0 { String::new() } else { told };
        return assert_eq!(String::from_utf8_lossy(word), expected, "{protocol}");
    }
    let status: Value = serde_json::from_slice(word).unwrap_or_else(|e| panic!("{protocol}: {e}: {word:?}"));
    if code == 0 {
        return assert_eq!(status["status"], "Success", "{protocol}: {status}");
    }
    let expected = json!({"causes": [{"reason": "ExitCode", "message": code.to_string()}]});
    assert_eq!((&status["reason"], &status["details"]), (&json!("NonZeroExitCode"), &expected), "{protocol}: {status}");
    assert_eq!((&status["status"], &status["message"]), (&json!("Failure"), &json!(told)), "{protocol}: {status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_version_over_spdy_has_both_outputs_and_its_own_word_for_the_end() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("spdy")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    for protocol in
        ["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"]
    {
        for code in [7, 0] {
            let url = c.exec_url(&["sh", "-c", &echo(code)]).await;
            let mut client = node.spdy_streams(&url, protocol, &["error", "stdin", "stdout", "stderr"]);
            client.send(&bytes());
            client.end();
            let all = client.receive_all();
            assert_eq!(all[&spdy::STDOUT], bytes(), "{protocol}");
            assert_eq!(all[&spdy::STDERR], b"err\n", "{protocol}");
            assert_ended(protocol, code, &all[&spdy::ERROR]);
        }
    }
    // What could not be done is told in words, too.
    let url = c.exec_url(&["/no/such/program"]).await;
    let word = node.spdy_streams(&url, "v2.channel.k8s.io", &["error", "stdin", "stdout", "stderr"]).rest(spdy::ERROR);
    let word = String::from_utf8_lossy(&word);
    assert!(word.contains("/no/such/program") && !word.starts_with('{'), "{word}");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_resized_since_version_3_and_needs_no_such_stream_before() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("tty")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    // Where a terminal's output goes, and where its sizes come.
    let (stdout, resize) = (spdy::STDOUT, spdy::STDERR);
    for protocol in ["channel.k8s.io", "v2.channel.k8s.io"] {
        let url = c.exec_url_on(&["sh", "-c", "tty; exit 7"], true).await;
        let all = node.spdy_streams(&url, protocol, &["error", "stdin", "stdout"]).receive_all();
        assert_eq!(String::from_utf8_lossy(&all[&stdout]), "/dev/pts/0\r\n", "{protocol}");
        assert_ended(protocol, 7, &all[&spdy::ERROR]);
    }
    for protocol in ["v3.channel.k8s.io", "v4.channel.k8s.io"] {
        // A terminal that has no size yet is an error to this stty.
        let resized = "until [ \"$(stty size 2>&1)\" = '33 111' ]; do sleep 0.05; done; echo resized; exit 7";
        let url = c.exec_url_on(&["sh", "-c", resized], true).await;
        let mut client = node.spdy_streams(&url, protocol, &["error", "stdin", "stdout", "resize"]);
        client.send_on(resize, br#"{"Width":111,"Height":33}"#);
        let all = client.receive_all();
        assert_eq!(String::from_utf8_lossy(&all[&stdout]), "resized\r\n", "{protocol}");
        assert_ended(protocol, 7, &all[&spdy::ERROR]);
    }
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_version_over_websocket_has_both_outputs_and_its_own_word_for_the_end() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("websocket")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    for protocol in [
        "v5.channel.k8s.io",
        "v4.channel.k8s.io",
        "v4.base64.channel.k8s.io",
        "channel.k8s.io",
        "base64.channel.k8s.io",
    ] {
        let base64 = protocol.contains("base64");
        for code in [7, 0] {
            let mut client = node.websocket(&c.exec_url(&["sh", "-c", &echo(code)]).await, protocol);
            if base64 {
                client.send_frame(0x81, format!("0{}", STANDARD.encode(bytes())).as_bytes());
            } else {
                client.send(stream::STDIN, &bytes());
            }
            let mut all: [Vec<u8>; 4] = Default::default();
            while let Some((is_text, message)) = client.receive_message() {
                assert_eq!(is_text, base64, "{protocol}");
                let (channel, content) = match base64 {
                    true => (message[0] - b'0', STANDARD.decode(&message[1..]).expect("base64")),
                    false => (message[0], message[1..].to_vec()),
                };
                all[usize::from(channel)].extend(content);
            }
            assert_eq!(all[usize::from(stream::STDOUT)], bytes(), "{protocol}");
            assert_eq!(all[usize::from(stream::STDERR)], b"err\n", "{protocol}");
            assert_ended(protocol, code, &all[usize::from(stream::ERROR)]);
        }
    }
    pod.end().await;
    node.assert_nothing_left();
}
