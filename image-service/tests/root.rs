//! What needs root: devices, foreign owners, overlay mounts. Each test runs in a mount namespace of its own.

mod node;
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use berth_image_service::{Rootfs, SnapshotterKind};
use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};
use node::Node;
use support::image::{Image, Layer, OCI_INDEX, OCI_MANIFEST, index, platform};
use support::registry::Registry;
use support::tar::{Entry, Tar, noise};
use support::tree::{assert_same, by_gnu_tar, describe};
use tonic::Code;

/// Runs a test where its mounts are nobody else's, and end with it. The runtime's threads are born there too.
fn in_own_mounts(test: impl AsyncFnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Mounts a root as the shim does on old kernels: one mount(2), lower directories relative to where they all lie.
fn mount_rootfs(rootfs: &Rootfs, layers: &Path, at: &Path) {
    fs::create_dir_all(at).unwrap();
    let [spec] = rootfs.mounts.as_slice() else { panic!("{rootfs:?}") };
    if spec.kind == "bind" {
        return mount(Some(spec.source.as_str()), at, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    }
    let common = format!("{}/", layers.display());
    let options = spec.options.join(",").replace(&common, "");
    assert!(options.len() < 4096, "{} bytes of options", options.len());
    std::env::set_current_dir(layers).unwrap(); // this thread's own: unshare has given it one
    mount(Some("overlay"), at, Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap();
}

/// The tree that a container of `image` would see.
async fn tree_of(node: &Node, image: &str, untimed: &[&str]) -> BTreeMap<String, String> {
    let id = node.images.find(image).await.unwrap().unwrap().id;
    let rootfs = node.images.prepare_rootfs(&id, "c1").await.unwrap();
    let at = node.dir.path().join("mnt");
    mount_rootfs(&rootfs, &node.config.root.join("l"), &at);
    let tree = describe(&at, untimed);
    std::env::set_current_dir("/").unwrap();
    umount(&at).unwrap();
    node.images.remove_rootfs("c1").await.unwrap();
    tree
}

/// Pulls an image of these layers and compares what a container sees with what GNU tar makes of them.
async fn check_like_gnu_tar(layers: Vec<Layer>, untimed: &[&str]) {
    let reference = tempfile::tempdir().unwrap();
    let theirs = reference.path().join("root");
    fs::create_dir(&theirs).unwrap();
    by_gnu_tar(&layers.iter().map(|layer| layer.tar.clone()).collect::<Vec<_>>(), &theirs);
    let theirs = describe(&theirs, untimed);
    let registry = Registry::start().await;
    let image = Image::new(layers);
    image.push(&registry, "app:1");
    for kind in [SnapshotterKind::Overlay, SnapshotterKind::Native] {
        let node = Node::with(|config| config.snapshotter = kind).await;
        node.pull(&registry.image("app:1")).await.unwrap();
        assert_same(&tree_of(&node, &registry.image("app:1"), untimed).await, &theirs);
        node.remove(&image.id()).await;
        assert_eq!(node.left().await, [""; 0]);
    }
}

fn tar() -> Tar {
    Tar::default()
}

/// A base with what distributions have.
fn base() -> Tar {
    let capability = &b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..]; // VFS_CAP_REVISION_2, cap_net_bind_service
    let dir = |path: &'static str, mode| Entry { path: path.as_bytes(), kind: b'5', mode, ..Entry::default() };
    tar()
        .entry(&Entry { owner: Some((7, 8)), ..dir("./", 0o751) })
        .entry(&dir("tmp/", 0o1777))
        .entry(&dir("usr/", 0o755))
        .entry(&dir("usr/lib/", 0o755))
        .entry(&dir("etc/", 0o755))
        .entry(&dir("dev/", 0o755))
        .entry(&dir("srv/", 0o2775))
        .entry(&dir("old/", 0o755))
        .entry(&dir("old/deep/", 0o700))
        .symlink("lib", "usr/lib")
        .symlink("etc/dangling", "/nowhere/at/all")
        .file("old/deep/file", b"old")
        .file("old/other", b"old")
        .file("etc/passwd", b"root:x:0:0::/:/bin/sh\n")
        .file("usr/lib/libc.so", &noise(100_000, 1))
        .file("empty", b"")
        .file("usr/lib/alone", b"one name")
        .hardlink("usr/lib/libc.so.6", "usr/lib/libc.so")
        .hardlink("etc/link-to-link", "etc/dangling")
        .entry(&Entry { path: b"usr/su", mode: 0o4755, data: b"#!", owner: Some((0, 5)), ..Entry::default() })
        .entry(&Entry {
            path: b"usr/ping",
            data: b"#!",
            records: &[("SCHILY.xattr.security.capability", capability)],
            ..Entry::default()
        })
        .entry(&Entry {
            path: b"xattrs",
            data: b"x",
            records: &[("SCHILY.xattr.user.a", b"1\n2"), ("SCHILY.xattr.trusted.b", b"\0")],
            ..Entry::default()
        })
        .entry(&Entry {
            path: b"srv/owned",
            data: b"x",
            mode: 0o600,
            owner: Some((4_294_967_294, 70_000)),
            mtime: "-1.5",
            ..Entry::default()
        })
        .entry(&Entry { path: b"dev/null", kind: b'3', mode: 0o666, device: (1, 3), ..Entry::default() })
        .entry(&Entry {
            path: b"dev/sda",
            kind: b'4',
            mode: 0o660,
            device: (8, 0),
            owner: Some((0, 6)),
            ..Entry::default()
        })
        .entry(&Entry { path: b"dev/fifo", kind: b'6', mode: 0o622, ..Entry::default() })
        .entry(&Entry { path: b"etc/\xff\x1b\n", data: b"bytes", ..Entry::default() })
}

/// A file with holes, as GNU tar writes it.
fn sparse() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let file = fs::File::create(dir.path().join("holes")).unwrap();
    use std::os::unix::fs::FileExt;
    file.write_all_at(b"begin", 0).unwrap();
    file.write_all_at(b"middle", 5 << 20).unwrap();
    file.set_len(9 << 20).unwrap();
    let archive = std::process::Command::new("tar")
        .args(["--create", "--sparse", "--format=posix", "--numeric-owner", "--directory"])
        .arg(dir.path())
        .arg("holes")
        .output()
        .unwrap();
    assert!(archive.status.success() && archive.stdout.len() < 100_000);
    archive.stdout
}

#[test]
fn layers_make_the_tree_that_gnu_tar_makes() {
    in_own_mounts(async || {
        let long = format!("usr/lib/{}/{}", "d".repeat(200), "f".repeat(250));
        let second = tar()
            .dir("usr/")
            .dir("usr/lib/")
            .file("usr/lib/new", b"new")
            .file(".wh.empty", b"")
            .dir("old/")
            .file("old/.wh..wh..opq", b"")
            .file("old/new", b"new")
            .file("etc/.wh.passwd", b"")
            .dir("etc/")
            .file("etc/passwd", b"root:x:0:0::/root:/bin/sh\n")
            .dir(&format!("usr/lib/{}/", "d".repeat(200)))
            .file(&long, b"long")
            .symlink("xattrs", "etc/passwd")
            .end();
        let third = tar().dir("etc/").file(".wh.srv", b"").dir("srv/").file("srv/only", b"x").end();
        let layers = vec![Layer::gzip(base().end()), Layer::zstd(second), Layer::plain(third), Layer::gzip(sparse())];
        // Layers that touch a directory without describing it: tar's clock, ours is the image's.
        check_like_gnu_tar(layers, &["", "etc", "old"]).await;
    });
}

#[test]
fn a_layer_may_lean_on_those_below() {
    in_own_mounts(async || {
        let leaning = [
            tar().file("tmp/file", b"the directory stays 1777").end(),
            tar().hardlink("usr/again", "usr/su").end(),
            tar().file("lib/through", b"a symlink of a layer below").end(),
            tar().hardlink("usr/via", "lib/alone").end(),
            tar().symlink("here", "usr").file("here/lib/x", b"a symlink of this layer").end(),
            tar().file("usr/.wh.lib", b"").file("usr/lib/only", b"whited out first, then there again").end(),
            tar().file(".wh.lib", b"").dir("lib/").file("lib/own", b"was a symlink").end(),
            tar().file("/etc/absolute", b"inside").file("./etc//odd", b"inside").end(),
        ];
        let every = ["", "tmp", "usr", "usr/lib", "lib", "etc", "old", "dev", "srv"];
        for layer in &leaning {
            check_like_gnu_tar(vec![Layer::gzip(base().end()), Layer::gzip(layer.clone())], &every).await;
        }
        let all = [base().end()].into_iter().chain(leaning[..5].iter().cloned());
        check_like_gnu_tar(all.map(Layer::gzip).collect(), &every).await;
    });
}

#[test]
fn a_hundred_and_twenty_layers_are_one_root() {
    in_own_mounts(async || {
        let mut layers = vec![Layer::gzip(base().end())];
        for at in 1..120 {
            let before = format!("usr/lib/.wh.step{}", at - 1);
            let layer = tar().dir("usr/").dir("usr/lib/").file(&format!("usr/lib/step{at}"), &[at as u8; 100]);
            let layer = if at % 3 == 0 { layer.file(&before, b"") } else { layer };
            layers.push(Layer::gzip(layer.file("etc/last", format!("{at}").as_bytes()).end()));
        }
        check_like_gnu_tar(layers, &["etc"]).await;
    });
}

#[test]
fn a_nested_index_leads_to_the_same_tree() {
    in_own_mounts(async || {
        let (node, registry) = (Node::start().await, Registry::start().await);
        let image = Image::new(vec![Layer::zstd(base().end())]);
        image.push(&registry, "app:x");
        let inner = index(&[(OCI_MANIFEST, &image.manifest(), Some(platform()))]);
        registry.put_manifest("app:y", OCI_INDEX, &inner);
        registry.put_manifest("app:1", OCI_INDEX, &index(&[(OCI_INDEX, &inner, None)]));
        node.pull(&registry.image("app:1")).await.unwrap();
        let reference = tempfile::tempdir().unwrap();
        by_gnu_tar(&[base().end()], reference.path());
        assert_same(&tree_of(&node, &registry.image("app:1"), &[]).await, &describe(reference.path(), &[]));
    });
}

#[test]
fn a_whiteout_that_hides_nothing_is_not_seen() {
    in_own_mounts(async || {
        let (node, registry) = (Node::start().await, Registry::start().await);
        let second =
            tar().dir("new/").file("new/.wh.never", b"").file("new/file", b"x").file(".wh.nor-this", b"").end();
        Image::new(vec![Layer::gzip(base().end()), Layer::gzip(second)]).push(&registry, "app:1");
        node.pull(&registry.image("app:1")).await.unwrap();
        let tree = tree_of(&node, &registry.image("app:1"), &[]).await;
        assert!(tree.contains_key("new/file"));
        assert!(!tree.contains_key("new/never") && !tree.contains_key("nor-this"), "{tree:?}");
    });
}

#[test]
fn no_archive_reaches_outside_or_is_taken_for_what_it_is_not() {
    in_own_mounts(async || {
        let dir = tempfile::tempdir().unwrap();
        let canary = dir.path().join("canary");
        fs::create_dir(&canary).unwrap();
        fs::write(canary.join("file"), "alive").unwrap();
        let before = describe(&canary, &[]);
        let outside = canary.to_str().unwrap();
        let up = "../".repeat(1000);
        let special = |kind, device, link: &'static [u8]| Entry { path: b"x", kind, device, link, ..Entry::default() };
        let overlay: &[(&str, &[u8])] = &[
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.user.overlay.metacopy", b""),
        ];
        // What must happen: the pull fails and names this, or it succeeds and this path is in the tree.
        let cases: Vec<(&str, Tar, Result<&str, &str>)> = vec![
            ("dots", tar().file(&format!("{up}kept"), b"x"), Ok("kept")),
            ("absolute", tar().file("/kept", b"x"), Ok("kept")),
            ("odd slashes", tar().file("a//./b/../kept", b"x"), Ok("a/kept")),
            ("symlink out", tar().symlink("d", outside).file("d/kept", b"x"), Ok(&outside[1..])),
            ("symlink up", tar().symlink("d", &format!("{up}{}", &outside[1..])).file("d/kept", b"x"), Ok("d")),
            ("symlink loop", tar().symlink("a", "b").symlink("b", "a").file("a/x", b"x"), Err("too many symlinks")),
            ("over a symlink", tar().symlink("x", &format!("{outside}/file")).file("x", b"x"), Ok("x")),
            (
                "directory over a symlink",
                tar().symlink("x", outside).entry(&Entry { path: b"x/", kind: b'5', mode: 0o777, ..Entry::default() }),
                Ok("x"),
            ),
            ("hardlink out", tar().hardlink("x", &format!("{outside}/file")), Err("not there")),
            ("hardlink through a symlink", tar().symlink("d", outside).hardlink("x", "d/file"), Err("not there")),
            (
                "hardlink to a symlink",
                tar().symlink("d", &format!("{outside}/file")).hardlink("x", "d").entry(&Entry {
                    path: b"x",
                    mode: 0o777,
                    ..Entry::default()
                }),
                Ok("x"),
            ),
            ("hardlink to itself", tar().file("x", b"").hardlink("x", "x"), Err("to itself")),
            ("hardlink to a directory", tar().dir("d").hardlink("x", "d"), Err("to a directory")),
            ("hardlink to a later entry", tar().hardlink("x", "later").file("later", b""), Err("not there")),
            ("whiteout of itself", tar().file(".wh..", b""), Err("whiteout of no name")),
            ("whiteout of the parent", tar().file("etc/.wh...", b""), Err("whiteout of no name")),
            ("whiteout of no name", tar().file("etc/.wh.", b""), Err("whiteout of no name")),
            ("whiteout as a symlink", tar().symlink(".wh.x", "y"), Err("whiteout that is not a file")),
            ("opaque as a directory", tar().dir(".wh..wh..opq/"), Err("whiteout that is not a file")),
            ("a directory named as one", tar().dir(".wh.d/").file(".wh.d/file", b"x"), Ok(".wh.d/file")),
            ("overlay's whiteout", tar().entry(&special(b'3', (0, 0), b"")), Err("device 0:0")),
            (
                "overlay's attributes",
                tar().entry(&Entry { path: b"x/", kind: b'5', records: overlay, ..Entry::default() }),
                Ok("x"),
            ),
            ("symlink to nothing", tar().entry(&special(b'2', (0, 0), b"")), Err("symlink to nothing")),
            ("a file as a directory", tar().file("x", b"").file("x/y", b""), Err("not a directory")),
            ("a file as the root", tar().file("/", b""), Ok("")),
            ("a link as the root", tar().symlink(".", outside), Err("only a directory")),
            ("unknown type", tar().entry(&special(b'Z', (0, 0), b"")), Err("unsupported entry type")),
            ("name of 256 bytes", tar().file(&"n".repeat(256), b""), Err("File name too long")),
            ("path of 4096 bytes", tar().file(&"d/".repeat(2048), b""), Err("path longer")),
            ("deep", tar().file(&format!("{}x", "d/".repeat(2000)), b"x"), Ok("d")),
        ];
        let registry = Registry::start().await;
        for (name, archive, expected) in cases {
            let node = Node::start().await;
            let image = Image::new(vec![Layer::gzip(archive.end())]);
            image.push(&registry, "app:1");
            for _ in 0..2 {
                match (node.pull(&registry.image("app:1")).await, expected) {
                    (Ok(_), Ok(path)) => {
                        let tree = tree_of(&node, &registry.image("app:1"), &[]).await;
                        assert!(tree.contains_key(path), "{name}: {tree:?}");
                        assert!(tree.values().all(|line| !line.contains("overlay")), "{name}: {tree:?}");
                        assert_eq!(node.images.remove_rootfs("c1").await.ok(), Some(()));
                    }
                    (Err(error), Err(text)) => {
                        assert!(error.message().contains(text), "{name}: {error}");
                        assert_eq!(error.code(), Code::InvalidArgument, "{name}: {error}");
                        assert_eq!(node.left().await, [""; 0], "{name}");
                    }
                    (outcome, expected) => panic!("{name}: {outcome:?}, expected {expected:?}"),
                }
            }
            assert_same(&describe(&canary, &[]), &before);
            node.remove(&image.id()).await;
            assert_eq!(node.left().await, [""; 0], "{name}");
        }
    });
}

#[test]
fn a_container_keeps_its_layers_when_its_image_goes() {
    in_own_mounts(async || {
        let (mut node, registry) = (Node::start().await, Registry::start().await);
        let image = Image::new(vec![Layer::gzip(base().end())]);
        image.push(&registry, "app:1");
        node.pull(&registry.image("app:1")).await.unwrap();
        let id = node.images.find(&image.id()).await.unwrap().unwrap().id;
        let rootfs = node.images.prepare_rootfs(&id, "c1").await.unwrap();
        node.remove(&image.id()).await;
        assert!(node.list().await.is_empty());
        node.restart().await;
        assert_eq!(node.images.rootfs_list().await.unwrap(), ["c1"]);
        let at = node.dir.path().join("mnt");
        mount_rootfs(&rootfs, &node.config.root.join("l"), &at);
        assert!(at.join("etc/passwd").exists());
        fs::write(at.join("etc/written"), "x").unwrap();
        let shown = fs::metadata(&at).unwrap();
        assert_eq!(
            (shown.mode() & 0o7777, shown.uid(), shown.gid()),
            (0o751, 7, 8),
            "the root wears the image's looks"
        );
        std::env::set_current_dir("/").unwrap();
        umount(&at).unwrap();
        // Prepared again it can be mounted again, and what was written is there.
        let again = node.images.prepare_rootfs(&id, "c1").await.unwrap();
        assert_eq!(again, rootfs);
        mount_rootfs(&again, &node.config.root.join("l"), &at);
        assert!(at.join("etc/written").exists());
        std::env::set_current_dir("/").unwrap();
        umount(&at).unwrap();
        node.images.remove_rootfs("c1").await.unwrap();
        node.images.remove_rootfs("c1").await.unwrap();
        assert_eq!(node.left().await, [""; 0]);
        assert!(fs::read_dir(&node.config.rootfs_dir).unwrap().next().is_none());
        assert!(node.images.prepare_rootfs(&id, "c2").await.is_err());
        for bad in ["", ".", "..", "a/b", "../x"] {
            assert!(node.images.remove_rootfs(bad).await.is_err(), "{bad}");
        }
    });
}

#[test]
fn an_image_without_layers_has_an_empty_root_of_its_own() {
    in_own_mounts(async || {
        let (node, registry) = (Node::start().await, Registry::start().await);
        Image::new(vec![]).push(&registry, "app:1");
        node.pull(&registry.image("app:1")).await.unwrap();
        assert_eq!(tree_of(&node, &registry.image("app:1"), &[""]).await.len(), 1);
    });
}

/// A small file system of the test's own, and the path on it.
fn small_disk(megabytes: u64) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("disk");
    fs::create_dir(&at).unwrap();
    mount(Some("tmpfs"), &at, Some("tmpfs"), MsFlags::empty(), Some(format!("size={megabytes}m").as_str())).unwrap();
    (dir, at)
}

