//! Whether a volume's host path is there, and on a mount that can propagate what the request asks for. The mounting is
//! the shim's, to which a private mount with a new peer group would look as good as a shared one.

use std::fs;
use std::path::{Path, PathBuf};

use berth_api::cri::{ContainerConfig, MountPropagation};

use crate::spec::Invalid;

/// Checks every mount of the request.
///
/// # Errors
/// The first mount whose host path cannot be found, or cannot give the propagation that is asked for.
pub(super) fn check(config: &ContainerConfig) -> Result<(), Invalid> {
    let mut table = None;
    for (index, mount) in config.mounts.iter().enumerate() {
        let invalid = |field: &str, problem: String| Invalid::new(format!("config.mounts[{index}].{field}"), problem);
        // Not absolute: the spec's to refuse, which is built next.
        if !mount.host_path.starts_with('/') {
            continue;
        }
        let path = fs::canonicalize(&mount.host_path);
        let path = path.map_err(|e| invalid("host_path", format!("{}: {e}", mount.host_path)))?;
        let needed: &[&str] = match mount.propagation() {
            MountPropagation::PropagationPrivate => continue,
            MountPropagation::PropagationHostToContainer => &["shared:", "master:"],
            MountPropagation::PropagationBidirectional => &["shared:"],
        };
        if table.is_none() {
            let read = fs::read_to_string("/proc/self/mountinfo");
            table = Some(read.map_err(|e| invalid("propagation", format!("read /proc/self/mountinfo: {e}")))?);
        }
        let Some((point, tags)) = table.as_deref().and_then(|table| mount_of(table, &path)) else { continue };
        if !tags.iter().any(|tag| needed.iter().any(|n| tag.starts_with(n))) {
            let (mode, also) = (mount.propagation().as_str_name(), if needed.len() > 1 { " and no slave" } else { "" });
            let (path, point) = (&mount.host_path, point.display());
            let problem = format!("{mode}, but {path} is on the mount at {point}, which is not shared{also}");
            return Err(invalid("propagation", problem));
        }
    }
    Ok(())
}

/// The mount that `path` is on, with its propagation tags. Source: proc_pid_mountinfo(5).
pub(super) fn mount_of<'a>(table: &'a str, path: &Path) -> Option<(PathBuf, Vec<&'a str>)> {
    let mut best: Option<(PathBuf, Vec<&str>)> = None;
    for line in table.lines() {
        let mut fields = line.split(' ');
        let Some(point) = fields.nth(4).map(unescaped) else { continue };
        // The options of the mount, then optional fields up to a single dash.
        let tags: Vec<&str> = fields.skip(1).take_while(|f| *f != "-").collect();
        // Of two at one place the later one covers the earlier.
        let deeper = |(b, _): &(PathBuf, _)| point.components().count() >= b.components().count();
        if path.starts_with(&point) && best.as_ref().is_none_or(deeper) {
            best = Some((point, tags));
        }
    }
    best
}

/// Space, tab, newline and backslash are octal there.
fn unescaped(text: &str) -> PathBuf {
    let codes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    codes.iter().fold(text.to_owned(), |text, (code, character)| text.replace(code, character)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_and_last_mount_counts() {
        let table = "1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/a rw\n\
                     2 1 8:2 / /data rw - ext4 /dev/b rw\n\
                     3 1 8:3 / /data rw master:4 propagate_from:2 - ext4 /dev/c rw\n\
                     4 3 8:4 / /data/with\\040space rw shared:7 - ext4 /dev/d rw\n";
        for (path, point, tags) in [
            ("/x", "/", &["shared:1"][..]),
            ("/database", "/", &["shared:1"]),
            ("/data/y", "/data", &["master:4", "propagate_from:2"]),
            ("/data/with space/z", "/data/with space", &["shared:7"]),
        ] {
            assert_eq!(mount_of(table, Path::new(path)), Some((point.into(), tags.to_vec())), "{path}");
        }
    }
}
