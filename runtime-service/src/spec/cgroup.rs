//! CRI's `cgroup_parent` → the path of a container's cgroup, relative to the hierarchy's root, by either driver.

use super::Invalid;

/// Who makes the cgroups that containers' own are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    /// berth, directory by directory.
    Cgroupfs,
    /// systemd: slices above, and for each container a scope that it delegates.
    Systemd,
}

/// A scope, systemd's unit for processes that another one started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scope {
    /// Name of the unit.
    pub(crate) unit: String,
    /// The slice it is in.
    pub(crate) slice: String,
    /// Path of its cgroup, relative to the hierarchy's root.
    pub(crate) path: String,
}

/// What systemd's driver says of a parent that is none of its units.
const NO_SLICE: &str = "is no slice, which systemd's cgroup driver needs";

impl Driver {
    /// The cgroup that containers of a pod are in. `parent` is in cgroupfs syntax (`/kubepods/burstable/podX`) or slice
    /// syntax (`kubepods-burstable-podX.slice`, every dash a level); systemd knows slices only. An empty one means `root`.
    ///
    /// # Errors
    /// A parent that is relative, climbs out or has an empty part, or is no slice where it must be one.
    pub(crate) fn parent(self, parent: &str, root: &str) -> Result<String, Invalid> {
        let invalid =
            |problem: &str| Err(Invalid::new("sandbox_config.linux.cgroup_parent", format!("{parent:?} {problem}")));
        let last = parent.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        match parent {
            "" => Ok(root.to_owned()),
            "/" if self == Driver::Systemd => invalid(NO_SLICE),
            "/" => Ok(String::new()),
            absolute if absolute.starts_with('/') => {
                let parts: Vec<&str> = absolute[1..].trim_end_matches('/').split('/').collect();
                if parts.iter().any(|p| p.is_empty() || *p == "." || *p == "..") {
                    return invalid("has an empty, `.` or `..` part");
                }
                // systemd's own path, with its slices spelled out by the kubelet: the last slice says all.
                let path = absolute.trim_end_matches('/');
                match slices(last) {
                    Some(whole) if parts.len() == 1 || whole == path => Ok(whole),
                    _ if self == Driver::Systemd => invalid(NO_SLICE),
                    None if parts.len() == 1 && last.ends_with(".slice") => invalid("is not a valid slice name"),
                    _ => Ok(path.to_owned()),
                }
            }
            slice if slice.ends_with(".slice") && !slice.contains('/') => match slices(slice) {
                Some(path) => Ok(path),
                None => invalid("is not a valid slice name"),
            },
            _ => invalid("is neither an absolute path nor a systemd slice"),
        }
    }

    /// The driver for a pod with this parent, where this is the host's: systemd knows slices alone, so one in cgroupfs
    /// syntax, which another daemon took or a kubelet that goes by the other driver gives, is berth's own to fill.
    pub(crate) fn suited(self, parent: &str) -> Self {
        match self.parent(parent, "") {
            Err(_) if Driver::Cgroupfs.parent(parent, "").is_ok() => Driver::Cgroupfs,
            _ => self,
        }
    }

    /// The cgroup of container `id` below its pod's.
    pub(crate) fn container(self, parent: &str, id: &str) -> String {
        match self {
            Driver::Cgroupfs => format!("{parent}/{id}"),
            // Below the scope, which belongs to systemd: what is in a delegated cgroup it leaves alone.
            Driver::Systemd => format!("{parent}/{}/{id}", unit(id)),
        }
    }
}

/// Name of the scope of container `id`.
fn unit(id: &str) -> String {
    format!("berth-{id}.scope")
}

impl Scope {
    /// That of the container whose cgroup is `path`; `None` when systemd's driver did not place it.
    pub(crate) fn of(path: &str) -> Option<Self> {
        let (scope, id) = path.rsplit_once('/')?;
        let (above, name) = scope.rsplit_once('/')?;
        let slice = above.rsplit('/').next().filter(|slice| !slice.is_empty()).unwrap_or("-.slice");
        (name == unit(id)).then(|| Self { unit: name.into(), slice: slice.into(), path: scope.into() })
    }
}

