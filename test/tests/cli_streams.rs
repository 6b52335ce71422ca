//! `berth exec`, `attach` and `port-forward`: streams on the command line.

use std::process::{Command, Stdio};

use berth_test::cli::fed;
use berth_test::cri::script;
use berth_test::node::Options;
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
    // Its size comes behind its beginning, and is waited for, but not for ever.
    let sized = "tty; n=0; until stty size 2>&1 | grep -q \"44 123\" || [ $((n += 1)) = 300 ]; do sleep 0.05; done; \
                 stty size; exit 5";
    let berth = node.berth_command(&["exec", "-i", "-t", &c.id, "sh", "-c", sized]);
    let words: Vec<_> = std::iter::once(berth.get_program())
        .chain(berth.get_args())
        .map(|word| format!("'{}'", word.to_str().expect("UTF-8")))
        .collect();
    let line = format!("stty rows 44 cols 123; {}", words.join(" "));
    let output =
        Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).output().expect("script");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let said_all = ["/dev/pts/0\r\n", "44 123\r\n"].iter().all(|line| said.contains(line));
    assert!(said_all && output.status.code() == Some(5), "{output:?}");
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
    pod.run(script("c", servers)).await.listens(&[8081, 8082]).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn streams_go_by_tls_with_crictls_flags() {
    let dir = tempfile::tempdir_in("/tmp").expect("a directory");
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("write a PEM file");
        path.to_str().expect("UTF-8").to_owned()
    };
    let authority = |name: &str| {
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = file(name, params.self_signed(&key).expect("a certificate").pem());
        (certificate, rcgen::Issuer::new(params, key))
    };
    let ((ca, issuer), (other_ca, other)) = (authority("ca.pem"), authority("other.pem"));
    let signed = |name: &str, issuer: &rcgen::Issuer<'_, rcgen::KeyPair>| {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["node.test".to_owned()]).expect("parameters");
        let certificate = params.signed_by(&key, issuer).expect("a certificate");
        (file(&format!("{name}.pem"), certificate.pem()), file(&format!("{name}.key"), key.serialize_pem()))
    };
    let ((server, server_key), (client, client_key)) = (signed("server", &issuer), signed("client", &issuer));
    let (stranger, stranger_key) = signed("stranger", &other);
    let known = ["--tls-cert", &client, "--tls-key", &client_key];
    for asks_clients in [false, true] {
        let client_ca = if asks_clients { format!("client_ca = {ca:?}\n") } else { String::new() };
        let config = format!(
            "[streaming]\nlisten = \"127.0.0.1:10010\"\ntls_cert = {server:?}\ntls_key = {server_key:?}\n{client_ca}"
        );
        let node = Node::start_with(Options { config, ..Default::default() }).await;
        let pod = node.run_pod(pod("tls")).await;
        let c = pod.run(script("c", "exec sleep 1000")).await;
        let exec = |flags: &[&str]| {
            let input = b"through TLS\n".repeat(100_000);
            let arguments = [&["exec", "-i"], flags, &[&c.id, "cat"]].concat();
            let output = fed(node.berth_command(&arguments), &input);
            (output.status.success() && output.stdout == input, String::from_utf8_lossy(&output.stderr).into_owned())
        };
        let named = ["--tls-sni", "node.test", "--tls-ca", &ca];
        // Without flags the server is taken as it is, and a server that asks for a certificate takes nobody.
        assert_eq!(exec(&[]).0, !asks_clients);
        assert_eq!(exec(&named).0, !asks_clients);
        assert_eq!(exec(&[&named[..], &known].concat()), (true, String::new()));
        let strange = ["--tls-cert", &stranger, "--tls-key", &stranger_key];
        assert_eq!(exec(&[&named[..], &strange].concat()).0, !asks_clients);
        // It is not who it should be: another's name, another's signature.
        for wrong in [["--tls-sni", "localhost", "--tls-ca", &ca], ["--tls-sni", "node.test", "--tls-ca", &other_ca]] {
            let (done, why) = exec(&[&wrong[..], &known].concat());
            assert!(!done && why.contains("certificate"), "{why}");
        }
        let (done, why) = exec(&["--tls-cert", &client]);
        assert!(!done && why.contains("--tls-key"), "{why}");
        pod.end().await;
        node.assert_nothing_left();
    }
}
