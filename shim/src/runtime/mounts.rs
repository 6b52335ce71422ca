//! The spec's `mounts`, each as deeds of the child; what shows the host is opened here, before the clone.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};

use super::idmap::{self, Mapping};
use super::mount_deeds::{MountDeed, NewMount, Target, TargetRule, Volume};
use super::options::Options;
use super::process::c_string;
use super::resolve::{self, Kind};
use super::rootfs::{self, Layered, Overlay, open_tree, path_string, set_attributes};
use super::{Error, selinux};
use crate::cgroup::Cgroup;
use crate::sys::MountAttr;

/// Files below /proc that a bind mount may cover: what LXCFS replaces, and two that programs ask to have set.
/// Source: the same allowance in runc's `checkProcMount`, as a fact of what existing pods rely on.
const COVERABLE: &[&str] = &[
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/sys/crypto/fips_enabled",
    "/proc/sys/kernel/ns_last_pid",
];

/// The deeds, and what later steps need to know of them.
#[derive(Default)]
pub(super) struct Mounts {
    pub(super) deeds: Vec<MountDeed>,
    /// The mount at /dev/pts: terminals are made in it.
    pub(super) devpts: Option<OwnedFd>,
    /// /dev is the host's (or another bind): nothing is made in it.
    pub(super) foreign_dev: bool,
    /// SELinux's, for what else is new.
    pub(super) label: Option<CString>,
}

/// What mounts depend on beside themselves.
pub(super) struct Surroundings<'a> {
    pub(super) bundle: &'a Path,
    pub(super) cgroup: &'a Cgroup,
    pub(super) users: Option<&'a Mapping>,
    /// SELinux's, for what is new.
    pub(super) label: Option<&'a CStr>,
    /// The IPC namespace is made for this container, and with it what is in /dev/mqueue.
    pub(super) own_ipc: bool,
}

/// Plans every mount of the spec, in its order.
///
/// # Errors
/// The mount's index and what is wrong with it; the source that does not exist.
pub(super) fn plan(mounts: &[Mount], around: &Surroundings<'_>) -> Result<Mounts, Error> {
    let mut planned = Mounts { label: around.label.map(CStr::to_owned), ..Mounts::default() };
    for (index, mount) in mounts.iter().enumerate() {
        plan_one(index, mount, around, &mut planned)?;
    }
    Ok(planned)
}

fn plan_one(index: usize, mount: &Mount, around: &Surroundings<'_>, planned: &mut Mounts) -> Result<(), Error> {
    let Surroundings { bundle, cgroup, users, label, own_ipc } = *around;
    let field = format!("mounts[{index}]");
    let mapping = Mapping::of(&field, mount.uid_mappings().as_ref(), mount.gid_mappings().as_ref())?;
    let destination = clean(mount.destination());
    if !mount.destination().is_absolute() || destination == Path::new("/") {
        let reason = format!("{:?} is not an absolute path below /", mount.destination());
        return Err(Error::refused(field + ".destination", reason));
    }
    let words = mount.options().as_deref().unwrap_or_default();
    let mut options = Options::parse(&format!("{field}.options"), words)?;
    let kind = mount.typ().as_deref().unwrap_or("none");
    if let Some(users) = users.filter(|_| matches!(kind, "tmpfs" | "devpts")) {
        // The host's ids are taken, by us and by the child, which is in the host's user namespace yet.
        for (key, value) in &mut options.parameters {
            *value = value.take().map(|value| mapped_id(users, key, &value)).transpose()?;
        }
    }
    if options.bind || kind == "bind" {
        planned.foreign_dev |= destination == Path::new("/dev");
        let deed = bind(&field, mount, bundle, &destination, &options, mapping)?;
        planned.deeds.push(deed);
        return Ok(());
    }
    if mapping.is_some() {
        return Err(Error::refused(field + ".uidMappings", "are for bind mounts"));
    }
    if options.has_users() && kind != "overlay" {
        return Err(Error::refused(field + ".options", format!("uidmap and gidmap are not for {kind:?}")));
    }
    if options.propagates() && matches!(kind, "cgroup" | "devpts") {
        return Err(Error::refused(field + ".options", format!("propagation is not for {kind:?}")));
    }
    if options.recursive_attr != MountAttr::default() && kind != "overlay" {
        return Err(Error::refused(field + ".options", "recursive attributes are for bind mounts"));
    }
    if options.subdir.is_some() && kind != "overlay" {
        return Err(Error::refused(field + ".options", format!("X-mount.subdir is not for {kind:?}")));
    }
    selinux::tell(&mut options, kind, label);
    match kind {
        "overlay" => {
            planned.deeds.extend(overlay(words, bundle, &destination, label)?);
            Ok(())
        }
        "cgroup" => cgroups(cgroup, &destination, &options, label, planned),
        "devpts" if destination == Path::new("/dev/pts") => {
            let (deed, devpts) = devpts(&options, &destination, users)?;
            planned.deeds.push(deed);
            planned.devpts = Some(devpts);
            Ok(())
        }
        "none" | "" => Err(Error::refused(field + ".type", "there is neither a type nor bind among the options")),
        _ => {
            let source = mount.source().as_ref().map(|s| s.to_string_lossy().into_owned());
            let mut made = new(kind, source, &options, target(&destination, kind)?)?;
            made.root_label = label.filter(|_| kind == "mqueue" && own_ipc).map(CStr::to_owned);
            planned.deeds.push(MountDeed::New(made));
            Ok(())
        }
    }
}

