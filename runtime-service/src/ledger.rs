//! What is written down before it is taken: the record of each pod and container, and what a pod holds.
//!
//! Requests lie under the data root, since they outlive a boot; what is held lies under the run root (tmpfs), since
//! kernel objects do not. Each file is written whole (temporary file, rename). The hot path does not sync: a group sync
//! follows within `SYNC_EVERY`. Plain blocking file work: callers use `spawn_blocking` where a disk is touched. What a
//! record's number means is in `format`.

mod format;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_api::cri::CreateContainerRequest;
use prost::Message;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

#[cfg(test)]
pub(crate) use format::is_read_in_every_format;
pub(crate) use format::{Found, Record, encode, read};

use crate::ids::{ContainerId, PodId};
use crate::network::Attachment;
use crate::pod::lifecycle::End;

/// How long an acknowledged pod may be lost to a power cut. Source: the promise in ARCHITECTURE.md (one second), halved.
const SYNC_EVERY: Duration = Duration::from_millis(500);

/// Endings of a container's records.
const REQUEST: &str = ".request";
const EXIT: &str = ".exit";
const RESOURCES: &str = ".resources";

/// Bytes, the least that any architecture has.
const PAGE: usize = 4096;

/// Where everything lies.
#[derive(Clone, Debug)]
pub(crate) struct Roots {
    pub(crate) data: PathBuf,
    pub(crate) run: PathBuf,
}

impl Roots {
    pub(crate) fn pods(&self) -> PathBuf {
        self.data.join("pods")
    }
    pub(crate) fn pod_data(&self, pod: &PodId) -> PathBuf {
        self.pods().join(pod.as_str())
    }
    /// In the pod's own directory: making one for each container would be a good part of what writing it down costs.
    pub(crate) fn container_request(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.pod_data(pod).join(format!("{container}{REQUEST}"))
    }
    fn container_resources(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.pod_data(pod).join(format!("{container}{RESOURCES}"))
    }
    fn pod_resources(&self, pod: &PodId) -> PathBuf {
        self.pod_data(pod).join("resources")
    }
    fn container_exit(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.pod_data(pod).join(format!("{container}{EXIT}"))
    }
    pub(crate) fn pods_run(&self) -> PathBuf {
        self.run.join("p")
    }
    pub(crate) fn pod_run(&self, pod: &PodId) -> PathBuf {
        self.pods_run().join(pod.as_str())
    }
    pub(crate) fn bundles(&self) -> PathBuf {
        self.run.join("c")
    }
    pub(crate) fn bundle(&self, container: &ContainerId) -> PathBuf {
        self.bundles().join(container.as_str())
    }
}

/// A pod as it was asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PodRecord {
    pub(crate) id: PodId,
    pub(crate) created_at_ns: i64,
    /// Boot in which it was made; see `boot_id`.
    pub(crate) boot_id: String,
    /// `RunPodSandboxRequest`, encoded.
    #[serde(with = "as_base64")]
    pub(crate) request: Vec<u8>,
    /// The network it will be attached to: from here on a DEL is owed. `None` with the host's network.
    pub(crate) network: Option<crate::network::Plan>,
    /// Of SELinux. A pod that was made without has none to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) selinux: Option<crate::spec::PodLabels>,
}

/// A container as it was asked for, and what was decided from the request and the image at that moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) id: ContainerId,
    pub(crate) created_at_ns: i64,
    pub(crate) boot_id: String,
    /// `CreateContainerRequest`, encoded.
    #[serde(with = "as_base64")]
    pub(crate) request: Vec<u8>,
    /// Digest of the image's configuration.
    pub(crate) image_id: String,
    pub(crate) stop_signal: i32,
    /// Relative to the hierarchies' roots.
    pub(crate) cgroup_path: String,
    /// Absolute; empty when output is discarded.
    pub(crate) log_path: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    /// Ids of the images that are mounted as volumes, by the index of the mount.
    #[serde(default)]
    pub(crate) volumes: BTreeMap<usize, String>,
    /// It is the pod's sandbox container: berth's own, with the pod's id and an empty request.
    #[serde(default)]
    pub(crate) sandbox: bool,
}