#[test]
fn a_full_disk_is_told_and_removal_works_on_it() {
    in_own_mounts(async || {
        let (_dir, disk) = small_disk(8);
        let mut node = Node::with(|config| {
            config.root = disk.join("images");
            config.rootfs_dir = disk.join("rootfs");
        })
        .await;
        let registry = Registry::start().await;
        let small = Image::new(vec![Layer::gzip(base().end())]);
        small.push(&registry, "small:1");
        node.pull(&registry.image("small:1")).await.unwrap();
        let id = node.images.find(&small.id()).await.unwrap().unwrap().id;
        node.images.prepare_rootfs(&id, "c1").await.unwrap();
        let before = node.left().await;
        Image::new(vec![Layer::gzip(tar().file("noise", &noise(6 << 20, 2)).end())]).push(&registry, "large:1");
        let error = node.pull(&registry.image("large:1")).await.unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
        assert!(error.message().contains("No space left"), "{error}");
        for _ in 0..50 {
            if node.left().await == before {
                break;
            }
        }
        assert_eq!(node.left().await, before);
        // Full to the last byte.
        let mut size = 8 << 20;
        while size > 0 {
            let filler = disk.join(format!("filler{size}"));
            if fs::write(&filler, vec![0; size]).is_err() {
                size /= 2;
            }
        }
        // The daemon may be begun again, also after a boot, and then somebody can remove something.
        node.restart().await;
        let boot = node.config.root.join("boot");
        fs::write(&boot, "another").unwrap();
        node.restart().await;
        assert_eq!(fs::read_to_string(&boot).unwrap(), "another", "there is no room to say that all is of this boot");
        assert_eq!(node.list().await.len(), 1);
        node.images.remove_rootfs("c1").await.unwrap();
        node.remove(&small.id()).await;
        assert_eq!(node.left().await, [""; 0]);
    });
}
