//! The daemon's front door: roots, lock, recovery, socket, layers, end.

mod drain;
mod layers;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use berth_api::cri::runtime_service_server::RuntimeServiceServer;
use berth_api::debug::debug_server::DebugServer;
use berth_image_service::Images;
use futures::FutureExt;
use futures::future::{Either, select};
use nix::fcntl::{Flock, FlockArg};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::cri::{NodeStatus, Service};
use crate::host::{AppArmor, Host, Parents, SeLinux, apparmor, selinux, systemd};
use crate::inflight::{self, Calls};
use crate::ledger::{Ledger, Roots, boot_id};
use crate::metrics::Metrics;
use crate::network::{BuiltIn, Networks};
use crate::pod::{Events, Shared};
use crate::pods::Pods;
use crate::sandbox::DriverChoice;
use crate::spec::Driver;
use crate::stats::Stats;
use crate::task::foreign::EventSink;

use drain::Drain;
pub(crate) use layers::subject;

/// The daemon's socket, roots and limits.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `unix:///PATH`.
    pub listen: String,
    /// Group that may use the socket; empty: root only.
    pub group: String,
    /// What survives a boot.
    pub data_root: PathBuf,
    /// Kernel objects and their record.
    pub run_root: PathBuf,
    /// Calls in progress at once, and as many that only read; more wait.
    pub max_in_flight: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "unix:///run/berth/berth.sock".into(),
            group: String::new(),
            data_root: "/var/lib/berth".into(),
            run_root: "/run/berth".into(),
            max_in_flight: 512,
        }
    }
}

/// Largest message either way, in bytes. Source: the kubelet's and crictl's own limit.
const MESSAGE_MAX: usize = 16 << 20;

