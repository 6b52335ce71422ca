//! `berthd check`: what this host lacks for running pods, and what to do about it.

use std::fmt::Display;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, fsconfig_set_string, fsopen};

use crate::config::Config;
use crate::host::{Host, apparmor, selinux, systemd};
use crate::ledger::{Ledger, Roots};
use crate::metrics::Metrics;
use crate::network::{BuiltIn, Networks};
use crate::pod::chain;
use crate::serve::{cgroup_driver, tag};
use crate::task::{Handlers, KEEPER, PAUSE, SHIM};

/// The oldest kernel that berth runs on: Debian 12's.
const KERNEL_MIN: (u32, u32) = (6, 1);

/// Looks at the host and prints a line per finding.
pub fn run(config: &Config) -> ExitCode {
    let mut report = Report::default();
    kernel(&mut report);
    host(&mut report, config);
    filesystems(&mut report);
    armour(&report);
    labels(&report);
    binaries(&mut report, config);
    listeners(&mut report, config);
    network(&mut report, config);
    records(&report, config);
    if report.missing == 0 {
        println!("this host can run pods");
        ExitCode::SUCCESS
    } else {
        println!("{} things are missing", report.missing);
        ExitCode::FAILURE
    }
}

#[derive(Default)]
struct Report {
    missing: usize,
}

impl Report {
    fn ok(&self, what: &str, how: impl Display) {
        println!("ok       {what}: {how}");
    }
    fn note(&self, what: &str, how: impl Display) {
        println!("note     {what}: {how}");
    }
    fn missing(&mut self, what: &str, how: impl Display) {
        self.missing += 1;
        println!("MISSING  {what}: {how}");
    }
}

fn kernel(report: &mut Report) {
    let release = match nix::sys::utsname::uname() {
        Ok(name) => name.release().to_string_lossy().into_owned(),
        Err(errno) => return report.missing("kernel", errno),
    };
    let mut parts = release.split(['.', '-']).map_while(|p| p.parse::<u32>().ok());
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    let (major, minor) = KERNEL_MIN;
    match version >= KERNEL_MIN {
        true => report.ok("kernel", release),
        false => report.missing("kernel", format!("{release} is older than {major}.{minor}; install a newer one")),
    }
}

fn host(report: &mut Report, config: &Config) {
    match Host::probe() {
        Ok(host) => {
            report.ok("cgroups", host.cgroups.describe());
            let obstacle = systemd::obstacle(&host.cgroups);
            if let Err(problem) = cgroup_driver(config.sandbox.cgroup_driver, obstacle) {
                report.missing("cgroup driver", problem);
            }
            match obstacle {
                None => report.ok("systemd's cgroup driver", "can be used, and is unless cgroup_driver says otherwise"),
                Some(obstacle) => report.note("systemd's cgroup driver", format!("cannot be used: {obstacle}")),
            }
            match host.withheld.as_slice() {
                [] => report.ok("capabilities", "nothing is withheld"),
                withheld => report.note(
                    "withheld by the host",
                    format!("{} (containers get less; asked for by name it is refused)", withheld.join(", ")),
                ),
            }
        }
        Err(error) => report.missing("cgroups", format!("{error}; mount a cgroup hierarchy below /sys/fs/cgroup")),
    }
}

fn filesystems(report: &mut Report) {
    match takes_layers_one_by_one() {
        Ok(true) => report.ok("overlayfs", "layers by lowerdir+"),
        Ok(false) => report.ok("overlayfs", "layers by descriptor in mount(2); lowerdir+ begins with Linux 6.7"),
        Err(Errno::PERM) => report.note("overlayfs", "only root is told"),
        Err(errno) => report.missing(
            "overlayfs",
            format!("the kernel has none ({errno}): modprobe overlay, or set [images] snapshotter = \"native\""),
        ),
    }
    for (what, path, todo) in [
        ("forwarding of IPv4", "/proc/sys/net/ipv4/ip_forward", "the bridge plugin turns it on with the first pod"),
        ("forwarding of IPv6", "/proc/sys/net/ipv6/conf/all/forwarding", "only IPv6 pod networks need it"),
    ] {
        match std::fs::read_to_string(path).as_deref().map(str::trim) {
            Ok("1") => report.ok(what, "on"),
            Ok(_) => report.note(what, format!("off; {todo}")),
            Err(error) => report.note(what, format!("{path}: {error}")),
        }
    }
    for name in ["user", "net", "ipc", "uts", "pid", "mnt", "cgroup"] {
        if !Path::new("/proc/self/ns").join(name).exists() {
            report.missing("namespaces", format!("the kernel has no {name} namespaces"));
        }
    }
}

/// Whether overlayfs, which asking for loads, takes its layers one by one.
fn takes_layers_one_by_one() -> Result<bool, Errno> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let takes = |key: &str| fsconfig_set_string(context.as_fd(), key, "/").is_ok();
    // Before 6.5 overlayfs looked at no parameter until it was mounted, and takes anything here.
    Ok(takes("lowerdir+") && !takes("berth-no-such-parameter"))
}

/// A note: without the parser a container that asks for no profile runs unconfined, and one that asks is refused.
fn armour(report: &Report) {
    match (apparmor::is_on(), apparmor::parser()) {
        (false, _) => report.note("AppArmor", "off in this kernel; a container that asks for a profile is refused"),
        (true, Ok(parser)) => report.ok("AppArmor", format!("on; profiles by {}", parser.display())),
        (true, Err(problem)) => report.note("AppArmor", format!("on, but containers run unconfined: {problem}")),
    }
}

