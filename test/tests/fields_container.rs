//! Fields of CreateContainerRequest outside the security context and the limits, each proven from inside the container or
//! by the kernel; see `fields.tsv`.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use berth_api::cri::{
    Container, ContainerState, Device, ImageSpec, KeyValue, ListContainersRequest, Mount, MountPropagation,
    NamespaceMode, NamespaceOption, PodSandboxConfig, Signal, StreamContainersRequest,
};
use berth_test::cri::{IMAGE, container, script};
use berth_test::{Node, Pod, pod, until};
use tonic::Code;

const SLEEP: &str = "exec sleep 1000";

/// `name` is in `message`; shows it all when it is not.
fn names(message: &str, name: &str) {
    assert!(message.contains(name), "{name:?} is not in: {message}");
}

fn mount(inside: &str, host: &Path) -> Mount {
    let host = host.to_str().expect("UTF-8").to_owned();
    Mount { container_path: inside.into(), host_path: host, ..Default::default() }
}

/// A new directory of the node's for a test.
fn dir(node: &Node, name: &str) -> PathBuf {
    let dir = node.dir().join(name);
    std::fs::create_dir_all(&dir).expect("make a directory");
    dir
}

async fn privileged_pod<'a>(node: &'a Node, name: &str) -> Pod<'a> {
    let mut config = pod(name);
    config.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
    node.run_pod(config).await
}

#[tokio::test]
async fn a_containers_labels_and_annotations_come_back_byte_for_byte() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("labelled")).await;
    let mut config = script("c", SLEEP);
    for (key, value) in [("a/b.c", ""), ("text", "\"quoted\"\n\tand ünïcode \u{1F980}\\"), ("", "no key")] {
        config.labels.insert(key.into(), value.into());
        config.annotations.insert(key.into(), format!("{value}{value}"));
    }
    config.annotations.insert("large".into(), "x".repeat(100_000));
    let c = pod.create(config.clone()).await;
    let status = c.status().await;
    assert_eq!((&status.labels, &status.annotations), (&config.labels, &config.annotations));
    assert_eq!(status.metadata, config.metadata);
    // The lists say the same, field by field.
    let expected = Container {
        id: c.id.clone(),
        pod_sandbox_id: pod.id.clone(),
        metadata: status.metadata,
        image: status.image,
        image_ref: status.image_ref,
        state: ContainerState::ContainerCreated.into(),
        created_at: status.created_at,
        labels: status.labels,
        annotations: status.annotations,
        image_id: status.image_id,
    };
    assert!(expected.created_at > 0 && !expected.image_id.is_empty() && !expected.image_ref.is_empty());
    let listed = node.runtime().list_containers(ListContainersRequest::default()).await.expect("ListContainers");
    assert_eq!(listed.into_inner().containers, std::slice::from_ref(&expected));
    let streamed = node.runtime().stream_containers(StreamContainersRequest::default()).await;
    let message = streamed.expect("StreamContainers").into_inner().message().await.expect("a stream");
    assert_eq!(message.expect("a message").containers, [expected]);
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn an_image_spec_comes_back_as_it_was_sent() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("image")).await;
    let id = node.pull(IMAGE).await;
    let mut config = container("c", ["sleep", "1000"]);
    // As the kubelet sends it: the id to run, and what the user wrote.
    let image = ImageSpec {
        image: id.clone(),
        user_specified_image: IMAGE.into(),
        annotations: [("note".to_owned(), "kept".to_owned())].into(),
        image_ref: id.clone(),
        ..Default::default()
    };
    config.image = Some(image.clone());
    let c = pod.run(config).await;
    let status = c.status().await;
    assert_eq!((status.image, status.image_ref), (Some(image), id));
    let mut unknown = container("unknown", ["true"]);
    unknown.image.as_mut().expect("an image").image = "registry.k8s.io/no-such-image:1".into();
    let refused = pod.try_create(unknown).await.err().expect("an image that is not here");
    names(refused.message(), "registry.k8s.io/no-such-image:1");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn environment_values_are_bytes() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("bytes")).await;
    let mut config = container("c", ["sleep", "1000"]);
    let every: Vec<u8> = (1..=255).collect();
    for (key, value) in
        [("EVERY", every.clone()), ("EMPTY", Vec::new()), ("TWICE", b"1".to_vec()), ("TWICE", b"2".to_vec())]
    {
        config.envs.push(KeyValue { key: key.into(), value });
    }
    let c = pod.run(config).await;
    let seen = std::fs::read(c.proc("environ").await).expect("read an environment");
    let variables: Vec<&[u8]> = seen.split(|b| *b == 0).collect();
    let has = |name: &str, value: &[u8]| {
        let wanted = [name.as_bytes(), b"=", value].concat();
        variables.iter().filter(|v| ***v == *wanted).count() == 1
    };
    assert!(has("EVERY", &every) && has("EMPTY", b"") && has("TWICE", b"2"), "{}", String::from_utf8_lossy(&seen));
    assert!(!has("TWICE", b"1"));
    let executed = c.try_exec(["sh", "-c", "printf %s \"$EVERY\""], 10).await.expect("ExecSync");
    assert_eq!(executed.stdout, every, "an exec has them too");
    for bad in ["", "A=B"] {
        let mut config = container("bad", ["true"]);
        config.envs = vec![KeyValue { key: bad.into(), value: Vec::new() }];
        let refused = pod.try_create(config).await.err().expect("a bad name of a variable");
        assert_eq!(refused.code(), Code::InvalidArgument);
        names(refused.message(), "config.envs[0].key");
    }
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_missing_working_directory_is_made() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("cwd")).await;
    let mut config = container("c", ["sleep", "1000"]);
    config.working_dir = "/made/for/it".into();
    let c = pod.run(config).await;
    let at = std::fs::read_link(c.proc("cwd").await).expect("readlink");
    assert_eq!(at.as_os_str().as_bytes(), b"/made/for/it");
    let mut bad = container("bad", ["true"]);
    bad.working_dir = "relative".into();
    names(pod.try_create(bad).await.err().expect("relative").message(), "config.working_dir");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_mounts_source_may_be_a_link_and_must_exist() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("sources")).await;
    let share = dir(&node, "share");
    std::fs::write(share.join("file"), "content").expect("write");
    let link = node.dir().join("link");
    std::os::unix::fs::symlink(&share, &link).expect("symlink");
    let mut config = script("c", SLEEP);
    config.mounts = vec![mount("/linked", &link), mount("/one/file", &share.join("file"))];
    let c = pod.run(config.clone()).await;
    assert_eq!(c.shell("cat /linked/file /one/file").await, "contentcontent");

    let missing = node.dir().join("missing");
    config.metadata.as_mut().expect("metadata").name = "d".into();
    config.mounts = vec![mount("/x", &missing)];
    let refused = pod.try_create(config.clone()).await.err().expect("a source that is not there");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    names(refused.message(), missing.to_str().expect("UTF-8"));
    for (bad, field) in [
        (mount("relative", &share), "config.mounts[0].container_path"),
        (mount("/a/../b", &share), "config.mounts[0].container_path"),
        (mount("/x", Path::new("relative")), "config.mounts[0].host_path"),
    ] {
        config.mounts = vec![bad];
        let refused = pod.try_create(config.clone()).await.err().expect(field);
        assert_eq!(refused.code(), Code::InvalidArgument);
        names(refused.message(), field);
    }
    pod.end().await;
    node.assert_nothing_left();
}

