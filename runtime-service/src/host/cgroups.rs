//! The one file of the daemon that changes cgroups: it kills and removes that of a container whose shim is gone.
//! Making them, and their limits, is the shim's; what they say of use is read in `stats`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::Pid;

const MOUNT: &str = "/sys/fs/cgroup";

/// How long killed processes may take to leave a cgroup.
const EMPTY_WAIT: Duration = Duration::from_secs(5);

/// Where the hierarchies are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cgroups {
    /// The version 2 tree: the only one, or the one beside version 1's.
    v2: Option<PathBuf>,
    /// Version 1's hierarchies; none on a pure version 2 host.
    v1: Vec<PathBuf>,
}

impl Cgroups {
    /// Looks below /sys/fs/cgroup.
    ///
    /// # Errors
    /// It cannot be read, or nothing is mounted there.
    pub(crate) fn probe() -> io::Result<Self> {
        let mount = Path::new(MOUNT);
        let is_v2 = |path: &Path| statfs(path).is_ok_and(|s| s.filesystem_type() == CGROUP2_SUPER_MAGIC);
        if is_v2(mount) {
            return Ok(Self { v2: Some(mount.to_owned()), v1: Vec::new() });
        }
        let mut found = Self { v2: None, v1: Vec::new() };
        for entry in fs::read_dir(mount)? {
            let entry = entry?;
            // A joined hierarchy has links beside it: cpu -> cpu,cpuacct.
            if !entry.file_type()?.is_dir() {
                continue;
            }
            let path = entry.path();
            if is_v2(&path) {
                found.v2 = Some(path);
            } else if path.join("cgroup.procs").exists() {
                found.v1.push(path);
            }
        }
        if found.v2.is_none() && found.v1.is_empty() {
            return Err(io::Error::other(format!("no cgroup hierarchy is mounted below {MOUNT}")));
        }
        Ok(found)
    }

    /// Version 2 only.
    pub(crate) fn is_v2(&self) -> bool {
        self.v1.is_empty()
    }

    /// In words, for `berthd check`.
    pub(crate) fn describe(&self) -> String {
        let names = |v: &[PathBuf]| v.iter().filter_map(|p| p.file_name()?.to_str()).collect::<Vec<_>>().join(" ");
        match (&self.v2, self.v1.is_empty()) {
            (Some(_), true) => "version 2".into(),
            (Some(v2), false) => {
                format!("hybrid: limits by version 1 ({}), membership and kill by {}", names(&self.v1), v2.display())
            }
            (None, _) => format!("version 1 ({})", names(&self.v1)),
        }
    }

