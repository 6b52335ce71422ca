//! Requests that no kubelet makes: numbers without a name, ids of something else, sizes beyond reason, times below zero. Each
//! gets an error that says what is wrong with which field, and leaves the daemon as it was.

use berth_api::cri::*;
use berth_test::cri::script;
use berth_test::stream::{ERROR, STDIN, STDOUT};
use berth_test::{Container, Node, Pod, pod};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, MessageDescriptor, ReflectMessage, Value};
use tonic::{Code, Status};

fn refused<T>(what: &str, answer: Result<T, Status>, code: Code, parts: &[&str]) {
    let Err(error) = answer else { panic!("{what} is not refused") };
    assert_eq!(error.code(), code, "{what}: {error}");
    for part in parts {
        assert!(error.message().contains(part), "{what}: the message does not name {part:?}: {}", error.message());
    }
}

fn not_found<T>(what: &str, answer: Result<T, Status>, id: &str) {
    refused(what, answer, Code::NotFound, &[id]);
}

/// Every field of an enumeration below a message, `[]` behind a list's name.
fn enumerations(message: &MessageDescriptor, prefix: &str, out: &mut Vec<String>) {
    for field in message.fields().filter(|field| !field.is_map()) {
        let path = format!("{prefix}{}{}", field.name(), if field.is_list() { "[]" } else { "" });
        match field.kind() {
            Kind::Enum(_) => out.push(path),
            Kind::Message(inner) => enumerations(&inner, &format!("{path}."), out),
            _ => {}
        }
    }
}

/// Sets a field on its way to `number`; what is on the way and not there is made.
fn set(message: &mut DynamicMessage, path: &str, number: i32) {
    let (head, rest) = path.split_once('.').unwrap_or((path, ""));
    let field = message.descriptor().get_field_by_name(head.trim_end_matches("[]")).expect(head);
    if rest.is_empty() {
        return message.set_field(&field, Value::EnumNumber(number));
    }
    if field.is_list() {
        let Kind::Message(inner) = field.kind() else { panic!("{path}: a list of messages") };
        let mut one = DynamicMessage::new(inner);
        set(&mut one, rest, number);
        return message.set_field(&field, Value::List(vec![Value::Message(one)]));
    }
    set(message.get_field_mut(&field).as_message_mut().expect("a message"), rest, number);
}

/// `request` with each of its enumerations in turn beyond all names, and the field's path.
fn beyond<T: Message + Default>(request: &T) -> Vec<(String, T)> {
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("descriptors");
    let name = std::any::type_name::<T>().rsplit("::").next().expect("a name");
    let descriptor = pool.get_message_by_name(&format!("runtime.v1.{name}")).expect(name);
    let mut paths = Vec::new();
    enumerations(&descriptor, "", &mut paths);
    assert!(!paths.is_empty(), "{name} has enumerations");
    let mut out = Vec::new();
    for (path, number) in paths.iter().flat_map(|path| [(path, 99), (path, -1), (path, i32::MAX)]) {
        let mut message =
            DynamicMessage::decode(descriptor.clone(), request.encode_to_vec().as_slice()).expect("decode");
        set(&mut message, path, number);
        out.push((path.replace("[]", "[0]"), T::decode(message.encode_to_vec().as_slice()).expect("decode")));
    }
    out
}

/// What is refused as a whole is not looked into.
fn named(path: &str) -> &str {
    path.find(".windows").map_or(path, |at| &path[..at + ".windows".len()])
}

#[tokio::test]
async fn every_enumeration_beyond_its_names_is_refused_by_its_path() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("enums")).await;
    let mut other = pod.config.clone();
    other.metadata.as_mut().expect("metadata").uid += "-other";
    let request = RunPodSandboxRequest { config: Some(other), runtime_handler: String::new() };
    for (path, request) in beyond(&request) {
        let answer = node.runtime().run_pod_sandbox(request).await;
        refused(&path, answer, Code::InvalidArgument, &[named(&path)]);
    }
    let request = CreateContainerRequest {
        pod_sandbox_id: pod.id.clone(),
        config: Some(script("c", "true")),
        sandbox_config: Some(pod.config.clone()),
    };
    for (path, request) in beyond(&request) {
        let answer = node.runtime().create_container(request).await;
        refused(&path, answer, Code::InvalidArgument, &[named(&path)]);
    }
    for (path, request) in beyond(&ListPodSandboxRequest::default()) {
        refused(&path, node.runtime().list_pod_sandbox(request).await, Code::InvalidArgument, &[&path]);
    }
    for (path, request) in beyond(&StreamPodSandboxesRequest::default()) {
        refused(&path, node.runtime().stream_pod_sandboxes(request).await, Code::InvalidArgument, &[&path]);
    }
    for (path, request) in beyond(&ListContainersRequest::default()) {
        refused(&path, node.runtime().list_containers(request).await, Code::InvalidArgument, &[&path]);
    }
    for (path, request) in beyond(&StreamContainersRequest::default()) {
        refused(&path, node.runtime().stream_containers(request).await, Code::InvalidArgument, &[&path]);
    }
    let listed = node.runtime().list_containers(ListContainersRequest::default()).await.expect("ListContainers");
    assert_eq!(listed.into_inner().containers, []);
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn times_below_zero_are_refused_and_times_without_end_are_taken() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("times")).await;
    let c = pod.run(script("c", "trap 'exit 5' TERM; while :; do sleep 0.01; done")).await;
    for timeout in [-1, i64::MIN] {
        let part = format!("timeout: {timeout}");
        refused("StopContainer", c.stop(timeout).await, Code::InvalidArgument, &[&part]);
        refused("ExecSync", exec(&c, timeout).await, Code::InvalidArgument, &[&part]);
    }
    assert_eq!(exec(&c, i64::MAX).await.expect("ExecSync").stdout, b"ran\n");
    c.stop(i64::MAX).await.expect("StopContainer");
    assert_eq!(c.status().await.exit_code, 5);
    pod.end().await;
    node.assert_nothing_left();
}

