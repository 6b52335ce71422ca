//! The CRI client of the tests: requests with sensible defaults, and pods and containers as values with verbs.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use berth_api::cri::security_profile::ProfileType;
use berth_api::cri::{
    ContainerConfig, ContainerMetadata, ContainerState, ContainerStatus, ContainerStatusRequest,
    CreateContainerRequest, ExecSyncRequest, ExecSyncResponse, ImageSpec, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, PodSandboxStatus, PodSandboxStatusRequest, RemoveContainerRequest,
    RemovePodSandboxRequest, RunPodSandboxRequest, SecurityProfile, StartContainerRequest, StopContainerRequest,
    StopPodSandboxRequest,
};
use tonic::Status;

use crate::Node;
use crate::wait::until;

/// The image that containers of [`container`] run; made by hack/images, pulled by [`Node::start`].
pub const IMAGE: &str = "registry.k8s.io/busybox:1.29";

/// What a kubelet asks for by default; a message without it would mean one process namespace for the whole pod.
fn own_processes() -> NamespaceOption {
    NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() }
}

/// A pod's configuration with a unique uid, its own hostname, and nothing else unusual.
pub fn pod(name: &str) -> PodSandboxConfig {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let uid = format!("{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata { name: name.into(), uid, namespace: "test".into(), attempt: 0 }),
        hostname: name.into(),
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(own_processes()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A container's configuration that runs `command` in [`IMAGE`] and logs to `NAME.log`.
pub fn container<S: Into<String>>(name: &str, command: impl IntoIterator<Item = S>) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(ImageSpec { image: IMAGE.into(), ..Default::default() }),
        command: command.into_iter().map(Into::into).collect(),
        log_path: format!("{name}.log"),
        linux: Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(own_processes()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The same for a shell script.
pub fn script(name: &str, script: &str) -> ContainerConfig {
    container(name, ["sh", "-c", script])
}

/// Not confined by AppArmor: what it may do is then for the rest of the kernel to say, on every machine alike.
pub fn unconfined(mut config: ContainerConfig) -> ContainerConfig {
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.apparmor = Some(SecurityProfile { profile_type: ProfileType::Unconfined.into(), ..Default::default() });
    config
}

/// A sandbox that runs on a node.
pub struct Pod<'a> {
    node: &'a Node,
    /// Full id.
    pub id: String,
    /// What it was made from, with the log directory filled in.
    pub config: PodSandboxConfig,
}

/// A container in a pod.
pub struct Container<'a> {
    node: &'a Node,
    /// Full id.
    pub id: String,
    log: PathBuf,
}

impl Node {
    /// Runs a pod; its log directory, unless it names one, is a new one under the node's directory.
    pub async fn try_run_pod(&self, config: PodSandboxConfig) -> Result<Pod<'_>, Status> {
        self.try_run_pod_by("", config).await
    }

    /// The same by a runtime handler.
    pub async fn try_run_pod_by(&self, handler: &str, mut config: PodSandboxConfig) -> Result<Pod<'_>, Status> {
        if config.log_directory.is_empty() {
            let uid = config.metadata.as_ref().map(|m| m.uid.clone()).unwrap_or_default();
            let dir = self.dir().join("logs").join(uid);
            std::fs::create_dir_all(&dir).expect("make a log directory");
            config.log_directory = dir.to_str().expect("a path in UTF-8").into();
        }
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.into() };
        let id = self.runtime().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        Ok(Pod { node: self, id, config })
    }

    /// The same, and it must succeed.
    pub async fn run_pod(&self, config: PodSandboxConfig) -> Pod<'_> {
        self.try_run_pod(config).await.unwrap_or_else(|e| panic!("RunPodSandbox: {e}\n{}", self.log_tail()))
    }
}

impl<'a> Pod<'a> {
    /// Where it runs.
    pub fn node(&self) -> &'a Node {
        self.node
    }

    /// Its state and addresses.
    pub async fn try_status(&self) -> Result<PodSandboxStatus, Status> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose: false };
        let answer = self.node.runtime().pod_sandbox_status(request).await?.into_inner();
        Ok(answer.status.expect("an answer has a status"))
    }

    /// The same, and it must succeed.
    pub async fn status(&self) -> PodSandboxStatus {
        self.try_status().await.expect("PodSandboxStatus")
    }

    /// Its first address.
    pub async fn ip(&self) -> String {
        let network = self.status().await.network.expect("a pod with a network has an address");
        assert!(!network.ip.is_empty(), "pod without an address");
        network.ip
    }

    /// Creates a container.
    pub async fn try_create(&self, config: ContainerConfig) -> Result<Container<'a>, Status> {
        let log = PathBuf::from(&self.config.log_directory).join(&config.log_path);
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let id = self.node.runtime().create_container(request).await?.into_inner().container_id;
        Ok(Container { node: self.node, id, log })
    }

    /// The same, and it must succeed.
    pub async fn create(&self, config: ContainerConfig) -> Container<'a> {
        self.try_create(config).await.unwrap_or_else(|e| panic!("CreateContainer: {e}\n{}", self.node.log_tail()))
    }

    /// Creates and starts a container.
    pub async fn run(&self, config: ContainerConfig) -> Container<'a> {
        let container = self.create(config).await;
        container.start().await.unwrap_or_else(|e| panic!("StartContainer: {e}\n{}", self.node.log_tail()));
        container
    }

    /// Stops it.
    pub async fn stop(&self) -> Result<(), Status> {
        let request = StopPodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.node.runtime().stop_pod_sandbox(request).await.map(drop)
    }

    /// Removes it, without stopping it before.
    pub async fn remove(&self) -> Result<(), Status> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.node.runtime().remove_pod_sandbox(request).await.map(drop)
    }

    /// Stops and removes it, as a kubelet does.
    pub async fn end(&self) {
        self.stop().await.unwrap_or_else(|e| panic!("StopPodSandbox: {e}\n{}", self.node.log_tail()));
        self.remove().await.unwrap_or_else(|e| panic!("RemovePodSandbox: {e}\n{}", self.node.log_tail()));
    }
}

