//! Whether a volume's host path is there, and on a mount that can propagate what the request asks for. The mounting is
//! the shim's, to which a private mount with a new peer group would look as good as a shared one.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use berth_api::cri::{ContainerConfig, Mount, MountPropagation};

use crate::host::aside::{Aside, Late};
use crate::spec::Invalid;

/// Longest wait for the paths of one request. A file system of a server that has gone does not answer at all.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Threads that look at paths.
pub(super) static LOOKS: Aside = Aside::new(256);

/// Paths that are being looked at, since when.
static LOOKED_AT: Mutex<Vec<(Instant, String)>> = Mutex::new(Vec::new());

/// Checks every mount of the request.
///
/// # Errors
/// The first mount whose host path cannot be found, does not answer, or cannot give the propagation that is asked for.
pub(super) async fn check(config: &ContainerConfig) -> Result<(), Invalid> {
    // Not absolute: the spec's to refuse, which is built next.
    let paths = config.mounts.iter().enumerate().filter(|(_, mount)| mount.host_path.starts_with('/'));
    let mounts: Vec<(usize, Mount)> = paths.map(|(index, mount)| (index, mount.clone())).collect();
    if mounts.is_empty() {
        return Ok(());
    }
    let hangs = |(index, mount): &(usize, Mount)| {
        let problem = format!("{}: its file system does not answer (is its server there?)", mount.host_path);
        Err(Invalid::new(format!("config.mounts[{index}].host_path"), problem))
    };
    // Every repetition would cost a thread more, for as long as that hangs.
    if let Some(known) = mounts.iter().find(|(_, mount)| hanging(&mount.host_path)) {
        return hangs(known);
    }
    let work = mounts.clone();
    match LOOKS.run(PATIENCE, move || look(&work)).await {
        Ok(result) => result,
        Err(Late) => hangs(mounts.iter().find(|(_, mount)| hanging(&mount.host_path)).unwrap_or(&mounts[0])),
    }
}

/// Somebody has waited for this path for as long as anybody waits.
fn hanging(path: &str) -> bool {
    let all = LOOKED_AT.lock().unwrap_or_else(PoisonError::into_inner);
    // A little less, so that whoever has just waited in vain finds what for.
    all.iter().any(|(since, looked_at)| looked_at == path && since.elapsed() + Duration::from_secs(1) >= PATIENCE)
}

/// The path without links.
fn resolved(path: &str) -> std::io::Result<PathBuf> {
    let entry = (Instant::now(), path.to_owned());
    LOOKED_AT.lock().unwrap_or_else(PoisonError::into_inner).push(entry.clone());
    let found = fs::canonicalize(path);
    let mut all = LOOKED_AT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(position) = all.iter().position(|other| *other == entry) {
        all.swap_remove(position);
    }
    found
}

fn look(mounts: &[(usize, Mount)]) -> Result<(), Invalid> {
    let mut table = None;
    for (index, mount) in mounts {
        let invalid = |field: &str, problem: String| Invalid::new(format!("config.mounts[{index}].{field}"), problem);
        let path = resolved(&mount.host_path);
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
