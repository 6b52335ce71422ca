//! A request that cannot be served answers with the right code, names the object, the step and the cause, and leaves
//! nothing behind.

use berth_api::cri::{
    CreateContainerRequest, ImageSpec, Int64Value, LinuxPodSandboxConfig, Mount, PortMapping, PullImageRequest,
    RunPodSandboxRequest,
};
use berth_test::cri::script;
use berth_test::{Node, pod};
use tonic::{Code, Status};

/// On berth the code and every part of the message; on the runtime that a test is proven against, that it is refused.
fn is_refused(node: &Node, what: &str, answer: Result<impl Sized, Status>, codes: &[Code], parts: &[&str]) {
    let Err(error) = answer else { panic!("{what} is not refused") };
    if node.is_berth() {
        assert!(codes.contains(&error.code()), "{what}: {error}");
        for part in parts {
            assert!(error.message().contains(part), "{what}: the message does not name {part:?}: {}", error.message());
        }
    }
}

#[tokio::test]
async fn bad_pods_are_refused_with_the_field_and_leave_nothing() {
    let node = Node::start().await;
    let missing = RunPodSandboxRequest::default();
    let answer = node.runtime().run_pod_sandbox(missing).await;
    is_refused(&node, "no config", answer, &[Code::InvalidArgument], &["config"]);

    let mut config = pod("nameless");
    config.metadata = None;
    config.log_directory = node.dir().to_str().expect("UTF-8").into();
    let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
    let answer = node.runtime().run_pod_sandbox(request).await;
    is_refused(&node, "no metadata", answer, &[Code::InvalidArgument], &["config.metadata"]);

    let mut config = pod("handler");
    config.log_directory = node.dir().to_str().expect("UTF-8").into();
    let request = RunPodSandboxRequest { config: Some(config), runtime_handler: "no-such-handler".into() };
    let answer = node.runtime().run_pod_sandbox(request).await;
    is_refused(&node, "unknown handler", answer, &[Code::NotFound, Code::InvalidArgument], &["no-such-handler"]);

    let mut config = pod("sysctl");
    let sysctls = [("net.ipv4.no_such_setting".to_owned(), "1".to_owned())].into();
    config.linux = Some(LinuxPodSandboxConfig { sysctls, ..Default::default() });
    let answer = node.try_run_pod(config).await;
    is_refused(&node, "unknown sysctl", answer, &[Code::InvalidArgument], &["net.ipv4.no_such_setting"]);

    let mut config = pod("foreign-sysctl");
    let sysctls = [("vm.swappiness".to_owned(), "10".to_owned())].into();
    config.linux = Some(LinuxPodSandboxConfig { sysctls, ..Default::default() });
    if node.is_berth() {
        let answer = node.try_run_pod(config).await;
        is_refused(&node, "sysctl of the host", answer, &[Code::InvalidArgument], &["vm.swappiness"]);
    }

    let mut config = pod("parent");
    config.linux = Some(LinuxPodSandboxConfig { cgroup_parent: "/../../escape".into(), ..Default::default() });
    if node.is_berth() {
        let answer = node.try_run_pod(config).await;
        is_refused(&node, "cgroup parent", answer, &[Code::InvalidArgument], &["cgroup_parent", "/../../escape"]);
    }

    if node.is_berth() {
        let mut config = pod("logs");
        let file = node.dir().join("a-file");
        std::fs::write(&file, "").expect("write a-file");
        config.log_directory = file.join("logs").to_str().expect("UTF-8").into();
        let answer = node.try_run_pod(config).await;
        let codes = [Code::InvalidArgument, Code::FailedPrecondition];
        is_refused(&node, "log directory", answer, &codes, &["log", "a-file"]);

        let good = PortMapping { container_port: 80, host_port: 8080, ..Default::default() };
        for (mapping, field) in [
            (PortMapping { host_port: 65536, ..good.clone() }, "config.port_mappings[0].host_port"),
            (PortMapping { host_port: -1, ..good.clone() }, "config.port_mappings[0].host_port"),
            (PortMapping { container_port: 0, ..good.clone() }, "config.port_mappings[0].container_port"),
            (PortMapping { container_port: 70_000, ..good.clone() }, "config.port_mappings[0].container_port"),
            (PortMapping { protocol: 9, ..good.clone() }, "config.port_mappings[0].protocol"),
            (PortMapping { host_ip: "here".into(), ..good }, "config.port_mappings[0].host_ip"),
        ] {
            let mut config = pod("port");
            config.port_mappings = vec![mapping];
            let answer = node.try_run_pod(config).await;
            is_refused(&node, field, answer, &[Code::InvalidArgument], &[field]);
        }
    }
    node.assert_nothing_left();
}