/// A note: without labels for containers one that asks for none runs with what the policy makes of the shim's.
fn labels(report: &Report) {
    match selinux::state() {
        selinux::State::Off => {
            report.note("SELinux", "off in this kernel; a container that asks for a label is refused")
        }
        selinux::State::NoTypes(problem) => report.note(
            "SELinux",
            format!(
                "on, but containers run without labels of their own: {problem}; install container-selinux, or its like"
            ),
        ),
        selinux::State::On(defaults) => {
            let mode =
                if selinux::is_enforcing() { "enforcing" } else { "permissive: what it does not allow is only told" };
            report.ok(
                "SELinux",
                format!("on, {mode}; containers are {}, their files {}", defaults.process(), defaults.file()),
            );
        }
    }
}

fn binaries(report: &mut Report, config: &Config) {
    for name in [SHIM, KEEPER, PAUSE] {
        match config.shim.binary(name) {
            Ok(path) => report.ok(name, path.display()),
            Err(problem) => report.missing(name, problem),
        }
    }
    // As the daemon reads them, which would not start with one that it does not understand.
    match Handlers::read(&config.runtimes, &config.serve.run_root) {
        Err(problem) => report.missing("handlers", problem),
        Ok(handlers) => {
            for handler in handlers.all() {
                match handler.binary() {
                    Ok(path) => report.ok(&format!("handler {}", handler.name), path.display()),
                    Err(problem) => report.missing("handler", problem),
                }
            }
        }
    }
}

/// What the daemon would listen with, short of listening.
fn listeners(report: &mut Report, config: &Config) {
    if let Err(problem) = config.streaming.check() {
        report.missing("[streaming]", chain(&problem));
    }
    let group = &config.serve.group;
    if !group.is_empty() {
        match nix::unistd::Group::from_name(group) {
            Ok(Some(_)) => {}
            Ok(None) => report.missing("[serve] group", format!("there is no group {group:?}")),
            Err(errno) => report.missing("[serve] group", format!("look up {group:?}: {errno}")),
        }
    }
}

/// Records of pods that this build cannot read. A note: new pods can run beside those that are kept for another build.
fn records(report: &Report, config: &Config) {
    let (data, run) = (config.serve.data_root.clone(), config.serve.run_root.clone());
    let ledger = Ledger::new(Roots { data, run });
    let found = match ledger.pods() {
        Ok(found) => found,
        Err(error) => return report.note("records", format!("{}: {error}", ledger.roots.pods().display())),
    };
    let (mut pods, mut unreadable) = (0, 0);
    for record in found {
        pods += 1;
        let problems = match record {
            Ok(record) => ledger
                .problems(&record.id, true)
                .unwrap_or_else(|error| vec![(ledger.roots.pod_data(&record.id), error.to_string())]),
            Err(problem) => vec![problem],
        };
        unreadable += problems.len();
        for (path, problem) in problems {
            let todo = "its pod is kept as it is until it can be read";
            report.note("record", format!("{}: {problem}; {todo}", path.display()));
        }
    }
    if unreadable == 0 {
        report.ok("records", format!("those of {pods} pods can be read"));
    }
}

/// What other programs' packet filters do to a bridge of ours. A note: rules that name addresses may let them through.
fn forwarding(report: &Report, plugin: &Path, bridge: &str) {
    let what = format!("forwarding for {bridge}");
    match std::process::Command::new(plugin).args(["forwarding", bridge]).output() {
        Ok(said) if said.status.success() => match String::from_utf8_lossy(&said.stdout).trim() {
            "" => report.ok(&what, "no packet filter drops it by policy"),
            obstacles => obstacles.lines().for_each(|obstacle| report.note(&what, obstacle)),
        },
        Ok(said) => report.note(&what, String::from_utf8_lossy(&said.stderr).trim()),
        Err(error) => report.note(&what, format!("run {}: {error}", plugin.display())),
    }
}

fn network(report: &mut Report, config: &Config) {
    let Ok(metrics) = Metrics::new() else { return };
    let tag = tag(&config.serve.data_root);
    let builtin = BuiltIn::new(&config.network, &tag, &config.serve.data_root);
    let bundled: Vec<_> = config.shim.places().into_iter().map(|dir| dir.join("cni")).collect();
    for dir in config.network.plugin_dirs.iter().chain(&bundled) {
        let count = std::fs::read_dir(dir).map(|entries| entries.count()).unwrap_or(0);
        report.note("plugin directory", format!("{} ({count} files)", dir.display()));
    }
    let bridge_plugin = bundled.iter().map(|dir| dir.join("bridge")).find(|path| path.is_file());
    let networks = Networks::new(config.network.clone(), bundled, builtin, config.serve.run_root.clone(), metrics);
    match networks.current() {
        Ok(network) => {
            match networks.check_plugins(&network) {
                Ok(()) => report.ok("network", &network.list.name),
                Err(error) => report.missing("network", error),
            }
            if let Some(plugin) = bridge_plugin {
                network.bridges().iter().for_each(|bridge| forwarding(report, &plugin, bridge));
            }
        }
        Err(error @ crate::network::Error::None { .. }) => report.note("network", error),
        Err(error) => report.missing("network", error),
    }
}