/// A line of a container's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// RFC 3339 with nanoseconds, as written.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Whether the line goes on in the next record.
    pub partial: bool,
    /// What was written, without the end of the line.
    pub text: Vec<u8>,
}

impl<'a> Container<'a> {
    /// Where it runs.
    pub fn node(&self) -> &'a Node {
        self.node
    }

    /// Starts it.
    pub async fn start(&self) -> Result<(), Status> {
        let request = StartContainerRequest { container_id: self.id.clone() };
        self.node.runtime().start_container(request).await.map(drop)
    }

    /// Stops it within `grace` seconds.
    pub async fn stop(&self, grace: i64) -> Result<(), Status> {
        let request = StopContainerRequest { container_id: self.id.clone(), timeout: grace };
        self.node.runtime().stop_container(request).await.map(drop)
    }

    /// Removes it.
    pub async fn remove(&self) -> Result<(), Status> {
        let request = RemoveContainerRequest { container_id: self.id.clone() };
        self.node.runtime().remove_container(request).await.map(drop)
    }

    /// Its status.
    pub async fn try_status(&self) -> Result<ContainerStatus, Status> {
        let request = ContainerStatusRequest { container_id: self.id.clone(), verbose: false };
        let answer = self.node.runtime().container_status(request).await?.into_inner();
        Ok(answer.status.expect("an answer has a status"))
    }

    /// The same, and it must succeed.
    pub async fn status(&self) -> ContainerStatus {
        self.try_status().await.expect("ContainerStatus")
    }

    /// The JSON objects of the verbose status.
    pub async fn info(&self) -> HashMap<String, String> {
        let request = ContainerStatusRequest { container_id: self.id.clone(), verbose: true };
        self.node.runtime().container_status(request).await.expect("ContainerStatus").into_inner().info
    }

    /// Its status once it has ended; panics when it does not within 15 s.
    pub async fn ended(&self) -> ContainerStatus {
        until("container ends", 15, async || self.status().await.state() == ContainerState::ContainerExited).await;
        self.status().await
    }

    /// Runs a command in it with a deadline in seconds; zero is none.
    pub async fn try_exec<S: Into<String>>(
        &self,
        command: impl IntoIterator<Item = S>,
        deadline: i64,
    ) -> Result<ExecSyncResponse, Status> {
        let request = ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: command.into_iter().map(Into::into).collect(),
            timeout: deadline,
        };
        self.node.runtime().exec_sync(request).await.map(tonic::Response::into_inner)
    }

    /// Waits until something in its network namespace listens at each of these TCP ports: a server that was started does
    /// not listen yet.
    pub async fn listens(&self, ports: &[u16]) {
        crate::until("the servers listen", 30, async || {
            let listening = self.shell("netstat -ltn").await;
            ports.iter().all(|port| listening.contains(&format!(":{port} ")))
        })
        .await;
    }

    /// Output of a shell script in it, which must exit with 0.
    pub async fn shell(&self, script: &str) -> String {
        let answer = self.try_exec(["sh", "-c", script], 30).await;
        let answer = answer.unwrap_or_else(|e| panic!("ExecSync {script}: {e}"));
        let (out, err) = (String::from_utf8_lossy(&answer.stdout), String::from_utf8_lossy(&answer.stderr));
        assert_eq!(answer.exit_code, 0, "{script}\n{out}{err}");
        out.into_owned()
    }

    /// Where its log is.
    pub fn log_path(&self) -> &PathBuf {
        &self.log
    }

    /// Its log; panics at a line that is not in CRI's format.
    pub fn log(&self) -> Vec<LogLine> {
        parse_log(&std::fs::read(&self.log).unwrap_or_default())
    }

    /// What it wrote to one stream, lines joined.
    pub fn logged(&self, stream: &str) -> String {
        let lines = self.log().into_iter().filter(|l| l.stream == stream);
        let joined = lines.fold(Vec::new(), |mut all, l| {
            all.extend(&l.text);
            if !l.partial {
                all.push(b'\n');
            }
            all
        });
        String::from_utf8_lossy(&joined).into_owned()
    }

    /// What it wrote to standard output, once there is something.
    pub async fn said(&self) -> String {
        until("container logs something", 15, async || !self.log().is_empty()).await;
        // A line is written whole; give a second one of the same moment the chance to come too.
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.logged("stdout")
    }
}

/// Reads `TIME STREAM P|F TEXT` lines. A last line without its end is being written and is left out.
pub fn parse_log(bytes: &[u8]) -> Vec<LogLine> {
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let lines = bytes[..whole].split_inclusive(|b| *b == b'\n');
    lines
        .map(|line| {
            let line = &line[..line.len() - 1];
            let mut parts = line.splitn(4, |b| *b == b' ').map(|part| String::from_utf8_lossy(part).into_owned());
            let (time, stream, tag) = (parts.next(), parts.next(), parts.next());
            let text = line.splitn(4, |b| *b == b' ').nth(3);
            match (time, stream.as_deref(), tag.as_deref(), text) {
                (Some(time), Some(stream @ ("stdout" | "stderr")), Some(tag @ ("P" | "F")), Some(text)) => {
                    LogLine { time, stream: stream.into(), partial: tag == "P", text: text.to_vec() }
                }
                _ => panic!("not a line of a CRI log: {}", String::from_utf8_lossy(line)),
            }
        })
        .collect()
}
