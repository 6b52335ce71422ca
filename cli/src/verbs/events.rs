//! `events`: what happens to containers and pods, as it happens, until interrupted or the runtime ends.

use berth_api::cri::GetEventsRequest;

use super::metrics::Format;
use crate::error::Error;
use crate::json;
use crate::node::Node;
use crate::output;

#[derive(clap::Args)]
pub(crate) struct Events {
    /// Form of the output
    #[arg(short, long, default_value = "json")]
    output: Format,
}

impl Events {
    pub(crate) async fn run(self, node: &Node) -> Result<(), Error> {
        let deed = "listen for events";
        let mut runtime = node.runtime().await?;
        let mut events = node.quick(deed, runtime.get_container_events(GetEventsRequest {})).await?;
        while let Some(event) = events.message().await.map_err(|status| Error::call(deed, status))? {
            output::show(self.output.into(), || json::document(&event), String::new)?;
        }
        Ok(())
    }
}
