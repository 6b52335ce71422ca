//! A container's cgroups: made with their limits, entered, read, killed and removed. On v2, on hybrid hosts (limits in
//! the v1 hierarchies, membership and kill through the v2 tree) and on pure v1.
//! Does not measure: statistics are the daemon's. Knows no systemd: paths come as the file system has them.

mod before;
mod devices;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod layout;
mod limits;
mod oom;
mod stats;
mod v1;
mod v2;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_api::shim::OomLimit;
use oci_spec::runtime::LinuxResources;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::text;
use crate::runtime::Error;
use crate::step;
use before::Before;
use layout::Layout;

/// Cgroup directories whose first component begins so were made by berth, and go when they are empty.
const OURS: &str = "berth-";

/// How often removal is tried while the last processes of a cgroup are still on their way out, and the pause between.
const REMOVE_ATTEMPTS: u32 = 40;
const REMOVE_PAUSE: Duration = Duration::from_millis(5);

/// One container's place in every hierarchy of the host.
#[derive(Clone, Debug)]
pub struct Cgroup {
    /// Without the leading slash.
    path: PathBuf,
    layout: &'static Layout,
}

impl Cgroup {
    /// Makes the cgroup with its limits, and its parents where they are missing. On an error nothing of it is left.
    pub(crate) fn create(path: &Path, resources: Option<&LinuxResources>) -> Result<Cgroup, Error> {
        Cgroup::create_in(Layout::of_host()?, path, resources)
    }

    /// The one that was made at `path` before, by a shim that is dead.
    pub(crate) fn existing(path: &Path) -> Result<Cgroup, Error> {
        Ok(Cgroup { path: relative(path)?, layout: Layout::of_host()? })
    }

    fn create_in(layout: &'static Layout, path: &Path, resources: Option<&LinuxResources>) -> Result<Cgroup, Error> {
        let cgroup = Cgroup { path: relative(path)?, layout };
        let made = cgroup.make(resources.unwrap_or(&LinuxResources::default()));
        if let Err(error) = made {
            // The first error is the one to tell.
            let _ = cgroup.remove();
            return Err(error);
        }
        Ok(cgroup)
    }

    fn make(&self, resources: &LinuxResources) -> Result<(), Error> {
        limits::refuse(resources, self.layout.only_unified())?;
        step!("create::cgroup-mkdir", self.make_directories(resources))?;
        step!("create::cgroup-limits", self.limit(resources))
    }

    fn make_directories(&self, resources: &LinuxResources) -> Result<(), Error> {
        for hierarchy in &self.layout.v1 {
            let prepare = if hierarchy.has("cpuset") { v1::inherit_cpuset } else { |_: &Path| Ok(()) };
            make_path(&hierarchy.root, &self.path, &prepare)?;
        }
        if let Some(root) = &self.layout.unified {
            make_path(root, &self.path, &|_| Ok(()))?;
            v2::enable_controllers(root, &self.path, &self.layout.controllers_for(resources))?;
        }
        Ok(())
    }

    fn limit(&self, resources: &LinuxResources) -> Result<(), Error> {
        self.write_limits(resources)?;
        let rules = devices::rules(resources.devices().as_deref().unwrap_or_default())?;
        if let Some(directory) = self.v1("devices") {
            return devices::write_v1(&directory, &rules);
        }
        match self.unified_directory().filter(|_| self.layout.only_unified()) {
            Some(directory) => devices::attach_v2(&directory, &rules),
            None => Ok(()),
        }
    }

    fn write_limits(&self, resources: &LinuxResources) -> Result<(), Error> {
        if self.layout.only_unified() {
            let directory = self.unified_directory();
            return directory.into_iter().try_for_each(|directory| v2::write(&directory, resources));
        }
        v1::write(resources, |controller| self.v1(controller))?;
        match self.unified_directory().filter(|_| self.v1("hugetlb").is_none()) {
            Some(directory) => v2::write_hugepages(&directory, resources),
            None if self.v1("hugetlb").is_none() => limits::refuse_hugepages(resources),
            None => Ok(()),
        }
    }

