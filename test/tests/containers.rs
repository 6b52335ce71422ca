//! The life of a container, and what its status tells.

use berth_api::cri::{
    ContainerFilter, ContainerState, ContainerStateValue, ContainerStatusRequest, CreateContainerRequest, KeyValue,
    ListContainersRequest, Mount, StopContainerRequest,
};
use berth_test::cri::{IMAGE, container, script};
use berth_test::node::FILES;
use berth_test::{Node, pod};
use tonic::Code;

#[tokio::test]
async fn a_container_is_created_running_exited_and_gone() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("life")).await;
    let mut config = script("c", "exec sleep 1000");
    config.labels.insert("app".into(), "c".into());
    config.annotations.insert("note".into(), "kept".into());
    let container = pod.create(config.clone()).await;

    let created = container.status().await;
    assert_eq!(created.state(), ContainerState::ContainerCreated);
    assert_eq!(created.metadata, config.metadata);
    assert_eq!((&created.labels, &created.annotations), (&config.labels, &config.annotations));
    assert_eq!(created.image.expect("an image").image, IMAGE);
    assert!(!created.image_ref.is_empty());
    assert_eq!(created.log_path, container.log_path().to_str().expect("UTF-8"));
    assert!(created.created_at > 0 && created.started_at == 0 && created.finished_at == 0);

    container.start().await.expect("StartContainer");
    let running = container.status().await;
    assert_eq!(running.state(), ContainerState::ContainerRunning);
    assert!(running.started_at >= created.created_at && running.finished_at == 0);
    if node.is_berth() {
        assert_eq!(container.start().await.expect_err("it runs").code(), Code::FailedPrecondition);
    }

    container.stop(0).await.expect("StopContainer");
    let exited = container.status().await;
    assert_eq!((exited.state(), exited.exit_code), (ContainerState::ContainerExited, 137));
    assert!(exited.finished_at >= running.started_at);
    container.stop(0).await.expect("StopContainer again");
    container.remove().await.expect("RemoveContainer");
    container.remove().await.expect("RemoveContainer again");
    assert_eq!(container.try_status().await.expect_err("removed").code(), Code::NotFound);
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn the_same_create_gives_the_same_container_and_another_is_refused() {
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let pod = node.run_pod(pod("twice")).await;
    let first = pod.create(script("c", "true")).await;
    assert_eq!(pod.create(script("c", "true")).await.id, first.id);
    let refused = pod.try_create(script("c", "false")).await.err().expect("another content under the same name");
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert!(refused.message().contains(&first.id), "{}", refused.message());
    // A new attempt is another container.
    let mut attempt = script("c", "false");
    attempt.metadata.as_mut().expect("metadata").attempt = 1;
    assert_ne!(pod.create(attempt).await.id, first.id);
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn containers_are_found_by_id_prefix_state_pod_and_labels() {
    let node = Node::start().await;
    let (web, db) = (node.run_pod(pod("web")).await, node.run_pod(pod("db")).await);
    let mut labelled = script("a", "exec sleep 1000");
    labelled.labels.insert("role".into(), "main".into());
    let (a, b, c) = (web.run(labelled).await, web.create(script("b", "true")).await, db.run(script("c", "true")).await);
    c.ended().await;
    let list = async |filter: ContainerFilter| {
        let request = ListContainersRequest { filter: Some(filter) };
        let answer = node.runtime().list_containers(request).await.expect("ListContainers").into_inner();
        let mut names: Vec<_> = answer.containers.into_iter().map(|c| c.metadata.expect("metadata").name).collect();
        names.sort();
        names.concat()
    };
    let state = |state: ContainerState| Some(ContainerStateValue { state: state.into() });
    let of = |pod: &str| ContainerFilter { pod_sandbox_id: pod.into(), ..Default::default() };
    assert_eq!(list(ContainerFilter::default()).await, "abc");
    assert_eq!(list(ContainerFilter { id: a.id.clone(), ..Default::default() }).await, "a");
    assert_eq!(list(ContainerFilter { id: b.id[..13].into(), ..Default::default() }).await, "b");
    assert_eq!(list(of(&web.id)).await, "ab");
    assert_eq!(list(of(&db.id)).await, "c");
    for (wanted, names) in [
        (ContainerState::ContainerRunning, "a"),
        (ContainerState::ContainerCreated, "b"),
        (ContainerState::ContainerExited, "c"),
    ] {
        assert_eq!(list(ContainerFilter { state: state(wanted), ..Default::default() }).await, names);
    }
    let main = [("role".to_owned(), "main".to_owned())].into();
    assert_eq!(list(ContainerFilter { label_selector: main, ..Default::default() }).await, "a");
    let by_prefix = ContainerStatusRequest { container_id: a.id[..13].into(), verbose: false };
    let answer = node.runtime().container_status(by_prefix).await.expect("ContainerStatus by prefix").into_inner();
    assert_eq!(answer.status.expect("a status").id, a.id);
    for pod in [web, db] {
        pod.end().await;
    }
    node.assert_nothing_left();
}

#[tokio::test]
async fn environment_directory_and_mounts_are_as_asked() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("asked")).await;
    let share = node.dir().join("share");
    std::fs::create_dir_all(&share).expect("make share");
    std::fs::write(share.join("greeting"), "hello").expect("write greeting");
    let mut config = script("c", "echo $COLOUR; pwd; exec sleep 1000");
    config.envs = vec![KeyValue { key: "COLOUR".into(), value: "deep blue = 7".into() }];
    config.working_dir = "/usr".into();
    let path = share.to_str().expect("UTF-8").to_owned();
    config.mounts = vec![
        Mount { container_path: "/rw".into(), host_path: path.clone(), ..Default::default() },
        Mount { container_path: "/ro".into(), host_path: path, readonly: true, ..Default::default() },
    ];
    let c = pod.run(config).await;
    assert_eq!(c.said().await, "deep blue = 7\n/usr\n");
    assert_eq!(c.shell("echo $COLOUR; pwd").await, "deep blue = 7\n/usr\n");
    assert_eq!(c.shell("cat /ro/greeting; echo changed >/rw/greeting; cat /ro/greeting").await, "hellochanged\n");
    let refused = c.try_exec(["touch", "/ro/x"], 10).await.expect("ExecSync");
    assert_ne!(refused.exit_code, 0, "a read-only mount refuses writes");
    assert_eq!(std::fs::read_to_string(share.join("greeting")).expect("read greeting"), "changed\n");
    let mounts = c.status().await.mounts;
    assert!(mounts.iter().any(|m| m.container_path == "/ro" && m.readonly), "{mounts:?}");
    pod.end().await;
    assert!(share.join("greeting").exists(), "what was mounted stays");
    node.assert_nothing_left();
}