/// Without `.`, `..` and doubled slashes, as text: links are resolved later, in the container's root.
pub(super) fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            std::path::Component::Normal(name) => clean.push(name),
            std::path::Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    clean
}

/// CVE-2015-3630 and its kin: what stands at /proc is the kernel's.
fn target(destination: &Path, kind: &str) -> Result<Target, Error> {
    let path = path_string(destination)?;
    let rule = match (destination.to_str(), kind) {
        (_, "proc" | "sysfs") => TargetRule::Plain,
        (Some("/proc"), _) => {
            return Err(Error::refused(format!("mount at {path:?}"), "only procfs may be there"));
        }
        _ if destination.starts_with("/proc") => {
            return Err(Error::refused(format!("mount at {path:?}"), "a mount inside /proc is not allowed"));
        }
        _ => TargetRule::Ordinary(Kind::Directory),
    };
    Ok(Target { path, rule })
}

fn new(kind: &str, source: Option<String>, options: &Options, target: Target) -> Result<NewMount, Error> {
    let field = format!("mount of {kind} at {:?}", target.path);
    let mut parameters = Vec::new();
    if let Some(source) = source.filter(|source| !source.is_empty()) {
        parameters.push((c_string(&field, "source")?, Some(c_string(&field, &source)?)));
    }
    for (key, value) in &options.parameters {
        let value = value.as_ref().map(|value| c_string(&field, value)).transpose()?;
        parameters.push((c_string(&field, key)?, value));
    }
    Ok(NewMount { kind: c_string(&field, kind)?, parameters, attr: options.attr, root_label: None, target })
}

