//! crictl, as the community builds it, drives the whole path.

use berth_test::cri::{IMAGE, container, pod};
use berth_test::{Node, until};

#[tokio::test]
async fn crictl_drives_the_whole_path() {
    let node = Node::start().await;
    let logs = node.dir().join("logs");
    std::fs::create_dir_all(&logs).expect("make logs");
    let write = |name: &str, value: serde_json::Value| {
        let path = node.dir().join(name);
        std::fs::write(&path, serde_json::to_vec(&value).expect("JSON")).expect("write a configuration");
        path.to_str().expect("UTF-8").to_owned()
    };
    let pod_json = write(
        "pod.json",
        serde_json::json!({
            "metadata": {"name": "web", "namespace": "test", "uid": "u1", "attempt": 0},
            "hostname": "web", "log_directory": logs, "labels": {"app": "web"}, "linux": {}
        }),
    );
    let container_json = write(
        "container.json",
        serde_json::json!({
            "metadata": {"name": "c", "attempt": 0}, "image": {"image": IMAGE}, "log_path": "c.log", "linux": {},
            "command": ["sh", "-c", "echo hello; exec sleep 1000"]
        }),
    );
    // The same as the client of the other tests would send: one shape of names in this file.
    assert_eq!((pod("web").hostname.as_str(), container("c", ["x"]).log_path.as_str()), ("web", "c.log"));
    let id = |text: String| text.trim().to_owned();

    assert!(node.crictl(&["version"]).contains("RuntimeApiVersion:  v1"));
    let info: serde_json::Value = serde_json::from_str(&node.crictl(&["info"])).expect("info is JSON");
    let conditions = info["status"]["conditions"].as_array().expect("conditions");
    assert!(conditions.iter().all(|c| c["status"] == true), "{conditions:?}");
    node.crictl(&["pull", "registry.k8s.io/e2e-test-images/httpd:2.4.39-4"]);
    assert!(node.crictl(&["images"]).contains("registry.k8s.io/e2e-test-images/httpd"));
    node.crictl(&["inspecti", IMAGE]);
    node.crictl(&["imagefsinfo"]);

    let pod = id(node.crictl(&["runp", &pod_json]));
    assert!(node.crictl(&["pods"]).contains("web"));
    assert!(node.crictl(&["inspectp", &pod]).contains("SANDBOX_READY"));
    let container = id(node.crictl(&["create", &pod, &container_json, &pod_json]));
    node.crictl(&["start", &container]);
    assert!(node.crictl(&["ps"]).contains("Running"));
    assert!(node.crictl(&["inspect", &container]).contains("CONTAINER_RUNNING"));
    until("crictl logs", 5, async || node.crictl(&["logs", &container]) == "hello\n").await;
    assert!(node.crictl(&["exec", "--sync", &container, "hostname"]).starts_with("web\n"));
    node.crictl(&["update", "--memory", "67108864", &container]);
    assert!(node.crictl(&["inspect", &container]).contains(r#""memoryLimitInBytes": "67108864""#));
    node.crictl(&["stop", "--timeout", "0", &container]);
    assert!(node.crictl(&["ps", "--all"]).contains("Exited"));
    node.crictl(&["rm", &container]);
    node.crictl(&["stopp", &pod]);
    node.crictl(&["rmp", &pod]);
    assert_eq!(node.crictl(&["pods", "--quiet"]), "");
    node.crictl(&["rmi", "registry.k8s.io/e2e-test-images/httpd:2.4.39-4"]);
    assert!(!node.crictl(&["images"]).contains("httpd"));
    node.assert_nothing_left();
}