/// Limits that replace those of the request; each a `LinuxContainerResources`, encoded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerLimits {
    /// In force, or about to be.
    #[serde(with = "as_base64")]
    pub(crate) wanted: Vec<u8>,
    /// In force before, and again should the kernel refuse those that are wanted.
    #[serde(with = "as_base64")]
    pub(crate) before: Vec<u8>,
}

/// What a pod as a whole may use; each a `LinuxContainerResources`, encoded, empty when nothing was said.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PodLimitsRecord {
    #[serde(with = "as_base64")]
    pub(crate) overhead: Vec<u8>,
    #[serde(with = "as_base64")]
    pub(crate) resources: Vec<u8>,
}

/// What a pod holds, or is about to take.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Held {
    /// RunPodSandbox was answered, or is about to be, with success; before that a crash means teardown.
    pub(crate) ready: bool,
    /// Stopped for good: NOTREADY.
    pub(crate) stopped: bool,
    /// Namespaces of its own, pinned below `ns/`: network, ipc, uts, pid, user.
    pub(crate) namespaces: Vec<String>,
    /// The tmpfs at `shm` is its own.
    pub(crate) shm: bool,
    /// Pid 1 of the shared pid namespace.
    pub(crate) keeper: Option<ProcessId>,
}

impl Record for PodRecord {
    const FORMAT: u32 = 1;
}

impl Record for ContainerRecord {
    const FORMAT: u32 = 1;
}

impl Record for End {
    const FORMAT: u32 = 1;
}

impl Record for ContainerLimits {
    const FORMAT: u32 = 1;
}

impl Record for PodLimitsRecord {
    const FORMAT: u32 = 1;
}

impl Record for Held {
    const FORMAT: u32 = 1;
}

impl Record for Attachment {
    const FORMAT: u32 = 1;
}

/// A process told from a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pub(crate) pid: i32,
    /// Clock ticks after boot: field 22 of `/proc/PID/stat`.
    pub(crate) start: u64,
}