/// A copy of what the host has mounted at the source, made now: the container cannot have moved the path, and what is
/// mounted over it later does not count.
fn bind(
    field: &str,
    mount: &Mount,
    bundle: &Path,
    destination: &Path,
    options: &Options,
    mapping: Option<Mapping>,
) -> Result<MountDeed, Error> {
    let source = match mount.source() {
        Some(source) if !source.as_os_str().is_empty() => bundle.join(source),
        _ => {
            return Err(Error::refused(format!("{field}.source"), "a bind mount needs one"));
        }
    };
    if options.has_users() && mapping.is_some() {
        return Err(Error::refused(format!("{field}.options"), "uidmap and gidmap are there beside uidMappings"));
    }
    options.no_parameters(&format!("{field}.options"))?;
    let at = path_string(destination)?;
    let name = format!("mount {source:?} at {at:?}");
    let opened = match &options.subdir {
        Some(subdir) => open_tree_below(&source, subdir),
        None => open_tree(&source, options.recursive),
    };
    let tree = opened.map_err(|error| match error {
        // The request named a source that is not there: the request is wrong, not the host.
        Error::Step { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Error::refused(name.clone(), "no such file or directory")
        }
        Error::Step { source, .. } => Error::Step { step: name.clone(), source },
        other => other,
    })?;
    let failed = |errno| Error::step(name.clone(), std::io::Error::from(errno));
    if let Some(mapping) = mapping {
        let namespace = mapping.namespace().map_err(|e| Error::step(format!("{field}.uidMappings"), e))?;
        idmap::map(&tree, &namespace, &name)?;
    } else if let Some(namespace) = options.users(&format!("{field}.options"))? {
        idmap::map(&tree, &namespace, &name)?;
    }
    set_attributes(&tree, options).map_err(failed)?;
    let stat = rustix::fs::fstat(&tree).map_err(failed)?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Kind::Directory,
        _ => Kind::File,
    };
    let rule = match destination.to_str() {
        Some("/proc") if resolve::is_proc(tree.as_fd()).map_err(failed)? => TargetRule::InsideProc(kind),
        Some("/proc") => return Err(Error::refused(name, "only procfs may be there")),
        Some(path) if COVERABLE.contains(&path) => TargetRule::InsideProc(kind),
        _ if destination.starts_with("/proc") => {
            return Err(Error::refused(name, "a mount inside /proc is not allowed"));
        }
        _ => TargetRule::Ordinary(kind),
    };
    Ok(MountDeed::Attach { tree, target: Target { path: at, rule }, source: source.to_string_lossy().into_owned() })
}

/// A directory below `source`, from which no link leads out.
fn open_tree_below(source: &Path, subdir: &str) -> Result<OwnedFd, Error> {
    let fail = |errno: Errno| Error::step(format!("open {subdir:?} in {source:?}"), errno);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::open(source, flags, Mode::empty()).map_err(fail)?;
    let below = resolve::open(top.as_fd(), &c_string("X-mount.subdir", subdir)?, OFlags::PATH | OFlags::DIRECTORY);
    let flags = OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(below.map_err(fail)?, c"", flags).map_err(fail)
}

/// A stack of layers that is not the root: an image as a volume.
fn overlay(words: &[String], bundle: &Path, destination: &Path, label: Option<&CStr>) -> Result<Vec<MountDeed>, Error> {
    let target = target(destination, "overlay")?;
    let name = format!("mount \"overlay\" at {:?}", target.path);
    let Layered { overlay, covers: mut deeds, options } =
        rootfs::overlay(words, label).map_err(|error| match error {
            Error::Step { step, source } => Error::Step { step: format!("{name}: {step}"), source },
            other => other,
        })?;
    deeds.push(match (overlay, options.subdir.as_deref()) {
        (Overlay::Tree(tree), None) => {
            set_attributes(&tree, &options).map_err(|errno| Error::step(name, errno))?;
            MountDeed::Attach { tree, target, source: "overlay".into() }
        }
        (overlay, subdir) => MountDeed::Volume(Volume {
            overlay,
            stage: path_string(bundle)?,
            subdir: subdir.map(|path| c_string("X-mount.subdir", path)).transpose()?,
            attr: MountAttr {
                set: options.attr.set | options.recursive_attr.set,
                clear: 0,
                propagation: if options.attr.propagation == 0 { libc::MS_PRIVATE } else { options.attr.propagation },
            },
            target,
        }),
    });
    Ok(deeds)
}

/// devpts is made here and not by the child: the parent opens terminals in it, now and for later execs.
fn devpts(options: &Options, destination: &Path, users: Option<&Mapping>) -> Result<(MountDeed, OwnedFd), Error> {
    let fail = |errno| Error::step("make a devpts", std::io::Error::from(errno));
    let context = rustix::mount::fsopen(c"devpts", FsOpenFlags::FSOPEN_CLOEXEC).map_err(fail)?;
    for (key, value) in &options.parameters {
        match value {
            Some(value) => rustix::mount::fsconfig_set_string(context.as_fd(), key.as_str(), value.as_str()),
            None => rustix::mount::fsconfig_set_flag(context.as_fd(), key.as_str()),
        }
        .map_err(|errno| Error::step(format!("set the devpts option {key:?}"), errno))?;
    }
    rustix::mount::fsconfig_create(context.as_fd()).map_err(fail)?;
    let attr = MountAttrFlags::from_bits_retain(options.attr.set as u32);
    let tree = rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attr).map_err(fail)?;
    if let Some(users) = users {
        let owner = (rustix::fs::Uid::from_raw(users.user(0)?), rustix::fs::Gid::from_raw(users.group(0)?));
        for (path, flags) in [(c"", AtFlags::EMPTY_PATH), (c"ptmx", AtFlags::SYMLINK_NOFOLLOW)] {
            rustix::fs::chownat(&tree, path, Some(owner.0), Some(owner.1), flags).map_err(fail)?;
        }
    }
    let kept = rustix::io::fcntl_dupfd_cloexec(&tree, 3).map_err(fail)?;
    let target = Target { path: path_string(destination)?, rule: TargetRule::Ordinary(Kind::Directory) };
    Ok((MountDeed::Attach { tree, target, source: "devpts".into() }, kept))
}

