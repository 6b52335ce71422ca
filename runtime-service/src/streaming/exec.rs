//! Exec: bytes between a client and a command's FIFOs, until the command ends or the client goes.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::time::Instant;

use super::resize::Sizes;
use super::session::{Input, Output, Session, Streams};
use super::status::End;
use crate::ids::{ContainerId, exec_id};
use crate::pod::chain;
use crate::task::{self, Held, Shim, Terminal};

/// Bytes read from a FIFO at once.
const PIECE: usize = 16 << 10;
/// How long a child of the command that holds its output open is waited for.
const DRAIN: Duration = Duration::from_secs(1);
/// Bytes that may lie in a FIFO when its writer ends. Source: pipe(7).
const PIPE_SIZE: usize = 64 << 10;

/// What an Exec allowed.
pub(crate) struct Exec {
    pub(crate) container: ContainerId,
    pub(crate) shim: Shim,
    pub(crate) bundle: PathBuf,
    /// The OCI process, as JSON.
    pub(crate) process: Vec<u8>,
    pub(crate) streams: Streams,
}

/// Runs the command for its client, for as long as the daemon does not end.
pub(super) async fn serve(exec: Exec, mut session: Session, daemon_ends: impl Future<Output = ()>) {
    let id = match exec_id() {
        Ok(id) => id,
        Err(error) => return session.close(&End::Failed(format!("make an id: {error}"))).await,
    };
    let names = (exec.container.as_str(), id.as_str());
    let ends = (exec.streams.tty, exec.streams.stdin);
    tokio::pin!(daemon_ends);
    let given_up = async {
        tokio::select! {
            () = session.wire.gone() => task::Error::ExecAbandoned,
            () = &mut daemon_ends => task::Error::Ending,
        }
    };
    let held = match Held::start(&exec.shim, names, &exec.bundle, exec.process, ends, given_up).await {
        Ok(held) => held,
        Err(error) => {
            let why = format!("exec in container {}: {}", exec.container, chain(&error));
            return session.close(&End::Failed(why)).await;
        }
    };
    tracing::info!(container = %exec.container, exec = id, tty = exec.streams.tty, "exec stream");
    match relay(held, &mut session, daemon_ends.as_mut()).await {
        Outcome::Ended(end) => session.close(&end).await,
        Outcome::DaemonEnds => {
            let why = format!(
                "the exec in container {} was ended: berthd is ending, and the container runs on",
                exec.container
            );
            session.close(&End::Failed(why)).await;
        }
        Outcome::ClientGone => {
            tracing::info!(container = %exec.container, exec = id, "the client of an exec went away; it was killed")
        }
    }
}

enum Outcome {
    Ended(End),
    /// The command went with it.
    ClientGone,
    /// The same.
    DaemonEnds,
}

async fn relay(mut held: Held, session: &mut Session, daemon_ends: impl Future<Output = ()>) -> Outcome {
    let wire = session.wire.clone();
    let exit = held.wait();
    let inputs = feed(held.stdin.take(), session.stdin.take(), session.resize.take(), held.terminal());
    let outcome = {
        let (over, ended) = tokio::sync::watch::channel(None);
        let waiting = async {
            let exit = exit.await;
            over.send_replace(Some(Instant::now()));
            exit
        };
        let outputs = async {
            tokio::join!(
                copy(&held.stdout, session.stdout.as_ref(), PIPE_SIZE, ended.clone()),
                async {
                    if let Some(stderr) = &held.stderr {
                        copy(stderr, session.stderr.as_ref(), PIPE_SIZE, ended.clone()).await;
                    }
                },
                waiting
            )
            .2
        };
        tokio::select! {
            exit = outputs => Outcome::Ended(match exit {
                Ok(0) => End::Well,
                Ok(code) => End::Exited(code),
                Err(error) => End::Failed(chain(&error)),
            }),
            () = inputs => Outcome::ClientGone,
            () = wire.gone() => Outcome::ClientGone,
            () = daemon_ends => Outcome::DaemonEnds,
        }
    };
    held.end(!matches!(outcome, Outcome::Ended(_))).await;
    outcome
}

/// Brings what the client types and the size of its window to the command. Never ends: its end is no event.
pub(super) async fn feed(stdin: Option<pipe::Sender>, typed: Option<Input>, sizes: Option<Input>, terminal: Terminal) {
    let typing = async {
        let (Some(mut stdin), Some(mut typed)) = (stdin, typed) else { return };
        while let Some(piece) = typed.next().await {
            if stdin.write_all(&piece).await.is_err() {
                // It has closed its input, or is over. What else is typed is dropped.
                return;
            }
        }
    };
    let resizing = async {
        let Some(mut input) = sizes else { return };
        let mut sizes = Sizes::default();
        while let Some(piece) = input.next().await {
            for size in sizes.feed(&piece) {
                terminal.resize(size.width, size.height).await;
            }
        }
    };
    tokio::join!(typing, resizing);
    std::future::pending().await
}

/// Copies output to the client, or drops it when there is nobody for it, until its end. When the process `ended`, what lies
/// in the FIFO is still read, at most `rest` bytes, and what its children write for a moment more.
pub(super) async fn copy(
    from: &pipe::Receiver,
    to: Option<&Output>,
    rest: usize,
    mut ended: tokio::sync::watch::Receiver<Option<Instant>>,
) {
    let mut to = to;
    let mut after = 0;
    while after <= rest {
        let late = ended.borrow_and_update().map(|since| since + DRAIN);
        let piece = match late {
            None => tokio::select! {
                piece = read(from) => piece,
                _ = ended.changed() => continue,
            },
            // Past the moment, what is there is there at once.
            Some(late) => match tokio::time::timeout_at(late, read(from)).await {
                Ok(piece) => piece,
                Err(_) => return,
            },
        };
        let Ok(piece) = piece else { return };
        if piece.is_empty() {
            return;
        }
        if late.is_some_and(|late| late < Instant::now()) {
            after += piece.len();
        }
        if let Some(output) = to
            && output.write(&piece).await.is_err()
        {
            to = None;
        }
    }
}

/// What there is; memory is only taken once there is something.
async fn read(from: &pipe::Receiver) -> io::Result<Vec<u8>> {
    loop {
        from.readable().await?;
        let mut piece = vec![0; PIECE];
        match from.try_read(&mut piece) {
            Ok(length) => {
                piece.truncate(length);
                return Ok(piece);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
