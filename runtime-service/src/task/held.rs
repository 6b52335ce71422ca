//! A command in a running container whose streams are in our hands: what Exec needs.

use std::path::Path;
use std::time::Duration;

use tokio::net::unix::pipe;

use super::client::Streams;
use super::exec::{forgotten, kill};
use super::fifo::Fifo;
use super::{Error, Shim};

/// How long the shim may take to end a command that it is told to forget.
const END_WAIT: Duration = Duration::from_secs(10);

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
    shim: Shim,
    /// Their names tell the next daemon of it.
    _fifos: Vec<Fifo>,
    container: String,
    exec: String,
    /// Until the client's end of input.
    pub(crate) stdin: Option<pipe::Sender>,
    pub(crate) stdout: pipe::Receiver,
    /// A terminal has one stream.
    pub(crate) stderr: Option<pipe::Receiver>,
}

impl Held {
    /// Starts `process` (OCI JSON) as `exec` in `container`, on a terminal or not, with an input or with none.
    ///
    /// # Errors
    /// Why it cannot be executed; nothing of it is left then.
    pub(crate) async fn start(
        shim: &Shim,
        (container, exec): (&str, &str),
        bundle: &Path,
        process: Vec<u8>,
        (terminal, stdin): (bool, bool),
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
        step!("exec_stream::shim-exec", shim.exec(container, exec, process, streams).await)?;
        let mut held = Self {
            shim: shim.clone(),
            _fifos: [Some(output), errors].into_iter().flatten().collect(),
            container: container.into(),
            exec: exec.into(),
            stdin: None,
            stdout,
            stderr,
        };
        match held.run(input).await {
            Ok(()) => Ok(held),
            Err(error) => {
                held.end(true).await;
                Err(error)
            }
        }
    }

    async fn run(&mut self, input: Option<Fifo>) -> Result<(), Error> {
        step!("exec_stream::shim-start", self.shim.start(&self.container, &self.exec).await)?;
        if let Some(input) = input {
            self.stdin = input.writer()?;
            match self.shim.close_stdin(&self.container, &self.exec).await {
                Err(error) if error.is_not_found() => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Waits for its end, with its exit code.
    pub(crate) fn wait(&self) -> impl Future<Output = Result<u32, Error>> + Send + use<> {
        let (shim, container, exec) = (self.shim.clone(), self.container.clone(), self.exec.clone());
        async move { shim.wait(&container, &exec).await.map(|exit| exit.status) }
    }

    /// Its terminal, if it has one.
    pub(crate) fn terminal(&self) -> Terminal {
        Terminal { shim: self.shim.clone(), container: self.container.clone(), exec: self.exec.clone() }
    }

    /// Lets it be forgotten, once it has ended or, with `by_force`, been killed.
    pub(crate) async fn end(self, by_force: bool) {
        if by_force {
            kill(&self.shim, &self.container, &self.exec).await;
        }
        let deleted = tokio::time::timeout(END_WAIT, self.shim.delete(&self.container, &self.exec));
        if let Ok(deleted) = step!("exec_stream::shim-delete", deleted.await) {
            forgotten(&self.container, &self.exec, deleted);
        }
    }
}
