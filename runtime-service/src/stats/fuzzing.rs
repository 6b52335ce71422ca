//! Files of the kernel's, for `test/fuzz`.

use super::block::{parse_v1, parse_v2};
use super::cgroup::keyed;
use super::network::Network;
use super::pressure::Pressure;

/// Counters of cgroups, devices and interfaces. A kernel is trusted, but its next version is not known.
pub fn kernel_files(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(pressure) = Pressure::parse(&text) {
        assert!(text.lines().count() > 0 && pressure.some.total_us.checked_add(0).is_some());
    }
    for devices in [parse_v1(&text, &text), parse_v2(&text)] {
        assert!(devices.len() <= text.lines().count());
    }
    if let Some(number) = keyed(&text, "usage_usec") {
        assert!(text.contains(&number.to_string()) || text.contains("usage_usec"));
    }
    let network = Network::parse(&text, &text, &text);
    assert!(network.interfaces().all(|interface| interface.name != "lo"));
}