async fn exec(c: &Container<'_>, timeout: i64) -> Result<ExecSyncResponse, Status> {
    let cmd = vec!["echo".into(), "ran".into()];
    let request = ExecSyncRequest { container_id: c.id.clone(), cmd, timeout };
    c.node().runtime().exec_sync(request).await.map(tonic::Response::into_inner)
}

/// A digit that begins more than one of the ids, and those.
fn shared_beginning<'a>(ids: &'a [&'a str]) -> (&'a str, Vec<&'a str>) {
    let first = ids.iter().find(|id| ids.iter().filter(|other| other[..1] == id[..1]).count() > 1);
    let beginning = &first.expect("17 ids, 16 digits")[..1];
    (beginning, ids.iter().copied().filter(|id| id.starts_with(beginning)).collect())
}

#[tokio::test]
async fn an_id_that_begins_several_is_refused_with_all_of_them() {
    let node = Node::start().await;
    let mut pods = Vec::new();
    for n in 0..17 {
        pods.push(node.run_pod(pod(&format!("p{n}"))).await);
    }
    let mut containers = Vec::new();
    for n in 0..17 {
        containers.push(pods[0].create(script(&format!("c{n}"), "true")).await);
    }
    let ids: Vec<&str> = pods.iter().map(|pod| pod.id.as_str()).collect();
    let (beginning, all) = shared_beginning(&ids);
    let id = || beginning.to_owned();
    let request = PodSandboxStatusRequest { pod_sandbox_id: id(), verbose: false };
    refused("status", node.runtime().pod_sandbox_status(request).await, Code::InvalidArgument, &all);
    let request = StopPodSandboxRequest { pod_sandbox_id: id() };
    refused("stop", node.runtime().stop_pod_sandbox(request).await, Code::InvalidArgument, &all);
    let request = RemovePodSandboxRequest { pod_sandbox_id: id() };
    refused("remove", node.runtime().remove_pod_sandbox(request).await, Code::InvalidArgument, &all);
    let request = PortForwardRequest { pod_sandbox_id: id(), port: vec![] };
    refused("forward", node.runtime().port_forward(request).await, Code::InvalidArgument, &all);

    let ids: Vec<&str> = containers.iter().map(|container| container.id.as_str()).collect();
    let (beginning, all) = shared_beginning(&ids);
    let id = || beginning.to_owned();
    let request = ContainerStatusRequest { container_id: id(), verbose: false };
    refused("status", node.runtime().container_status(request).await, Code::InvalidArgument, &all);
    let request = StartContainerRequest { container_id: id() };
    refused("start", node.runtime().start_container(request).await, Code::InvalidArgument, &all);
    let request = StopContainerRequest { container_id: id(), timeout: 0 };
    refused("stop", node.runtime().stop_container(request).await, Code::InvalidArgument, &all);
    let request = RemoveContainerRequest { container_id: id() };
    refused("remove", node.runtime().remove_container(request).await, Code::InvalidArgument, &all);
    let mut config = script("target", "true");
    let security = config.linux.as_mut().expect("linux").security_context.as_mut().expect("a context");
    let options = security.namespace_options.as_mut().expect("options");
    (options.pid, options.target_id) = (NamespaceMode::Target.into(), id());
    refused("target", pods[0].try_create(config).await, Code::InvalidArgument, &all);
    let listed = node.runtime().list_containers(ListContainersRequest::default()).await.expect("ListContainers");
    assert_eq!(listed.into_inner().containers.len(), 17);
    for pod in pods {
        pod.end().await;
    }
    node.assert_nothing_left();
}

