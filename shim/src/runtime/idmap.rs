//! User namespaces as mappings of ids: one is made for as long as a descriptor of it lives, to map mounts by it, and a
//! container's ids are told as the host counts them.

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::LinuxIdMapping;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Signal, WaitId, WaitIdOptions};

use super::Error;
use super::create::copy;
use super::rootfs::open_tree;
use crate::sys;

/// A run of ids: the container's first, the host's first, how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) container: u32,
    pub(crate) host: u32,
    pub(crate) length: u32,
}

/// How a container's users and groups are the host's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) uids: Vec<Run>,
    pub(crate) gids: Vec<Run>,
}

impl Mapping {
    /// From a spec. `None` if there is none.
    ///
    /// # Errors
    /// Users without groups, or the other way round.
    pub(super) fn of(
        field: &str,
        uids: Option<&Vec<LinuxIdMapping>>,
        gids: Option<&Vec<LinuxIdMapping>>,
    ) -> Result<Option<Mapping>, Error> {
        let runs = |list: Option<&Vec<LinuxIdMapping>>| -> Vec<Run> {
            let run = |m: &LinuxIdMapping| Run { container: m.container_id(), host: m.host_id(), length: m.size() };
            list.into_iter().flatten().map(run).collect()
        };
        let mapping = Mapping { uids: runs(uids), gids: runs(gids) };
        match (mapping.uids.is_empty(), mapping.gids.is_empty()) {
            (true, true) => Ok(None),
            (false, false) => Ok(Some(mapping)),
            _ => Err(Error::refused(format!("{field}.uidMappings"), "and gidMappings come together")),
        }
    }

    /// From mount options as containerd writes them: `CONTAINER:HOST:LENGTH`, with commas between.
    ///
    /// # Errors
    /// What is not of that form.
    pub(super) fn of_options(field: &str, uids: Option<&str>, gids: Option<&str>) -> Result<Option<Mapping>, Error> {
        let (Some(uids), Some(gids)) = (uids, gids) else {
            return match (uids, gids) {
                (None, None) => Ok(None),
                _ => Err(Error::refused(field, "uidmap and gidmap come together")),
            };
        };
        let runs = |text: &str| -> Result<Vec<Run>, Error> {
            text.split(',')
                .map(|run| {
                    let numbers: Vec<u32> = run.split(':').filter_map(|number| number.parse().ok()).collect();
                    match (numbers.as_slice(), run.split(':').count()) {
                        ([container, host, length], 3) => {
                            Ok(Run { container: *container, host: *host, length: *length })
                        }
                        _ => Err(Error::refused(field, format!("{run:?} is not CONTAINER:HOST:LENGTH"))),
                    }
                })
                .collect()
        };
        Ok(Some(Mapping { uids: runs(uids)?, gids: runs(gids)? }))
    }

    /// A user as the host counts it.
    ///
    /// # Errors
    /// A user that is not mapped.
    pub(super) fn user(&self, id: u32) -> Result<u32, Error> {
        host(&self.uids, id).ok_or_else(|| Error::refused("linux.uidMappings", format!("user {id} is not mapped")))
    }

    /// A group as the host counts it.
    ///
    /// # Errors
    /// A group that is not mapped.
    pub(super) fn group(&self, id: u32) -> Result<u32, Error> {
        host(&self.gids, id).ok_or_else(|| Error::refused("linux.gidMappings", format!("group {id} is not mapped")))
    }

    /// A user namespace with these ids: the one that this container has already (`keep`), or a new one.
    ///
    /// # Errors
    /// What the kernel answers: `EINVAL` for runs that overlap, `ENOSPC` at `user.max_user_namespaces`.
    pub(crate) fn namespace(&self) -> std::io::Result<OwnedFd> {
        let known = KEPT.with_borrow(|kept| {
            let (namespace, _) = kept.as_ref()?.iter().find(|(_, mapping)| mapping == self)?;
            Some(namespace.try_clone())
        });
        if let Some(known) = known {
            return known;
        }
        let made = self.new_namespace()?;
        KEPT.with_borrow_mut(|kept| -> std::io::Result<()> {
            if let Some(kept) = kept {
                kept.push((made.try_clone()?, self.clone()));
            }
            Ok(())
        })?;
        Ok(made)
    }

