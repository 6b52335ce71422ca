//! Pulling from a registry of the test's own, without root: what arrives, what is refused, what is asked for how often.

mod node;
mod support;

use std::time::Duration;

use berth_api::cri;
use berth_api::cri::image_service_client::ImageServiceClient;
use berth_api::pull::pull_progress::{Event, layer::State};
use berth_api::pull::pulls_client::PullsClient;
use berth_image_service::Registry as Rule;
use node::Node;
use serde_json::json;
use support::image::{Image, Layer, OCI_INDEX, OCI_MANIFEST, digest, index, platform};
use support::registry::{Auth, Fault, Registry};
use support::tar::{Tar, noise};
use tonic::Code;

fn small() -> Image {
    let base = Tar::own().dir("./").dir("etc/").file("etc/passwd", b"root:x:0:0::/root:/bin/sh\n").end();
    let top = Tar::own().dir("etc/").file("etc/motd", b"hello\n").symlink("etc/link", "/../etc/passwd").end();
    Image::new(vec![Layer::gzip(base), Layer::zstd(top)])
}

fn large(seed: u64) -> Image {
    Image::new(vec![Layer::plain(Tar::own().dir("./").file("noise", &noise(3 << 20, seed)).end())])
}

fn login(username: &str, password: &str) -> Option<cri::AuthConfig> {
    Some(cri::AuthConfig { username: username.into(), password: password.into(), ..Default::default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_found_by_all_its_names_and_removed_without_a_trace() {
    let (node, registry) = (Node::start().await, Registry::start().await);
    let mut image = small();
    image.config = json!({ "User": "1002:5", "Entrypoint": ["/bin/sh"], "Env": ["A=b"], "StopSignal": "SIGQUIT" });
    let manifest = image.push(&registry, "app:1");
    let name = registry.image("app:1");
    assert_eq!(node.pull(&name).await.unwrap(), image.id());
    let by_digest = registry.image(&format!("app@{manifest}"));
    for known_as in
        [&name, &by_digest, &image.id(), &image.id()[7..20].to_owned(), &registry.image(&format!("app:x@{manifest}"))]
    {
        let status = node.status(known_as).await.unwrap_or_else(|| panic!("{known_as} not found"));
        assert_eq!(status.id, image.id());
        assert_eq!((status.repo_tags, status.repo_digests), (vec![name.clone()], vec![by_digest.clone()]));
        assert_eq!(status.uid.unwrap().value, 1002);
        assert!(status.size > 0);
    }
    let found = node.images.find(&name).await.unwrap().unwrap();
    assert_eq!((found.config.entrypoint, found.config.stop_signal), (vec!["/bin/sh".to_owned()], "SIGQUIT".to_owned()));
    node.remove(&name).await;
    assert!(node.status(&name).await.is_none());
    node.remove(&name).await;
    assert_eq!(node.left().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_read_through_the_layers() {
    let (node, registry) = (Node::start().await, Registry::start().await);
    small().push(&registry, "app:1");
    node.pull(&registry.image("app:1")).await.unwrap();
    let id = node.images.find(&registry.image("app:1")).await.unwrap().unwrap().id;
    for _ in 0..2 {
        let read = async |path: &str| node.images.read_file(&id, path, 100).await;
        assert_eq!(read("/etc/passwd").await.unwrap().unwrap(), b"root:x:0:0::/root:/bin/sh\n");
        assert_eq!(read("/etc/motd").await.unwrap().unwrap(), b"hello\n");
        assert_eq!(read("etc/../../etc/link").await.unwrap().unwrap(), b"root:x:0:0::/root:/bin/sh\n");
        assert_eq!(read("/etc/shadow").await.unwrap(), None);
        assert_eq!(read("/etc/motd/x").await.unwrap(), None);
        assert!(read("/etc").await.unwrap_err().chain().contains("is a directory"));
    }
    let error = node.images.read_file(&id, "/etc/passwd", 5).await.unwrap_err();
    assert!(error.chain().contains("exceeds 5 bytes"), "{}", error.chain());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_image_under_more_names_is_one_image() {
    let (node, registry) = (Node::start().await, Registry::start().await);
    let image = small();
    for name in ["a:1", "a:2", "b:1"] {
        image.push(&registry, name);
        assert_eq!(node.pull(&registry.image(name)).await.unwrap(), image.id());
    }
    let listed = node.list().await;
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].repo_tags.len(), listed[0].repo_digests.len()), (3, 2));
    // A tag that moves leaves the old image without it.
    let other = large(1);
    other.push(&registry, "a:1");
    node.pull(&registry.image("a:1")).await.unwrap();
    assert_eq!(node.status(&registry.image("a:1")).await.unwrap().id, other.id());
    assert_eq!(node.status(&image.id()).await.unwrap().repo_tags.len(), 2);
    let mut node = node;
    node.restart().await;
    assert_eq!(node.status(&registry.image("a:1")).await.unwrap().id, other.id());
    node.remove(&registry.image("b:1")).await;
    assert_eq!(node.list().await.len(), 1, "one tag removes all");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_right_after_a_pull_takes_everything() {
    let (node, registry) = (Node::start().await, Registry::start().await);
    let layers = (0..6).map(|at| Layer::gzip(Tar::own().file(&format!("file{at}"), b"x").end()));
    let image = Image::new(layers.collect());
    image.push(&registry, "app:1");
    for _ in 0..50 {
        node.pull(&registry.image("app:1")).await.unwrap();
        node.remove(&image.id()).await;
        assert_eq!(node.left().await, [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nested_indexes_lead_to_this_platform() {
    let (node, registry) = (Node::start().await, Registry::start().await);
    let image = small();
    image.push(&registry, "app:inner");
    let foreign = large(2).manifest();
    let inner =
        index(&[(OCI_MANIFEST, &foreign, Some("linux/s390x")), (OCI_MANIFEST, &image.manifest(), Some(platform()))]);
    registry.put_manifest("app:x", OCI_INDEX, &inner);
    let middle = index(&[(OCI_INDEX, &inner, None)]);
    registry.put_manifest("app:y", OCI_INDEX, &middle);
    let outer = index(&[(OCI_MANIFEST, &foreign, Some("windows/amd64")), (OCI_INDEX, &middle, None)]);
    let top = registry.put_manifest("app:1", OCI_INDEX, &outer);
    assert_eq!(node.pull(&registry.image("app:1")).await.unwrap(), image.id());
    assert_eq!(node.list().await[0].repo_digests, [registry.image(&format!("app@{top}"))]);
    let mut deep = outer;
    for _ in 0..4 {
        deep = index(&[(OCI_INDEX, &deep, None)]);
        registry.put_manifest("app:deep", OCI_INDEX, &deep);
    }
    let error = node.pull(&registry.image("app:deep")).await.unwrap_err();
    assert!(error.message().contains("nested deeper"), "{error}");
    let none = index(&[(OCI_MANIFEST, &foreign, Some("linux/s390x"))]);
    registry.put_manifest("app:none", OCI_INDEX, &none);
    let error = node.pull(&registry.image("app:none")).await.unwrap_err();
    assert!(error.message().contains("have [linux/s390x]"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_schema_2_is_pulled() {
    let (node, registry) = (Node::start().await, Registry::start().await);
    let image = Image { docker: true, ..small() };
    image.push(&registry, "app:1");
    assert_eq!(node.pull(&registry.image("app:1")).await.unwrap(), image.id());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_pulls_of_one_image_fetch_it_once() {
    let (node, registry) = (Node::start().await, Registry::start().await);
    let image = large(3);
    image.push(&registry, "app:1");
    registry.fail(&image.layers[0].digest(), [Fault::Slow(256 << 10)]);
    let name = registry.image("app:1");
    let pulls = futures::future::join_all((0..100).map(|_| node.pull(&name))).await;
    assert!(pulls.iter().all(|pull| pull.as_ref().is_ok_and(|id| *id == image.id())), "{pulls:?}");
    assert_eq!(registry.count(&image.layers[0].digest()), 1);
    assert_eq!(registry.count("/manifests/1"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_pulled_at_once_fetch_a_shared_layer_once() {
    let (node, registry) = (Node::start().await, Registry::start().await);
    let base = large(4).layers.remove(0);
    registry.fail(&base.digest(), [Fault::Slow(256 << 10)]);
    let image = |text: &[u8]| Image::new(vec![base.clone(), Layer::gzip(Tar::own().file("own", text).end())]);
    for (name, text) in [("a", b"a"), ("b", b"b"), ("c", b"c")] {
        image(text).push(&registry, name);
    }
    let names: Vec<String> = ["a", "b", "c"].map(|name| registry.image(name)).into();
    let pulls = futures::future::join_all(names.iter().map(|name| node.pull(name))).await;
    assert!(pulls.iter().all(Result::is_ok), "{pulls:?}");
    assert_eq!(registry.count(&base.digest()), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_connection_is_taken_up_where_it_broke() {
    let (node, registry) = (Node::start().await, Registry::start().await);
    let image = large(5);
    image.push(&registry, "app:1");
    let layer = image.layers[0].digest();
    registry.fail(&layer, [Fault::Cut(1 << 20), Fault::Status(503, vec![]), Fault::Cut(1 << 20), Fault::Hang(1 << 18)]);
    assert_eq!(node.pull(&registry.image("app:1")).await.unwrap(), image.id());
    let ranges: Vec<_> =
        registry.asked().into_iter().filter(|asked| asked.path.ends_with(&layer)).map(|asked| asked.range).collect();
    assert_eq!(ranges.len(), 5, "{ranges:?}");
    assert_eq!(ranges[0], None);
    assert!(
        ranges[1].is_some() && ranges[1] == ranges[2] && ranges[3] > ranges[2] && ranges[4] > ranges[3],
        "{ranges:?}"
    );
    // A server that knows no ranges sends all again; what we have is skipped.
    let other = large(6);
    other.push(&registry, "app:2");
    registry.fail(&other.layers[0].digest(), [Fault::Cut(1 << 20), Fault::NoRange]);
    assert_eq!(node.pull(&registry.image("app:2")).await.unwrap(), other.id());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_goes_on_in_the_next_daemon() {
    let (mut node, registry) = (Node::start().await, Registry::start().await);
    let image = large(7);
    image.push(&registry, "app:1");
    let layer = image.layers[0].digest();
    registry.fail(&layer, std::iter::once(Fault::Cut(1 << 20)).chain((0..4).map(|_| Fault::Status(503, vec![]))));
    let error = node.pull(&registry.image("app:1")).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().starts_with("RegistryUnavailable: pull "), "{error}");
    node.restart().await;
    assert_eq!(node.pull(&registry.image("app:1")).await.unwrap(), image.id());
    let asked = registry.asked().into_iter().rfind(|asked| asked.path.ends_with(&layer)).unwrap();
    assert!(asked.range.is_some(), "{asked:?}");
    // What was kept may be wrong: then it is fetched from its beginning.
    let other = large(8);
    other.push(&registry, "app:2");
    registry.fail(
        &other.layers[0].digest(),
        std::iter::once(Fault::Cut(1 << 20)).chain((0..4).map(|_| Fault::Status(503, vec![]))),
    );
    node.pull(&registry.image("app:2")).await.unwrap_err();
    let ingest = node.config.root.join("ingest");
    let partial = std::fs::read_dir(&ingest).unwrap().next().unwrap().unwrap().path();
    let length = std::fs::metadata(&partial).unwrap().len();
    assert!(length >= 1 << 19, "{length}");
    std::fs::write(&partial, vec![0; length as usize]).unwrap();
    assert_eq!(node.pull(&registry.image("app:2")).await.unwrap(), other.id());
    assert!(std::fs::read_dir(&ingest).unwrap().next().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_goes_on_when_its_client_goes_and_stops_when_nobody_waits() {
    let node = Node::with(|config| config.abandon_after_seconds = 1).await;
    let registry = Registry::start().await;
    let quick = large(9);
    quick.push(&registry, "quick:1");
    registry.fail(&quick.layers[0].digest(), [Fault::Slow(128 << 10)]); // 3 MiB in a quarter of a second
    let gone = tokio::time::timeout(Duration::from_millis(50), node.pull(&registry.image("quick:1"))).await;
    assert!(gone.is_err());
    for _ in 0..100 {
        if node.status(&registry.image("quick:1")).await.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(node.status(&registry.image("quick:1")).await.is_some());
    let slow = large(10);
    slow.push(&registry, "slow:1");
    registry.fail(&slow.layers[0].digest(), [Fault::Slow(4 << 10)]); // eight seconds
    let gone = tokio::time::timeout(Duration::from_millis(300), node.pull(&registry.image("slow:1"))).await;
    assert!(gone.is_err());
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let kept = || {
        let partial = std::fs::read_dir(node.config.root.join("ingest")).unwrap().next();
        partial.map_or(0, |partial| partial.unwrap().metadata().unwrap().len())
    };
    let length = kept();
    assert!(length > 0 && length < 3 << 20, "{length}");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(kept(), length, "it goes on though nobody waits");
    assert_eq!(node.pull(&registry.image("slow:1")).await.unwrap(), slow.id());
    let asked = registry.asked().into_iter().rfind(|asked| asked.path.ends_with(&slow.layers[0].digest())).unwrap();
    assert_eq!(asked.range, Some(format!("bytes={length}-")));
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_open_a_registry_and_wrong_ones_do_not() {
    let registry = Registry::start().await;
    let image = small();
    image.push(&registry, "app:1");
    let name = registry.image("app:1");
    let auth = |auth: &str| Some(cri::AuthConfig { auth: auth.into(), ..Default::default() });
    let identity = |token: &str| Some(cri::AuthConfig { identity_token: token.into(), ..Default::default() });
    let token = |token: &str| Some(cri::AuthConfig { registry_token: token.into(), ..Default::default() });
    let bearer = Auth::Bearer { username: "user".into(), password: "pass".into(), refresh: "again".into() };
    let basic = Auth::Basic("user".into(), "pass".into());
    let cases = [
        (basic.clone(), login("user", "pass"), true),
        (basic.clone(), auth("dXNlcjpwYXNz"), true),
        (basic.clone(), login("user", "hunter2"), false),
        (basic, None, false),
        (bearer.clone(), login("user", "pass"), true),
        (bearer.clone(), identity("again"), true),
        (bearer.clone(), token("let-me-in"), true),
        (bearer.clone(), identity("hunter2"), false),
        (bearer.clone(), token("hunter2"), false),
        (bearer, login("user", "hunter2"), false),
    ];
    for (at, (wanted, shown, lets_in)) in cases.into_iter().enumerate() {
        let node = Node::start().await;
        registry.require(wanted);
        match node.pull_with(&name, shown).await {
            Ok(id) => assert!(lets_in && id == image.id(), "case {at}"),
            Err(error) => {
                assert!(!lets_in, "case {at}: {error}");
                assert_eq!(error.code(), Code::Unauthenticated, "{error}");
                assert!(!error.message().contains("hunter2"), "{error}");
                assert_eq!(node.left().await, [""; 0]);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_never_reach_another_host() {
    let (node, registry, elsewhere) = (Node::start().await, Registry::start().await, Registry::start().await);
    let image = small();
    image.push(&registry, "app:1");
    for layer in &image.layers {
        elsewhere.put_blob(&layer.blob);
        let location = format!("{}/v2/app/blobs/{}", elsewhere.url(), layer.digest());
        registry.fail(&layer.digest(), [Fault::Status(307, vec![("location", location)])]);
    }
    registry.require(Auth::Basic("user".into(), "pass".into()));
    node.pull_with(&registry.image("app:1"), login("user", "pass")).await.unwrap();
    assert_eq!(elsewhere.asked().len(), 2);
    assert!(elsewhere.asked().iter().all(|asked| asked.authorization.is_none()));
    // Nor when the other host asks for them.
    let node = Node::start().await;
    elsewhere.require(Auth::Basic("user".into(), "pass".into()));
    let location = format!("{}/v2/app/blobs/{}", elsewhere.url(), image.layers[0].digest());
    registry.fail(&image.layers[0].digest(), [Fault::Status(302, vec![("location", location)])]);
    let error = node.pull_with(&registry.image("app:1"), login("user", "pass")).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated);
    assert!(elsewhere.asked().iter().all(|asked| asked.authorization.is_none()));
    // A redirect that goes round is left.
    let round = format!("{}/v2/app/manifests/1", registry.url());
    registry.fail("/manifests/1", (0..20).map(|_| Fault::Status(301, vec![("location", round.clone())])));
    let error = node.pull_with(&registry.image("app:1"), login("user", "pass")).await.unwrap_err();
    assert!(error.message().contains("redirects more than 5 times"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_needs_an_authority_we_trust() {
    let (registry, authority) = Registry::start_tls().await;
    let image = small();
    image.push(&registry, "app:1");
    registry.require(Auth::Bearer { username: "user".into(), password: "pass".into(), refresh: String::new() });
    let ca = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(ca.path(), authority).unwrap();
    let rule = Rule { host: registry.host().to_owned(), ca_file: Some(ca.path().to_owned()), ..Rule::default() };
    let node = Node::with(|config| config.registries = vec![rule]).await;
    assert_eq!(node.pull_with(&registry.image("app:1"), login("user", "pass")).await.unwrap(), image.id());
    // Another authority, and none at all.
    let (_, stranger) = Registry::start_tls().await;
    std::fs::write(ca.path(), stranger).unwrap();
    let rule = Rule { host: registry.host().to_owned(), ca_file: Some(ca.path().to_owned()), ..Rule::default() };
    let node = Node::with(|config| config.registries = vec![rule]).await;
    let error = node.pull_with(&registry.image("app:1"), login("user", "pass")).await.unwrap_err();
    assert!(error.message().contains("certificate"), "{error}");
    let rule = Rule { host: "*".to_owned(), mirrors: vec![registry.url()], ..Rule::default() };
    let node = Node::with(|config| config.registries = vec![rule]).await;
    assert!(node.pull("localhost:1/app:1").await.unwrap_err().message().contains("certificate"));
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_asked_first_and_the_host_itself_last() {
    let (empty, mirror, host) = (Registry::start().await, Registry::start().await, Registry::start().await);
    let image = small();
    image.push(&mirror, "app:1");
    let only_here = large(11);
    only_here.push(&host, "own:1");
    let mirrors = vec!["http://127.0.0.1:1".to_owned(), empty.url(), mirror.url()];
    let rule = Rule { host: "*".to_owned(), mirrors, ..Rule::default() };
    let node = Node::with(|config| config.registries = vec![rule]).await;
    assert_eq!(node.pull(&host.image("app:1")).await.unwrap(), image.id());
    assert_eq!(host.asked().len(), 0);
    assert_eq!(mirror.asked()[0].query, format!("ns={}", host.host()));
    assert_eq!(node.pull(&host.image("own:1")).await.unwrap(), only_here.id());
    host.require(Auth::Basic("user".into(), "pass".into()));
    mirror.require(Auth::Basic("user".into(), "pass".into()));
    node.pull_with(&host.image("own:1"), login("user", "pass")).await.unwrap();
    assert!(mirror.asked().iter().all(|asked| asked.authorization.is_none()), "a mirror saw credentials");
    let error = node.pull(&host.image("none:1")).await.unwrap_err();
    assert!(error.message().contains(&mirror.url()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failure_of_a_registry_is_told_and_leaves_nothing() {
    let registry = Registry::start().await;
    let image = small();
    image.push(&registry, "app:1");
    let name = registry.image("app:1");
    let layer = image.layers[0].digest();
    let status = |code: u16, times: usize| vec![Fault::Status(code, vec![]); times];
    let cases: Vec<(&str, Vec<Fault>, Code, &str)> = vec![
        ("/manifests/1", status(403, 1), Code::PermissionDenied, "403 forbidden"),
        ("/manifests/1", status(404, 1), Code::NotFound, "404 not found"),
        ("/manifests/1", status(500, 5), Code::Unavailable, "answered 500"),
        ("/manifests/1", status(429, 5), Code::Unavailable, "429 too many requests"),
        ("/manifests/1", vec![Fault::Bytes(vec![b' '; (4 << 20) + 1])], Code::Internal, "larger than"),
        ("/manifests/1", vec![Fault::Bytes(b"{}".to_vec())], Code::InvalidArgument, "manifest sha256:"),
        (&layer, status(404, 1), Code::NotFound, "404 not found"),
        (&layer, vec![Fault::Bytes(vec![7; image.layers[0].blob.len()]); 2], Code::DataLoss, "wrong digest"),
        (&layer, vec![Fault::Bytes(vec![7; 10])], Code::DataLoss, "wrong size"),
    ];
    for (path, faults, code, text) in cases {
        let node = Node::start().await;
        registry.fail(path, faults.clone());
        let error = node.pull(&name).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        for part in [text, registry.host(), "pull "] {
            assert!(error.message().contains(part), "{part}: {error}");
        }
        assert_eq!(node.left().await, [""; 0], "{faults:?}");
        // And the same again succeeds.
        assert_eq!(node.pull(&name).await.unwrap(), image.id(), "{faults:?}");
    }
    let node = Node::start().await;
    let error = node.pull("127.0.0.1:1/app:1").await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().starts_with("RegistryUnavailable: pull 127.0.0.1:1/app:1: "), "{error}");
    assert_eq!(node.pull("a/../b").await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_obeyed() {
    let (node, registry) = (Node::start().await, Registry::start().await);
    let image = small();
    image.push(&registry, "app:1");
    registry.fail("/manifests/1", [Fault::Status(429, vec![("retry-after", "1".to_owned())])]);
    let began = std::time::Instant::now();
    assert_eq!(node.pull(&registry.image("app:1")).await.unwrap(), image.id());
    assert!(began.elapsed() >= Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_image_says_of_itself_must_be_true() {
    let registry = Registry::start().await;
    let name = registry.image("app:1");
    let node = Node::start().await;
    // The right bytes, but not those of its diff id.
    let mut image = small();
    image.layers[1].tar.push(0);
    image.push(&registry, "app:1");
    let error = node.pull(&name).await.unwrap_err();
    assert_eq!(error.code(), Code::DataLoss, "{error}");
    assert!(error.message().contains("unpacked: wrong digest"), "{error}");
    // No archive at all.
    Image::new(vec![Layer::plain(b"not a tar".repeat(100))]).push(&registry, "app:1");
    let error = node.pull(&name).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    // More layers than can be stacked: refused before any is fetched.
    let many = vec![Layer::gzip(Tar::own().dir("./").end()); 501];
    Image::new(many).push(&registry, "app:1");
    let error = node.pull(&name).await.unwrap_err();
    assert!(error.message().contains("501 layers"), "{error}");
    // A manifest asked for by digest is that manifest.
    let asked = digest(b"another");
    registry.put_manifest("app:2", OCI_MANIFEST, &small().manifest());
    registry.fail(&asked, [Fault::Status(200, vec![])]);
    let error = node.pull(&registry.image(&format!("app@{asked}"))).await.unwrap_err();
    assert_eq!(error.code(), Code::DataLoss, "{error}");
    assert_eq!(node.left().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_told_layer_by_layer() {
    let (node, registry) = (Node::start().await, Registry::start().await);
    let mut image = large(12);
    image.layers.push(Layer::gzip(Tar::own().file("x", b"x").end()));
    let manifest = image.push(&registry, "app:1");
    registry.fail(&image.layers[0].digest(), [Fault::Slow(64 << 10)]); // half a second
    let mut client = PullsClient::new(node.images.pull_service());
    let name = registry.image("app:1");
    let request = |image: &str| berth_api::pull::PullRequest { image: image.to_owned(), ..Default::default() };
    let mut stream = client.pull(request(&name)).await.unwrap().into_inner();
    let mut events = Vec::new();
    while let Some(progress) = stream.message().await.unwrap() {
        events.push(progress.event.unwrap());
    }
    let Event::Resolved(resolved) = &events[0] else { panic!("{events:?}") };
    assert_eq!((&resolved.reference, &resolved.digest), (&name, &manifest));
    assert_eq!(resolved.layers, image.layers.iter().map(Layer::digest).collect::<Vec<_>>());
    let total = image.layers[0].blob.len() as u64;
    let steps: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Layer(layer) if layer.digest == image.layers[0].digest() => {
                Some((layer.state(), layer.received_bytes))
            }
            _ => None,
        })
        .collect();
    assert!(steps.len() >= 4 && steps.is_sorted_by_key(|step| step.1), "{steps:?}");
    assert_eq!(steps.last().unwrap(), &(State::Ready, total));
    let Some(Event::Done(done)) = events.last() else { panic!("{events:?}") };
    assert_eq!(done.image_id, image.id());
    assert_eq!(done.fetched_bytes, image.layers.iter().map(|layer| layer.blob.len() as u64).sum::<u64>());
    // A second time nothing is fetched.
    let mut stream = client.pull(request(&name)).await.unwrap().into_inner();
    let mut present = 0;
    while let Some(progress) = stream.message().await.unwrap() {
        match progress.event.unwrap() {
            Event::Layer(layer) => present += usize::from(layer.state() == State::Present),
            Event::Done(done) => assert_eq!(done.fetched_bytes, 0),
            Event::Resolved(_) => {}
        }
    }
    assert_eq!(present, 2);
    let error = client.pull(request("A:B:C")).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_images_and_clears_what_was_half_done() {
    let (mut node, registry) = (Node::start().await, Registry::start().await);
    let (image, other) = (small(), large(13));
    image.push(&registry, "app:1");
    other.push(&registry, "other:1");
    node.pull(&registry.image("app:1")).await.unwrap();
    node.pull(&registry.image("other:1")).await.unwrap();
    let root = node.config.root.clone();
    std::fs::create_dir(root.join("l/77")).unwrap();
    std::fs::write(root.join("l/77/half"), "x").unwrap();
    std::fs::write(root.join("images/abc.tmp"), "x").unwrap();
    std::fs::write(root.join("blobs").join("0".repeat(64)), "unreferenced").unwrap();
    // A configuration torn by a power cut: its image is dropped, the other stays.
    std::fs::write(root.join("blobs").join(&other.id()[7..]), "torn").unwrap();
    node.restart().await;
    let listed = node.list().await;
    assert_eq!(listed.iter().map(|image| image.id.as_str()).collect::<Vec<_>>(), [image.id()]);
    assert!(!root.join("l/77").exists() && !root.join("images/abc.tmp").exists());
    assert!(!root.join("blobs").join("0".repeat(64)).exists());
    assert_eq!(node.pull(&registry.image("other:1")).await.unwrap(), other.id());
    // A removal killed after it took the base: what stood on it goes too.
    let layers = root.join("layers");
    let is_base = |path: &std::path::Path| std::fs::read_to_string(path).unwrap().contains("\"parent\":null");
    for record in std::fs::read_dir(&layers).unwrap().map(|entry| entry.unwrap().path()) {
        if is_base(&record) {
            std::fs::remove_file(record).unwrap();
        }
    }
    for id in [image.id(), other.id()] {
        std::fs::remove_file(root.join("images").join(&id[7..])).unwrap();
    }
    node.restart().await;
    assert_eq!(node.left().await, [""; 0]);
    node.pull(&registry.image("app:1")).await.unwrap();
    node.pull(&registry.image("other:1")).await.unwrap();
    // After another boot what no image stands on is not trusted.
    node.remove(&image.id()).await;
    node.remove(&other.id()).await;
    std::fs::write(root.join("boot"), "another").unwrap();
    std::fs::write(root.join("ingest").join("1".repeat(64)), "partial").unwrap();
    node.restart().await;
    assert_eq!(node.left().await, [""; 0]);
    drop(node.dir);
}

/// While a record can only be read by a newer build, what it may stand on is kept; but nothing that a power cut may have
/// torn is stood on here.
#[tokio::test(flavor = "multi_thread")]
async fn after_another_boot_a_layer_that_only_a_newer_record_may_name_is_kept_and_not_used() {
    let (mut node, registry) = (Node::start().await, Registry::start().await);
    let (lost, good, newer) = (small(), large(15), large(16));
    for (image, name) in [(&lost, "lost:1"), (&good, "good:1"), (&newer, "newer:1")] {
        image.push(&registry, name);
        node.pull(&registry.image(name)).await.unwrap();
    }
    let root = node.config.root.clone();
    let record = root.join("images").join(&newer.id()[7..]);
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    json["version"] = 1000.into();
    std::fs::write(&record, json.to_string()).unwrap();
    // As a pull leaves it that was killed before its end.
    std::fs::remove_file(root.join("images").join(&lost.id()[7..])).unwrap();
    let names = |of: &str| {
        let entries = std::fs::read_dir(root.join(of)).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    };
    let (layers, directories) = (names("layers"), names("l"));
    assert_eq!((layers.len(), directories.len()), (4, 5));

    // In the same boot it is whole: nothing is fetched again.
    node.restart().await;
    let blobs = || registry.asked().iter().filter(|asked| asked.path.contains("/blobs/")).count();
    let before = blobs();
    node.pull(&registry.image("lost:1")).await.unwrap();
    assert_eq!(blobs(), before);
    std::fs::remove_file(root.join("images").join(&lost.id()[7..])).unwrap();

    // In another boot it is there, and not used; also not after a daemon that was there in between.
    std::fs::write(root.join("boot"), "another").unwrap();
    for _ in 0..2 {
        node.restart().await;
        assert_eq!((names("layers"), names("l")), (layers.clone(), directories.clone()));
        let listed = node.list().await;
        assert_eq!(listed.iter().map(|image| image.id.as_str()).collect::<Vec<_>>(), [good.id()]);
    }
    let before = blobs();
    assert_eq!(node.pull(&registry.image("lost:1")).await.unwrap(), lost.id());
    assert_eq!(blobs(), before + 2, "both layers");
    assert_eq!(names("layers"), layers);
    assert_eq!(names("l").len(), directories.len() + 2, "what was there has kept its numbers");

    // When the record can be read again, its image is there, and what nobody names goes.
    json["version"] = 0.into();
    std::fs::write(&record, json.to_string()).unwrap();
    node.restart().await;
    assert_eq!(node.list().await.len(), 3);
    assert_eq!((names("layers"), names("l").len()), (layers, directories.len()));
}

#[tokio::test(flavor = "multi_thread")]
async fn file_systems_are_summed_up() {
    let (node, registry) = (Node::start().await, Registry::start().await);
    let image = large(14);
    image.push(&registry, "app:1");
    node.pull(&registry.image("app:1")).await.unwrap();
    let mut client = ImageServiceClient::new(node.images.image_service());
    let info = client.image_fs_info(cri::ImageFsInfoRequest {}).await.unwrap().into_inner();
    let images = &info.image_filesystems[0];
    assert_eq!(images.fs_id.as_ref().unwrap().mountpoint, node.config.root.display().to_string());
    assert!(images.used_bytes.unwrap().value > 3 << 20 && images.used_bytes.unwrap().value < 4 << 20, "{images:?}");
    assert_eq!(info.container_filesystems[0].used_bytes.unwrap().value, 0);
    node.remove(&image.id()).await;
    let info = client.image_fs_info(cri::ImageFsInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.image_filesystems[0].used_bytes.unwrap().value, 0);
    assert_eq!(info.image_filesystems[0].inodes_used.unwrap().value, 0);
}
