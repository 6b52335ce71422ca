//! SELinux labels of pods, containers and volumes. Where it is on (`hack/vm selinux`) the kernel says who has which; where
//! it is off, whoever asks for one is refused by the field, and a volume is as it was.

use std::os::unix::fs::symlink;
use std::path::Path;

use berth_api::cri::{
    ContainerConfig, IdMapping, Int64Value, LinuxContainerSecurityContext, Mount, NamespaceMode, NamespaceOption,
    PodSandboxConfig, SeLinuxOption, UserNamespace,
};
use berth_test::cri::script;
use berth_test::node::Options;
use berth_test::{Container, Node, Pod, has, pod, until};
use tonic::Code;

const SLEEP: &str = "exec sleep 1000";
const FIELD: &str = "config.linux.security_context.selinux_options";
const OFF: &str = "SELinux is not on in this host's kernel";

fn options(kind: &str, level: &str) -> Option<SeLinuxOption> {
    Some(SeLinuxOption { r#type: kind.into(), level: level.into(), ..Default::default() })
}

fn labelled_pod(name: &str, options: Option<SeLinuxOption>) -> PodSandboxConfig {
    let mut config = pod(name);
    config.linux.get_or_insert_default().security_context.get_or_insert_default().selinux_options = options;
    config
}

fn secured(name: &str, change: impl FnOnce(&mut LinuxContainerSecurityContext)) -> ContainerConfig {
    let mut config = script(name, SLEEP);
    change(config.linux.get_or_insert_default().security_context.get_or_insert_default());
    config
}

fn labelled(name: &str, options: Option<SeLinuxOption>) -> ContainerConfig {
    secured(name, |security| security.selinux_options = options)
}

fn volume(host: &Path, relabel: bool) -> Mount {
    Mount {
        container_path: "/volume".into(),
        host_path: host.display().to_string(),
        selinux_relabel: relabel,
        ..Default::default()
    }
}

fn told(text: &[u8]) -> String {
    String::from_utf8_lossy(text).trim_matches(['\0', '\n']).to_owned()
}

/// The label of a container's first process, which one that is executed must have too.
async fn label(c: &Container<'_>) -> String {
    let own = told(&std::fs::read(c.proc("attr/current").await).expect("read its label"));
    let exec = c.shell("cat /proc/self/attr/current").await;
    assert_eq!(told(exec.as_bytes()), own, "an exec has another label");
    own
}

/// `TYPE:LEVEL` of a label.
fn kind_and_level(label: &str) -> &str {
    label.splitn(3, ':').nth(2).expect("user:role:type:level")
}

/// `TYPE:LEVEL` of a file's label; `None` without one.
fn file_label(path: &Path) -> Option<String> {
    let mut value = [0; 256];
    let length = rustix::fs::lgetxattr(path, "security.selinux", &mut value).ok()?;
    Some(kind_and_level(&told(&value[..length])).to_owned())
}

async fn refused(pod: &Pod<'_>, config: ContainerConfig, words: &str) {
    let refused = pod.try_create(config).await.err().expect(words);
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains(words), "{words:?} is not in: {refused}");
}

#[tokio::test]
async fn labels_are_as_a_pod_asks() {
    let node = Node::start().await;
    let asked = labelled_pod("asked", options("", "s0:c10,c20"));
    if !has("selinux", "labels_are_as_a_pod_asks") {
        let refused = node.try_run_pod(asked).await.err().expect("there are no labels");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(&format!("{FIELD}: {OFF}")), "{refused}");
        return node.assert_nothing_left();
    }
    for wrong in [options("no_such_type_t", ""), options("", "s0,c4,c5"), options("x:y", "")] {
        let refused = node.try_run_pod(labelled_pod("wrong", wrong)).await.err().expect("the policy has no such label");
        assert!(refused.code() == Code::InvalidArgument && refused.message().contains(FIELD), "{refused}");
    }
    let asked = node.run_pod(asked).await;
    let (one, other) = (node.run_pod(pod("one")).await, node.run_pod(pod("other")).await);
    let c = asked.run(script("c", SLEEP)).await;
    assert_eq!(kind_and_level(&label(&c).await), "container_t:s0:c10,c20");
    let (first, second) = (one.run(script("c", SLEEP)).await, other.run(script("c", SLEEP)).await);
    let (level, others) = (label(&first).await, label(&second).await);
    let pair = kind_and_level(&level).strip_prefix("container_t:s0:c").and_then(|pair| pair.split_once(",c"));
    let is_number = |text: &str| text.parse::<u16>().is_ok();
    assert!(pair.is_some_and(|(low, high)| is_number(low) && is_number(high)), "no pair of categories: {level}");
    assert_ne!(level, others, "two pods share a level");
    let files = kind_and_level(&level).replace("container_t", "container_file_t");
    for path in
        [".", "etc/hosts", "etc/hostname", "etc/resolv.conf", "dev", "dev/shm", "dev/mqueue", "dev/pts", "dev/null"]
    {
        let found = file_label(&first.proc("root").await.join(path));
        assert_eq!(found.as_deref(), Some(files.as_str()), "/{path}");
    }
    // Its pod's labels are its pod's, whichever daemon makes it.
    node.restart().await;
    let later = one.run(script("later", SLEEP)).await;
    assert_eq!(label(&later).await, level);
    for pod in [asked, one, other] {
        pod.end().await;
    }
    node.assert_nothing_left();
}

