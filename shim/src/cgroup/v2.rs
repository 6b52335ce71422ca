//! The v2 tree: controllers, limits, kill.

use std::path::Path;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};
use rustix::io::Errno;

use super::files;
use super::limits::{io_weight, or_max, swap_max, weight_of_shares};
use super::v1::throttles;
use crate::runtime::Error;

/// Makes `controllers`, so far as the host has them, available in the cgroup at `path`.
///
/// # Errors
/// The `cgroup.subtree_control` the kernel refused, e.g. `EBUSY` for a parent with processes of its own.
pub(super) fn enable_controllers(root: &Path, path: &Path, controllers: &[&str]) -> Result<(), Error> {
    if controllers.is_empty() {
        return Ok(());
    }
    let there = |directory: &Path| {
        let text = std::fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
        let names: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        names
    };
    let possible = there(root);
    let wanted: Vec<&str> = controllers.iter().copied().filter(|c| possible.iter().any(|p| p == c)).collect();
    let have = there(&root.join(path));
    if wanted.iter().all(|c| have.iter().any(|h| h == c)) {
        return Ok(());
    }
    let value = wanted.iter().map(|c| format!("+{c}")).collect::<Vec<_>>().join(" ");
    let mut directory = root.to_owned();
    for name in path {
        files::write(&directory, "cgroup.subtree_control", &value)?;
        directory.push(name);
    }
    Ok(())
}

/// Writes every limit that is given.
///
/// # Errors
/// The file and value the kernel refused.
pub(super) fn write(directory: &Path, resources: &LinuxResources) -> Result<(), Error> {
    if let Some(memory) = resources.memory() {
        write_memory(directory, memory)?;
    }
    if let Some(cpu) = resources.cpu() {
        for (file, value) in cpu_values(cpu) {
            files::write(directory, file, &value)?;
        }
    }
    if let Some(pids) = resources.pids().as_ref().filter(|pids| pids.limit() != 0) {
        files::write(directory, "pids.max", &or_max(pids.limit()))?;
    }
    if let Some(io) = resources.block_io() {
        write_io(directory, io)?;
    }
    write_hugepages(directory, resources)?;
    for (file, value) in resources.unified().iter().flatten() {
        if file.contains('/') || file.starts_with("cgroup.") {
            return Err(Error::refused(format!("linux.resources.unified[{file:?}]"), "is no limit"));
        }
        files::write(directory, file, value)?;
    }
    Ok(())
}

fn write_memory(directory: &Path, memory: &LinuxMemory) -> Result<(), Error> {
    let limit = memory.limit().filter(|limit| *limit != 0);
    if let Some(limit) = limit.filter(|limit| *limit > 0 && memory.check_before_update() == Some(true)) {
        let used: i64 = std::fs::read_to_string(directory.join("memory.current"))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0);
        if used > limit {
            // As version 1 answers by itself; version 2 would kill processes until the limit holds.
            return Err(files::refused(directory, "memory.max", &format!("{limit} ({used} are in use)"), Errno::BUSY));
        }
    }
    if let Some(swap) = swap_max(memory)? {
        match files::try_write(directory, "memory.swap.max", &swap) {
            // A kernel that does not account swap has no such file, and nothing to limit by it.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(files::refused(directory, "memory.swap.max", &swap, errno)),
        }
    }
    if let Some(limit) = limit {
        files::write(directory, "memory.max", &or_max(limit))?;
    }
    if let Some(reservation) = memory.reservation().filter(|value| *value != 0) {
        files::write(directory, "memory.low", &or_max(reservation))?;
    }
    Ok(())
}

fn cpu_values(cpu: &LinuxCpu) -> Vec<(&'static str, String)> {
    const DEFAULT_PERIOD: u64 = 100_000; // microseconds; kernel/sched/core.c, default_cfs_period
    let mut values = Vec::new();
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        values.push(("cpu.weight", weight_of_shares(shares).to_string()));
    }
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    if quota.is_some() || period.is_some() {
        let quota = quota.map_or("max".into(), or_max);
        values.push(("cpu.max", format!("{quota} {}", period.unwrap_or(DEFAULT_PERIOD))));
    }
    if let Some(burst) = cpu.burst() {
        values.push(("cpu.max.burst", burst.to_string()));
    }
    if let Some(idle) = cpu.idle() {
        values.push(("cpu.idle", idle.to_string()));
    }
    for (file, value) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
            values.push((file, value.clone()));
        }
    }
    values
}

