//! GetContainerEvents: everything that happens, in order, to everybody who listens.

use std::collections::BTreeMap;

use berth_api::cri::runtime_service_client::RuntimeServiceClient;
use berth_api::cri::{
    ContainerEventResponse, ContainerEventType, ContainerState, GetEventsRequest, NamespaceMode, PodSandboxState,
};
use berth_test::cri::script;
use berth_test::wait::patience;
use berth_test::{Node, pod, until};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Endpoint, Uri};
use tonic::{Code, Streaming};

use ContainerEventType::{
    ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted, ContainerStartedEvent as Started,
    ContainerStoppedEvent as Stopped,
};

type Events = Streaming<ContainerEventResponse>;

async fn subscribe(node: &Node) -> Events {
    node.runtime().get_container_events(GetEventsRequest {}).await.expect("GetContainerEvents").into_inner()
}

async fn next(events: &mut Events) -> ContainerEventResponse {
    let event = tokio::time::timeout(patience(30), events.message()).await.expect("an event in time");
    event.expect("the stream goes on").expect("the stream goes on")
}

#[tokio::test]
async fn a_life_is_told_in_order_with_the_statuses_just_after() {
    let node = Node::start().await;
    let mut events = [subscribe(&node).await, subscribe(&node).await];
    let pod = node.run_pod(pod("watched")).await;
    let quits = pod.run(script("quits", "exit 3")).await;
    quits.ended().await;
    let stays = pod.run(script("stays", "exec sleep 1000")).await;
    stays.stop(0).await.expect("StopContainer");
    quits.remove().await.expect("RemoveContainer");
    let fails = pod.create(berth_test::container("fails", ["/no/such/program"])).await;
    fails.start().await.expect_err("there is no such program");
    pod.stop().await.expect("StopPodSandbox");
    pod.remove().await.expect("RemovePodSandbox");

    let (p, q, s, f) = (&pod.id, &quits.id, &stays.id, &fails.id);
    let expected = [
        (p, Created),
        (p, Started),
        (q, Created),
        (q, Started),
        (q, Stopped),
        (s, Created),
        (s, Started),
        (s, Stopped),
        (q, Deleted),
        (f, Created),
        (f, Stopped),
        (p, Stopped),
    ];
    for events in &mut events {
        let mut seen = Vec::new();
        let mut last = 0;
        for _ in 0..expected.len() {
            let event = next(events).await;
            assert!(event.created_at >= last, "time goes on");
            last = event.created_at;
            let status = event.pod_sandbox_status.clone().expect("the pod's status");
            assert_eq!((&status.id, &status.metadata), (p, &pod.config.metadata));
            let of =
                |id: &str| event.containers_statuses.iter().find(|c| c.id == *id).map(|c| (c.state(), c.exit_code));
            match (event.container_id.as_str(), event.container_event_type()) {
                (id, Started) if id == q => assert_eq!(of(q), Some((ContainerState::ContainerRunning, 0))),
                (id, Stopped) if id == q => assert_eq!(of(q), Some((ContainerState::ContainerExited, 3))),
                (id, Stopped) if id == s => {
                    assert_eq!(of(s), Some((ContainerState::ContainerExited, 137)));
                    assert_eq!(of(q), Some((ContainerState::ContainerExited, 3)), "every container is told");
                }
                (id, Deleted) if id == q => assert_eq!(of(q), None),
                (id, Stopped) if id == p => assert_eq!(status.state(), PodSandboxState::SandboxNotready),
                _ => assert_eq!(status.state(), PodSandboxState::SandboxReady),
            }
            seen.push((event.container_id.clone(), event.container_event_type()));
        }
        let expected: Vec<_> = expected.iter().map(|(id, kind)| ((*id).clone(), *kind)).collect();
        assert_eq!(seen, expected);
        // The pod takes what it has left along, in no particular order, and goes last.
        let mut left =
            [next(events).await, next(events).await].map(|e| (e.container_id.clone(), e.container_event_type()));
        left.sort();
        let mut gone = [(s.clone(), Deleted), (f.clone(), Deleted)];
        gone.sort();
        assert_eq!(left, gone);
        let last = next(events).await;
        assert_eq!((&last.container_id, last.container_event_type()), (p, Deleted));
        assert!(last.containers_statuses.is_empty());
    }
    node.assert_nothing_left();
}

#[tokio::test]
async fn nothing_is_lost_when_much_happens_at_once() {
    let node = Node::start().await;
    let mut events = subscribe(&node).await;
    let life = async |n: usize| {
        let pod = node.run_pod(pod(&format!("busy-{n}"))).await;
        for m in 0..5 {
            let c = pod.run(script(&format!("c{m}"), "true")).await;
            c.remove().await.expect("RemoveContainer");
        }
        pod.end().await;
    };
    futures::future::join_all((0..6).map(life)).await;
    let mut lives = BTreeMap::<String, Vec<ContainerEventType>>::new();
    // Six pods and thirty containers, each from its making to its end.
    for _ in 0..36 * 4 {
        let event = next(&mut events).await;
        lives.entry(event.container_id.clone()).or_default().push(event.container_event_type());
    }
    assert_eq!(lives.len(), 36);
    for (id, life) in lives {
        assert_eq!(life, [Created, Started, Stopped, Deleted], "{id}");
    }
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_subscriber_that_does_not_read_is_cut_off_and_told() {
    let node = Node::start().await;
    // A window of 64 KiB: the transport must not take in what the subscriber does not.
    let socket = node.enclosure().path(node.endpoint().trim_start_matches("unix://"));
    let endpoint =
        Endpoint::from_static("http://node").initial_stream_window_size(65_535).initial_connection_window_size(65_535);
    let channel = endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    }));
    let request = GetEventsRequest {};
    let mut idle =
        RuntimeServiceClient::new(channel).get_container_events(request).await.expect("subscribed").into_inner();
    let mut reader = subscribe(&node).await;

    // Each event has more than the window; the queue holds 1024. Pods on the host's network come and go fastest.
    const PODS: usize = 300;
    let read = tokio::spawn(async move {
        for _ in 0..PODS * 4 {
            next(&mut reader).await;
        }
    });
    for n in 0..PODS {
        let mut config = pod(&format!("wordy-{n}"));
        config.annotations.insert("words".into(), "x".repeat(70_000));
        let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.namespace_options.get_or_insert_default().network = NamespaceMode::Node.into();
        node.run_pod(config).await.end().await;
    }
    read.await.expect("one that reads misses nothing");
    let cut = loop {
        match tokio::time::timeout(patience(30), idle.message()).await.expect("an answer in time") {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the end of a stream would mean that nothing was lost"),
            Err(status) => break status,
        }
    };
    assert_eq!(cut.code(), Code::ResourceExhausted, "{cut}");
    assert!(cut.message().contains("subscribe again"), "{cut}");
    // Its connection was made after the node was remembered.
    drop(idle);
    until("the connection is closed", 30, async || node.leaks().is_empty()).await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn streams_end_when_the_daemon_does_and_a_new_one_tells_only_what_is_new() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("stays")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    let mut events = subscribe(&node).await;
    node.stop_daemon().await;
    let end = tokio::time::timeout(patience(5), events.message()).await.expect("an end in time");
    assert!(matches!(end, Ok(None)), "{end:?}");
    node.restart().await;
    let mut events = subscribe(&node).await;
    c.stop(0).await.expect("StopContainer");
    let event = next(&mut events).await;
    assert_eq!((&event.container_id, event.container_event_type()), (&c.id, Stopped));
    pod.end().await;
    node.assert_nothing_left();
}
