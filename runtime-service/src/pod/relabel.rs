//! Volumes that are given their container's SELinux label (`Mount.selinux_relabel`): which may be, and the walk that does.
//! What a volume was before is not kept: a label is how whoever asks shares it.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use berth_api::cri::ContainerConfig;
use berth_image_service::MountSpec;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;

use super::{Error, blocking};
use crate::host::selinux::ATTRIBUTE;
use crate::ledger::Roots;
use crate::spec::{Invalid, is_image_volume};

/// Directories of the host's: with a container's label on them, other programs do not get at what is theirs.
const HOSTS: &[&str] = &[
    "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt", "/proc", "/root",
    "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var", "/var/lib", "/var/log", "/var/run", "/var/tmp",
];

/// Of these nothing is anybody's to label.
const KERNELS: &[&str] = &["/proc", "/sys", "/dev"];

/// The longest label, in bytes. The policy's own bound is a page.
const LABEL_MAX: usize = 4096;

/// Directories in one another that are walked. Each is a descriptor meanwhile; a path can name about 2000.
const DEPTH_MAX: usize = 1000;

/// What of the request is to be relabelled, with symbolic links resolved.
///
/// # Errors
/// A directory that is not a volume's; one that cannot be resolved.
pub(super) fn wanted(config: &ContainerConfig, roots: &Roots) -> Result<Vec<PathBuf>, Invalid> {
    let mut found = Vec::new();
    for (index, mount) in config.mounts.iter().enumerate() {
        // An image is mounted with the label, and has none of its own.
        if !mount.selinux_relabel || is_image_volume(mount) {
            continue;
        }
        let refused = |problem| Invalid::new(format!("config.mounts[{index}].selinux_relabel"), problem);
        let path = fs::canonicalize(&mount.host_path).map_err(|e| refused(format!("{}: {e}", mount.host_path)))?;
        match obstacle(&path, roots) {
            Some(obstacle) => {
                return Err(refused(format!(
                    "{} {obstacle}: give the container a directory of its own",
                    path.display()
                )));
            }
            None => found.push(path),
        }
    }
    Ok(found)
}

/// Why this is not to be relabelled.
fn obstacle(path: &Path, roots: &Roots) -> Option<&'static str> {
    if HOSTS.iter().any(|host| path == Path::new(host)) {
        return Some("is the host's own");
    }
    if KERNELS.iter().any(|kernel| path.starts_with(kernel)) {
        return Some("is the kernel's");
    }
    let own = |root: &Path| root.starts_with(path) || path.starts_with(root);
    (own(&roots.data) || own(&roots.run)).then_some("has what is berth's own")
}

/// Gives the volumes that are to have it this label, which is the container's.
///
/// # Errors
/// As `wanted`; the file that cannot be labelled.
pub(super) async fn volumes(config: &ContainerConfig, roots: &Roots, label: &str) -> Result<(), Error> {
    for path in wanted(config, roots)? {
        let label = label.to_owned();
        blocking(move || step!("create_container::relabel", relabel(&path, &label))).await?;
    }
    Ok(())
}

/// The same for a root that is a copy of its image, and so the container's own. What is stacked is mounted with its label.
///
/// # Errors
/// The file that cannot be labelled.
pub(super) async fn copies(mounts: &[MountSpec], label: &str) -> Result<(), Error> {
    for mount in mounts.iter().filter(|mount| mount.kind == "bind") {
        let (source, label) = (PathBuf::from(&mount.source), label.to_owned());
        blocking(move || step!("create_container::label-copy", relabel(&source, &label))).await?;
    }
    Ok(())
}

/// Gives this label to the file, or to the directory with everything in it, that does not have it. Follows no symbolic
/// link, not even in `path`. Repeated, it goes on where it was killed.
///
/// # Errors
/// The file that cannot be labelled; one whose file system has no labels is passed over, and so is one that has gone.
fn relabel(path: &Path, label: &str) -> Result<(), Error> {
    let failed = |(path, source)| Error::Io { deed: "relabel for SELinux", path, source };
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed((path.to_owned(), Errno::INVAL.into())));
    };
    let (flags, no_links) = (OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, ResolveFlags::NO_SYMLINKS);
    let top = rustix::fs::openat2(CWD, parent, flags, Mode::empty(), no_links);
    let top = top.and_then(|parent| visit(&parent, Path::new(name), label));
    match top.map_err(|errno| failed((path.to_owned(), errno.into())))? {
        Some(top) => walk(path, top, label).map_err(failed),
        None => Ok(()),
    }
}

type Failed = (PathBuf, io::Error);

/// A directory that is being read.
struct Level {
    /// By which its entries are named.
    directory: OwnedFd,
    entries: Dir,
}

fn walk(path: &Path, top: Level, label: &str) -> Result<(), Failed> {
    let failed = |path: &Path, errno: Errno| (path.to_owned(), io::Error::from(errno));
    let mut path = path.to_owned();
    let mut levels = vec![top];
    while let Some(level) = levels.last_mut() {
        let Some(entry) = level.entries.next() else {
            levels.pop();
            path.pop();
            continue;
        };
        let entry = entry.map_err(|errno| failed(&path, errno))?;
        let name = Path::new(OsStr::from_bytes(entry.file_name().to_bytes()));
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        let below = visit(&level.directory, name, label).map_err(|errno| failed(&path.join(name), errno))?;
        let Some(below) = below else { continue };
        path.push(name);
        levels.push(below);
        if levels.len() > DEPTH_MAX {
            return Err((path, io::Error::other(format!("more than {DEPTH_MAX} directories in one another"))));
        }
    }
    Ok(())
}

