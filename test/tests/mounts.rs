//! What a mount of a container may do, beside what every field test of `fields_container.rs` asks: read-only with all
//! below it, options that restrict it.

use std::path::{Path, PathBuf};

use berth_api::cri::{Capability, Mount, MountPropagation, RuntimeFeatures, RuntimeHandlerFeatures, StatusRequest};
use berth_test::cri::script;
use berth_test::node::Options;
use berth_test::{Node, pod};
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

/// A directory of the host's with a tmpfs mounted in it, at `sub`.
fn nested(node: &Node) -> PathBuf {
    let dir = node.dir().join("nested");
    node.enclosure().shell(&format!("mkdir -p {0}/sub && mount -t tmpfs below {0}/sub", dir.display()));
    dir
}

/// What the node says that it can do.
async fn features(node: &Node) -> (RuntimeHandlerFeatures, RuntimeFeatures) {
    let answer = node.runtime().status(StatusRequest::default()).await.expect("Status").into_inner();
    let handler = answer.runtime_handlers.iter().find(|handler| handler.name.is_empty()).expect("the default handler");
    (handler.features.expect("the handler's features"), answer.features.expect("features"))
}

#[tokio::test]
async fn a_recursive_read_only_mount_is_read_only_below_too() {
    let node = Node::start().await;
    assert!(features(&node).await.0.recursive_read_only_mounts);
    let source = nested(&node);
    let pod = node.run_pod(pod("readonly")).await;
    let mut config = script("c", SLEEP);
    let readonly = Mount { readonly: true, ..mount("/plain", &source) };
    let recursive = Mount { container_path: "/recursive".into(), recursive_read_only: true, ..readonly.clone() };
    config.mounts = vec![readonly, recursive.clone()];
    let c = pod.run(config.clone()).await;
    for (path, writable) in [("/plain", false), ("/plain/sub", true), ("/recursive", false), ("/recursive/sub", false)]
    {
        let said = c.shell(&format!("touch {path}/new 2>&1 && rm {path}/new || true")).await;
        let expected = if writable { "" } else { "Read-only file system" };
        assert!(said.contains(expected) && said.is_empty() == writable, "{path}: {said}");
    }
    assert_eq!(c.status().await.mounts, config.mounts, "the status says what is mounted");
    config.metadata.as_mut().expect("metadata").name = "refused".into();
    for (wrong, why) in [
        (Mount { readonly: false, ..recursive.clone() }, "needs readonly"),
        (
            Mount { propagation: MountPropagation::PropagationHostToContainer.into(), ..recursive.clone() },
            "PROPAGATION_HOST_TO_CONTAINER",
        ),
        (
            Mount { propagation: MountPropagation::PropagationBidirectional.into(), ..recursive.clone() },
            "PROPAGATION_BIDIRECTIONAL",
        ),
    ] {
        node.enclosure().shell(&format!("mount --bind {0} {0} && mount --make-shared {0}", source.display()));
        config.mounts = vec![wrong];
        let refused = pod.try_create(config.clone()).await.err().expect(why);
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        names(refused.message(), "config.mounts[0].recursive_read_only: ");
        names(refused.message(), why);
        node.enclosure().shell(&format!("umount {}", source.display()));
    }
    pod.end().await;
    node.enclosure().shell(&format!("umount {}/sub", source.display()));
    node.assert_nothing_left();
}

