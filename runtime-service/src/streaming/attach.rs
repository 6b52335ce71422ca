//! Attach: bytes between a client and a container that runs already, until either goes.

use std::path::PathBuf;

use tokio::time::Instant;

use super::exec::{copy, feed};
use super::session::{Session, Streams};
use super::status::End;
use crate::ids::{ContainerId, exec_id};
use crate::pod::chain;
use crate::task::{Attached, Detached, Shim, Terminal};

/// What an Attach allowed.
pub(crate) struct Attach {
    pub(crate) container: ContainerId,
    pub(crate) shim: Shim,
    pub(crate) bundle: PathBuf,
    pub(crate) streams: Streams,
}

/// Attaches the client, for as long as the daemon does not end.
pub(super) async fn serve(attach: Attach, mut session: Session, daemon_ends: impl Future<Output = ()>) {
    let Attach { container, shim, bundle, streams } = attach;
    let made = exec_id().map_err(|e| format!("make an id: {e}")).and_then(|id| {
        let wanted = (streams.stdin, streams.stderr && !streams.tty);
        Attached::make(&shim, (container.as_str(), &id), &bundle, wanted).map_err(|e| chain(&e))
    });
    let attached = match made {
        Ok(attached) => attached,
        Err(why) => return session.close(&End::Failed(format!("attach to container {container}: {why}"))).await,
    };
    tracing::info!(container = %container, tty = streams.tty, "attach");
    let outcome = tokio::select! {
        outcome = relay(attached, &mut session, Terminal::of_container(&shim, container.as_str())) => outcome,
        () = daemon_ends => {
            let why = format!(
                "detached from container {container}: berthd is ending, and the container runs on; attach again when it is back"
            );
            return session.close(&End::Failed(why)).await;
        }
    };
    let end = match outcome {
        None | Some(Ok(Detached::ClientGone)) => {
            tracing::debug!(container = %container, "an attached client went away");
            return;
        }
        Some(Ok(Detached::ContainerEnded)) => End::Well,
        Some(Ok(Detached::FellBehind)) => {
            tracing::info!(container = %container, "an attached client was cut off: it did not read");
            End::Failed(format!(
                "detached from container {container}: its output was not read as fast as it came, and it does not wait"
            ))
        }
        Some(Err(error)) => End::Failed(format!("attach to container {container}: {}", chain(&error))),
    };
    session.close(&end).await;
}

/// `None` when the client has gone.
async fn relay(
    mut attached: Attached,
    session: &mut Session,
    terminal: Terminal,
) -> Option<Result<Detached, crate::task::Error>> {
    let wire = session.wire.clone();
    let attach = attached.attach();
    let inputs = feed(attached.stdin.take(), session.stdin.take(), session.resize.take(), terminal);
    let (over, ended) = tokio::sync::watch::channel(None);
    let waiting = async {
        let outcome = attach.await;
        over.send_replace(Some(Instant::now()));
        outcome
    };
    // The shim has let go of them when it answers: all of what lies there is read.
    let all = async {
        tokio::join!(waiting, copy(&attached.stdout, session.stdout.as_ref(), usize::MAX, ended.clone()), async {
            if let Some(stderr) = &attached.stderr {
                copy(stderr, session.stderr.as_ref(), usize::MAX, ended.clone()).await;
            }
        })
        .0
    };
    tokio::select! {
        outcome = all => Some(outcome),
        () = inputs => None,
        () = wire.gone() => None,
    }
}
