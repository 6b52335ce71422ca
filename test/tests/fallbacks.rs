//! What a newer kernel offers and an older one has not: the older one's way, taken on purpose, does the same.

use berth_test::cri::container;
use berth_test::node::Options;
use berth_test::{Node, pod};

/// An image of two layers.
const LAYERED: &str = "registry.k8s.io/e2e-test-images/nonewprivs:1.3";

/// A container's root: how it is mounted, and that it is whole and writable.
async fn root_of(node: &Node) -> String {
    node.pull(LAYERED).await;
    let pod = node.run_pod(pod("layered")).await;
    let mut config = container("c", ["sleep", "1000"]);
    config.image.as_mut().expect("an image").image = LAYERED.into();
    let c = pod.run(config).await;
    // One file of each layer, one of ours, one that is whited out.
    let said =
        c.shell("test -x /nnp && test -x /bin/busybox && rm /nnp && echo new >/new && cat /new; test ! -e /nnp").await;
    assert_eq!(said, "new\n");
    let mounts = c.shell("cat /proc/1/mounts").await;
    let root = mounts.lines().find(|line| line.split(' ').nth(1) == Some("/")).expect("a root").to_owned();
    pod.end().await;
    root
}

/// The layers as overlayfs was told them.
fn lower(root: &str) -> Vec<&str> {
    let options = root.split(' ').nth(3).expect("mount options");
    let told: Vec<_> = options.split(',').filter_map(|option| option.strip_prefix("lowerdir")).collect();
    told.iter().flat_map(|value| value.trim_start_matches('+').trim_start_matches('=').split(':')).collect()
}

#[tokio::test]
async fn without_lowerdir_plus_the_layers_are_told_by_number() {
    let forced = vec![("BERTH_FORCE_FALLBACK".to_owned(), "lowerdir+".to_owned())];
    let node = Node::start_with(Options { failpoints: true, environment: forced, ..Default::default() }).await;
    let root = root_of(&node).await;
    let layers = lower(&root);
    assert_eq!(layers.len(), 2, "{root}");
    // Descriptors' numbers, not paths: the fallback was taken.
    assert!(layers.iter().all(|layer| layer.parse::<u32>().is_ok()), "{root}");
}
