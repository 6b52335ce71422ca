//! Mounts in every mount namespace that a visible process has, and the namespaces pinned by one of them.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use super::Seen;

pub(super) fn look(seen: &mut Seen) {
    let own = fs::read_link("/proc/self/ns/mnt").ok();
    let mut done = HashSet::new();
    for process in super::processes::all() {
        let dir = Path::new("/proc").join(process.pid.to_string());
        let Ok(namespace) = fs::read_link(dir.join("ns/mnt")) else {
            continue;
        };
        if !done.insert(namespace.clone()) {
            continue;
        }
        let Ok(table) = fs::read_to_string(dir.join("mountinfo")) else {
            continue;
        };
        // A namespace of its own is one finding, named by who holds it; its mounts are looked at for pins only.
        let ours = Some(&namespace) == own.as_ref();
        if !ours {
            seen.add("mount namespace", format!("of {}", process.line));
        }
        for line in table.lines() {
            let Some((what, is_namespace)) = mount(line) else {
                continue;
            };
            if is_namespace {
                seen.add("pinned namespace", what);
            } else if ours {
                seen.add("mount", what);
            }
        }
    }
}

/// A line of mountinfo as `MOUNT-POINT (TYPE)`, and whether it pins a namespace. See proc_pid_mountinfo(5).
fn mount(line: &str) -> Option<(String, bool)> {
    let (left, right) = line.split_once(" - ")?;
    let mut fields = left.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    let kind = right.split(' ').next()?;
    if kind == "nsfs" {
        // The root of such a mount is `net:[4026532000]`: only the sort of namespace says something to a reader.
        let sort = root.split(':').next()?;
        return Some((format!("{sort} at {point}"), true));
    }
    Some((format!("{point} ({kind})"), false))
}
