//! The container's log: exact, also while it is reopened, while its disk is full, and when nobody is there.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{Plan, alive, code, content, records, until};
use containerd_shim_protos::api::ShutdownRequest;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use ttrpc::Code;

#[tokio::test]
async fn long_and_unfinished_lines_are_in_parts() {
    let script = "head -c 40000 /dev/zero | tr '\\0' a; echo; printf end";
    let task = Plan::new(&["sh", "-c", &script.replace("tr ", "busybox tr ")]).start().await;
    assert_eq!(task.wait("").await.unwrap(), 0);
    let a = |n: usize| "a".repeat(n);
    let expected =
        format!("stdout P {}\nstdout P {}\nstdout F {}\nstdout P end\n", a(16384), a(16384), a(40000 - 32768));
    assert_eq!(task.log(), expected);
    task.finish().await;
}

#[tokio::test]
async fn a_terminals_output_is_in_the_log() {
    let mut plan = Plan::new(&["sh", "-c", "tty; echo err >&2; exit 2"]);
    plan.spec["process"]["terminal"] = true.into();
    plan.create.terminal = true;
    plan.create.stderr = String::new();
    let task = plan.start().await;
    assert_eq!(task.wait("").await.unwrap(), 2);
    // The container's own pty 0 is its console too.
    assert_eq!(task.log(), "stdout F /dev/pts/0\r\nstdout F err\r\n");
    task.finish().await;
}

