//! A process's stdin, stdout and stderr: opened before it exists, kept while it lives, drained when it is dead.

mod clients;
mod fifo;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
pub(crate) mod log;
mod pump;
mod target;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use rustix::termios::Winsize;
use tokio::io::Interest;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{timeout, timeout_at};

pub(crate) use self::clients::{Attached, End};
use self::clients::{Clients, Feed};
use self::log::{SharedLog, Stream};
use self::pump::{Source, Stage};
use self::target::Target;
use crate::runtime::Stdio;
use crate::{step, sys};

/// How long what a dead process wrote may take to reach its log or its client.
const DRAIN: Duration = Duration::from_secs(2);
/// How long a pump that must stop may take for it.
const STOP: Duration = Duration::from_millis(500);

/// Why a stream cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The string means nothing.
    #[error("{stream}: {reason}")]
    Target { stream: &'static str, reason: String },
    /// The file, FIFO or pipe it names.
    #[error("open {stream} at {path}")]
    Open { stream: &'static str, path: PathBuf, source: io::Error },
    /// A descriptor of ours.
    #[error("make {what}")]
    Make { what: &'static str, source: io::Error },
}

/// The strings of Task's `Create` and `Exec`.
#[derive(Debug)]
pub(crate) struct Names<'a> {
    pub(crate) terminal: bool,
    pub(crate) stdin: &'a str,
    pub(crate) stdout: &'a str,
    pub(crate) stderr: &'a str,
}

/// The shim's side of a process that does not exist yet.
#[derive(Debug, Default)]
pub(crate) struct Plumbing {
    /// Pipes to copy to attached clients and, but for a container without one, to a log.
    pub(crate) logged: Vec<(OwnedFd, Option<SharedLog>, Stream)>,
    /// Where a terminal's output goes, and what is typed into it.
    screen: Option<Screen>,
    keyboard: Option<OwnedFd>,
    /// Clients type: into this pipe, or on the terminal without one. And whether only the first may.
    typed: Option<(Option<OwnedFd>, bool)>,
    stdin: Option<OwnedFd>,
    readers: Vec<OwnedFd>,
    ties: Vec<OwnedFd>,
    pub(crate) logs: Vec<(PathBuf, SharedLog)>,
}

#[derive(Debug)]
enum Screen {
    Log(Option<SharedLog>),
    Fifo(OwnedFd),
}

/// Opens everything; gives what the process gets and what the shim keeps.
///
/// # Errors
/// The stream, the path and the cause.
pub(crate) fn open(names: &Names<'_>) -> Result<(Stdio, Plumbing), Error> {
    let parse = |stream, text| target::parse(text).map_err(|reason| Error::Target { stream, reason });
    let mut ours = Plumbing::default();
    let stdin = parse("stdin", names.stdin)?;
    let stdout = parse("stdout", names.stdout)?;
    let stdio = if names.terminal {
        ours.keyboard = ours.keyboard(stdin)?;
        ours.screen = ours.screen(stdout)?;
        Stdio::Terminal
    } else {
        Stdio::Pipes {
            stdin: ours.input(stdin)?,
            stdout: ours.output("stdout", stdout)?,
            stderr: ours.output("stderr", parse("stderr", names.stderr)?)?,
        }
    };
    Ok((stdio, ours))
}

impl Plumbing {
    fn input(&mut self, target: Target) -> Result<OwnedFd, Error> {
        match target {
            Target::Nothing => nothing(),
            Target::Fifo { path, .. } => {
                let (process, hold) = fifo::for_input(&path).map_err(opening("stdin", &path))?;
                self.stdin = Some(hold);
                Ok(process)
            }
            Target::Clients { once } => {
                let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(making("a pipe"))?;
                rustix::fs::fcntl_setfl(&write, OFlags::NONBLOCK).map_err(making("a pipe"))?;
                self.typed = Some((Some(write), once));
                Ok(read)
            }
            Target::Log { .. } => Err(log_as_stdin()),
        }
    }

    fn output(&mut self, stream: &'static str, target: Target) -> Result<OwnedFd, Error> {
        match target {
            Target::Nothing => nothing(),
            Target::Fifo { path, tied: true } => {
                let (process, tie) = fifo::for_tied_output(&path).map_err(opening(stream, &path))?;
                self.ties.push(tie);
                Ok(process)
            }
            Target::Fifo { path, tied: false } => {
                let (process, reader) = fifo::for_output(&path).map_err(opening(stream, &path))?;
                self.readers.push(reader);
                Ok(process)
            }
            Target::Log { path, stream: tag } => {
                let log = self.log(stream, path)?;
                self.logged(Some(log), tag)
            }
            Target::Clients { .. } => {
                self.logged(None, if stream == "stderr" { Stream::Stderr } else { Stream::Stdout })
            }
        }
    }

    fn logged(&mut self, log: Option<SharedLog>, stream: Stream) -> Result<OwnedFd, Error> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(making("a pipe"))?;
        rustix::fs::fcntl_setfl(&read, OFlags::NONBLOCK).map_err(making("a pipe"))?;
        self.logged.push((read, log, stream));
        Ok(write)
    }

    fn keyboard(&mut self, target: Target) -> Result<Option<OwnedFd>, Error> {
        match target {
            Target::Nothing => Ok(None),
            Target::Fifo { path, .. } => {
                let (read, hold) = fifo::for_input(&path).map_err(opening("stdin", &path))?;
                rustix::fs::fcntl_setfl(&read, OFlags::NONBLOCK).map_err(making("stdin"))?;
                self.stdin = Some(hold);
                Ok(Some(read))
            }
            Target::Clients { once } => {
                self.typed = Some((None, once));
                Ok(None)
            }
            Target::Log { .. } => Err(log_as_stdin()),
        }
    }

    fn screen(&mut self, target: Target) -> Result<Option<Screen>, Error> {
        match target {
            Target::Nothing => Ok(None),
            Target::Log { path, .. } => Ok(Some(Screen::Log(Some(self.log("stdout", path)?)))),
            Target::Clients { .. } => Ok(Some(Screen::Log(None))),
            fifo @ Target::Fifo { .. } => {
                let write = self.output("stdout", fifo)?;
                rustix::fs::fcntl_setfl(&write, OFlags::NONBLOCK).map_err(making("stdout"))?;
                Ok(Some(Screen::Fifo(write)))
            }
        }
    }

    /// The log at `path`: one, also for two streams.
    fn log(&mut self, stream: &'static str, path: PathBuf) -> Result<SharedLog, Error> {
        if let Some((_, log)) = self.logs.iter().find(|(known, _)| *known == path) {
            return Ok(log.clone());
        }
        let log = step!("create::log-open", SharedLog::open(&path)).map_err(opening(stream, &path))?;
        self.logs.push((path, log.clone()));
        Ok(log)
    }

    /// Begins to move bytes. `console` is the master of a process with a terminal.
    ///
    /// # Errors
    /// A descriptor that cannot be watched.
    pub(crate) fn run(self, console: Option<OwnedFd>) -> Result<Io, Error> {
        let (stages, told) = watch::channel(Stage::Alive);
        let console = console.map(nonblocking).transpose()?;
        let feed = match self.typed {
            None => None,
            Some((Some(pipe), once)) => Some(Feed::new(watched(pipe)?, once)),
            // A terminal knows no end of its input.
            Some((None, _)) => console.clone().map(|console| Feed::new(console, false)),
        };
        let clients = Arc::new(Clients::new(feed));
        let mut io = Io {
            stages,
            pumps: Vec::new(),
            screen: None,
            console,
            clients: clients.clone(),
            attachable: !self.logged.is_empty() || matches!(self.screen, Some(Screen::Log(_))),
            stdin: self.stdin,
            readers: self.readers,
            ties: self.ties,
            logs: self.logs,
        };
        for (pipe, log, stream) in self.logged {
            io.pumps.push(io.output(watched(pipe)?, log, stream, &told));
        }
        if let Some(console) = &io.console {
            match self.screen {
                Some(Screen::Log(log)) => io.pumps.push(io.output(console.clone(), log, Stream::Stdout, &told)),
                Some(Screen::Fifo(fifo)) => {
                    let pump = tokio::spawn(pump::copy(console.clone(), watched(fifo)?, told.clone()));
                    match io.ties.is_empty() {
                        true => io.pumps.push(pump),
                        false => io.screen = Some(pump),
                    }
                }
                None => io.pumps.push(tokio::spawn(pump::discard(console.clone(), told.clone()))),
            }
            if let Some(keyboard) = self.keyboard {
                // Not among the pumps: nothing that is typed is waited for when the process is dead.
                tokio::spawn(pump::copy(watched(keyboard)?, console.clone(), told));
            }
        }
        Ok(io)
    }
}

