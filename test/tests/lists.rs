//! Lists and the node's own status wait for nobody: not for a pod that hangs, and not behind any number of calls that do.

use berth_api::cri::*;
use berth_test::cri::script;
use berth_test::{Node, pod, until};

/// Asks everything that only reads, each of which must be answered; gives the pods and the containers listed.
async fn ask_everything(node: &Node) -> (usize, usize) {
    let mut runtime = node.runtime();
    runtime.version(VersionRequest::default()).await.expect("Version");
    runtime.runtime_config(RuntimeConfigRequest::default()).await.expect("RuntimeConfig");
    let status = runtime.status(StatusRequest::default()).await.expect("Status").into_inner();
    assert!(status.status.unwrap_or_default().conditions.iter().any(|c| c.r#type == "RuntimeReady" && c.status));
    let pods = runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.expect("ListPodSandbox").into_inner();
    for pod in &pods.items {
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: false };
        runtime.pod_sandbox_status(request).await.expect("PodSandboxStatus");
    }
    let listed = runtime.list_containers(ListContainersRequest::default()).await.expect("ListContainers").into_inner();
    for container in &listed.containers {
        let request = ContainerStatusRequest { container_id: container.id.clone(), verbose: false };
        runtime.container_status(request).await.expect("ContainerStatus");
    }
    runtime.list_container_stats(ListContainerStatsRequest::default()).await.expect("ListContainerStats");
    runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()).await.expect("ListPodSandboxStats");
    runtime.list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}).await.expect("ListPodSandboxMetrics");
    let streamed = runtime.stream_containers(StreamContainersRequest::default()).await.expect("StreamContainers");
    let (mut streamed, mut counted) = (streamed.into_inner(), 0);
    while let Some(message) = streamed.message().await.expect("the stream goes on") {
        counted += message.containers.len();
    }
    assert_eq!(counted, listed.containers.len());
    node.images().list_images(ListImagesRequest::default()).await.expect("ListImages");
    node.images().image_fs_info(ImageFsInfoRequest::default()).await.expect("ImageFsInfo");
    (pods.items.len(), listed.containers.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_list_waits_for_a_pod_whose_shim_is_silent() {
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let stuck = node.run_pod(pod("stuck")).await;
    let c = stuck.run(script("c", "exec sleep 1000")).await;
    c.stop_shim();
    let (mut runtime, id) = (node.runtime(), c.id.clone());
    let update = tokio::spawn(async move {
        let linux = Some(LinuxContainerResources { cpu_shares: 100, ..Default::default() });
        let request = UpdateContainerResourcesRequest { container_id: id, linux, ..Default::default() };
        runtime.update_container_resources(request).await
    });
    until("the pod waits for its shim", 10, async || node.berth(&["debug", "inflight"]).contains("shim-update")).await;
    assert_eq!(ask_everything(&node).await, (1, 1));
    assert!(!update.is_finished(), "it was stuck all the while");
    node.signal_shim(&c.id, "CONT");
    update.await.expect("no panic").expect("it goes on");
    stuck.end().await;
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_list_waits_for_a_pod_whose_network_hangs() {
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let other = node.run_pod(pod("other")).await;
    other.run(script("c", "exec sleep 1000")).await;
    let network = node.hold_network();
    let (hanging, ()) = tokio::join!(node.run_pod(pod("hanging")), async {
        let inflight = async || node.berth(&["debug", "inflight"]).contains("run_pod::cni-add");
        until("the plugin is waited for", 10, inflight).await;
        // A pod is there for others once it is ready.
        assert_eq!(ask_everything(&node).await, (1, 1));
        network.release();
    });
    hanging.end().await;
    network.end();
    other.end().await;
    node.assert_nothing_left();
}

/// More calls than there are places for, all on one connection, as a kubelet has one.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_calls_that_hang_does_not_make_the_node_look_dead() {
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let pod = node.run_pod(pod("flooded")).await;
    let c = pod.run(script("c", "trap '' TERM; touch /ready; while :; do sleep 0.1; done")).await;
    until("its trap is set", 10, async || c.shell("ls /").await.contains("ready")).await;
    let flood: Vec<_> = (0..600)
        .map(|_| {
            let (mut runtime, container_id) = (node.runtime(), c.id.clone());
            let request = StopContainerRequest { container_id, timeout: 3600 };
            tokio::spawn(async move { runtime.stop_container(request).await })
        })
        .collect();
    let inflight = async || node.berth(&["debug", "inflight"]).matches("StopContainer").count();
    until("all of them are there", 20, async || inflight().await == flood.len()).await;
    assert_eq!(ask_everything(&node).await, (1, 1));
    assert!(flood.iter().all(|call| !call.is_finished()), "they hang still");
    flood.iter().for_each(|call| call.abort());
    until("who has gone away keeps no place", 20, async || inflight().await == 0).await;
    c.stop(0).await.expect("StopContainer");
    pod.end().await;
    node.assert_nothing_left();
}
