//! The server: what the child of `start` is for as long as its container is known.

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use tokio::signal::unix::{SignalKind, signal};
use ttrpc::r#async::Server;

use crate::container::Shim;
use crate::events::Events;
use crate::runtime::INHERITED_OOM_SCORE_ADJ;
use crate::{reaper, say, service, sys};

/// For the answer to `Shutdown` to leave the socket.
const FAREWELL: Duration = Duration::from_millis(20);
/// Source: the value containerd's shims aim at.
const OOM_SCORE_ADJ: &str = "-999";
/// Name of the process: as much of the binary's as the kernel keeps.
const NAME: &std::ffi::CStr = c"containerd-shim";
/// What went wrong in a shim's life, in its bundle.
const LOG_FILE: &str = "shim.log";

/// Makes a daemon of a process that was just forked: a session of its own, nothing of the caller's, output to
/// `shim.log` in the working directory.
///
/// # Errors
/// What the kernel answers to a step that the server cannot do without.
pub(crate) fn settle_in() -> io::Result<()> {
    rustix::process::setsid()?;
    // Files are created with the mode that is asked for, but never for everybody to write.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let nothing = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let log = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC;
    // A shim that cannot say what is wrong serves its container all the same.
    let log = rustix::fs::open(LOG_FILE, log, Mode::from_raw_mode(0o600));
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(&nothing)?;
    rustix::stdio::dup2_stderr(log.as_ref().unwrap_or(&nothing))?;
    protect();
    // Executed by a descriptor its name could be a number.
    rustix::thread::set_name(NAME)?;
    // What it clones begins like it: no process of a container sees a moment in which it may look at the memory, the
    // descriptors or the binary of one on its way in. exec undoes it. Last, since it takes /proc/self from non-roots.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// Not killed for memory before its container, if the host lets us: without CAP_SYS_RESOURCE the shim has what the
/// daemon has.
fn protect() {
    const FILE: &str = "/proc/self/oom_score_adj";
    let before = std::fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse().ok());
    if let (Some(before), Ok(())) = (before, std::fs::write(FILE, OOM_SCORE_ADJ)) {
        // Its children do not inherit the privilege. Set once: this runs once.
        let _ = INHERITED_OOM_SCORE_ADJ.set(before);
    }
}

/// Serves until `Shutdown`. With a namespace, containerd is told what happens in it.
///
/// # Errors
/// What the runtime or the server cannot be made for.
pub(crate) fn serve(listener: UnixListener, namespace: Option<&str>) -> io::Result<()> {
    // One thread but for logs' (`io::log`): exec enters a pid namespace around a clone, and meanwhile no thread can be
    // made, which is this one's to do.
    sys::one_arena();
    // Few events at a time: the buffer for them is there for as long as the shim.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_io_events_per_tick(32).build()?;
    runtime.block_on(run(listener, namespace))
}

async fn run(listener: UnixListener, namespace: Option<&str>) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    // What ends a session or a service must not end its containers: taken, and never looked at.
    let _deaf = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
    let shim = Arc::new(Shim::default());
    let reaper = tokio::spawn(reaper::run(reaper::listen()?, shim.clone()));
    let tidy = shim.clone();
    let tidy = tokio::spawn(async move { tidy.tidy().await });
    let events = namespace.map(Events::begin).unwrap_or_default();
    let mut server =
        Server::new().add_listener(listener.into()).register_service(service::services(shim.clone(), events.clone()));
    server.start().await.map_err(io::Error::other)?;
    shim.done.notified().await;
    events.close().await;
    tokio::time::sleep(FAREWELL).await;
    reaper.abort();
    tidy.abort();
    say!("shut down");
    Ok(())
}