    /// The path below each hierarchy's root, as in `linux.cgroupsPath`, without the leading slash.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Kills every process inside, also in cgroups below it.
    ///
    /// # Errors
    /// The write or signal that failed. An empty or vanished cgroup is no error.
    pub fn kill(&self) -> Result<(), Error> {
        step!("kill::cgroup-kill", {
            match self.unified_directory() {
                Some(directory) => v2::kill(&directory),
                None => match self.v1("freezer") {
                    Some(directory) => v1::kill(&directory),
                    None => Err(Error::refused("cgroup", "the host has neither a v2 tree nor a freezer")),
                },
            }
        })
    }

    /// How many processes of this cgroup, or of one below it, the kernel has killed for its memory limit.
    pub fn oom_kills(&self) -> u64 {
        let counted = |file: PathBuf| files::read_key(&file, "oom_kill").unwrap_or(0);
        match (self.v1("memory"), self.unified_directory()) {
            (Some(directory), _) => counted(directory.join("memory.oom_control")),
            (None, Some(directory)) => counted(directory.join("memory.events")),
            (None, None) => 0,
        }
    }

    /// Whose limit that was, the nearest first; `None` when the host itself ran out of memory.
    pub(crate) fn oom_limit(&self) -> Option<OomLimit> {
        let v1 = self.layout.v1.iter().find(|hierarchy| hierarchy.has("memory"));
        let root = v1.map(|hierarchy| &hierarchy.root).or(self.layout.unified.as_ref())?;
        oom::limit(root, &self.path, v1.is_none())
    }

    /// Every process inside, also in cgroups below it, as the shim's pid namespace numbers them.
    ///
    /// # Errors
    /// A membership file that cannot be read.
    pub fn pids(&self) -> Result<Vec<i32>, Error> {
        let any_v1 = || self.layout.v1.first().map(|hierarchy| hierarchy.root.join(&self.path));
        match self.unified_directory().or_else(any_v1) {
            Some(directory) => files::pids(&directory),
            None => Ok(Vec::new()),
        }
    }

    /// Asks the kernel to stop every process inside, or to let them go on. See `is_frozen` for when they stand still.
    ///
    /// # Errors
    /// The file the kernel refused; a host that cannot.
    pub(crate) fn freeze(&self, frozen: bool) -> Result<(), Error> {
        match (self.unified_directory(), self.v1("freezer")) {
            (Some(directory), _) => files::write(&directory, "cgroup.freeze", if frozen { "1" } else { "0" }),
            (None, Some(directory)) => {
                files::write(&directory, "freezer.state", if frozen { "FROZEN" } else { "THAWED" })
            }
            (None, None) => Err(Error::refused("cgroup", "the host has neither a v2 tree nor a freezer")),
        }
    }

    /// Every process inside stands still.
    pub(crate) fn is_frozen(&self) -> bool {
        match (self.unified_directory(), self.v1("freezer")) {
            (Some(directory), _) => files::read_key(&directory.join("cgroup.events"), "frozen") == Some(1),
            (None, Some(directory)) => files::read_small(&directory.join("freezer.state")).is_ok_and(|s| s == "FROZEN"),
            (None, None) => false,
        }
    }

    /// Lets go on who was sent SIGKILL while it stands still: version 2 does it by itself, in version 1 it would not die
    /// before it is told to go on.
    ///
    /// # Errors
    /// The file the kernel refused.
    pub(crate) fn let_die(&self) -> Result<(), Error> {
        match self.unified_directory() {
            Some(_) => Ok(()),
            None => self.freeze(false),
        }
    }

    /// Writes new limits, all of them or none; what `resources` leaves out stays. Devices cannot be changed.
    ///
    /// # Errors
    /// The file and value the kernel refused. The limits are then as they were, unless the error says which is not.
    pub fn update(&self, resources: &LinuxResources) -> Result<(), Error> {
        limits::refuse(resources, self.layout.only_unified())?;
        if resources.devices().as_ref().is_some_and(|rules| !rules.is_empty()) {
            return Err(Error::refused("linux.resources.devices", "cannot be changed while the container exists"));
        }
        let unified = self.unified_directory();
        let before = Before::read(resources, |controller| self.v1(controller), unified.as_deref());
        let Err(refused) = step!("update::cgroup-limits", self.write_limits(resources)) else { return Ok(()) };
        match before.restore() {
            Ok(()) => Err(refused),
            Err(left) => {
                let both = format!("{}; and a limit could not be put back", text(&refused));
                Err(Error::step(both, std::io::Error::other(text(&left))))
            }
        }
    }