/// How long clients may take to read their last answer before their connections are closed.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Six hex digits that tell the daemons of one host apart. Source: ARCHITECTURE.md, "Directories".
pub(crate) fn tag(data_root: &Path) -> String {
    // Of where it really is, so that `berthd check` finds the daemon's.
    let data_root = &data_root.canonicalize().unwrap_or_else(|_| data_root.to_owned());
    hex::encode(Sha256::digest(data_root.as_os_str().as_encoded_bytes()))[..6].to_owned()
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot begin: roots, lock, socket, image store, records.
pub async fn serve(config: crate::config::Config) -> anyhow::Result<()> {
    let mut config = config;
    // From the first moment: they must never do what the kernel does to who does not listen.
    let mut listening = Signals::listen().context("listen for signals")?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    for (name, root) in [("data", &mut config.serve.data_root), ("run", &mut config.serve.run_root)] {
        private_dir(root).with_context(|| format!("make the {name} root {}", root.display()))?;
        *root = root.canonicalize().with_context(|| format!("{name} root {}", root.display()))?;
    }
    let _lock = lock(&config.serve.data_root)?;
    let metrics = Metrics::new().context("make the metrics")?;
    let socket = socket_path(&config.serve.listen)?;
    let listener = bind(&socket, &config.serve.group)?;
    let errands = crate::errands::settle(&config.serve.run_root).await;
    errands.context("wait for what an earlier daemon started")?;
    let shared = Arc::new(shared(config.clone(), metrics.clone(), socket.clone()).await?);
    if !shared.host.withheld.is_empty() {
        tracing::warn!(
            withheld = shared.host.withheld.join(", "),
            "the host withholds these from every container; what asks for them gets less, by name it is refused"
        );
    }
    if apparmor::is_on() {
        let shared = shared.clone();
        tokio::spawn(async move {
            if let Err(problem) = shared.apparmor.load_default().await {
                tracing::warn!(problem, "AppArmor is on, but berth's own profile cannot be loaded");
            }
        });
    }
    if let selinux::State::NoTypes(problem) = shared.selinux.state() {
        tracing::warn!(problem, "SELinux is on, but containers run without labels of their own");
    }
    let events = match config.runtimes.is_empty() {
        true => None,
        false => {
            let sink = EventSink::listen(&config.serve.run_root).await;
            Some(sink.context("listen for the events of other runtimes' shims")?)
        }
    };
    let sync = tokio::spawn(shared.ledger.clone().sync_loop());
    let pods = Pods::new(shared.clone());
    let calls = Calls::default();
    let on_request = tokio::spawn(log_inflight(listening.usr1, calls.clone(), pods.clone()));
    // Nobody is answered before everything that was is known: the socket accepts, and the calls wait.
    pods.recover().await.context("recover what an earlier daemon left")?;
    let metrics_task = serve_metrics(&config.metrics, metrics.clone()).await?;
    let (streaming, streams) = crate::streaming::Server::bind(&config.streaming).await.context("[streaming]")?;
    let mut streams = tokio::spawn(streams);
    let images = &shared.images;
    let stats = Stats::new(shared.clone());
    let sampling = tokio::spawn(stats.clone().keep_sampling(pods.clone()));
    let runtime = RuntimeServiceServer::new(Service {
        pods: pods.clone(),
        node: NodeStatus,
        stats,
        streaming: streaming.clone(),
    })
    .max_decoding_message_size(MESSAGE_MAX)
    .max_encoding_message_size(MESSAGE_MAX);
    let drain = Drain::new();
    let debug = DebugServer::new(inflight::Service { calls: calls.clone(), pods: pods.clone() });
    let server = Server::builder()
        .layer(layers::Trace::layer(metrics, calls.clone()))
        .layer(drain.layer())
        .layer(layers::Admission::layer(config.serve.max_in_flight))
        .add_service(runtime)
        .add_service(images.image_service())
        .add_service(images.pull_service())
        .add_service(debug);
    let (begin_drain, drained) = tokio::sync::oneshot::channel::<()>();
    let serving = server.serve_with_incoming_shutdown(UnixListenerStream::new(listener), async {
        let _ = drained.await;
    });
    let mut serving = tokio::spawn(serving);
    tracing::info!(socket = %socket.display(), data = %config.serve.data_root.display(), run = %config.serve.run_root.display(), version = env!("CARGO_PKG_VERSION"), "ready");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let watchdog = tokio::spawn(watchdog());
    tokio::select! {
        () = listening.end.told() => {}
        ended = &mut serving => bail!("the server ended by itself: {ended:?}"),
    }
    tracing::info!("ending; containers go on without the daemon");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    streaming.end();
    let again = listening.end.told().shared();
    tokio::join!(drain.finish(&calls, &pods, again.clone()), async {
        // Bounded by itself.
        if let Either::Right(((), ending)) = select(&mut streams, again.clone()).await {
            streaming.hurry();
            let _ = ending.await;
        }
    });
    shared.events.close();
    let _ = begin_drain.send(());
    let _ = tokio::time::timeout(LAST_WORDS, serving).await;
    for task in [sync, watchdog, on_request, sampling, streams].into_iter().chain(metrics_task) {
        task.abort();
    }
    if let Some(events) = events {
        events.end().await;
    }
    let ledger = shared.ledger.clone();
    let _ = tokio::task::spawn_blocking(move || ledger.sync()).await;
    let _ = fs::remove_file(&socket);
    Ok(())
}

async fn shared(config: crate::config::Config, metrics: Metrics, socket: PathBuf) -> anyhow::Result<Shared> {
    let roots = Roots { data: config.serve.data_root.clone(), run: config.serve.run_root.clone() };
    let tag = tag(&roots.data);
    let images = Images::open(berth_image_service::Config {
        root: roots.data.join("images"),
        rootfs_dir: roots.data.join("rootfs"),
        ..config.images.clone()
    });
    let images = images.await.context("open the image store")?;
    let bundled = config.shim.places().into_iter().map(|dir| dir.join("cni")).collect();
    let builtin = BuiltIn::new(&config.network, &tag, &roots.data);
    let networks = Networks::new(config.network.clone(), bundled, builtin, roots.run.clone(), metrics.clone());
    let host = Host::probe().context("look at the host")?;
    host.open_files.take_all().context("raise the soft limit of open files to the hard one")?;
    let cgroup_driver = cgroup_driver(config.sandbox.cgroup_driver, systemd::obstacle(&host.cgroups))?;
    let cgroup_root = match (config.sandbox.cgroup_root.as_str(), cgroup_driver) {
        ("", _) => bail!("[sandbox] cgroup_root is empty"),
        ("auto", Driver::Cgroupfs) => format!("/berth-{tag}"),
        ("auto", Driver::Systemd) => format!("/berth.slice/berth-{tag}.slice"),
        (root, driver) => driver.parent(root, "").map_err(|e| anyhow!("[sandbox] cgroup_root: {}", e.problem))?,
    };
    let apparmor = AppArmor::new(&roots.run);
    let selinux = SeLinux::new(selinux::state());
    let handlers = crate::task::Handlers::new(&config.runtimes, &roots.run);
    if config.runtimes.values().any(|runtime| runtime.sandbox_container) {
        let binary =
            config.shim.binary(crate::task::PAUSE).map_err(|problem| anyhow!("sandbox_container: {problem}"))?;
        let label = selinux.files();
        let made = crate::sandbox::make_pause_root(&roots.run, &binary, label.as_deref());
        made.map_err(|(path, error)| anyhow!("make what sandbox containers run, {}: {error}", path.display()))?;
    }
    let parents = Parents::open(host.cgroups.clone(), cgroup_root.clone(), roots.run.join("cgroups"));
    Ok(Shared {
        parents: parents.context("read which cgroups an earlier daemon made")?,
        ledger: Ledger::new(roots),
        events: Events::new(),
        images,
        networks,
        metrics,
        host,
        boot_id: boot_id().context("read the boot id")?,
        cgroup_driver,
        cgroup_root,
        socket,
        apparmor,
        selinux,
        shim_binaries: config.shim.clone(),
        sealed: crate::task::Sealed::new(&config.shim, config.serve.run_root.join("empty")),
        handlers: handlers.map_err(|problem| anyhow!(problem))?,
        features: crate::task::KnownFeatures::default(),
        config,
    })
}

pub(crate) fn cgroup_driver(choice: DriverChoice, obstacle: Option<&str>) -> anyhow::Result<Driver> {
    match (choice, obstacle) {
        (DriverChoice::Cgroupfs, _) | (DriverChoice::Auto, Some(_)) => Ok(Driver::Cgroupfs),
        (DriverChoice::Systemd | DriverChoice::Auto, None) => Ok(Driver::Systemd),
        (DriverChoice::Systemd, Some(obstacle)) => bail!("[sandbox] cgroup_driver = \"systemd\": {obstacle}"),
    }
}

/// One that is there keeps its owner and gets its mode tightened: others must not read what pods were given.
fn private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o711).create(path)?;
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o066 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(mode & !0o066))?;
    }
    Ok(())
}

