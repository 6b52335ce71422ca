//! What a container could get hold of while a process of the shim's is on its way in: the host's binary, the shim's
//! memory and descriptors. Needs root and busybox-static.

mod common;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use common::{Plan, Streams, process, shim};
use serde_json::json;

fn refusal(path: &str) -> Option<i32> {
    let result: io::Result<File> = OpenOptions::new().write(true).open(path);
    result.err().and_then(|error| error.raw_os_error())
}

#[tokio::test]
async fn cve_2019_5736_a_handle_on_the_shims_binary_is_never_good_for_writing() {
    let task = Plan::new(&["sleep", "1000"]).create().await;
    let shim = task.connect().await.unwrap().shim_pid;
    let init = task.state().await.unwrap().pid;
    let mut kept = Vec::new();
    for pid in [shim, init] {
        let path = format!("/proc/{pid}/exe");
        assert_eq!(refusal(&path), Some(libc::EROFS), "{path}");
        kept.push(File::open(&path).unwrap());
    }
    task.start("").await.unwrap();
    task.kill("", 9, false).await.unwrap();
    task.wait("").await.unwrap();
    task.finish().await;
    // Once nothing runs it any more, the kernel would let a binary on a writable mount be written.
    for handle in kept {
        let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
        assert_eq!(refusal(&path), Some(libc::EROFS), "{path} after the shim's end");
    }
}

#[tokio::test]
async fn a_shim_is_called_by_its_name_from_wherever_it_runs() {
    let task = Plan::new(&["true"]).create().await;
    let shim = task.connect().await.unwrap().shim_pid;
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{shim}/{name}")).unwrap();
    assert_eq!(read("comm"), "containerd-shim\n");
    let called = common::shim();
    assert_eq!(read("cmdline").split('\0').next(), called.to_str());
    task.start("").await.unwrap();
    task.wait("").await.unwrap();
    task.finish().await;
}

/// A process that is not dumpable has files in procfs that are root's, whoever it is itself.
#[tokio::test]
async fn cve_2016_9962_nothing_of_the_shims_is_dumpable_until_exec() {
    let mut plan = Plan::new(&["sleep", "1000"]);
    plan.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    std::fs::write(plan.bundle().join("config.json"), plan.spec.to_string()).unwrap();
    // Of another group, so that it shows.
    let mut command = Command::new(shim());
    command.args(["-namespace", "berth", "-id", &plan.id, "-in-bundle", "start"]).current_dir(plan.bundle());
    let output = command.gid(65534).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let task = plan.attach(&String::from_utf8(output.stdout).unwrap()).await;
    task.create().await.unwrap();
    let owner = |pid: u32| {
        let status = std::fs::metadata(format!("/proc/{pid}/status")).unwrap();
        (status.uid(), status.gid())
    };
    let shim = task.connect().await.unwrap().shim_pid;
    assert_eq!(owner(shim), (0, 0), "the shim, whose children begin as it is");
    let init = task.state().await.unwrap().pid;
    assert_eq!(owner(init), (0, 0), "the init before exec");
    task.start("").await.unwrap();
    assert_eq!(owner(init), (1000, 1000), "the init after exec");
    task.kill("", 9, false).await.unwrap();
    task.wait("").await.unwrap();
    task.finish().await;
}

#[tokio::test]
async fn an_exec_has_its_three_descriptors_and_no_other() {
    let task = Plan::new(&["sleep", "1000"]).start().await;
    let (path, read) = task.fifo("out");
    let stdout = path.to_str().unwrap();
    // One by one: reading the directory would take a descriptor.
    let script = "n=0; while [ $n -lt 256 ]; do [ -e /proc/$$/fd/$n ] && echo $n; n=$((n+1)); done; true";
    let spec = process(&["sh", "-c", script]);
    task.exec("e", &spec, Streams { stdout, ..Streams::default() }).await.unwrap();
    task.start("e").await.unwrap();
    assert_eq!(task.wait("e").await.unwrap(), 0);
    let said = io::read_to_string(read).unwrap();
    assert_eq!(said, "0\n1\n2\n");
    task.kill("", 9, false).await.unwrap();
    task.wait("").await.unwrap();
    task.finish().await;
}
