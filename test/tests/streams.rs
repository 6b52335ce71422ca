//! The streamed lists: bounded messages, each item once, the same as the list; and no list waits for a stuck pod.

use std::collections::BTreeSet;

use berth_api::cri::*;
use berth_test::cri::script;
use berth_test::{Node, has, pod, until};
use prost::Message;
use tonic::{Response, Status, Streaming};

/// What a message may have, in bytes, unless one item alone has more.
const MESSAGE_MAX: usize = 1 << 20;

/// Every item by its id; panics at a message that is empty or too large, and at an item that came before.
async fn collect<R, T: Message>(
    answer: Result<Response<Streaming<R>>, Status>,
    items: impl Fn(R) -> Vec<T>,
    id: impl Fn(&T) -> String,
) -> (usize, BTreeSet<String>) {
    let mut stream = answer.expect("the stream begins").into_inner();
    let (mut messages, mut seen) = (0, BTreeSet::new());
    while let Some(message) = stream.message().await.expect("the stream goes on") {
        let items = items(message);
        let bytes: usize = items.iter().map(Message::encoded_len).sum();
        assert!(
            !items.is_empty() && (bytes <= MESSAGE_MAX || items.len() == 1),
            "{} items, {bytes} bytes",
            items.len()
        );
        messages += 1;
        for item in &items {
            assert!(seen.insert(id(item)), "{} twice", id(item));
        }
    }
    (messages, seen)
}

fn ids<T>(items: &[T], id: impl Fn(&T) -> &String) -> BTreeSet<String> {
    items.iter().map(|item| id(item).clone()).collect()
}

#[tokio::test]
async fn streams_have_each_item_once_in_messages_bounded_by_bytes() {
    let node = Node::start().await;
    let wordy = |name: String, bytes: usize| {
        let mut config = pod(&name);
        config.annotations.insert("words".into(), "x".repeat(bytes));
        config.labels.insert("app".into(), name);
        config
    };
    let mut pods = Vec::new();
    for n in 0..20 {
        pods.push(node.run_pod(wordy(format!("p{n}"), 150_000)).await);
    }
    // As many bytes as a request may bring.
    pods.push(node.run_pod(wordy("huge".into(), 510_000)).await);
    for n in 0..12 {
        let mut config = script(&format!("c{n}"), "exec sleep 1000");
        config.annotations.insert("words".into(), "x".repeat(150_000));
        pods[n % 3].run(config).await;
    }
    let pod_ids: BTreeSet<_> = pods.iter().map(|p| p.id.clone()).collect();
    let mut runtime = node.runtime();

    let streamed = runtime.stream_pod_sandboxes(StreamPodSandboxesRequest { filter: None }).await;
    let (messages, seen) = collect(streamed, |r| r.pod_sandboxes, |p| p.id.clone()).await;
    assert_eq!(seen, pod_ids);
    assert!((4..=5).contains(&messages), "six of 150 kB in one, or three and the huge one: {messages}");
    let filter = PodSandboxFilter { label_selector: [("app".into(), "p3".into())].into(), ..Default::default() };
    let streamed = runtime.stream_pod_sandboxes(StreamPodSandboxesRequest { filter: Some(filter) }).await;
    let (_, seen) = collect(streamed, |r| r.pod_sandboxes, |p| p.id.clone()).await;
    assert_eq!(seen, [pods[3].id.clone()].into());

    let listed = runtime.list_containers(ListContainersRequest { filter: None }).await.expect("ListContainers");
    let container_ids = ids(&listed.into_inner().containers, |c| &c.id);
    assert_eq!(container_ids.len(), 12);
    let streamed = runtime.stream_containers(StreamContainersRequest { filter: None }).await;
    let (messages, seen) = collect(streamed, |r| r.containers, |c| c.id.clone()).await;
    assert_eq!((messages, seen), (2, container_ids.clone()));
    let filter = ContainerFilter { pod_sandbox_id: pods[0].id.clone(), ..Default::default() };
    let streamed = runtime.stream_containers(StreamContainersRequest { filter: Some(filter) }).await;
    assert_eq!(collect(streamed, |r| r.containers, |c| c.id.clone()).await.1.len(), 4);

    let streamed = runtime.stream_container_stats(StreamContainerStatsRequest { filter: None }).await;
    let of = |s: &ContainerStats| s.attributes.clone().expect("attributes").id;
    let (messages, seen) = collect(streamed, |r| r.container_stats, of).await;
    assert_eq!((messages, seen), (2, container_ids));
    let nobody = ContainerStatsFilter { label_selector: [("app".into(), "none".into())].into(), ..Default::default() };
    let streamed = runtime.stream_container_stats(StreamContainerStatsRequest { filter: Some(nobody) }).await;
    assert_eq!(collect(streamed, |r| r.container_stats, of).await, (0, BTreeSet::new()), "an end and nothing before");

    let streamed = runtime.stream_pod_sandbox_stats(StreamPodSandboxStatsRequest { filter: None }).await;
    let of = |s: &PodSandboxStats| s.attributes.clone().expect("attributes").id;
    let (messages, seen) = collect(streamed, |r| r.pod_sandbox_stats, of).await;
    assert_eq!(seen, pod_ids);
    assert!(messages >= 5, "{messages}");
    let streamed = runtime.stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest {}).await;
    let (_, seen) = collect(streamed, |r| r.pod_sandbox_metrics, |m| m.pod_sandbox_id.clone()).await;
    assert_eq!(seen, pod_ids);
    let streamed = node.images().stream_images(StreamImagesRequest { filter: None }).await;
    let listed = node.images().list_images(ListImagesRequest { filter: None }).await.expect("ListImages");
    let (_, seen) = collect(streamed, |r| r.images, |i| i.id.clone()).await;
    assert_eq!(seen, ids(&listed.into_inner().images, |i| &i.id));

    // The lists answer the same in one message.
    let listed = runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest { filter: None }).await;
    assert_eq!(listed.expect("ListPodSandboxStats").into_inner().stats.len(), pod_ids.len());
    for pod in &pods {
        pod.end().await;
    }
    node.assert_nothing_left();
}

