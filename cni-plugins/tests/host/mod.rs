//! A host in a network namespace of its own, pods in theirs, and plugins called as a runtime calls them.
//! Everything goes with the `Host`: namespaces are unmounted, leases are in its directory.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use berth_api::cni::result::AddResult;
use serde_json::{Value, json};

/// SIGKILL, as an exit tells it.
pub(crate) const KILLED: Option<i32> = Some(9);

/// A host without a network.
pub(crate) struct Host {
    dir: tempfile::TempDir,
}

/// What a plugin answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: ExitStatus,
    pub(crate) json: Value,
}

/// One call of a plugin, to be changed and run.
#[derive(Clone)]
pub(crate) struct Call<'a> {
    host: &'a Host,
    program: PathBuf,
    pub(crate) env: Vec<(&'static str, String)>,
    pub(crate) config: Value,
}

/// Path of one of our binaries.
pub(crate) fn binary(name: &str) -> &'static Path {
    Path::new(match name {
        "bridge" => env!("CARGO_BIN_EXE_bridge"),
        "host-local" => env!("CARGO_BIN_EXE_host-local"),
        "loopback" => env!("CARGO_BIN_EXE_loopback"),
        other => panic!("no plugin {other}"),
    })
}

impl Host {
    pub(crate) fn new() -> Self {
        let host = Host { dir: tempfile::tempdir().unwrap() };
        host.namespace("host");
        host.run("host", "ip link set lo up");
        host
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a namespace, pinned at its name.
    pub(crate) fn namespace(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, "").unwrap();
        let unshare = format!("--net={}", path.display());
        assert!(Command::new("unshare").args([&unshare, "true"]).status().unwrap().success());
        path
    }

    /// Drops a namespace, as a runtime does after DEL.
    pub(crate) fn drop_namespace(&self, name: &str) {
        assert!(Command::new("umount").arg(self.path(name)).status().unwrap().success());
    }

    /// Runs a command line inside a namespace; it must succeed.
    pub(crate) fn run(&self, namespace: &str, line: &str) -> String {
        let (ok, text) = self.try_run(namespace, line);
        assert!(ok, "{namespace}: {line}: {text}");
        text
    }

    pub(crate) fn try_run(&self, namespace: &str, line: &str) -> (bool, String) {
        let output = self.enter(namespace).args(["sh", "-c", line]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text)
    }

    fn enter(&self, namespace: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path(namespace).display())).arg("--");
        command
    }

    /// Whether a packet finds its way and an answer comes back, within five seconds.
    pub(crate) fn reaches(&self, namespace: &str, address: &str) -> bool {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(5) {
            if self.try_run(namespace, &format!("busybox ping -c1 -W1 {address}")).0 {
                return true;
            }
        }
        false
    }

    /// The network that berthd has built in, dual stack.
    pub(crate) fn config(&self) -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "pods", "type": "bridge", "bridge": "berth-test", "isGateway": true,
            "isDefaultGateway": true, "ipMasq": true, "hairpinMode": true, "nftTable": "berth-test",
            "ipam": {
                "type": "host-local", "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd00:88::/64"}]],
                "dataDir": self.path("ipam"),
            },
        })
    }

    /// A call of our bridge for a pod's eth0.
    pub(crate) fn bridge(&self, verb: &str, pod: &str) -> Call<'_> {
        self.call("bridge", verb, pod)
    }

    /// A call of one of our plugins for a pod's eth0.
    pub(crate) fn call(&self, plugin: &str, verb: &str, pod: &str) -> Call<'_> {
        let program = binary(plugin).to_path_buf();
        let dir = program.parent().unwrap().display().to_string();
        let env = vec![
            ("CNI_COMMAND", verb.into()),
            ("CNI_CONTAINERID", pod.into()),
            ("CNI_NETNS", self.path(pod).display().to_string()),
            ("CNI_IFNAME", "eth0".into()),
            ("CNI_PATH", dir),
        ];
        Call { host: self, program, env, config: self.config() }
    }

    /// Makes a pod's namespace and attaches it.
    pub(crate) fn add(&self, pod: &str) -> AddResult {
        if !self.path(pod).exists() {
            self.namespace(pod);
        }
        self.bridge("ADD", pod).result()
    }

    /// Names of the host's devices, `lo` aside, in the order of their making.
    pub(crate) fn links(&self) -> Vec<String> {
        let links: Value = serde_json::from_str(&self.run("host", "ip -j link")).unwrap();
        let names = links.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap().to_string());
        names.filter(|name| name != "lo").collect()
    }

    /// Every file below the network's leases that is of a pod.
    pub(crate) fn leases(&self) -> Vec<String> {
        let names = |dir: PathBuf| {
            let entries = fs::read_dir(dir).into_iter().flatten();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
        };
        let dir = self.path("ipam/pods");
        let mut all = names(dir.clone());
        all.retain(|name| name != "lock" && name != "owners");
        all.extend(names(dir.join("owners")).into_iter().map(|name| format!("owners/{name}")));
        all.sort();
        all
    }

    /// How many ports are published, of both families.
    pub(crate) fn published(&self) -> usize {
        let count = |map: &str| {
            let (is_there, json) = self.try_run("host", &format!("nft -j list map inet berth-test {map}"));
            let json: Value = if is_there { serde_json::from_str(&json).unwrap() } else { Value::Null };
            json["nftables"][1]["map"]["elem"].as_array().map_or(0, Vec::len)
        };
        count("ports4") + count("ports6")
    }

    /// Nothing but the bridge, which all pods share, is there.
    pub(crate) fn assert_no_pod_left(&self) {
        assert_eq!(self.leases(), Vec::<String>::new());
        assert_eq!(self.published(), 0, "published ports");
        assert!(self.links().iter().all(|name| name == "berth-test"), "{:?}", self.links());
    }

    /// Waits until the kernel has freed what went with a namespace.
    pub(crate) fn until_links_are(&self, expected: &[&str]) {
        let began = Instant::now();
        while self.links() != expected {
            assert!(began.elapsed() < Duration::from_secs(10), "{:?} is not {expected:?}", self.links());
            std::thread::yield_now();
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.dir.path()).into_iter().flatten().flatten() {
            let _ = Command::new("umount").arg("-q").arg(entry.path()).status();
        }
    }
}