/// The shim's side of a living process.
#[derive(Debug)]
pub(crate) struct Io {
    stages: watch::Sender<Stage>,
    pumps: Vec<JoinHandle<()>>,
    /// Copies a terminal to a reader whose end ends it.
    screen: Option<JoinHandle<()>>,
    console: Option<Source>,
    clients: Arc<Clients>,
    /// Its output comes by here.
    attachable: bool,
    stdin: Option<OwnedFd>,
    readers: Vec<OwnedFd>,
    ties: Vec<OwnedFd>,
    logs: Vec<(PathBuf, SharedLog)>,
}

impl Io {
    /// Copies output to where it goes.
    fn output(&self, from: Source, log: Option<SharedLog>, stream: Stream, stages: &pump::Stages) -> JoinHandle<()> {
        let clients = self.clients.clone();
        match log {
            Some(log) => tokio::spawn(pump::to_log(from, log, clients, stream, stages.clone())),
            None => tokio::spawn(pump::to_clients(from, clients, stream, stages.clone())),
        }
    }

    /// Attaches a client by its FIFOs; `None` to a process whose output does not come by here.
    ///
    /// # Errors
    /// A FIFO that cannot be opened, a client that types where nobody reads, too many clients.
    pub(crate) fn attach(&self, names: &Names<'_>) -> Result<Option<Attached>, Error> {
        self.attachable.then(|| clients::attach(&self.clients, names)).transpose()
    }

