//! `metricsp` and `metricdescs`: the metrics that a kubelet shows under `/metrics/cadvisor`, as documents.

use std::time::Duration;

use berth_api::cri::{ListMetricDescriptorsRequest, ListPodSandboxMetricsRequest};

use crate::error::Error;
use crate::json;
use crate::node::Node;
use crate::output;

/// Time between two looks of `--watch`. Source: crictl.
const PAUSE: Duration = Duration::from_millis(500);

/// Metrics have no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    Json,
    Yaml,
}

impl From<Format> for output::Format {
    fn from(format: Format) -> Self {
        match format {
            Format::Json => Self::Json,
            Format::Yaml => Self::Yaml,
        }
    }
}

#[derive(clap::Args)]
pub(crate) struct Pods {
    /// Form of the output
    #[arg(short, long, default_value = "json")]
    output: Format,
    /// Look again and again
    #[arg(short, long)]
    watch: bool,
}

impl Pods {
    pub(crate) async fn run(self, node: &Node) -> Result<(), Error> {
        let mut runtime = node.runtime().await?;
        loop {
            let request = ListPodSandboxMetricsRequest {};
            let answer = node.quick("read the pods' metrics", runtime.list_pod_sandbox_metrics(request)).await?;
            output::show(self.output.into(), || json::document(&answer), String::new)?;
            if !self.watch {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

#[derive(clap::Args)]
pub(crate) struct Descriptors {
    /// Form of the output
    #[arg(short, long, default_value = "json")]
    output: Format,
}

impl Descriptors {
    pub(crate) async fn run(self, node: &Node) -> Result<(), Error> {
        let mut runtime = node.runtime().await?;
        let request = ListMetricDescriptorsRequest {};
        let answer = node.quick("ask which metrics there are", runtime.list_metric_descriptors(request)).await?;
        output::show(self.output.into(), || json::document(&answer), String::new)
    }
}
