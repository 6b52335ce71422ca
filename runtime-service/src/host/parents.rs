//! The cgroups above the containers' own that berth caused: they go with the last container that needs them, when they
//! are empty. What the kubelet or anybody else made stays. The shim makes them; here is written down, before it does,
//! which were not there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Cgroups;
use crate::ids::ContainerId;
use crate::ledger::{self, encode, gone, write_whole};

/// Every parent cgroup of which berth made a directory, and who needs it. Records lie under the run root, which like
/// cgroups does not outlive a boot.
pub(crate) struct Parents {
    cgroups: Cgroups,
    /// Where containers of pods without `cgroup_parent` are: the daemon's own, which stays.
    root: String,
    records: PathBuf,
    made: Mutex<BTreeMap<String, Made>>,
    /// Records that cannot be read, and why: whoever can read them removes what they name.
    unreadable: Vec<(PathBuf, String)>,
}

struct Made {
    record: Record,
    users: BTreeSet<ContainerId>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Record {
    /// As in `cgroup_path`, relative to the hierarchies' roots.
    path: String,
    /// Its directories that were not there, one in each such hierarchy.
    directories: BTreeSet<PathBuf>,
}

impl ledger::Record for Record {
    const FORMAT: u32 = 1;
}

impl Parents {
    /// Reads what an earlier daemon wrote into `records`. Nobody needs any of them until [`Parents::adopt`] says so.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub(crate) fn open(cgroups: Cgroups, root: String, records: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&records)?;
        let (mut made, mut unreadable) = (BTreeMap::new(), Vec::new());
        for entry in fs::read_dir(&records)? {
            let path = entry?.path();
            // A record is renamed into its place: what ends otherwise was never one.
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            match ledger::read::<Record>(&path) {
                Some(Ok(record)) => {
                    made.insert(record.path.clone(), Made { record, users: BTreeSet::new() });
                }
                Some(Err(problem)) => unreadable.push(problem),
                None => {}
            }
        }
        Ok(Self { cgroups, root, records, made: Mutex::new(made), unreadable })
    }

    /// Records that cannot be read and are kept.
    pub(crate) fn unreadable(&self) -> &[(PathBuf, String)] {
        &self.unreadable
    }

    /// Before the cgroup `path` of a container is made: writes down which of the directories above it are not there.
    ///
    /// # Errors
    /// A record cannot be written.
    pub(crate) fn claim(&self, path: &str, user: &ContainerId) -> io::Result<()> {
        let mut made = self.made();
        for parent in self.above(path) {
            let absent = self.cgroups.directories(parent).into_iter().filter(|dir| !dir.exists());
            let absent: BTreeSet<PathBuf> = absent.collect();
            let known = made.contains_key(parent);
            let is_others = |(path, _): &(PathBuf, String)| *path == self.file(parent);
            if (absent.is_empty() && !known) || self.unreadable.iter().any(is_others) {
                continue;
            }
            let entry = made.entry(parent.to_owned()).or_insert_with(|| Made {
                record: Record { path: parent.to_owned(), ..Record::default() },
                users: BTreeSet::new(),
            });
            entry.users.insert(user.clone());
            if !absent.is_subset(&entry.record.directories) || !known {
                entry.record.directories.extend(absent);
                write_whole(&self.file(parent), &encode(&entry.record)?)?;
            }
        }
        Ok(())
    }

    /// A container of an earlier daemon needs what is above its cgroup.
    pub(crate) fn adopt(&self, path: &str, user: &ContainerId) {
        let mut made = self.made();
        for parent in self.above(path) {
            if let Some(entry) = made.get_mut(parent) {
                entry.users.insert(user.clone());
            }
        }
    }

    /// A container's own cgroup is gone: removes what is above it and needed by nobody. One that somebody else put
    /// something into stays. Idempotent.
    ///
    /// # Errors
    /// A directory cannot be removed for another reason; the record of it stays.
    pub(crate) fn release(&self, path: &str, user: &ContainerId) -> io::Result<()> {
        let mut made = self.made();
        for parent in self.above(path) {
            let Some(entry) = made.get_mut(parent) else { continue };
            entry.users.remove(user);
            if entry.users.is_empty() {
                self.remove(&mut made, parent)?;
            }
        }
        Ok(())
    }

    /// Once every container of an earlier daemon is adopted: removes what nobody needs any more.
    ///
    /// # Errors
    /// As [`Parents::release`].
    pub(crate) fn sweep(&self) -> io::Result<()> {
        let mut made = self.made();
        let unused: Vec<String> = made.iter().filter(|(_, m)| m.users.is_empty()).map(|(p, _)| p.clone()).collect();
        // A child sorts behind its parent.
        unused.iter().rev().try_for_each(|path| self.remove(&mut made, path))
    }

    fn remove(&self, made: &mut MutexGuard<'_, BTreeMap<String, Made>>, path: &str) -> io::Result<()> {
        let Some(entry) = made.get(path) else { return Ok(()) };
        for dir in &entry.record.directories {
            match step!("remove_container::cgroup-parent-rmdir", gone(fs::remove_dir(dir))) {
                Err(e) if occupied(&e) => return Ok(()),
                other => other?,
            }
        }
        gone(fs::remove_file(self.file(path)))?;
        made.remove(path);
        Ok(())
    }

    /// The cgroups above this one that are not the daemon's own, deepest first.
    fn above<'a>(&self, path: &'a str) -> Vec<&'a str> {
        let parents = Path::new(path).ancestors().skip(1).filter_map(Path::to_str).take_while(|p| *p != "/");
        parents.filter(|p| !Path::new(&self.root).starts_with(p)).collect()
    }

    fn file(&self, path: &str) -> PathBuf {
        // A name of fixed length: a cgroup's path may be longer than a file's name.
        self.records.join(format!("{}.json", hex::encode(&Sha256::digest(path)[..16])))
    }

    fn made(&self) -> MutexGuard<'_, BTreeMap<String, Made>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// There are cgroups or processes in it.
