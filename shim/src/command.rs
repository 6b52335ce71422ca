//! containerd's contract with a shim's binary: flags in Go's style, then `start` or `delete`, in the bundle. And `logger`,
//! for other shims.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use berth_api::shim::SOCKET_FILE;
use protobuf::Message;
use sha2::{Digest, Sha256};

use crate::cgroup::Cgroup;
use crate::error::text;
use crate::io::log::wall_clock;
use crate::lifecycle::End;
use crate::{failpoint, features, logger, record, runtime, sealed, serve, service, step, sys};

/// Where containerd looks for sockets, and where its shims keep them.
const SOCKETS: &str = "/run/containerd/s";
/// In the bundle: the socket's address, for `delete` and for a containerd before 2.0 that comes back.
const ADDRESS_FILE: &str = "address";
/// How long a killed process may take to lose its sockets.
const DYING: Duration = Duration::from_millis(100);
/// Status of a container whose shim died.
const KILLED: u32 = 128 + 9;

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Usage(String),
    #[error("{deed}")]
    Failed { deed: String, source: io::Error },
}

fn failed(deed: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Failed { deed: deed.into(), source }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Flags {
    namespace: String,
    id: String,
    /// containerd's socket.
    address: String,
    bundle: PathBuf,
    in_bundle: bool,
    verb: Verb,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Verb {
    #[default]
    None,
    Start,
    Delete,
    Version,
    Failpoints,
    Features,
    /// Of this bundle.
    Logger,
}

/// What `main` does with the arguments after the program's name.
pub fn run(args: impl Iterator<Item = String>) -> ExitCode {
    let result = parse(args).map_err(Error::Usage).and_then(|flags| match flags.verb {
        Verb::Start => start(&flags),
        Verb::Delete => delete(&flags),
        Verb::Version => print(&format!("containerd-shim-berth-v1 {}\n", env!("CARGO_PKG_VERSION"))),
        Verb::Failpoints => failpoints(),
        Verb::Features => features(&flags.bundle),
        Verb::Logger => {
            logger::run(&flags.bundle).map_err(failed(format!("log for the bundle {}", flags.bundle.display())))
        }
        Verb::None => Err(Error::Usage("start or delete is missing".into())),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            crate::say!("containerd-shim-berth-v1: {}", text(&error));
            ExitCode::FAILURE
        }
    }
}

/// `-flag value`, `-flag=value` and two dashes are one to Go.
fn parse(mut args: impl Iterator<Item = String>) -> Result<Flags, String> {
    let mut flags = Flags::default();
    while let Some(arg) = args.next() {
        let Some(flag) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
            flags.verb = match &*arg {
                "start" => Verb::Start,
                "delete" => Verb::Delete,
                "failpoints" => Verb::Failpoints,
                "features" => Verb::Features,
                "logger" => {
                    flags.bundle = args.next().ok_or("logger needs a bundle")?.into();
                    Verb::Logger
                }
                other => return Err(format!("unknown command {other:?}")),
            };
            continue;
        };
        let (name, given) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        match name {
            "debug" => {}
            "v" | "version" => flags.verb = Verb::Version,
            "in-bundle" => flags.in_bundle = true,
            "namespace" | "id" | "address" | "publish-binary" | "bundle" | "socket" => {
                let value = given.or_else(|| args.next()).ok_or_else(|| format!("-{name} needs a value"))?;
                match name {
                    "namespace" => flags.namespace = value,
                    "id" => flags.id = value,
                    "address" => flags.address = value,
                    "bundle" => flags.bundle = value.into(),
                    // Events go by ttrpc; the socket's place is the shim's to choose.
                    _ => {}
                }
            }
            other => return Err(format!("unknown flag -{other}")),
        }
    }
    Ok(flags)
}

/// Binds the socket, forks the server and prints where it is. One exec, one fork.
fn start(flags: &Flags) -> Result<(), Error> {
    // Before anything else: it may begin this program anew.
    sealed::ensure().map_err(failed("run from a read-only clone of the binary"))?;
    // What the caller left open by mistake would stay open for as long as the container lives.
    sys::close_all_but(&[]);
    let socket = if flags.in_bundle { PathBuf::from(SOCKET_FILE) } else { hashed_socket(flags) };
    let address = address(flags, &socket)?;
    let Some(listener) = step!("shim_start::bind", bind(&socket)).map_err(failed(format!("bind {socket:?}")))? else {
        return print(&answer(flags, &address));
    };
    if !flags.in_bundle {
        std::fs::write(ADDRESS_FILE, &address).map_err(failed("write the address"))?;
    }
    // No runtime before this: it would not survive the fork.
    match step!("shim_start::fork", sys::fork()).map_err(failed("fork the server"))? {
        sys::Fork::Parent => print(&answer(flags, &address)),
        sys::Fork::Child => {
            serve::settle_in().map_err(failed("settle in"))?;
            let served =
                serve::serve(listener, (!flags.in_bundle).then_some(&*flags.namespace)).map_err(failed("serve"));
            let _ = std::fs::remove_file(&socket);
            served
        }
    }
}

/// `None` when a shim listens there already.
fn bind(socket: &Path) -> io::Result<Option<UnixListener>> {
    if let Some(directory) = socket.parent().filter(|directory| directory.is_absolute()) {
        std::fs::create_dir_all(directory)?;
    }
    // Nobody but its owner may connect, from the first moment.
    let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(socket);
    rustix::process::umask(mask);
    match bound {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
        bound => return bound.map(Some),
    }
    if is_served(socket) {
        return Ok(None);
    }
    // Left by a shim that is dead.
    std::fs::remove_file(socket)?;
    bind(socket)
}

/// A shim that was just killed may still have its socket: then the connection ends at once instead of being accepted.
fn is_served(socket: &Path) -> bool {
    let Ok(mut connection) = UnixStream::connect(socket) else { return false };
    if connection.set_read_timeout(Some(DYING)).is_err() {
        return true;
    }
    // A living shim waits for a request. It says nothing by itself.
    let waited = connection.read(&mut [0]).map_err(|error| error.kind());
    matches!(waited, Err(io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
}

fn hashed_socket(flags: &Flags) -> PathBuf {
    let name = Sha256::digest(format!("{}/{}/{}", flags.address, flags.namespace, flags.id));
    let name: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
    Path::new(SOCKETS).join(name)
}

fn address(flags: &Flags, socket: &Path) -> Result<String, Error> {
    let path = match flags.in_bundle {
        true => std::env::current_dir().map_err(failed("read the working directory"))?.join(socket),
        false => socket.to_owned(),
    };
    Ok(format!("unix://{}", path.display()))
}

/// A plain address means version 2 of Task, the only answer that a containerd before 2.0 knows.
fn answer(flags: &Flags, address: &str) -> String {
    let newest = std::env::var("MAX_SHIM_VERSION").ok().and_then(|version| version.parse::<u32>().ok());
    if flags.in_bundle || newest.is_some_and(|version| version >= 3) {
        let answer = serde_json::json!({ "version": 3, "address": address, "protocol": "ttrpc" });
        return answer.to_string();
    }
    address.to_owned()
}

/// After a shim's death: ends what it left and says how its container ended.
fn delete(flags: &Flags) -> Result<(), Error> {
    let bundle = if flags.bundle.as_os_str().is_empty() { Path::new(".") } else { &flags.bundle };
    // First: what this build cannot read it touches in nothing.
    let recorded = record::read_exit(bundle).map_err(failed("read how the container ended"))?;
    match runtime::cgroup_of(bundle, &flags.id) {
        Ok(cgroup) => {
            cgroup.kill().map_err(io::Error::other).map_err(failed("kill the container"))?;
            remove(&cgroup)?;
        }
        // Then there was no container either.
        Err(error) => crate::say!("{}", text(&error)),
    }
    let _ = std::fs::remove_file(hashed_socket(flags));
    let end = match recorded {
        Some(record) => End { status: record.status, at: record.exited_at_ns },
        None => End { status: KILLED, at: wall_clock() },
    };
    let answer = service::delete_response(0, end).write_to_bytes().map_err(io::Error::other);
    write(&answer.map_err(failed("encode the answer"))?)
}

/// What was killed takes a moment to be gone.
fn remove(cgroup: &Cgroup) -> Result<(), Error> {
    let mut pause = Duration::from_millis(1);
    loop {
        match cgroup.remove() {
            Ok(()) => return Ok(()),
            Err(error) if pause.as_millis() > 1000 => {
                return Err(failed("remove the cgroup")(io::Error::other(error)));
            }
            Err(_) => std::thread::sleep(pause),
        }
        pause *= 2;
    }
}

fn failpoints() -> Result<(), Error> {
    match failpoint::listing() {
        Some(names) => print(&names),
        None => Err(Error::Usage("this build has no failpoints".into())),
    }
}

fn features(layers: &Path) -> Result<(), Error> {
    let features = features::probe(layers).map_err(failed("try what the kernel can do"))?;
    let answer = serde_json::to_string(&features).map_err(io::Error::other);
    print(&(answer.map_err(failed("encode the answer"))? + "\n"))
}

fn print(text: &str) -> Result<(), Error> {
    write(text.as_bytes())
}

fn write(bytes: &[u8]) -> Result<(), Error> {
    io::stdout().write_all(bytes).map_err(failed("write the answer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Flags, String> {
        parse(line.split(' ').filter(|word| !word.is_empty()).map(str::to_owned))
    }

    #[test]
    fn flags_are_read_as_go_reads_them() {
        let flags = || Flags { namespace: "k8s.io".into(), id: "a".into(), verb: Verb::Start, ..Flags::default() };
        for (line, expected) in [
            ("-namespace k8s.io -id a start", flags()),
            ("--namespace=k8s.io -id=a -debug start", flags()),
            (
                "-namespace k8s.io -address /run/c.sock -publish-binary /bin/c -id a -bundle /b -in-bundle start",
                Flags { address: "/run/c.sock".into(), bundle: "/b".into(), in_bundle: true, ..flags() },
            ),
            ("-v", Flags { verb: Verb::Version, ..Flags::default() }),
            ("", Flags::default()),
        ] {
            assert_eq!(parsed(line), Ok(expected), "{line}");
        }
        for line in ["-nonsense start", "-id", "stop"] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }
}