/// A directory that is a mount of its own, shared.
fn shared(node: &Node, name: &str) -> PathBuf {
    let dir = dir(node, name);
    let path = dir.display();
    node.enclosure().shell(&format!("mount --bind {path} {path} && mount --make-shared {path} && mkdir {path}/sub"));
    dir
}

fn propagating(inside: &str, host: &Path, propagation: MountPropagation) -> Mount {
    Mount { propagation: propagation.into(), ..mount(inside, host) }
}

#[tokio::test]
async fn mounts_of_the_host_reach_a_slave_and_not_a_private_mount() {
    let node = Node::start().await;
    let source = shared(&node, "source");
    let pod = privileged_pod(&node, "propagates").await;
    let mut config = script("c", SLEEP);
    config.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
    config.mounts = vec![
        propagating("/private", &source, MountPropagation::PropagationPrivate),
        propagating("/slave", &source, MountPropagation::PropagationHostToContainer),
    ];
    let c = pod.run(config).await;
    let sub = source.join("sub");
    node.enclosure().shell(&format!("mount -t tmpfs later {0} && touch {0}/seen", sub.display()));
    assert_eq!(c.shell("ls /slave/sub; ls /private/sub").await, "seen\n");
    c.shell("mkdir /slave/own && mount -t tmpfs own /slave/own && touch /slave/own/secret").await;
    assert_eq!(node.enclosure().shell(&format!("ls {}/own", source.display())), "", "a slave gives nothing back");
    pod.end().await;
    node.enclosure().shell(&format!("umount {}; rmdir {}/own; umount {1}", sub.display(), source.display()));
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_shared_mount_gives_and_takes_and_must_be_shared_on_the_host() {
    let node = Node::start().await;
    let source = shared(&node, "source");
    let pod = privileged_pod(&node, "propagates").await;
    let mut config = script("c", SLEEP);
    config.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
    config.mounts = vec![propagating("/both", &source, MountPropagation::PropagationBidirectional)];
    let c = pod.run(config.clone()).await;
    c.shell("mount -t tmpfs given /both/sub && touch /both/sub/given").await;
    assert_eq!(node.enclosure().shell(&format!("ls {}/sub", source.display())), "given\n");
    node.enclosure().shell(&format!("umount {}/sub", source.display()));
    assert_eq!(c.shell("ls /both/sub").await, "", "and takes");

    let plain = dir(&node, "plain");
    node.enclosure().shell(&format!("mount --bind {0} {0} && mount --make-private {0}", plain.display()));
    config.metadata.as_mut().expect("metadata").name = "d".into();
    config.mounts = vec![propagating("/both", &plain, MountPropagation::PropagationBidirectional)];
    let refused = pod.try_create(config).await.err().expect("nothing would reach the host");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    names(refused.message(), "config.mounts[0].propagation");
    names(refused.message(), plain.to_str().expect("UTF-8"));
    pod.end().await;
    node.enclosure().shell(&format!("umount {} {}", source.display(), plain.display()));
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_device_has_its_path_mode_and_permissions() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("devices")).await;
    // A number without a driver: the kernel's answer tells the device cgroup's no (EPERM) from its yes (ENXIO).
    let host = node.dir().join("device");
    node.enclosure().shell(&format!("mknod -m 640 {0} c 240 7 && chown 12:34 {0}", host.display()));
    let device = |inside: &str, permissions: &str| Device {
        container_path: inside.into(),
        host_path: host.to_str().expect("UTF-8").into(),
        permissions: permissions.into(),
    };
    for (permissions, reads, writes) in
        [("r", true, false), ("w", false, true), ("rw", true, true), ("m", false, false)]
    {
        let mut config = script(permissions, SLEEP);
        config.devices = vec![device("/dev/deep/mine", permissions)];
        let c = pod.run(config).await;
        let seen = c.shell("stat -c '%t:%T %a %u:%g' /dev/deep/mine").await;
        assert_eq!(seen, "f0:7 640 12:34\n");
        for (command, allowed) in [("cat /dev/deep/mine", reads), ("echo x 1<>/dev/null >>/dev/deep/mine", writes)] {
            let answer = c.shell(&format!("({command}) 2>&1 || true")).await;
            let expected = if allowed { "No such device or address" } else { "Operation not permitted" };
            assert!(answer.contains(expected), "{permissions}: {command}: {answer}");
        }
    }
    let file = dir(&node, "plain");
    for (bad, field) in [
        (device("/dev/x", "rx"), "config.devices[0].permissions"),
        (device("relative", "r"), "config.devices[0].container_path"),
        (
            Device { host_path: file.to_str().expect("UTF-8").into(), ..device("/dev/x", "r") },
            "config.devices[0].host_path",
        ),
        (Device { host_path: "/dev/no-such".into(), ..device("/dev/x", "r") }, "/dev/no-such"),
    ] {
        let mut config = script("bad", "true");
        config.devices = vec![bad];
        let refused = pod.try_create(config).await.err().expect(field);
        assert_eq!(refused.code(), Code::InvalidArgument);
        names(refused.message(), field);
    }
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_terminal_is_a_terminal() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("tty")).await;
    let asks = "for fd in 0 1 2; do [ -t $fd ] && echo $fd; done; tty; echo TERM=$TERM; exec sleep 1000";
    let mut config = script("with", asks);
    config.tty = true;
    let c = pod.run(config).await;
    until("the terminal's lines are logged", 15, async || c.logged("stdout").contains("TERM=xterm")).await;
    let said = c.logged("stdout").replace('\r', "");
    assert!(said.starts_with("0\n1\n2\n/dev/"), "{said}");
    let c = pod.run(script("without", asks)).await;
    until("the lines are logged", 15, async || c.logged("stdout").contains("TERM=")).await;
    assert_eq!(c.logged("stdout"), "not a tty\nTERM=\n");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn the_stop_signal_is_the_requests_else_the_images() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("signals")).await;
    let nginx = "registry.k8s.io/e2e-test-images/nginx:1.14-2"; // its StopSignal is SIGQUIT
    node.pull(nginx).await;
    let traps = "for s in TERM QUIT USR1; do trap \"echo $s; exit 0\" $s; done; echo up; while :; do sleep 0.1; done";
    for (name, image, asked, signal) in [
        ("default", IMAGE, Signal::RuntimeDefault, "TERM"),
        ("image", nginx, Signal::RuntimeDefault, "QUIT"),
        ("request", nginx, Signal::Sigusr1, "USR1"),
    ] {
        let mut config = script(name, traps);
        config.image.as_mut().expect("an image").image = image.into();
        config.stop_signal = asked.into();
        let c = pod.run(config).await;
        c.said().await;
        assert_eq!(c.status().await.stop_signal(), asked);
        c.stop(10).await.expect("StopContainer");
        assert_eq!(c.logged("stdout"), format!("up\n{signal}\n"), "{name}");
    }
    pod.end().await;
    // Pulled after `remember`.
    let image = ImageSpec { image: nginx.into(), ..Default::default() };
    let request = berth_api::cri::RemoveImageRequest { image: Some(image) };
    node.images().remove_image(request).await.expect("RemoveImage");
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_container_joins_its_targets_processes() {
    let node = Node::start().await;
    let mut config = pod("target");
    let own = NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() };
    let sandbox = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    sandbox.namespace_options = Some(own.clone());
    let pod = node.run_pod(config).await;
    let with = |name: &str, options: NamespaceOption| {
        let mut config = script(name, SLEEP);
        let context = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        context.namespace_options = Some(options);
        config
    };
    let target = pod.run(with("target", own.clone())).await;
    let joins = NamespaceOption { pid: NamespaceMode::Target.into(), target_id: target.id.clone(), ..own.clone() };
    let debugger = pod.run(with("debugger", joins.clone())).await;
    let read = "readlink /proc/self/ns/pid";
    assert_eq!(debugger.shell(read).await, target.shell(read).await);
    assert_ne!(pod.run(with("other", own)).await.shell(read).await, target.shell(read).await);
    target.stop(0).await.expect("StopContainer");
    let refused = pod.try_create(with("late", joins)).await.err().expect("the target does not run");
    assert_eq!(refused.code(), Code::InvalidArgument);
    names(refused.message(), "namespace_options.target_id");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_container_is_made_in_the_sandbox_that_was_meant() {
    let node = Node::start().await;
    let mut pod = node.run_pod(pod("meant")).await;
    let (id, made) = (pod.id.clone(), pod.config.clone());
    pod.id = "0".repeat(64);
    let refused = pod.try_create(script("c", SLEEP)).await.err().expect("no such sandbox");
    assert_eq!(refused.code(), Code::NotFound);
    pod.id = id;
    type Change = fn(&mut PodSandboxConfig);
    let changes: [(&str, Change); 5] = [
        ("sandbox_config.metadata", |c| c.metadata.as_mut().expect("metadata").name = "other".into()),
        ("sandbox_config.hostname", |c| c.hostname = "other".into()),
        ("sandbox_config.log_directory", |c| c.log_directory = "/other".into()),
        ("sandbox_config.linux.cgroup_parent", |c| c.linux.get_or_insert_default().cgroup_parent = "/other".into()),
        ("sandbox_config.linux.sysctls", |c| {
            c.linux.get_or_insert_default().sysctls.insert("net.core.somaxconn".into(), "1".into());
        }),
    ];
    for (field, change) in changes {
        pod.config = made.clone();
        change(&mut pod.config);
        let refused = pod.try_create(script("c", SLEEP)).await.err().expect(field);
        assert_eq!(refused.code(), Code::InvalidArgument);
        names(refused.message(), field);
    }
    pod.config = made;
    pod.end().await;
    node.assert_nothing_left();
}

