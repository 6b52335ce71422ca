//! `run`: one container in a pod of its own, in one step. In the foreground its log is followed and its exit code is
//! ours; what was made is taken back when it cannot be run.

mod flags;
mod request;

use std::path::{Path, PathBuf};

use berth_api::cri::{ContainerConfig, ContainerState, ContainerStatus, Mount, PodSandboxConfig, PortMapping};

use super::choose::label;
use super::logs::WhileRunning;
use super::pull::{Credentials, Wanted, pull};
use super::{container, create, image, pod};
use crate::error::Error;
use crate::human::parse_bytes;
use crate::log::{Options, Printer, read};
use crate::node::Node;
use crate::output::{line, short};

/// Seconds a container gets to end after Ctrl-C.
const GRACE: i64 = 10;

#[derive(clap::Args)]
pub(crate) struct Run {
    /// Print the container's id and leave it running
    #[arg(short, long)]
    detach: bool,
    /// Remove pod, container and log when the container has ended
    #[arg(long, conflicts_with = "detach")]
    rm: bool,
    /// Name of the pod and its container [default: from the image]
    #[arg(long)]
    name: Option<String>,
    /// Namespace of the pod
    #[arg(long, default_value = "default")]
    namespace: String,
    /// Environment variable; without a value: ours
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// Path of the host to mount; ":ro" for read-only
    #[arg(short = 'v', long, value_name = "HOST-PATH:PATH[:ro]", value_parser = flags::mount)]
    mount: Vec<Mount>,
    /// Publish a port of the pod on the host
    #[arg(short, long, value_name = "[IP:]HOST-PORT:PORT[/udp|/sctp]", value_parser = flags::port)]
    publish: Vec<PortMapping>,
    /// Label of the pod and its container
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// Use the host's network
    #[arg(long)]
    host_network: bool,
    /// User to run as [default: the image's]
    #[arg(short, long, value_name = "UID[:GID]|NAME")]
    user: Option<String>,
    /// Directory to start in [default: the image's]
    #[arg(short, long, default_value = "", hide_default_value = true)]
    workdir: String,
    /// Program instead of the image's entry point
    #[arg(long)]
    entrypoint: Option<String>,
    /// Most memory, such as 64m
    #[arg(short, long, value_parser = parse_bytes)]
    memory: Option<i64>,
    /// Most processors, such as 0.5
    #[arg(long, default_value_t = 0.0, hide_default_value = true)]
    cpus: f64,
    /// Capability to add, such as NET_ADMIN
    #[arg(long, value_name = "NAME")]
    cap_add: Vec<String>,
    /// Give the container everything the host has
    #[arg(long)]
    privileged: bool,
    /// Make the root file system read-only
    #[arg(long)]
    read_only: bool,
    /// Handler to run it with [default: the runtime's default]
    #[arg(long, default_value = "", hide_default_value = true)]
    runtime: String,
    /// When to pull the image
    #[arg(long, default_value = "missing")]
    pull: PullWhen,
    /// User for the registry; the password is asked for
    #[arg(long, value_name = "USER", conflicts_with_all = ["creds", "auth"])]
    username: Option<String>,
    #[command(flatten)]
    credentials: Credentials,
    /// Directory for the log, in which each pod gets one of its own
    #[arg(long, default_value = "/var/log/berth", value_name = "DIR")]
    log_directory: PathBuf,
    /// Image to run
    image: String,
    /// Program and arguments [default: the image's]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum PullWhen {
    Missing,
    Always,
    Never,
}

impl Run {
    pub(crate) async fn run(mut self, node: &Node) -> Result<(), Error> {
        self.credentials.username = self.username.take();
        let pod_config = self.pod();
        let config = self.container(&pod_config)?;
        self.provide_image(node, &pod_config).await?;
        let pod_id = pod::run(node, pod_config.clone(), self.runtime.clone(), None).await?;
        let id = match self.begin(node, &pod_id, config, &pod_config).await {
            Ok(id) => id,
            Err(error) => return Err(take_back(node, &pod_id, &pod_config, error).await),
        };
        match self.detach {
            true => line(id),
            false => self.attend(node, &pod_id, &id, &pod_config).await,
        }
    }