impl ProcessId {
    /// Of the process that has this number now.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name may hold anything, parentheses too; what follows its last one is numbers.
        let start = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
        Some(Self { pid, start })
    }

    /// It still runs.
    pub(crate) fn alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// A descriptor of it, which never means a later process with its number; `None` when it has ended.
    ///
    /// # Errors
    /// No descriptor can be opened: `EMFILE`, `ENFILE`.
    pub(crate) fn open(&self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            // Looked at after it is open: if the process with this number is ours still, it was ours when it was opened.
            Ok(pidfd) => Ok(self.alive().then_some(pidfd)),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Kills it; one that has ended is a success.
    ///
    /// # Errors
    /// See `open`; `EPERM`.
    pub(crate) fn kill(&self) -> io::Result<()> {
        let Some(pidfd) = self.open()? else { return Ok(()) };
        match pidfd_send_signal(pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// The kernel's name of this boot.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Writes and reads records; clones share the list of what is to be synced.
#[derive(Clone)]
pub(crate) struct Ledger {
    pub(crate) roots: Roots,
    dirty: Arc<Mutex<HashSet<PathBuf>>>,
}

/// What is found of a container, with its end if that was seen.
pub(crate) type FoundContainer = Found<(ContainerRecord, Option<End>)>;

impl Ledger {
    pub(crate) fn new(roots: Roots) -> Self {
        Self { roots, dirty: Arc::default() }
    }

    /// Makes the directories in which everything else is made.
    pub(crate) fn begin(&self) -> io::Result<()> {
        [self.roots.pods(), self.roots.pods_run(), self.roots.bundles()].iter().try_for_each(fs::create_dir_all)
    }

    /// Makes the pod's directories and writes what was asked.
    pub(crate) fn begin_pod(&self, record: &PodRecord) -> io::Result<()> {
        let data = self.roots.pod_data(&record.id);
        fs::create_dir_all(&data)?;
        step!("run_pod::intent-commit", self.write_durable(&data.join("request"), record))?;
        fs::create_dir_all(self.roots.pod_run(&record.id))
    }

    pub(crate) fn hold(&self, pod: &PodId, held: &Held) -> io::Result<()> {
        let (dir, json) = (self.roots.pod_run(pod), encode(held)?);
        match write_whole(&dir.join("held"), &json) {
            // A pod of an earlier boot, or of a daemon that was killed before it made the directory.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(&dir)?;
                write_whole(&dir.join("held"), &json)
            }
            // What lets go must not need space: it has less to tell than what is there.
            Err(e) if e.kind() == io::ErrorKind::StorageFull => overwrite(&dir.join("held"), json).map_err(|_| e),
            other => other,
        }
    }

    /// What the plugins answered to ADD, or that DEL has succeeded. Under the data root: a network wants its DEL after a
    /// reboot too.
    pub(crate) fn attached(&self, pod: &PodId, attachment: &Attachment) -> io::Result<()> {
        self.write_durable(&self.roots.pod_data(pod).join("network"), attachment)
    }

    pub(crate) fn attachment(&self, pod: &PodId) -> Option<Found<Attachment>> {
        read(&self.roots.pod_data(pod).join("network"))
    }

    pub(crate) fn begin_container(&self, pod: &PodId, record: &ContainerRecord) -> io::Result<()> {
        let path = self.roots.container_request(pod, &record.id);
        step!("create_container::intent", self.write_durable(&path, record))?;
        fs::create_dir_all(self.roots.bundle(&record.id))
    }

    pub(crate) fn end_container(&self, pod: &PodId, container: &ContainerId, end: &End) -> io::Result<()> {
        self.write_durable(&self.roots.container_exit(pod, container), end)
    }

    /// The limits a container shall have from now on.
    pub(crate) fn limit_container(
        &self,
        pod: &PodId,
        container: &ContainerId,
        limits: &ContainerLimits,
    ) -> io::Result<()> {
        self.write_durable(&self.roots.container_resources(pod, container), limits)
    }

    pub(crate) fn container_limits(&self, pod: &PodId, container: &ContainerId) -> Option<Found<ContainerLimits>> {
        read(&self.roots.container_resources(pod, container))
    }

    /// What UpdatePodSandboxResources said last.
    pub(crate) fn limit_pod(&self, pod: &PodId, limits: &PodLimitsRecord) -> io::Result<()> {
        self.write_durable(&self.roots.pod_resources(pod), limits)
    }

    pub(crate) fn pod_limits(&self, pod: &PodId) -> Option<Found<PodLimitsRecord>> {
        read(&self.roots.pod_resources(pod))
    }

    /// Forgets a container; what it held must be gone. Idempotent.
    pub(crate) fn forget_container(&self, pod: &PodId, container: &ContainerId) -> io::Result<()> {
        // The request last: while it is there, what the container held is looked for.
        gone(fs::remove_file(self.roots.container_exit(pod, container)))?;
        gone(fs::remove_file(self.roots.container_resources(pod, container)))?;
        gone(fs::remove_file(self.roots.container_request(pod, container)))
    }

    /// Forgets a pod; what it held must be gone. Idempotent.
    pub(crate) fn forget_pod(&self, pod: &PodId) -> io::Result<()> {
        // The run directory first: the record under the data root is what finds the rest after a crash in between.
        gone(fs::remove_dir_all(self.roots.pod_run(pod)))?;
        // The request goes first, so that a half-removed directory has no record and is swept at start.
        let data = self.roots.pod_data(pod);
        gone(fs::remove_file(data.join("request")))?;
        gone(fs::remove_dir_all(data))
    }

    /// Every pod with a record; `Err` for one that cannot be read, which is kept.
    pub(crate) fn pods(&self) -> io::Result<Vec<Found<PodRecord>>> {
        Ok(entries(&self.roots.pods())?.into_iter().filter_map(|dir| read(&dir.join("request"))).collect())
    }

    pub(crate) fn held(&self, pod: &PodId) -> Option<Found<Held>> {
        read(&self.roots.pod_run(pod).join("held"))
    }

    pub(crate) fn containers(&self, pod: &PodId) -> io::Result<Vec<FoundContainer>> {
        let mut all = Vec::new();
        for path in entries(&self.roots.pod_data(pod))? {
            if path.extension().is_some_and(|e| e == "tmp") {
                // Of a daemon that was killed while it wrote.
                gone(fs::remove_file(&path))?;
                continue;
            }
            let Some(name) = path.file_name().and_then(|n| n.to_str()?.strip_suffix(REQUEST)) else { continue };
            match read::<ContainerRecord>(&path) {
                None => {}
                Some(Err(unreadable)) => all.push(Err(unreadable)),
                Some(Ok(record)) => match read::<End>(&path.with_file_name(format!("{name}{EXIT}"))) {
                    None => all.push(Ok((record, None))),
                    Some(Ok(end)) => all.push(Ok((record, Some(end)))),
                    Some(Err(unreadable)) => all.push(Err(unreadable)),
                },
            }
        }
        Ok(all)
    }

    /// Every record of a pod that cannot be read, but its request.
    pub(crate) fn problems(&self, pod: &PodId, held_too: bool) -> io::Result<Vec<(PathBuf, String)>> {
        let mut problems = Vec::new();
        let held = held_too.then(|| self.held(pod)).flatten();
        problems.extend(held.and_then(Result::err));
        problems.extend(self.attachment(pod).and_then(Result::err));
        problems.extend(self.pod_limits(pod).and_then(Result::err));
        for path in entries(&self.roots.pod_data(pod))? {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            problems.extend(match name {
                name if name.ends_with(REQUEST) => read::<ContainerRecord>(&path).and_then(|found| match found {
                    Ok(record) => CreateContainerRequest::decode(&*record.request).err().map(|e| (path, e.to_string())),
                    Err(problem) => Some(problem),
                }),
                name if name.ends_with(EXIT) => read::<End>(&path).and_then(Result::err),
                name if name.ends_with(RESOURCES) => read::<ContainerLimits>(&path).and_then(Result::err),
                _ => None,
            });
        }
        Ok(problems)
    }

    /// What a pod's record, of whatever format, seems to say; see `format::glimpse`.
    pub(crate) fn glimpse_pod(&self, data: &Path) -> Option<PodRecord> {
        format::glimpse(&data.join("request"))
    }

    /// The same of the pod's containers, as many as can be told.
    pub(crate) fn glimpse_containers(&self, pod: &PodId) -> Vec<ContainerRecord> {
        let files = entries(&self.roots.pod_data(pod)).unwrap_or_default();
        let requests = files.iter().filter(|path| path.to_str().is_some_and(|name| name.ends_with(REQUEST)));
        requests.filter_map(|path| format::glimpse(path)).collect()
    }

    /// Ids of the containers that have a record beside their pod's, readable or not: what is theirs is not to be swept.
    pub(crate) fn container_names(&self, pod_data: &Path) -> Vec<String> {
        let files = entries(pod_data).unwrap_or_else(|error| {
            tracing::error!(path = %pod_data.display(), %error, "look for a pod's containers");
            Vec::new()
        });
        files.iter().filter_map(|file| container_of(file)).collect()
    }

    /// Directories that no record explains: pods without a request, run directories and bundles without a pod.
    pub(crate) fn strays(&self, known: impl Fn(&str) -> bool) -> io::Result<Vec<PathBuf>> {
        let mut strays = Vec::new();
        for dir in [self.roots.pods(), self.roots.pods_run(), self.roots.bundles()] {
            let unknown = |p: &PathBuf| p.file_name().and_then(|n| n.to_str()).is_none_or(|name| !known(name));
            strays.extend(entries(&dir)?.into_iter().filter(unknown));
        }
        Ok(strays)
    }

    fn write_durable<T: Record>(&self, path: &Path, value: &T) -> io::Result<()> {
        write_whole(path, &encode(value)?)?;
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned());
        Ok(())
    }

    /// Syncs what was written since the last time, for as long as the daemon lives.
    pub(crate) async fn sync_loop(self) {
        loop {
            tokio::time::sleep(SYNC_EVERY).await;
            let ledger = self.clone();
            if let Err(error) = tokio::task::spawn_blocking(move || ledger.sync()).await {
                tracing::error!(%error, "group sync of the records panicked");
            }
        }
    }

    /// Syncs now; what is gone by now needs none.
    pub(crate) fn sync(&self) {
        let dirty = std::mem::take(&mut *self.dirty.lock().unwrap_or_else(PoisonError::into_inner));
        let mut dirs = HashSet::new();
        for path in &dirty {
            let synced = fs::File::open(path).and_then(|f| f.sync_all());
            if let Err(error) = gone(synced) {
                tracing::warn!(path = %path.display(), %error, "sync a record; it may not outlive a power cut");
            }
            for dir in path.ancestors().skip(1).take_while(|a| a.starts_with(self.roots.pods())) {
                dirs.insert(dir.to_owned());
            }
        }
        for dir in dirs {
            if let Err(error) = gone(fs::File::open(&dir).and_then(|f| f.sync_all())) {
                tracing::warn!(path = %dir.display(), %error, "sync a directory of records");
            }
        }
    }
}

/// Replaces a file by one with this content: a reader sees the old or the new, never a part.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut tmp = path.as_os_str().to_owned();
    tmp.push(".tmp");
    let tmp = PathBuf::from(tmp);
    let write = || {
        fs::File::create(&tmp)?.write_all(content)?;
        fs::rename(&tmp, path)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&tmp);
    })
}

