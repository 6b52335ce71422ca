//! `debug inflight`: what the daemon is doing, and where each operation stands.

use std::time::Duration;

use berth_api::debug::{ListInflightRequest, Operation};
use serde_json::json;

use crate::error::Error;
use crate::node::Node;
use crate::output::{Format, short, show};
use crate::table::Table;

#[derive(clap::Subcommand)]
pub(crate) enum Debug {
    /// List operations in progress, the oldest first, each with its stage
    Inflight(Inflight),
}

#[derive(clap::Args)]
pub(crate) struct Inflight {
    /// Form of the output
    #[arg(short, long, default_value = "table")]
    output: Format,
}

impl Debug {
    pub(crate) async fn run(self, node: &Node) -> Result<(), Error> {
        let Self::Inflight(verb) = self;
        let mut debug = node.debug_service().await?;
        let answer = node.quick("ask what is in progress", debug.list_inflight(ListInflightRequest {})).await?;
        let operations = answer.operations;
        show(verb.output, || operations.iter().map(document).collect::<Vec<_>>(), || table(&operations))
    }
}

fn document(o: &Operation) -> serde_json::Value {
    json!({
        "request": o.request, "method": o.method, "podSandboxId": o.pod_sandbox_id, "containerId": o.container_id,
        "ageSeconds": seconds(o.age_ns), "stage": o.stage, "stageAgeSeconds": seconds(o.stage_age_ns),
    })
}

fn table(operations: &[Operation]) -> String {
    let mut table = Table::new(["REQUEST", "METHOD", "AGE", "POD", "CONTAINER", "STAGE"]);
    let age = |ns: i64| format!("{:.1} s", seconds(ns));
    for o in operations {
        let request = if o.request == 0 { "-".to_owned() } else { o.request.to_string() };
        let stage = match (o.stage.as_str(), o.stage_age_ns) {
            ("", _) => "-".to_owned(),
            (stage, 0) => stage.to_owned(),
            (stage, ns) => format!("{stage} ({})", age(ns)),
        };
        let id = |id: &str| if id.is_empty() { "-".to_owned() } else { short(id).to_owned() };
        table.row([request, o.method.clone(), age(o.age_ns), id(&o.pod_sandbox_id), id(&o.container_id), stage]);
    }
    table.render()
}

fn seconds(ns: i64) -> f64 {
    Duration::from_nanos(u64::try_from(ns).unwrap_or(0)).as_secs_f64()
}
