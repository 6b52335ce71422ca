//! A command in a running container, its output collected: what ExecSync needs.

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use futures::future::join_all;
use nix::sys::signal::Signal;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::client::Streams;
use super::fifo::Fifo;
use super::{Error, Exit, Shim};

/// Bytes of both streams together that fit into one answer; what is beyond is read and dropped. Source: the kubelet and
/// crictl take messages of 16 MiB, and there is a little around them.
pub(crate) const OUTPUT_MAX: usize = (16 << 20) - (1 << 10);

/// How long output is still read after the command's end, when a child of it holds the pipe open.
const DRAIN: Duration = Duration::from_secs(1);

/// How long a killed command may take to be gone before its exec is given up.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// How long whoever asked is kept waiting until an exec is forgotten; it is done all the same.
const END_WAIT: Duration = Duration::from_secs(10);

/// What the command did.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: u32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

/// Why a command did not begin, and how much of it there may be all the same.
pub(super) struct NotBegun {
    left: Left,
    error: Error,
}

enum Left {
    Nothing,
    /// The shim knows of it.
    Name,
    /// It may run, or be about to.
    Process,
}

impl NotBegun {
    /// What `Exec` answered.
    pub(super) fn making(error: Error) -> Self {
        let left = if matches!(error, Error::Refused { .. }) { Left::Nothing } else { Left::Process };
        Self { left, error }
    }

    /// What `Start` answered.
    pub(super) fn starting(error: Error) -> Self {
        let left = if matches!(error, Error::Refused { .. }) { Left::Name } else { Left::Process };
        Self { left, error }
    }

    /// What came after that.
    pub(super) fn started(error: Error) -> Self {
        Self { left: Left::Process, error }
    }
}

/// A command on its way from being asked for to having begun.
pub(super) type Beginning<T> = Pin<Box<dyn Future<Output = Result<T, NotBegun>> + Send>>;

/// A command that is asked for: who it is and what tells of it. Its end is seen to also when nobody waits for that.
pub(super) struct Asked {
    pub(super) shim: Shim,
    pub(super) container: String,
    pub(super) exec: String,
    pub(super) fifos: Vec<Fifo>,
}

impl Asked {
    pub(super) fn new(shim: &Shim, (container, exec): (&str, &str), mut fifos: Vec<Fifo>) -> Self {
        fifos.iter_mut().for_each(|fifo| fifo.stay(shim));
        Self { shim: shim.clone(), container: container.into(), exec: exec.into(), fifos }
    }

    /// Waits for its beginning, unless something else comes first: then nobody waits any more, and what the shim makes of
    /// it once it speaks is undone behind us.
    ///
    /// # Errors
    /// Why it did not begin; nothing of it is left then, or will be.
    pub(super) async fn begin<T: Send + 'static>(
        self,
        mut beginning: Beginning<T>,
        given_up: impl Future<Output = Error>,
    ) -> Result<(Self, T), Error> {
        let begun = tokio::select! {
            begun = &mut beginning => begun,
            why = given_up => {
                // Bounded by the shim's deadlines.
                tokio::spawn(async move {
                    let left = beginning.await.map_or_else(|not_begun| not_begun.left, |_| Left::Process);
                    self.undo(left).await;
                });
                return Err(why);
            }
        };
        match begun {
            Ok(begun) => Ok((self, begun)),
            Err(NotBegun { left, error }) => {
                waited_for(self.undo(left)).await;
                Err(error)
            }
        }
    }

    /// Lets it be forgotten, once it has ended or, `by_force`, been killed. A shim that does not answer is not waited for.
    pub(super) async fn end(self, by_force: bool) {
        waited_for(self.undo(if by_force { Left::Process } else { Left::Name })).await;
    }

    async fn undo(self, left: Left) {
        let (shim, container, exec) = (&self.shim, self.container.as_str(), self.exec.as_str());
        if matches!(left, Left::Process) {
            kill(shim, container, exec).await;
        }
        if matches!(left, Left::Nothing) || forgotten(container, exec, shim.delete(container, exec).await) {
            self.fifos.into_iter().for_each(Fifo::remove);
        }
    }
}