#[tokio::test]
async fn where_the_kernel_cannot_make_all_read_only_it_is_said_and_refused() {
    let forced = vec![("BERTH_FORCE_FALLBACK".to_owned(), "rro".to_owned())];
    let node = Node::start_with(Options { failpoints: true, environment: forced, ..Default::default() }).await;
    assert!(!features(&node).await.0.recursive_read_only_mounts);
    let pod = node.run_pod(pod("readonly")).await;
    let mut config = script("c", SLEEP);
    config.mounts = vec![Mount { readonly: true, recursive_read_only: true, ..mount("/x", node.dir()) }];
    let refused = pod.try_create(config.clone()).await.err().expect("this kernel cannot");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().starts_with("RROUnsupported: config.mounts[0].recursive_read_only: "), "{refused}");
    config.mounts[0].recursive_read_only = false;
    pod.run(config).await;
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_file_is_not_mounted_on_a_directory_and_links_of_the_image_lead_nowhere() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("kinds")).await;
    let (file, dir) = (node.dir().join("file"), node.dir().join("dir"));
    std::fs::write(&file, "file\n").expect("write");
    std::fs::create_dir(&dir).expect("make a directory");
    std::fs::write(dir.join("inside"), "inside\n").expect("write");
    let mut config = script("c", SLEEP);
    for (inside, host) in [("/etc", &file), ("/etc/passwd", &dir)] {
        config.mounts = vec![mount(inside, host)];
        let refused = pod.try_create(config.clone()).await.err().expect("another kind is there");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        for part in [inside, host.to_str().expect("UTF-8"), "a directory can only be mounted on a directory"] {
            names(refused.message(), part);
        }
    }
    // The image has /var/run as a link to ../run, and /lib64 to lib: what is mounted there is mounted in the image. A
    // target below a file, as one through a link to nowhere, is the image's affair as well.
    config.mounts = vec![mount("/var/run/made/here", &dir), mount("/lib64/file", &file)];
    let c = pod.run(config.clone()).await;
    assert_eq!(c.shell("cat /run/made/here/inside /lib/file").await, "inside\nfile\n");
    config.metadata.as_mut().expect("metadata").name = "below".into();
    config.mounts = vec![mount("/etc/passwd/below", &dir)];
    let refused = pod.try_create(config).await.err().expect("below a file");
    names(refused.message(), "/etc/passwd/below");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn mount_options_hold_for_the_mount_and_those_below_it() {
    let node = Node::start().await;
    assert!(features(&node).await.1.mount_options);
    let source = nested(&node);
    // A device that the container's cgroup allows, a program, and the same program for everybody as root.
    let make = "mknod -m 666 $d/null c 1 3; cp /bin/true $d/run; cp /usr/bin/id $d/id; chmod 4755 $d/id";
    let make = format!("for d in {0} {0}/sub; do {make}; done", source.display());
    node.enclosure().shell(&make);
    let pod = node.run_pod(pod("options")).await;
    for (option, command, answer) in [
        ("noexec", "$d/run", "Permission denied"),
        ("nodev", "echo >$d/null", "Permission denied"),
        ("nosuid", "grep -q nosuid /proc/self/mounts && grep \" $d \" /proc/self/mounts", "nosuid"),
    ] {
        let mut config = script(option, SLEEP);
        let optioned = Mount { mount_options: vec![option.into()], ..mount("/with", &source) };
        config.mounts = vec![optioned, mount("/without", &source)];
        let c = pod.run(config).await;
        for (dir, restricted) in [("/with", true), ("/with/sub", true), ("/without", false), ("/without/sub", false)] {
            let said = c.shell(&format!("d={dir}; ({command}) 2>&1 || true")).await;
            assert_eq!(said.contains(answer), restricted, "{option}: {dir}: {said}");
            // The container may not mount, so it cannot lift what it is under.
            let lift = format!("mount -o remount,bind,exec,dev,suid {dir} 2>&1 || true");
            names(&c.shell(&lift).await, "permission denied");
            let said = c.shell(&format!("d={dir}; ({command}) 2>&1 || true")).await;
            assert_eq!(said.contains(answer), restricted, "{option}: {dir}, after a remount: {said}");
        }
    }
    let mut config = script("unknown", SLEEP);
    for unknown in ["ro", "exec", "noexec,nodev", "", "size=1m", "rnoexec"] {
        let options = vec!["nodev".into(), unknown.into()];
        config.mounts = vec![mount("/y", &source), Mount { mount_options: options, ..mount("/x", &source) }];
        let refused = pod.try_create(config.clone()).await.err().expect(unknown);
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        names(refused.message(), &format!("config.mounts[1].mount_options[1]: {unknown:?} is neither"));
    }
    // All of them together, and one that would be mounted in place of another, at once.
    let mut config = script("all", SLEEP);
    let options = ["noexec", "nodev", "nosuid", "noexec"].map(str::to_owned).to_vec();
    config.mounts = vec![Mount { mount_options: options, ..mount("/all", &source) }];
    config.linux.get_or_insert_default().security_context.get_or_insert_default().capabilities =
        Some(Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() });
    let c = pod.run(config).await;
    let table = c.shell("grep ' /all' /proc/self/mounts | cut -d' ' -f2,4").await;
    for line in table.lines() {
        for option in ["noexec", "nodev", "nosuid"] {
            names(line, option);
        }
    }
    assert_eq!(table.lines().count(), 2, "{table}");
    pod.end().await;
    node.enclosure().shell(&format!("umount {}/sub", source.display()));
    node.assert_nothing_left();
}
