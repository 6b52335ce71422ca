//! The life of a pod: made, found, stopped, removed, and nothing left of it.

use berth_api::cri::{
    ListPodSandboxRequest, PodSandboxFilter, PodSandboxState, PodSandboxStateValue, PodSandboxStatusRequest,
    RunPodSandboxRequest, StopPodSandboxRequest,
};
use berth_test::cri::script;
use berth_test::{Node, pod};
use tonic::Code;

#[tokio::test]
async fn a_pod_runs_stops_and_leaves_nothing() {
    let node = Node::start().await;
    let mut config = pod("web");
    config.labels.insert("app".into(), "web".into());
    config.annotations.insert("note".into(), "kept as it is".into());
    let pod = node.run_pod(config).await;

    let status = pod.status().await;
    assert_eq!(status.state(), PodSandboxState::SandboxReady);
    assert_eq!(status.id, pod.id);
    assert_eq!(status.metadata, pod.config.metadata);
    assert_eq!(status.labels, pod.config.labels);
    assert_eq!(status.annotations, pod.config.annotations);
    assert!(status.created_at > 0, "created_at is set");
    let ip = pod.ip().await;
    assert!(ip.parse::<std::net::IpAddr>().is_ok(), "{ip} is an address");

    pod.stop().await.expect("StopPodSandbox");
    assert_eq!(pod.status().await.state(), PodSandboxState::SandboxNotready, "a stopped pod stays until it is removed");
    pod.remove().await.expect("RemovePodSandbox");
    assert_eq!(pod.try_status().await.expect_err("removed").code(), Code::NotFound);
    node.assert_nothing_left();
}

#[tokio::test]
async fn stop_and_remove_may_be_repeated_and_know_no_unknown_pod() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("again")).await;
    for _ in 0..2 {
        pod.stop().await.expect("StopPodSandbox again");
    }
    for _ in 0..2 {
        pod.remove().await.expect("RemovePodSandbox again");
    }
    if node.is_berth() {
        let stop = StopPodSandboxRequest { pod_sandbox_id: "0123456789".into() };
        node.runtime().stop_pod_sandbox(stop).await.expect("stop of a pod that never was");
    }
    node.assert_nothing_left();
}

#[tokio::test]
async fn remove_takes_a_running_pod_with_its_containers_down() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("busy")).await;
    pod.run(script("one", "exec sleep 1000")).await;
    pod.run(script("two", "trap '' TERM; while :; do sleep 1; done")).await;
    pod.create(script("three", "true")).await;
    pod.remove().await.expect("RemovePodSandbox of a running pod");
    assert!(
        node.runtime()
            .list_containers(berth_api::cri::ListContainersRequest::default())
            .await
            .expect("ListContainers")
            .into_inner()
            .containers
            .is_empty()
    );
    node.assert_nothing_left();
}

#[tokio::test]
async fn the_same_request_gives_the_same_pod_and_another_is_refused() {
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let first = node.run_pod(pod("once")).await;
    let request = RunPodSandboxRequest { config: Some(first.config.clone()), runtime_handler: String::new() };
    let again = node.runtime().run_pod_sandbox(request.clone()).await.expect("the same request").into_inner();
    assert_eq!(again.pod_sandbox_id, first.id);

    let mut other = request.clone();
    other.config.as_mut().expect("a config").hostname = "another".into();
    let refused = node.runtime().run_pod_sandbox(other).await.expect_err("another content under the same name");
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert!(refused.message().contains(&first.id), "names the pod that is there: {}", refused.message());

    // Asked at the same time, all get one pod.
    let config = pod("together");
    let mut config = config;
    config.log_directory = node.dir().join("logs").to_str().expect("UTF-8").into();
    let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
    let asked: Vec<_> = (0..8)
        .map(|_| {
            let (mut client, request) = (node.runtime(), request.clone());
            tokio::spawn(async move { client.run_pod_sandbox(request).await.map(|a| a.into_inner().pod_sandbox_id) })
        })
        .collect();
    let mut ids = Vec::new();
    for task in asked {
        ids.push(task.await.expect("no panic").expect("RunPodSandbox"));
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "one pod for eight equal requests: {ids:?}");
    let stop = StopPodSandboxRequest { pod_sandbox_id: ids[0].clone() };
    node.runtime().stop_pod_sandbox(stop).await.expect("StopPodSandbox");
    let remove = berth_api::cri::RemovePodSandboxRequest { pod_sandbox_id: ids[0].clone() };
    node.runtime().remove_pod_sandbox(remove).await.expect("RemovePodSandbox");
    first.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_removed_pods_name_is_free_again() {
    let node = Node::start().await;
    let config = pod("reborn");
    let first = node.run_pod(config.clone()).await;
    first.end().await;
    let second = node.run_pod(config).await;
    assert_ne!(first.id, second.id);
    second.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn pods_are_found_by_id_prefix_state_and_labels() {
    let node = Node::start().await;
    let mut labelled = pod("labelled");
    labelled.labels.insert("tier".into(), "front".into());
    let (one, two) = (node.run_pod(labelled).await, node.run_pod(pod("plain")).await);
    two.stop().await.expect("StopPodSandbox");
    let list = async |filter: PodSandboxFilter| {
        let request = ListPodSandboxRequest { filter: Some(filter) };
        let answer = node.runtime().list_pod_sandbox(request).await.expect("ListPodSandbox").into_inner();
        let mut ids: Vec<_> = answer.items.into_iter().map(|p| p.id).collect();
        ids.sort();
        ids
    };
    let state = |state: PodSandboxState| Some(PodSandboxStateValue { state: state.into() });
    let label = |value: &str| [("tier".to_owned(), value.to_owned())].into();
    let mut both = vec![one.id.clone(), two.id.clone()];
    both.sort();
    assert_eq!(list(PodSandboxFilter::default()).await, both);
    assert_eq!(list(PodSandboxFilter { id: one.id.clone(), ..Default::default() }).await, [one.id.as_str()]);
    assert_eq!(list(PodSandboxFilter { id: two.id[..13].into(), ..Default::default() }).await, [two.id.as_str()]);
    assert_eq!(
        list(PodSandboxFilter { state: state(PodSandboxState::SandboxReady), ..Default::default() }).await,
        [one.id.as_str()]
    );
    assert_eq!(
        list(PodSandboxFilter { state: state(PodSandboxState::SandboxNotready), ..Default::default() }).await,
        [two.id.as_str()]
    );
    assert_eq!(
        list(PodSandboxFilter { label_selector: label("front"), ..Default::default() }).await,
        [one.id.as_str()]
    );
    assert!(list(PodSandboxFilter { label_selector: label("back"), ..Default::default() }).await.is_empty());
    assert!(
        list(PodSandboxFilter { id: two.id.clone(), label_selector: label("front"), ..Default::default() })
            .await
            .is_empty()
    );
    let by_prefix = PodSandboxStatusRequest { pod_sandbox_id: one.id[..13].into(), verbose: false };
    let status = node.runtime().pod_sandbox_status(by_prefix).await.expect("PodSandboxStatus by prefix").into_inner();
    assert_eq!(status.status.expect("a status").id, one.id);
    one.end().await;
    two.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn twenty_pods_at_once_each_have_their_own_address() {
    let node = Node::start().await;
    let pods = futures::future::join_all((0..20).map(|n| node.run_pod(pod(&format!("p{n}"))))).await;
    let mut addresses = Vec::new();
    for pod in &pods {
        addresses.push(pod.ip().await);
    }
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 20);
    futures::future::join_all(pods.iter().map(|pod| pod.end())).await;
    node.assert_nothing_left();
}