/// Does something to its end, which the shim's deadlines bound, and waits for it only for a while.
async fn waited_for(deed: impl Future<Output = ()> + Send + 'static) {
    let _ = tokio::time::timeout(END_WAIT, tokio::spawn(deed)).await;
}

/// Runs `process` (OCI JSON) as `exec` in container `id`. `timeout` zero means none. When `client_gone` becomes ready the
/// command is killed: an ExecSync dies with its client. Should this daemon die, the shim sees the FIFOs' reader go.
///
/// # Errors
/// `ExecTimeout` after the command was killed; the shim's answer otherwise.
pub(crate) async fn run(
    shim: &Shim,
    (id, exec): (&str, &str),
    bundle: &Path,
    process: Vec<u8>,
    timeout: Duration,
    client_gone: impl Future<Output = ()>,
) -> Result<Finished, Error> {
    let (stdout, out_reader) = Fifo::readable(bundle, exec, "o")?;
    let (stderr, err_reader) = Fifo::readable(bundle, exec, "e")?;
    let streams = Streams { stdout: stdout.tied_uri(shim), stderr: stderr.tied_uri(shim), ..Default::default() };
    let asked = Asked::new(shim, (id, exec), vec![stdout, stderr]);
    let cut = async {
        let limit = async {
            match timeout.is_zero() {
                true => std::future::pending().await,
                false => tokio::time::sleep(timeout).await,
            }
        };
        tokio::select! {
            () = limit => Error::ExecTimeout(timeout.as_secs()),
            () = client_gone => Error::ExecAbandoned,
        }
    };
    tokio::pin!(cut);
    let beginning = begin(shim.clone(), id.to_owned(), exec.to_owned(), process, streams);
    let (asked, ()) = asked.begin(Box::pin(beginning), &mut cut).await?;
    let (result, by_force) = tokio::select! {
        result = collect(shim, id, exec, out_reader, err_reader) => (result, false),
        why = &mut cut => (Err(why), true),
    };
    step!("exec_sync::shim-delete", asked.end(by_force).await);
    result
}

async fn begin(shim: Shim, id: String, exec: String, process: Vec<u8>, streams: Streams) -> Result<(), NotBegun> {
    step!("exec_sync::shim-exec", shim.exec(&id, &exec, process, streams).await).map_err(NotBegun::making)?;
    shim.start(&id, &exec).await.map_err(NotBegun::starting)?;
    Ok(())
}

/// The shim was told to forget the exec; a dead one was killed with its container. False when it may still know of it.
fn forgotten(id: &str, exec: &str, deleted: Result<Exit, Error>) -> bool {
    match deleted {
        Ok(_) => true,
        Err(error) if error.is_not_found() || matches!(error, Error::Gone { .. }) => true,
        Err(error) => {
            tracing::warn!(container = id, exec, %error, "delete an exec");
            false
        }
    }
}

async fn kill(shim: &Shim, id: &str, exec: &str) {
    match shim.kill(id, exec, Signal::SIGKILL as i32, true).await {
        Ok(()) => {
            let _ = tokio::time::timeout(KILL_WAIT, shim.wait(id, exec)).await;
        }
        Err(error) if error.is_not_found() || matches!(error, Error::Gone { .. }) => {}
        Err(error) => tracing::warn!(container = id, exec, %error, "kill an exec"),
    }
}

