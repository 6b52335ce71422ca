//! The v1 hierarchies: limits, cpusets of new cgroups, and killing with the freezer.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use super::files;
use crate::runtime::Error;

/// A new cpuset has no CPUs and no memory nodes, and nothing can enter it: it gets its parent's, which somebody else
/// may have made a moment ago and not filled yet. The kernel does it by itself below a cgroup with
/// `cgroup.clone_children`, which those made here get.
pub(super) fn inherit_cpuset(directory: &Path) -> Result<(), Error> {
    let read = |directory: &Path, file: &str| {
        let path = directory.join(file);
        files::read_small(&path).map_err(|e| Error::step(format!("read {path:?}"), e))
    };
    // Memory nodes are written last: where there are some, everything is there.
    let Some(parent) = directory.parent() else { return Ok(()) };
    if !read(directory, "cpuset.mems")?.is_empty() {
        return Ok(());
    }
    if read(parent, "cpuset.mems")?.is_empty() {
        inherit_cpuset(parent)?;
    }
    files::write(directory, "cgroup.clone_children", "1")?;
    for file in ["cpuset.cpus", "cpuset.mems"] {
        files::write(directory, file, &read(parent, file)?)?;
    }
    Ok(())
}

/// Writes every limit that is given. `directory_of` finds the container's cgroup in a controller's hierarchy.
///
/// # Errors
/// The file and value the kernel refused; a limit whose controller the host does not have.
pub(super) fn write(resources: &LinuxResources, directory_of: impl Fn(&str) -> Option<PathBuf>) -> Result<(), Error> {
    let need = |controller: &str| {
        let missing = || Error::refused(format!("linux.resources ({controller})"), "the host has no such controller");
        directory_of(controller).ok_or_else(missing)
    };
    if let Some(memory) = resources.memory() {
        write_memory(&need("memory")?, memory)?;
    }
    if let Some(cpu) = resources.cpu() {
        write_cpu(&need("cpu")?, cpu)?;
        write_cpuset(cpu, || need("cpuset"))?;
    }
    if let Some(pids) = resources.pids().as_ref().filter(|pids| pids.limit() != 0) {
        files::write(&need("pids")?, "pids.max", &super::limits::or_max(pids.limit()))?;
    }
    if let Some(io) = resources.block_io() {
        write_block_io(&need("blkio")?, io)?;
    }
    if let Some(directory) = directory_of("hugetlb") {
        for limit in resources.hugepage_limits().iter().flatten() {
            let file = format!("hugetlb.{}.limit_in_bytes", limit.page_size());
            files::write(&directory, &file, &limit.limit().to_string())?;
        }
    }
    if let Some(network) = resources.network() {
        if let Some(class) = network.class_id() {
            files::write(&need("net_cls")?, "net_cls.classid", &class.to_string())?;
        }
        for priority in network.priorities().iter().flatten() {
            let value = format!("{} {}", priority.name(), priority.priority());
            files::write(&need("net_prio")?, "net_prio.ifpriomap", &value)?;
        }
    }
    Ok(())
}

fn write_memory(directory: &Path, memory: &LinuxMemory) -> Result<(), Error> {
    const LIMIT: &str = "memory.limit_in_bytes";
    const WITH_SWAP: &str = "memory.memsw.limit_in_bytes";
    let limit = memory.limit().filter(|limit| *limit != 0);
    // A kernel that does not account swap has no such file, and nothing to limit by it.
    let swap = memory.swap().filter(|swap| *swap != 0 && directory.join(WITH_SWAP).exists());
    let set = |file: &str, value: Option<i64>| match value {
        Some(value) => files::try_write(directory, file, &value.to_string()),
        None => Ok(()),
    };
    // The sum may never be below its part: going up it is first, going down it is last.
    match set(LIMIT, limit) {
        Ok(()) => {}
        Err(Errno::INVAL) if swap.is_some() => {
            let both = set(WITH_SWAP, swap).and_then(|()| set(LIMIT, limit));
            both.map_err(|e| files::refused(directory, LIMIT, &limit.unwrap_or(0).to_string(), e))?;
        }
        Err(errno) => {
            return Err(files::refused(directory, LIMIT, &limit.unwrap_or(0).to_string(), errno));
        }
    }
    set(WITH_SWAP, swap)
        .map_err(|errno| files::refused(directory, WITH_SWAP, &swap.unwrap_or(0).to_string(), errno))?;
    if let Some(reservation) = memory.reservation().filter(|value| *value != 0) {
        files::write(directory, "memory.soft_limit_in_bytes", &reservation.to_string())?;
    }
    if let Some(swappiness) = memory.swappiness() {
        files::write(directory, "memory.swappiness", &swappiness.to_string())?;
    }
    if memory.disable_oom_killer() == Some(true) {
        files::write(directory, "memory.oom_control", "1")?;
    }
    Ok(())
}