    /// Kills everything in this cgroup and below and waits until it is empty. A cgroup that is not there is empty.
    ///
    /// # Errors
    /// The kernel refuses, or processes are still there after the wait.
    pub(crate) fn kill(&self, path: &str) -> io::Result<()> {
        let deadline = Instant::now() + EMPTY_WAIT;
        loop {
            if let Some(v2) = &self.v2 {
                match fs::write(at(v2, path).join("cgroup.kill"), "1") {
                    Err(e) if !is_gone(&e) => return Err(e),
                    _ => {}
                }
            }
            let members = self.members(path)?;
            if members.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(io::Error::other(format!(
                    "{} processes do not go, {} among them",
                    members.len(),
                    members[0]
                )));
            }
            // Shown as 0, to kill(2) that is our own process group.
            if members[0] <= 0 {
                return Err(io::Error::other("it has processes of a pid namespace that this berthd cannot see"));
            }
            for pid in members {
                match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Removes this cgroup, and what is below it, from every hierarchy. Idempotent.
    ///
    /// # Errors
    /// Something is still in it.
    pub(crate) fn remove(&self, path: &str) -> io::Result<()> {
        self.all().map(|root| at(root, path)).try_for_each(|dir| remove_tree(&dir))
    }

    /// The processes in this cgroup and below, by the hierarchy that tells it best. A cgroup that is not there has none.
    ///
    /// # Errors
    /// The kernel refuses to tell.
    pub(crate) fn processes(&self, path: &str) -> io::Result<Vec<i32>> {
        let mut pids = Vec::new();
        match self.v2.as_ref().or(self.v1.first()) {
            Some(root) => collect(&at(root, path), &mut pids).map(|()| pids),
            None => Ok(pids),
        }
    }

    /// The kernel has killed a process of this cgroup for its memory limit.
    pub(crate) fn oom_killed(&self, path: &str) -> bool {
        let file = match self.v1_directory("memory", path) {
            Some(directory) => directory.join("memory.oom_control"),
            None => match self.v2_directory(path) {
                Some(directory) => directory.join("memory.events"),
                None => return false,
            },
        };
        let text = fs::read_to_string(file).unwrap_or_default();
        text.lines().filter_map(|line| line.strip_prefix("oom_kill ")).any(|count| count.trim() != "0")
    }

    /// Where the cgroup `path` is in the version 1 hierarchy that has `controller`.
    pub(crate) fn v1_directory(&self, controller: &str, path: &str) -> Option<PathBuf> {
        let has = |root: &&PathBuf| {
            root.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.split(',').any(|c| c == controller))
        };
        self.v1.iter().find(has).map(|root| at(root, path))
    }

    /// Where the cgroup `path` is in the version 2 tree, if there is one.
    pub(crate) fn v2_directory(&self, path: &str) -> Option<PathBuf> {
        self.v2.as_ref().map(|root| at(root, path))
    }

    /// Where the cgroup `path` is, or would be, in every hierarchy.
    pub(crate) fn directories(&self, path: &str) -> Vec<PathBuf> {
        self.all().map(|root| at(root, path)).collect()
    }

    /// Hierarchies that a test made of directories.
    #[cfg(test)]
    pub(crate) fn of_v1(v1: Vec<PathBuf>) -> Self {
        Self { v2: None, v1 }
    }

    /// A version 2 tree that a test made of directories.
    #[cfg(test)]
    pub(crate) fn of_v2(v2: PathBuf) -> Self {
        Self { v2: Some(v2), v1: Vec::new() }
    }

    fn all(&self) -> impl Iterator<Item = &PathBuf> {
        self.v1.iter().chain(&self.v2)
    }

    fn members(&self, path: &str) -> io::Result<Vec<i32>> {
        let mut pids = Vec::new();
        for root in self.all() {
            collect(&at(root, path), &mut pids)?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }
}

fn at(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn is_gone(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(Errno::ENODEV as i32)
}

fn collect(dir: &Path, pids: &mut Vec<i32>) -> io::Result<()> {
    match fs::read_to_string(dir.join("cgroup.procs")) {
        Ok(text) => pids.extend(text.lines().filter_map(|l| l.parse::<i32>().ok())),
        Err(e) if is_gone(&e) => return Ok(()),
        // A threaded cgroup below ours lists its processes in its parent.
        Err(e) if e.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {}
        Err(e) => return Err(e),
    }
    children(dir)?.iter().try_for_each(|child| collect(child, pids))
}

fn children(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Err(e) if is_gone(&e) => Ok(Vec::new()),
        Err(e) => Err(e),
        Ok(entries) => {
            let dirs = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
            Ok(dirs.map(|e| e.path()).collect())
        }
    }
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Ok(()) => return Ok(()),
        Err(e) if is_gone(&e) => return Ok(()),
        // EBUSY: it has children, or a process is on its way out.
        Err(e) if e.raw_os_error() == Some(Errno::EBUSY as i32) => {}
        Err(e) => return Err(e),
    }
    children(dir)?.iter().try_for_each(|child| remove_tree(child))?;
    let deadline = Instant::now() + EMPTY_WAIT;
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(e) if is_gone(&e) => return Ok(()),
            Err(e) if e.raw_os_error() == Some(Errno::EBUSY as i32) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(e) => return Err(e),
        }
    }
}
