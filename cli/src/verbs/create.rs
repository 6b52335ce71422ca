//! `create`: a container in a pod, from files.

use std::path::PathBuf;
use std::time::Duration;

use berth_api::cri::{ContainerConfig, CreateContainerRequest, PodSandboxConfig};

use super::pull::{Credentials, Wanted, pull};
use crate::config;
use crate::error::Error;
use crate::human::parse_duration;
use crate::node::Node;
use crate::output::line;

#[derive(clap::Args)]
pub(crate) struct Create {
    /// Id of the pod, or an unambiguous prefix
    #[arg(value_name = "POD-ID")]
    pod: String,
    /// Container as in ContainerConfig, JSON or YAML
    #[arg(value_name = "CONTAINER-CONFIG")]
    container_file: PathBuf,
    /// The pod as in PodSandboxConfig: the file it was run from
    #[arg(value_name = "POD-CONFIG")]
    pod_file: PathBuf,
    /// Pull the images first
    #[arg(long, conflicts_with = "no_pull")]
    with_pull: bool,
    /// Do not pull, whatever pull-image-on-create in the configuration says
    #[arg(long)]
    no_pull: bool,
    /// User for the registry; the password is asked for
    #[arg(long, value_name = "USER", conflicts_with_all = ["creds", "auth"])]
    username: Option<String>,
    #[command(flatten)]
    credentials: Credentials,
    /// Give up after this time [default: never]
    #[arg(short = 'T', long, value_parser = parse_duration)]
    cancel_timeout: Option<Duration>,
}

impl Create {
    pub(crate) async fn run(mut self, node: &Node) -> Result<(), Error> {
        self.credentials.username = self.username.take();
        let config = config::container(&self.container_file)?;
        let pod = config::pod(&self.pod_file)?;
        if self.with_pull || (node.settings.pull_on_create && !self.no_pull) {
            for (image, annotations) in images(&config) {
                let wanted = Wanted { image, annotations, pod: Some(pod.clone()) };
                pull(node, wanted, &self.credentials).await?;
            }
        }
        line(create(node, &self.pod, config, pod, self.cancel_timeout).await?)
    }
}

/// The container's image and those it mounts.
fn images(config: &ContainerConfig) -> Vec<(String, std::collections::HashMap<String, String>)> {
    let mounted = config.mounts.iter().filter_map(|mount| mount.image.as_ref());
    config.image.iter().chain(mounted).map(|image| (image.image.clone(), image.annotations.clone())).collect()
}

/// Answers with the container's id.
pub(super) async fn create(
    node: &Node,
    pod_id: &str,
    config: ContainerConfig,
    pod: PodSandboxConfig,
    within: Option<Duration>,
) -> Result<String, Error> {
    let deed = format!("create container {}", config.metadata.clone().unwrap_or_default().name);
    let request =
        CreateContainerRequest { pod_sandbox_id: pod_id.into(), config: Some(config), sandbox_config: Some(pod) };
    let mut runtime = node.runtime().await?;
    Ok(node.answer(deed, within, runtime.create_container(request)).await?.container_id)
}