    /// Removes it from every hierarchy, with what the container made below it, and the empty parents that are berth's:
    /// those below a first component that begins with `berth-`. That first one is the daemon's and stays.
    ///
    /// # Errors
    /// The directory that could not be removed; the others are removed all the same. Gone already is no error.
    pub fn remove(&self) -> Result<(), Error> {
        step!("delete::cgroup-rmdir", {
            let mut first = Ok(());
            for root in self.layout.roots() {
                let removed = remove_tree(&root.join(&self.path));
                self.remove_parents(root);
                if first.is_ok() {
                    first = removed;
                }
            }
            first
        })
    }

    fn remove_parents(&self, root: &Path) {
        let is_ours = self.path.iter().next().is_some_and(|first| first.to_string_lossy().starts_with(OURS));
        let mut parent = self.path.parent();
        while let Some(path) = parent.filter(|path| is_ours && path.iter().count() > 1) {
            if rustix::fs::rmdir(root.join(path)).is_err() {
                // Another container is in it; whoever goes last takes it away.
                return;
            }
            parent = path.parent();
        }
    }

    /// Where a process of the container is born: its directory of the v2 tree, open.
    pub(crate) fn open_unified(&self) -> Result<Option<OwnedFd>, Error> {
        let Some(directory) = self.unified_directory() else {
            return Ok(None);
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(&directory, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(fd)),
            Err(errno) => Err(Error::step(format!("open the cgroup {directory:?}"), errno)),
        }
    }

    /// The v1 files in which a process writes `0` to move itself.
    pub(crate) fn open_tasks(&self) -> Result<Vec<(String, OwnedFd)>, Error> {
        let open = |hierarchy: &layout::Hierarchy| {
            let file = hierarchy.root.join(&self.path).join("tasks");
            match rustix::fs::open(&file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
                Ok(fd) => Ok((file.to_string_lossy().into_owned(), fd)),
                Err(errno) => Err(Error::step(format!("open {file:?}"), errno)),
            }
        };
        self.layout.v1.iter().map(open).collect()
    }

    /// The host has the v2 tree alone.
    pub(crate) fn is_unified(&self) -> bool {
        self.layout.only_unified()
    }

    /// Name and directory of the container's cgroup in each hierarchy, the v2 tree of a hybrid host included.
    pub(crate) fn directories(&self) -> Vec<(String, PathBuf)> {
        let v1 = self.layout.v1.iter().map(|h| (h.name.clone(), h.root.join(&self.path)));
        v1.chain(self.unified_directory().map(|directory| ("unified".to_owned(), directory))).collect()
    }

    /// Further names of hierarchies that have several controllers: link and what it leads to.
    pub(crate) fn aliases(&self) -> Vec<(String, String)> {
        let of = |hierarchy: &layout::Hierarchy| {
            let name = hierarchy.name.clone();
            let others = hierarchy.controllers.iter().filter(|c| **c != hierarchy.name);
            others.map(move |alias| (alias.clone(), name.clone())).collect::<Vec<_>>()
        };
        self.layout.v1.iter().flat_map(of).collect()
    }

    fn unified_directory(&self) -> Option<PathBuf> {
        self.layout.unified.as_ref().map(|root| root.join(&self.path))
    }

    fn v1(&self, controller: &str) -> Option<PathBuf> {
        let hierarchy = self.layout.v1.iter().find(|hierarchy| hierarchy.has(controller))?;
        Some(hierarchy.root.join(&self.path))
    }
}

/// `linux.cgroupsPath` below each root. Systemd's `slice:prefix:name` is translated by the daemon, not here.
fn relative(path: &Path) -> Result<PathBuf, Error> {
    let refuse = |reason: &str| Err(Error::refused("linux.cgroupsPath", format!("{path:?} {reason}")));
    let inner = path.strip_prefix("/").unwrap_or(path);
    if inner.as_os_str().is_empty() {
        return refuse("is the root");
    }
    if !inner.components().all(|c| matches!(c, std::path::Component::Normal(_))) {
        return refuse("leads upwards");
    }
    if path.to_string_lossy().contains(':') && !path.is_absolute() {
        return refuse("is systemd's syntax");
    }
    Ok(inner.to_owned())
}

