//! Directories of every cgroup hierarchy, version 1 and 2.

use std::fs;
use std::path::Path;

use super::Seen;

pub(super) fn look(only: &[String], seen: &mut Seen) {
    let Ok(table) = fs::read_to_string("/proc/self/mountinfo") else {
        return;
    };
    for line in table.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        if matches!(right.split(' ').next(), Some("cgroup" | "cgroup2"))
            && let Some(point) = left.split(' ').nth(4)
        {
            descend(Path::new(point), only, seen);
        }
    }
}

fn descend(dir: &Path, only: &[String], seen: &mut Seen) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            let path = entry.path();
            let name = path.to_string_lossy();
            if only.is_empty() || only.iter().any(|text| name.contains(text)) {
                seen.add("cgroup", name.clone());
            }
            descend(&path, only, seen);
        }
    }
}
