//! Volumes that are given their container's SELinux label (`Mount.selinux_relabel`): which may be, and the walk that does.
//! What a volume was before is not kept: a label is how whoever asks shares it.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use berth_api::cri::ContainerConfig;
use berth_image_service::MountSpec;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, StatxFlags, XattrFlags};
use rustix::io::Errno;

use super::{Error, volumes};
use crate::host::aside::{Aside, Late};
use crate::host::selinux::ATTRIBUTE;
use crate::ledger::Roots;
use crate::spec::{Invalid, is_image_volume};

/// The host's own: with a container's label on them, other programs do not get at what is theirs. What is in them may be a
/// volume.
const HOSTS: &[&str] = &[
    "/",
    "/etc",
    "/home",
    "/media",
    "/mnt",
    "/opt",
    "/root",
    "/run",
    "/srv",
    "/tmp",
    "/var",
    "/var/lib",
    "/var/lib/kubelet",
    "/var/lib/kubelet/pods",
    "/var/log",
    "/var/run",
    "/var/tmp",
];

/// Of these what is in them is the host's too.
const HOSTS_WHOLE: &[&str] = &[
    "/bin",
    "/boot",
    "/lib",
    "/lib64",
    "/sbin",
    "/usr",
    "/etc/group",
    "/etc/gshadow",
    "/etc/kubernetes",
    "/etc/pam.d",
    "/etc/passwd",
    "/etc/pki",
    "/etc/selinux",
    "/etc/shadow",
    "/etc/ssh",
    "/etc/ssl",
    "/etc/systemd",
];

/// Of these nothing is anybody's to label.
const KERNELS: &[&str] = &["/proc", "/sys", "/dev"];

/// The longest label, in bytes. The policy's own bound is a page.
const LABEL_MAX: usize = 4096;

/// Directories in one another that are walked, each an open one meanwhile; a path can name about 2000.
const DEPTH_MAX: usize = 1000;

/// Of a path in an error, in bytes.
const TOLD_MAX: usize = 1000;

/// Longest walk through one volume: a kubelet waits for two minutes, and goes on by asking again.
const PATIENCE: Duration = Duration::from_secs(60);

/// Threads that walk.
static WALKS: Aside = Aside::new(32);

/// What is being walked. Two walks through one volume would leave it with some files of either's label.
static WALKED: (Mutex<Vec<PathBuf>>, Condvar) = (Mutex::new(Vec::new()), Condvar::new());

/// What of the request is to be relabelled, with symbolic links resolved.
///
/// # Errors
/// A directory that is not a volume's; one that cannot be resolved, or whose file system does not answer.
pub(super) async fn wanted(config: &ContainerConfig, roots: &Roots) -> Result<Vec<PathBuf>, Invalid> {
    let mut found = Vec::new();
    for (index, mount) in config.mounts.iter().enumerate() {
        // An image is mounted with the label, and has none of its own.
        if !mount.selinux_relabel || is_image_volume(mount) {
            continue;
        }
        let refused = |problem| Invalid::new(format!("config.mounts[{index}].selinux_relabel"), problem);
        let (asked, roots) = (mount.host_path.clone(), roots.clone());
        let resolved = volumes::LOOKS.run(volumes::PATIENCE, move || {
            let path = fs::canonicalize(&asked)?;
            let obstacle = obstacle(&path, &roots);
            Ok::<_, io::Error>((path, obstacle))
        });
        let resolved = resolved.await.map_err(|Late| io::Error::other("its file system does not answer"));
        match resolved.and_then(|resolved| resolved) {
            Err(e) => return Err(refused(format!("{}: {e}", mount.host_path))),
            Ok((path, Some(obstacle))) => {
                let path = path.display();
                return Err(refused(format!("{path} {obstacle}: give the container a directory of its own")));
            }
            Ok((path, None)) => found.push(path),
        }
    }
    Ok(found)
}

