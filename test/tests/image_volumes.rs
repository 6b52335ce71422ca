//! Images as volumes: read-only, by directory, kept for as long as a container has them, told by their digest; and what
//! is refused begins with the word that the kubelet looks for.

use berth_api::cri::{
    Capability, ContainerConfig, ImageSpec, ImageStatusRequest, Mount, MountPropagation, RemoveImageRequest,
};
use berth_test::cri::{IMAGE, script, unconfined};
use berth_test::node::Options;
use berth_test::{Node, Pod, pod};
use tonic::Code;

const SLEEP: &str = "exec sleep 1000";

/// A configuration and no layer, which only these tests pull and remove.
const NO_LAYERS: &str = "registry.k8s.io/berth-test/no-layers:1";
/// An image of one layer more than [`IMAGE`], which only these tests pull and remove.
const VOLUME: &str = "registry.k8s.io/e2e-test-images/nonewprivs:1.3";

fn names(message: &str, name: &str) {
    assert!(message.contains(name), "{name:?} is not in: {message}");
}

fn spec(image: &str) -> Option<ImageSpec> {
    Some(ImageSpec { image: image.into(), user_specified_image: VOLUME.into(), ..Default::default() })
}

fn volume(inside: &str, image: &str) -> Mount {
    Mount { container_path: inside.into(), image: spec(image), readonly: true, ..Default::default() }
}

fn with(name: &str, mounts: &[Mount]) -> ContainerConfig {
    let mut config = script(name, SLEEP);
    config.mounts = mounts.to_vec();
    config
}

/// What a container is told when it is made with this mount.
async fn refused(pod: &Pod<'_>, mount: Mount) -> tonic::Status {
    pod.try_create(with("refused", &[mount])).await.err().expect("refused")
}

async fn is_an_image_volume(node: &Node) {
    let id = node.pull(VOLUME).await;
    node.pull(NO_LAYERS).await;
    let pod = node.run_pod(pod("volumes")).await;
    let mut asked = volume("/deep/er/volume", VOLUME);
    asked.image.as_mut().expect("an image").annotations.insert("note".into(), "kept".into());
    let mounts = [asked.clone(), volume("/same", &id), volume("/one-layer", IMAGE), volume("/empty", NO_LAYERS)];
    let mut config = unconfined(with("c", &mounts));
    // Who may mount cannot make it writable either.
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.capabilities = Some(Capability { add_capabilities: vec!["SYS_ADMIN".into()], ..Default::default() });
    let c = pod.run(config).await;
    // A file of each layer; executable; and nothing can be written.
    assert_eq!(
        c.shell("cd /deep/er/volume && ./bin/ls -d nnp bin/busybox etc/passwd").await,
        "bin/busybox\netc/passwd\nnnp\n"
    );
    for path in ["/deep/er/volume", "/same", "/one-layer", "/empty"] {
        let write = format!(
            "mount -o remount,bind,rw {path} 2>&1; mount -o remount,rw {path} 2>&1; touch {path}/new 2>&1 || true"
        );
        names(&c.shell(&write).await, "Read-only file system");
        if path == "/empty" {
            assert_eq!(c.shell("ls -a /empty; stat -c %a /empty").await, ".\n..\n755\n");
            continue;
        }
        assert_eq!(c.shell(&format!("{path}/bin/echo runs")).await, "runs\n");
    }
    let told = c.status().await.mounts;
    asked.image.as_mut().expect("an image").image_ref = id.clone();
    assert_eq!(told[0], asked, "as it was asked for, with the digest");
    assert_eq!(told[1].image.as_ref().expect("an image").image_ref, id);
    pod.end().await;
    for image in [VOLUME, NO_LAYERS] {
        node.images().remove_image(RemoveImageRequest { image: spec(image) }).await.expect("RemoveImage");
    }
    node.assert_nothing_left();
}

#[tokio::test]
async fn an_image_is_a_read_only_volume_and_its_digest_is_told() {
    is_an_image_volume(&Node::start().await).await;
}

#[tokio::test]
async fn without_lowerdir_plus_an_image_is_a_volume_too() {
    let forced = vec![("BERTH_FORCE_FALLBACK".to_owned(), "lowerdir+".to_owned())];
    is_an_image_volume(
        &Node::start_with(Options { failpoints: true, environment: forced, ..Default::default() }).await,
    )
    .await;
}

