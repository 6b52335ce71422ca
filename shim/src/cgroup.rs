//! A container's cgroups: made, limited, read, killed and removed.

use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;

use crate::runtime::Error;

/// One container's place in every hierarchy of the host.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The path below each hierarchy's root, as in `linux.cgroupsPath`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Kills every process inside, also in cgroups below it.
    ///
    /// # Errors
    /// The write or signal that failed. An empty or vanished cgroup is no error.
    pub fn kill(&self) -> Result<(), Error> {
        Err(Error::refused("cgroup", "not built yet"))
    }

    /// The kernel has killed a process of this cgroup for its memory limit.
    pub fn oom_killed(&self) -> bool {
        false
    }

    /// Every process inside, also in cgroups below it, as the shim's pid namespace numbers them.
    ///
    /// # Errors
    /// A membership file that cannot be read.
    pub fn pids(&self) -> Result<Vec<i32>, Error> {
        Err(Error::refused("cgroup", "not built yet"))
    }

    /// Writes new limits; what `resources` leaves out stays.
    ///
    /// # Errors
    /// The file and value the kernel refused.
    pub fn update(&self, _resources: &LinuxResources) -> Result<(), Error> {
        Err(Error::refused("cgroup", "not built yet"))
    }

    /// Removes it from every hierarchy, with what the container made below it, and the empty parents that are berth's:
    /// those below a first component that begins with `berth-`. That first one is the daemon's and stays.
    ///
    /// # Errors
    /// The directory that could not be removed; the others are removed all the same. Gone already is no error.
    pub fn remove(&self) -> Result<(), Error> {
        Err(Error::refused("cgroup", "not built yet"))
    }
}