/// Ends the execs that an earlier daemon left in a container; their ids are in the names of their FIFOs, each of which is
/// there until its exec is forgotten. Those of berth's own shim have died with that daemon. A shim that does not `speak` is
/// not waited for; the execs are ended when it does, by this daemon or the next.
pub(crate) async fn end_left(shim: &Shim, id: &str, bundle: &Path, speaks: bool) {
    let left = Fifo::left(bundle, shim);
    if left.is_empty() || !shim.is_of_another() {
        return;
    }
    let mut owners: BTreeMap<String, Vec<Fifo>> = BTreeMap::new();
    for (owner, fifo) in left {
        owners.entry(owner).or_default().push(fifo);
    }
    let (asker, shim, container) = (shim.clone(), shim.clone(), id.to_owned());
    let ending = async move {
        join_all(owners.into_iter().map(async |(exec, fifos)| {
            tracing::info!(container, exec, "end an exec whose daemon has gone");
            kill(&shim, &container, &exec).await;
            let deleted = step!("left_exec::shim-delete", shim.delete(&container, &exec).await);
            if forgotten(&container, &exec, deleted) {
                fifos.into_iter().for_each(Fifo::remove);
            }
        }))
        .await;
    };
    if speaks {
        return ending.await;
    }
    let (shim, container) = (asker, id.to_owned());
    tokio::spawn(async move {
        // As Wait: until it answers, or is dead and its container is cleaned up after.
        if shim.speaks(&container).await {
            ending.await;
        }
    });
}

async fn collect(
    shim: &Shim,
    id: &str,
    exec: &str,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
) -> Result<Finished, Error> {
    let (mut out, mut err) = (Output::default(), Output::default());
    let exit = {
        let reading = async { tokio::join!(drain(stdout, &mut out), drain(stderr, &mut err)) };
        tokio::pin!(reading);
        let waiting = shim.wait(id, exec);
        tokio::pin!(waiting);
        let mut read = false;
        let exit = loop {
            tokio::select! {
                exit = &mut waiting => break exit?,
                _ = &mut reading, if !read => read = true,
            }
        };
        if !read {
            // The command is over. A child of it may hold the pipe for ever; what it wrote so far is there now.
            let _ = tokio::time::timeout(DRAIN, reading).await;
        }
        exit
    };
    fit(&mut out.kept, &mut err.kept);
    let cut = [&out, &err].map(|output| output.total - output.kept.len() as u64);
    if cut != [0, 0] {
        // The answer has no place for it.
        let [stdout, stderr] = cut;
        tracing::warn!(container = id, exec, stdout, stderr, "output of an ExecSync is cut, by so many bytes");
    }
    Ok(Finished { code: exit.status, stdout: out.kept, stderr: err.kept })
}

/// Cuts what does not fit into an answer together. A flood of one takes nothing from the other, but for what is beyond half.
fn fit(out: &mut Vec<u8>, err: &mut Vec<u8>) {
    let (more, less) = if out.len() >= err.len() { (out, err) } else { (err, out) };
    less.truncate(OUTPUT_MAX / 2);
    more.truncate(OUTPUT_MAX - less.len());
}

#[derive(Default)]
struct Output {
    /// The first of it.
    kept: Vec<u8>,
    /// Bytes that there were.
    total: u64,
}

async fn drain(mut reader: pipe::Receiver, into: &mut Output) {
    let mut chunk = vec![0; 16 << 10];
    while let Ok(n @ 1..) = reader.read(&mut chunk).await {
        let room = OUTPUT_MAX.saturating_sub(into.kept.len());
        into.kept.extend_from_slice(&chunk[..n.min(room)]);
        into.total += n as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_together_is_kept_and_a_flood_takes_nothing_from_the_other_stream() {
        const MIB: usize = 1 << 20;
        let check = |written: [usize; 2], kept: [usize; 2]| {
            let [mut out, mut err] = written.map(|length| vec![0; length]);
            fit(&mut out, &mut err);
            assert_eq!([out.len(), err.len()], kept, "{written:?}");
        };
        check([0, 0], [0, 0]);
        check([9 * MIB, 6 * MIB], [9 * MIB, 6 * MIB]);
        check([16 * MIB, 0], [OUTPUT_MAX, 0]);
        check([16 * MIB, MIB], [OUTPUT_MAX - MIB, MIB]);
        check([MIB, 16 * MIB], [MIB, OUTPUT_MAX - MIB]);
        check([9 * MIB, 9 * MIB], [OUTPUT_MAX / 2, OUTPUT_MAX / 2]);
    }
}
