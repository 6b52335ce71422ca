//! A node under test: an enclosure with a registry and a daemon in it, a CRI client, and the leak check around them.
//!
//! `BERTH_TEST_NODE=containerd` runs the tests against Debian's containerd, to prove a test on a runtime that is not
//! ours; what only berth promises is then not asked ([`Node::is_berth`]).

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use berth_api::cri::image_service_client::ImageServiceClient;
use berth_api::cri::runtime_service_client::RuntimeServiceClient;
use berth_api::cri::{ImageSpec, PullImageRequest, StatusRequest, VersionRequest};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::cri::IMAGE;
use crate::enclosure::{Enclosure, said, script, target_dir, tool};
use crate::leaks::Snapshot;
use crate::wait::{patience, until};

/// How a node is to be started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Lines of TOML after those that every node of the tests has.
    pub config: String,
    /// More environment of the daemon, which its children inherit: `BERTH_FAILPOINT`.
    pub environment: Vec<(String, String)>,
    /// Use the build with failpoints.
    pub failpoints: bool,
    /// Use the build of the commit that test/upgrade-from names.
    pub previous: bool,
    /// Without a network configuration or the built-in network.
    pub no_network: bool,
    /// Do not pull [`IMAGE`].
    pub no_image: bool,
    /// Debian's containerd, whatever the environment says: what the benchmark compares with.
    pub peer: bool,
}

/// The soft limit of open files that a daemon is started with, as systemd does it.
pub const FILES: u32 = 1024;

/// Where the binaries of a node are: what hack/build made, or `BERTH_BIN`.
pub fn binary_dir(failpoints: bool) -> PathBuf {
    let folder = if failpoints { "berth-failpoints" } else { "berth" };
    let given = std::env::var_os("BERTH_BIN").filter(|_| !failpoints);
    given.map_or_else(|| target_dir().join(folder), PathBuf::from)
}

/// Where hack/previous put the binaries that an upgrade comes from.
pub fn previous_dir() -> PathBuf {
    let dir = target_dir().join("berth-previous");
    assert!(dir.join("stamp").exists(), "nothing in {}: run hack/previous", dir.display());
    dir
}

/// A binary of the build with failpoints, as hack/build names it.
pub fn failpoint_binary(name: &str) -> PathBuf {
    target_dir().join("berth-failpoints").join(name)
}

/// A running node. Everything of it ends when this value is dropped, in whatever state it is.
pub struct Node {
    dir: TempDir,
    enclosure: Enclosure,
    options: Mutex<Options>,
    is_berth: bool,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    channel: Channel,
    before: Mutex<Option<Snapshot>>,
}

