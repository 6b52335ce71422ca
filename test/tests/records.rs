//! Records of a newer berthd, and damaged ones: told and kept, with everything that they name, and nobody else's concern.

use std::path::{Path, PathBuf};

use berth_api::cri::{
    ContainerState, ListImagesRequest, ListPodSandboxRequest, PodSandboxState, RemoveImageRequest, StatusRequest,
};
use berth_test::cri::{IMAGE, script};
use berth_test::{Node, pod, until};
use serde_json::Value;
use tonic::Code;

/// Makes a record one of a format that nobody knows yet, and says what it was.
fn renumber(record: &Path) -> Vec<u8> {
    let before = std::fs::read(record).unwrap_or_else(|e| panic!("{}: {e}", record.display()));
    let mut json: Value = serde_json::from_slice(&before).expect("a record is JSON");
    json["version"] = 1000.into();
    std::fs::write(record, json.to_string()).expect("write the record");
    before
}

fn berthd_check(node: &Node) -> String {
    let berthd = berth_test::node::binary_dir(false).join("berthd");
    let at = node.dir().display();
    let arguments =
        [format!("--config={at}/config.toml"), format!("--data-root={at}/data"), format!("--run-root={at}/run")];
    let output = node.enclosure().command(berthd).arg("check").args(arguments).output().expect("run nsenter");
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
async fn a_pod_with_a_record_of_a_newer_format_is_told_and_left_alone_until_it_can_be_read() {
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let pod = node.run_pod(pod("newer")).await;
    let c = pod.run(script("c", "echo here >/kept; exec sleep 4733")).await;
    let done = pod.run(script("done", "exit 3")).await;
    done.ended().await;
    let runs = || node.enclosure().running("sleep 4733") > 0;
    until("it runs", 5, async || runs()).await;
    let data = node.dir().join("data/pods").join(&pod.id);
    let held = node.enclosure().path(node.dir().join("run/p").join(&pod.id).join("held"));
    let records: [PathBuf; 5] = [
        data.join("request"),
        data.join("network"),
        data.join(format!("{}.request", c.id)),
        data.join(format!("{}.exit", done.id)),
        held,
    ];
    let (before, address) = (c.status().await, pod.ip().await);
    node.kill_daemon().await;
    for record in &records {
        let told = record.display();
        let good = renumber(record);
        node.restart().await;
        // It is told, and why.
        let status = pod.try_status().await.unwrap_or_else(|e| panic!("{told}: {e}"));
        assert_eq!(
            (status.state(), &status.metadata),
            (PodSandboxState::SandboxNotready, &pod.config.metadata),
            "{told}"
        );
        let status = c.status().await;
        assert_eq!((status.state(), &status.metadata), (ContainerState::ContainerUnknown, &before.metadata), "{told}");
        let name = record.file_name().and_then(|n| n.to_str()).expect("a name");
        assert!(status.message.contains(name) && status.message.contains("format 1000"), "{told}: {}", status.message);
        let verbose = node.runtime().status(StatusRequest { verbose: true }).await.expect("Status").into_inner();
        assert!(verbose.info["config"].contains("format 1000"), "{told}: {:?}", verbose.info);
        assert!(berthd_check(&node).contains("format 1000"), "{told}: {}", berthd_check(&node));
        // Nobody gets its name, and nobody ends it.
        for refused in [
            node.try_run_pod(pod.config.clone()).await.map(drop),
            pod.try_create(script("more", "true")).await.map(drop),
            c.stop(0).await,
            c.remove().await,
            pod.stop().await,
            pod.remove().await,
        ] {
            let refused = refused.expect_err("it is kept");
            assert_eq!(refused.code(), Code::FailedPrecondition, "{told}: {refused}");
            assert!(refused.message().contains("format 1000"), "{told}: {refused}");
        }
        assert!(runs(), "{told}: its container was killed");
        // The rest of the node goes on.
        let other = node.run_pod(berth_test::pod("other")).await;
        assert_eq!(other.run(script("o", "echo well")).await.said().await, "well\n", "{told}");
        other.end().await;
        node.kill_daemon().await;
        std::fs::write(record, good).expect("put the record back");
    }
    node.restart().await;
    assert_eq!(c.status().await, before);
    assert_eq!((pod.status().await.state(), pod.ip().await), (PodSandboxState::SandboxReady, address));
    assert_eq!(done.status().await.exit_code, 3);
    assert_eq!(c.shell("cat /kept").await, "here\n");
    pod.end().await;
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_damaged_record_of_what_a_pod_holds_costs_nothing_until_it_is_removed() {
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let pod = node.run_pod(pod("damaged")).await;
    pod.run(script("c", "exec sleep 4734")).await;
    let runs = || node.enclosure().running("sleep 4734") > 0;
    until("it runs", 5, async || runs()).await;
    let held = node.enclosure().path(node.dir().join("run/p").join(&pod.id).join("held"));
    node.kill_daemon().await;
    std::fs::write(&held, "{").expect("spoil the record");
    node.restart().await;
    assert_eq!(pod.status().await.state(), PodSandboxState::SandboxNotready);
    assert!(runs(), "its container was killed");
    let refused = pod.remove().await.expect_err("it is kept");
    assert!(refused.message().contains("held"), "{refused}");
    // Without it the pod was never finished, by all that is known, and goes as one that was not.
    node.kill_daemon().await;
    std::fs::remove_file(&held).expect("remove the record");
    node.restart().await;
    pod.end().await;
    let left = node.runtime().list_pod_sandbox(ListPodSandboxRequest::default()).await.expect("ListPodSandbox");
    assert_eq!(left.into_inner().items, []);
    node.assert_nothing_left();
}

#[tokio::test]
async fn images_of_a_newer_format_are_kept_with_every_layer() {
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let images = node.dir().join("data/images");
    let files = |kind: &str| {
        let entries = std::fs::read_dir(images.join(kind)).expect("a directory of the store");
        let mut names: Vec<_> = entries.map(|entry| entry.expect("an entry").file_name()).collect();
        names.sort();
        names
    };
    let everything = || ["images", "layers", "l", "blobs"].map(files);
    let listed = async || {
        let answer = node.images().list_images(ListImagesRequest::default()).await.expect("ListImages");
        answer.into_inner().images.len()
    };
    let before = everything();
    for kind in ["images", "layers"] {
        let record = images.join(kind).join(&files(kind)[0]);
        node.kill_daemon().await;
        let good = renumber(&record);
        node.restart().await;
        assert_eq!(listed().await, 0, "{kind}: it cannot be read");
        let remove =
            RemoveImageRequest { image: Some(berth_api::cri::ImageSpec { image: IMAGE.into(), ..Default::default() }) };
        node.images().remove_image(remove).await.expect("RemoveImage of what is not known");
        assert_eq!(everything(), before, "{kind}: something was cleared away");
        node.kill_daemon().await;
        std::fs::write(&record, good).expect("put the record back");
        node.restart().await;
        assert_eq!((listed().await, everything()), (1, before.clone()), "{kind}: it can be read again");
    }
    // What is pulled again meanwhile is whole, and the image that could not be read goes with it.
    node.kill_daemon().await;
    renumber(&images.join("images").join(&files("images")[0]));
    node.restart().await;
    node.pull(IMAGE).await;
    let pod = node.run_pod(pod("again")).await;
    assert_eq!(pod.run(script("c", "echo well")).await.said().await, "well\n");
    pod.end().await;
    node.assert_nothing_left();
}
