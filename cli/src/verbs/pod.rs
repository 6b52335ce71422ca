//! `runp`, `pods`, `stopp` and `rmp`.

use std::path::PathBuf;
use std::time::Duration;

use berth_api::cri::{
    ListPodSandboxResponse, PodSandbox, PodSandboxConfig, PodSandboxState, PodSandboxStatus, PodSandboxStatusRequest,
    RemovePodSandboxRequest, RunPodSandboxRequest, StopPodSandboxRequest,
};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::choose;
use super::take::{each, named_or_all};
use crate::config;
use crate::error::Error;
use crate::human::{ago, local_time, parse_duration};
use crate::json;
use crate::node::Node;
use crate::output::{self, Format, line, pairs, short, show, sorted};
use crate::table::Table;

#[derive(clap::Args)]
pub(crate) struct Run {
    /// Pod as in PodSandboxConfig, JSON or YAML
    #[arg(value_name = "POD-CONFIG")]
    file: PathBuf,
    /// Handler to run it with [default: the runtime's default]
    #[arg(short, long, default_value = "", hide_default_value = true)]
    runtime: String,
    /// Give up after this time [default: never]
    #[arg(short = 'T', long, value_parser = parse_duration)]
    cancel_timeout: Option<Duration>,
}

impl Run {
    pub(crate) async fn run(self, node: &Node) -> Result<(), Error> {
        let config = config::pod(&self.file)?;
        line(run(node, config, self.runtime, self.cancel_timeout).await?)
    }
}

#[derive(clap::Args)]
pub(crate) struct List {
    #[command(flatten)]
    choice: choose::PodFilters,
    /// Only those whose id is this or begins with it
    #[arg(long)]
    id: Option<String>,
    /// Form of the output
    #[arg(short, long, default_value = "table")]
    output: Format,
    /// Only ids, in full
    #[arg(short, long)]
    quiet: bool,
    /// All about each, rather than a line
    #[arg(short, long)]
    verbose: bool,
    /// Ids in full
    #[arg(long)]
    no_trunc: bool,
}

impl List {
    pub(crate) async fn run(self, node: &Node) -> Result<(), Error> {
        let pods = self.choice.list(node, self.id.clone()).await?;
        if self.output == Format::Table && self.quiet {
            return output::print(pods.iter().map(|pod| pod.id.clone() + "\n").collect::<String>());
        }
        let table = || match self.verbose {
            true => pods.iter().map(verbose).collect(),
            false => self.table(&pods, Timestamp::now()),
        };
        show(self.output, || json::document(&ListPodSandboxResponse { items: pods.clone() }), table)
    }

    fn table(&self, pods: &[PodSandbox], now: Timestamp) -> String {
        let mut table = Table::new(["POD ID", "CREATED", "STATE", "NAME", "NAMESPACE", "ATTEMPT", "RUNTIME"]);
        for pod in pods {
            let metadata = pod.metadata.clone().unwrap_or_default();
            table.row([
                if self.no_trunc { pod.id.clone() } else { short(&pod.id) },
                ago(now, pod.created_at),
                state_name(pod.state()).into(),
                metadata.name,
                metadata.namespace,
                metadata.attempt.to_string(),
                handler(pod).into(),
            ]);
        }
        table.render()
    }
}

fn verbose(pod: &PodSandbox) -> String {
    let metadata = pod.metadata.clone().unwrap_or_default();
    format!(
        "ID: {}\nName: {}\nUID: {}\nNamespace: {}\nAttempt: {}\nStatus: {}\nCreated: {}\n{}{}Runtime: {}\n\n",
        pod.id,
        metadata.name,
        metadata.uid,
        metadata.namespace,
        metadata.attempt,
        state_name(pod.state()),
        local_time(pod.created_at, &TimeZone::system()),
        pairs("Labels", &sorted(&pod.labels)),
        pairs("Annotations", &sorted(&pod.annotations)),
        handler(pod),
    )
}

fn state_name(state: PodSandboxState) -> &'static str {
    match state {
        PodSandboxState::SandboxReady => "Ready",
        PodSandboxState::SandboxNotready => "NotReady",
    }
}

fn handler(pod: &PodSandbox) -> &str {
    if pod.runtime_handler.is_empty() { "(default)" } else { &pod.runtime_handler }
}

#[derive(clap::Args)]
pub(crate) struct Stop {
    /// Ids or unambiguous prefixes
    #[arg(required = true, value_name = "POD-ID")]
    ids: Vec<String>,
}

impl Stop {
    pub(crate) async fn run(self, node: &Node) -> Result<(), Error> {
        each(&self.ids, async |id| {
            stop(node, id).await?;
            line(format!("Stopped sandbox {id}"))
        })
        .await
    }
}

#[derive(clap::Args)]
pub(crate) struct Remove {
    /// Ids or unambiguous prefixes
    #[arg(value_name = "POD-ID")]
    ids: Vec<String>,
    /// All there are
    #[arg(short, long)]
    all: bool,
    /// Stop those that are ready
    #[arg(short, long)]
    force: bool,
}

impl Remove {
    pub(crate) async fn run(self, node: &Node) -> Result<(), Error> {
        let all = async || {
            let pods = choose::PodFilters::default().list(node, None).await?;
            Ok(pods.into_iter().map(|pod| pod.id).collect())
        };
        let ids = named_or_all(self.ids, self.all, all).await?;
        each(&ids, async |id| {
            let pod = status(node, id).await?;
            if pod.state() == PodSandboxState::SandboxReady {
                if !self.force {
                    return Err(Error::Refused(format!("remove pod {id}: it is running: stop it first, or --force")));
                }
                stop(node, &pod.id).await?;
                line(format!("Stopped sandbox {id}"))?;
            }
            remove(node, &pod.id).await?;
            line(format!("Removed sandbox {id}"))
        })
        .await
    }
}

/// Answers with the pod's id.
pub(super) async fn run(
    node: &Node,
    config: PodSandboxConfig,
    runtime_handler: String,
    within: Option<Duration>,
) -> Result<String, Error> {
    let metadata = config.metadata.clone().unwrap_or_default();
    let deed = format!("run pod {}/{}", metadata.namespace, metadata.name);
    let request = RunPodSandboxRequest { config: Some(config), runtime_handler };
    let mut runtime = node.runtime().await?;
    Ok(node.answer(deed, within, runtime.run_pod_sandbox(request)).await?.pod_sandbox_id)
}

pub(super) async fn stop(node: &Node, id: &str) -> Result<(), Error> {
    let mut runtime = node.runtime().await?;
    let request = StopPodSandboxRequest { pod_sandbox_id: id.into() };
    node.answer(format!("stop pod {}", short(id)), None, runtime.stop_pod_sandbox(request)).await.map(drop)
}

pub(super) async fn remove(node: &Node, id: &str) -> Result<(), Error> {
    let mut runtime = node.runtime().await?;
    let request = RemovePodSandboxRequest { pod_sandbox_id: id.into() };
    node.answer(format!("remove pod {}", short(id)), None, runtime.remove_pod_sandbox(request)).await.map(drop)
}

pub(super) async fn status(node: &Node, id: &str) -> Result<PodSandboxStatus, Error> {
    let mut runtime = node.runtime().await?;
    let request = PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
    let deed = format!("look at pod {}", short(id));
    let answer = node.quick(&deed, runtime.pod_sandbox_status(request)).await?;
    answer.status.ok_or_else(|| Error::Refused(format!("{deed}: the answer has no status")))
}
