//! What `berth` prints is what crictl prints: the same documents and the same tables.

use std::process::Command;

use berth_test::cli::{Ran, berth};
use berth_test::{Node, container, pod, until};
use serde_json::Value;

/// What crictl 1.36 does not know of the contract, and a node may say.
const NEWER: &[&str] = &[".features.mount_options", ".features.user_namespaces_host_network"];

/// crictl is older than our contract, so berth may say more, but then only that a field is at its default or of those above.
fn check(node: &Node, arguments: &[&str]) {
    let (ours, theirs) = (node.berth_json(arguments), node.crictl_json(arguments));
    let mut differences = Vec::new();
    compare("", &ours, &theirs, &mut differences);
    assert!(
        differences.is_empty(),
        "{}:\n{}\nberth: {ours:#}\ncrictl: {theirs:#}",
        arguments.join(" "),
        differences.join("\n")
    );
}

fn compare(path: &str, ours: &Value, theirs: &Value, differences: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, theirs) in b {
                match a.get(key) {
                    Some(ours) => compare(&format!("{path}.{key}"), ours, theirs, differences),
                    None => differences.push(format!("{path}.{key}: only crictl has it: {theirs}")),
                }
            }
            let is_newer = |key: &String| NEWER.contains(&format!("{path}.{key}").as_str());
            let ours_alone = a.iter().filter(|(key, value)| !b.contains_key(*key) && !is_default(value));
            for (key, ours) in ours_alone.filter(|(key, _)| !is_newer(key)) {
                differences.push(format!("{path}.{key}: only berth has it: {ours}"));
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (ours, theirs)) in a.iter().zip(b).enumerate() {
                compare(&format!("{path}[{i}]"), ours, theirs, differences);
            }
        }
        // crictl reads its own documents as floating-point numbers.
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => {}
        // The contract's names of signals became longer after crictl 1.36.
        (Value::String(a), Value::String(b))
            if path.ends_with(".stopSignal") && a.strip_prefix("SIGNAL_") == Some(b) => {}
        _ if ours == theirs => {}
        _ => differences.push(format!("{path}: berth {ours}, crictl {theirs}")),
    }
}

fn is_default(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        // The first value of the one enum of a status that crictl does not know.
        Value::String(text) => matches!(text.as_str(), "" | "0" | "SIGNAL_RUNTIME_DEFAULT"),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_are_crictls() {
    let node = Node::start().await;
    let mut config = pod("documents");
    config.labels.insert("app".into(), "a<b>&c".into());
    config.annotations.insert("note".into(), "zwölf \"quoted\"\n".into());
    let pod = node.run_pod(config).await;
    let running = pod.run(container("running", ["sleep", "1000"])).await;
    let ended = pod.run(container("ended", ["sh", "-c", "exit 3"])).await;
    let created = pod.create(container("created", ["sleep", "1000"])).await;
    ended.ended().await;

    check(&node, &["images", "-o", "json"]);
    check(&node, &["inspecti", "-o", "json", "registry.k8s.io/busybox:1.29"]);
    check(&node, &["pods", "-o", "json"]);
    check(&node, &["pods", "-o", "json", "--label", "app=a<b>&c", "--name", "^doc", "--state", "ready"]);
    check(&node, &["pods", "-o", "json", "--id", &pod.id[..5]]);
    check(&node, &["pods", "-o", "json", "--state", "NotReady"]);
    check(&node, &["inspectp", &pod.id[..9]]);
    check(&node, &["inspectp", "-q", "--name", "documents"]);
    check(&node, &["ps", "-o", "json"]);
    check(&node, &["ps", "-a", "-o", "json"]);
    check(&node, &["ps", "-o", "json", "--latest"]);
    check(&node, &["ps", "-o", "json", "-n", "2"]);
    check(&node, &["ps", "-a", "-o", "json", "--state", "Exited", "--pod", &pod.id[..9]]);
    check(&node, &["ps", "-a", "-o", "json", "--image", "registry.k8s.io/busybox:1.29"]);
    for container in [&running, &ended, &created] {
        check(&node, &["inspect", &container.id]);
        check(&node, &["inspect", "-q", &container.id[..9]]);
    }
    check(&node, &["inspect", "-q", &running.id, &ended.id]);
    check(&node, &["info", "-q"]);
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_crictls() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("tables")).await;
    pod.run(container("a-container-with-a-rather-long-name", ["sleep", "1000"])).await;
    pod.run(container("b", ["true"])).await.ended().await;
    let tables: [&[&str]; 9] = [
        &["version"],
        &["images"],
        &["images", "--digests", "--pinned"],
        &["images", "-q"],
        &["pods"],
        &["pods", "--no-trunc"],
        &["ps"],
        &["ps", "-a", "--no-trunc"],
        &["ps", "-aq"],
    ];
    for arguments in tables {
        // "3 seconds ago" can become 4 between the two.
        let what = format!("the table of {} is crictl's", arguments.join(" "));
        until(&what, 10, async || node.berth(arguments) == node.crictl(arguments)).await;
    }
    pod.end().await;
}

#[test]
fn a_missing_daemon_says_what_to_do() {
    let mut command = Command::new(berth());
    command.env("CRI_CONFIG_FILE", "/dev/null").env("CONTAINER_RUNTIME_ENDPOINT", "unix:///nowhere.sock").arg("ps");
    let ran: Ran = command.output().expect("run berth").into();
    assert_eq!(ran.code, 1);
    assert!(ran.err.starts_with("berth: no daemon listens at unix:///nowhere.sock: is berthd running?"), "{ran:?}");
    assert!(ran.err.contains("systemctl status berthd") && ran.err.contains("--runtime-endpoint"), "{ran:?}");
}
