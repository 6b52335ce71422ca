//! `ps`: lists containers.

use berth_api::cri::{Container, ContainerState, ListContainersResponse};
use jiff::Timestamp;

use super::choose::{self, POD_NAME, POD_NAMESPACE, label_or_unknown};
use crate::error::Error;
use crate::human::ago;
use crate::node::Node;
use crate::output::{self, Format, pairs, short, show, sorted};
use crate::table::Table;
use crate::{json, verbs::image};

#[derive(clap::Args)]
pub(crate) struct Ps {
    #[command(flatten)]
    choice: choose::ContainerFilters,
    /// Only those whose id is this or begins with it
    #[arg(long)]
    id: Option<String>,
    /// Also those that do not run
    #[arg(short, long)]
    all: bool,
    /// Form of the output
    #[arg(short, long, default_value = "table")]
    output: Format,
    /// Only ids, in full
    #[arg(short, long)]
    quiet: bool,
    /// All about each, rather than a line
    #[arg(short, long)]
    verbose: bool,
    /// Ids and image names in full
    #[arg(long)]
    no_trunc: bool,
    /// Show a name of the image where only its id was given
    #[arg(short, long)]
    resolve_image_path: bool,
}

impl Ps {
    pub(crate) async fn run(self, node: &Node) -> Result<(), Error> {
        let mut containers = self.choice.list(node, self.id.clone(), self.all).await?;
        if self.resolve_image_path && self.output == Format::Table {
            for container in &mut containers {
                if let Some(image) = &mut container.image {
                    image.image = image::first_tag(node, &image.image).await?;
                }
            }
        }
        if self.output == Format::Table && self.quiet {
            return output::print(containers.iter().map(|container| container.id.clone() + "\n").collect::<String>());
        }
        let now = Timestamp::now();
        let table = || match self.verbose {
            true => containers.iter().map(|container| verbose(container, now)).collect(),
            false => self.table(&containers, now),
        };
        show(self.output, || json::document(&ListContainersResponse { containers: containers.clone() }), table)
    }

    fn table(&self, containers: &[Container], now: Timestamp) -> String {
        let columns = ["CONTAINER", "IMAGE", "CREATED", "STATE", "NAME", "ATTEMPT", "POD ID", "POD", "NAMESPACE"];
        let mut table = Table::new(columns);
        let id = |id: &str| {
            if self.no_trunc { id.to_owned() } else { short(id) }
        };
        for container in containers {
            let metadata = container.metadata.clone().unwrap_or_default();
            table.row([
                id(&container.id),
                self.image(container),
                ago(now, container.created_at),
                state_name(container.state()).into(),
                metadata.name,
                metadata.attempt.to_string(),
                id(&container.pod_sandbox_id),
                label_or_unknown(&container.labels, POD_NAME).into(),
                label_or_unknown(&container.labels, POD_NAMESPACE).into(),
            ]);
        }
        table.render()
    }

    /// As it was asked for; the kubelet asks by id, which is cut as other ids are.
    fn image(&self, container: &Container) -> String {
        let name = container.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
        if name.starts_with("sha256:") && !self.no_trunc { short(name) } else { name.to_owned() }
    }
}

pub(super) fn state_name(state: ContainerState) -> &'static str {
    match state {
        ContainerState::ContainerCreated => "Created",
        ContainerState::ContainerRunning => "Running",
        ContainerState::ContainerExited => "Exited",
        ContainerState::ContainerUnknown => "Unknown",
    }
}

fn verbose(container: &Container, now: Timestamp) -> String {
    let metadata = container.metadata.clone().unwrap_or_default();
    let image = container.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
    format!(
        "ID: {}\nPodID: {}\nNamespace: {}\nName: {}\nAttempt: {}\nState: {}\nImage: {image}\nCreated: {}\n{}{}\n",
        container.id,
        container.pod_sandbox_id,
        label_or_unknown(&container.labels, POD_NAMESPACE),
        metadata.name,
        metadata.attempt,
        state_name(container.state()),
        ago(now, container.created_at),
        pairs("Labels", &sorted(&container.labels)),
        pairs("Annotations", &sorted(&container.annotations)),
    )
}
