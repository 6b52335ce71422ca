//! Limits in the spec's terms turned into the kernel's: what is refused, and the conversions. No IO.

use oci_spec::runtime::{LinuxHugepageLimit, LinuxMemory, LinuxResources};

use crate::runtime::Error;

/// Refuses what no hierarchy of this host can do, and what is not built.
pub(super) fn refuse(resources: &LinuxResources, only_unified: bool) -> Result<(), Error> {
    let memory = resources.memory().as_ref();
    let positive = |value: Option<i64>| value.is_some_and(|value| value > 0);
    let never = [
        ("memory.kernel", positive(memory.and_then(LinuxMemory::kernel))),
        ("memory.kernelTCP", positive(memory.and_then(LinuxMemory::kernel_tcp))),
        ("memory.useHierarchy", memory.and_then(LinuxMemory::use_hierarchy) == Some(false)),
        ("rdma", resources.rdma().as_ref().is_some_and(|map| !map.is_empty())),
        ("blockIO.leafWeight", resources.block_io().as_ref().is_some_and(|io| io.leaf_weight().is_some())),
    ];
    let on_v2 = [
        ("memory.swappiness", memory.is_some_and(|m| m.swappiness().is_some())),
        ("memory.disableOOMKiller", memory.and_then(LinuxMemory::disable_oom_killer) == Some(true)),
        ("network", resources.network().is_some()),
        ("cpu.realtimeRuntime", resources.cpu().as_ref().is_some_and(|c| c.realtime_runtime().is_some())),
        ("cpu.realtimePeriod", resources.cpu().as_ref().is_some_and(|c| c.realtime_period().is_some())),
    ];
    let on_v1 = [("unified", resources.unified().as_ref().is_some_and(|map| !map.is_empty()))];
    let found = |list: &[(&'static str, bool)]| list.iter().find(|(_, set)| *set).map(|(field, _)| *field);
    let refused = match (found(&never), only_unified) {
        (Some(field), _) => Some((field, "not supported")),
        (None, true) => found(&on_v2).map(|field| (field, "not possible on a host with cgroup v2")),
        (None, false) => found(&on_v1).map(|field| (field, "not possible on a host with cgroup v1 controllers")),
    };
    match refused {
        Some((field, reason)) => Err(Error::refused(format!("linux.resources.{field}"), reason)),
        None => Ok(()),
    }
}

/// `cpu.shares` (2 to 262144) as `cpu.weight` (1 to 10000), so that the default 1024 becomes the default 100.
///
/// Source: the conversion runc and crun agreed on in 2025 (opencontainers/cgroups `ConvertCPUSharesToCgroupV2Value`):
/// `10^((log2(shares)² + 125 log2(shares)) / 612 − 7/34)`, rounded up.
pub(super) fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            10_f64.powf((log * log + 125.0 * log) / 612.0 - 7.0 / 34.0).ceil() as u64
        }
    }
}

/// blkio's weight (10 to 1000) as io.weight (1 to 10000), linearly.
pub(super) fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight).clamp(10, 1000) - 10) * 9999 / 990
}

/// None of these pages is to be used. A kubelet says so of every size that it knows, and a host without the controller for
/// them cannot be told: it is let go, as everywhere.
pub(super) fn is_none_allowed(limit: &LinuxHugepageLimit) -> bool {
    limit.limit() == 0
}

/// For a host without a place for these limits.
///
/// # Errors
/// One of them allows some pages.
pub(super) fn refuse_hugepages(resources: &LinuxResources) -> Result<(), Error> {
    match resources.hugepage_limits().iter().flatten().find(|limit| !is_none_allowed(limit)) {
        Some(limit) => {
            let field = format!("linux.resources.hugepageLimits, {}", limit.page_size());
            Err(Error::refused(field, "not possible on a host without the hugetlb controller"))
        }
        None => Ok(()),
    }
}

/// A limit whose negative values mean none.
pub(super) fn or_max(limit: i64) -> String {
    if limit < 0 { "max".into() } else { limit.to_string() }
}

/// The spec's swap is memory plus swap; `memory.swap.max` is swap alone.
pub(super) fn swap_max(memory: &LinuxMemory) -> Result<Option<String>, Error> {
    let field = "linux.resources.memory.swap";
    match (memory.swap(), memory.limit()) {
        (None | Some(0), _) => Ok(None),
        (Some(swap), _) if swap < 0 => Ok(Some("max".into())),
        (Some(swap), Some(limit)) if limit > 0 && swap >= limit => Ok(Some((swap - limit).to_string())),
        (Some(_), Some(limit)) if limit > 0 => Err(Error::refused(field, "is memory and swap together: below memory")),
        (Some(_), _) => Err(Error::refused(field, "needs a memory limit")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights() {
        for (shares, weight) in [(0, 1), (2, 1), (1024, 100), (262_144, 10_000), (1_000_000, 10_000)] {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
        let all: Vec<u64> = (2..4096).map(weight_of_shares).collect();
        assert!(all.windows(2).all(|pair| pair[0] <= pair[1]), "monotonous");
    }

    #[test]
    fn io_weights_keep_their_ends() {
        assert_eq!([io_weight(10), io_weight(1000), io_weight(1)], [1, 10_000, 1]);
    }

    #[test]
    fn swap_is_what_is_above_memory() {
        let check = |limit: Option<i64>, swap: Option<i64>| {
            let mut memory = LinuxMemory::default();
            memory.set_limit(limit);
            memory.set_swap(swap);
            swap_max(&memory)
        };
        assert_eq!(check(Some(100), Some(100)).expect("good"), Some("0".into()));
        assert_eq!(check(Some(100), Some(150)).expect("good"), Some("50".into()));
        assert_eq!(check(Some(100), Some(-1)).expect("good"), Some("max".into()));
        assert_eq!(check(Some(100), None).expect("good"), None);
        check(Some(100), Some(50)).expect_err("below memory");
        check(None, Some(50)).expect_err("no memory limit");
    }

    #[test]
    fn what_the_host_cannot_do_is_refused_by_its_path() {
        let mut resources = LinuxResources::default();
        resources.set_unified(Some([("memory.high".to_owned(), "1".to_owned())].into()));
        assert_eq!(
            refuse(&resources, false).expect_err("v1").to_string(),
            "linux.resources.unified: not possible on a host with cgroup v1 controllers"
        );
        refuse(&resources, true).expect("v2");
    }
}
