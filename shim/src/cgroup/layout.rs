//! Which cgroup hierarchies the host has. Found by looking at the usual places, not in mountinfo: it is on the hot path.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use oci_spec::runtime::LinuxResources;
use rustix::io::Errno;

use crate::runtime::Error;

const ROOT: &str = "/sys/fs/cgroup";

/// Source: include/uapi/linux/magic.h.
const CGROUP_SUPER_MAGIC: u64 = 0x27e0eb;
const CGROUP2_SUPER_MAGIC: u64 = 0x63677270;

/// Names under which a v1 hierarchy may be mounted: the controllers of cgroup_subsys.h, and systemd's own.
const V1_NAMES: [&str; 14] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "pids",
    "devices",
    "freezer",
    "blkio",
    "hugetlb",
    "net_cls",
    "net_prio",
    "perf_event",
    "rdma",
    "systemd",
];

/// Controllers that a container on the v2 tree always gets, so far as the host has them: limits may come later.
const V2_CONTROLLERS: [&str; 6] = ["cpuset", "cpu", "io", "memory", "pids", "hugetlb"];

/// The hierarchies.
#[derive(Debug, Default)]
pub(super) struct Layout {
    pub(super) v1: Vec<Hierarchy>,
    /// Root of the v2 tree.
    pub(super) unified: Option<PathBuf>,
}

/// One v1 hierarchy.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Its directory's name, e.g. `cpu,cpuacct`.
    pub(super) name: String,
    pub(super) controllers: Vec<String>,
    pub(super) root: PathBuf,
}

impl Hierarchy {
    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|c| c == controller)
    }
}

impl Layout {
    /// The host's, looked at once in the life of the process.
    ///
    /// # Errors
    /// No cgroup file system at the usual place.
    pub(super) fn of_host() -> Result<&'static Layout, Error> {
        static HOST: OnceLock<Layout> = OnceLock::new();
        if let Some(layout) = HOST.get() {
            return Ok(layout);
        }
        let layout = Layout::find(Path::new(ROOT))?;
        Ok(HOST.get_or_init(|| layout))
    }

    fn find(root: &Path) -> Result<Layout, Error> {
        if magic(root) == Ok(CGROUP2_SUPER_MAGIC) {
            return Ok(Layout { v1: Vec::new(), unified: Some(root.to_owned()) });
        }
        let unified = root.join("unified");
        let layout = Layout {
            v1: v1_hierarchies(root),
            unified: (magic(&unified) == Ok(CGROUP2_SUPER_MAGIC)).then_some(unified),
        };
        match layout.v1.is_empty() && layout.unified.is_none() {
            true => Err(Error::step(format!("find the cgroup file systems below {root:?}"), Errno::NOENT)),
            false => Ok(layout),
        }
    }

    pub(super) fn only_unified(&self) -> bool {
        self.v1.is_empty()
    }

    pub(super) fn roots(&self) -> impl Iterator<Item = &PathBuf> {
        self.v1.iter().map(|hierarchy| &hierarchy.root).chain(&self.unified)
    }

    /// The controllers of the v2 tree that a container's cgroup is to have. On a hybrid host only what a limit asks for.
    pub(super) fn controllers_for(&self, resources: &LinuxResources) -> Vec<&'static str> {
        if self.only_unified() {
            return V2_CONTROLLERS.to_vec();
        }
        let hugepages = resources.hugepage_limits().as_ref().is_some_and(|limits| !limits.is_empty());
        match hugepages && !self.v1.iter().any(|hierarchy| hierarchy.has("hugetlb")) {
            true => vec!["hugetlb"],
            false => Vec::new(),
        }
    }
}

fn magic(path: &Path) -> Result<u64, Errno> {
    rustix::fs::statfs(path).map(|stat| stat.f_type as u64)
}

/// Several controllers may share a hierarchy, each name then being a link to the same directory.
fn v1_hierarchies(root: &Path) -> Vec<Hierarchy> {
    let mut found: Vec<(u64, Hierarchy)> = Vec::new();
    for controller in V1_NAMES {
        let path = root.join(controller);
        let Ok(stat) = rustix::fs::stat(&path) else {
            continue;
        };
        if let Some((_, known)) = found.iter_mut().find(|(device, _)| *device == stat.st_dev) {
            known.controllers.push(controller.into());
            continue;
        }
        if magic(&path) != Ok(CGROUP_SUPER_MAGIC) {
            continue;
        }
        let name = rustix::fs::readlink(&path, Vec::new()).ok().and_then(|link| link.into_string().ok());
        let name = name.unwrap_or_else(|| controller.into());
        let hierarchy = Hierarchy { root: root.join(&name), name, controllers: vec![controller.into()] };
        found.push((stat.st_dev, hierarchy));
    }
    found.into_iter().map(|(_, hierarchy)| hierarchy).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_without_cgroups_is_an_error() {
        let directory = tempfile::tempdir().expect("temporary directory");
        Layout::find(directory.path()).expect_err("no cgroups");
    }

    #[test]
    fn this_host_has_cgroups_with_each_controller_once() {
        let layout = Layout::find(Path::new(ROOT)).expect("cgroups");
        let mut controllers: Vec<_> = layout.v1.iter().flat_map(|h| h.controllers.clone()).collect();
        let all = controllers.len();
        controllers.sort_unstable();
        controllers.dedup();
        assert_eq!(controllers.len(), all);
        assert!(layout.roots().all(|root| root.is_dir()));
    }

    #[test]
    fn a_hybrid_host_enables_on_its_v2_tree_only_what_a_limit_needs() {
        let hierarchy = |name: &str| Hierarchy {
            name: name.into(),
            controllers: vec![name.into()],
            root: PathBuf::from("/nowhere"),
        };
        let layout = Layout { v1: vec![hierarchy("memory")], unified: Some("/nowhere".into()) };
        assert!(layout.controllers_for(&LinuxResources::default()).is_empty());
        let mut resources = LinuxResources::default();
        resources.set_hugepage_limits(Some(vec![Default::default()]));
        assert_eq!(layout.controllers_for(&resources), ["hugetlb"]);
    }
}
