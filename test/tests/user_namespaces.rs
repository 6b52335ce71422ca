//! Pods with a user namespace of their own: whose their files are on the host and inside, what their root may do, and
//! that everything else of a pod's life is as in any other.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use berth_api::cri::{
    Capability, ContainerConfig, IdMapping, ImageSpec, Int64Value, Mount, MountPropagation, NamespaceMode,
    NamespaceOption, PodSandboxConfig, StatusRequest, UserNamespace,
};
use berth_test::cri::{IMAGE, script, unconfined};
use berth_test::node::Options;
use berth_test::{Node, Pod, pod, until};
use tonic::Code;

const SLEEP: &str = "exec sleep 1000";

/// What root of the pods here is on the host, as user and as group.
const ROOT: (u32, u32) = (200_000, 300_000);

fn names(message: &str, name: &str) {
    assert!(message.contains(name), "{name:?} is not in: {message}");
}

fn mapping(host_id: u32) -> Vec<IdMapping> {
    vec![IdMapping { host_id, container_id: 0, length: 65_536 }]
}

fn users() -> UserNamespace {
    UserNamespace { mode: NamespaceMode::Pod.into(), uids: mapping(ROOT.0), gids: mapping(ROOT.1) }
}

/// As the kubelet asks for it: a pid namespace for each container.
fn options() -> NamespaceOption {
    NamespaceOption { pid: NamespaceMode::Container.into(), userns_options: Some(users()), ..Default::default() }
}

fn mapped(name: &str, options: &NamespaceOption) -> PodSandboxConfig {
    let mut config = pod(name);
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options = Some(options.clone());
    config
}

fn inside(name: &str, options: &NamespaceOption) -> ContainerConfig {
    let mut config = script(name, SLEEP);
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options = Some(options.clone());
    config
}

async fn refused(pod: &Pod<'_>, config: ContainerConfig, field: &str) {
    let refused = pod.try_create(config).await.err().expect(field);
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    names(refused.message(), field);
}