#[tokio::test]
async fn command_and_arguments_follow_the_kubelets_rules() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("command")).await;
    // The image has Cmd `sh` and no entrypoint: arguments alone replace Cmd, a command alone drops it.
    let mut arguments = container("arguments", Vec::<String>::new());
    arguments.args = vec!["echo".into(), "arguments".into()];
    let mut both = container("both", ["echo", "command"]);
    both.args = vec!["and arguments".into()];
    for (config, said) in [(arguments, "arguments\n"), (both, "command and arguments\n")] {
        let c = pod.run(config).await;
        assert_eq!(c.ended().await.exit_code, 0);
        assert_eq!(c.logged("stdout"), said);
    }
    // Neither: the image's own, a shell without input, which ends at once.
    let c = pod.run(container("neither", Vec::<String>::new())).await;
    assert_eq!(c.ended().await.exit_code, 0);
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn unknown_containers_stop_and_remove_and_are_not_found() {
    let node = Node::start().await;
    let unknown = "feedfacefeedface".to_owned();
    let status = ContainerStatusRequest { container_id: unknown.clone(), verbose: false };
    let missing = node.runtime().container_status(status).await.expect_err("unknown");
    assert_eq!(missing.code(), Code::NotFound);
    assert!(missing.message().contains(&unknown), "{}", missing.message());
    if node.is_berth() {
        let stop = StopContainerRequest { container_id: unknown, timeout: 0 };
        node.runtime().stop_container(stop).await.expect("StopContainer of an unknown container");
    }
    let create = CreateContainerRequest {
        pod_sandbox_id: "feedfacefeedface".into(),
        config: Some(script("c", "true")),
        sandbox_config: Some(pod("unknown")),
    };
    let missing = node.runtime().create_container(create).await.expect_err("unknown pod");
    assert_eq!(missing.code(), if node.is_berth() { Code::NotFound } else { missing.code() });
    assert!(missing.message().contains("feedfacefeedface"), "{}", missing.message());
    node.assert_nothing_left();
}

/// The daemon takes what it may, and a container has what the daemon was started with: in its first process and an exec.
#[tokio::test]
async fn the_soft_limit_of_open_files_is_raised_for_the_daemon_alone() {
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let limits = |text: &str| -> (String, String) {
        let line = text.lines().find_map(|line| line.strip_prefix("Max open files")).expect("a limit of open files");
        let mut words = line.split_whitespace().map(str::to_owned);
        (words.next().expect("soft"), words.next().expect("hard"))
    };
    let pod = node.run_pod(pod("files")).await;
    let c = pod.run(script("c", "exec sleep 1000")).await;
    let daemon = node.daemon_pid().expect("a daemon");
    let (soft, hard) = limits(&node.enclosure().shell(&format!("cat /proc/{daemon}/limits")));
    assert_eq!(soft, hard);
    let first = limits(&std::fs::read_to_string(c.proc("limits").await).expect("read limits"));
    assert_eq!(first, (FILES.to_string(), hard));
    assert_eq!(limits(&c.shell("cat /proc/self/limits").await), first);
    pod.end().await;
    node.assert_nothing_left();
}