#[tokio::test]
async fn an_id_of_another_kind_or_another_pods_leads_nowhere() {
    let node = Node::start().await;
    let (mine, other) = (node.run_pod(pod("mine")).await, node.run_pod(pod("other")).await);
    let theirs = other.run(script("theirs", "exec sleep 1000")).await;
    pods_are_no_containers(&node, &mine).await;
    containers_are_no_pods(&node, &theirs).await;

    // A process namespace of another pod's container is not to be had, nor is another pod's configuration.
    let mut config = script("c", "true");
    let security = config.linux.as_mut().expect("linux").security_context.as_mut().expect("a context");
    let options = security.namespace_options.as_mut().expect("options");
    options.pid = NamespaceMode::Target.into();
    options.target_id = theirs.id.clone();
    refused("target", mine.try_create(config).await, Code::InvalidArgument, &["namespace_options.target_id"]);
    let request = CreateContainerRequest {
        pod_sandbox_id: mine.id.clone(),
        config: Some(script("c", "true")),
        sandbox_config: Some(other.config.clone()),
    };
    let answer = node.runtime().create_container(request).await;
    refused("another sandbox", answer, Code::InvalidArgument, &["sandbox_config.metadata"]);

    // A filter by both finds what is in both.
    let filter = ContainerFilter { id: theirs.id.clone(), pod_sandbox_id: mine.id.clone(), ..Default::default() };
    let listed = node.runtime().list_containers(ListContainersRequest { filter: Some(filter) }).await;
    assert_eq!(listed.expect("ListContainers").into_inner().containers, []);
    assert_eq!(theirs.status().await.state(), ContainerState::ContainerRunning);
    mine.end().await;
    other.end().await;
    node.assert_nothing_left();
}

async fn pods_are_no_containers(node: &Node, pod: &Pod<'_>) {
    let id = || pod.id.clone();
    let mut runtime = node.runtime();
    not_found("start", runtime.start_container(StartContainerRequest { container_id: id() }).await, &id());
    let request = ContainerStatusRequest { container_id: id(), verbose: false };
    not_found("status", runtime.container_status(request).await, &id());
    let request = ExecSyncRequest { container_id: id(), cmd: vec!["true".into()], timeout: 1 };
    not_found("exec sync", runtime.exec_sync(request).await, &id());
    let request = ExecRequest { container_id: id(), cmd: vec!["true".into()], stdout: true, ..Default::default() };
    not_found("exec", runtime.exec(request).await, &id());
    let request = AttachRequest { container_id: id(), stdout: true, ..Default::default() };
    not_found("attach", runtime.attach(request).await, &id());
    not_found("stats", runtime.container_stats(ContainerStatsRequest { container_id: id() }).await, &id());
    let request = ReopenContainerLogRequest { container_id: id() };
    not_found("reopen", runtime.reopen_container_log(request).await, &id());
    let request = UpdateContainerResourcesRequest { container_id: id(), ..Default::default() };
    not_found("update", runtime.update_container_resources(request).await, &id());
    // What is not there is stopped and removed already; what has that id, of another kind, stays.
    runtime.stop_container(StopContainerRequest { container_id: id(), timeout: 0 }).await.expect("StopContainer");
    runtime.remove_container(RemoveContainerRequest { container_id: id() }).await.expect("RemoveContainer");
    assert_eq!(pod.status().await.state(), PodSandboxState::SandboxReady);
}

async fn containers_are_no_pods(node: &Node, container: &Container<'_>) {
    let id = || container.id.clone();
    let mut runtime = node.runtime();
    let request = PodSandboxStatusRequest { pod_sandbox_id: id(), verbose: false };
    not_found("status", runtime.pod_sandbox_status(request).await, &id());
    not_found("stats", runtime.pod_sandbox_stats(PodSandboxStatsRequest { pod_sandbox_id: id() }).await, &id());
    let request = PortForwardRequest { pod_sandbox_id: id(), port: vec![80] };
    not_found("forward", runtime.port_forward(request).await, &id());
    let request = UpdatePodSandboxResourcesRequest { pod_sandbox_id: id(), ..Default::default() };
    not_found("update", runtime.update_pod_sandbox_resources(request).await, &id());
    let config = Some(script("inside", "true"));
    let request = CreateContainerRequest { pod_sandbox_id: id(), config, sandbox_config: None };
    not_found("create", runtime.create_container(request).await, &id());
    runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id() }).await.expect("StopPodSandbox");
    runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id() }).await.expect("RemovePodSandbox");
    assert_eq!(container.status().await.state(), ContainerState::ContainerRunning);
}