/// The kubelet says the pod's present labels and resolver with each container; they change nothing of the sandbox.
#[tokio::test]
async fn a_sandbox_stays_as_it_was_made() {
    let node = Node::start().await;
    let mut pod = node.run_pod(pod("stays")).await;
    let made = pod.config.clone();
    pod.config.labels.insert("later".into(), "label".into());
    pod.config.annotations.insert("later".into(), "annotation".into());
    let servers = vec!["10.11.12.13".to_owned()];
    pod.config.dns_config = Some(berth_api::cri::DnsConfig { servers, ..Default::default() });
    let linux = pod.config.linux.get_or_insert_default();
    linux.resources.get_or_insert_default().cpu_shares = 77;
    linux.overhead.get_or_insert_default().cpu_shares = 78;
    let security = linux.security_context.get_or_insert_default();
    security.readonly_rootfs = true;
    security.run_as_user = Some(berth_api::cri::Int64Value { value: 1234 });
    let c = pod.run(script("c", SLEEP)).await;
    assert_eq!(c.shell("id -u; touch /written; grep -c 10.11.12.13 /etc/resolv.conf || true").await, "0\n0\n");
    let status = pod.status().await;
    assert_eq!((status.labels, status.annotations), (made.labels, made.annotations));
    pod.end().await;
    node.assert_nothing_left();
}
