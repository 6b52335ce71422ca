//! `inspect` and `inspectp`: all about containers and pods. Times are written for people, as crictl does.

use berth_api::cri::{
    ContainerState, ContainerStatus, ContainerStatusRequest, PodSandboxStatus, PodSandboxStatusRequest,
};
use jiff::tz::TimeZone;
use serde_json::{Map, Value};

use super::{choose, ps};
use crate::error::Error;
use crate::human::local_time;
use crate::json::{self, Named};
use crate::node::Node;
use crate::output::{self, Format, one_or_list, pairs, short, show, sorted};

/// What stands for "not yet" where a time should be: Go's zero time.
const NEVER: &str = "0001-01-01T00:00:00Z";

#[derive(clap::Args)]
pub(crate) struct Containers {
    /// Ids or unambiguous prefixes; none: those that the flags choose
    #[arg(value_name = "CONTAINER-ID")]
    ids: Vec<String>,
    #[command(flatten)]
    choice: choose::ContainerFilters,
    /// Also those that do not run
    #[arg(short, long)]
    all: bool,
    /// Form of the output
    #[arg(short, long, default_value = "json")]
    output: Format,
    /// Leave out what the runtime tells beyond the contract
    #[arg(short, long)]
    quiet: bool,
}

impl Containers {
    pub(crate) async fn run(mut self, node: &Node) -> Result<(), Error> {
        if self.ids.is_empty() {
            let chosen = self.choice.list(node, None, self.all).await?;
            self.ids = chosen.into_iter().map(|container| container.id).collect();
        }
        let mut documents = Vec::new();
        let mut text = String::new();
        let mut runtime = node.runtime().await?;
        for id in some(&self.ids)? {
            let request = ContainerStatusRequest { container_id: id.clone(), verbose: !self.quiet };
            let deed = format!("look at container {}", short(id));
            let answer = node.quick(deed, runtime.container_status(request)).await?;
            let (status, info) = (answer.status.unwrap_or_default(), sorted(&answer.info));
            text += &(container_text(&status) + &pairs("Info", &info));
            documents.push(output::with_info(titled(container_document(&status, &TimeZone::system())), info));
        }
        show(self.output, || one_or_list(documents), || text)
    }
}

#[derive(clap::Args)]
pub(crate) struct Pods {
    /// Ids or unambiguous prefixes; none: those that the flags choose
    #[arg(value_name = "POD-ID")]
    ids: Vec<String>,
    #[command(flatten)]
    choice: choose::PodFilters,
    /// Form of the output
    #[arg(short, long, default_value = "json")]
    output: Format,
    /// Leave out what the runtime tells beyond the contract
    #[arg(short, long)]
    quiet: bool,
}

impl Pods {
    pub(crate) async fn run(mut self, node: &Node) -> Result<(), Error> {
        if self.ids.is_empty() {
            let chosen = self.choice.list(node, None).await?;
            self.ids = chosen.into_iter().map(|pod| pod.id).collect();
        }
        let mut documents = Vec::new();
        let mut text = String::new();
        let mut runtime = node.runtime().await?;
        for id in some(&self.ids)? {
            let request = PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: !self.quiet };
            let deed = format!("look at pod {}", short(id));
            let answer = node.quick(deed, runtime.pod_sandbox_status(request)).await?;
            let (status, info) = (answer.status.unwrap_or_default(), sorted(&answer.info));
            text += &(pod_text(&status) + &pairs("Info", &info));
            documents.push(output::with_info(titled(pod_document(&status, &TimeZone::system())), info));
        }
        show(self.output, || one_or_list(documents), || text)
    }
}

/// # Errors
/// `Refused` when there is nothing to show.
pub(super) fn some(ids: &[String]) -> Result<&[String], Error> {
    match ids.is_empty() {
        true => Err(Error::Refused("nothing to show: no id was given, and nothing matches the flags".into())),
        false => Ok(ids),
    }
}

/// The document with the object under "status", where `info`'s topics join it.
pub(super) fn titled(status: Value) -> Map<String, Value> {
    Map::from_iter([("status".to_owned(), status)])
}

