//! A client's streams of a running container: FIFOs that the container's shim copies its output to, and reads.

use std::path::Path;

use tokio::net::unix::pipe;

use super::fifo::Fifo;
use super::{Error, Shim};

/// Bytes of output that may wait for a client before the shim cuts it off. Source: /proc/sys/fs/pipe-max-size.
const BEHIND_MAX: usize = 1 << 20;

/// How an attachment ended, by the shim's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detached {
    ContainerEnded,
    ClientGone,
    FellBehind,
}

/// Our ends of the FIFOs. When they are dropped the shim lets go of the client.
pub(crate) struct Attached {
    shim: Shim,
    container: String,
    names: [String; 3],
    _fifos: Vec<Fifo>,
    /// Until the client's end of input.
    pub(crate) stdin: Option<pipe::Sender>,
    pub(crate) stdout: pipe::Receiver,
    pub(crate) stderr: Option<pipe::Receiver>,
}

impl Attached {
    /// Makes the FIFOs in the container's bundle, called after `client`.
    ///
    /// # Errors
    /// The file system refuses.
    pub(crate) fn make(
        shim: &Shim,
        (container, client): (&str, &str),
        bundle: &Path,
        (stdin, stderr): (bool, bool),
    ) -> Result<Self, Error> {
        // There also when the client wants no output, which is dropped then: by it the shim sees the client go.
        let (out, stdout) = Fifo::readable(bundle, client, "o")?;
        let err = stderr.then(|| Fifo::readable(bundle, client, "e")).transpose()?;
        let input = stdin.then(|| Fifo::make(bundle, client, "i")).transpose()?;
        let typed = input.as_ref().map(Fifo::early_writer).transpose()?;
        let name = |fifo: Option<&Fifo>| fifo.map(Fifo::path).unwrap_or_default();
        let names = [name(input.as_ref()), name(Some(&out)), name(err.as_ref().map(|err| &err.0))];
        let (err, stderr) = err.unzip();
        for reader in [Some(&stdout), stderr.as_ref()].into_iter().flatten() {
            // Where this is not allowed, a client falls behind sooner.
            if let Err(error) = rustix::pipe::fcntl_setpipe_size(reader, BEHIND_MAX) {
                tracing::debug!(%error, "make the buffer of an attached client larger");
            }
        }
        let fifos = [Some(out), err, input].into_iter().flatten().collect();
        Ok(Self { shim: shim.clone(), container: container.into(), names, _fifos: fifos, stdin: typed, stdout, stderr })
    }

    /// Attaches, and waits for the end of that. Nothing of it is left when this is dropped.
    pub(crate) fn attach(&self) -> impl Future<Output = Result<Detached, Error>> + Send + use<> {
        let (shim, container, names) = (self.shim.clone(), self.container.clone(), self.names.clone());
        async move { step!("attach::shim-attach", shim.attach(&container, names).await) }
    }
}
