//! `create`: from a bundle to a parked init. One clone; everything that can be prepared is prepared before it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use berth_api::shim::Effective;
use oci_spec::runtime::{Linux, LinuxNamespaceType, Process, Spec};
use rustix::io::Errno;

use super::idmap::{self, Mapping};
use super::mount_deeds::MountDeed;
use super::mounts::{self, Mounts, Surroundings};
use super::namespaces::{self, Namespaces};
use super::plan::{self, Deed, Program};
use super::process::{self, Planned, Users};
use super::process_deeds::ProcessDeed;
use super::rootfs::{self, path_string};
use super::{Container, CreateRequest, Error, ExecReport, Gate, Parked, Shared, seccomp, selinux, spec, sysctls};
use crate::cgroup::Cgroup;
use crate::step;
use crate::sys::{self, MountAttr};

/// Makes the container and parks its init before exec.
///
/// Blocks for about a millisecond. The init is a child of the calling process; if this fails, it has been reaped and
/// everything made for it is taken back.
///
/// # Errors
/// The step and the object that failed; see [`Error`].
pub fn create(request: CreateRequest<'_>) -> Result<Parked, Error> {
    let spec = spec::read(request.bundle)?;
    let default_linux = Linux::default();
    let linux = spec.linux().as_ref().unwrap_or(&default_linux);
    let process = spec.process().as_ref().ok_or_else(|| Error::refused("process", "is missing"))?;
    let cgroup = Cgroup::create(&cgroups_path(linux, request.id), linux.resources().as_ref())?;
    match create_in(request, &spec, linux, process, &cgroup) {
        Ok(made) => Ok(made.parked(cgroup)),
        Err(error) => {
            // The first error is the one to tell.
            let _ = cgroup.remove();
            Err(error)
        }
    }
}

/// The cgroup of a container whose shim is dead, by its bundle.
///
/// # Errors
/// A bundle whose `config.json` cannot be read.
pub(crate) fn cgroup_of(bundle: &Path, id: &str) -> Result<Cgroup, Error> {
    let spec = spec::read(bundle)?;
    let default_linux = Linux::default();
    let linux = spec.linux().as_ref().unwrap_or(&default_linux);
    Cgroup::existing(&cgroups_path(linux, id))
}

/// Where the spec says, or below a root of the shim's own.
fn cgroups_path(linux: &Linux, id: &str) -> PathBuf {
    match linux.cgroups_path().as_deref().filter(|path| !path.as_os_str().is_empty()) {
        Some(path) => path.to_owned(),
        None => Path::new("/berth-shim").join(id),
    }
}

/// A parked init and what the parent keeps of it.
struct Made {
    pid: i32,
    pidfd: OwnedFd,
    console: Option<OwnedFd>,
    effective: Effective,
    gate: Gate,
    shared: Shared,
}

impl Made {
    fn parked(self, cgroup: Cgroup) -> Parked {
        let Made { pid, pidfd, console, effective, gate, shared } = self;
        Parked { container: Container { pid, pidfd, cgroup, effective, shared }, console, gate }
    }
}

