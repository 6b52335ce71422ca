//! What the daemon started for one answer may outlive the daemon: the next one waits for it, so that nothing is made
//! behind its back.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use berth_api::cri::RunPodSandboxRequest;
use berth_test::cri::script;
use berth_test::{Node, pod, until};

/// A plugin that has hold of the pod's namespace, and takes its time before it does something there.
const SLOW: &str = r#"#!/bin/sh
if [ "$CNI_COMMAND" = ADD ]; then
    exec 3<"$CNI_NETNS"
    sleep SECONDS
    CNI_NETNS=/proc/self/fd/3
fi
exec DIR/bridge
"#;

/// A node whose network is made by the slow plugin.
async fn slow_node(seconds: u64) -> Node {
    let node = Node::start().await;
    let bundled = berth_test::node::binary_dir(false).join("cni");
    let plugins = node.dir().join("plugins");
    fs::create_dir_all(&plugins).expect("make a plugin directory");
    let slow = SLOW.replace("SECONDS", &seconds.to_string()).replace("DIR", bundled.to_str().expect("UTF-8"));
    fs::write(plugins.join("slow"), slow).expect("write the plugin");
    fs::set_permissions(plugins.join("slow"), fs::Permissions::from_mode(0o755)).expect("chmod");
    let conflist = format!(
        r#"{{"cniVersion": "1.0.0", "name": "slow", "plugins": [{{"type": "slow", "bridge": "berth-{}", "isGateway": true,
            "ipam": {{"type": "host-local", "ranges": [[{{"subnet": "10.77.0.0/24"}}]], "dataDir": "{}/data/ipam"}}}}]}}"#,
        node.tag(),
        node.dir().display()
    );
    fs::write(node.dir().join("net.d/10-slow.conflist"), conflist).expect("write a conflist");
    node.stop_daemon().await;
    let path = node.dir().join("config.toml");
    let config = fs::read_to_string(&path).expect("read config.toml");
    let with_plugins = config.replace("plugin_dirs = []", &format!("plugin_dirs = [{:?}]", plugins));
    assert_ne!(with_plugins, config);
    fs::write(&path, with_plugins).expect("write config.toml");
    node.restart().await;
    node.remember();
    node
}

/// Kills the daemon while the plugin works, and starts it again: it must not be away for longer than a node is waited for.
async fn killed_in_add(node: &Node, request: &RunPodSandboxRequest) {
    let (mut client, asked) = (node.runtime(), request.clone());
    let cut_off = tokio::spawn(async move { client.run_pod_sandbox(asked).await });
    until("the plugin works", 10, async || {
        node.enclosure().processes().iter().any(|(_, line)| line.starts_with("sleep"))
    })
    .await;
    node.kill_daemon().await;
    cut_off.await.expect("no panic").expect_err("nobody is there to answer");
    node.restart().await;
}

#[tokio::test]
async fn a_plugin_that_outlives_the_daemon_is_waited_for() {
    let node = slow_node(1).await;
    if !node.is_berth() {
        return;
    }
    let mut config = pod("slow");
    config.log_directory = node.dir().join("logs").to_str().expect("UTF-8").into();
    let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
    killed_in_add(&node, &request).await;
    // Whatever it made is undone with the pod that was cut off.
    node.assert_nothing_left();
    let again = node.try_run_pod(config).await.expect("the same request again");
    assert_eq!(again.run(script("c", "echo works")).await.said().await, "works\n");
    again.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_plugin_that_does_not_end_is_killed() {
    let node = slow_node(1).await;
    if !node.is_berth() {
        return;
    }
    let slow = node.dir().join("plugins/slow");
    let forever = fs::read_to_string(&slow).expect("read the plugin").replace("sleep 1", "exec sleep 1000");
    fs::write(&slow, forever).expect("write the plugin");
    let request = RunPodSandboxRequest { config: Some(pod("stuck")), runtime_handler: String::new() };
    killed_in_add(&node, &request).await;
    let left: Vec<_> = node.enclosure().processes().into_iter().filter(|(_, line)| line.starts_with("sleep")).collect();
    assert!(left.is_empty(), "{left:?}");
    node.assert_nothing_left();
}

/// The mark is in the environment, and that of a container is whatever its author wrote.
#[tokio::test]
async fn a_container_that_bears_the_mark_is_neither_waited_for_nor_killed() {
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let pod = node.run_pod(pod("marked")).await;
    let mut config = script("c", "sleep 1000 & echo $!; wait");
    let run = node.dir().join("run").to_str().expect("UTF-8").to_owned();
    config.envs = vec![berth_api::cri::KeyValue { key: "BERTH_DAEMON".into(), value: run.clone().into_bytes() }];
    let c = pod.run(config).await;
    let child = c.said().await;
    assert_eq!(
        c.shell(&format!("tr '\\0' '\\n' </proc/{}/environ | grep BERTH_DAEMON", child.trim())).await.trim(),
        format!("BERTH_DAEMON={run}")
    );
    node.kill_daemon().await;
    node.restart().await;
    // What is waited for is killed when it does not end, before the node is back.
    assert_eq!(c.shell(&format!("cat /proc/{}/comm", child.trim())).await, "sleep\n");
    pod.end().await;
    node.assert_nothing_left();
}