/// Why this is not to be relabelled.
fn obstacle(path: &Path, roots: &Roots) -> Option<&'static str> {
    // Of most hosts one or the other is a link: /bin, or /home.
    let places = |named: &[&str]| {
        let named = named.iter().map(PathBuf::from);
        named.flat_map(|place| [fs::canonicalize(&place).ok(), Some(place)]).flatten().collect::<Vec<_>>()
    };
    if places(HOSTS).iter().any(|host| path == host) || places(HOSTS_WHOLE).iter().any(|host| path.starts_with(host)) {
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
/// As `wanted`; the file that cannot be labelled; a volume that takes longer than `PATIENCE`.
pub(super) async fn volumes(config: &ContainerConfig, roots: &Roots, label: &str) -> Result<(), Error> {
    for path in wanted(config, roots).await? {
        step!("create_container::relabel", relabel(path, label, PATIENCE).await)?;
    }
    Ok(())
}

/// The same for a root that is a copy of its image, and so the container's own. What is stacked is mounted with its label.
///
/// # Errors
/// The file that cannot be labelled; a copy that takes longer than `PATIENCE`.
pub(super) async fn copies(mounts: &[MountSpec], label: &str) -> Result<(), Error> {
    for mount in mounts.iter().filter(|mount| mount.kind == "bind") {
        step!("create_container::label-copy", relabel(PathBuf::from(&mount.source), label, PATIENCE).await)?;
    }
    Ok(())
}

/// Gives this label to the file, or to the directory with everything in it, that does not have it. Follows no symbolic
/// link, not even in `path`, and leaves out what is mounted below. Repeated, it goes on where it was killed or stopped.
///
/// # Errors
/// The file that cannot be labelled; that it takes longer than `limit`. A file whose file system has no labels is passed
/// over, and so is one that has gone.
async fn relabel(path: PathBuf, label: &str, limit: Duration) -> Result<(), Error> {
    let (walk, stop) = (Arc::new(Walk { label: label.to_owned(), ..Walk::default() }), path.clone());
    let _stopped = Stop(walk.clone());
    let done = WALKS.run(limit, {
        let walk = walk.clone();
        move || Turn::of(&path, &walk).map_or(Ok(()), |_turn| walk.whole(&path))
    });
    let failed = |(path, source)| Error::Io { deed: "relabel for SELinux", path: told(path), source };
    match done.await {
        Ok(done) => done.map_err(failed),
        Err(Late) => {
            let (seconds, files) = (limit.as_secs(), walk.files.load(Ordering::Relaxed));
            let problem =
                format!("not done within {seconds} s, with {files} files; asked for again it goes on from there");
            Err(failed((stop, io::Error::new(io::ErrorKind::TimedOut, problem))))
        }
    }
}

/// A path as long as an error may have it.
fn told(path: PathBuf) -> PathBuf {
    let bytes = path.as_os_str().as_bytes();
    match bytes.len() > TOLD_MAX {
        true => PathBuf::from(format!("{}…", String::from_utf8_lossy(&bytes[..TOLD_MAX]))),
        false => path,
    }
}

/// The right to walk through a path, until this is dropped.
struct Turn<'a>(&'a Path);

impl<'a> Turn<'a> {
    /// Waits for whoever has it; `None` when nobody waits for this walk any more.
    fn of(path: &'a Path, walk: &Walk) -> Option<Self> {
        let (walked, one_less) = &WALKED;
        let mut all = walked.lock().unwrap_or_else(PoisonError::into_inner);
        while all.iter().any(|other| other == path) {
            if walk.stopped.load(Ordering::Relaxed) {
                return None;
            }
            let wait = one_less.wait_timeout(all, Duration::from_millis(100));
            all = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
        all.push(path.to_owned());
        Some(Self(path))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let (walked, one_less) = &WALKED;
        walked.lock().unwrap_or_else(PoisonError::into_inner).retain(|other| other != self.0);
        one_less.notify_all();
    }
}

/// Ends a walk when nobody waits for it any more.
struct Stop(Arc<Walk>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.stopped.store(true, Ordering::Relaxed);
    }
}

/// One walk, as it is seen from outside.
#[derive(Default)]
struct Walk {
    label: String,
    files: AtomicU64,
    stopped: AtomicBool,
}

type Failed = (PathBuf, io::Error);

impl Walk {
    fn whole(&self, path: &Path) -> Result<(), Failed> {
        let failed = |errno: Errno| (path.to_owned(), io::Error::from(errno));
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(failed(Errno::INVAL)) };
        let (flags, no_links) = (OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, ResolveFlags::NO_SYMLINKS);
        let parent = rustix::fs::openat2(CWD, parent, flags, Mode::empty(), no_links).map_err(failed)?;
        let name = Path::new(name);
        let (_, mount) = kind_and_mount(parent.as_fd(), name).map_err(failed)?;
        match self.visit(parent.as_fd(), name, mount).map_err(failed)? {
            Some(top) => self.below(path, top, mount),
            None => Ok(()),
        }
    }

    fn below(&self, path: &Path, top: Dir, mount: u64) -> Result<(), Failed> {
        let failed = |path: &Path, errno: Errno| (path.to_owned(), io::Error::from(errno));
        let mut path = path.to_owned();
        let mut levels = vec![top];
        while let Some(level) = levels.last_mut() {
            if self.stopped.load(Ordering::Relaxed) {
                return Err((path, io::ErrorKind::Interrupted.into()));
            }
            let Some(entry) = level.next() else {
                levels.pop();
                path.pop();
                continue;
            };
            let entry = entry.map_err(|errno| failed(&path, errno))?;
            let name = Path::new(OsStr::from_bytes(entry.file_name().to_bytes()));
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            let below = level.fd().and_then(|directory| self.visit(directory, name, mount));
            let Some(below) = below.map_err(|errno| failed(&path.join(name), errno))? else { continue };
            path.push(name);
            levels.push(below);
            if levels.len() > DEPTH_MAX {
                return Err((path, io::Error::other(format!("more than {DEPTH_MAX} directories in one another"))));
            }
        }
        Ok(())
    }

    /// Labels an entry, unless it is on another mount; if it is a directory, that is what comes next.
    fn visit(&self, directory: BorrowedFd<'_>, name: &Path, mount: u64) -> Result<Option<Dir>, Errno> {
        let opened = kind_and_mount(directory, name).and_then(|(kind, on)| match (kind, on == mount) {
            (_, false) => Ok(None),
            (kind, true) => {
                label_file(directory, name, &self.label)?;
                self.files.fetch_add(1, Ordering::Relaxed);
                if kind == FileType::Directory { open(directory, name).map(Some) } else { Ok(None) }
            }
        });
        match opened {
            // Removed since, or replaced by what is no directory.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            other => other,
        }
    }
}

