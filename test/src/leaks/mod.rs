//! What a machine holds, before and after: the leak check. A [`Snapshot`] counts everything of each kind that pods are
//! made of, in the namespaces of the caller; the difference of two names each leak.
//!
//! Run it inside a node's namespaces (`nsenter … leakcheck`): there it sees that node and nothing else.

mod cgroups;
mod files;
mod mounts;
mod network;
mod processes;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What is watched beyond the kernel's own lists.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Watch {
    /// Directories whose files are listed; a file below a directory named `ipam` is a lease.
    pub roots: Vec<PathBuf>,
    /// Only cgroups with one of these texts in their path; none: all. Cgroups are the one thing that is not in a
    /// namespace of its own.
    pub cgroups: Vec<String>,
    /// Names of programs whose open descriptors are counted.
    pub daemons: Vec<String>,
    /// Findings (as `KIND: WHAT`) that are expected: `*` stands for anything without a slash, `**` for anything.
    pub allowed: Vec<String>,
}

/// Everything that was seen: kind, what, how often.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// What it looked at, so that the second one looks at the same.
    pub watch: Watch,
    seen: BTreeMap<String, BTreeMap<String, u32>>,
}

/// Collects what one kind's reader finds.
pub(crate) struct Seen<'a>(&'a mut BTreeMap<String, BTreeMap<String, u32>>);

impl Seen<'_> {
    pub(crate) fn add(&mut self, kind: &str, what: impl Into<String>) {
        *self.0.entry(kind.to_owned()).or_default().entry(what.into()).or_default() += 1;
    }
}

impl Snapshot {
    /// Looks at everything now.
    pub fn take(watch: Watch) -> Self {
        let mut seen = BTreeMap::new();
        let into = &mut Seen(&mut seen);
        mounts::look(into);
        network::look(into);
        cgroups::look(&watch.cgroups, into);
        processes::look(&watch.daemons, into);
        files::look(&watch.roots, into);
        Self { watch, seen }
    }

    /// What is there now that was not there in `self`, one `KIND: WHAT` each. Looks again for up to `patience`, since
    /// the kernel frees some things late.
    pub fn leaks(&self, patience: Duration) -> Vec<String> {
        let end = Instant::now() + patience;
        loop {
            let leaks = self.compare(&Self::take(self.watch.clone()));
            if leaks.is_empty() || Instant::now() >= end {
                return leaks;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What `after` has more than `self`.
    fn compare(&self, after: &Self) -> Vec<String> {
        let none = BTreeMap::new();
        let mut leaks = Vec::new();
        for (kind, items) in &after.seen {
            let before = self.seen.get(kind).unwrap_or(&none);
            for (what, count) in items {
                let more = count.saturating_sub(before.get(what).copied().unwrap_or(0));
                let line = format!("{kind}: {what}");
                if more > 0 && !self.watch.allowed.iter().any(|pattern| matches(pattern, &line)) {
                    leaks.push(if more > 1 { format!("{line} ({more} times)") } else { line });
                }
            }
        }
        leaks
    }
}

/// Whether `pattern` matches the whole of `text`; see [`Watch::allowed`].
fn matches(pattern: &str, text: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == text };
    let Some(rest) = text.strip_prefix(before) else { return false };
    let (after, reach) = match after.strip_prefix('*') {
        Some(after) => (after, rest.len()),
        None => (after, rest.find('/').unwrap_or(rest.len())),
    };
    (0..=reach).filter(|at| rest.is_char_boundary(*at)).any(|at| matches(after, &rest[at..]))
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_star_stops_at_a_slash_and_two_do_not() {
        for (pattern, text, expected) in [
            ("link: a", "link: a", true),
            ("link: a", "link: ab", false),
            ("cgroup: /sys/*/x", "cgroup: /sys/cpu/x", true),
            ("cgroup: /sys/*/x", "cgroup: /sys/cpu/deep/x", false),
            ("cgroup: /sys/*/x", "cgroup: /sys/cpu/x/leak", false),
            ("file: /d/**", "file: /d/a/b", true),
            ("**", "anything / at all", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