/// The value of a parameter that is a user or a group, as the host counts it.
fn mapped_id(users: &Mapping, key: &str, value: &str) -> Result<String, Error> {
    let number = || value.parse().map_err(|_| Error::refused("mount option", format!("{key}={value} is no id")));
    match key {
        "uid" => Ok(users.user(number()?)?.to_string()),
        "gid" => Ok(users.group(number()?)?.to_string()),
        _ => Ok(value.to_owned()),
    }
}

/// On the v2 tree alone: the tree, which begins at the container's cgroup if it has a namespace for that. Else one
/// directory for each v1 hierarchy, on which the container's own cgroup is mounted.
fn cgroups(
    cgroup: &Cgroup,
    destination: &Path,
    options: &Options,
    label: Option<&CStr>,
    planned: &mut Mounts,
) -> Result<(), Error> {
    let target = |path: &Path| -> Result<Target, Error> {
        Ok(Target { path: path_string(path)?, rule: TargetRule::Ordinary(Kind::Directory) })
    };
    if cgroup.is_unified() {
        let options = Options { parameters: Vec::new(), ..options.clone() };
        planned.deeds.push(MountDeed::New(new("cgroup2", Some("cgroup".into()), &options, target(destination)?)?));
        return Ok(());
    }
    let mut mounts = Vec::new();
    for (name, directory) in cgroup.directories() {
        mounts.push((c_string("cgroup", &name)?, open_tree(&directory, false)?));
    }
    let link = |(alias, name): (String, String)| Ok((c_string("cgroup", &alias)?, c_string("cgroup", &name)?));
    let links = cgroup.aliases().into_iter().map(link).collect::<Result<_, Error>>()?;
    let attr = MountAttr { propagation: libc::MS_PRIVATE, ..options.attr };
    let label = label.map(CStr::to_owned);
    planned.deeds.push(MountDeed::Hierarchies { mounts, links, attr, label, target: target(destination)? });
    Ok(())
}

/// The device nodes that every container has. Source: runtime-spec, config-linux.md, "Default Devices".
const DEFAULT_DEVICES: &[(&str, u32, u32)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// The links that every container has; the last only where the kernel has that file.
const DEFAULT_LINKS: &[(&str, &str)] = &[
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/core", "/proc/kcore"),
];

/// Default devices and links, and `linux.devices`.
///
/// # Errors
/// A device of the spec without a path of its own, type or number.
pub(super) fn devices(
    devices: &[oci_spec::runtime::LinuxDevice],
    foreign_dev: bool,
    mapped: bool,
) -> Result<Vec<MountDeed>, Error> {
    let mut deeds = Vec::new();
    if foreign_dev {
        return Ok(deeds);
    }
    for (name, major, minor) in DEFAULT_DEVICES {
        let path = Path::new("/dev").join(name);
        if !devices.iter().any(|device| *device.path() == path) {
            deeds.push(device(&path, FileType::CharacterDevice, 0o666, (*major, *minor), None)?);
        }
    }
    for (index, asked) in devices.iter().enumerate() {
        deeds.push(spec_device(index, asked, mapped)?);
    }
    for (path, to) in DEFAULT_LINKS {
        if *path == "/dev/core" && !Path::new(to).exists() {
            continue;
        }
        deeds.push(MountDeed::Link { path: c_string("dev", path)?, target: c_string("dev", to)?, replace: false });
    }
    let (path, to) = (c_string("dev", "/dev/ptmx")?, c_string("dev", "pts/ptmx")?);
    deeds.push(MountDeed::Link { path, target: to, replace: true });
    Ok(deeds)
}

/// In a user namespace a device belongs to whom it belongs on the host, as if the host's were bound: a root that is not
/// the host's is not given the disks for having a node of them.
fn spec_device(index: usize, asked: &oci_spec::runtime::LinuxDevice, mapped: bool) -> Result<MountDeed, Error> {
    use oci_spec::runtime::LinuxDeviceType;
    let field = format!("linux.devices[{index}]");
    let path = clean(asked.path());
    let kind = match asked.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::A => {
            return Err(Error::refused(field + ".type", "\"a\" is not a kind of node"));
        }
    };
    let number = |value: i64| u32::try_from(value).map_err(|_| Error::refused(field.clone(), "bad device number"));
    let numbers = match kind {
        FileType::Fifo => (0, 0),
        _ => (number(asked.major())?, number(asked.minor())?),
    };
    let owner = Some((asked.uid().unwrap_or(0), asked.gid().unwrap_or(0))).filter(|owner| mapped || *owner != (0, 0));
    device(&path, kind, asked.file_mode().unwrap_or(0o666), numbers, owner)
}