fn kind_and_mount(directory: BorrowedFd<'_>, name: &Path) -> Result<(FileType, u64), Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let found = rustix::fs::statx(directory, name, flags, StatxFlags::TYPE | StatxFlags::MNT_ID)?;
    Ok((FileType::from_raw_mode(found.stx_mode.into()), found.stx_mnt_id))
}

fn open(directory: BorrowedFd<'_>, name: &Path) -> Result<Dir, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Dir::new(rustix::fs::openat(directory, name, flags, Mode::empty())?)
}

/// The file itself, not what it may point to.
fn label_file(directory: BorrowedFd<'_>, name: &Path, label: &str) -> Result<(), Errno> {
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

    #[tokio::test]
    async fn what_is_the_hosts_the_kernels_or_our_own_is_not_relabelled_by_whatever_name() {
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
            Path::new("/bin"),
            Path::new("/usr/share"),
            Path::new("/etc/passwd"),
            Path::new("/proc/sys"),
            &top.join("data"),
            &top.join("run/p"),
            &top.join("volume/usr"),
        ] {
            let refused = wanted(&config(path, false), &roots).await.expect_err("refused");
            assert_eq!(refused.field, "config.mounts[0].selinux_relabel");
            assert!(refused.problem.starts_with('/'), "it names the path: {}", refused.problem);
        }
        assert_eq!(wanted(&config(&top.join("volume"), false), &roots).await.expect("a volume"), [top.join("volume")]);
        assert!(wanted(&config(Path::new("/usr"), true), &roots).await.expect("an image").is_empty());
    }

    /// The attribute is as good as any where SELinux is off.
    async fn relabel(path: &Path, label: &str) -> Result<(), Error> {
        super::relabel(path.to_owned(), label, PATIENCE).await
    }

    #[tokio::test]
    async fn everything_in_a_volume_has_the_label_and_what_a_link_points_to_does_not() {
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
            match relabel(&volume, label).await {
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
        relabel(&through, "u:r:t:s0").await.expect_err("a link on the way");
        relabel(&volume.join("a/b/file"), "u:r:t:s0").await.expect("a file");
        assert_eq!(label_of(&volume.join("a/b/file")).as_deref(), Some("u:r:t:s0"));
        assert_eq!(label_of(&volume.join("a/b")).as_deref(), Some("u:r:t:s0:c3,c4"));
    }

    /// A walk that nobody waits for has given its turn back, so that the next one can have it.
    #[tokio::test]
    async fn a_volume_that_takes_too_long_is_told_and_can_be_asked_for_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().canonicalize().expect("a path");
        let first = Walk::default();
        let turn = Turn::of(&path, &first).expect("nobody has it");
        let late = super::relabel(path.clone(), "u:r:t:s0", Duration::from_millis(20)).await.expect_err("not its turn");
        let late = super::super::chain(&late);
        assert!(late.contains("asked for again it goes on") && late.contains(&*path.to_string_lossy()), "{late}");
        drop(turn);
        match relabel(&path, "u:r:t:s0").await {
            Ok(()) => {}
            Err(other) => assert!(super::super::chain(&other).contains("not permitted"), "{other}"),
        }
    }

    #[tokio::test]
    async fn directories_without_end_are_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut at = rustix::fs::open(dir.path(), OFlags::RDONLY, Mode::empty()).expect("open");
        for _ in 0..=DEPTH_MAX {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).expect("make a directory");
            at = rustix::fs::openat(&at, "d", OFlags::RDONLY, Mode::empty()).expect("open");
        }
        let told = super::super::chain(&relabel(dir.path(), "u:r:t:s0").await.expect_err("too deep"));
        assert!(told.contains("in one another") || told.contains("not permitted"), "{told}");
    }
}