/// How long a daemon that was killed may take to let go of its lock and its socket: the kernel closes its descriptors
/// after it has ceased to be seen.
const PREDECESSOR: Duration = Duration::from_secs(3);

/// Tries until it succeeds or a predecessor would be gone; the last failure is the answer.
fn after_predecessor<T, E>(mut attempt: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let begun = Instant::now();
    loop {
        match attempt() {
            Err(_) if begun.elapsed() < PREDECESSOR => std::thread::sleep(Duration::from_millis(10)),
            result => return result,
        }
    }
}

/// One daemon per data root.
fn lock(data: &Path) -> anyhow::Result<Flock<fs::File>> {
    let path = data.join("lock");
    let open = || {
        let file = fs::File::options().create(true).truncate(false).write(true).open(&path);
        file.with_context(|| format!("open {}", path.display()))
    };
    after_predecessor(|| {
        Flock::lock(open()?, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
            anyhow!("{} is locked ({errno}): another berthd runs on this data root", path.display())
        })
    })
}

fn socket_path(listen: &str) -> anyhow::Result<PathBuf> {
    match listen.strip_prefix("unix://") {
        Some(path) if path.starts_with('/') => Ok(path.into()),
        _ => bail!("listen address {listen:?} is not unix:///PATH"),
    }
}

/// The lock on the data root is ours, so a socket that nobody answers on is a dead daemon's.
fn bind(path: &Path, group: &str) -> anyhow::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    after_predecessor(|| match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(anyhow!("{} is answered by another process; choose another --listen", path.display())),
        Err(_) => Ok(()),
    })?;
    match fs::symlink_metadata(path) {
        Ok(meta) if std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()) => {
            fs::remove_file(path).with_context(|| format!("remove the old socket {}", path.display()))?;
        }
        Ok(_) => bail!("{} is there and is no socket", path.display()),
        Err(_) => {}
    }
    // Born without rights for others: a chmod afterwards would leave a moment in between.
    let old = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    nix::sys::stat::umask(old);
    let listener = listener.with_context(|| format!("listen at {}", path.display()))?;
    if !group.is_empty() {
        let found = nix::unistd::Group::from_name(group).with_context(|| format!("look up group {group:?}"))?;
        let gid = found.with_context(|| format!("[serve] group: there is no group {group:?}"))?.gid;
        nix::unistd::chown(path, None, Some(gid))
            .with_context(|| format!("give {} to group {group}", path.display()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o660)).context("let the group use the socket")?;
    }
    let _ = listener.as_fd();
    Ok(listener)
}

