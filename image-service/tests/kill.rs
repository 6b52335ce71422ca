//! A daemon killed at each step it names: the next one finds a store in order, and the same requests succeed.

mod node;
mod support;

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use berth_image_service::{Config, Images, failpoints};
use node::Node;
use support::image::{Image, Layer};
use support::registry::Registry;
use support::tar::Tar;

/// Variables that make the test binary the daemon that is killed.
const ROOT: &str = "BERTH_TEST_ROOT";
const IMAGE: &str = "BERTH_TEST_IMAGE";

/// Steps at which a daemon can be killed; may only grow.
const STEPS: usize = 32;

/// Not a test by itself: the life of the daemon that is killed.
#[tokio::test(flavor = "multi_thread")]
async fn life() {
    let (Ok(root), Ok(image)) = (std::env::var(ROOT), std::env::var(IMAGE)) else { return };
    for snapshotter in ["overlay", "native"] {
        let mut config: Config = toml::from_str(&format!("snapshotter = '{snapshotter}'")).unwrap();
        config.root = format!("{root}/images").into();
        config.rootfs_dir = format!("{root}/rootfs").into();
        let node =
            Node { dir: tempfile::tempdir().unwrap(), images: Images::open(config.clone()).await.unwrap(), config };
        node.pull(&image).await.unwrap();
        let id = node.images.find(&image).await.unwrap().unwrap().id;
        node.images.prepare_rootfs(&id, "c1").await.unwrap();
        node.images.remove_rootfs("c1").await.unwrap();
        let empty = image.replace("app:1", "empty:1");
        node.pull(&empty).await.unwrap();
        let id = node.images.find(&empty).await.unwrap().unwrap().id;
        node.images.prepare_volume(&id, "c1.0").await.unwrap();
        node.images.remove_rootfs("c1.0").await.unwrap();
        node.remove(&empty).await;
        node.remove(&image).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_step_leaves_a_store_that_goes_on() {
    let names = failpoints();
    println!("{} steps: {}", names.len(), names.join(" "));
    assert!(names.len() >= STEPS, "steps were lost: {}", names.len());
    let registry = Registry::start().await;
    let base = Tar::own().dir("./").dir("usr/").dir("usr/lib/").symlink("lib", "usr/lib").file("usr/lib/a", b"a").end();
    let leaning = Tar::own().hardlink("again", "usr/lib/a").file("lib/b", b"b").end();
    let image = Image::new(vec![Layer::gzip(base), Layer::gzip(leaning)]);
    image.push(&registry, "app:1");
    let empty = Image::new(vec![]);
    empty.push(&registry, "empty:1");
    let name = registry.image("app:1");
    for step in names {
        for side in ["before", "after"] {
            let mut node = Node::start().await;
            let root = node.dir.path().to_owned();
            let mut daemon = Command::new(std::env::current_exe().unwrap());
            daemon.args(["--exact", "life", "--nocapture"]).env(ROOT, &root).env(IMAGE, &name);
            daemon.env("BERTH_FAILPOINT", format!("{step}:{side}"));
            let end = tokio::task::spawn_blocking(move || daemon.output().unwrap()).await.unwrap();
            assert_eq!(end.status.signal(), Some(9), "{step}:{side} was not reached: {end:?}");
            node.restart().await;
            // What is listed is whole: it can be read and stood on.
            for listed in node.list().await {
                let id = node.images.find(&listed.id).await.unwrap().unwrap().id;
                if listed.id == empty.id() {
                    node.images.prepare_volume(&id, "c1.0").await.unwrap();
                    continue;
                }
                let file = node.images.read_file(&id, "/again", 10).await.unwrap();
                assert_eq!(file.as_deref(), Some(&b"a"[..]), "{step}:{side}");
            }
            for container in node.images.rootfs_list().await.unwrap() {
                node.images.remove_rootfs(&container).await.unwrap();
            }
            assert_eq!(node.pull(&name).await.unwrap(), image.id(), "{step}:{side}");
            let id = node.images.find(&name).await.unwrap().unwrap().id;
            node.images.prepare_rootfs(&id, "c1").await.unwrap();
            assert_eq!(node.images.read_file(&id, "/lib/b", 10).await.unwrap().as_deref(), Some(&b"b"[..]));
            node.images.remove_rootfs("c1").await.unwrap();
            node.remove(&name).await;
            node.remove(&empty.id()).await;
            assert_eq!(node.left().await, [""; 0], "{step}:{side}");
            assert!(std::fs::read_dir(&node.config.rootfs_dir).unwrap().next().is_none(), "{step}:{side}");
        }
    }
}
