//! Published ports, on a real kernel: who reaches a pod by a port of the host, who may not, and who is told that it is
//! taken.

mod host;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use host::{Call, Host};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

/// How long a packet that is dropped is waited for.
const DROPPED: Duration = Duration::from_millis(500);
const LONG: Duration = Duration::from_secs(5);

/// Runs something on a thread of its own inside a namespace.
fn inside<T: Send + 'static>(host: &Host, namespace: &str, deed: impl FnOnce() -> T + Send + 'static) -> T {
    let path = host.path(namespace);
    let thread = thread::spawn(move || {
        setns(File::open(path).unwrap().as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
        deed()
    });
    thread.join().unwrap()
}

/// A host with a world outside, which has no route to pods, and a pod that answers at TCP and UDP 80 with who asked.
fn host_and_world() -> Host {
    let host = Host::new();
    host.namespace("world");
    host.run("world", "ip link set lo up");
    let world = host.path("world").display().to_string();
    host.run("host", &format!("ip link add out type veth peer name in netns {world} && ip link set out up"));
    host.run("host", "ip address add 192.0.2.1/24 dev out && ip address add fd00:99::1/64 dev out nodad");
    host.run(
        "world",
        "ip link set in up && ip address add 192.0.2.2/24 dev in && ip address add fd00:99::2/64 dev in nodad",
    );
    host.namespace("a");
    host
}

fn serve(host: &Host, namespace: &str) {
    let (tcp, udp) =
        inside(host, namespace, || (TcpListener::bind("[::]:80").unwrap(), UdpSocket::bind("[::]:80").unwrap()));
    thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip().to_canonical();
            stream.write_all(format!("you are {peer}").as_bytes()).unwrap();
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 100];
        while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
            udp.send_to(format!("you are {}", peer.ip().to_canonical()).as_bytes(), peer).unwrap();
        }
    });
}

/// What the other side says over TCP; `None` when nobody answers.
fn tcp(host: &Host, from: &str, to: &str) -> Option<String> {
    ask_tcp(host, from, to, LONG)
}

fn ask_tcp(host: &Host, from: &str, to: &str, patience: Duration) -> Option<String> {
    let to: SocketAddr = to.parse().unwrap();
    inside(host, from, move || {
        let mut stream = TcpStream::connect_timeout(&to, patience).ok()?;
        stream.set_read_timeout(Some(patience)).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    })
}

fn udp(host: &Host, from: &str, to: &str) -> Option<String> {
    let to: SocketAddr = to.parse().unwrap();
    inside(host, from, move || {
        let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        socket.connect(to).unwrap();
        socket.send(b"hello").unwrap();
        let mut buffer = [0; 100];
        let n = socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..n]).into_owned())
    })
}

fn publishing<'a>(host: &'a Host, verb: &str, pod: &str, mappings: Value) -> Call<'a> {
    let call = host.bridge(verb, pod).with("runtimeConfig", json!({ "portMappings": mappings }));
    call.env("CNI_ARGS", &format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-{pod}"))
}

fn web() -> Value {
    json!([{"hostPort": 8080, "containerPort": 80}, {"hostPort": 8080, "containerPort": 80, "protocol": "udp"}])
}

#[test]
fn a_published_port_is_reached_from_everywhere_over_both_protocols_and_families() {
    let host = host_and_world();
    publishing(&host, "ADD", "a", web()).ok();
    host.add("b");
    serve(&host, "a");
    for (from, to, seen) in [
        ("world", "192.0.2.1:8080", "192.0.2.2"),
        ("world", "[fd00:99::1]:8080", "fd00:99::2"),
        ("host", "192.0.2.1:8080", "192.0.2.1"),
        ("host", "10.88.0.1:8080", "10.88.0.1"),
        ("host", "[fd00:99::1]:8080", "fd00:99::1"),
        // These would answer past the host.
        ("host", "127.0.0.1:8080", "10.88.0.1"),
        ("b", "192.0.2.1:8080", "10.88.0.1"),
        ("b", "[fd00:99::1]:8080", "fd00:88::1"),
        ("a", "192.0.2.1:8080", "10.88.0.1"),
    ] {
        let expected = Some(format!("you are {seen}"));
        assert_eq!(tcp(&host, from, to), expected, "TCP from {from} to {to}");
        assert_eq!(udp(&host, from, to), expected, "UDP from {from} to {to}");
    }
    // A port of somebody else's host, which this one only forwards to, is not ours.
    host.run("b", "ip address add 192.0.2.99/32 dev lo");
    host.run("host", "ip route add 192.0.2.99 via 10.88.0.3");
    assert_eq!(ask_tcp(&host, "world", "192.0.2.99:8080", DROPPED), None);
}

