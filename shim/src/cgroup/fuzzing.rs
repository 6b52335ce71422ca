//! `linux.resources`, for `test/fuzz`.

use oci_spec::runtime::LinuxResources;

use super::{devices, limits};

/// Rules end in a program or a list of lines, limits in values or a refusal.
pub(crate) fn resources(asked: &LinuxResources) {
    for only_unified in [false, true] {
        let _ = limits::refuse(asked, only_unified);
    }
    if let Some(memory) = asked.memory() {
        let _ = limits::swap_max(memory);
    }
    if let Some(shares) = asked.cpu().as_ref().and_then(|cpu| cpu.shares()) {
        assert!((1..=10_000).contains(&limits::weight_of_shares(shares)), "{shares}");
    }
    if let Ok(rules) = devices::rules(asked.devices().as_deref().unwrap_or_default()) {
        let program = devices::compile(&rules);
        assert!(!program.is_empty());
        for rule in &rules {
            assert!(!devices::v1_value(rule).contains('\n'));
        }
    }
}