impl Node {
    /// A node with a network and [`IMAGE`], ready.
    pub async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    /// A node as wanted, ready (but for the network, when it is to have none).
    pub async fn start_with(options: Options) -> Self {
        let dir = tempfile::Builder::new().prefix("bt-").tempdir_in("/tmp").expect("make a directory in /tmp");
        let enclosure = Enclosure::new();
        let (images, pid_file) = (image_dir(), dir.path().join("registry.pid"));
        let mut registry = enclosure.command(script("registry"));
        registry.args(["start".as_ref(), images.as_os_str(), pid_file.as_os_str()]);
        said(&registry.output().expect("run nsenter"), "hack/registry start");
        let is_berth = !options.peer && std::env::var_os("BERTH_TEST_NODE").is_none_or(|node| node == "berth");
        let socket = enclosure.path(if is_berth {
            dir.path().join("run/berth.sock")
        } else {
            dir.path().join("containerd.sock")
        });
        let channel = Endpoint::from_static("http://node").timeout(patience(90)).connect_with_connector_lazy(
            tower::service_fn(move |_: Uri| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            }),
        );
        let large = 64 << 20; // bytes; a list of all objects is one message
        let node = Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(large),
            images: ImageServiceClient::new(channel.clone()).max_decoding_message_size(large),
            channel,
            dir,
            enclosure,
            options: Mutex::new(options.clone()),
            is_berth,
            before: Mutex::new(None),
        };
        if is_berth {
            // The daemon wants its kernel objects' records on a file system that does not outlive a boot.
            node.enclosure.shell(&format!("mkdir -p {0}/run && mount -t tmpfs -o mode=700 run {0}/run", node.at()));
            std::fs::create_dir_all(node.dir().join("net.d")).expect("make net.d");
            std::fs::write(node.dir().join("config.toml"), node.config(&options)).expect("write config.toml");
        }
        node.spawn();
        node.until_ready().await;
        if !options.no_image {
            node.pull(IMAGE).await;
        }
        node.remember();
        node
    }

    /// Whether the daemon is berth's, and not the one a test is proven against.
    pub fn is_berth(&self) -> bool {
        self.is_berth
    }

    /// The node's directory: `data`, `run`, `net.d`, `config.toml`, `log`, `logs`.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn at(&self) -> std::path::Display<'_> {
        self.dir.path().display()
    }

    /// The namespaces that the node lives in.
    pub fn enclosure(&self) -> &Enclosure {
        &self.enclosure
    }

    /// A client of RuntimeService; cheap.
    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        self.runtime.clone()
    }

    /// A client of ImageService; cheap.
    pub fn images(&self) -> ImageServiceClient<Channel> {
        self.images.clone()
    }

    /// The connection to the daemon's socket, for a client of one's own.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// `unix://…` as programs inside the enclosure name the socket.
    pub fn endpoint(&self) -> String {
        format!("unix://{}/{}", self.at(), if self.is_berth { "run/berth.sock" } else { "containerd.sock" })
    }

    /// Pulls an image and gives its id.
    pub async fn pull(&self, reference: &str) -> String {
        let image = ImageSpec { image: reference.into(), ..Default::default() };
        let request = PullImageRequest { image: Some(image), ..Default::default() };
        let answer = self.images().pull_image(request).await;
        answer.unwrap_or_else(|e| panic!("PullImage {reference}: {e}\n{}", self.log_tail())).into_inner().image_ref
    }

    /// Runs crictl inside; panics with its output when it fails.
    pub fn crictl(&self, arguments: &[&str]) -> String {
        said(&self.crictl_command(arguments).output().expect("run nsenter"), &format!("crictl {}", arguments.join(" ")))
    }

    /// crictl inside, not yet run.
    pub fn crictl_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.enclosure.command(target_dir().join("cri-tools/crictl"));
        command.env("CRI_CONFIG_FILE", target_dir().join("cri-tools/crictl.yaml"));
        command.args(["--runtime-endpoint", &self.endpoint()]).args(arguments);
        command
    }

    /// The daemon's process by its pid inside the enclosure, while it runs.
    pub fn daemon_pid(&self) -> Option<u32> {
        let marks = if self.is_berth { ["berthd serve", "/data"] } else { ["containerd --config", "/config.toml"] };
        let marks = [marks[0].to_owned(), format!("{}{}", self.at(), marks[1])];
        let processes = self.enclosure.processes();
        processes.into_iter().find(|(_, line)| marks.iter().all(|mark| line.contains(mark))).map(|(pid, _)| pid)
    }

    /// Kills the daemon as a power cut to it would: SIGKILL, and waits until it is gone.
    pub async fn kill_daemon(&self) {
        let pid = self.daemon_pid().expect("the daemon runs");
        self.enclosure.kill(pid, "KILL");
        until("daemon is gone", 5, async || self.daemon_pid() != Some(pid)).await;
    }

    /// Ends the daemon in order, and waits until it is gone.
    pub async fn stop_daemon(&self) {
        let pid = self.daemon_pid().expect("the daemon runs");
        self.enclosure.kill(pid, "TERM");
        until("daemon ends", 30, async || self.daemon_pid() != Some(pid)).await;
    }

    /// Starts the daemon again, with the same roots, and waits until it is ready.
    pub async fn restart(&self) {
        self.spawn();
        self.until_ready().await;
    }

    /// Which build the daemon is at its next start: that of test/upgrade-from, or the one under test.
    pub fn set_previous(&self, previous: bool) {
        self.options.lock().expect("no holder panicked").previous = previous;
    }

    /// The same, with another environment.
    pub async fn restart_with(&self, environment: &[(&str, &str)]) {
        self.set_environment(environment);
        self.restart().await;
    }

    /// What the daemon's environment has more at the next start.
    pub fn set_environment(&self, environment: &[(&str, &str)]) {
        let owned = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        self.options.lock().expect("no holder panicked").environment = owned;
    }

    /// Starts the daemon, without waiting for it.
    pub fn spawn(&self) {
        let options = self.options.lock().expect("no holder panicked").clone();
        if !self.is_berth {
            let mut start = self.enclosure.command(script("containerd"));
            said(&start.arg("start").arg(self.dir()).output().expect("run nsenter"), "hack/containerd start");
            if options.no_network {
                self.enclosure.shell(&format!("rm {}/net.d/*", self.at()));
            }
            return;
        }
        if options.previous {
            // The version of test/upgrade-from mounts over its own images where mounts are shared.
            self.enclosure.shell("mount --make-rprivate /");
        }
        let bin = if options.previous { previous_dir() } else { binary_dir(options.failpoints) };
        let run = format!(
            "ulimit -S -n {FILES}; exec setsid {bin}/berthd serve --config {dir}/config.toml --listen {socket} --data-root {dir}/data --run-root {dir}/run \
             </dev/null >>{dir}/log 2>&1 &",
            bin = bin.display(),
            dir = self.at(),
            socket = self.endpoint(),
        );
        let mut shell = self.enclosure.command("sh");
        shell.args(["-euc", &run]).envs(options.environment).process_group(0);
        said(&shell.output().expect("run nsenter"), "start berthd");
    }

    async fn until_ready(&self) {
        let network = !self.options.lock().expect("no holder panicked").no_network;
        let ready = async || {
            let Ok(answer) = self.runtime().version(VersionRequest::default()).await else {
                return false;
            };
            let _ = answer;
            let Ok(answer) = self.runtime().status(StatusRequest::default()).await else {
                return false;
            };
            let conditions = answer.into_inner().status.unwrap_or_default().conditions;
            conditions.iter().all(|c| c.status || (!network && c.r#type == "NetworkReady"))
        };
        let begun = std::time::Instant::now();
        while !ready().await {
            // A daemon that has just been started may not have become visible yet.
            let gone = self.daemon_pid().is_none() && begun.elapsed() > patience(1);
            assert!(!gone, "the daemon does not run\n{}", self.log_tail());
            assert!(begun.elapsed() < patience(30), "the daemon is not ready\n{}", self.log_tail());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn config(&self, options: &Options) -> String {
        // A port that is the same after a restart; nobody else listens in the enclosure.
        let streaming = match options.config.contains("[streaming]") {
            true => "",
            false => "[streaming]\nlisten = \"127.0.0.1:10010\"\n",
        };
        format!(
            "[network]\ndefault = {}\nconf_dirs = [\"{}/net.d\"]\nplugin_dirs = []\n[metrics]\nlisten = \"\"\n\
             [[images.registries]]\nhost = \"*\"\nmirrors = [\"http://127.0.0.1:5000\"]\n{streaming}{}",
            !options.no_network,
            self.at(),
            options.config
        )
    }

    /// The end of the daemon's log, for a failure's message.
    pub fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.dir().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!("--- end of the daemon's log\n{}", lines[lines.len().saturating_sub(30)..].join("\n"))
    }

    /// Takes the present as what [`Node::assert_nothing_left`] compares with; done by `start` after the pull.
    pub fn remember(&self) {
        let mut command = self.enclosure.command(tool("leakcheck"));
        command.arg("snapshot");
        for root in ["data", "run", "root", "state", "ipam", "net.d"] {
            command.arg("--root").arg(self.dir().join(root));
        }
        // berth's cgroups carry the tag; a test's own parents carry the name of the node's directory.
        for text in [&self.tag(), self.name()] {
            command.args(["--cgroup", text]);
        }
        command.args(["--daemon", "berthd", "--daemon", "containerd"]);
        for allowed in self.allowed() {
            command.args(["--allow", &allowed]);
        }
        let told = said(&command.output().expect("run nsenter"), "leakcheck snapshot");
        *self.before.lock().expect("no holder panicked") =
            Some(serde_json::from_str(&told).expect("leakcheck writes JSON"));
    }

    /// What there is more than at [`Node::remember`].
    pub fn leaks(&self) -> Vec<String> {
        let before = self.dir().join("before.json");
        let snapshot = self.before.lock().expect("no holder panicked").clone();
        std::fs::write(&before, serde_json::to_vec(&snapshot).expect("a snapshot is JSON")).expect("write before.json");
        let mut diff = self.enclosure.command(tool("leakcheck"));
        let output = diff.arg("diff").arg(&before).output().expect("run nsenter");
        assert!(matches!(output.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    }

    /// Panics with the name of everything that is there and was not when the node was started.
    pub fn assert_nothing_left(&self) {
        let leaks = self.leaks();
        assert!(leaks.is_empty(), "left behind:\n  {}\n{}", leaks.join("\n  "), self.log_tail());
    }

    /// The node's own things, which stay while it has no pods: the bridge with its address and routes, the firewall's
    /// table without elements, the roots of its cgroups, the first level of its directories.
    fn allowed(&self) -> Vec<String> {
        let name = format!("berth-{}", self.tag());
        let mut allowed = vec![
            format!("link: {name}"),
            format!("address: {name} **"),
            format!("route: {name} **"),
            format!("nft: table inet {name}"),
            format!("nft: chain inet {name} **"),
            format!("nft: rule inet {name} **"),
            format!("nft: set inet {name} **"),
            format!("nft: map inet {name} **"),
            format!("cgroup: /sys/fs/cgroup/{name}"),
            format!("cgroup: /sys/fs/cgroup/*/{name}"),
            format!("directory: {}/data/*", self.at()),
            format!("directory: {}/run/*", self.at()),
        ];
        if !self.is_berth {
            // containerd's bridge and tables are made with its first pod, and its database grows.
            let more = ["socket: tcp **", "link: cni-peer", "address: cni-peer **", "route: cni-peer **", "nft: **"];
            allowed.extend(more.map(str::to_owned));
            allowed.push("descriptor: **".into());
            allowed.extend(["file", "directory"].map(|kind| format!("{kind}: {}/**", self.at())));
        }
        allowed
    }

    /// What is in every name that nodes on one host could collide on; see ARCHITECTURE.md, Directories.
    pub fn tag(&self) -> String {
        let data = format!("{}/data", self.at());
        let output = Command::new("sh").args(["-c", "printf %s \"$1\" | sha256sum", "sh", &data]).output();
        let digest = said(&output.expect("run sh"), "sha256sum");
        digest[..6].to_owned()
    }

    /// The last part of the node's directory, for names of a test's own objects outside namespaces.
    pub fn name(&self) -> &str {
        self.dir().file_name().and_then(|name| name.to_str()).expect("a name in UTF-8")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Namespaces take processes, mounts and links along; cgroups are the host's.
        self.enclosure.end();
        let (tag, name) = (self.tag(), self.name().to_owned());
        for _ in 0..50 {
            let find = format!(
                "find /sys/fs/cgroup -depth -type d '(' -path '*/berth-{tag}*' -o -path '*{name}*' ')' -print -exec rmdir '{{}}' ';'"
            );
            let output = Command::new("sh").args(["-c", &format!("{find} 2>/dev/null")]).output();
            if output.is_ok_and(|o| o.stdout.is_empty()) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The images of hack/images; made by hack/test before the tests, or by `hack/images` alone.
fn image_dir() -> PathBuf {
    let dir = target_dir().join("berth-images");
    assert!(dir.join("stamp").exists(), "no images in {}: run hack/images on it", dir.display());
    dir
}