#[tokio::test]
async fn labels_are_as_a_container_asks() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("containers")).await;
    if !has("selinux", "labels_are_as_a_container_asks") {
        refused(&pod, labelled("c", options("container_t", "")), &format!("{FIELD}: {OFF}")).await;
        // What asks for nothing in particular does not ask.
        pod.run(labelled("nothing", options("", ""))).await;
        pod.end().await;
        return node.assert_nothing_left();
    }
    for wrong in [options("no_such_type_t", ""), options("", "s0,c4,c5"), options("x:y", "")] {
        refused(&pod, labelled("wrong", wrong), FIELD).await;
    }
    let own = label(&pod.run(script("own", SLEEP)).await).await;
    let c = pod.run(labelled("level", options("", "s0:c4,c5"))).await;
    assert_eq!(kind_and_level(&label(&c).await), "container_t:s0:c4,c5");
    assert_eq!(file_label(&c.proc("root").await.join(".")).as_deref(), Some("container_file_t:s0:c4,c5"));
    let c = pod.run(labelled("type", options("spc_t", ""))).await;
    assert_eq!(kind_and_level(&label(&c).await), kind_and_level(&own).replace("container_t", "spc_t"));
    // What changes a process in other ways changes nothing of its label.
    let terminal = ContainerConfig { tty: true, ..script("terminal", SLEEP) };
    let no_more = secured("no-more", |security| {
        security.no_new_privs = true;
        security.run_as_user = Some(Int64Value { value: 1000 });
    });
    for config in [terminal, no_more] {
        let name = config.metadata.as_ref().map(|m| m.name.clone());
        assert_eq!(label(&pod.run(config).await).await, own, "{name:?}");
    }
    pod.end().await;
    of_the_host(&node).await;
    mapped(&node).await;
    node.assert_nothing_left();
}

/// A container that is the host's in another way is what the policy makes of it, unless it asks.
async fn of_the_host(node: &Node) {
    let mut config = pod("host");
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.privileged = true;
    let pod = node.run_pod(config).await;
    let c = pod.run(secured("free", |security| security.privileged = true)).await;
    assert_eq!(kind_and_level(&label(&c).await), "spc_t:s0");
    let c = pod.run(secured("pids", |security| {
        security.namespace_options.get_or_insert_default().pid = NamespaceMode::Node.into();
    }));
    assert_eq!(kind_and_level(&label(&c.await).await), "spc_t:s0");
    let c = pod.run(secured("asks", |security| {
        security.privileged = true;
        security.selinux_options = options("container_t", "s0:c1,c2");
    }));
    assert_eq!(kind_and_level(&label(&c.await).await), "container_t:s0:c1,c2");
    pod.end().await;
}

