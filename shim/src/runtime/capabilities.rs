//! Capabilities: from their names to the sets of the kernel, cut down to what this process may give.

use std::sync::OnceLock;

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::Error;

/// What one process gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Granted {
    pub(super) bounding: CapabilitySet,
    pub(super) sets: CapabilitySets,
    pub(super) ambient: CapabilitySet,
}

/// What this process may give: permitted to it and in its bounding set. Read once, as nothing here ever drops any.
///
/// # Errors
/// What capget answers.
pub(super) fn held() -> Result<CapabilitySet, Error> {
    static HELD: OnceLock<CapabilitySet> = OnceLock::new();
    if let Some(held) = HELD.get() {
        return Ok(*held);
    }
    let permitted = rustix::thread::capabilities(None).map_err(|e| Error::step("read the capabilities", e))?.permitted;
    Ok(*HELD.get_or_init(|| permitted & bounding()))
}

/// The bounding set of this process, read once.
pub(super) fn bounding() -> CapabilitySet {
    static BOUNDING: OnceLock<CapabilitySet> = OnceLock::new();
    *BOUNDING.get_or_init(read_bounding)
}

/// Every capability that this kernel knows.
pub(super) fn known() -> CapabilitySet {
    static KNOWN: OnceLock<CapabilitySet> = OnceLock::new();
    let is_known = |one: &CapabilitySet| rustix::thread::capability_is_in_bounding_set(*one).is_ok();
    *KNOWN.get_or_init(|| CapabilitySet::all().iter().filter(is_known).collect())
}

fn read_bounding() -> CapabilitySet {
    let mut set = CapabilitySet::empty();
    for one in CapabilitySet::all().iter() {
        // An error means that this kernel does not know it.
        if rustix::thread::capability_is_in_bounding_set(one).unwrap_or(false) {
            set |= one;
        }
    }
    set
}

/// Cuts what is asked for down to `held`; the names of what is withheld come back sorted.
pub(super) fn grant(asked: Option<&LinuxCapabilities>, held: CapabilitySet) -> (Granted, Vec<String>) {
    let pick = |names: Option<&Option<Capabilities>>| -> CapabilitySet {
        names.and_then(Option::as_ref).into_iter().flatten().map(set_of).collect()
    };
    let bounding = pick(asked.map(LinuxCapabilities::bounding));
    let effective = pick(asked.map(LinuxCapabilities::effective));
    let permitted = pick(asked.map(LinuxCapabilities::permitted));
    let inheritable = pick(asked.map(LinuxCapabilities::inheritable));
    let ambient = pick(asked.map(LinuxCapabilities::ambient));
    let withheld = (bounding | effective | permitted | inheritable | ambient) - held;
    let permitted = permitted & held;
    let inheritable = inheritable & held;
    let granted = Granted {
        bounding: bounding & held,
        sets: CapabilitySets { effective: effective & permitted, permitted, inheritable },
        // The kernel raises only what is permitted and inheritable.
        ambient: ambient & permitted & inheritable,
    };
    let mut names: Vec<String> = withheld.iter_names().map(|(name, _)| format!("CAP_{name}")).collect();
    names.sort_unstable();
    (granted, names)
}

fn set_of(capability: &Capability) -> CapabilitySet {
    // Both crates name them as the kernel does, without the prefix.
    CapabilitySet::from_name(&capability.to_string()).unwrap_or(CapabilitySet::empty())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn asked(names: &[&str], ambient: &[&str]) -> LinuxCapabilities {
        let set = |names: &[&str]| -> HashSet<Capability> {
            names.iter().map(|n| n.parse().expect("a capability")).collect()
        };
        let mut asked = LinuxCapabilities::default();
        asked.set_bounding(Some(set(names)));
        asked.set_effective(Some(set(names)));
        asked.set_permitted(Some(set(names)));
        asked.set_inheritable(Some(set(ambient)));
        asked.set_ambient(Some(set(ambient)));
        asked
    }

    #[test]
    fn every_capability_of_the_spec_is_one_of_the_kernels() {
        let mut known = 0;
        for (name, bit) in CapabilitySet::all().iter_names() {
            let capability: Capability = name.parse().expect("known to oci-spec");
            assert_eq!(set_of(&capability), bit, "{name}");
            known += 1;
        }
        assert_eq!(known, 41); // CAP_LAST_CAP + 1, include/uapi/linux/capability.h
    }

    #[test]
    fn what_is_not_held_is_withheld_and_named() {
        let held = CapabilitySet::CHOWN | CapabilitySet::KILL;
        let (granted, withheld) = grant(Some(&asked(&["CHOWN", "SYS_RESOURCE", "BPF"], &[])), held);
        assert_eq!(granted.bounding, CapabilitySet::CHOWN);
        assert_eq!(granted.sets.effective, CapabilitySet::CHOWN);
        assert_eq!(withheld, ["CAP_BPF", "CAP_SYS_RESOURCE"]);
    }

    #[test]
    fn ambient_is_at_most_what_is_permitted_and_inheritable() {
        let (granted, _) = grant(Some(&asked(&["CHOWN"], &["CHOWN", "KILL"])), CapabilitySet::all());
        assert_eq!(granted.ambient, CapabilitySet::CHOWN);
        assert_eq!(granted.sets.inheritable, CapabilitySet::CHOWN | CapabilitySet::KILL);
    }

    #[test]
    fn no_capabilities_in_the_spec_are_none() {
        let (granted, withheld) = grant(None, CapabilitySet::all());
        assert_eq!(granted.bounding, CapabilitySet::empty());
        assert_eq!(granted.sets.permitted, CapabilitySet::empty());
        assert!(withheld.is_empty());
    }
}
