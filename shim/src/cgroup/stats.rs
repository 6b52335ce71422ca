//! What a container uses, as containerd's metrics of cgroup v1 or v2: `Stats` answers with them. berthd does not ask; it
//! reads the cgroup itself.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use containerd_shim_protos::{cgroups, cgroups_v2};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};

use super::Cgroup;
use crate::runtime::Error;

impl Cgroup {
    /// What is used now; a number that the kernel does not count is zero.
    ///
    /// # Errors
    /// The cgroup is gone, or cannot be read.
    pub fn stats(&self) -> Result<Any, Error> {
        if let Some(directory) = self.unified_directory().filter(|_| self.is_unified()) {
            return any("io.containerd.cgroups.v2.Metrics", &v2(&directory)?);
        }
        any("io.containerd.cgroups.v1.Metrics", &self.v1_stats()?)
    }

    fn v1_stats(&self) -> Result<cgroups::metrics::Metrics, Error> {
        use cgroups::metrics::{CPUStat, CPUUsage, MemoryOomControl, MemoryStat, Metrics, PidsStat, Throttle};
        let mut metrics = Metrics::new();
        if let Some(at) = self.v1("memory") {
            let of = Lines::read(&at, "memory.stat")?;
            let oom = Lines::read(&at, "memory.oom_control")?;
            metrics.memory = MessageField::some(MemoryStat {
                cache: of.get("cache"),
                rss: of.get("rss"),
                rss_huge: of.get("rss_huge"),
                mapped_file: of.get("mapped_file"),
                dirty: of.get("dirty"),
                writeback: of.get("writeback"),
                pg_pg_in: of.get("pgpgin"),
                pg_pg_out: of.get("pgpgout"),
                pg_fault: of.get("pgfault"),
                pg_maj_fault: of.get("pgmajfault"),
                inactive_anon: of.get("inactive_anon"),
                active_anon: of.get("active_anon"),
                inactive_file: of.get("inactive_file"),
                active_file: of.get("active_file"),
                unevictable: of.get("unevictable"),
                hierarchical_memory_limit: of.get("hierarchical_memory_limit"),
                hierarchical_swap_limit: of.get("hierarchical_memsw_limit"),
                total_cache: of.get("total_cache"),
                total_rss: of.get("total_rss"),
                total_rss_huge: of.get("total_rss_huge"),
                total_mapped_file: of.get("total_mapped_file"),
                total_dirty: of.get("total_dirty"),
                total_writeback: of.get("total_writeback"),
                total_pg_pg_in: of.get("total_pgpgin"),
                total_pg_pg_out: of.get("total_pgpgout"),
                total_pg_fault: of.get("total_pgfault"),
                total_pg_maj_fault: of.get("total_pgmajfault"),
                total_inactive_anon: of.get("total_inactive_anon"),
                total_active_anon: of.get("total_active_anon"),
                total_inactive_file: of.get("total_inactive_file"),
                total_active_file: of.get("total_active_file"),
                total_unevictable: of.get("total_unevictable"),
                usage: MessageField::some(memory_entry(&at, "memory")),
                swap: MessageField::some(memory_entry(&at, "memory.memsw")),
                ..Default::default()
            });
            metrics.memory_oom_control = MessageField::some(MemoryOomControl {
                oom_kill_disable: oom.get("oom_kill_disable"),
                under_oom: oom.get("under_oom"),
                oom_kill: oom.get("oom_kill"),
                ..Default::default()
            });
        }
        let mut cpu = CPUStat::new();
        if let Some(at) = self.v1("cpuacct") {
            cpu.usage = MessageField::some(CPUUsage {
                total: number(&at, "cpuacct.usage"),
                kernel: number(&at, "cpuacct.usage_sys"),
                user: number(&at, "cpuacct.usage_user"),
                ..Default::default()
            });
        }
        if let Some(at) = self.v1("cpu") {
            let of = Lines::read(&at, "cpu.stat")?;
            cpu.throttling = MessageField::some(Throttle {
                periods: of.get("nr_periods"),
                throttled_periods: of.get("nr_throttled"),
                throttled_time: of.get("throttled_time"),
                ..Default::default()
            });
        }
        metrics.cpu = MessageField::some(cpu);
        if let Some(at) = self.v1("pids") {
            let (current, limit) = (number(&at, "pids.current"), number(&at, "pids.max"));
            metrics.pids = MessageField::some(PidsStat { current, limit, ..Default::default() });
        }
        Ok(metrics)
    }
}

