//! `version` and `info`: the runtime itself.

use berth_api::cri::{StatusRequest, StatusResponse, VersionRequest};
use serde_json::{Map, Value};

use crate::error::Error;
use crate::json;
use crate::node::Node;
use crate::output::{self, Format, show};

/// Version of the kubelet's runtime API that we speak.
const API: &str = "v1";

#[derive(clap::Args)]
pub(crate) struct Version {
    /// Form of the output
    #[arg(short, long, default_value = "table")]
    output: Format,
}

impl Version {
    pub(crate) async fn run(self, node: &Node) -> Result<(), Error> {
        let mut runtime = node.runtime().await?;
        let answer = node.quick("ask for the version", runtime.version(VersionRequest { version: API.into() })).await?;
        let table = || {
            format!(
                "Version:  {}\nRuntimeName:  {}\nRuntimeVersion:  {}\nRuntimeApiVersion:  {}\n",
                answer.version, answer.runtime_name, answer.runtime_version, answer.runtime_api_version
            )
        };
        show(self.output, || json::document(&answer), table)
    }
}

#[derive(clap::Args)]
pub(crate) struct Info {
    /// Form of the output
    #[arg(short, long, default_value = "json")]
    output: Format,
    /// Leave out what the runtime tells beyond the contract
    #[arg(short, long)]
    quiet: bool,
}

impl Info {
    pub(crate) async fn run(self, node: &Node) -> Result<(), Error> {
        let mut runtime = node.runtime().await?;
        let request = StatusRequest { verbose: !self.quiet };
        let answer = node.quick("ask for the status", runtime.status(request)).await?;
        show(self.output, || document(&answer), || table(&answer))
    }
}

fn document(answer: &StatusResponse) -> Value {
    let mut document = Map::new();
    document.insert("status".into(), json::value(&answer.status.clone().unwrap_or_default()));
    if !answer.runtime_handlers.is_empty() {
        // crictl prints these two with the contract's names, unlike all the rest.
        document.insert("runtimeHandlers".into(), answer.runtime_handlers.iter().map(json::plain_value).collect());
    }
    if let Some(features) = &answer.features {
        document.insert("features".into(), json::plain_value(features));
    }
    output::with_info(document, output::sorted(&answer.info))
}

fn table(answer: &StatusResponse) -> String {
    let mut table = crate::table::Table::new(["CONDITION", "STATUS", "REASON", "MESSAGE"]);
    for condition in answer.status.iter().flat_map(|status| &status.conditions) {
        table.row([
            condition.r#type.clone(),
            condition.status.to_string(),
            condition.reason.clone(),
            condition.message.clone(),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use berth_api::cri::{RuntimeCondition, RuntimeFeatures, RuntimeHandler, RuntimeStatus};
    use serde_json::json;

    use super::*;

    #[test]
    fn info_has_crictls_shape() {
        let condition = RuntimeCondition { r#type: "RuntimeReady".into(), status: true, ..Default::default() };
        let answer = StatusResponse {
            status: Some(RuntimeStatus { conditions: vec![condition] }),
            info: [("config".to_owned(), "{\"root\":\"/x\"}".to_owned())].into(),
            runtime_handlers: vec![RuntimeHandler { name: "berth".into(), features: None }],
            features: Some(RuntimeFeatures { supplemental_groups_policy: true, ..Default::default() }),
        };
        assert_eq!(
            document(&answer),
            json!({
                "status": {"conditions": [{"type": "RuntimeReady", "status": true, "reason": "", "message": ""}]},
                "config": {"root": "/x"},
                "runtimeHandlers": [{"name": "berth"}],
                "features": {"supplemental_groups_policy": true}
            })
        );
    }
}