fn create_in(
    request: CreateRequest<'_>,
    spec: &Spec,
    linux: &Linux,
    process: &Process,
    cgroup: &Cgroup,
) -> Result<Made, Error> {
    let mut namespaces = Namespaces::open(linux.namespaces().as_deref().unwrap_or_default())?;
    let mapping = Mapping::of("linux", linux.uid_mappings().as_ref(), linux.gid_mappings().as_ref())?;
    let users = namespaces.users(mapping)?;
    let _keeping = idmap::keep(users.as_ref())?;
    let root_path = spec.root().as_ref().map_or(Path::new("rootfs"), |root| root.path().as_path());
    let root_path = request.bundle.join(root_path);
    let mount_label = selinux::label("linux.mountLabel", linux.mount_label().as_deref())?;
    let root = rootfs::plan(&request.rootfs, &root_path, request.bundle, mount_label.as_deref());
    let root = step!("create::rootfs-mount", root)?;
    let mapping = users.as_ref().map(|(_, mapping)| mapping);
    let around = Surroundings {
        bundle: request.bundle,
        cgroup,
        users: mapping,
        label: mount_label.as_deref(),
        own_ipc: namespaces.new & libc::CLONE_NEWIPC as u64 != 0,
    };
    let mounts = mounts::plan(spec.mounts().as_deref().unwrap_or_default(), &around)?;

    let environment = spec::environment(spec, process)?;
    let seccomp = linux.seccomp().as_ref().map(seccomp::compile).transpose()?.flatten();
    let (connected, console) = process::connected(request.stdio, process, mounts.devpts.as_ref())?;
    let slave = match &connected {
        process::Connected::Terminal(slave) => Some(copy(slave)?),
        process::Connected::Pipes(_) => None,
    };
    let inner = users.as_ref().map(|(namespace, mapping)| -> Result<Users<'_>, Error> {
        let cgroup = if namespaces.new_cgroup { libc::CLONE_NEWCGROUP } else { 0 };
        Ok(Users { namespace: copy(namespace)?, mapping, renewed: (libc::CLONE_NEWNS | cgroup) as u64 })
    });
    let inner = inner.transpose()?;
    let mut effective = Effective::default();
    let Planned { deeds: process_deeds, program, name, label } =
        process::plan(process, environment.clone(), seccomp.clone(), connected, inner, &mut effective)?;

    let mut deeds = entering(spec, &mut namespaces, cgroup)?;
    if let Some(mapping) = mapping {
        let (uid, gid) = (mapping.user(0)?, mapping.group(0)?);
        deeds.push(Deed::Process(ProcessDeed::MakeFilesAs { uid, gid }));
    }
    let devpts = mounts.devpts.as_ref().map(copy).transpose()?;
    deeds.extend(tree(spec, linux, process, &namespaces, root, mounts, slave)?.into_iter().map(Deed::Mount));
    let shared = Shared { devpts, seccomp, environment, users };
    deeds.extend(process_deeds);

    let birth = Birth { deeds, program, name, label, flags: namespaces.new, pid: namespaces.pid.as_ref(), cgroup };
    let (pid, pidfd, mut report, gate) = birth.of_init()?;
    let ready = step!("create::park", report.ready());
    match ready {
        Ok(()) => Ok(Made { pid, pidfd, console, effective, gate: Gate { write: gate, report }, shared }),
        Err(error) => {
            reap(&pidfd);
            Err(error)
        }
    }
}

pub(super) fn copy(fd: &OwnedFd) -> Result<OwnedFd, Error> {
    rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(|errno| Error::step("duplicate a descriptor", errno))
}

/// Cgroup, namespaces and names: in the order in which each one needs the other.
fn entering(spec: &Spec, namespaces: &mut Namespaces, cgroup: &Cgroup) -> Result<Vec<Deed>, Error> {
    let mut deeds = vec![Deed::Process(ProcessDeed::Begin)];
    deeds.push(Deed::Process(ProcessDeed::EnterCgroups { tasks: cgroup.open_tasks()? }));
    deeds.extend(namespaces.take_entered());
    if namespaces.new_cgroup {
        // After the cgroup: a namespace made by the clone would begin at the shim's.
        deeds.push(Deed::Process(ProcessDeed::NewCgroupNamespace));
    }
    let names = [
        ("hostname", spec.hostname(), ProcessDeed::Hostname as fn(Vec<u8>) -> ProcessDeed),
        ("domainname", spec.domainname(), ProcessDeed::Domainname),
    ];
    for (field, name, deed) in names {
        let Some(name) = name.as_ref().filter(|name| !name.is_empty()) else {
            continue;
        };
        if !namespaces.owns(LinuxNamespaceType::Uts) {
            return Err(Error::refused(field, "needs a UTS namespace that is not the host's"));
        }
        deeds.push(Deed::Process(deed(name.clone().into_bytes())));
    }
    Ok(deeds)
}

