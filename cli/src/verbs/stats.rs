//! `stats` and `statsp`: what containers and pods use. A share of the processors is counted between two looks, `--seconds`
//! apart, as crictl counts it.

use std::collections::HashMap;
use std::time::Duration;

use berth_api::cri::{
    ContainerFilter, ContainerStats, ContainerStatsFilter, ContainerStatsRequest, CpuUsage, ListContainerStatsRequest,
    ListContainerStatsResponse, ListContainersRequest, ListPodSandboxStatsRequest, ListPodSandboxStatsResponse,
    MemoryUsage, PodSandboxStats, PodSandboxStatsFilter, UInt64Value,
};

use super::choose::label;
use crate::error::Error;
use crate::human::fine_size;
use crate::json;
use crate::node::Node;
use crate::output::{self, Format, short};
use crate::table::Table;

/// Clears a terminal and goes to its first line.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// What both verbs have in common.
#[derive(clap::Args)]
pub(crate) struct Common {
    /// Only the one with this id or prefix
    #[arg(value_name = "ID", conflicts_with = "id")]
    named: Option<String>,
    /// The same, by a flag
    #[arg(long)]
    id: Option<String>,
    /// Only those with this label
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// Form of the output
    #[arg(short, long, default_value = "table")]
    output: Format,
    /// How long the use of processors is watched, in seconds
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Look again and again
    #[arg(short, long)]
    watch: bool,
}

#[derive(clap::Args)]
pub(crate) struct Containers {
    #[command(flatten)]
    common: Common,
    /// Also those that do not run
    #[arg(short, long)]
    all: bool,
    /// Only those of the pod with this id or prefix
    #[arg(short, long)]
    pod: Option<String>,
}

#[derive(clap::Args)]
pub(crate) struct Pods {
    #[command(flatten)]
    common: Common,
}

impl Common {
    fn id(&self) -> String {
        self.named.clone().or_else(|| self.id.clone()).unwrap_or_default()
    }

    fn labels(&self) -> HashMap<String, String> {
        self.label.iter().cloned().collect()
    }

    /// Prints one look, or one after the other: `document` of a single one, `table` of two.
    async fn show<T>(
        &self,
        look: impl AsyncFn() -> Result<Vec<T>, Error>,
        document: impl Fn(Vec<T>) -> json::Document,
        table: impl Fn(&[T], &[T]) -> String,
    ) -> Result<(), Error> {
        let pause = || tokio::time::sleep(Duration::from_secs(self.seconds));
        let mut before = look().await?;
        if self.output != Format::Table {
            loop {
                output::show(self.output, || document(before), String::new)?;
                if !self.watch {
                    return Ok(());
                }
                pause().await;
                before = look().await?;
            }
        }
        loop {
            pause().await;
            let after = look().await?;
            let clear = if self.watch { CLEAR } else { "" };
            output::print(format!("{clear}{}", table(&before, &after)))?;
            if !self.watch {
                return Ok(());
            }
            before = after;
        }
    }
}

impl Containers {
    pub(crate) async fn run(self, node: &Node) -> Result<(), Error> {
        let look = async || {
            let filter = ContainerStatsFilter {
                id: self.common.id(),
                pod_sandbox_id: self.pod.clone().unwrap_or_default(),
                label_selector: self.common.labels(),
            };
            let mut runtime = node.runtime().await?;
            let request = ListContainerStatsRequest { filter: Some(filter) };
            let mut stats = node.quick("measure containers", runtime.list_container_stats(request)).await?.stats;
            if self.all {
                stats.extend(self.idle(node, &stats).await?);
            }
            stats.sort_by_key(container_id);
            Ok(stats)
        };
        let document = |stats| json::document(&ListContainerStatsResponse { stats });
        self.common.show(look, document, |before, after| self.table(before, after)).await
    }

    /// What those that do not run have on the disk: a runtime lists the running ones.
    async fn idle(&self, node: &Node, listed: &[ContainerStats]) -> Result<Vec<ContainerStats>, Error> {
        let filter = ContainerFilter {
            id: self.common.id(),
            pod_sandbox_id: self.pod.clone().unwrap_or_default(),
            label_selector: self.common.labels(),
            state: None,
        };
        let mut runtime = node.runtime().await?;
        let request = ListContainersRequest { filter: Some(filter) };
        let all = node.quick("list containers", runtime.list_containers(request)).await?.containers;
        let mut idle = Vec::new();
        for container in all.into_iter().filter(|c| !listed.iter().any(|known| container_id(known) == c.id)) {
            let request = ContainerStatsRequest { container_id: container.id };
            match runtime.container_stats(request).await {
                Ok(answer) => idle.extend(answer.into_inner().stats),
                // It was removed meanwhile, or this runtime has nothing to tell of one that does not run.
                Err(error) => node.debug(|| format!("measure a container that does not run: {error}")),
            }
        }
        Ok(idle)
    }

