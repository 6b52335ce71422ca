//! What hangs, on purpose: a shim that is stopped as if the kernel held it, a network plugin that does not end, a file
//! system that does not answer.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::{Container, Node, Pod};

/// A plugin that takes as long as a file is there.
const SLOW: &str = r#"#!/bin/sh
while [ -e HOLD ]; do sleep 0.05; done
[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion":"1.0.0","ips":[{"address":"10.99.0.7/24"}]}'
exit 0
"#;

/// A network whose ADD and DEL do not end before this is released.
pub struct HeldNetwork<'a> {
    node: &'a Node,
    hold: PathBuf,
    conflist: PathBuf,
}

impl Node {
    /// The network of pods that are run from now on; it holds them.
    pub fn hold_network(&self) -> HeldNetwork<'_> {
        let hold = self.dir().join("hold");
        std::fs::write(&hold, "").expect("write hold");
        // In the enclosure's own mount namespace: the host's directory stays as it is.
        self.enclosure().shell("mount -t tmpfs tmpfs /usr/libexec && mkdir -p /usr/libexec/berth/cni");
        let plugin = self.enclosure().path("/usr/libexec/berth/cni/slow");
        std::fs::write(&plugin, SLOW.replace("HOLD", hold.to_str().expect("UTF-8"))).expect("write a plugin");
        self.enclosure().shell("chmod 755 /usr/libexec/berth/cni/slow");
        let list = serde_json::json!({"cniVersion": "1.0.0", "name": "slow", "plugins": [{"type": "slow"}]});
        let conflist = self.dir().join("net.d/10-slow.conflist");
        std::fs::write(&conflist, list.to_string()).expect("write a conflist");
        HeldNetwork { node: self, hold, conflist }
    }

    /// Sends a signal to every process of a container's shim: the server, and its `start` while that runs.
    pub fn signal_shim(&self, container: &str, signal: &str) -> usize {
        let shims = self.shims(container);
        shims.iter().for_each(|pid| self.enclosure().kill(*pid, signal));
        shims.len()
    }

    /// The processes of a container's shim. An init that was not let go yet is one by its looks; what writes the log for
    /// another runtime's is none.
    pub fn shims(&self, container: &str) -> Vec<u32> {
        let is_shim =
            |line: &str| line.contains("containerd-shim") && line.contains(container) && !line.contains(" logger ");
        let processes = self.enclosure().processes().into_iter();
        processes.filter(|(_, line)| is_shim(line)).map(|(pid, _)| pid).collect()
    }
}

impl HeldNetwork<'_> {
    /// Lets everybody go on.
    pub fn release(&self) {
        std::fs::remove_file(&self.hold).expect("remove hold");
    }

    /// Takes it away, once no pod needs it.
    pub fn end(self) {
        std::fs::remove_file(&self.conflist).expect("remove the conflist");
        self.node.enclosure().shell("umount /usr/libexec");
    }
}

/// A file or a directory whose file system has a server that says nothing, as an NFS server that has gone: whoever looks
/// into it waits until it is released, or is killed.
pub struct Hung<'a> {
    node: &'a Node,
    path: PathBuf,
    server: u32,
}

impl Node {
    /// Covers what is at `path`.
    pub fn hang(&self, path: PathBuf) -> Hung<'_> {
        static NUMBER: AtomicU32 = AtomicU32::new(100_000);
        let mode = if path.is_dir() { "040755" } else { "100600" };
        let forever = format!("sleep {}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let mounted = self.dir().join("mounted");
        let (at, told) = (path.display(), mounted.display());
        // The connection lives as long as its descriptor, which `sleep` inherits.
        let script = format!(
            "exec 3<>/dev/fuse && mount -i -t fuse -o fd=3,rootmode={mode},user_id=0,group_id=0 hung {at} && \
             touch {told} && exec {forever} </dev/null >/dev/null 2>&1"
        );
        let mut shell = self.enclosure().command("sh");
        shell.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::null());
        let mut serving = shell.spawn().expect("run nsenter");
        let begun = Instant::now();
        while !mounted.exists() {
            assert_eq!(serving.try_wait().expect("look at it"), None, "mount fuse at {at}");
            assert!(begun.elapsed() < Duration::from_secs(30), "mount fuse at {at}");
            std::thread::sleep(Duration::from_millis(10));
        }
        std::fs::remove_file(mounted).expect("remove the mark");
        let find = || self.enclosure().processes().into_iter().find(|(_, line)| *line == forever).map(|(pid, _)| pid);
        let server = loop {
            match find() {
                Some(pid) => break pid,
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        // Waits for it once it is over.
        std::thread::spawn(move || serving.wait());
        Hung { node: self, path, server }
    }
}

impl Hung<'_> {
    /// Those who wait get an error, and what was covered is back.
    pub fn release(self) {
        self.node.enclosure().kill(self.server, "KILL");
        self.node.enclosure().shell(&format!("umount -l {}", self.path.display()));
    }
}

/// A log on which a shim hangs in the kernel. The container is called `name`.
pub fn log_that_hangs<'a>(pod: &Pod<'a>, name: &str) -> Hung<'a> {
    let path = PathBuf::from(&pod.config.log_directory).join(format!("{name}.log"));
    std::fs::write(&path, "").expect("make a log");
    pod.node().hang(path)
}

impl Container<'_> {
    /// Stops its shim, which then neither answers nor ends.
    pub fn stop_shim(&self) {
        assert_ne!(self.node().signal_shim(&self.id, "STOP"), 0, "{} has no shim", self.id);
    }
}
