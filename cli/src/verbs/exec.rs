//! `exec`: runs a program in running containers, on a stream or, with `-s`, to its end.

use std::io::Write;

use berth_api::cri::{ExecRequest, ExecSyncRequest};
use regex::Regex;

use super::choose::{self, ContainerStateName, label};
use crate::error::Error;
use crate::node::Node;
use crate::output::{self, line, short};
use crate::stream::tls::Tls;
use crate::stream::{self, Streams};

#[derive(clap::Args)]
pub(crate) struct Exec {
    /// Wait for the program's end and then show its output
    #[arg(short, long)]
    sync: bool,
    /// Type into the program
    #[arg(short, long, conflicts_with = "sync")]
    interactive: bool,
    /// Give the program a terminal
    #[arg(short, long, conflicts_with = "sync")]
    tty: bool,
    /// Seconds until the program is killed; 0: never
    #[arg(long, default_value_t = 0)]
    timeout: i64,
    /// In containers whose name matches this regular expression, instead of CONTAINER-ID
    #[arg(long)]
    name: Option<Regex>,
    /// In containers of this pod
    #[arg(short, long)]
    pod: Option<String>,
    /// In containers of this image
    #[arg(long)]
    image: Option<String>,
    /// In containers in this state
    #[arg(long, ignore_case = true)]
    state: Option<ContainerStateName>,
    /// In containers with this label
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// In the newest container
    #[arg(short, long)]
    latest: bool,
    /// In the newest so many containers
    #[arg(short = 'n', long, default_value_t = 0, value_name = "COUNT", hide_default_value = true)]
    last: usize,
    /// Do not print the ids of containers that the flags chose
    #[arg(short, long)]
    quiet: bool,
    /// Succeed whatever the program says
    #[arg(short = 'e', long)]
    ignore_errors: bool,
    #[command(flatten)]
    tls: Tls,
    /// Id of the container (unless flags choose), then the program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CONTAINER-ID COMMAND")]
    words: Vec<String>,
}

impl Exec {
    pub(crate) async fn run(mut self, node: &Node) -> Result<(), Error> {
        if !self.sync && self.timeout != 0 {
            return Err(Error::usage("--timeout is for --sync: a stream lasts as long as its program or its client"));
        }
        let choice = self.choice();
        let ids = match choice.is_set() {
            true => {
                let chosen = choice.list(node, None, false).await?;
                chosen.into_iter().map(|container| container.id).collect()
            }
            false => vec![self.words.remove(0)],
        };
        if self.words.is_empty() {
            return Err(Error::usage("name the program to run after the container's id"));
        }
        if ids.is_empty() {
            return Err(Error::Refused("no container matches the flags".into()));
        }
        let mut end = Ok(());
        for id in &ids {
            if choice.is_set() && !self.quiet {
                line(format!("{id}:"))?;
            }
            end = end.and(match self.sync {
                true => exec(node, id, &self.words, self.timeout).await,
                false => {
                    let asked = Streams { stdin: self.interactive, tty: self.tty };
                    stream(node, id, &self.words, asked, &self.tls).await
                }
            });
        }
        match end {
            Err(Error::Print(error)) => Err(Error::Print(error)),
            end if !self.ignore_errors => end,
            _ => Ok(()),
        }
    }

    fn choice(&self) -> choose::ContainerFilters {
        let common = choose::Common {
            name: self.name.clone(),
            namespace: None,
            label: self.label.clone(),
            latest: self.latest,
            last: self.last,
        };
        choose::ContainerFilters { common, pod: self.pod.clone(), image: self.image.clone(), state: self.state }
    }
}

/// Runs the program on a stream, and ends with its exit code.
async fn stream(node: &Node, id: &str, command: &[String], asked: Streams, tls: &Tls) -> Result<(), Error> {
    let request = ExecRequest {
        container_id: id.into(),
        cmd: command.to_vec(),
        stdin: asked.stdin,
        stdout: true,
        stderr: !asked.tty,
        tty: asked.tty,
    };
    let deed = format!("run {:?} in container {}", command.join(" "), short(id));
    let mut runtime = node.runtime().await?;
    let answer = node.quick(deed, runtime.exec(request)).await?;
    stream::session(&answer.url, asked, tls).await
}

/// Prints what the program wrote, each stream to its own, and ends with its exit code.
async fn exec(node: &Node, id: &str, command: &[String], timeout: i64) -> Result<(), Error> {
    let request = ExecSyncRequest { container_id: id.into(), cmd: command.to_vec(), timeout };
    let deed = format!("run {:?} in container {}", command.join(" "), short(id));
    let mut runtime = node.runtime().await?;
    let answer = node.answer(deed, None, runtime.exec_sync(request)).await?;
    output::print(&answer.stdout)?;
    std::io::stderr().write_all(&answer.stderr).map_err(Error::Print)?;
    match answer.exit_code {
        0 => Ok(()),
        code => Err(Error::Exit(code)),
    }
}