fn device(
    path: &Path,
    kind: FileType,
    mode: u32,
    (major, minor): (u32, u32),
    owner: Option<(u32, u32)>,
) -> Result<MountDeed, Error> {
    let split = path.parent().zip(path.file_name());
    let (directory, name) = split.ok_or_else(|| Error::refused(format!("device {path:?}"), "it has no name"))?;
    Ok(MountDeed::Device(super::mount_deeds::Device {
        directory: path_string(directory)?,
        name: path_string(Path::new(name))?,
        kind,
        mode: Mode::from_raw_mode(mode & 0o7777).as_raw_mode(),
        number: rustix::fs::makedev(major, minor),
        owner,
    }))
}

/// A detached mount of the host's /dev/null.
///
/// # Errors
/// CVE-2025-31133: the host's /dev/null is not the null device.
pub(super) fn null_device() -> Result<OwnedFd, Error> {
    let tree = open_tree(Path::new("/dev/null"), false)?;
    let stat = rustix::fs::fstat(&tree).map_err(|e| Error::step("look at /dev/null", e))?;
    match FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(1, 3)
    {
        true => Ok(tree),
        false => Err(Error::refused("/dev/null", "of the host is not the null device")),
    }
}

/// Absolute paths as C strings.
pub(super) fn paths(field: &str, paths: &[String]) -> Result<Vec<CString>, Error> {
    paths.iter().map(|path| c_string(field, path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_cleaned_as_text() {
        assert_eq!(clean(Path::new("//a/./b/../../proc/")), Path::new("/proc"));
        assert_eq!(clean(Path::new("/../..")), Path::new("/"));
    }

    #[test]
    fn nothing_but_procfs_stands_at_proc() {
        assert_eq!(target(Path::new("/proc"), "proc").expect("procfs").rule, TargetRule::Plain);
        assert_eq!(target(Path::new("/sys"), "sysfs").expect("sysfs").rule, TargetRule::Plain);
        target(Path::new("/proc"), "tmpfs").expect_err("refused");
        target(Path::new("/proc/self"), "tmpfs").expect_err("refused");
        assert_eq!(
            target(Path::new("/process"), "tmpfs").expect("another name").rule,
            TargetRule::Ordinary(Kind::Directory)
        );
    }

    #[test]
    fn a_device_of_the_spec_replaces_the_default_of_its_name() {
        let mut null = oci_spec::runtime::LinuxDevice::default();
        null.set_path("/dev/null".into());
        null.set_typ(oci_spec::runtime::LinuxDeviceType::C);
        let deeds = devices(&[null], false, false).expect("deeds");
        let nodes = deeds.iter().filter(|d| matches!(d, MountDeed::Device(_))).count();
        assert_eq!(nodes, DEFAULT_DEVICES.len());
        assert!(devices(&[], true, false).expect("deeds").is_empty());
    }
}