#[tokio::test]
async fn what_is_longer_than_any_list_should_tell_is_refused_and_not_kept() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("long")).await;
    let long = || "x".repeat(1 << 20);
    let round = async || {
        let sandbox = |change: fn(&mut PodSandboxConfig, String), path: &'static str| {
            let (mut config, long) = (berth_test::pod("long"), long());
            change(&mut config, long);
            let node = &node;
            async move { refused(path, node.try_run_pod(config).await, Code::InvalidArgument, &[path]) }
        };
        sandbox(|c, long| drop(c.labels.insert("app".into(), long)), "config.labels[\"app\"]").await;
        sandbox(|c, long| drop(c.labels.insert(long, "key".into())), "config.labels[").await;
        sandbox(|c, long| drop(c.annotations.insert("note".into(), long)), "config.annotations").await;
        sandbox(|c, long| c.metadata.as_mut().expect("metadata").name = long, "config.metadata.name").await;
        for (change, path) in [
            (
                (|c, long| drop(c.labels.insert("app".into(), long))) as fn(&mut ContainerConfig, String),
                "config.labels",
            ),
            (|c, long| drop(c.annotations.insert("note".into(), long)), "config.annotations"),
            (|c, long| c.metadata.as_mut().expect("metadata").name = long, "config.metadata.name"),
        ] {
            let mut config = script("c", "true");
            change(&mut config, long());
            refused(path, pod.try_create(config).await, Code::InvalidArgument, &[path]);
        }
    };
    for _ in 0..4 {
        round().await;
    }
    let before = node.daemon_memory();
    for _ in 0..16 {
        round().await;
    }
    let grown = node.daemon_memory().saturating_sub(before);
    assert!(grown < 16 << 20, "{} requests of a megabyte left {} KiB", 16 * 7, grown >> 10);
    // What Kubernetes lets a pod have is taken.
    let mut config = script("c", "true");
    config.labels.insert("l".repeat(253), "v".repeat(63));
    config.annotations.insert("note".into(), "n".repeat(256 << 10));
    let c = pod.create(config.clone()).await;
    assert_eq!(c.status().await.annotations, config.annotations);
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn ten_thousand_environment_variables_arrive() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("environment")).await;
    let mut config = script("c", "env | grep -c ^VARIABLE_; echo $VARIABLE_9999");
    config.envs = (0..10_000)
        .map(|n| KeyValue { key: format!("VARIABLE_{n}"), value: format!("value {n}").into_bytes() })
        .collect();
    let c = pod.run(config).await;
    assert_eq!(c.said().await, "10000\nvalue 9999\n");
    // More than the kernel takes is said by whoever meets it, and the container has not run.
    let mut config = script("much", "echo ran");
    config.envs = (0..40).map(|n| KeyValue { key: format!("V{n}"), value: vec![b'x'; 120 << 10] }).collect();
    let much = pod.create(config).await;
    let error = much.start().await.expect_err("four megabytes of environment");
    assert!(error.message().to_lowercase().contains("argument list too long"), "{error}");
    assert_eq!(much.status().await.state(), ContainerState::ContainerExited);
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_exits_ends_what_is_attached_to_it() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("exits")).await;
    // By itself, at a client's word; and by force.
    for (name, by_force) in [("itself", false), ("force", true)] {
        let until_told = "while read line && [ $line != go ]; do echo heard $line; done; echo last words; exit 3";
        let mut config = script(name, until_told);
        config.stdin = true;
        let c = pod.run(config).await;
        let mut clients = Vec::new();
        for number in 0..4 {
            let mut client = node.websocket(&c.attach_url(false).await, "v5.channel.k8s.io");
            // The connection is answered before the shim has it; now both have.
            client.send(STDIN, format!("{number}\n").as_bytes());
            client.until(STDOUT, &format!("heard {number}\n"));
            clients.push(client);
        }
        // A token whose container is gone when its client comes.
        let request = AttachRequest { container_id: c.id.clone(), stdout: true, ..Default::default() };
        let late = node.runtime().attach(request).await.expect("Attach").into_inner().url;
        match by_force {
            true => c.stop(0).await.expect("StopContainer"),
            false => clients[0].send(STDIN, b"go\n"),
        }
        assert_eq!(c.ended().await.exit_code, if by_force { 137 } else { 3 });
        for client in &mut clients {
            let said = client.receive_all();
            let words = String::from_utf8_lossy(&said[usize::from(STDOUT)]);
            assert_eq!(words.ends_with("last words\n"), !by_force, "{words}");
            let status = String::from_utf8_lossy(&said[usize::from(ERROR)]).into_owned();
            assert!(status.contains("Success"), "{status}");
        }
        let mut late = node.websocket(&late, "v5.channel.k8s.io");
        let status = late.receive_all()[usize::from(ERROR)].clone();
        assert!(!status.is_empty(), "who comes late is told something");
        c.remove().await.expect("RemoveContainer");
    }
    pod.end().await;
    node.assert_nothing_left();
}