/// Writes over a file that is not shorter, by one write inside of one page, which takes no space and which a kill does
/// not part. Blanks at the end mean nothing to JSON.
fn overwrite(path: &Path, mut json: Vec<u8>) -> io::Result<()> {
    let mut file = fs::File::options().write(true).open(path)?;
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    if json.len() > length || length > PAGE {
        return Err(io::ErrorKind::StorageFull.into());
    }
    json.resize(length, b' ');
    file.write_all(&json)
}

/// The id of the container whose record this file is.
pub(crate) fn container_of(record: &Path) -> Option<String> {
    let name = record.file_name()?.to_str()?;
    [REQUEST, EXIT, RESOURCES].iter().find_map(|ending| name.strip_suffix(ending)).map(String::from)
}

/// `Ok` when it is not there (any more).
pub(crate) fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|e| e.map(|e| e.path())).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

mod as_base64 {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> (tempfile::TempDir, Ledger) {
        let dir = tempfile::tempdir().expect("a directory");
        let roots = Roots { data: dir.path().join("d"), run: dir.path().join("r") };
        (dir, Ledger::new(roots))
    }

    fn record(id: &PodId) -> PodRecord {
        PodRecord {
            id: id.clone(),
            created_at_ns: 5,
            boot_id: "b".into(),
            request: vec![0, 255],
            network: None,
            selinux: None,
        }
    }

