//! Files under a node's roots, by path and sort; leases of addresses are a kind of their own.

use std::fs;
use std::path::Path;

use super::Seen;

pub(super) fn look(roots: &[std::path::PathBuf], seen: &mut Seen) {
    for root in roots {
        descend(root, seen);
    }
}

fn descend(dir: &Path, seen: &mut Seen) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        let in_ipam = path.components().any(|part| part.as_os_str() == "ipam");
        if kind.is_dir() {
            if !in_ipam {
                seen.add("directory", path.to_string_lossy());
            }
            descend(&path, seen);
        } else if !in_ipam {
            seen.add("file", path.to_string_lossy());
        } else if is_lease(&path) {
            seen.add("lease", path.to_string_lossy());
        }
    }
}

/// host-local names a lease's file after its address, with `_` for `:` in some versions; locks and last-used markers
/// stay.
fn is_lease(path: &Path) -> bool {
    let name = path.file_name().map(|n| n.to_string_lossy().replace('_', ":")).unwrap_or_default();
    name.parse::<std::net::IpAddr>().is_ok()
}
