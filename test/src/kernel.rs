//! What the kernel shows of a container's first process from outside: the judge of what a request asked for.

use std::path::PathBuf;

use serde_json::Value;

use crate::{Container, Node};

impl Container<'_> {
    /// The verbose status's own object.
    pub async fn inspected(&self) -> Value {
        let info = self.info().await;
        let text = info.get("info").expect("a verbose status has `info`");
        serde_json::from_str(text).expect("it is JSON")
    }

    /// Its first process, as the node numbers it.
    pub async fn pid(&self) -> u64 {
        let pid = self.inspected().await["pid"].as_u64().unwrap_or_default();
        assert_ne!(pid, 0, "container {} does not run", self.id);
        pid
    }

    /// `/proc/PID/NAME` of its first process, from outside.
    pub async fn proc(&self, name: &str) -> PathBuf {
        let path = format!("/proc/{}/{name}", self.pid().await);
        self.node().enclosure().path(path)
    }

    /// A line of `/proc/PID/status` without its key, words with one space between.
    pub async fn process_status(&self, key: &str) -> String {
        let text = std::fs::read_to_string(self.proc("status").await).expect("read the status of a process");
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        let line = line.unwrap_or_else(|| panic!("no {key} in\n{text}"));
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// A capability set (`CapEff`, `CapBnd` …) as its bits.
    pub async fn capabilities(&self, set: &str) -> u64 {
        u64::from_str_radix(&self.process_status(set).await, 16).expect("a hexadecimal mask")
    }

    /// Path of its cgroup, below the root, in the hierarchy of `controller`; `""` is version 2's tree.
    pub async fn cgroup(&self, controller: &str) -> String {
        let text = std::fs::read_to_string(self.proc("cgroup").await).expect("read the cgroups of a process");
        let mut lines = text.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>());
        let found = lines.find(|line| line[1].split(',').any(|name| name == controller));
        found.unwrap_or_else(|| panic!("no hierarchy of {controller:?} in\n{text}"))[2].to_owned()
    }

    /// Freezes it by version 1's freezer, which keeps even what was killed, as a disk that does not answer would.
    pub async fn freeze(&self) -> Frozen {
        // One that was never started has no process that is told.
        let path = match self.inspected().await["cgroupPath"].as_str() {
            Some(path) => path.to_owned(),
            None => self.cgroup("freezer").await,
        };
        let frozen = Frozen(format!("/sys/fs/cgroup/freezer{path}/freezer.state").into());
        std::fs::write(&frozen.0, "FROZEN").expect("freeze a cgroup");
        frozen
    }

    /// What the kernel has as a limit: `v1` where this controller is a hierarchy of version 1, else `v2` in the tree of
    /// version 2, which a hybrid host has beside them.
    pub async fn limit(&self, controller: &str, v1: &str, v2: &str) -> String {
        let root = PathBuf::from("/sys/fs/cgroup");
        let (directory, path, file) = match root.join(controller) {
            hierarchy if !cgroup_v2() && hierarchy.exists() => (hierarchy, self.cgroup(controller).await, v1),
            _ if cgroup_v2() => (root, self.cgroup("").await, v2),
            _ => (root.join("unified"), self.cgroup("").await, v2),
        };
        let file = directory.join(path.trim_start_matches('/')).join(file);
        let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("read {}: {e}", file.display()));
        text.trim().to_owned()
    }
}

impl Container<'_> {
    /// Microseconds so far in which some of its processes waited for `resource`: version 2's `RESOURCE.pressure`.
    pub async fn pressure(&self, resource: &str) -> u64 {
        let root = PathBuf::from(if cgroup_v2() { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/unified" });
        let path = self.cgroup("").await;
        let file = root.join(path.trim_start_matches('/')).join(format!("{resource}.pressure"));
        let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("read {}: {e}", file.display()));
        let total = text.lines().find_map(|line| line.strip_prefix("some ")?.rsplit_once("total=")?.1.parse().ok());
        total.unwrap_or_else(|| panic!("no total of some in\n{text}"))
    }
}

impl Node {
    /// `/proc/PID/NAME` of the daemon, from outside.
    pub fn daemon_proc(&self, name: &str) -> PathBuf {
        let pid = self.daemon_pid().expect("the daemon runs");
        self.enclosure().path(format!("/proc/{pid}/{name}"))
    }

    /// Bytes of memory that the daemon has.
    pub fn daemon_memory(&self) -> u64 {
        // Exact, unlike VmRSS, which lags behind what each processor has counted.
        let rollup = std::fs::read_to_string(self.daemon_proc("smaps_rollup")).expect("its memory");
        let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).expect("Rss");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    }
}

/// The host has cgroup version 2 alone.
pub fn cgroup_v2() -> bool {
    std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Bits of a capability set by name, in the kernel's numbers. Source: include/uapi/linux/capability.h.
pub fn capability(name: &str) -> u64 {
    let number = match name {
        "CHOWN" => 0,
        "KILL" => 5,
        "NET_BIND_SERVICE" => 10,
        "NET_ADMIN" => 12,
        "NET_RAW" => 13,
        "SYS_CHROOT" => 18,
        "SYS_ADMIN" => 21,
        "SYS_RESOURCE" => 24,
        "SYS_TIME" => 25,
        other => panic!("{other} has no number here"),
    };
    1 << number
}

/// Thaws it when dropped: also when the test fails, whose node could not end otherwise.
pub struct Frozen(PathBuf);

impl Drop for Frozen {
    fn drop(&mut self) {
        // It may be gone.
        let _ = std::fs::write(&self.0, "THAWED");
    }
}
