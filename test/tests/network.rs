//! What a pod's network is to its containers: one address, one localhost, a way to other pods.

use berth_api::cri::{DnsConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PortMapping};
use berth_test::cri::script;
use berth_test::{Node, pod};
use tonic::Code;

const SERVE: &str = "mkdir /www; echo \"from $(hostname)\" >/www/reply; exec httpd -f -p 8080 -h /www";

fn ask(address: &str) -> String {
    format!(
        "n=0; until wget -q -O - http://{address}:8080/reply; do n=$((n+1)); [ $n -lt 50 ] || exit 1; sleep 0.1; done"
    )
}

#[tokio::test]
async fn containers_of_a_pod_talk_over_localhost_and_pods_over_the_bridge() {
    let node = Node::start().await;
    let (web, client) = (node.run_pod(pod("web")).await, node.run_pod(pod("client")).await);
    web.run(script("server", SERVE)).await;
    let neighbour = web.run(script("neighbour", &ask("127.0.0.1"))).await;
    let visitor = client.run(script("visitor", &ask(&web.ip().await))).await;
    for container in [&neighbour, &visitor] {
        assert_eq!(container.ended().await.exit_code, 0);
        assert_eq!(container.logged("stdout"), "from web\n");
    }
    // The pod reaches itself by its own address as well.
    let own = web.run(script("own", &ask(&web.ip().await))).await;
    assert_eq!(own.ended().await.exit_code, 0);
    // And the host of the node reaches the pod.
    let address = web.ip().await;
    let connect = format!("bash -c 'exec 3<>/dev/tcp/{address}/8080'");
    node.enclosure().shell(&connect);
    for pod in [web, client] {
        pod.end().await;
    }
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_published_port_is_the_pods_until_it_stops_and_a_second_one_is_told_whose() {
    let node = Node::start().await;
    let published = |name: &str| {
        let mut config = pod(name);
        config.port_mappings = vec![PortMapping { host_port: 8088, container_port: 8080, ..Default::default() }];
        config
    };
    let web = node.run_pod(published("web")).await;
    web.run(script("server", SERVE)).await;
    let reached = "for n in $(seq 50); do wget -q -O - http://127.0.0.1:8088/reply && exit; sleep 0.1; done; exit 1";
    assert_eq!(
        node.enclosure().shell(&format!("busybox sh -c '{}'", reached.replace("wget", "busybox wget"))),
        "from web\n"
    );
    // A visitor of the same node, by an address of the host.
    let client = node.run_pod(pod("client")).await;
    let gateway = "$(ip route | sed -n 's/^default via \\([^ ]*\\) .*/\\1/p')";
    let visitor = client.run(script("visitor", &reached.replace("127.0.0.1", gateway))).await;
    assert_eq!(visitor.ended().await.exit_code, 0);
    assert_eq!(visitor.logged("stdout"), "from web\n");
    node.remember();
    let refused = node.try_run_pod(published("second")).await.err().expect("the port is taken");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    for name in ["8088/tcp", "test/web", &web.id] {
        assert!(refused.message().contains(name), "{name} is not in: {refused}");
    }
    assert_eq!(node.leaks(), Vec::<String>::new());
    // Nobody's once the pod is stopped, not only removed.
    web.stop().await.expect("stop");
    let second = node.run_pod(published("second")).await;
    for pod in [web, client, second] {
        pod.end().await;
    }
}

#[tokio::test]
async fn a_pod_has_its_interface_route_hostname_and_resolver() {
    let node = Node::start().await;
    let mut config = pod("named");
    config.dns_config = Some(DnsConfig {
        servers: vec!["10.10.10.10".into()],
        searches: vec!["svc.example".into()],
        options: vec!["ndots:5".into()],
    });
    let pod = node.run_pod(config).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    assert_eq!(c.shell("hostname").await, "named\n");
    assert_eq!(c.shell("cat /etc/hostname").await, "named\n");
    assert_eq!(c.shell("cat /etc/resolv.conf").await, "search svc.example\nnameserver 10.10.10.10\noptions ndots:5\n");
    let ip = pod.ip().await;
    assert!(c.shell("ip -4 -o address show dev eth0").await.contains(&format!(" {ip}/")));
    assert!(c.shell("ip route").await.starts_with("default via "));
    assert!(c.shell("ip -o link show dev lo").await.contains("UP"));
    if node.is_berth() {
        assert!(c.shell("cat /etc/hosts").await.contains("127.0.0.1\tlocalhost"));
    }
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_pod_in_the_hosts_network_has_no_address_of_its_own() {
    let node = Node::start().await;
    // A host may learn its name after the daemon has begun.
    node.enclosure().shell("hostname renamed");
    let mut config = pod("host");
    config.hostname = String::new();
    config.linux.as_mut().expect("linux").security_context = Some(LinuxSandboxSecurityContext {
        namespace_options: Some(NamespaceOption { network: NamespaceMode::Node.into(), ..Default::default() }),
        ..Default::default()
    });
    let pod = node.run_pod(config.clone()).await;
    let mut container = script("c", "exec sleep 1000");
    container.linux.as_mut().expect("linux").security_context = Some(berth_api::cri::LinuxContainerSecurityContext {
        namespace_options: Some(NamespaceOption { network: NamespaceMode::Node.into(), ..Default::default() }),
        ..Default::default()
    });
    let c = pod.run(container).await;
    let host = node.enclosure().shell("readlink /proc/self/ns/net");
    assert_eq!(c.shell("readlink /proc/self/ns/net").await, host);
    assert_eq!(c.shell("hostname; cat /etc/hostname; echo $HOSTNAME").await, "renamed\nrenamed\nrenamed\n");
    assert_eq!(pod.status().await.network.unwrap_or_default().ip, "");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn check_tells_of_a_policy_that_keeps_pods_from_the_world() {
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let check = || {
        let (berthd, dir) = (berth_test::cli::berth().with_file_name("berthd"), node.dir().display());
        let arguments = format!("--config {dir}/config.toml --data-root {dir}/data --run-root {dir}/run");
        node.enclosure().shell(&format!("{} check {arguments}", berthd.display()))
    };
    assert!(check().contains("no packet filter drops it by policy"), "{}", check());
    node.enclosure().shell("iptables -N DOCKER-USER && iptables -P FORWARD DROP");
    let bridge = format!("berth-{}", node.tag());
    assert!(check().contains(&format!("run: iptables -I DOCKER-USER -i {bridge} -j ACCEPT")), "{}", check());
    node.enclosure().shell("iptables -P FORWARD ACCEPT && iptables -X DOCKER-USER");
    assert!(check().contains("no packet filter drops it by policy"), "{}", check());
}
