//! What the kernel can do is tried where nobody sees it. Needs root.

mod common;

use std::process::Command;

use common::shim;

/// A host with systemd shares every mount, also with whatever is cloned of them.
#[test]
fn what_is_tried_is_not_seen_on_a_host_whose_mounts_are_shared() {
    let directory = tempfile::tempdir().unwrap();
    let images = directory.path().join("images");
    for name in ["layers", "blobs"] {
        std::fs::create_dir_all(images.join(name)).unwrap();
    }
    let script = "mount --bind \"$1\" \"$1\" && mount --make-shared \"$1\" && \"$2\" -bundle \"$1\" features && \
                  grep -c \" $1\" /proc/self/mountinfo";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-euc", script, "sh"]).arg(&images).arg(shim());
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let (features, mounts) = said.trim().rsplit_once('\n').expect("features and a number");
    assert!(features.contains("user_namespaces"), "{features}");
    assert_eq!(mounts, "1", "beside the one that was there: {said}");
}
