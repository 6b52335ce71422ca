//! CRI's `cgroup_parent` → the path of a container's cgroup, relative to the hierarchy's root.

use super::Invalid;

/// The cgroup of container `id` under `parent`, which is in cgroupfs syntax (`/kubepods/burstable/podX`) or slice syntax
/// (`kubepods-burstable-podX.slice`, every dash a level). An empty parent means `root`.
///
/// # Errors
/// A parent that is relative, climbs out or has an empty part.
pub(crate) fn container_path(parent: &str, root: &str, id: &str) -> Result<String, Invalid> {
    let invalid =
        |problem: &str| Err(Invalid::new("sandbox_config.linux.cgroup_parent", format!("{parent:?} {problem}")));
    let parent = match parent {
        "" => return Ok(format!("{root}/{id}")),
        "/" => String::new(),
        absolute if absolute.starts_with('/') => {
            let parts: Vec<&str> = absolute[1..].trim_end_matches('/').split('/').collect();
            if parts.iter().any(|p| p.is_empty() || *p == "." || *p == "..") {
                return invalid("has an empty, `.` or `..` part");
            }
            match parts.last() {
                // systemd's own path, with its slices spelled out by the kubelet: the last slice says all.
                Some(last) if last.ends_with(".slice") && parts.len() == 1 => slices(last),
                _ => Some(absolute.trim_end_matches('/').to_owned()),
            }
            .map_or_else(|| invalid("is not a valid slice name"), Ok)?
        }
        slice if slice.ends_with(".slice") && !slice.contains('/') => match slices(slice) {
            Some(path) => path,
            None => return invalid("is not a valid slice name"),
        },
        _ => return invalid("is neither an absolute path nor a systemd slice"),
    };
    Ok(format!("{parent}/{id}"))
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

    #[test]
    fn parents_in_both_syntaxes() {
        for (parent, path) in [
            ("", "/berth-abc/X"),
            ("/", "/X"),
            ("/kubepods/burstable/pod1", "/kubepods/burstable/pod1/X"),
            ("/kubepods/", "/kubepods/X"),
            ("kubepods.slice", "/kubepods.slice/X"),
            (
                "kubepods-burstable-pod1.slice",
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/X",
            ),
            ("/kubepods-burstable.slice", "/kubepods.slice/kubepods-burstable.slice/X"),
            ("-.slice", "/X"),
        ] {
            assert_eq!(container_path(parent, "/berth-abc", "X").expect(parent), path);
        }
    }

    #[test]
    fn bad_parents_are_refused_by_name() {
        for parent in ["kubepods", "../x", "/a/../b", "/a//b", "a--b.slice", "/./a", "x/y.slice"] {
            let error = container_path(parent, "/berth", "X").expect_err(parent).to_string();
            assert!(error.contains("cgroup_parent") && error.contains(parent), "{error}");
        }
    }
}