#[tokio::test]
async fn a_pod_has_a_user_namespace_with_its_own_ids() {
    let node = Node::start().await;
    let answer = node.runtime().status(StatusRequest::default()).await.expect("Status").into_inner();
    assert!(answer.runtime_handlers[0].features.as_ref().is_some_and(|features| features.user_namespaces));
    assert!(answer.features.is_some_and(|features| features.user_namespaces_host_network));
    let pod = node.run_pod(mapped("users", &options())).await;
    let c = pod.run(inside("c", &options())).await;
    let map = c.shell("cat /proc/self/uid_map /proc/self/gid_map /proc/1/uid_map").await;
    let words: Vec<_> = map.split_whitespace().collect();
    assert_eq!(words, ["0", "200000", "65536", "0", "300000", "65536", "0", "200000", "65536"]);
    assert_eq!(c.process_status("Uid").await.split_whitespace().collect::<Vec<_>>(), ["200000"; 4]);
    assert_eq!(c.process_status("Gid").await.split_whitespace().collect::<Vec<_>>(), ["300000"; 4]);
    // Files of the image are root's, and what root makes is on the host root of the pod's by no id: the mount maps it.
    assert_eq!(c.shell("stat -c %u:%g / /bin/busybox /etc/passwd /root").await, "0:0\n".repeat(4));
    c.shell("echo own >/root/own && chown 12:34 /root/own && mkdir /new && rm -r /var/www && mv /etc/group /etc/moved")
        .await;
    assert_eq!(c.shell("stat -c %u:%g /root/own /new /etc/moved && cat /root/own").await, "12:34\n0:0\n0:0\nown\n");
    let own = node.dir().join("data/rootfs").join(&c.id).join("upper/root/own");
    let meta = std::fs::metadata(own).expect("a file of the container's layer");
    assert_eq!(
        (meta.uid(), meta.gid()),
        (12, 34),
        "unmapped on the disk: another pod may have the image with other ids"
    );
    // The pod's own namespaces are its user namespace's: its root sets their names and addresses, not the host's.
    let mut admin = unconfined(inside("admin", &options()));
    let security = admin.linux.get_or_insert_default().security_context.get_or_insert_default();
    let add = ["SYS_ADMIN", "NET_ADMIN", "SYS_RESOURCE", "SYS_TIME"].map(String::from).to_vec();
    security.capabilities = Some(Capability { add_capabilities: add, ..Default::default() });
    let admin = pod.run(admin).await;
    admin
        .shell("hostname renamed && ip link add v0 type veth peer name v1 && ip link set lo down && ip link set lo up")
        .await;
    admin.shell("mount -t tmpfs mine /root && touch /root/file && umount /root").await;
    for forbidden in [
        // What the set-up mounted hides or restricts something, and stays.
        "umount /proc/kcore",
        "umount /etc/hosts",
        "mount -o remount,rw /sys",
        "mount -o remount,bind,rw /proc/sys",
        // The host's.
        "echo 1 >/proc/sys/vm/drop_caches",
        "mknod /root/disk b 8 0",
    ] {
        let said = admin.shell(&format!("({forbidden}) 2>&1 && echo done || true")).await;
        assert!(!said.contains("done"), "{forbidden}: {said}");
    }
    // To what it is already: nothing is lost where it is not refused. This program goes on when it is.
    names(&admin.shell("date -s \"@$(date +%s)\" 2>&1 || true").await, "can't set date: Operation not permitted");
    // An exec is in there too, as the user it is asked to be.
    assert_eq!(c.shell("tr -s ' ' </proc/self/uid_map").await, " 0 200000 65536\n");
    assert_eq!(c.shell("echo >/dev/null && head -c 4 /dev/zero | wc -c && echo x >/dev/shm/x && stat -c %u:%g /dev /dev/null /dev/shm /dev/shm/x /etc/hosts").await, format!("4\n{}", "0:0\n".repeat(5)));
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn containers_of_a_pod_with_users_share_its_processes_and_have_a_terminal() {
    let node = Node::start().await;
    let options = NamespaceOption { pid: NamespaceMode::Pod.into(), ..options() };
    let pod = node.run_pod(mapped("shared", &options)).await;
    let mut config = inside("c", &options);
    config.tty = true;
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.run_as_user = Some(Int64Value { value: 1000 });
    security.run_as_group = Some(Int64Value { value: 1000 });
    config.command = script("c", "id -u; tty; stat -c %u $(tty); exec sleep 1000").command;
    config.args.clear();
    let c = pod.run(config).await;
    until("the terminal's lines are logged", 15, async || c.logged("stdout").lines().count() >= 3).await;
    assert_eq!(c.logged("stdout").replace('\r', ""), "1000\n/dev/pts/0\n1000\n");
    let other = pod.run(inside("other", &options)).await;
    names(&other.shell("ps").await, "berth-pod-ns");
    // Pid 1 is berth's; nobody of the pod looks into it or ends it.
    let said = other.shell("(kill -9 1; ls -l /proc/1/exe; cat /proc/1/environ) 2>&1; test -d /proc/1").await;
    assert!(!said.contains("->") && !said.contains("PATH"), "{said}");
    // The namespace of its processes is owned by its user namespace: who may mount sees them in a procfs of his own. A
    // kernel lets him where nothing of the one that he has is covered.
    let mut admin = unconfined(inside("admin", &options));
    let security = admin.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.capabilities = Some(Capability { add_capabilities: vec!["ALL".into()], ..Default::default() });
    // What a kubelet sends for `procMount: Unmasked`.
    (security.masked_paths, security.readonly_paths) = (Vec::new(), Vec::new());
    let admin = pod.run(admin).await;
    admin.shell("mkdir /own && mount -t proc -o nosuid,nodev,noexec own /own").await;
    until("all three are seen there", 15, async || {
        admin.shell("cat /own/[0-9]*/comm | grep -c '^sleep$' || true").await == "3\n"
    })
    .await;
    node.kill_daemon().await;
    node.restart().await;
    assert_eq!(c.shell("id -u").await, "1000\n");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_pod_with_users_has_a_network_sysctls_and_may_have_the_hosts_network() {
    let node = Node::start().await;
    let mut config = mapped("net", &options());
    let sysctls = &mut config.linux.get_or_insert_default().sysctls;
    sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
    sysctls.insert("net.ipv4.tcp_syncookies".into(), "0".into());
    let first = node.run_pod(config).await;
    let c = first.run(inside("c", &options())).await;
    let ip = first.ip().await;
    names(&c.shell("ip addr show eth0").await, &ip);
    assert_eq!(c.shell("cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/tcp_syncookies").await, "1\n0\n");
    let second = node.run_pod(mapped("peer", &options())).await;
    let peer = second.run(inside("peer", &options())).await;
    peer.shell(&format!("ping -c 1 -W 5 {ip}")).await;
    c.shell("echo page >/index.html && httpd -p 80 -h /").await;
    assert_eq!(peer.shell(&format!("wget -q -O - http://{ip}/")).await, "page\n");
    first.end().await;
    second.end().await;

    let host = NamespaceOption { network: NamespaceMode::Node.into(), ..options() };
    let pod = node.run_pod(mapped("host", &host)).await;
    let c = pod.run(inside("c", &host)).await;
    assert_eq!(c.shell("readlink /proc/self/ns/net").await, node.enclosure().shell("readlink /proc/self/ns/net"));
    names(&c.shell("ls /sys/class/net").await, &format!("berth-{}", node.tag()));
    // The host's network is not the pod's to change.
    names(&c.shell("ip link set lo down 2>&1 || true").await, "Operation not permitted");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_volume_shows_its_owners_mapped() {
    let node = Node::start().await;
    let share = node.dir().join("share");
    std::fs::create_dir_all(&share).expect("make a directory");
    for (name, id) in [("root", 0), ("user", 1000)] {
        std::fs::write(share.join(name), name).expect("write");
        chown(share.join(name), Some(id), Some(id)).expect("chown");
    }
    let pod = node.run_pod(mapped("volumes", &options())).await;
    let mount = |inside: &str, host: &Path| Mount {
        container_path: inside.into(),
        host_path: host.to_str().expect("UTF-8").into(),
        ..Default::default()
    };
    let (uids, gids) = (mapping(ROOT.0), mapping(ROOT.1));
    let mapped = Mount { uid_mappings: uids.clone(), gid_mappings: gids.clone(), ..mount("/mapped", &share) };
    let mut config = inside("c", &options());
    let image = Some(ImageSpec { image: IMAGE.into(), ..Default::default() });
    let volume = Mount { image, host_path: String::new(), readonly: true, ..mount("/image", Path::new("")) };
    let part = Mount { image_sub_path: "etc".into(), container_path: "/part".into(), ..volume.clone() };
    config.mounts = vec![mapped.clone(), mount("/plain", &share), volume, part];
    let c = pod.run(config.clone()).await;
    assert_eq!(c.shell("stat -c %u:%g /mapped/root /mapped/user").await, "0:0\n1000:1000\n");
    assert_eq!(
        c.shell("stat -c %u:%g /plain/root /plain/user").await,
        "65534:65534\n".repeat(2),
        "the host's, and nobody here"
    );
    assert_eq!(c.shell("stat -c %u:%g /image/bin/sh /part/passwd").await, "0:0\n".repeat(2));
    names(&c.shell("touch /image/new 2>&1 || true").await, "Read-only file system");
    c.shell("echo x >/mapped/new && chown 7:8 /mapped/new && ! touch /plain/new").await;
    let meta = std::fs::metadata(share.join("new")).expect("made");
    assert_eq!((meta.uid(), meta.gid()), (7, 8), "as if there were no mapping");
    assert_eq!(c.status().await.mounts, {
        let id = c.status().await.image_ref;
        let mut told = config.mounts.clone();
        told[2].image.as_mut().expect("an image").image_ref = id.clone();
        told[3].image.as_mut().expect("an image").image_ref = id;
        told
    });
    let bad = |mount: Mount| {
        let mut config = inside("bad", &options());
        config.mounts = vec![mount];
        config
    };
    let zero = vec![IdMapping { host_id: 1, container_id: 0, length: 0 }];
    for (wrong, field) in [
        (Mount { gid_mappings: vec![], ..mapped.clone() }, "config.mounts[0].gidMappings: "),
        (Mount { uid_mappings: vec![], ..mapped.clone() }, "config.mounts[0].uidMappings: "),
        (Mount { uid_mappings: zero, ..mapped.clone() }, "config.mounts[0].uidMappings[0].length: "),
        (
            Mount { propagation: MountPropagation::PropagationBidirectional.into(), ..mapped.clone() },
            "config.mounts[0].propagation: ",
        ),
        // procfs has no owners to map.
        (Mount { uid_mappings: uids, gid_mappings: gids, ..mount("/x", Path::new("/proc")) }, "mapped owners"),
    ] {
        refused(&pod, bad(wrong), field).await;
    }
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_volume_that_is_a_tmpfs_itself_shows_its_owners_mapped() {
    let node = Node::start().await;
    // As the kubelet makes a volume of kind `memory`: in the host's mounts, not on its disk.
    let volume = node.dir().join("memory");
    node.enclosure().shell(&format!(
        "mkdir {0} && mount -t tmpfs -o mode=755,size=1m volume {0} && echo user >{0}/user && chown 1000:1001 {0}/user",
        volume.display()
    ));
    let owners = |name: &str| {
        let meta = std::fs::metadata(node.enclosure().path(volume.join(name))).expect("a file of the volume");
        (meta.uid(), meta.gid())
    };
    let mount = |inside: &str| Mount {
        container_path: inside.into(),
        host_path: volume.to_str().expect("UTF-8").into(),
        ..Default::default()
    };
    let plain = node.run_pod(pod("plain")).await;
    let mut config = script("c", SLEEP);
    config.mounts = vec![mount("/volume")];
    let c = plain.run(config).await;
    assert_eq!(c.shell("stat -f -c %T /volume; stat -c %u:%g /volume/user").await, "tmpfs\n1000:1001\n");
    c.shell("echo plain >/volume/plain").await;

    let users = node.run_pod(mapped("users", &options())).await;
    let mut config = inside("c", &options());
    let given = Mount { uid_mappings: mapping(ROOT.0), gid_mappings: mapping(ROOT.1), ..mount("/mapped") };
    config.mounts = vec![given, mount("/plain")];
    let d = users.run(config).await;
    assert_eq!(
        d.shell("stat -f -c %T /mapped; stat -c %u:%g /mapped /mapped/user /mapped/plain; cat /mapped/*").await,
        "tmpfs\n0:0\n1000:1001\n0:0\nplain\nuser\n"
    );
    assert_eq!(d.shell("stat -c %u:%g /plain/user").await, "65534:65534\n", "the host's, and nobody here");
    d.shell("echo users >/mapped/new && chown 7:8 /mapped/new && ! touch /plain/other").await;
    assert_eq!((owners("new"), owners("plain")), ((7, 8), (0, 0)), "as if there were no mapping");
    assert_eq!(c.shell("cat /volume/new && stat -c %u:%g /volume/new").await, "users\n7:8\n");
    // Its own bounds hold in there.
    d.shell("! head -c 2000000 /dev/zero >/mapped/large").await;
    plain.end().await;
    users.end().await;
    node.enclosure().shell(&format!("umount {}", volume.display()));
    node.assert_nothing_left();
}

#[tokio::test]
async fn what_is_no_user_namespace_is_refused_by_its_path() {
    let node = Node::start().await;
    let good = users();
    let two = [mapping(1000), mapping(200_000)].concat();
    let from_one = vec![IdMapping { host_id: 1000, container_id: 1, length: 9 }];
    let mode = |mode: NamespaceMode| UserNamespace { mode: mode.into(), ..Default::default() };
    for (wrong, field) in [
        (UserNamespace { uids: two, ..good.clone() }, "uids: 2 mappings"),
        (UserNamespace { gids: vec![], ..good.clone() }, "gids: 0 mappings"),
        (UserNamespace { uids: from_one, ..good.clone() }, "uids[0].container_id: 1"),
        (mode(NamespaceMode::Container), "mode: CONTAINER"),
        (mode(NamespaceMode::Target), "mode: TARGET"),
        (UserNamespace { mode: NamespaceMode::Node.into(), ..good.clone() }, "uids: with mode NODE"),
    ] {
        let options = NamespaceOption { userns_options: Some(wrong), ..options() };
        let refused = node.try_run_pod(mapped("refused", &options)).await.err().expect(field);
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        let path = "config.linux.security_context.namespace_options.userns_options.";
        names(refused.message(), &format!("{path}{field}"));
    }
    // A container is in its pod's.
    let pod = node.run_pod(mapped("users", &options())).await;
    let other = UserNamespace { uids: mapping(400_000), ..good };
    for wrong in [other, mode(NamespaceMode::Node)] {
        let options = NamespaceOption { userns_options: Some(wrong), ..options() };
        let field = "config.linux.security_context.namespace_options.userns_options: is not what";
        refused(&pod, inside("bad", &options), field).await;
    }
    let mut unmapped = inside("unmapped", &options());
    unmapped.linux.get_or_insert_default().security_context.get_or_insert_default().run_as_user =
        Some(Int64Value { value: 65_536 });
    refused(&pod, unmapped, "user 65536 is not mapped").await;
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn where_the_host_cannot_map_users_it_is_said_and_refused() {
    let forced = vec![("BERTH_FORCE_FALLBACK".to_owned(), "userns".to_owned())];
    let node = Node::start_with(Options { failpoints: true, environment: forced, ..Default::default() }).await;
    let answer = node.runtime().status(StatusRequest::default()).await.expect("Status").into_inner();
    assert!(answer.runtime_handlers[0].features.as_ref().is_some_and(|features| !features.user_namespaces));
    assert!(answer.features.is_some_and(|features| !features.user_namespaces_host_network));
    let refused = node.try_run_pod(mapped("refused", &options())).await.err().expect("this host cannot");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    names(refused.message(), "config.linux.security_context.namespace_options.userns_options: this host cannot: ");
    node.assert_nothing_left();
}