/// Everything about the tree of files, up to the pivot.
fn tree(
    spec: &Spec,
    linux: &Linux,
    process: &Process,
    namespaces: &Namespaces,
    root: Vec<MountDeed>,
    mounts: Mounts,
    slave: Option<OwnedFd>,
) -> Result<Vec<MountDeed>, Error> {
    let mut deeds = vec![MountDeed::LeaveHost];
    deeds.extend(root);
    let foreign_dev = mounts.foreign_dev;
    deeds.extend(mounts.deeds);
    let mapped = namespaces.owns(LinuxNamespaceType::User);
    deeds.extend(mounts::devices(linux.devices().as_deref().unwrap_or_default(), foreign_dev, mapped)?);
    if let Some(slave) = slave {
        deeds.push(MountDeed::Console { slave });
    }
    let sysctls = linux.sysctl().iter().flatten();
    deeds.extend(sysctls::plan(sysctls, namespaces)?);
    deeds.push(MountDeed::Directory { path: path_string(process.cwd())? });
    let masked = mounts::paths("linux.maskedPaths", linux.masked_paths().as_deref().unwrap_or_default())?;
    if !masked.is_empty() {
        deeds.push(MountDeed::Masks { paths: masked, null: mounts::null_device()?, label: mounts.label });
    }
    let read_only = mounts::paths("linux.readonlyPaths", linux.readonly_paths().as_deref().unwrap_or_default())?;
    if !read_only.is_empty() {
        deeds.push(MountDeed::ReadOnly { paths: read_only });
    }
    deeds.extend(root_attributes(spec, linux)?);
    deeds.push(MountDeed::Pivot);
    Ok(deeds)
}

fn root_attributes(spec: &Spec, linux: &Linux) -> Result<Vec<MountDeed>, Error> {
    let mut deeds = Vec::new();
    let propagation = linux.rootfs_propagation().as_deref().unwrap_or_default();
    let recursive = propagation.starts_with('r');
    let propagation = match propagation {
        "" | "private" | "rprivate" => 0,
        "slave" | "rslave" => libc::MS_SLAVE,
        "shared" | "rshared" => libc::MS_SHARED,
        "unbindable" | "runbindable" => libc::MS_UNBINDABLE,
        other => {
            return Err(Error::refused("linux.rootfsPropagation", format!("{other:?} is not known")));
        }
    };
    if propagation != 0 {
        deeds.push(MountDeed::RootAttr { attr: MountAttr { propagation, ..MountAttr::default() }, recursive });
    }
    if spec.root().as_ref().and_then(|root| root.readonly()) == Some(true) {
        let attr = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        deeds.push(MountDeed::RootAttr { attr, recursive: false });
    }
    Ok(deeds)
}

/// What a new process is cloned with.
pub(super) struct Birth<'a> {
    pub(super) deeds: Vec<Deed>,
    pub(super) program: Program,
    pub(super) name: String,
    /// SELinux's.
    pub(super) label: Option<String>,
    /// `CLONE_NEW…`.
    pub(super) flags: u64,
    /// The pid namespace to be born in, if it exists.
    pub(super) pid: Option<&'a OwnedFd>,
    pub(super) cgroup: &'a Cgroup,
}

impl Birth<'_> {
    /// Clones an init that waits at a gate: pid, pidfd, its report, the gate's end to write to.
    fn of_init(self) -> Result<(i32, OwnedFd, ExecReport, OwnedFd), Error> {
        let (gate, open) = pipe()?;
        let cloned = step!("create::shim-clone", self.clone_child(Some(&gate)));
        let (pid, pidfd, report) = cloned?;
        Ok((pid, pidfd, report, open))
    }

    /// Clones a process that goes to exec at once.
    pub(super) fn of_exec(self) -> Result<(i32, OwnedFd, ExecReport), Error> {
        step!("exec::setns-clone", self.clone_child(None))
    }

    fn clone_child(self, gate: Option<&OwnedFd>) -> Result<(i32, OwnedFd, ExecReport), Error> {
        let Birth { deeds, program, name, label, flags, pid, cgroup } = self;
        let unified = cgroup.open_unified()?;
        let (report, told) = pipe()?;
        let clone = || {
            let cgroup = unified.as_ref().map(AsFd::as_fd);
            sys::clone3(flags, cgroup, || plan::run_child(&deeds, &program, &told, gate))
                .map_err(|source| Error::Step { step: "clone the new process".into(), source })
        };
        let (pid, pidfd) = namespaces::born_in(pid, clone)?;
        Ok((pid, pidfd, ExecReport::new(report, deeds, name, label)))
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|errno| Error::step("make a pipe", errno))
}

/// Takes away a child that has told its failure and is exiting.
fn reap(pidfd: &OwnedFd) {
    let options = rustix::process::WaitIdOptions::EXITED;
    while let Err(Errno::INTR) = rustix::process::waitid(rustix::process::WaitId::PidFd(pidfd.as_fd()), options) {}
}