    /// The process that it is made with is gone when this returns.
    fn new_namespace(&self) -> std::io::Result<OwnedFd> {
        let (gate, open) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        // Only there to be looked at: it waits until it is killed, or until we are no more.
        let (pid, pidfd) = sys::clone3(libc::CLONE_NEWUSER as u64, None, || {
            use std::os::fd::AsRawFd;
            let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
            sys::close_all_but(&[gate.as_raw_fd()]);
            let _ = rustix::io::read(&gate, &mut [0]);
        })?;
        let opened = self.write(pid).and_then(|()| {
            let path = format!("/proc/{pid}/ns/user");
            Ok(rustix::fs::open(path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
        });
        let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
        while let Err(rustix::io::Errno::INTR) =
            rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
        {}
        drop(open);
        opened
    }

    /// Gives the ids to the user namespace of a process.
    ///
    /// # Errors
    /// What the kernel answers.
    pub(crate) fn write(&self, pid: i32) -> std::io::Result<()> {
        for (file, runs) in [("uid_map", &self.uids), ("gid_map", &self.gids)] {
            let lines: Vec<String> =
                runs.iter().map(|run| format!("{} {} {}\n", run.container, run.host, run.length)).collect();
            // In one write: the kernel takes no second.
            std::fs::write(format!("/proc/{pid}/{file}"), lines.concat())?;
        }
        Ok(())
    }
}

thread_local! {
    /// While a container is made, by this thread alone: its user namespaces so far.
    static KEPT: RefCell<Option<Vec<(OwnedFd, Mapping)>>> = const { RefCell::new(None) };
}

/// For as long as this lives, no user namespace is made twice.
#[must_use]
pub(super) struct Keeping(());

impl Drop for Keeping {
    fn drop(&mut self) {
        KEPT.take();
    }
}

/// Begins to keep the user namespaces of a container, with its own. Each costs a process and one of
/// `user.max_user_namespaces`, and most mounts want the same.
///
/// # Errors
/// What the kernel answers.
pub(super) fn keep(own: Option<&(OwnedFd, Mapping)>) -> Result<Keeping, Error> {
    let own = own.map(|(namespace, mapping)| Ok((copy(namespace)?, mapping.clone()))).transpose()?;
    KEPT.set(Some(own.into_iter().collect()));
    Ok(Keeping(()))
}

fn host(runs: &[Run], id: u32) -> Option<u32> {
    let run = runs.iter().find(|run| id.checked_sub(run.container).is_some_and(|into| into < run.length))?;
    run.host.checked_add(id - run.container)
}

/// Makes a detached mount show its files with mapped owners.
///
/// # Errors
/// `Error::Refused` when its file system cannot.
pub(super) fn map(tree: &OwnedFd, namespace: &OwnedFd, what: &str) -> Result<(), Error> {
    sys::mount_idmap(tree.as_fd(), namespace.as_fd()).map_err(|errno| match errno {
        rustix::io::Errno::INVAL => Error::refused(what, "its file system cannot show files with mapped owners"),
        other => Error::step(format!("map the owners of {what}"), other),
    })
}

/// A detached copy of what is mounted at a directory, with mapped owners.
///
/// # Errors
/// As of `map`.
pub(super) fn mapped(path: &Path, namespace: &OwnedFd) -> Result<OwnedFd, Error> {
    let tree = open_tree(path, false)?;
    map(&tree, namespace, &format!("{path:?}"))?;
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNS: &[Run] = &[Run { container: 0, host: 1000, length: 10 }, Run { container: 50, host: 7, length: 1 }];

    #[test]
    fn a_containers_ids_are_told_as_the_hosts() {
        for (container, expected) in [(0, Some(1000)), (9, Some(1009)), (10, None), (50, Some(7)), (49, None)] {
            assert_eq!(host(RUNS, container), expected, "{container}");
        }
        assert_eq!(host(&[Run { container: 0, host: u32::MAX, length: 2 }], 1), None);
    }

    #[cfg(feature = "root-tests")]
    #[test]
    fn no_user_namespace_of_a_container_is_made_twice() {
        let which = |namespace: &OwnedFd| rustix::fs::fstat(namespace).expect("look").st_ino;
        let one = |host| Mapping { uids: vec![Run { host, ..RUNS[0] }], gids: RUNS.to_vec() };
        let (own, other) = (one(1000), one(2000));
        let made = own.namespace().expect("make");
        let keeping = keep(Some(&(made.try_clone().expect("copy"), own.clone()))).expect("keep");
        assert_eq!(which(&own.namespace().expect("the container's")), which(&made));
        let second = other.namespace().expect("make");
        assert_ne!(which(&second), which(&made));
        assert_eq!(which(&other.namespace().expect("the same")), which(&second));
        drop(keeping);
        assert_ne!(which(&own.namespace().expect("make")), which(&made), "that container is made");
    }

    #[test]
    fn mount_options_are_read_or_refused() {
        let mapping = Mapping::of_options("rootfs", Some("0:1000:10,50:7:1"), Some("0:1:2")).expect("good");
        assert_eq!(mapping.expect("some").uids, RUNS);
        assert_eq!(Mapping::of_options("rootfs", None, None).expect("none"), None);
        for bad in ["", "0:1", "0:1:2:3", "a:b:c", "0:1:-1", "0:1:2,"] {
            Mapping::of_options("rootfs", Some(bad), Some("0:1:2")).expect_err(bad);
        }
        Mapping::of_options("rootfs", Some("0:1:2"), None).expect_err("without groups");
    }
}