fn occupied(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(n) if n == Errno::EBUSY as i32 || n == Errno::ENOTEMPTY as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Directories of a file system in the place of two hierarchies: rmdir answers there as it does for cgroups.
    struct Host(tempfile::TempDir);

    impl Host {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("tempdir");
            for name in ["memory", "freezer"] {
                fs::create_dir(dir.path().join(name)).expect("mkdir");
            }
            Self(dir)
        }

        fn parents(&self) -> Parents {
            let cgroups = Cgroups::of_v1(["memory", "freezer"].map(|n| self.0.path().join(n)).to_vec());
            Parents::open(cgroups, "/berth-tag".into(), self.0.path().join("records")).expect("open")
        }

        fn make(&self, hierarchy: &str, path: &str) {
            fs::create_dir_all(self.0.path().join(hierarchy).join(path.trim_start_matches('/'))).expect("mkdir");
        }

        fn has(&self, path: &str) -> [bool; 2] {
            ["memory", "freezer"].map(|h| self.0.path().join(h).join(path.trim_start_matches('/')).exists())
        }

        /// What shim and daemon do between claim and release.
        fn live(&self, path: &str) {
            self.make("memory", path);
            self.make("freezer", path);
        }

        fn die(&self, path: &str) {
            for hierarchy in ["memory", "freezer"] {
                fs::remove_dir(self.0.path().join(hierarchy).join(path.trim_start_matches('/'))).expect("rmdir");
            }
        }

        fn records(&self) -> usize {
            fs::read_dir(self.0.path().join("records")).expect("records").count()
        }
    }

    fn id(n: u8) -> ContainerId {
        ContainerId::parse(&format!("{n:064x}")).expect("an id")
    }

    #[test]
    fn what_berth_made_goes_with_its_last_user_and_the_rest_stays() {
        let host = Host::new();
        // The kubelet makes its cgroups in the hierarchies that it knows.
        host.make("memory", "/kubepods/pod1");
        let parents = host.parents();
        for n in [1, 2] {
            let path = format!("/kubepods/pod1/c{n}");
            parents.claim(&path, &id(n)).expect("claim");
            host.live(&path);
        }
        host.die("/kubepods/pod1/c1");
        parents.release("/kubepods/pod1/c1", &id(1)).expect("release");
        assert_eq!(host.has("/kubepods/pod1"), [true, true], "somebody needs it");
        host.die("/kubepods/pod1/c2");
        parents.release("/kubepods/pod1/c2", &id(2)).expect("release");
        parents.release("/kubepods/pod1/c2", &id(2)).expect("again");
        assert_eq!(host.has("/kubepods/pod1"), [true, false], "what was not berth's stays");
        assert_eq!(host.has("/kubepods"), [true, false]);
        assert_eq!(host.records(), 0);
    }

    #[test]
    fn the_next_daemon_knows_what_the_last_one_made() {
        let host = Host::new();
        let parents = host.parents();
        for (n, path) in [(1, "/a/b/c1"), (2, "/d/c2")] {
            parents.claim(path, &id(n)).expect("claim");
            host.live(path);
        }
        drop(parents);
        host.die("/a/b/c1");
        let parents = host.parents();
        parents.adopt("/d/c2", &id(2));
        parents.sweep().expect("sweep");
        assert_eq!((host.has("/a"), host.has("/d")), ([false; 2], [true; 2]));
        host.die("/d/c2");
        parents.release("/d/c2", &id(2)).expect("release");
        assert_eq!((host.has("/d"), host.records()), ([false; 2], 0));
    }

    #[test]
    fn records_of_every_format_so_far_are_read() {
        ledger::is_read_in_every_format::<Record>("parent.json");
    }

    #[test]
    fn a_record_that_cannot_be_read_is_kept_with_what_it_names() {
        let host = Host::new();
        let parents = host.parents();
        parents.claim("/a/c1", &id(1)).expect("claim");
        host.live("/a/c1");
        let file = parents.file("/a");
        let newer = br#"{"version":2,"places":["/a"]}"#;
        fs::write(&file, newer).expect("write");
        host.die("/a/c1");
        let parents = host.parents();
        assert_eq!(parents.unreadable().iter().map(|(path, _)| path).collect::<Vec<_>>(), [&file]);
        parents.sweep().expect("sweep");
        parents.claim("/a/c2", &id(2)).expect("claim");
        host.live("/a/c2");
        host.die("/a/c2");
        parents.release("/a/c2", &id(2)).expect("release");
        assert_eq!((host.has("/a"), fs::read(&file).expect("read")), ([true; 2], newer.to_vec()));
    }

    #[test]
    fn the_daemons_own_root_is_nobodys_to_remove() {
        let host = Host::new();
        let parents = host.parents();
        parents.claim("/berth-tag/c1", &id(1)).expect("claim");
        host.live("/berth-tag/c1");
        host.die("/berth-tag/c1");
        parents.release("/berth-tag/c1", &id(1)).expect("release");
        assert_eq!((host.has("/berth-tag"), host.records()), ([true; 2], 0));
    }

    #[test]
    fn what_others_put_inside_keeps_it() {
        let host = Host::new();
        let parents = host.parents();
        parents.claim("/a/c1", &id(1)).expect("claim");
        host.live("/a/c1");
        host.make("memory", "/a/theirs");
        host.die("/a/c1");
        parents.release("/a/c1", &id(1)).expect("release");
        assert!(host.has("/a")[0]);
    }
}