/// A pod whose task is busy: its container is killed and does not go.
#[tokio::test]
async fn no_list_waits_for_a_pod_that_is_stuck() {
    if !has("cgroup-v1", "no_list_waits_for_a_pod_that_is_stuck") {
        return;
    }
    let node = Node::start().await;
    let (stuck, other) = (node.run_pod(pod("stuck")).await, node.run_pod(pod("other")).await);
    let c = stuck.run(script("c", "exec sleep 1000")).await;
    other.run(script("d", "exec sleep 1000")).await;
    let frozen = c.freeze().await;
    let mut runtime = node.runtime();
    let request = StopPodSandboxRequest { pod_sandbox_id: stuck.id.clone() };
    // Who asks is told after a while that it does not go; whoever insists keeps the task at it, however long the lists take.
    let stop = tokio::spawn(async move { while runtime.stop_pod_sandbox(request.clone()).await.is_err() {} });
    let pending = async || {
        let sets = [c.process_status("SigPnd").await, c.process_status("ShdPnd").await];
        sets.iter().any(|set| set.bytes().any(|digit| digit != b'0'))
    };
    until("the kill was sent", 5, pending).await;

    let mut runtime = node.runtime();
    let pods = runtime.list_pod_sandbox(ListPodSandboxRequest { filter: None }).await.expect("ListPodSandbox");
    assert_eq!(pods.into_inner().items.len(), 2);
    let containers = runtime.list_containers(ListContainersRequest { filter: None }).await.expect("ListContainers");
    assert_eq!(containers.into_inner().containers.len(), 2);
    let stats = runtime.list_container_stats(ListContainerStatsRequest { filter: None }).await;
    assert_eq!(stats.expect("ListContainerStats").into_inner().stats.len(), 2);
    let stats = runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest { filter: None }).await;
    assert_eq!(stats.expect("ListPodSandboxStats").into_inner().stats.len(), 2);
    let metrics = runtime.list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}).await;
    assert_eq!(metrics.expect("ListPodSandboxMetrics").into_inner().pod_metrics.len(), 2);
    let streamed = runtime.stream_containers(StreamContainersRequest { filter: None }).await;
    assert_eq!(collect(streamed, |r| r.containers, |c| c.id.clone()).await.1.len(), 2);
    let streamed = runtime.stream_container_stats(StreamContainerStatsRequest { filter: None }).await;
    let of = |s: &ContainerStats| s.attributes.clone().expect("attributes").id;
    assert_eq!(collect(streamed, |r| r.container_stats, of).await.1.len(), 2);
    assert!(!stop.is_finished(), "it was stuck all the while");

    drop(frozen);
    stop.await.expect("no panic");
    stuck.end().await;
    other.end().await;
    node.assert_nothing_left();
}
