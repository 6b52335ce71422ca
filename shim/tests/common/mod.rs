//! A real shim with a real container of Debian's busybox, driven as the daemon drives it.

#![allow(dead_code, unreachable_pub)] // Each test file uses its own part.

use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use berth_api::shim::ExitRecord;
use berth_api::shim::messages::ReopenLogRequest;
use berth_api::shim::service::ShimClient;
use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use protobuf::well_known_types::any::Any;
use serde_json::{Value, json};
use ttrpc::context::Context;

/// The binary under test; `BERTH_SHIM` names another one, e.g. the release build.
pub fn shim() -> std::ffi::OsString {
    std::env::var_os("BERTH_SHIM").unwrap_or_else(|| env!("CARGO_BIN_EXE_containerd-shim-berth-v1").into())
}

const BUSYBOX: &str = "/bin/busybox"; // Debian's busybox-static

pub type Reply<T> = Result<T, ttrpc::Error>;

/// Every call is answered within this time, or the test fails instead of hanging.
pub fn deadline() -> Context {
    ttrpc::context::with_duration(Duration::from_secs(30))
}

/// Waits for something to become true.
pub async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !is() {
        assert!(Instant::now() < deadline, "not within 15 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A bundle and what its container shall be.
pub struct Plan {
    pub id: String,
    pub dir: tempfile::TempDir,
    pub spec: Value,
    pub create: api::CreateTaskRequest,
}

impl Plan {
    /// Runs `args`; both streams go to one CRI log.
    pub fn new(args: &[&str]) -> Plan {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::Builder::new().prefix("berth-shim-").tempdir_in("/tmp").unwrap();
        let rootfs = dir.path().join("image");
        for directory in ["bin", "proc", "sys", "dev", "tmp", "etc"] {
            std::fs::create_dir_all(rootfs.join(directory)).unwrap();
        }
        std::fs::create_dir_all(dir.path().join("bundle/rootfs")).unwrap();
        std::fs::copy(BUSYBOX, rootfs.join("bin/busybox")).expect("install busybox-static");
        for applet in
            ["sh", "cat", "sleep", "echo", "true", "seq", "tty", "stty", "ps", "setsid", "yes", "head", "dd", "kill"]
        {
            std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        let namespace = |kind: &str| json!({ "type": kind });
        let spec = json!({
            "ociVersion": "1.2.0",
            "hostname": "box",
            "root": { "path": "rootfs" },
            "process": process(args),
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"] },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                  "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            ],
            "linux": {
                "cgroupsPath": format!("/berth-shimtest-{id}"),
                "namespaces": (["pid", "mount", "ipc", "uts", "network"].map(namespace)),
            },
        });
        let log = dir.path().join("0.log");
        let create = api::CreateTaskRequest {
            id: id.clone(),
            bundle: dir.path().join("bundle").to_str().unwrap().into(),
            rootfs: vec![api::Mount {
                type_: "bind".into(),
                source: rootfs.to_str().unwrap().into(),
                options: vec!["rbind".into(), "rw".into()],
                ..Default::default()
            }],
            stdout: format!("cri+file://{}?stream=stdout", log.display()),
            stderr: format!("cri+file://{}?stream=stderr", log.display()),
            ..Default::default()
        };
        Plan { id, dir, spec, create }
    }

    pub fn bundle(&self) -> PathBuf {
        self.dir.path().join("bundle")
    }

    /// Starts a shim and connects; no container yet.
    pub async fn spawn(self) -> Task {
        std::fs::write(self.bundle().join("config.json"), self.spec.to_string()).unwrap();
        let answer = start(&self.bundle(), &self.id, &["-in-bundle"]);
        self.attach(&answer).await
    }

    /// As `spawn`, by a containerd that listens for events at `address`.
    pub async fn spawn_told(self, address: &Path) -> Task {
        std::fs::write(self.bundle().join("config.json"), self.spec.to_string()).unwrap();
        let mut command = Command::new(shim());
        command.args(["-namespace", "berth", "-address", "/nowhere.sock", "-id", &self.id, "start"]);
        command.env("TTRPC_ADDRESS", address).env("MAX_SHIM_VERSION", "3");
        let output = command.current_dir(self.bundle()).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.attach(&String::from_utf8(output.stdout).unwrap()).await
    }

    /// Connects to a shim by what its `start` answered.
    pub async fn attach(self, answer: &str) -> Task {
        let answer: Value = serde_json::from_str(answer).unwrap();
        assert_eq!((&answer["version"], &answer["protocol"]), (&json!(3), &json!("ttrpc")));
        let client = Client::connect(answer["address"].as_str().unwrap()).await.unwrap();
        let task = TaskClient::new(client.clone());
        let (shim, address) = (ShimClient::new(client.clone()), answer["address"].as_str().unwrap().to_owned());
        Task { id: self.id, dir: self.dir, create: self.create, address, task, shim, client }
    }

    pub async fn create(self) -> Task {
        let task = self.spawn().await;
        task.create().await.unwrap();
        task
    }

    pub async fn start(self) -> Task {
        let task = self.create().await;
        task.start("").await.unwrap();
        task
    }
}

/// An OCI process.
pub fn process(args: &[&str]) -> Value {
    json!({
        "user": { "uid": 0, "gid": 0 },
        "args": args,
        "cwd": "/",
        "env": ["PATH=/bin"],
        "capabilities": {
            "bounding": ["CAP_KILL", "CAP_CHOWN"], "effective": ["CAP_KILL", "CAP_CHOWN"],
            "permitted": ["CAP_KILL", "CAP_CHOWN"],
        },
    })
}

/// `containerd-shim-berth-v1 … start`; returns what it prints.
pub fn start(bundle: &Path, id: &str, flags: &[&str]) -> String {
    let mut command = Command::new(shim());
    command.args(["-namespace", "berth", "-address", "/nowhere.sock", "-id", id, "-bundle"]).arg(bundle);
    let output = command.args(flags).arg("start").current_dir(bundle).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A shim and its client.
pub struct Task {
    pub id: String,
    pub dir: tempfile::TempDir,
    create: api::CreateTaskRequest,
    /// As `start` told it.
    pub address: String,
    pub task: TaskClient,
    pub shim: ShimClient,
    pub client: Client,
}

impl Task {
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub async fn create(&self) -> Reply<u32> {
        self.task.create(deadline(), &self.create).await.map(|response| response.pid)
    }

    pub async fn start(&self, exec_id: &str) -> Reply<u32> {
        let request = api::StartRequest { id: self.id.clone(), exec_id: exec_id.into(), ..Default::default() };
        self.task.start(deadline(), &request).await.map(|response| response.pid)
    }

    pub async fn wait(&self, exec_id: &str) -> Reply<u32> {
        let request = api::WaitRequest { id: self.id.clone(), exec_id: exec_id.into(), ..Default::default() };
        self.task.wait(deadline(), &request).await.map(|response| response.exit_status)
    }

    pub async fn kill(&self, exec_id: &str, signal: u32, all: bool) -> Reply<()> {
        let request =
            api::KillRequest { id: self.id.clone(), exec_id: exec_id.into(), signal, all, ..Default::default() };
        self.task.kill(deadline(), &request).await.map(drop)
    }

    pub async fn delete(&self, exec_id: &str) -> Reply<api::DeleteResponse> {
        let request = api::DeleteRequest { id: self.id.clone(), exec_id: exec_id.into(), ..Default::default() };
        self.task.delete(deadline(), &request).await
    }

    pub async fn state(&self) -> Reply<api::StateResponse> {
        self.task.state(deadline(), &api::StateRequest { id: self.id.clone(), ..Default::default() }).await
    }

    pub async fn pids(&self) -> Vec<u32> {
        let request = api::PidsRequest { id: self.id.clone(), ..Default::default() };
        let response = self.task.pids(deadline(), &request).await.unwrap();
        response.processes.iter().map(|process| process.pid).collect()
    }

    pub async fn connect(&self) -> Reply<api::ConnectResponse> {
        self.task.connect(deadline(), &api::ConnectRequest { id: self.id.clone(), ..Default::default() }).await
    }

    pub async fn reopen(&self) -> Reply<u64> {
        let request = ReopenLogRequest { id: self.id.clone(), ..Default::default() };
        self.shim.reopen_log(deadline(), &request).await.map(|response| response.dropped_lines)
    }

    /// Makes an exec'd process known.
    pub async fn exec(&self, exec_id: &str, spec: &Value, streams: Streams<'_>) -> Reply<()> {
        let request = api::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec_id.into(),
            terminal: streams.terminal,
            stdin: streams.stdin.into(),
            stdout: streams.stdout.into(),
            stderr: streams.stderr.into(),
            spec: protobuf::MessageField::some(Any { value: spec.to_string().into_bytes(), ..Default::default() }),
            ..Default::default()
        };
        self.task.exec(deadline(), &request).await.map(drop)
    }

    /// A FIFO in the test's directory, with its read end open.
    pub fn fifo(&self, name: &str) -> (PathBuf, std::fs::File) {
        let path = self.path(name);
        let status = Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(status.success() && path.metadata().unwrap().file_type().is_fifo());
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let read = std::fs::OpenOptions::new().read(true).custom_flags(nonblock).open(&path).unwrap();
        (path, read)
    }

    /// The log's whole records so far without their times, which must be in order.
    pub fn log(&self) -> String {
        records(&std::fs::read(self.path("0.log")).unwrap())
    }

    pub fn exit_record(&self) -> ExitRecord {
        serde_json::from_slice(&std::fs::read(self.path("bundle/exit.json")).unwrap()).unwrap()
    }

    /// Deletes the ended container, shuts the shim down and asserts that nothing is left.
    pub async fn finish(self) {
        self.delete("").await.unwrap();
        self.shut_down().await;
    }

    /// The rest, when the container is deleted.
    pub async fn shut_down(self) {
        let shim_pid = self.connect().await.unwrap().shim_pid;
        self.task
            .shutdown(deadline(), &api::ShutdownRequest { id: self.id.clone(), ..Default::default() })
            .await
            .unwrap();
        until("the shim has ended", || !alive(shim_pid)).await;
        assert_eq!(cgroups(&self.id), Vec::<PathBuf>::new());
        assert!(!self.path("bundle/task.sock").exists());
        let said = std::fs::read_to_string(self.path("bundle/shim.log")).unwrap();
        assert!(!said.contains("panic"), "{said}");
    }
}

impl Drop for Task {
    /// For a test that fails: what it started must not outlive it.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("shim.log: {}", std::fs::read_to_string(self.path("bundle/shim.log")).unwrap_or_default());
            for process in std::fs::read_dir("/proc").unwrap().flatten() {
                let command = std::fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
                if command.contains(&format!("\0{}\0", self.id)) {
                    let _ = Command::new("kill").arg("-KILL").arg(process.file_name()).status();
                }
            }
            let bundle = self.path("bundle");
            let delete = ["-namespace", "berth", "-id", &self.id, "delete"];
            let _ = Command::new(shim()).args(delete).current_dir(bundle).output();
        }
    }
}