#[tokio::test]
async fn an_image_is_a_volume_where_layers_are_copied() {
    let node =
        Node::start_with(Options { config: "[images]\nsnapshotter = \"native\"".into(), ..Default::default() }).await;
    let pod = node.run_pod(pod("copied")).await;
    let below = Mount { image_sub_path: "etc".into(), ..volume("/etc-of-it", IMAGE) };
    node.pull(NO_LAYERS).await;
    let c = pod.run(with("c", &[volume("/all", IMAGE), below, volume("/empty", NO_LAYERS)])).await;
    assert_eq!(
        c.shell("cmp /all/etc/passwd /etc-of-it/passwd && touch /all/new 2>&1 || true").await.trim(),
        "touch: /all/new: Read-only file system"
    );
    assert_eq!(
        c.shell("ls -a /empty; touch /empty/new 2>&1 || true").await,
        ".\n..\ntouch: /empty/new: Read-only file system\n"
    );
    pod.end().await;
    node.images().remove_image(RemoveImageRequest { image: spec(NO_LAYERS) }).await.expect("RemoveImage");
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_directory_of_an_image_is_a_volume_and_no_path_leads_out_of_it() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("below")).await;
    let below = |path: &str| Mount { image_sub_path: path.into(), ..volume("/below", IMAGE) };
    for (name, path, entry) in
        [("plain", "etc", "passwd"), ("dots", "./etc//", "passwd"), ("link", "var/run", "."), ("all", "", "etc/passwd")]
    {
        let c = pod.run(with(name, &[below(path)])).await;
        c.shell(&format!("test -e /below/{entry} && ! touch /below/new")).await;
        if path == "etc" {
            assert_eq!(c.shell("ls /below/etc 2>&1 || true").await.trim(), "ls: /below/etc: No such file or directory");
        }
    }
    for (path, code, why) in [
        (
            "not-existing",
            Code::FailedPrecondition,
            "ImageVolumeMountFailed: config.mounts[0].image_sub_path: \"not-existing\" is not in",
        ),
        (
            "etc/passwd",
            Code::FailedPrecondition,
            "ImageVolumeMountFailed: config.mounts[0].image_sub_path: \"etc/passwd\" is no directory",
        ),
        ("../etc", Code::InvalidArgument, "config.mounts[0].image_sub_path: "),
        ("etc/../../etc", Code::InvalidArgument, "config.mounts[0].image_sub_path: "),
        ("/etc", Code::InvalidArgument, "config.mounts[0].image_sub_path: "),
    ] {
        let status = refused(&pod, below(path)).await;
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().starts_with(why), "{status}");
    }
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn what_is_no_image_volume_is_refused_by_its_path() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("refused")).await;
    let good = volume("/x", IMAGE);
    let status = refused(&pod, volume("/x", "registry.k8s.io/not-here:1")).await;
    assert_eq!(status.code(), Code::NotFound);
    assert!(
        status
            .message()
            .starts_with("ImageVolumeMountFailed: config.mounts[0].image: \"registry.k8s.io/not-here:1\" is not here"),
        "{status}"
    );
    let empty = Some(ImageSpec { user_specified_image: "x".into(), ..Default::default() });
    for (wrong, field) in [
        (Mount { readonly: false, ..good.clone() }, "readonly"),
        (Mount { host_path: "/tmp".into(), ..good.clone() }, "host_path"),
        (Mount { image: empty, ..good.clone() }, "image.image"),
        (Mount { propagation: MountPropagation::PropagationBidirectional.into(), ..good.clone() }, "propagation"),
        (
            Mount { image: None, host_path: "/tmp".into(), image_sub_path: "etc".into(), ..good.clone() },
            "image_sub_path",
        ),
    ] {
        let status = refused(&pod, wrong).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        names(status.message(), &format!("config.mounts[0].{field}: "));
    }
    // In the way of the mount is something that no directory can be mounted on.
    let status = refused(&pod, Mount { container_path: "/etc/passwd".into(), ..good }).await;
    assert!(status.message().starts_with("ImageVolumeMountFailed: config.mounts[0].image: "), "{status}");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn an_image_that_is_a_volume_keeps_its_layers_over_its_removal_and_a_killed_daemon() {
    let node = Node::start().await;
    node.pull(VOLUME).await;
    let pod = node.run_pod(pod("kept")).await;
    let c = pod.run(with("c", &[volume("/v", VOLUME)])).await;
    let other = pod.run(with("other", &[volume("/v", VOLUME)])).await;
    node.images().remove_image(RemoveImageRequest { image: spec(VOLUME) }).await.expect("RemoveImage");
    let status = ImageStatusRequest { image: spec(VOLUME), verbose: false };
    assert!(node.images().image_status(status).await.expect("ImageStatus").into_inner().image.is_none());
    node.kill_daemon().await;
    node.restart().await;
    c.stop(0).await.expect("StopContainer");
    c.remove().await.expect("RemoveContainer");
    // Not cached: read from the disk.
    node.enclosure().shell("sync; echo 2 >/proc/sys/vm/drop_caches");
    assert_eq!(other.shell("/v/nnp | head -c 9").await, "Effective");
    let told = other.status().await.mounts.remove(0).image.expect("an image").image_ref;
    assert!(told.starts_with("sha256:"), "{told}");
    pod.end().await;
    // With the last container the layers go.
    node.assert_nothing_left();
}
