//! `logs`: what a container has written, from the file that its status names.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use berth_api::cri::{ContainerState, ContainerStatus, ReopenContainerLogRequest};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::container;
use crate::error::Error;
use crate::human::parse_moment;
use crate::log::{Follow, Options, Printer, Stream, read};
use crate::node::Node;
use crate::output::short;

/// Time between two looks at a container whose log is quiet.
const LOOK: Duration = Duration::from_millis(250);

#[derive(clap::Args)]
pub(crate) struct Logs {
    /// Id of the container, or an unambiguous prefix
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
    /// Go on until the container ends, across rotation
    #[arg(short, long)]
    follow: bool,
    /// The log of the container's instance before this one
    #[arg(short, long, conflicts_with = "follow")]
    previous: bool,
    /// Have the runtime open the log file anew first
    #[arg(short, long)]
    reopen: bool,
    /// Only the last so many lines
    #[arg(long, allow_negative_numbers = true, value_name = "LINES")]
    tail: Option<i64>,
    /// No more than so many bytes
    #[arg(long, allow_negative_numbers = true, value_name = "BYTES")]
    limit_bytes: Option<i64>,
    /// Only what was written since a time (2024-05-01T12:00:00Z) or for a duration (42m)
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Timestamp>,
    /// Only stdout or only stderr
    #[arg(short, long)]
    stream: Option<Stream>,
    /// Put the time before each line
    #[arg(short, long)]
    timestamps: bool,
}

impl Logs {
    pub(crate) async fn run(self, node: &Node) -> Result<(), Error> {
        if self.reopen {
            reopen(node, &self.id).await?;
        }
        let status = container::status(node, &self.id).await?;
        let path = self.path(&status)?;
        let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr().lock());
        let mut printer = Printer::new(self.options(), &mut out, &mut err);
        // Negative is how crictl says "all".
        let last = self.tail.and_then(|lines| u64::try_from(lines).ok()).map(|lines| (lines, self.stream));
        match self.follow {
            true => read(&path, last, &mut printer, &mut WhileRunning::new(node, &status.id)).await?,
            false => read(&path, last, &mut printer, &mut ()).await?,
        }
        match printer.strange() {
            0 => Ok(()),
            lines => Err(Error::Refused(format!("{}: {lines} lines are not in CRI's log format", path.display()))),
        }
    }

    fn path(&self, status: &ContainerStatus) -> Result<PathBuf, Error> {
        if status.log_path.is_empty() {
            return Err(Error::Refused(format!(
                "container {} keeps no log: its output is discarded, because it was created without a log path \
                 or its pod without a log directory",
                short(&status.id)
            )));
        }
        match self.previous {
            true => previous(status),
            false => Ok(status.log_path.clone().into()),
        }
    }

    fn options(&self) -> Options {
        Options {
            timestamps: self.timestamps,
            since: self.since,
            stream: self.stream,
            limit_bytes: self.limit_bytes.and_then(|bytes| u64::try_from(bytes).ok()),
        }
    }
}

/// The kubelet names logs `ATTEMPT.log`; the one before has the attempt before.
fn previous(status: &ContainerStatus) -> Result<PathBuf, Error> {
    let metadata = status.metadata.clone().unwrap_or_default();
    let log = Path::new(&status.log_path);
    let attempt = metadata.attempt.checked_sub(1);
    let attempt = attempt.filter(|_| log.file_stem().is_some_and(|stem| *stem == *metadata.attempt.to_string()));
    match attempt {
        Some(attempt) => Ok(log.with_file_name(format!("{attempt}.log"))),
        None => Err(Error::Refused(format!("container {} has no instance before this one", metadata.name))),
    }
}

async fn reopen(node: &Node, id: &str) -> Result<(), Error> {
    let mut runtime = node.runtime().await?;
    let request = ReopenContainerLogRequest { container_id: id.into() };
    node.quick(format!("reopen the log of {}", short(id)), runtime.reopen_container_log(request)).await.map(drop)
}

/// Follows a log for as long as its container runs.
pub(super) struct WhileRunning<'a> {
    node: &'a Node,
    id: &'a str,
    looked: Option<Instant>,
    pause: Duration,
}

impl<'a> WhileRunning<'a> {
    pub(super) fn new(node: &'a Node, id: &'a str) -> Self {
        Self { node, id, looked: None, pause: Duration::from_millis(10) }
    }
}

impl Follow for WhileRunning<'_> {
    async fn goes_on(&mut self) -> Result<bool, Error> {
        if self.looked.is_some_and(|looked| looked.elapsed() < self.pause) {
            return Ok(true);
        }
        // Soon after the start often, then less so: a program that ends at once is not waited for.
        self.pause = if self.looked.is_some() { (self.pause * 2).min(LOOK) } else { self.pause };
        self.looked = Some(Instant::now());
        match container::status(self.node, self.id).await {
            // A created one has yet to write.
            Ok(status) => {
                Ok(matches!(status.state(), ContainerState::ContainerRunning | ContainerState::ContainerCreated))
            }
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn moment(text: &str) -> Result<Timestamp, String> {
    parse_moment(text, Timestamp::now(), &TimeZone::system())
}

#[cfg(test)]
mod tests {
    use berth_api::cri::ContainerMetadata;

    use super::*;

    #[test]
    fn the_instance_before_has_the_attempt_before() {
        let status = |attempt, log_path: &str| ContainerStatus {
            metadata: Some(ContainerMetadata { name: "c".into(), attempt }),
            log_path: log_path.into(),
            ..Default::default()
        };
        assert_eq!(previous(&status(3, "/l/c/3.log")).unwrap(), Path::new("/l/c/2.log"));
        assert!(previous(&status(0, "/l/c/0.log")).is_err());
        assert!(previous(&status(3, "/l/c.log")).is_err());
    }
}
