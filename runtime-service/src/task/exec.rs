//! A command in a running container, its output collected: what ExecSync needs.

use std::collections::BTreeSet;
use std::path::Path;
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

/// What the command did.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: u32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

/// Why an exec is ended from outside.
enum Cut {
    Timeout(u64),
    ClientGone,
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
    step!("exec_sync::shim-exec", shim.exec(id, exec, process, streams).await)?;
    let limit = async {
        match timeout.is_zero() {
            true => std::future::pending().await,
            false => tokio::time::sleep(timeout).await,
        }
    };
    let result = tokio::select! {
        result = collect(shim, id, exec, out_reader, err_reader) => result.map_err(Ok),
        () = limit => Err(Err(Cut::Timeout(timeout.as_secs()))),
        () = client_gone => Err(Err(Cut::ClientGone)),
    };
    let result = match result {
        Ok(finished) => Ok(finished),
        Err(Ok(error)) => Err(error),
        Err(Err(cut)) => {
            kill(shim, id, exec).await;
            Err(match cut {
                Cut::Timeout(seconds) => Error::ExecTimeout(seconds),
                Cut::ClientGone => Error::ExecAbandoned,
            })
        }
    };
    forgotten(id, exec, step!("exec_sync::shim-delete", shim.delete(id, exec).await));
    result
}

/// The shim was told to forget the exec; a dead one was killed with its container.
pub(super) fn forgotten(id: &str, exec: &str, deleted: Result<Exit, Error>) {
    match deleted {
        Ok(_) => {}
        Err(error) if error.is_not_found() || matches!(error, Error::Gone { .. }) => {}
        Err(error) => tracing::warn!(container = id, exec, %error, "delete an exec"),
    }
}

pub(super) async fn kill(shim: &Shim, id: &str, exec: &str) {
    match shim.kill(id, exec, Signal::SIGKILL as i32, true).await {
        Ok(()) => {
            let _ = tokio::time::timeout(KILL_WAIT, shim.wait(id, exec)).await;
        }
        Err(error) if error.is_not_found() || matches!(error, Error::Gone { .. }) => {}
        Err(error) => tracing::warn!(container = id, exec, %error, "kill an exec"),
    }
}

/// Ends the execs that an earlier daemon left in a container whose shim `speaks`; their ids are in the names of their
/// FIFOs. Those of berth's own shim have died with that daemon.
pub(crate) async fn end_left(shim: &Shim, id: &str, bundle: &Path, speaks: bool) {
    let left = Fifo::left(bundle);
    if speaks && shim.is_of_another() {
        let owners: BTreeSet<&str> = left.iter().map(|(owner, _)| owner.as_str()).collect();
        join_all(owners.into_iter().map(async |exec| {
            tracing::info!(container = id, exec, "end an exec whose daemon has gone");
            kill(shim, id, exec).await;
            forgotten(id, exec, step!("left_exec::shim-delete", shim.delete(id, exec).await));
        }))
        .await;
    }
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
        let waiting = async {
            shim.start(id, exec).await?;
            shim.wait(id, exec).await
        };
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
