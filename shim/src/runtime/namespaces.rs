//! The spec's `linux.namespaces`: which are made by the clone, which exist and are entered.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};
use rustix::fs::{Mode, OFlags};
use rustix::thread::LinkNameSpaceType;

use super::Error;
use super::idmap::Mapping;
use super::plan::Deed;
use super::process_deeds::ProcessDeed;

/// The namespaces of one container.
#[derive(Debug, Default)]
pub(super) struct Namespaces {
    /// `CLONE_NEW…` for the clone.
    pub(super) new: u64,
    /// A pid namespace that exists: entered by the shim's thread around the clone.
    pub(super) pid: Option<OwnedFd>,
    /// The others that exist: entered by the child.
    pub(super) entered: Vec<ProcessDeed>,
    /// Made by the child after it is in its cgroup.
    pub(super) new_cgroup: bool,
    /// Entered by the child when its tree stands: what stands by then no process of the container can take down.
    pub(super) user: Option<OwnedFd>,
    new_user: bool,
    /// Kinds that are not the host's.
    own: Vec<LinuxNamespaceType>,
}

impl Namespaces {
    /// Opens what has a path and sorts the rest.
    ///
    /// # Errors
    /// A kind that is not supported or given twice, a path that is no such namespace.
    pub(super) fn open(list: &[LinuxNamespace]) -> Result<Namespaces, Error> {
        let mut namespaces = Namespaces::default();
        for namespace in list {
            let kind = namespace.typ();
            let path = namespace.path().as_deref().filter(|path| !path.as_os_str().is_empty());
            if namespaces.own.contains(&kind) {
                return Err(Error::refused("linux.namespaces", format!("{kind} is there twice")));
            }
            namespaces.add(kind, path)?;
        }
        if namespaces.new & libc::CLONE_NEWNS as u64 == 0 {
            return Err(Error::refused("linux.namespaces", "a container needs a mount namespace of its own"));
        }
        Ok(namespaces)
    }

    fn add(&mut self, kind: LinuxNamespaceType, path: Option<&Path>) -> Result<(), Error> {
        let (flag, link, file) = match kind {
            LinuxNamespaceType::Mount => (libc::CLONE_NEWNS, LinkNameSpaceType::Mount, "mnt"),
            LinuxNamespaceType::Pid => (libc::CLONE_NEWPID, LinkNameSpaceType::ProcessID, "pid"),
            LinuxNamespaceType::Network => (libc::CLONE_NEWNET, LinkNameSpaceType::Network, "net"),
            LinuxNamespaceType::Ipc => (libc::CLONE_NEWIPC, LinkNameSpaceType::InterProcessCommunication, "ipc"),
            LinuxNamespaceType::Uts => (libc::CLONE_NEWUTS, LinkNameSpaceType::HostNameAndNISDomainName, "uts"),
            LinuxNamespaceType::Cgroup => (libc::CLONE_NEWCGROUP, LinkNameSpaceType::ControlGroup, "cgroup"),
            LinuxNamespaceType::User => (libc::CLONE_NEWUSER, LinkNameSpaceType::User, "user"),
            LinuxNamespaceType::Time => {
                return Err(Error::refused(format!("linux.namespaces.{kind}"), "not supported yet"));
            }
        };
        let Some(path) = path else {
            self.own.push(kind);
            match kind {
                LinuxNamespaceType::Cgroup => self.new_cgroup = true,
                LinuxNamespaceType::User => self.new_user = true,
                _ => self.new |= flag as u64,
            }
            return Ok(());
        };
        if kind == LinuxNamespaceType::Mount {
            return Err(Error::refused("linux.namespaces.mount.path", "not supported"));
        }
        let name = format!("enter the namespace {path:?} ({kind})");
        let fail = |errno| Error::step(name.clone(), std::io::Error::from(errno));
        let namespace = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(fail)?;
        if !is_hosts(&namespace, file).map_err(fail)? {
            self.own.push(kind);
        }
        match kind {
            LinuxNamespaceType::Pid => self.pid = Some(namespace),
            LinuxNamespaceType::User => self.user = self.owns(kind).then_some(namespace),
            _ => {
                let path = path.to_string_lossy().into_owned();
                self.entered.push(ProcessDeed::Enter { namespace, kind: link, path });
            }
        }
        Ok(())
    }

    /// Opens or makes the user namespace; the ids that it maps must be told.
    ///
    /// # Errors
    /// A user namespace without mappings, mappings without one; what the kernel answers.
    pub(super) fn users(&mut self, mapping: Option<Mapping>) -> Result<Option<(OwnedFd, Mapping)>, Error> {
        let refuse = |reason: &str| Err(Error::refused("linux.uidMappings", reason));
        match (self.user.take(), mapping) {
            (Some(namespace), Some(mapping)) => Ok(Some((namespace, mapping))),
            (None, Some(mapping)) if self.new_user => {
                let made = mapping.namespace().map_err(|e| Error::step("make a user namespace", e))?;
                Ok(Some((made, mapping)))
            }
            (None, None) if !self.new_user => Ok(None),
            (_, None) => refuse("a user namespace needs them"),
            (None, Some(_)) => refuse("need a user namespace"),
        }
    }

    /// The container's namespace of this kind is not the one that the shim is in.
    pub(super) fn owns(&self, kind: LinuxNamespaceType) -> bool {
        self.own.contains(&kind)
    }

    /// The deeds that enter what exists.
    pub(super) fn take_entered(&mut self) -> Vec<Deed> {
        self.entered.drain(..).map(Deed::Process).collect()
    }
}

/// The namespace is the one that this process is in.
fn is_hosts(namespace: &OwnedFd, file: &str) -> rustix::io::Result<bool> {
    let there = rustix::fs::fstat(namespace)?;
    let own = rustix::fs::stat(format!("/proc/self/ns/{file}").as_str())?;
    Ok((there.st_dev, there.st_ino) == (own.st_dev, own.st_ino))
}

/// Runs `deed` with the calling thread's children born in another pid namespace.
///
/// # Errors
/// The namespace that cannot be entered, or left again; what `deed` answers.
pub(super) fn born_in<T>(namespace: Option<&OwnedFd>, deed: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let Some(namespace) = namespace else {
        return deed();
    };
    let own = rustix::fs::open(c"/proc/self/ns/pid", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::step("open the shim's own pid namespace", errno))?;
    let pid = Some(LinkNameSpaceType::ProcessID);
    rustix::thread::move_into_link_name_space(namespace.as_fd(), pid)
        .map_err(|errno| Error::step("enter the pid namespace", errno))?;
    let result = deed();
    rustix::thread::move_into_link_name_space(own.as_fd(), pid)
        .map_err(|errno| Error::step("leave the pid namespace", errno))?;
    result
}