/// `a-b-c.slice` → `/a.slice/a-b.slice/a-b-c.slice`; `-.slice` is the root. Source: systemd.slice(5).
fn slices(name: &str) -> Option<String> {
    let stem = name.strip_suffix(".slice")?;
    if stem == "-" {
        return Some(String::new());
    }
    let parts: Vec<&str> = stem.split('-').collect();
    if parts.iter().any(|p| p.is_empty()) {
        return None;
    }
    Some((1..=parts.len()).map(|n| format!("/{}.slice", parts[..n].join("-"))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPELLED: &str = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice";

    #[test]
    fn parents_in_both_syntaxes() {
        for (parent, path) in [
            ("", "/berth-abc"),
            ("/", ""),
            ("/kubepods/burstable/pod1", "/kubepods/burstable/pod1"),
            ("/kubepods/", "/kubepods"),
            ("kubepods.slice", "/kubepods.slice"),
            ("kubepods-burstable-pod1.slice", SPELLED),
            (SPELLED, SPELLED),
            ("/kubepods-burstable.slice", "/kubepods.slice/kubepods-burstable.slice"),
            ("/a/x-y.slice", "/a/x-y.slice"),
            ("-.slice", ""),
        ] {
            assert_eq!(Driver::Cgroupfs.parent(parent, "/berth-abc").expect(parent), path);
        }
    }

    #[test]
    fn a_parent_that_systemd_does_not_know_is_filled_by_berth() {
        use Driver::{Cgroupfs, Systemd};
        for (parent, driver) in [
            ("", Systemd),
            ("kubepods-burstable-pod1.slice", Systemd),
            (SPELLED, Systemd),
            ("/kubepods/burstable/pod1", Cgroupfs),
            ("/", Cgroupfs),
            ("relative", Systemd),
        ] {
            assert_eq!((Systemd.suited(parent), Cgroupfs.suited(parent)), (driver, Cgroupfs), "{parent}");
        }
    }

    #[test]
    fn systemd_takes_slices_alone() {
        for (parent, path) in [
            ("", "/berth.slice/berth-abc.slice"),
            ("kubepods-burstable-pod1.slice", SPELLED),
            (SPELLED, SPELLED),
            ("/kubepods.slice", "/kubepods.slice"),
            ("-.slice", ""),
        ] {
            assert_eq!(Driver::Systemd.parent(parent, "/berth.slice/berth-abc.slice").expect(parent), path);
        }
        for parent in ["/", "/kubepods/burstable/pod1", "/a/x-y.slice"] {
            let error = Driver::Systemd.parent(parent, "/berth").expect_err(parent).to_string();
            assert!(error.contains("is no slice") && error.contains(parent), "{error}");
        }
    }

    #[test]
    fn a_containers_scope_is_told_by_its_path() {
        let path = Driver::Systemd.container(SPELLED, "X");
        assert_eq!(path, format!("{SPELLED}/berth-X.scope/X"));
        let scope = Scope::of(&path).expect("a scope");
        let expected = Scope {
            unit: "berth-X.scope".into(),
            slice: "kubepods-burstable-pod1.slice".into(),
            path: format!("{SPELLED}/berth-X.scope"),
        };
        assert_eq!(scope, expected);
        assert_eq!(Scope::of(&Driver::Systemd.container("", "X")).expect("a scope").slice, "-.slice");
        for path in [Driver::Cgroupfs.container(SPELLED, "X"), "/a.slice/other.scope/X".into(), "/X".into()] {
            assert_eq!(Scope::of(&path), None, "{path}");
        }
    }

    #[test]
    fn bad_parents_are_refused_by_name() {
        for parent in ["kubepods", "../x", "/a/../b", "/a//b", "a--b.slice", "/a--b.slice", "/./a", "x/y.slice"] {
            for driver in [Driver::Cgroupfs, Driver::Systemd] {
                let error = driver.parent(parent, "/berth").expect_err(parent).to_string();
                assert!(error.contains("cgroup_parent") && error.contains(parent), "{error}");
            }
        }
    }
}
