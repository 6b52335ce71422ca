//! Processes that /proc shows, without the caller and those that called it, and what the daemons among them hold open.

use std::collections::HashSet;
use std::fs;

use super::Seen;

/// One process.
pub(super) struct Process {
    pub(super) pid: u32,
    parent: u32,
    /// Command line, or `[name] zombie` for one that nobody has reaped.
    pub(super) line: String,
}

pub(super) fn look(daemons: &[String], seen: &mut Seen) {
    let processes = all();
    let callers = callers(&processes);
    for process in processes.iter().filter(|p| !callers.contains(&p.pid)) {
        // The line and not the number: a daemon that was started again is the same finding.
        seen.add("process", process.line.clone());
        let program = process.line.split(' ').next().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
        if daemons.iter().any(|name| name == program) {
            descriptors(process.pid, program, seen);
        }
    }
}

/// Every process but the kernel's own.
pub(super) fn all() -> Vec<Process> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        // The name is in parentheses and may hold anything; the fields after the last one are plain.
        let Some((name, rest)) = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(") ")) else {
            continue;
        };
        let mut fields = rest.split(' ');
        let (state, parent) = (fields.next().unwrap_or_default(), fields.next().and_then(|p| p.parse().ok()));
        let parent = parent.unwrap_or(0);
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned();
        if line.is_empty() && state != "Z" {
            continue;
        }
        let line = if line.is_empty() { format!("[{name}] zombie") } else { line };
        found.push(Process { pid, parent, line });
    }
    found
}

fn callers(processes: &[Process]) -> HashSet<u32> {
    let mut pid = std::process::id();
    let mut callers = HashSet::from([pid]);
    while let Some(process) = processes.iter().find(|p| p.pid == pid) {
        pid = process.parent;
        callers.insert(pid);
    }
    callers
}

fn descriptors(pid: u32, program: &str, seen: &mut Seen) {
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        let target = target.to_string_lossy().into_owned();
        // `socket:[12345]`: the number is another one after each start.
        let what = match target.split_once(":[") {
            Some((sort, _)) if !target.starts_with("anon_inode") => sort.to_owned(),
            _ => target,
        };
        seen.add("descriptor", format!("{program} {what}"));
    }
}