/// Labels an entry; if it is a directory, that is what comes next.
fn visit(directory: &OwnedFd, name: &Path, label: &str) -> Result<Option<Level>, Errno> {
    let kind = label_file(directory, name, label).and_then(|()| {
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(FileType::from_raw_mode(stat.st_mode))
    });
    let opened = match kind {
        Ok(FileType::Directory) => open(directory, name).map(Some),
        Ok(_) => Ok(None),
        Err(errno) => Err(errno),
    };
    match opened {
        // Removed since, or replaced by what is no directory.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        other => other,
    }
}

fn open(directory: &OwnedFd, name: &Path) -> Result<Level, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(directory, name, flags, Mode::empty())?;
    let entries = Dir::read_from(&directory)?;
    Ok(Level { directory, entries })
}

/// The file itself, not what it may point to.
fn label_file(directory: &OwnedFd, name: &Path, label: &str) -> Result<(), Errno> {
    // There is no call with a descriptor and a name before Linux 6.13.
    let path = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    let mut has = [0; LABEL_MAX];
    let found = rustix::fs::lgetxattr(&path, ATTRIBUTE, &mut has);
    // The kernel tells it with a NUL.
    let same =
        found.is_ok_and(|length| has[..length].strip_suffix(b"\0").unwrap_or(&has[..length]) == label.as_bytes());
    let set = || rustix::fs::lsetxattr(&path, ATTRIBUTE, label.as_bytes(), XattrFlags::empty());
    match if same { Ok(()) } else { set() } {
        Err(Errno::OPNOTSUPP) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_api::cri::{ImageSpec, Mount};

    fn config(host_path: &Path, image: bool) -> ContainerConfig {
        let image = image.then(|| ImageSpec { image: "x".into(), ..Default::default() });
        let host_path = host_path.to_string_lossy().into_owned();
        let mount = Mount { host_path, selinux_relabel: true, image, ..Default::default() };
        ContainerConfig { mounts: vec![mount], ..Default::default() }
    }

    #[test]
    fn what_is_the_hosts_the_kernels_or_our_own_is_not_relabelled_by_whatever_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let top = dir.path().canonicalize().expect("a path");
        let roots = Roots { data: top.join("data/berth"), run: top.join("run") };
        for path in ["data/berth", "run/p", "volume"] {
            fs::create_dir_all(top.join(path)).expect("make it");
        }
        std::os::unix::fs::symlink("/usr", top.join("volume/usr")).expect("a link");
        for path in [
            Path::new("/"),
            Path::new("/etc/../etc"),
            Path::new("/proc/sys"),
            &top.join("data"),
            &top.join("run/p"),
            &top.join("volume/usr"),
        ] {
            let refused = wanted(&config(path, false), &roots).expect_err("refused");
            assert_eq!(refused.field, "config.mounts[0].selinux_relabel");
            assert!(refused.problem.starts_with('/'), "it names the path: {}", refused.problem);
        }
        assert_eq!(wanted(&config(&top.join("volume"), false), &roots).expect("a volume"), [top.join("volume")]);
        assert!(wanted(&config(Path::new("/usr"), true), &roots).expect("an image").is_empty());
    }

    /// The attribute is as good as any where SELinux is off.
    #[test]
    fn everything_in_a_volume_has_the_label_and_what_a_link_points_to_does_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let (volume, outside) = (dir.path().join("volume"), dir.path().join("outside"));
        fs::create_dir_all(volume.join("a/b")).expect("directories");
        fs::create_dir(&outside).expect("a directory");
        fs::write(outside.join("file"), "").expect("a file");
        fs::write(volume.join("a/b/file"), "").expect("a file");
        for (name, to) in [("link", outside.clone()), ("a/loop", volume.clone()), ("a/file", outside.join("file"))] {
            std::os::unix::fs::symlink(to, volume.join(name)).expect("a link");
        }
        let label_of = |path: &Path| {
            let mut value = [0; 64];
            let length = rustix::fs::lgetxattr(path, ATTRIBUTE, &mut value).ok()?;
            Some(String::from_utf8_lossy(&value[..length]).into_owned())
        };
        let before = label_of(&outside.join("file"));
        for label in ["u:r:t:s0:c1,c2", "u:r:t:s0:c3,c4", "u:r:t:s0:c3,c4"] {
            match relabel(&volume, label) {
                Ok(()) => {}
                // Only root labels files.
                Err(Error::Io { source, .. }) if source.raw_os_error() == Some(1) => return,
                Err(other) => panic!("{other}"),
            }
            for path in ["", "a", "a/b", "a/b/file", "link", "a/loop", "a/file"] {
                assert_eq!(label_of(&volume.join(path)).as_deref(), Some(label), "{path}");
            }
        }
        assert_eq!(label_of(&outside.join("file")), before);
        let through = volume.join("link/file");
        relabel(&through, "u:r:t:s0").expect_err("a link on the way");
        relabel(&volume.join("a/b/file"), "u:r:t:s0").expect("a file");
        assert_eq!(label_of(&volume.join("a/b/file")).as_deref(), Some("u:r:t:s0"));
        assert_eq!(label_of(&volume.join("a/b")).as_deref(), Some("u:r:t:s0:c3,c4"));
    }

    #[test]
    fn directories_without_end_are_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut at = rustix::fs::open(dir.path(), OFlags::RDONLY, Mode::empty()).expect("open");
        for _ in 0..=DEPTH_MAX {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).expect("make a directory");
            at = rustix::fs::openat(&at, "d", OFlags::RDONLY, Mode::empty()).expect("open");
        }
        let told = super::super::chain(&relabel(dir.path(), "u:r:t:s0").expect_err("too deep"));
        assert!(told.contains("in one another") || told.contains("not permitted"), "{told}");
    }
}