    #[test]
    fn only_the_process_that_was_meant_is_killed() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
        let meant = ProcessId::of(child.id().try_into().expect("a pid")).expect("it runs");
        // Its number, given to it after the meant one ended.
        let earlier = ProcessId { start: meant.start - 1, ..meant };
        assert!(earlier.open().expect("no error").is_none());
        earlier.kill().expect("of one that has ended");
        assert!(child.try_wait().expect("wait").is_none(), "another process was killed");
        meant.kill().expect("kill");
        let status = child.wait().expect("wait");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
        meant.kill().expect("of one that has ended");
    }

    #[test]
    fn a_pod_is_found_again_and_then_forgotten() {
        let (_dir, ledger) = ledger();
        let id = PodId::random().expect("id");
        ledger.begin_pod(&record(&id)).expect("begin");
        ledger.hold(&id, &Held { ready: true, ..Default::default() }).expect("hold");
        ledger.sync();
        let found = ledger.pods().expect("list").remove(0).expect("readable");
        assert_eq!((found.id, found.request), (id.clone(), vec![0, 255]));
        assert!(ledger.held(&id).expect("there").expect("readable").ready);
        ledger.forget_pod(&id).expect("forget");
        ledger.forget_pod(&id).expect("forget twice");
        assert!(ledger.pods().expect("list").is_empty());
        assert!(ledger.strays(|_| false).expect("strays").is_empty());
    }

    #[test]
    fn a_container_is_found_again_with_its_end_and_then_forgotten_and_an_unfinished_record_is_none() {
        let (_dir, ledger) = ledger();
        let (pod, id) = (PodId::random().expect("id"), ContainerId::random().expect("id"));
        ledger.begin_pod(&record(&pod)).expect("begin");
        let container = ContainerRecord {
            id: id.clone(),
            created_at_ns: 7,
            boot_id: "b".into(),
            request: vec![1],
            image_id: "i".into(),
            stop_signal: 15,
            cgroup_path: "/x".into(),
            log_path: String::new(),
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            volumes: BTreeMap::from([(1, "sha256:x".into())]),
            sandbox: false,
        };
        ledger.begin_container(&pod, &container).expect("begin");
        let unfinished = ledger.roots.pod_data(&pod).join("other.request.tmp");
        fs::write(&unfinished, b"{").expect("write");
        let found = ledger.containers(&pod).expect("list");
        assert!(matches!(&found[..], [Ok((c, None))] if c.id == id), "{found:?}");
        assert!(!unfinished.exists());
        let (at, reason) = (std::time::SystemTime::now(), crate::pod::lifecycle::Reason::Error);
        let end = End { code: 3, at, started: None, reason, message: String::new() };
        ledger.end_container(&pod, &id, &end).expect("end");
        let found = ledger.containers(&pod).expect("list");
        assert!(matches!(&found[..], [Ok((_, Some(e)))] if e.code == 3), "{found:?}");
        ledger.forget_container(&pod, &id).expect("forget");
        ledger.forget_container(&pod, &id).expect("forget twice");
        assert!(ledger.containers(&pod).expect("list").is_empty());
    }

    #[test]
    fn a_shorter_record_is_written_over_a_longer_one() {
        let (dir, _) = ledger();
        let path = dir.path().join("held");
        let long = Held { keeper: Some(ProcessId { pid: 4711, start: 99 }), ..Held::default() };
        fs::write(&path, serde_json::to_vec(&long).expect("JSON")).expect("write");
        let stopped = Held { stopped: true, ..Held::default() };
        overwrite(&path, serde_json::to_vec(&stopped).expect("JSON")).expect("overwrite");
        let found: Held = read(&path).expect("there").expect("readable");
        assert!(found.stopped && found.keeper.is_none());
        overwrite(&path, vec![b'1'; 4000]).expect_err("it does not fit");
    }

    #[test]
    fn an_unreadable_record_is_reported_and_kept() {
        let (_dir, ledger) = ledger();
        let id = PodId::random().expect("id");
        ledger.begin_pod(&record(&id)).expect("begin");
        let path = ledger.roots.pod_data(&id).join("request");
        fs::write(&path, b"{").expect("spoil");
        let (named, _) = ledger.pods().expect("list").remove(0).expect_err("unreadable");
        assert_eq!(named, path);
        assert!(path.exists());
    }

    #[test]
    fn what_no_record_explains_is_a_stray() {
        let (_dir, ledger) = ledger();
        fs::create_dir_all(ledger.roots.pods().join("half")).expect("mkdir");
        fs::create_dir_all(ledger.roots.bundles().join("left")).expect("mkdir");
        let strays = ledger.strays(|name| name == "left").expect("strays");
        assert_eq!(strays, [ledger.roots.pods().join("half")]);
    }
}
