//! What hangs, on purpose: a shim that is stopped as if the kernel held it, a network plugin that does not end.

use std::path::PathBuf;

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

    /// The processes of a container's shim. An init that was not let go yet is one by its looks.
    pub fn shims(&self, container: &str) -> Vec<u32> {
        let is_shim = |line: &str| line.contains("containerd-shim") && line.contains(container);
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

/// A log on which a shim hangs in the kernel: a FIFO that nobody reads. The container is called `name`.
pub fn log_that_hangs(pod: &Pod<'_>, name: &str) -> PathBuf {
    let path = PathBuf::from(&pod.config.log_directory).join(format!("{name}.log"));
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).expect("make a FIFO");
    path
}

impl Container<'_> {
    /// Stops its shim, which then neither answers nor ends.
    pub fn stop_shim(&self) {
        assert_ne!(self.node().signal_shim(&self.id, "STOP"), 0, "{} has no shim", self.id);
    }
}