    fn table(&self, before: &[ContainerStats], after: &[ContainerStats]) -> String {
        let mut table = Table::new(["CONTAINER", "NAME", "CPU %", "MEM", "DISK", "INODES", "SWAP"]);
        for now in after {
            let Some(was) = before.iter().find(|was| container_id(was) == container_id(now)) else { continue };
            if !self.all && is_idle(now.cpu.as_ref(), now.memory.as_ref()) {
                continue;
            }
            let layer = now.writable_layer.clone().unwrap_or_default();
            table.row([
                short(&container_id(now)),
                now.attributes.clone().and_then(|a| a.metadata).unwrap_or_default().name,
                share(was.cpu.as_ref(), now.cpu.as_ref()),
                working_set(now.memory.as_ref()),
                fine_size(number(layer.used_bytes)),
                number(layer.inodes_used).to_string(),
                fine_size(number(now.swap.and_then(|swap| swap.swap_usage_bytes))),
            ]);
        }
        table.render()
    }
}

impl Pods {
    pub(crate) async fn run(self, node: &Node) -> Result<(), Error> {
        let look = async || {
            let filter = PodSandboxStatsFilter { id: self.common.id(), label_selector: self.common.labels() };
            let mut runtime = node.runtime().await?;
            let request = ListPodSandboxStatsRequest { filter: Some(filter) };
            let mut stats = node.quick("measure pods", runtime.list_pod_sandbox_stats(request)).await?.stats;
            stats.sort_by_key(pod_id);
            Ok(stats)
        };
        let document = |stats| json::document(&ListPodSandboxStatsResponse { stats });
        self.common.show(look, document, pods).await
    }
}

fn pods(before: &[PodSandboxStats], after: &[PodSandboxStats]) -> String {
    let mut table = Table::new(["POD", "POD ID", "CPU %", "MEM"]);
    for now in after {
        let Some(was) = before.iter().find(|was| pod_id(was) == pod_id(now)) else { continue };
        let (was, linux) = (was.linux.clone().unwrap_or_default(), now.linux.clone().unwrap_or_default());
        if is_idle(linux.cpu.as_ref(), linux.memory.as_ref()) {
            continue;
        }
        table.row([
            now.attributes.clone().and_then(|a| a.metadata).unwrap_or_default().name,
            short(&pod_id(now)),
            share(was.cpu.as_ref(), linux.cpu.as_ref()),
            working_set(linux.memory.as_ref()),
        ]);
    }
    table.render()
}

fn container_id(stats: &ContainerStats) -> String {
    stats.attributes.as_ref().map(|a| a.id.clone()).unwrap_or_default()
}

fn pod_id(stats: &PodSandboxStats) -> String {
    stats.attributes.as_ref().map(|a| a.id.clone()).unwrap_or_default()
}

fn number(value: Option<UInt64Value>) -> u64 {
    value.map_or(0, |value| value.value)
}

/// Nothing was measured: it does not run.
fn is_idle(cpu: Option<&CpuUsage>, memory: Option<&MemoryUsage>) -> bool {
    number(cpu.and_then(|c| c.usage_core_nano_seconds)) == 0 && number(memory.and_then(|m| m.working_set_bytes)) == 0
}

fn working_set(memory: Option<&MemoryUsage>) -> String {
    fine_size(number(memory.and_then(|memory| memory.working_set_bytes)))
}

/// Percent of one processor between two looks.
fn share(before: Option<&CpuUsage>, after: Option<&CpuUsage>) -> String {
    let (Some(before), Some(after)) = (before, after) else { return "0.00".into() };
    let used = number(after.usage_core_nano_seconds).saturating_sub(number(before.usage_core_nano_seconds));
    let time = after.timestamp.saturating_sub(before.timestamp);
    // A clock that was set back says nothing.
    let percent = if time > 0 { used as f64 / time as f64 * 100.0 } else { 0.0 };
    format!("{percent:.2}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_of_one_processor_between_two_looks() {
        let look = |timestamp, used| CpuUsage {
            timestamp,
            usage_core_nano_seconds: Some(UInt64Value { value: used }),
            ..Default::default()
        };
        let check =
            |before: &CpuUsage, after: &CpuUsage, text: &str| assert_eq!(share(Some(before), Some(after)), text);
        check(&look(0, 0), &look(1_000_000_000, 500_000_000), "50.00");
        check(&look(0, 0), &look(1_000_000_000, 2_000_000_000), "200.00");
        check(&look(5, 7), &look(5, 7), "0.00");
        check(&look(5, 7), &look(3, 9), "0.00");
        assert_eq!(share(None, Some(&look(1, 1))), "0.00");
    }
}