#[tokio::test]
async fn bad_containers_are_refused_with_the_cause_and_leave_nothing() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("host")).await;
    node.remember();

    let request = CreateContainerRequest { pod_sandbox_id: pod.id.clone(), ..Default::default() };
    let answer = node.runtime().create_container(request).await;
    is_refused(&node, "no config", answer, &[Code::InvalidArgument], &["config"]);

    let mut config = script("c", "true");
    config.metadata = None;
    is_refused(&node, "no metadata", pod.try_create(config).await, &[Code::InvalidArgument], &["config.metadata"]);

    let mut config = script("c", "true");
    config.image = Some(ImageSpec { image: "registry.k8s.io/never-pulled:1".into(), ..Default::default() });
    is_refused(
        &node,
        "unknown image",
        pod.try_create(config).await,
        &[Code::NotFound],
        &["registry.k8s.io/never-pulled:1"],
    );

    let with_mount = |host: &str, container: &str| {
        let mut config = script("c", "true");
        config.mounts = vec![Mount { container_path: container.into(), host_path: host.into(), ..Default::default() }];
        config
    };
    if node.is_berth() {
        let answer = pod.try_create(with_mount("/no/such/source", "/x")).await;
        let codes = [Code::NotFound, Code::InvalidArgument, Code::FailedPrecondition];
        is_refused(&node, "mount source", answer, &codes, &["/no/such/source"]);
        let answer = pod.try_create(with_mount("/etc", "")).await;
        is_refused(&node, "mount target", answer, &[Code::InvalidArgument], &["mounts", "container_path"]);
    }

    let mut config = script("c", "true");
    let context = config.linux.as_mut().expect("linux").security_context.as_mut().expect("a context");
    context.run_as_username = "nobody-by-this-name".into();
    let answer = pod.try_create(config).await;
    let codes = [Code::InvalidArgument, Code::NotFound];
    is_refused(&node, "unknown user", answer, &codes, &["nobody-by-this-name", "/etc/passwd"]);

    let mut config = script("c", "true");
    let context = config.linux.as_mut().expect("linux").security_context.as_mut().expect("a context");
    context.run_as_group = Some(Int64Value { value: 1000 });
    is_refused(&node, "group without user", pod.try_create(config).await, &[Code::InvalidArgument], &["run_as_group"]);

    // Nothing of them is left, and the pod still takes a good one.
    node.assert_nothing_left();
    let c = pod.run(script("c", "echo fine")).await;
    assert_eq!(c.said().await, "fine\n");
    pod.end().await;
}

#[tokio::test]
async fn bad_images_are_refused_with_reference_and_cause() {
    let node = Node::start().await;
    let pull = async |reference: &str| {
        let image = ImageSpec { image: reference.into(), ..Default::default() };
        node.images().pull_image(PullImageRequest { image: Some(image), ..Default::default() }).await
    };
    let bad = [Code::InvalidArgument];
    is_refused(&node, "no image", node.images().pull_image(PullImageRequest::default()).await, &bad, &["image"]);
    for reference in
        ["registry.k8s.io/UPPER:1", "registry.k8s.io/a b", "registry.k8s.io/x:", "registry.k8s.io/x@sha256:12"]
    {
        is_refused(&node, reference, pull(reference).await, &bad, &[reference]);
    }
    for missing in ["127.0.0.1:5000/no-such-image:1", "127.0.0.1:5000/busybox:no-such-tag"] {
        is_refused(&node, missing, pull(missing).await, &[Code::NotFound], &[missing]);
    }
    // The mirror does not have it and the host itself, which might, cannot be reached: both are said.
    let missing = "registry.k8s.io/no-such-image:1";
    is_refused(&node, missing, pull(missing).await, &[Code::Unavailable], &[missing, "RegistryUnavailable", "404"]);
    node.assert_nothing_left();
}

#[tokio::test]
async fn an_unreachable_registry_is_unavailable_and_named() {
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    node.enclosure().shell(&format!("kill $(cat {}/registry.pid)", node.dir().display()));
    let image = ImageSpec { image: "registry.k8s.io/pause:3.9".into(), ..Default::default() };
    let answer = node.images().pull_image(PullImageRequest { image: Some(image), ..Default::default() }).await;
    is_refused(&node, "registry gone", answer, &[Code::Unavailable], &["registry.k8s.io/pause:3.9", "127.0.0.1:5000"]);
}

#[tokio::test]
async fn a_broken_network_configuration_is_named_by_file_and_key() {
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let file = node.dir().join("net.d/10-broken.conflist");
    std::fs::write(&file, r#"{"cniVersion":"1.0.0","name":"broken","plugins":[{"type":"bridge","isGatway":true}]}"#)
        .expect("write a conflist");
    let answer = node.try_run_pod(pod("broken")).await;
    is_refused(
        &node,
        "unknown key",
        answer,
        &[Code::FailedPrecondition, Code::InvalidArgument, Code::Internal],
        &["isGatway"],
    );
    std::fs::write(&file, "{ not json").expect("write a conflist");
    let answer = node.try_run_pod(pod("broken")).await;
    is_refused(&node, "not JSON", answer, &[Code::FailedPrecondition, Code::Unavailable], &["10-broken.conflist"]);
    std::fs::remove_file(&file).expect("remove the conflist");
    node.assert_nothing_left();
    node.run_pod(pod("mended")).await.end().await;
}
