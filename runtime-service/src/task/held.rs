//! A command in a running container whose streams are in our hands: what Exec needs.

use std::path::Path;

use tokio::net::unix::pipe;

use super::client::Streams;
use super::exec::{Asked, NotBegun};
use super::fifo::Fifo;
use super::{Error, Shim};

/// The terminal of a process, which may be none.
pub(crate) struct Terminal {
    shim: Shim,
    container: String,
    /// Empty for the container's init.
    exec: String,
}

impl Terminal {
    /// A container's own.
    pub(crate) fn of_container(shim: &Shim, container: &str) -> Self {
        Self { shim: shim.clone(), container: container.into(), exec: String::new() }
    }

    /// Tells it the size of the client's window. That this fails is no reason to end anything.
    pub(crate) async fn resize(&self, width: u16, height: u16) {
        if let Err(error) = self.shim.resize(&self.container, &self.exec, width, height).await {
            tracing::debug!(container = self.container, exec = self.exec, %error, "resize a terminal");
        }
    }
}

/// The command. Should this daemon die, the shim sees the reader of its output go, and kills it.
pub(crate) struct Held {
    asked: Asked,
    /// Until the client's end of input.
    pub(crate) stdin: Option<pipe::Sender>,
    pub(crate) stdout: pipe::Receiver,
    /// A terminal has one stream.
    pub(crate) stderr: Option<pipe::Receiver>,
}

impl Held {
    /// Starts `process` (OCI JSON) as `exec` in `container`, on a terminal or not, with an input or with none; unless that
    /// is given up before, with a reason.
    ///
    /// # Errors
    /// Why it cannot be executed; nothing of it is left then, or will be.
    pub(crate) async fn start(
        shim: &Shim,
        (container, exec): (&str, &str),
        bundle: &Path,
        process: Vec<u8>,
        (terminal, stdin): (bool, bool),
        given_up: impl Future<Output = Error>,
    ) -> Result<Self, Error> {
        let input = stdin.then(|| Fifo::make(bundle, exec, "i")).transpose()?;
        // There also when the client wants no output, which is dropped then: it is what ties the command to us.
        let (output, stdout) = Fifo::readable(bundle, exec, "o")?;
        let (errors, stderr) = (!terminal).then(|| Fifo::readable(bundle, exec, "e")).transpose()?.unzip();
        let streams = Streams {
            terminal,
            stdin: input.as_ref().map(Fifo::path).unwrap_or_default(),
            stdout: output.tied_uri(shim),
            stderr: errors.as_ref().map(|fifo| fifo.tied_uri(shim)).unwrap_or_default(),
        };
        // Their names tell the next daemon of it.
        let fifos = [Some(output), errors].into_iter().flatten().collect();
        let asked = Asked::new(shim, (container, exec), fifos);
        let beginning = begin(shim.clone(), container.to_owned(), exec.to_owned(), process, streams, input);
        let (asked, stdin) = asked.begin(Box::pin(beginning), given_up).await?;
        Ok(Self { asked, stdin, stdout, stderr })
    }

    /// Waits for its end, with its exit code.
    pub(crate) fn wait(&self) -> impl Future<Output = Result<u32, Error>> + Send + use<> {
        let Asked { shim, container, exec, .. } = &self.asked;
        let (shim, container, exec) = (shim.clone(), container.clone(), exec.clone());
        async move { shim.wait(&container, &exec).await.map(|exit| exit.status) }
    }

    /// Its terminal, if it has one.
    pub(crate) fn terminal(&self) -> Terminal {
        let Asked { shim, container, exec, .. } = &self.asked;
        Terminal { shim: shim.clone(), container: container.clone(), exec: exec.clone() }
    }

    /// Lets it be forgotten, once it has ended or, with `by_force`, been killed.
    pub(crate) async fn end(self, by_force: bool) {
        let Self { asked, stdin, stdout, stderr } = self;
        // A terminal's last output has its reader's time: there is none any more.
        drop((stdin, stdout, stderr));
        step!("exec_stream::shim-delete", asked.end(by_force).await);
    }
}

/// Gives the process and, once it runs, our end of its input.
async fn begin(
    shim: Shim,
    container: String,
    exec: String,
    process: Vec<u8>,
    streams: Streams,
    input: Option<Fifo>,
) -> Result<Option<pipe::Sender>, NotBegun> {
    let made = step!("exec_stream::shim-exec", shim.exec(&container, &exec, process, streams).await);
    made.map_err(NotBegun::making)?;
    let started = step!("exec_stream::shim-start", shim.start(&container, &exec).await);
    started.map_err(NotBegun::starting)?;
    let Some(input) = input else { return Ok(None) };
    let stdin = input.writer().map_err(NotBegun::started)?;
    match shim.close_stdin(&container, &exec).await {
        Err(error) if !error.is_not_found() => Err(NotBegun::started(error)),
        _ => Ok(stdin),
    }
}