#[tokio::test]
async fn reopening_under_a_flood_loses_and_doubles_nothing() {
    let script = "echo $$ >&2; busybox awk 'BEGIN { for (i = 0; i < 1000000; i++) print i, \"some words to make the line longer\" }'";
    let task = Plan::new(&["sh", "-c", script]).start().await;
    let log = task.path("0.log");
    let mut rotated = Vec::new();
    while task.state().await.unwrap().status.unwrap() == containerd_shim_protos::api::Status::RUNNING {
        let old = task.path(&format!("0.log.{:04}", rotated.len()));
        std::fs::rename(&log, &old).unwrap();
        assert_eq!(task.reopen().await.unwrap(), 0);
        rotated.push(old);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(task.wait("").await.unwrap(), 0);
    assert!(rotated.len() > 3, "reopened only {} times", rotated.len());
    rotated.push(log);
    let all: Vec<u8> = rotated.iter().flat_map(|path| std::fs::read(path).unwrap()).collect();
    let expected: String = (0..1_000_000).map(|i| format!("{i} some words to make the line longer\n")).collect();
    assert!(content(&all, "stdout") == expected.as_bytes(), "the log is not what was written");
    task.finish().await;
}

#[tokio::test]
async fn a_reopening_that_fails_keeps_the_old_file() {
    let task = Plan::new(&["sh", "-c", "while :; do echo tick; sleep 0.02; done"]).start().await;
    until("a line is there", || !task.log().is_empty()).await;
    let aside = task.path("aside");
    std::fs::rename(task.path("0.log"), &aside).unwrap();
    std::fs::create_dir(task.path("0.log")).unwrap();
    let (refused, text) = code(task.reopen().await.unwrap_err());
    assert_eq!(refused, Code::FAILED_PRECONDITION);
    assert!(text.ends_with("0.log: is a directory"), "{text}");
    let before = std::fs::metadata(&aside).unwrap().len();
    until("the old file grows", || std::fs::metadata(&aside).unwrap().len() > before).await;
    std::fs::remove_dir(task.path("0.log")).unwrap();
    task.reopen().await.unwrap();
    until("the new file grows", || !task.log().is_empty()).await;
    task.kill("", 9, true).await.unwrap();
    task.wait("").await.unwrap();
    task.finish().await;
}

/// A file system of 256 KiB, for as long as it is wanted.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> SmallDisk {
        std::fs::create_dir(at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(at).status().unwrap();
        assert!(mounted.success());
        SmallDisk(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn on_a_full_disk_whole_lines_are_dropped_and_counted() {
    let script = "i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); done; echo half; sleep 1000";
    let mut plan = Plan::new(&["sh", "-c", script]);
    let disk = SmallDisk::mount(&plan.dir.path().join("disk"));
    let log = disk.0.join("0.log");
    plan.create.stdout = format!("cri+file://{}?stream=stdout", log.display());
    plan.create.stderr = String::new();
    let task = plan.create().await;
    // Room for some lines only: tmpfs counts pages.
    std::fs::write(disk.0.join("filler"), vec![0; 248 * 1024]).unwrap();
    task.start("").await.unwrap();
    let reader = || records(&std::fs::read(&log).unwrap());
    until("the disk is full", || reader().lines().count() > 100).await;
    let full = std::fs::read(&log).unwrap();
    assert_eq!(full.last(), Some(&b'\n'), "no torn record while it waits");
    // It drops after five seconds; with room again it says so by itself.
    until("lines are dropped", || std::fs::read_to_string(task.path("bundle/shim.log")).unwrap().contains("dropping"))
        .await;
    std::fs::remove_file(disk.0.join("filler")).unwrap();
    until("the marker is there", || reader().contains("berth: dropped")).await;
    let text = reader();
    let kept = text.lines().filter(|line| line.starts_with("stdout F line")).count();
    let marker = text.lines().last().unwrap();
    assert_eq!(marker, format!("stderr F berth: dropped {} lines: no space left on device", 401 - kept));
    assert_eq!(task.reopen().await.unwrap(), 401 - kept as u64);
    task.kill("", 9, true).await.unwrap();
    task.wait("").await.unwrap();
    task.finish().await;
}

#[tokio::test]
async fn the_shim_logs_on_when_everybody_else_is_gone() {
    let task = Plan::new(&["sh", "-c", "while :; do echo tick; sleep 0.02; done"]).start().await;
    let shim_pid = task.connect().await.unwrap().shim_pid;
    let stat = std::fs::read_to_string(format!("/proc/{shim_pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    assert_eq!(fields[3], shim_pid.to_string(), "the leader of a session of its own");
    assert_ne!(fields[1], std::process::id().to_string(), "no child of ours");
    for signal in ["TERM", "INT", "HUP"] {
        assert!(Command::new("kill").args([&format!("-{signal}"), &shim_pid.to_string()]).status().unwrap().success());
    }
    // A second client after the first has hung up finds everything as it was.
    let common::Task { .. } = &task;
    let before = task.log().len();
    until("the log grows", || task.log().len() > before).await;
    let address = format!("unix://{}", task.path("bundle/task.sock").display());
    let again = TaskClient::new(Client::connect(&address).await.unwrap());
    let request = containerd_shim_protos::api::ConnectRequest { id: task.id.clone(), ..Default::default() };
    assert_eq!(again.connect(common::deadline(), &request).await.unwrap().shim_pid, shim_pid);
    assert!(alive(shim_pid));
    task.kill("", 9, true).await.unwrap();
    assert_eq!(task.wait("").await.unwrap(), 137);
    task.finish().await;
}

/// A file system on a disk of its own, which can be held: who writes waits in the kernel.
struct HeldDisk(PathBuf);

fn run(program: &str, arguments: &[&std::ffi::OsStr]) {
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program} {arguments:?}");
}

impl HeldDisk {
    fn mount(at: &Path) -> HeldDisk {
        let image = at.with_extension("disk");
        std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        std::fs::create_dir(at).unwrap();
        run("mke2fs", &["-q".as_ref(), "-t".as_ref(), "ext4".as_ref(), image.as_os_str()]);
        run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_os_str(), at.as_os_str()]);
        HeldDisk(at.to_owned())
    }

    fn hold(&self) {
        run("fsfreeze", &["--freeze".as_ref(), self.0.as_os_str()]);
    }
}

impl Drop for HeldDisk {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("--unfreeze").arg(&self.0).stderr(std::process::Stdio::null()).status();
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_disk_that_hangs_holds_up_the_writer_and_nobody_else() {
    let mut plan = Plan::new(&["sh", "-c", "yes 'many words, many lines'"]);
    let disk = HeldDisk::mount(&plan.dir.path().join("held"));
    let log = disk.0.join("0.log");
    plan.create.stdout = format!("cri+file://{}?stream=stdout", log.display());
    plan.create.stderr = format!("cri+file://{}?stream=stderr", log.display());
    let task = plan.create().await;
    disk.hold();
    task.start("").await.unwrap();
    let shim = task.connect().await.unwrap().shim_pid;
    // In the kernel, where no signal reaches it.
    let waits = || {
        let threads = std::fs::read_dir(format!("/proc/{shim}/task")).unwrap();
        let stat = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        threads.flatten().any(|thread| stat(thread).contains(") D "))
    };
    until("the log's thread hangs", waits).await;
    let state = tokio::time::timeout(Duration::from_secs(2), task.state()).await.expect("State hangs").unwrap();
    assert_eq!(state.status.unwrap(), containerd_shim_protos::api::Status::RUNNING);
    task.exec("e", &common::process(&["true"]), common::Streams::default()).await.unwrap();
    tokio::time::timeout(Duration::from_secs(2), task.start("e")).await.expect("Start of an exec hangs").unwrap();
    assert_eq!(task.wait("e").await.unwrap(), 0);
    let reopened = tokio::time::timeout(Duration::from_millis(300), task.reopen()).await;
    assert!(reopened.is_err(), "the log is not open anew, and nobody may be told that it is");
    // What is on its way when it dies has its usual time to arrive; then its end is told.
    task.kill("", 9, false).await.unwrap();
    let end = tokio::time::timeout(Duration::from_secs(5), task.wait("")).await.expect("its end is not told");
    assert_eq!((end.unwrap(), task.exit_record().status), (137, 137));
    task.delete("").await.unwrap();
    let shutdown = ShutdownRequest { id: task.id.clone(), ..Default::default() };
    task.task.shutdown(common::deadline(), &shutdown).await.unwrap();
    drop(disk);
    until("the shim has ended", || !alive(shim)).await;
    assert_eq!(common::cgroups(&task.id), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn the_logs_thread_goes_when_there_is_nothing_to_write() {
    let task = Plan::new(&["sh", "-c", "echo one; sleep 1000"]).start().await;
    let shim = task.connect().await.unwrap().shim_pid;
    let threads = || std::fs::read_dir(format!("/proc/{shim}/task")).unwrap().count();
    until("it is logged", || task.log() == "stdout F one\n").await;
    until("the thread has ended", || threads() == 1).await;
    task.kill("", 9, false).await.unwrap();
    task.wait("").await.unwrap();
    task.finish().await;
}
