//! The verbs, one file a group. Names and flags are crictl's where crictl has the verb.

mod attach;
mod choose;
mod completion;
mod container;
mod create;
mod debug;
mod events;
mod exec;
mod image;
mod image_list;
mod inspect;
mod logs;
mod metrics;
mod pod;
mod port_forward;
mod ps;
mod pull;
mod run;
mod runtime;
mod stats;
mod take;
mod update;

use crate::error::Error;
use crate::node::Node;

#[derive(clap::Subcommand)]
pub(crate) enum Verb {
    /// Show the runtime's name and version
    Version(runtime::Version),
    /// Show whether the runtime is ready, and what it tells about itself
    Info(runtime::Info),
    /// Pull an image from its registry
    Pull(pull::Pull),
    /// List images
    #[command(visible_aliases = ["image", "img"])]
    Images(image_list::Images),
    /// Remove images, each with all its names
    Rmi(image::Rmi),
    /// Show all about images
    Inspecti(image::Inspect),
    /// Pull if need be and run one container in a pod of its own
    Run(Box<run::Run>),
    /// Run a pod from a file
    Runp(pod::Run),
    /// List pods
    Pods(pod::List),
    /// Stop pods with all that runs in them
    Stopp(pod::Stop),
    /// Remove stopped pods with their containers
    Rmp(pod::Remove),
    /// Show all about pods
    Inspectp(inspect::Pods),
    /// Create a container in a pod from files
    Create(create::Create),
    /// Start created containers
    Start(container::Start),
    /// List containers
    Ps(ps::Ps),
    /// Stop running containers
    Stop(container::Stop),
    /// Change the limits of containers
    Update(update::Update),
    /// Remove containers with their logs
    Rm(container::Remove),
    /// Show all about containers
    Inspect(inspect::Containers),
    /// Show what a container has written
    Logs(logs::Logs),
    /// Run a program in a running container
    Exec(exec::Exec),
    /// Attach to a running container
    Attach(attach::Attach),
    /// Forward ports of this host to a pod
    PortForward(port_forward::PortForward),
    /// Look inside the daemon
    #[command(subcommand)]
    Debug(debug::Debug),
    /// Show what containers use
    Stats(stats::Containers),
    /// Show what pods use
    Statsp(stats::Pods),
    /// Show what happens to containers and pods as it happens
    #[command(visible_alias = "event")]
    Events(events::Events),
    /// Show the metrics of pods and containers
    Metricsp(metrics::Pods),
    /// Show which metrics there are
    Metricdescs(metrics::Descriptors),
    /// Print a completion script for a shell
    Completion(completion::Completion),
}

impl Verb {
    pub(crate) async fn run(self, node: &Node) -> Result<(), Error> {
        match self {
            Self::Version(verb) => verb.run(node).await,
            Self::Info(verb) => verb.run(node).await,
            Self::Pull(verb) => verb.run(node).await,
            Self::Images(verb) => verb.run(node).await,
            Self::Rmi(verb) => verb.run(node).await,
            Self::Inspecti(verb) => verb.run(node).await,
            Self::Run(verb) => verb.run(node).await,
            Self::Runp(verb) => verb.run(node).await,
            Self::Pods(verb) => verb.run(node).await,
            Self::Stopp(verb) => verb.run(node).await,
            Self::Rmp(verb) => verb.run(node).await,
            Self::Inspectp(verb) => verb.run(node).await,
            Self::Create(verb) => verb.run(node).await,
            Self::Start(verb) => verb.run(node).await,
            Self::Ps(verb) => verb.run(node).await,
            Self::Stop(verb) => verb.run(node).await,
            Self::Update(verb) => verb.run(node).await,
            Self::Rm(verb) => verb.run(node).await,
            Self::Inspect(verb) => verb.run(node).await,
            Self::Logs(verb) => verb.run(node).await,
            Self::Exec(verb) => verb.run(node).await,
            Self::Attach(verb) => verb.run(node).await,
            Self::PortForward(verb) => verb.run(node).await,
            Self::Debug(verb) => verb.run(node).await,
            Self::Stats(verb) => verb.run(node).await,
            Self::Statsp(verb) => verb.run(node).await,
            Self::Events(verb) => verb.run(node).await,
            Self::Metricsp(verb) => verb.run(node).await,
            Self::Metricdescs(verb) => verb.run(node).await,
            Self::Completion(verb) => verb.print(),
        }
    }
}