/// In a user namespace of its pod.
async fn mapped(node: &Node) {
    let ids = vec![IdMapping { host_id: 1_000_000, container_id: 0, length: 65_536 }];
    let users = UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids };
    let mut config = pod("mapped");
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    let own = NamespaceOption { userns_options: Some(users), ..security.namespace_options.clone().unwrap_or_default() };
    security.namespace_options = Some(own.clone());
    let pod = node.run_pod(config).await;
    let c = pod.run(secured("c", |security| {
        let pid = NamespaceMode::Container.into();
        security.namespace_options = Some(NamespaceOption { pid, ..own });
    }));
    let c = c.await;
    let label = label(&c).await;
    assert!(kind_and_level(&label).starts_with("container_t:s0:c"), "{label}");
    c.shell("touch /made /dev/shm/made").await;
    pod.end().await;
}

#[tokio::test]
async fn a_volume_is_relabelled_for_its_container() {
    let node = Node::start_with(Options { failpoints: true, ..Default::default() }).await;
    let (share, outside) = (node.dir().join("share"), node.dir().join("outside"));
    std::fs::create_dir_all(share.join("below")).expect("make a volume");
    std::fs::write(share.join("below/file"), "kept\n").expect("write in it");
    std::fs::write(&outside, "").expect("write beside it");
    symlink(&outside, share.join("link")).expect("make a link");
    let first = node.run_pod(pod("first")).await;
    let config = |relabel| ContainerConfig { mounts: vec![volume(&share, relabel)], ..script("c", SLEEP) };
    let (before, beside) = (file_label(&share.join("below/file")), file_label(&outside));
    if !has("selinux", "a_volume_is_relabelled_for_its_container") {
        // The kubelet asks on every node.
        let c = first.run(config(true)).await;
        c.shell("touch /volume/written").await;
        assert!(share.join("written").exists());
        assert_eq!(file_label(&share.join("below/file")), before);
        first.end().await;
        return node.assert_nothing_left();
    }
    for (path, words) in [("/usr", "/usr is the host's own"), ("/proc/sys", "/proc/sys is the kernel's")] {
        let config = ContainerConfig { mounts: vec![volume(Path::new(path), true)], ..script("wrong", SLEEP) };
        refused(&first, config, &format!("config.mounts[0].selinux_relabel: {words}")).await;
    }
    for side in ["before", "after"] {
        let point = format!("create_container::relabel:{side}");
        node.stop_daemon().await;
        node.restart_with(&[("BERTH_FAILPOINT", &point)]).await;
        first.try_create(config(true)).await.err().expect("the daemon dies of it");
        until(&format!("the daemon dies at {point}"), 10, async || node.daemon_pid().is_none()).await;
        node.restart_with(&[]).await;
    }
    let c = first.run(config(true)).await;
    let files = kind_and_level(&label(&c).await).replace("container_t", "container_file_t");
    for path in ["", "below", "below/file", "link"] {
        assert_eq!(file_label(&share.join(path)).as_deref(), Some(files.as_str()), "{path:?}");
    }
    assert_eq!(file_label(&outside), beside, "what a link points to is nobody's volume");
    assert_eq!(c.shell("cat /volume/below/file").await, "kept\n");
    c.shell("echo new >/volume/below/new").await;

    let second = node.run_pod(pod("second")).await;
    let other = second.run(config(false)).await;
    let said = other.shell("cat /volume/below/file 2>&1 || true").await;
    assert!(said.contains("ermission denied"), "another pod reads it: {said}");
    // Whoever asks last has it.
    other.remove().await.expect("RemoveContainer");
    let other = second.run(config(true)).await;
    assert_eq!(other.shell("cat /volume/below/new").await, "new\n");
    let said = c.shell("cat /volume/below/file 2>&1 || true").await;
    assert!(said.contains("ermission denied"), "it is still the first one's: {said}");
    for pod in [first, second] {
        pod.end().await;
    }
    node.assert_nothing_left();
}