/// How often the address of the metrics is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Another process has the address, or no device has it yet. Pods matter more than figures of them: that is waited for.
fn may_be_free_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)
}

async fn listen_at(address: SocketAddr) -> io::Result<tokio::net::TcpListener> {
    tokio::net::TcpListener::bind(address).await
}

/// Listens there as soon as that can be.
async fn free(address: SocketAddr) -> tokio::net::TcpListener {
    loop {
        tokio::time::sleep(RETRY).await;
        if let Ok(listener) = listen_at(address).await {
            return listener;
        }
    }
}

async fn serve_metrics(
    config: &crate::metrics::Config,
    metrics: Metrics,
) -> anyhow::Result<Option<tokio::task::JoinHandle<()>>> {
    let address = config.address().with_context(|| format!("[metrics] listen {:?}", config.listen))?;
    let Some(address) = address else { return Ok(None) };
    let first = match listen_at(address).await {
        Err(error) if !may_be_free_later(&error) => {
            return Err(error).with_context(|| format!("[metrics] listen at {address} (set it to \"\" for none)"));
        }
        first => first,
    };
    Ok(Some(tokio::spawn(async move {
        let listener = match first {
            Ok(listener) => listener,
            Err(error) => {
                tracing::warn!(%address, %error, "[metrics] listen: no metrics until that is over; \"\" is for none");
                free(address).await
            }
        };
        if let Err(error) = metrics.serve(listener).await {
            tracing::error!(%error, "the metrics listener ended");
        }
    })))
}

/// What the daemon is told by signals.
struct Signals {
    end: EndSignals,
    usr1: Signal,
}

/// SIGTERM and SIGINT; and SIGHUP, which never ends the daemon.
struct EndSignals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        let end = EndSignals {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        };
        Ok(Self { end, usr1: signal(SignalKind::user_defined1())? })
    }
}

impl EndSignals {
    async fn told(&mut self) {
        loop {
            tokio::select! {
                _ = self.term.recv() => return,
                _ = self.int.recv() => return,
                _ = self.hup.recv() => tracing::info!("SIGHUP: nothing to reload; configuration is read at start, CNI when needed"),
            }
        }
    }
}

/// SIGUSR1: what is in progress goes into the log.
async fn log_inflight(mut asked: Signal, calls: Calls, pods: Pods) {
    while asked.recv().await.is_some() {
        calls.log(&pods);
    }
}

/// Tells systemd that the async workers still turn, at half the interval it asks for.
async fn watchdog() {
    let Some(interval) = sd_notify::watchdog_enabled() else { return };
    loop {
        tokio::time::sleep(interval / 2).await;
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_is_taken_is_waited_for() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
        let address = other.local_addr().expect("its address");
        assert!(may_be_free_later(&listen_at(address).await.expect_err("it is taken")));
        let waiting = tokio::spawn(free(address));
        drop(other);
        assert_eq!(waiting.await.expect("no panic").local_addr().expect("its address"), address);
    }

    #[test]
    fn systemds_driver_is_taken_where_it_can_be_and_refused_by_name_where_it_cannot() {
        use DriverChoice::{Auto, Cgroupfs, Systemd};
        for (choice, obstacle, driver) in [
            (Auto, None, Driver::Systemd),
            (Auto, Some("no"), Driver::Cgroupfs),
            (Cgroupfs, None, Driver::Cgroupfs),
            (Systemd, None, Driver::Systemd),
        ] {
            assert_eq!(cgroup_driver(choice, obstacle).expect("a driver"), driver, "{choice:?} {obstacle:?}");
        }
        let error = cgroup_driver(Systemd, Some("systemd is not this host's init")).expect_err("refused").to_string();
        assert_eq!(error, "[sandbox] cgroup_driver = \"systemd\": systemd is not this host's init");
    }

    #[test]
    fn the_lock_of_a_daemon_that_is_going_is_waited_for_and_that_of_one_that_stays_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let held = lock(dir.path()).expect("nobody holds it");
        let going = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(held);
        });
        let held = lock(dir.path()).expect("its holder goes");
        going.join().expect("no panic");
        let told = lock(dir.path()).expect_err("its holder stays").to_string();
        assert!(told.contains("another berthd runs on this data root"), "{told}");
        drop(held);
    }
}
