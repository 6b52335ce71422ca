//! `attach`: to a container that runs already.

use berth_api::cri::AttachRequest;

use crate::error::Error;
use crate::node::Node;
use crate::output::short;
use crate::stream::tls::Tls;
use crate::stream::{self, Streams};

#[derive(clap::Args)]
pub(crate) struct Attach {
    /// Type into the container
    #[arg(short = 'i', long)]
    stdin: bool,
    /// The container has a terminal, and so has this
    #[arg(short, long)]
    tty: bool,
    #[command(flatten)]
    tls: Tls,
    /// Id of the container
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
}

impl Attach {
    pub(crate) async fn run(self, node: &Node) -> Result<(), Error> {
        let Self { stdin, tty, tls, id } = self;
        let request = AttachRequest { container_id: id.clone(), stdin, tty, stdout: true, stderr: !tty };
        let mut runtime = node.runtime().await?;
        let answer = node.quick(format!("attach to container {}", short(&id)), runtime.attach(request)).await?;
        stream::session(&answer.url, Streams { stdin, tty }, &tls).await
    }
}