#[test]
fn a_port_of_one_address_is_published_there_alone() {
    let host = host_and_world();
    host.run("host", "ip address add 192.0.2.9/32 dev out");
    let one = |address: &str| json!([{"hostPort": 8080, "containerPort": 80, "hostIP": address}]);
    publishing(&host, "ADD", "a", one("192.0.2.9")).ok();
    serve(&host, "a");
    assert!(tcp(&host, "world", "192.0.2.9:8080").is_some());
    assert_eq!(ask_tcp(&host, "world", "192.0.2.1:8080", DROPPED), None);
    assert_eq!(ask_tcp(&host, "host", "127.0.0.1:8080", DROPPED), None);
    host.namespace("b");
    publishing(&host, "ADD", "b", one("127.0.0.1")).ok();
    serve(&host, "b");
    assert!(tcp(&host, "host", "127.0.0.1:8080").is_some());
    assert_eq!(ask_tcp(&host, "world", "192.0.2.1:8080", DROPPED), None);
}

#[test]
fn a_port_that_is_taken_is_refused_with_its_holder() {
    let host = host_and_world();
    publishing(&host, "ADD", "a", web()).ok();
    host.namespace("b");
    for address in ["", "192.0.2.1", "::"] {
        let mapping = json!([{"hostPort": 8080, "containerPort": 80, "hostIP": address}]);
        let (code, message) = publishing(&host, "ADD", "b", mapping).error();
        assert_eq!(code, 48_642, "{message}");
        assert!(message.contains(":8080/tcp is held by pod default/pod-a (a)"), "{message}");
    }
    assert_eq!(host.leases(), ["10.88.0.2", "fd00:88::2", "owners/a,eth0"], "b has given its addresses back");
    // A process of the host.
    let listener = inside(&host, "host", || TcpListener::bind("127.0.0.1:9090").unwrap());
    let mapping = json!([{"hostPort": 9090, "containerPort": 80}]);
    let (_, message) = publishing(&host, "ADD", "b", mapping.clone()).error();
    assert!(message.contains(&format!("held by the host's process {} (ports-", std::process::id())), "{message}");
    drop(listener);
    publishing(&host, "ADD", "b", mapping).ok();
    // The holder goes: its port is free.
    publishing(&host, "DEL", "a", web()).ok();
    host.namespace("c");
    publishing(&host, "ADD", "c", web()).ok();
}

#[test]
fn del_and_gc_withdraw_and_a_repeated_add_changes_nothing() {
    let host = host_and_world();
    let result = publishing(&host, "ADD", "a", web()).result();
    assert_eq!(host.published(), 4);
    assert_eq!(publishing(&host, "ADD", "a", web()).result(), result);
    assert_eq!(host.published(), 4);
    let check = publishing(&host, "CHECK", "a", web()).with("prevResult", result.to_value("1.1.0".parse().unwrap()));
    check.ok();
    host.run("host", "nft flush map inet berth-test ports4");
    let (_, message) = check.error();
    assert!(message.contains("host port 0.0.0.0:8080/tcp is not published"), "{message}");
    publishing(&host, "ADD", "a", web()).ok();
    check.ok();
    // Other mappings replace the old ones.
    publishing(&host, "ADD", "a", json!([{"hostPort": 8081, "containerPort": 80}])).ok();
    assert_eq!(host.published(), 2);
    publishing(&host, "DEL", "a", web()).ok();
    publishing(&host, "DEL", "a", web()).ok();
    assert_eq!(host.published(), 0);
    publishing(&host, "ADD", "a", web()).ok();
    host.bridge("GC", "").with("cni.dev/valid-attachments", json!([])).ok();
    assert_eq!(host.published(), 0);
    assert_eq!(host.leases(), Vec::<String>::new());
}

/// What listens on the host's 127.0.0.1 is the host's, although the bridge lets packets of that address through.
#[test]
fn a_pod_does_not_reach_the_hosts_loopback() {
    let host = host_and_world();
    publishing(&host, "ADD", "a", web()).ok();
    assert_eq!(host.run("host", "cat /proc/sys/net/ipv4/conf/berth-test/route_localnet").trim(), "1");
    serve(&host, "host");
    host.run("a", "sysctl -qw net.ipv4.conf.all.route_localnet=1");
    host.run(
        "a",
        "ip route del local 127.0.0.0/8 table local dev lo; ip route del local 127.0.0.1 table local dev lo; true",
    );
    host.run("a", "ip route add 127.0.0.1 via 10.88.0.1 src 10.88.0.2");
    assert_eq!(ask_tcp(&host, "a", "127.0.0.1:80", DROPPED), None);
    // It is the guard that keeps it from there.
    host.run("host", "nft flush chain inet berth-test guard-berth-test");
    assert_eq!(tcp(&host, "a", "127.0.0.1:80"), Some("you are 10.88.0.2".into()));
}
