//! The metrics that ListPodSandboxMetrics carries: names, labels and meaning are cAdvisor's, which a kubelet shows under
//! `/metrics/cadvisor` and dashboards know. CRI carries whole numbers: seconds are cut, not rounded.

use berth_api::cri::{MetricDescriptor, MetricType};

/// Labels that every metric has first. A metric of a whole pod has no container, image or name.
///
/// `id` is the path of the cgroup, `name` CRI's id of the container, as cAdvisor has them.
const BASE: &[&str] = &["container", "id", "image", "name", "namespace", "pod"];

/// One metric.
pub(super) struct Descriptor {
    pub(super) name: &'static str,
    pub(super) kind: MetricType,
    /// Labels after those of `BASE`.
    pub(super) labels: &'static [&'static str],
    help: &'static str,
}

impl Descriptor {
    pub(super) fn encode(&self) -> MetricDescriptor {
        MetricDescriptor {
            name: self.name.into(),
            help: self.help.into(),
            label_keys: BASE.iter().chain(self.labels).map(|key| (*key).to_owned()).collect(),
        }
    }
}

macro_rules! descriptors {
    ($($constant:ident $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(pub(super) const $constant: Descriptor = Descriptor {
            name: $name, kind: MetricType::$kind, labels: &[$($label),*], help: $help,
        };)*
        /// Every metric there is.
        pub(super) const ALL: &[&Descriptor] = &[$(&$constant),*];
    };
}

descriptors! {
    BLKIO_USAGE Counter "container_blkio_device_usage_total" ["device", "major", "minor", "operation"]
        "Bytes moved to and from a block device, by operation.";
    CPU_PERIODS Counter "container_cpu_cfs_periods_total" [] "Periods of the processor quota that went by.";
    CPU_THROTTLED_PERIODS Counter "container_cpu_cfs_throttled_periods_total" []
        "Periods in which the processor quota ran out.";
    CPU_THROTTLED_SECONDS Counter "container_cpu_cfs_throttled_seconds_total" []
        "Time spent waiting because the processor quota had run out.";
    CPU_SYSTEM Counter "container_cpu_system_seconds_total" [] "Processor time used in the kernel.";
    CPU_USAGE Counter "container_cpu_usage_seconds_total" ["cpu"] "Processor time used.";
    CPU_USER Counter "container_cpu_user_seconds_total" [] "Processor time used outside the kernel.";
    DESCRIPTORS Gauge "container_file_descriptors" [] "Open file descriptors.";
    FS_INODES_FREE Gauge "container_fs_inodes_free" ["device"] "Free inodes of the file system of writable layers.";
    FS_INODES Gauge "container_fs_inodes_total" ["device"] "Inodes of the file system of writable layers.";
    FS_LIMIT Gauge "container_fs_limit_bytes" ["device"] "Size of the file system of writable layers.";
    FS_READ_BYTES Counter "container_fs_reads_bytes_total" ["device"] "Bytes read from a block device.";
    FS_READS Counter "container_fs_reads_total" ["device"] "Reads from a block device.";
    FS_USAGE Gauge "container_fs_usage_bytes" ["device"] "Bytes in the writable layer.";
    FS_WRITTEN_BYTES Counter "container_fs_writes_bytes_total" ["device"] "Bytes written to a block device.";
    FS_WRITES Counter "container_fs_writes_total" ["device"] "Writes to a block device.";
    HUGETLB_MAX Gauge "container_hugetlb_max_usage_bytes" ["pagesize"] "Most memory in huge pages so far.";
    HUGETLB Gauge "container_hugetlb_usage_bytes" ["pagesize"] "Memory in huge pages.";
    LAST_SEEN Gauge "container_last_seen" [] "When the container was measured, in seconds since the epoch.";
    MEMORY_CACHE Gauge "container_memory_cache" [] "Page cache, in bytes.";
    MEMORY_FAILCNT Counter "container_memory_failcnt" [] "How often memory met its limit.";
    MEMORY_FAILURES Counter "container_memory_failures_total" ["failure_type", "scope"]
        "Page faults (pgfault), and those that had to read from disk (pgmajfault).";
    MEMORY_KERNEL Gauge "container_memory_kernel_usage" [] "Memory of the kernel's own on the container's account, in bytes.";
    MEMORY_MAPPED Gauge "container_memory_mapped_file" [] "Page cache that is mapped, in bytes.";
    MEMORY_MAX Gauge "container_memory_max_usage_bytes" [] "Most memory in use so far.";
    MEMORY_RSS Gauge "container_memory_rss" [] "Anonymous memory, in bytes.";
    MEMORY_SWAP Gauge "container_memory_swap" [] "Swap in use, in bytes.";
    MEMORY_USAGE Gauge "container_memory_usage_bytes" [] "All memory in use, page cache included.";
    MEMORY_WORKING_SET Gauge "container_memory_working_set_bytes" []
        "Memory that cannot be reclaimed at once: usage without inactive file pages.";
    NET_RX_BYTES Counter "container_network_receive_bytes_total" ["interface"] "Bytes received.";
    NET_RX_ERRORS Counter "container_network_receive_errors_total" ["interface"] "Errors on receiving.";
    NET_RX_DROPPED Counter "container_network_receive_packets_dropped_total" ["interface"]
        "Packets dropped on receiving.";
    NET_RX_PACKETS Counter "container_network_receive_packets_total" ["interface"] "Packets received.";
    NET_TX_BYTES Counter "container_network_transmit_bytes_total" ["interface"] "Bytes sent.";
    NET_TX_ERRORS Counter "container_network_transmit_errors_total" ["interface"] "Errors on sending.";
    NET_TX_DROPPED Counter "container_network_transmit_packets_dropped_total" ["interface"]
        "Packets dropped on sending.";
    NET_TX_PACKETS Counter "container_network_transmit_packets_total" ["interface"] "Packets sent.";
    OOM_EVENTS Counter "container_oom_events_total" [] "Processes killed because memory had met its limit.";
    CPU_STALLED Counter "container_pressure_cpu_stalled_seconds_total" [] "Time in which all waited for a processor.";
    CPU_WAITING Counter "container_pressure_cpu_waiting_seconds_total" [] "Time in which some waited for a processor.";
    IO_STALLED Counter "container_pressure_io_stalled_seconds_total" [] "Time in which all waited for input or output.";
    IO_WAITING Counter "container_pressure_io_waiting_seconds_total" [] "Time in which some waited for input or output.";
    MEMORY_STALLED Counter "container_pressure_memory_stalled_seconds_total" [] "Time in which all waited for memory.";
    MEMORY_WAITING Counter "container_pressure_memory_waiting_seconds_total" [] "Time in which some waited for memory.";
    PROCESSES Gauge "container_processes" [] "Processes.";
    SOCKETS Gauge "container_sockets" [] "Open sockets.";
    SPEC_CPU_PERIOD Gauge "container_spec_cpu_period" [] "Period of the processor quota, in microseconds.";
    SPEC_CPU_QUOTA Gauge "container_spec_cpu_quota" [] "Processor time allowed a period, in microseconds.";
    SPEC_CPU_SHARES Gauge "container_spec_cpu_shares" [] "Share of the processors, where 1024 is one of equals.";
    SPEC_MEMORY Gauge "container_spec_memory_limit_bytes" [] "Limit of memory; 0 for none.";
    SPEC_RESERVATION Gauge "container_spec_memory_reservation_limit_bytes" []
        "Memory left to the container when others want it; 0 for none.";
    SPEC_SWAP Gauge "container_spec_memory_swap_limit_bytes" [] "Limit of memory and swap together; 0 for none.";
    START_TIME Gauge "container_start_time_seconds" [] "When the container was started, in seconds since the epoch.";
    THREADS Gauge "container_threads" [] "Threads.";
    THREADS_MAX Gauge "container_threads_max" [] "Limit of threads; 0 for none.";
    ULIMITS Gauge "container_ulimits_soft" ["ulimit"] "Soft resource limits of the first process.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_order_and_each_is_once() {
        let names: Vec<_> = ALL.iter().map(|d| d.name).collect();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(names, sorted);
    }

    #[test]
    fn counters_are_those_that_say_total_or_count() {
        for descriptor in ALL {
            let counts = descriptor.name.ends_with("_total") && !descriptor.name.contains("_inodes_");
            let counts = counts || descriptor.name == "container_memory_failcnt";
            assert_eq!(descriptor.kind == MetricType::Counter, counts, "{}", descriptor.name);
        }
    }
}