fn container_document(status: &ContainerStatus, zone: &TimeZone) -> Value {
    let mut document = with_nulls::<ContainerStatus>(json::value(status));
    let was_started = status.state() != ContainerState::ContainerCreated;
    let has_ended = match status.state() {
        ContainerState::ContainerExited => true,
        ContainerState::ContainerUnknown => status.finished_at > 0,
        _ => false,
    };
    let time = |known: bool, time| {
        if known { local_time(time, zone) } else { NEVER.to_owned() }
    };
    document.insert("createdAt".into(), time(true, status.created_at).into());
    document.insert("startedAt".into(), time(was_started, status.started_at).into());
    document.insert("finishedAt".into(), time(has_ended, status.finished_at).into());
    Value::Object(document)
}

fn pod_document(status: &PodSandboxStatus, zone: &TimeZone) -> Value {
    let mut document = with_nulls::<PodSandboxStatus>(json::value(status));
    document.insert("createdAt".into(), local_time(status.created_at, zone).into());
    Value::Object(document)
}

/// In these documents crictl writes unset messages as null.
fn with_nulls<M: Named>(value: Value) -> Map<String, Value> {
    let Value::Object(mut document) = value else {
        return Map::new();
    };
    for name in json::field_names::<M>() {
        document.entry(name).or_insert(Value::Null);
    }
    document
}

fn container_text(status: &ContainerStatus) -> String {
    let metadata = status.metadata.clone().unwrap_or_default();
    let mut text = format!("ID: {}\nName: {}\nAttempt: {}\n", status.id, metadata.name, metadata.attempt);
    text += &format!("State: {}\n", ps::state_name(status.state()));
    let zone = TimeZone::system();
    text += &format!("Created: {}\n", local_time(status.created_at, &zone));
    if status.started_at > 0 {
        text += &format!("Started: {}\n", local_time(status.started_at, &zone));
    }
    if status.finished_at > 0 {
        text += &format!("Finished: {}\nExit Code: {}\n", local_time(status.finished_at, &zone), status.exit_code);
    }
    for (title, value) in [("Reason", &status.reason), ("Message", &status.message), ("Log", &status.log_path)] {
        if !value.is_empty() {
            text += &format!("{title}: {value}\n");
        }
    }
    text + &pairs("Labels", &sorted(&status.labels)) + &pairs("Annotations", &sorted(&status.annotations))
}

fn pod_text(status: &PodSandboxStatus) -> String {
    let metadata = status.metadata.clone().unwrap_or_default();
    let mut text = format!(
        "ID: {}\nName: {}\nUID: {}\nNamespace: {}\nAttempt: {}\nStatus: {}\nCreated: {}\n",
        status.id,
        metadata.name,
        metadata.uid,
        metadata.namespace,
        metadata.attempt,
        status.state().as_str_name(),
        local_time(status.created_at, &TimeZone::system()),
    );
    if let Some(network) = &status.network {
        text += &format!("IP Addresses: {}\n", network.ip);
        for additional in &network.additional_ips {
            text += &format!("Additional IP: {}\n", additional.ip);
        }
    }
    text + &pairs("Labels", &sorted(&status.labels)) + &pairs("Annotations", &sorted(&status.annotations))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_are_readable_and_what_is_not_yet_is_the_year_one() {
        let created = ContainerStatus { created_at: 1_500_000_000, ..Default::default() };
        let document = container_document(&created, &TimeZone::UTC);
        assert_eq!(document["createdAt"], "1970-01-01T00:00:01.5Z");
        assert_eq!((&document["startedAt"], &document["finishedAt"]), (&json!(NEVER), &json!(NEVER)));
        let exited = ContainerStatus {
            state: ContainerState::ContainerExited.into(),
            started_at: 2_000_000_000,
            finished_at: 3_000_000_000,
            ..Default::default()
        };
        let document = container_document(&exited, &TimeZone::UTC);
        assert_eq!(document["startedAt"], "1970-01-01T00:00:02Z");
        assert_eq!(document["finishedAt"], "1970-01-01T00:00:03Z");
        assert_eq!(document["state"], "CONTAINER_EXITED");
    }

    #[test]
    fn unset_messages_are_null() {
        let document = container_document(&ContainerStatus::default(), &TimeZone::UTC);
        assert_eq!(
            (&document["user"], &document["resources"], &document["mounts"]),
            (&json!(null), &json!(null), &json!([]))
        );
        let document = pod_document(&PodSandboxStatus::default(), &TimeZone::UTC);
        assert_eq!((&document["network"], &document["runtimeHandler"]), (&json!(null), &json!("")));
    }
}
