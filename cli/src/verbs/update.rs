//! `update`: new limits for containers that exist.

use berth_api::cri::{LinuxContainerResources, UpdateContainerResourcesRequest};

use super::take::each;
use crate::error::Error;
use crate::node::Node;
use crate::output::line;

#[derive(clap::Args)]
pub(crate) struct Update {
    /// CPU time that `--cpu-quota` counts in, in microseconds
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    cpu_period: i64,
    /// CPU time in each period, in microseconds; -1: no limit
    #[arg(long, default_value_t = 0, hide_default_value = true, allow_negative_numbers = true)]
    cpu_quota: i64,
    /// Weight against other containers; 1024 is one CPU's
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    cpu_share: i64,
    /// Most memory, in bytes
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    memory: i64,
    /// CPUs to run on, e.g. 0-3,5
    #[arg(long, default_value = "", hide_default_value = true)]
    cpuset_cpus: String,
    /// Memory nodes to use, e.g. 0
    #[arg(long, default_value = "", hide_default_value = true)]
    cpuset_mems: String,
    /// Ids or unambiguous prefixes
    #[arg(required = true, value_name = "CONTAINER-ID")]
    ids: Vec<String>,
}

impl Update {
    pub(crate) async fn run(self, node: &Node) -> Result<(), Error> {
        let resources = LinuxContainerResources {
            cpu_period: self.cpu_period,
            cpu_quota: self.cpu_quota,
            cpu_shares: self.cpu_share,
            memory_limit_in_bytes: self.memory,
            cpuset_cpus: self.cpuset_cpus,
            cpuset_mems: self.cpuset_mems,
            ..Default::default()
        };
        if resources == LinuxContainerResources::default() {
            return Err(Error::usage("no limit is given: see `berth update --help`"));
        }
        each(&self.ids, async |id| {
            let request = UpdateContainerResourcesRequest {
                container_id: id.to_owned(),
                linux: Some(resources.clone()),
                ..Default::default()
            };
            let mut runtime = node.runtime().await?;
            node.quick(&format!("update container {id}"), runtime.update_container_resources(request)).await?;
            line(id)
        })
        .await
    }
}