/// Makes the directory and what is missing above it; `prepare` sees each one that was made, from the top.
/// An existing one is taken over if nothing runs in it.
fn make_path(root: &Path, path: &Path, prepare: &dyn Fn(&Path) -> Result<(), Error>) -> Result<(), Error> {
    const RACES: usize = 16; // another shim may take away a parent that has just become empty
    let whole = root.join(path);
    let failed = |errno: Errno| Error::step(format!("make the cgroup {whole:?}"), errno);
    for _ in 0..RACES {
        match rustix::fs::mkdir(&whole, Mode::from_raw_mode(0o755)) {
            Ok(()) => return prepare(&whole),
            Err(Errno::EXIST) => {
                return match files::pids(&whole)?.is_empty() {
                    true => Ok(()),
                    false => Err(failed(Errno::BUSY)),
                };
            }
            Err(Errno::NOENT) => make_parents(root, path, prepare)?,
            Err(errno) => return Err(failed(errno)),
        }
    }
    Err(failed(Errno::NOENT))
}

fn make_parents(root: &Path, path: &Path, prepare: &dyn Fn(&Path) -> Result<(), Error>) -> Result<(), Error> {
    let mut whole = root.to_owned();
    for name in path.parent().into_iter().flatten() {
        whole.push(name);
        match rustix::fs::mkdir(&whole, Mode::from_raw_mode(0o755)) {
            Ok(()) => prepare(&whole)?,
            // NOENT: somebody took the one above away; the caller begins again.
            Err(Errno::EXIST | Errno::NOENT) => {}
            Err(errno) => return Err(Error::step(format!("make the cgroup {whole:?}"), errno)),
        }
    }
    Ok(())
}

/// Removes a cgroup with those below it. Waits a little for processes that have been killed but are not gone.
fn remove_tree(directory: &Path) -> Result<(), Error> {
    for attempt in 0..REMOVE_ATTEMPTS {
        match rustix::fs::rmdir(directory) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY | Errno::NOTEMPTY) => {
                files::children(directory).iter().try_for_each(|child| remove_tree(child))?;
                if attempt > 0 {
                    std::thread::sleep(REMOVE_PAUSE);
                }
            }
            Err(errno) => {
                return Err(Error::step(format!("remove the cgroup {directory:?}"), errno));
            }
        }
    }
    Err(Error::step(format!("remove the cgroup {directory:?}"), Errno::BUSY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_below_every_root() {
        assert_eq!(relative(Path::new("/berth-1/pod/c")).expect("good"), Path::new("berth-1/pod/c"));
        assert_eq!(relative(Path::new("a/b")).expect("good"), Path::new("a/b"));
        for bad in ["", "/", "/a/../..", "system.slice:berth:c"] {
            relative(Path::new(bad)).expect_err(bad);
        }
    }

    /// In the host's hierarchies as they are, and as a host has them that has version 1 alone.
    #[cfg(feature = "root-tests")]
    #[test]
    fn who_is_killed_while_it_stands_still_dies() {
        let host = Layout::of_host().expect("the host's");
        let of_v1 = |hierarchy: &layout::Hierarchy| layout::Hierarchy {
            name: hierarchy.name.clone(),
            controllers: hierarchy.controllers.clone(),
            root: hierarchy.root.clone(),
        };
        let freezer: Vec<_> = host.v1.iter().filter(|hierarchy| hierarchy.has("freezer")).map(of_v1).collect();
        let v1 = (!freezer.is_empty()).then_some(Layout { v1: freezer, unified: None });
        for layout in [Some(host), v1.map(|layout| &*Box::leak(Box::new(layout)))].into_iter().flatten() {
            let path = PathBuf::from(format!("berth-shimtest-freeze-{}", std::process::id()));
            let cgroup = Cgroup::create_in(layout, &path, None).expect("a cgroup");
            let mut child =
                std::process::Command::new("/bin/busybox").args(["sleep", "1000"]).spawn().expect("busybox");
            let directory = cgroup.unified_directory().or_else(|| cgroup.v1("freezer")).expect("one of them");
            files::write(&directory, "cgroup.procs", &child.id().to_string()).expect("move it");
            cgroup.freeze(true).expect("freeze");
            while !cgroup.is_frozen() {
                std::thread::yield_now();
            }
            child.kill().expect("kill");
            cgroup.let_die().expect("let it die");
            let deadline = std::time::Instant::now() + Duration::from_secs(10);
            while child.try_wait().expect("look").is_none() {
                assert!(std::time::Instant::now() < deadline, "it does not die in {directory:?}");
                std::thread::sleep(REMOVE_PAUSE);
            }
            cgroup.remove().expect("remove");
        }
    }
}