    async fn provide_image(&self, node: &Node, pod: &PodSandboxConfig) -> Result<(), Error> {
        let here = image::status(node, &self.image, false).await?.image.is_some();
        match self.pull {
            PullWhen::Never if !here => Err(Error::Refused(format!("image {} is not on the node", self.image))),
            PullWhen::Always | PullWhen::Missing if !here || self.pull == PullWhen::Always => {
                node.debug(|| format!("pull {} for {}", self.image, pod.hostname));
                let wanted = Wanted { image: self.image.clone(), annotations: Default::default(), pod: None };
                pull(node, wanted, &self.credentials).await.map(drop)
            }
            _ => Ok(()),
        }
    }

    async fn begin(
        &self,
        node: &Node,
        pod_id: &str,
        config: ContainerConfig,
        pod: &PodSandboxConfig,
    ) -> Result<String, Error> {
        let id = create::create(node, pod_id, config, pod.clone(), None).await?;
        container::start(node, &id).await?;
        Ok(id)
    }

    /// Follows the container to its end, then lets go of what it held.
    async fn attend(&self, node: &Node, pod_id: &str, id: &str, pod: &PodSandboxConfig) -> Result<(), Error> {
        eprintln!("berth: pod {} container {}", short(pod_id), short(id));
        let status = container::status(node, id).await?;
        let log = PathBuf::from(&status.log_path);
        let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
        let mut printer = Printer::new(Options::default(), &mut out, &mut err);
        let mut running = WhileRunning::new(node, id);
        let mut following = std::pin::pin!(read(&log, None, &mut printer, &mut running));
        let followed = tokio::select! {
            end = &mut following => end,
            // What it writes while it ends is still shown. A second signal ends us at once.
            () = told_to_stop() => {
                let stopped = container::stop(node, id, GRACE);
                let (end, stopped) = tokio::join!(following, stopped);
                end.and(stopped)
            }
        };
        let ended = container::status(node, id).await;
        let let_go = match self.rm {
            true => clear(node, pod_id, pod).await,
            false => pod::stop(node, pod_id).await,
        };
        followed?;
        let ended = ended?;
        let_go?;
        exit(&ended)
    }
}

/// Ctrl-C or SIGTERM.
async fn told_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        // Without handlers a signal ends us, as it does any program.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    eprintln!("berth: stopping the container; it has {GRACE}s");
}

/// Undoes a pod whose container could not be run. The reason why comes first, a failure of the undoing after it.
async fn take_back(node: &Node, pod_id: &str, pod: &PodSandboxConfig, reason: Error) -> Error {
    match clear(node, pod_id, pod).await {
        Ok(()) => reason,
        Err(error) => Error::Several(vec![reason, error]),
    }
}

/// Stops and removes the pod, and the log directory that was made for it.
async fn clear(node: &Node, pod_id: &str, pod: &PodSandboxConfig) -> Result<(), Error> {
    pod::stop(node, pod_id).await?;
    pod::remove(node, pod_id).await?;
    let log = Path::new(&pod.log_directory);
    container::remove_logs(&log.join("0.log"))?;
    match std::fs::remove_dir(log) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::Remove { path: log.into(), source }),
        _ => Ok(()),
    }
}

/// The container's exit code as ours; a reason that the program cannot have told is told here.
fn exit(ended: &ContainerStatus) -> Result<(), Error> {
    if ended.state() != ContainerState::ContainerExited {
        return Err(Error::Refused(format!("container {} has not ended: {:?}", short(&ended.id), ended.state())));
    }
    if !matches!(ended.reason.as_str(), "" | "Completed" | "Error") {
        eprintln!("berth: {} {}", ended.reason, ended.message);
    }
    match ended.exit_code {
        0 => Ok(()),
        code => Err(Error::Exit(code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_is_handed_on() {
        let ended = |exit_code| ContainerStatus {
            state: ContainerState::ContainerExited.into(),
            exit_code,
            reason: "Error".into(),
            ..Default::default()
        };
        assert!(exit(&ended(0)).is_ok());
        assert!(matches!(exit(&ended(7)), Err(Error::Exit(7))));
        assert!(matches!(exit(&ContainerStatus::default()), Err(Error::Refused(_))));
    }
}
