//! What a runtime's processes cost: the daemon, and everything beside the containers that is not a workload.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use tonic::Status;

use super::{Target, WORKLOAD};

/// Memory of one process, KiB: the kernel's `smaps_rollup`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Its own pages, and its share of those it shares.
    pub pss: u64,
    /// Its own pages.
    pub private: u64,
}

/// The processes with one program's name.
#[derive(Clone, Debug, Default)]
pub struct Group {
    /// How many.
    pub count: u64,
    /// Of all of them.
    pub memory: Memory,
}

/// A moment's processes: pid and start time.
pub type Processes = BTreeSet<(u32, u64)>;

/// All that run now.
pub fn processes() -> Processes {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            Some((pid, stat(pid)?.1))
        })
        .collect()
}

/// The parent and the start time of a process that is there.
fn stat(pid: u32) -> Option<(u32, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything.
    let mut fields = stat[stat.rfind(')')? + 2..].split(' ').skip(1);
    Some((fields.next()?.parse().ok()?, fields.nth(17)?.parse().ok()?))
}

/// Memory of a process.
///
/// # Errors
/// It is gone, or may not be looked at.
pub fn of(pid: u32) -> io::Result<Memory> {
    Ok(parse(&std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?))
}

fn parse(rollup: &str) -> Memory {
    let kib = |name: &str| -> u64 {
        let line = rollup.lines().find(|l| l.split(':').next() == Some(name));
        line.and_then(|l| l.split_whitespace().nth(1)).and_then(|v| v.parse().ok()).unwrap_or(0)
    };
    Memory { pss: kib("Pss"), private: kib("Private_Clean") + kib("Private_Dirty") }
}

impl Target {
    /// The daemon's pid: who listens on the socket.
    ///
    /// # Errors
    /// Nobody does.
    pub async fn daemon(&self) -> io::Result<u32> {
        let credentials = tokio::net::UnixStream::connect(&self.socket).await?.peer_cred()?;
        credentials.pid().and_then(|pid| u32::try_from(pid).ok()).ok_or_else(|| io::Error::other("peer without pid"))
    }

    /// The processes that were not there `before`, live in the daemon's pid namespace or descend from one that does, and
    /// are no workloads; by program.
    ///
    /// # Errors
    /// The daemon is gone.
    pub async fn monitors(&self, before: &Processes) -> io::Result<BTreeMap<String, Group>> {
        let daemon = self.daemon().await?;
        let home = std::fs::read_link(format!("/proc/{daemon}/ns/pid"))?;
        let at_home = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|ns| ns == home);
        let belongs = |pid: u32| {
            let mut at = pid;
            while at > 1 {
                if at_home(at) {
                    return true;
                }
                at = stat(at).map_or(0, |(parent, _)| parent);
            }
            false
        };
        let mut groups = BTreeMap::<String, Group>::new();
        for (pid, _) in processes().difference(before) {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            let arguments: Vec<&str> = line.split('\0').collect();
            if *pid == daemon || *pid == std::process::id() || arguments.contains(&WORKLOAD) || !belongs(*pid) {
                continue;
            }
            let Ok(memory) = of(*pid) else { continue };
            let name = Path::new(arguments[0]).file_name().map(|n| n.to_string_lossy().into_owned());
            let group = groups.entry(name.unwrap_or_default()).or_default();
            group.count += 1;
            group.memory.pss += memory.pss;
            group.memory.private += memory.private;
        }
        Ok(groups)
    }

    /// `count` pods, each of which has logged 1 MiB and been exec'd ten times.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn used_pods(&self, count: usize) -> Result<Vec<super::calls::Up>, Status> {
        let script = format!("yes 0123456789012345678901234567890123456789 | head -c 1048576; exec /pause {WORKLOAD}");
        let mut pods = Vec::with_capacity(count);
        for _ in 0..count {
            let (up, _) = self.up(&["sh", "-c", &script]).await?;
            for _ in 0..10 {
                self.exec_true(&up.container).await?;
            }
            pods.push(up);
        }
        Ok(pods)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollup_is_read_by_its_names() {
        let rollup = "x\nRss: 9 kB\nPss: 7 kB\nPss_Dirty: 1 kB\nPrivate_Clean: 2 kB\nPrivate_Dirty: 3 kB\n";
        let memory = parse(rollup);
        assert_eq!((memory.pss, memory.private), (7, 5));
    }

    #[test]
    fn this_process_is_there_and_has_memory() {
        let pid = std::process::id();
        assert!(processes().iter().any(|(p, _)| *p == pid));
        assert!(of(pid).is_ok_and(|m| m.pss > 0 && m.private > 0));
    }
}
