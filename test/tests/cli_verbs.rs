//! `berth`'s verbs do what they say, refuse what is wrong with the reason and the place, and leave nothing.

use std::path::PathBuf;

use berth_test::cri::IMAGE;
use berth_test::{Node, container, pod};
use serde_json::json;

/// Pod and container files in the node's directory.
fn files(node: &Node) -> [String; 2] {
    let logs = node.dir().join("logs/filed");
    std::fs::create_dir_all(&logs).expect("make a log directory");
    let pod = format!(
        "metadata: {{name: filed, namespace: test}}\nhostname: filed\nlog_directory: {}\nlinux: {{}}\n",
        logs.display()
    );
    // Both languages and both spellings.
    let container = json!({
        "metadata": {"name": "c"}, "image": {"image": IMAGE}, "command": ["sleep"], "args": ["1000"], "logPath": "c.log",
        "envs": [{"key": "GREETING", "value": "hello there"}], "linux": {"security_context": {"readonlyRootfs": true}}
    });
    [write(node, "pod.yaml", &pod), write(node, "container.json", &container.to_string())]
}

fn write(node: &Node, name: &str, text: &str) -> String {
    let path: PathBuf = node.dir().join(name);
    std::fs::write(&path, text).expect("write a file");
    path.to_str().expect("a path in UTF-8").into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_lives_and_dies_by_verbs_and_files() {
    let node = Node::start().await;
    let [pod_file, container_file] = files(&node);
    let pod = node.berth(&["runp", &pod_file]).trim().to_owned();
    let id = node.berth(&["create", "--with-pull", &pod[..13], &container_file, &pod_file]).trim().to_owned();
    assert_eq!(node.berth(&["ps", "-aq", "--state", "created"]).trim(), id);
    assert_eq!(node.berth(&["start", &id[..13]]).trim(), &id[..13]);
    assert_eq!(node.berth(&["exec", "-s", &id[..13], "sh", "-c", "echo $GREETING"]), "hello there\n");
    let ran = node.try_berth(&["exec", "-s", &id, "touch", "/x"]);
    assert_eq!(ran.code, 1, "the root file system is read-only, as the file said: {ran:?}");

    assert_eq!(node.berth(&["update", "--memory", "67108864", "--cpu-quota", "-1", &id[..13]]).trim(), &id[..13]);
    assert!(node.berth(&["inspect", &id]).contains("67108864"), "the status has the new limit");
    let ran = node.try_berth(&["update", "--cpuset-cpus", "x", &id]);
    assert!(ran.code == 1 && ran.err.contains("linux.cpuset_cpus"), "{ran:?}");
    let ran = node.try_berth(&["update", &id]);
    assert!(ran.code == 2 && ran.err.contains("no limit is given"), "{ran:?}");

    // What runs is not removed by mistake.
    let ran = node.try_berth(&["rm", &id]);
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert!(ran.err.contains("it is running: stop it first, or --force"), "{ran:?}");
    let ran = node.try_berth(&["rmp", &pod]);
    assert!(ran.code == 1 && ran.err.contains("it is running"), "{ran:?}");

    node.berth(&["stop", "-t", "1", &id]);
    let log = node.dir().join("logs/filed/c.log");
    assert!(log.exists());
    node.berth(&["rm", &id]);
    assert!(!log.exists(), "a container's log goes with it");
    assert_eq!(node.berth(&["stopp", &pod]), format!("Stopped sandbox {pod}\n"));
    assert_eq!(node.berth(&["pods", "-q", "--state", "notready"]).trim(), pod);
    assert_eq!(node.berth(&["rmp", &pod]), format!("Removed sandbox {pod}\n"));
    assert_eq!(node.berth(&["pods", "-q"]), "");
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn all_means_all() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("all")).await;
    for name in ["a", "b", "c"] {
        pod.run(container(name, ["sleep", "1000"])).await;
    }
    assert_eq!(node.berth(&["stop", "--all"]).lines().count(), 3);
    assert_eq!(node.berth(&["stop", "--all"]), "No running containers found.\n");
    assert_eq!(node.berth(&["rm", "--all"]).lines().count(), 3);
    node.berth(&["rmp", "--all", "--force"]);
    assert_eq!(node.berth(&["pods", "-q"]), "");
    node.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_does_not_keep_the_others_from_being_done() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("others")).await;
    let (a, b) = (pod.create(container("a", ["sleep", "1"])).await, pod.create(container("b", ["sleep", "1"])).await);
    let ran = node.try_berth(&["start", &a.id, "nonesuch", &b.id]);
    assert_eq!((ran.code, ran.out), (1, format!("{}\n{}\n", a.id, b.id)));
    assert!(ran.err.starts_with("berth: start container nonesuch: ") && ran.err.contains("NotFound"), "{}", ran.err);
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_file_is_refused_with_its_place() {
    let node = Node::start().await;
    let bad = "metadata: {name: a, namespace: b}\nlinux: {security_context: {run_as_usr: {value: 1}}}\n";
    let file = write(&node, "bad.yaml", bad);
    let ran = node.try_berth(&["runp", &file]);
    let reason = "linux.security_context.run_as_usr: unknown key: did you mean \"run_as_user\"?";
    assert_eq!((ran.code, ran.err.as_str()), (1, format!("berth: {file}: {reason}\n").as_str()));
    let ran = node.try_berth(&["runp", "/nowhere.yaml"]);
    assert_eq!(ran.err, "berth: read /nowhere.yaml: No such file or directory (os error 2)\n");
    assert_eq!(node.berth(&["pods", "-q"]), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_gives_each_stream_and_the_exit_code() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("exec")).await;
    let one = pod.run(container("one", ["sleep", "1000"])).await;
    pod.run(container("two", ["sleep", "1000"])).await;
    let ran = node.try_berth(&["exec", "-s", &one.id, "sh", "-c", "printf out; printf err >&2; exit 42"]);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (42, "out", "err"));
    assert_eq!(node.try_berth(&["exec", "-s", "-e", &one.id, "false"]).code, 0);
    assert_eq!(node.berth(&["exec", "-s", "-q", "--name", "^(one|two)$", "echo", "-n", "-x"]), "-x-x");
    let ran = node.try_berth(&["exec", "-s", "--timeout", "1", &one.id, "sleep", "1000"]);
    assert!(ran.code == 1 && ran.err.contains("DeadlineExceeded"), "{ran:?}");
    // The same on a stream.
    let ran = node.try_berth(&["exec", &one.id, "sh", "-c", "printf out; printf err >&2; exit 42"]);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (42, "out", "err"));
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_pulled_shown_and_removed() {
    let node = Node::start().await;
    let tags = "registry.k8s.io/k8s-staging-cri-tools/test-image-tags";
    let ran = node.try_berth(&["-D", "pull", &format!("{tags}:1")]);
    let id = ran.out.trim().strip_prefix("Image is up to date for ").unwrap_or_else(|| panic!("{ran:?}"));
    match node.is_berth() {
        true => assert!(ran.err.contains(" layers\n") && ran.err.contains("  ready  "), "progress by layer: {ran:?}"),
        false => assert!(ran.err.contains("the endpoint has no berth.v1.Pulls"), "said when asked: {ran:?}"),
    }
    node.berth(&["pull", &format!("{tags}:2")]);
    let image = node.berth_json(&["inspecti", &id["sha256:".len()..][..12]]);
    assert_eq!(image["status"]["id"], id);
    assert_eq!(image["status"]["repoTags"].as_array().map(Vec::len), Some(2));
    let removed = node.berth(&["rmi", &format!("{tags}:1")]);
    assert_eq!(removed, format!("Deleted: {tags}:1\nDeleted: {tags}:2\n"));
    let ran = node.try_berth(&["rmi", &format!("{tags}:1")]);
    assert!(ran.code == 1 && ran.err.contains("there is no such image"), "{ran:?}");
    let ran = node.try_berth(&["pull", "registry.k8s.io/none:1"]);
    assert!(ran.code == 1 && ran.err.starts_with("berth: pull registry.k8s.io/none:1: "), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn prune_keeps_what_is_used() {
    let node = Node::start().await;
    node.pull("registry.k8s.io/k8s-staging-cri-tools/test-image-1:latest").await;
    let pod = node.run_pod(pod("prune")).await;
    pod.create(container("c", ["true"])).await;
    let removed = node.berth(&["rmi", "--prune"]);
    assert!(removed.contains("test-image-1:latest") && !removed.contains("busybox"), "{removed}");
    assert!(node.berth(&["images"]).contains("registry.k8s.io/busybox"));
    pod.end().await;
}