    /// Resolves when every client of a process with tied FIFOs is gone; `None` for one without. Drop it when the
    /// process is dead: until then its FIFOs are not at their end.
    pub(crate) fn clients_gone(&mut self) -> Option<impl Future<Output = ()> + Send + use<>> {
        let ties = std::mem::take(&mut self.ties);
        (!ties.is_empty()).then(|| fifo::readers_gone(ties))
    }

    /// Lets go of everything but the log. The future waits until what the dead process wrote has arrived: for a bounded
    /// time, or, from a terminal to a tied FIFO, for as long as there is a reader.
    pub(crate) fn drain(&mut self) -> impl Future<Output = ()> + Send + use<> {
        self.stages.send_replace(Stage::Dead);
        self.clients.stop_typing();
        self.console = None;
        self.stdin = None;
        self.readers.clear();
        let pumps = std::mem::take(&mut self.pumps);
        let screen = self.screen.take();
        let stages = self.stages.clone();
        let clients = self.clients.clone();
        async move {
            let deadline = Instant::now() + DRAIN;
            for mut pump in pumps {
                if timeout_at(deadline.into(), &mut pump).await.is_ok() {
                    continue;
                }
                stages.send_replace(Stage::Stop);
                if timeout(STOP, &mut pump).await.is_err() {
                    pump.abort();
                }
            }
            if let Some(screen) = screen {
                // What a dead process has left in its terminal has an end, and a reader who goes ends it sooner.
                let _ = screen.await;
            }
            // Also for what is typed, which nobody waits for.
            stages.send_replace(Stage::Stop);
            clients.end();
        }
    }

    /// See `berth.shim.v1.Shim/ReopenLog`. Returns the lines dropped so far.
    ///
    /// # Errors
    /// The path that could not be opened; that log goes on in its old file.
    pub(crate) fn reopen_logs(&self) -> impl Future<Output = Result<u64, Error>> + Send + use<> {
        let reopener = self.reopener();
        async move { reopener.reopen().await }
    }

    /// Reopens the logs from elsewhere.
    pub(crate) fn reopener(&self) -> Reopener {
        Reopener(self.logs.clone())
    }

    /// Waits until every stream has come to its end by itself. Who gives up waiting can still `drain`: a pump that was
    /// waited for to its end is not among the others any more, since it may not be asked again.
    pub(crate) async fn copied(&mut self) {
        while let Some(pump) = self.pumps.last_mut() {
            // One that panicked has nothing more to copy.
            let _ = pump.await;
            self.pumps.pop();
        }
    }

    /// Lets the process see the end of its input once the client has closed its side too.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Tells the terminal its size, in characters. False without a terminal.
    ///
    /// # Errors
    /// What the ioctl answers.
    pub(crate) fn resize(&self, columns: u16, rows: u16) -> io::Result<bool> {
        let Some(console) = &self.console else {
            return Ok(false);
        };
        let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(console.get_ref(), size)?;
        Ok(true)
    }
}

/// The logs of a process.
#[derive(Clone, Debug)]
pub(crate) struct Reopener(Vec<(PathBuf, SharedLog)>);

impl Reopener {
    /// See `Io::reopen_logs`.
    pub(crate) async fn reopen(&self) -> Result<u64, Error> {
        let mut dropped = 0;
        for (path, log) in &self.0 {
            dropped += log.reopen().await.map_err(opening("log", path))?;
        }
        Ok(dropped)
    }
}

fn nothing() -> Result<OwnedFd, Error> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(making("/dev/null"))
}

fn log_as_stdin() -> Error {
    Error::Target { stream: "stdin", reason: "a log cannot be read from".into() }
}

fn opening(stream: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::Open { stream, path: path.to_owned(), source }
}

fn making<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> Error {
    move |source| Error::Make { what, source: source.into() }
}

fn nonblocking(fd: OwnedFd) -> Result<Source, Error> {
    let flags = rustix::fs::fcntl_getfl(fd.as_fd()).map_err(making("a terminal"))?;
    rustix::fs::fcntl_setfl(fd.as_fd(), flags | OFlags::NONBLOCK).map_err(making("a terminal"))?;
    watched(fd)
}

fn watched(fd: OwnedFd) -> Result<Source, Error> {
    let interest = Interest::READABLE | Interest::WRITABLE;
    sys::watch(fd, interest).map(Arc::new).map_err(making("a watch on a descriptor"))
}
