//! Whose memory limit it was that the kernel killed for: the container's own, or one of a cgroup above it.

use std::path::{Path, PathBuf};

use berth_api::shim::OomLimit;

use super::files::{read_key, read_small};

/// Bytes beyond which a limit of version 1 is none: `PAGE_COUNTER_MAX` of a 64-bit kernel, rounded down to a page.
const UNLIMITED: u64 = i64::MAX as u64 / 4096 * 4096;

/// The nearest cgroup at or above `path` whose limit was reached. `None` when none was: the host itself ran out.
pub(super) fn limit(root: &Path, path: &Path, is_v2: bool) -> Option<OomLimit> {
    let look = if is_v2 { reached_v2 } else { reached_v1 };
    let levels = path.ancestors().take_while(|level| !level.as_os_str().is_empty());
    levels.enumerate().find_map(|(above, level)| {
        let bytes = look(&root.join(level))?;
        Some(OomLimit { cgroup: Path::new("/").join(level), own: above == 0, bytes })
    })
}

/// Version 2 counts each time that a cgroup was at its own limit and nothing could be reclaimed.
fn reached_v2(directory: &Path) -> Option<u64> {
    let times = read_key(&directory.join("memory.events.local"), "oom")?;
    (times > 0).then(|| number(directory.join("memory.max"))).flatten()
}

/// Version 1 remembers how much there was at most. (`failcnt` does not count memory and swap together on every kernel.)
fn reached_v1(directory: &Path) -> Option<u64> {
    const SLACK: u64 = 256 << 10; // the kernel charges 64 pages at a time
    ["memory", "memory.memsw"].iter().find_map(|counter| {
        let of = |what: &str| number(directory.join(format!("{counter}.{what}")));
        let bytes = of("limit_in_bytes").filter(|bytes| *bytes < UNLIMITED)?;
        (of("max_usage_in_bytes")?.saturating_add(SLACK) >= bytes).then_some(bytes)
    })
}

fn number(file: PathBuf) -> Option<u64> {
    read_small(&file).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn the_nearest_limit_that_was_reached_is_told() {
        let own = [("a/b/c/memory.events.local", "low 0\noom 1\n"), ("a/b/c/memory.max", "100\n")];
        let above = [("a/b/memory.events.local", "oom 3\n"), ("a/b/memory.max", "200\n")];
        let found = |files: &[(&str, &str)]| limit(tree(files).path(), Path::new("a/b/c"), true);
        let both = [own, above].concat();
        let expected = |cgroup: &str, own, bytes| Some(OomLimit { cgroup: cgroup.into(), own, bytes });
        assert_eq!(found(&both), expected("/a/b/c", true, 100));
        assert_eq!(found(&above), expected("/a/b", false, 200));
        assert_eq!(found(&[("a/b/c/memory.events.local", "oom 0\n"), ("a/b/c/memory.max", "100\n")]), None);
    }

    #[test]
    fn version_1_tells_it_by_its_highest_use() {
        let unlimited = UNLIMITED.to_string();
        let files = [
            ("a/c/memory.limit_in_bytes", unlimited.as_str()),
            ("a/c/memory.max_usage_in_bytes", "400000\n"),
            ("a/memory.limit_in_bytes", "600000\n"),
            ("a/memory.max_usage_in_bytes", "600000\n"),
        ];
        let found = limit(tree(&files).path(), Path::new("a/c"), false);
        assert_eq!(found, Some(OomLimit { cgroup: "/a".into(), own: false, bytes: 600_000 }));
    }
}