impl Call<'_> {
    pub(crate) fn program(mut self, program: impl AsRef<OsStr>) -> Self {
        self.program = program.as_ref().into();
        self
    }

    /// Sets a variable, or with an empty value takes it away.
    pub(crate) fn env(mut self, name: &'static str, value: &str) -> Self {
        self.env.retain(|(key, _)| *key != name);
        if !value.is_empty() {
            self.env.push((name, value.into()));
        }
        self
    }

    /// Says that the namespace is the caller's.
    pub(crate) fn owned(self) -> Self {
        self.env("CNI_ARGS", "BERTH_NETNS_OWNED=1;IgnoreUnknown=1")
    }

    /// Sets a key of the configuration.
    pub(crate) fn with(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    pub(crate) fn run(&self) -> Answer {
        let mut child = self
            .host
            .enter("host")
            .arg(&self.program)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let text = self.config.to_string();
        // A plugin that dies at once does not read.
        let _ = child.stdin.take().unwrap().write_all(text.as_bytes());
        let output = child.wait_with_output().unwrap();
        let json = match output.stdout.as_slice() {
            b"" => Value::Null,
            text => serde_json::from_slice(text).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(text))),
        };
        Answer { status: output.status, json }
    }

    /// Runs it; it must succeed.
    pub(crate) fn ok(&self) -> Value {
        let answer = self.run();
        assert!(answer.status.success(), "{:?}: {}", self.env, answer.json);
        answer.json
    }

    /// Runs it; it must succeed with a result.
    pub(crate) fn result(&self) -> AddResult {
        AddResult::from_value(self.ok()).unwrap().1
    }

    /// Runs it; it must fail. Code and message with details.
    pub(crate) fn error(&self) -> (u64, String) {
        let answer = self.run();
        assert!(!answer.status.success(), "{:?} succeeded: {}", self.env, answer.json);
        let text = |key: &str| answer.json[key].as_str().unwrap_or_default().to_string();
        (answer.json["code"].as_u64().unwrap(), [text("msg"), text("details")].join(": "))
    }

    /// Runs it armed with a failpoint; whether it died there.
    pub(crate) fn dies_at(&self, failpoint: &str) -> bool {
        self.clone().env("BERTH_FAILPOINT", failpoint).run().status.signal() == KILLED
    }
}

/// The steps that a binary names.
pub(crate) fn failpoints(plugin: &str) -> Vec<String> {
    let output = Command::new(binary(plugin)).arg("failpoints").output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_string).collect()
}

/// The addresses of a result, without prefixes.
pub(crate) fn addresses(result: &AddResult) -> Vec<String> {
    result.addresses().map(|ip| ip.to_string()).collect()
}