/// `FILE.usage_in_bytes` and the others of its name.
fn memory_entry(at: &Path, file: &str) -> cgroups::metrics::MemoryEntry {
    let of = |what: &str| number(at, &format!("{file}.{what}"));
    cgroups::metrics::MemoryEntry {
        limit: of("limit_in_bytes"),
        usage: of("usage_in_bytes"),
        max: of("max_usage_in_bytes"),
        failcnt: of("failcnt"),
        ..Default::default()
    }
}

fn v2(at: &Path) -> Result<cgroups_v2::metrics::Metrics, Error> {
    use cgroups_v2::metrics::{CPUStat, MemoryEvents, MemoryStat, Metrics, PidsStat};
    let (cpu, of, events) =
        (Lines::read(at, "cpu.stat")?, Lines::read(at, "memory.stat")?, Lines::read(at, "memory.events")?);
    Ok(Metrics {
        pids: MessageField::some(PidsStat {
            current: number(at, "pids.current"),
            limit: number(at, "pids.max"),
            ..Default::default()
        }),
        cpu: MessageField::some(CPUStat {
            usage_usec: cpu.get("usage_usec"),
            user_usec: cpu.get("user_usec"),
            system_usec: cpu.get("system_usec"),
            nr_periods: cpu.get("nr_periods"),
            nr_throttled: cpu.get("nr_throttled"),
            throttled_usec: cpu.get("throttled_usec"),
            nr_bursts: cpu.get("nr_bursts"),
            burst_usec: cpu.get("burst_usec"),
            ..Default::default()
        }),
        memory: MessageField::some(MemoryStat {
            anon: of.get("anon"),
            file: of.get("file"),
            kernel_stack: of.get("kernel_stack"),
            slab: of.get("slab"),
            sock: of.get("sock"),
            shmem: of.get("shmem"),
            file_mapped: of.get("file_mapped"),
            file_dirty: of.get("file_dirty"),
            file_writeback: of.get("file_writeback"),
            anon_thp: of.get("anon_thp"),
            inactive_anon: of.get("inactive_anon"),
            active_anon: of.get("active_anon"),
            inactive_file: of.get("inactive_file"),
            active_file: of.get("active_file"),
            unevictable: of.get("unevictable"),
            slab_reclaimable: of.get("slab_reclaimable"),
            slab_unreclaimable: of.get("slab_unreclaimable"),
            pgfault: of.get("pgfault"),
            pgmajfault: of.get("pgmajfault"),
            usage: number(at, "memory.current"),
            usage_limit: number(at, "memory.max"),
            max_usage: number(at, "memory.peak"),
            swap_usage: number(at, "memory.swap.current"),
            swap_limit: number(at, "memory.swap.max"),
            ..Default::default()
        }),
        memory_events: MessageField::some(MemoryEvents {
            low: events.get("low"),
            high: events.get("high"),
            max: events.get("max"),
            oom: events.get("oom"),
            oom_kill: events.get("oom_kill"),
            ..Default::default()
        }),
        ..Default::default()
    })
}

/// A file of `key number` lines.
struct Lines(HashMap<String, u64>);

impl Lines {
    fn read(at: &Path, file: &str) -> Result<Self, Error> {
        let path = at.join(file);
        let text =
            fs::read_to_string(&path).map_err(|source| Error::Step { step: format!("read {path:?}"), source })?;
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        Ok(Self(lines.filter_map(|(key, value)| Some((key.to_owned(), value.trim().parse().ok()?))).collect()))
    }

    fn get(&self, key: &str) -> u64 {
        self.0.get(key).copied().unwrap_or_default()
    }
}

/// A file of one number; no limit is the largest, as containerd's own metrics have it.
fn number(at: &Path, file: &str) -> u64 {
    match super::files::read_small(&at.join(file)).as_deref() {
        Ok("max") => u64::MAX,
        Ok(text) => text.parse().unwrap_or_default(),
        Err(_) => 0,
    }
}

fn any(name: &str, message: &impl Message) -> Result<Any, Error> {
    let value = message
        .write_to_bytes()
        .map_err(|error| Error::Step { step: "encode the metrics".into(), source: std::io::Error::other(error) })?;
    Ok(Any { type_url: name.into(), value, ..Default::default() })
}