/// An exec'd process's streams.
#[derive(Default)]
pub struct Streams<'a> {
    pub terminal: bool,
    pub stdin: &'a str,
    pub stdout: &'a str,
    pub stderr: &'a str,
}

/// The container's directories in every hierarchy.
pub fn cgroups(id: &str) -> Vec<PathBuf> {
    let below = |root: PathBuf| root.join(format!("berth-shimtest-{id}"));
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
    let all = hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]);
    all.map(below).filter(|directory| directory.exists()).collect()
}

/// A process that is there and no zombie.
pub fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, after)| !after.starts_with('Z') && !after.starts_with('X'))
}

/// The whole records of a log without their times, which must be in order. Who reads a file while it is written may see
/// a part of the last write: the kernel copies it folio by folio.
pub fn records(log: &[u8]) -> String {
    let whole = log.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let text = String::from_utf8(log[..whole].to_vec()).unwrap();
    let mut last = String::new();
    let mut all = String::new();
    for line in text.split_terminator('\n') {
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.len() == 30 && time.ends_with('Z') && *time >= *last, "{line}");
        last = time.to_owned();
        all.push_str(rest);
        all.push('\n');
    }
    all
}

/// What a stream wrote, put together from a log's records.
pub fn content(log: &[u8], stream: &str) -> Vec<u8> {
    let mut all = Vec::new();
    for line in log.split_inclusive(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\n").expect("a whole record");
        assert_eq!(line[30], b' ');
        if &line[31..37] == stream.as_bytes() {
            all.extend_from_slice(&line[40..]);
            if line[38] == b'F' {
                all.push(b'\n');
            }
        }
    }
    all
}

/// The code of a refusal.
pub fn code(error: ttrpc::Error) -> (ttrpc::Code, String) {
    match error {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
        other => panic!("no status: {other}"),
    }
}

pub fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().mode() & 0o7777
}