fn write_cpu(directory: &Path, cpu: &LinuxCpu) -> Result<(), Error> {
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        files::write(directory, "cpu.shares", &shares.to_string())?;
    }
    let period = cpu.period().filter(|period| *period != 0).map(|period| period.to_string());
    let quota = cpu.quota().filter(|quota| *quota != 0).map(|quota| quota.to_string());
    let mut period_late = false;
    if let Some(period) = &period {
        match files::try_write(directory, "cpu.cfs_period_us", period) {
            Ok(()) => {}
            // The old quota does not fit the new period: the quota goes first.
            Err(Errno::INVAL) if quota.is_some() => period_late = true,
            Err(errno) => {
                return Err(files::refused(directory, "cpu.cfs_period_us", period, errno));
            }
        }
    }
    if let Some(quota) = &quota {
        files::write(directory, "cpu.cfs_quota_us", quota)?;
    }
    if let Some(period) = period.filter(|_| period_late) {
        files::write(directory, "cpu.cfs_period_us", &period)?;
    }
    if let Some(burst) = cpu.burst() {
        files::write(directory, "cpu.cfs_burst_us", &burst.to_string())?;
    }
    if let Some(idle) = cpu.idle() {
        files::write(directory, "cpu.idle", &idle.to_string())?;
    }
    if let Some(period) = cpu.realtime_period().filter(|value| *value != 0) {
        files::write(directory, "cpu.rt_period_us", &period.to_string())?;
    }
    if let Some(runtime) = cpu.realtime_runtime().filter(|value| *value != 0) {
        files::write(directory, "cpu.rt_runtime_us", &runtime.to_string())?;
    }
    Ok(())
}

fn write_cpuset(cpu: &LinuxCpu, directory: impl Fn() -> Result<PathBuf, Error>) -> Result<(), Error> {
    for (file, value) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
            files::write(&directory()?, file, value)?;
        }
    }
    Ok(())
}

fn write_block_io(directory: &Path, io: &LinuxBlockIo) -> Result<(), Error> {
    let weight = if directory.join("blkio.weight").exists() { "blkio.weight" } else { "blkio.bfq.weight" };
    if let Some(value) = io.weight().filter(|weight| *weight != 0) {
        files::write(directory, weight, &value.to_string())?;
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(value) = device.weight() {
            let value = format!("{}:{} {value}", device.major(), device.minor());
            files::write(directory, &format!("{weight}_device"), &value)?;
        }
    }
    for (file, devices) in throttles(io) {
        for device in devices.iter().flatten() {
            let value = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            files::write(directory, &format!("blkio.throttle.{file}_device"), &value)?;
        }
    }
    Ok(())
}

/// The four kinds of throttle with their v1 names.
pub(super) fn throttles(io: &LinuxBlockIo) -> [(&'static str, &Option<Vec<LinuxThrottleDevice>>); 4] {
    [
        ("read_bps", io.throttle_read_bps_device()),
        ("write_bps", io.throttle_write_bps_device()),
        ("read_iops", io.throttle_read_iops_device()),
        ("write_iops", io.throttle_write_iops_device()),
    ]
}

/// Freezes, kills what is there, thaws so that it can die; again while something is born in between.
pub(super) fn kill(directory: &Path) -> Result<(), Error> {
    const ROUNDS: usize = 16; // one is enough for a frozen cgroup; more for one that could not be frozen in time
    for _ in 0..ROUNDS {
        let frozen = files::try_write(directory, "freezer.state", "FROZEN");
        let pids = files::pids(directory)?;
        for pid in pids.iter().copied().filter_map(Pid::from_raw) {
            match rustix::process::kill_process(pid, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => {
                    return Err(Error::step(format!("kill process {}", pid.as_raw_nonzero()), errno));
                }
            }
        }
        match files::try_write(directory, "freezer.state", "THAWED") {
            Ok(()) | Err(Errno::NOENT | Errno::NODEV) => {}
            Err(errno) => return Err(files::refused(directory, "freezer.state", "THAWED", errno)),
        }
        if pids.is_empty() || frozen.is_ok() {
            return Ok(());
        }
    }
    Ok(())
}
