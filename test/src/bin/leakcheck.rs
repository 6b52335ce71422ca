//! The leak check, runnable alone: `leakcheck snapshot […] > BEFORE`, then `leakcheck diff BEFORE`.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use berth_test::leaks::{Snapshot, Watch};
use berth_test::wait::patience;

const USAGE: &str = "\
usage: leakcheck snapshot [--root DIR] [--cgroup TEXT] [--daemon NAME] [--allow PATTERN]   each as often as wanted
       leakcheck diff [--wait SECONDS] BEFORE

snapshot prints as JSON what the namespaces it is called in hold: mounts, pinned namespaces, links, addresses, routes,
nft objects, sockets, processes; the cgroups with TEXT in their path (all without one); the files and leases under each
DIR; the open descriptors of each program NAME. diff looks again and prints each thing that is there now and was not in
BEFORE, one a line, except what matches a PATTERN (* is anything but a slash, ** anything); it waits up to SECONDS (5),
times BERTH_TEST_SLOWNESS, for what the kernel frees late, and its exit status is 1 when it prints anything.";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let verb = arguments.next().unwrap_or_default();
    let mut watch = Watch::default();
    let (mut wait, mut before) = (5, None);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_else(|| usage());
        match (verb.as_str(), argument.as_str()) {
            ("snapshot", "--root") => watch.roots.push(PathBuf::from(value())),
            ("snapshot", "--cgroup") => watch.cgroups.push(value()),
            ("snapshot", "--daemon") => watch.daemons.push(value()),
            ("snapshot", "--allow") => watch.allowed.push(value()),
            ("diff", "--wait") => wait = value().parse().unwrap_or_else(|_| usage()),
            ("diff", path) if before.is_none() => before = Some(PathBuf::from(path)),
            _ => usage(),
        }
    }
    match (verb.as_str(), before) {
        ("snapshot", None) => {
            let snapshot = Snapshot::take(watch);
            println!("{}", serde_json::to_string(&snapshot).unwrap_or_else(|e| fail(&format!("write JSON: {e}"))));
            ExitCode::SUCCESS
        }
        ("diff", Some(path)) => {
            let text = std::fs::read(&path).unwrap_or_else(|e| fail(&format!("read {}: {e}", path.display())));
            let before: Snapshot =
                serde_json::from_slice(&text).unwrap_or_else(|e| fail(&format!("read {}: {e}", path.display())));
            let leaks = before.leaks(patience(wait));
            leaks.iter().for_each(|leak| println!("{leak}"));
            if leaks.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        _ => usage(),
    }
}

fn usage() -> ! {
    eprintln!("{USAGE}");
    std::process::exit(2)
}

fn fail(message: &str) -> ! {
    eprintln!("leakcheck: {message}");
    std::process::exit(2)
}