fn write_io(directory: &Path, io: &LinuxBlockIo) -> Result<(), Error> {
    // BFQ takes blkio's own scale; io.weight is iocost's.
    let bfq = directory.join("io.bfq.weight").exists();
    let (file, scale): (_, fn(u16) -> u64) = if bfq { ("io.bfq.weight", u64::from) } else { ("io.weight", io_weight) };
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        files::write(directory, file, &scale(weight).to_string())?;
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(weight) = device.weight() {
            let value = format!("{}:{} {}", device.major(), device.minor(), scale(weight));
            files::write(directory, file, &value)?;
        }
    }
    for ((_, devices), key) in throttles(io).into_iter().zip(["rbps", "wbps", "riops", "wiops"]) {
        for device in devices.iter().flatten() {
            let value = format!("{}:{} {key}={}", device.major(), device.minor(), device.rate());
            files::write(directory, "io.max", &value)?;
        }
    }
    Ok(())
}

/// Also for a hybrid host whose only place for them is its v2 tree.
pub(super) fn write_hugepages(directory: &Path, resources: &LinuxResources) -> Result<(), Error> {
    for limit in resources.hugepage_limits().iter().flatten() {
        let (value, file) = (limit.limit().to_string(), format!("hugetlb.{}.max", limit.page_size()));
        match files::try_write(directory, &file, &value) {
            Ok(()) => {}
            Err(Errno::NOENT) if super::limits::is_none_allowed(limit) => continue,
            Err(errno) => return Err(files::refused(directory, &file, &value, errno)),
        }
        match files::try_write(directory, &format!("hugetlb.{}.rsvd.max", limit.page_size()), &value) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(files::refused(directory, "hugetlb rsvd.max", &value, errno)),
        }
    }
    Ok(())
}

pub(super) fn kill(directory: &Path) -> Result<(), Error> {
    match files::try_write(directory, "cgroup.kill", "1") {
        Ok(()) | Err(Errno::NOENT | Errno::NODEV) => Ok(()),
        Err(errno) => Err(files::refused(directory, "cgroup.kill", "1", errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As without the hugetlb controller: there are no files for it.
    #[test]
    fn no_huge_pages_are_what_a_host_without_them_gives() {
        let directory = tempfile::tempdir().expect("a directory");
        let limits = |limit: i64| {
            let mut resources = LinuxResources::default();
            let limits = serde_json::json!([{"pageSize": "2MB", "limit": 0}, {"pageSize": "1GB", "limit": limit}]);
            resources.set_hugepage_limits(Some(serde_json::from_value(limits).expect("limits")));
            resources
        };
        write_hugepages(directory.path(), &limits(0)).expect("none are wanted");
        super::super::limits::refuse_hugepages(&limits(0)).expect("none are wanted");
        let refused = write_hugepages(directory.path(), &limits(1 << 30)).expect_err("some are");
        assert!(refused.message().contains("hugetlb.1GB.max"), "{}", refused.message());
        let refused = super::super::limits::refuse_hugepages(&limits(1 << 30)).expect_err("some are");
        assert!(refused.message().contains("hugepageLimits, 1GB"), "{}", refused.message());
    }

    #[test]
    fn quota_and_period_are_one_value() {
        let check = |quota: Option<i64>, period: Option<u64>| {
            let mut cpu = LinuxCpu::default();
            cpu.set_quota(quota);
            cpu.set_period(period);
            cpu_values(&cpu).into_iter().map(|(_, value)| value).collect::<Vec<_>>()
        };
        assert_eq!(check(Some(50_000), Some(100_000)), ["50000 100000"]);
        assert_eq!(check(Some(-1), None), ["max 100000"]);
        assert_eq!(check(Some(20_000), None), ["20000 100000"]);
        assert!(check(None, None).is_empty());
    }
}
