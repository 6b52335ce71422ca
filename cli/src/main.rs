//! `berth`: a client of the CRI socket with crictl's verbs, and `berth run` for a container in one step.
//! Each verb is a few calls on the socket and one way of printing. Nothing is kept between two invocations.
//! Start reading at `verbs`; how an answer becomes text is `output`, how a file becomes a request is `config`.
#![forbid(unsafe_code)]

mod config;
mod error;
mod human;
mod json;
#[cfg(test)]
#[path = "../../test/fuzz/kept.rs"]
mod kept;
mod log;
mod nearest;
mod node;
mod output;
mod progress;
mod settings;
mod stream;
mod table;
mod verbs;

use std::process::ExitCode;

use clap::Parser;

use crate::error::Error;
use crate::node::Node;
use crate::settings::{Global, Settings};
use crate::verbs::Verb;

/// Client for berth and any other CRI runtime.
#[derive(Parser)]
#[command(name = "berth", version, max_term_width = 100)]
struct Args {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let debug = args.global.debug;
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has read enough.
        Err(Error::Print(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            error.report(debug);
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(args: Args) -> Result<(), Error> {
    if let Verb::Completion(completion) = &args.verb {
        return completion.print();
    }
    let node = Node::new(Settings::gather(args.global)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Start)?;
    runtime.block_on(args.verb.run(&node))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn flags_do_not_contradict_one_another() {
        super::Args::command().debug_assert();
    }
}
