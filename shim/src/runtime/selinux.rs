//! SELinux labels of the spec: whether this kernel takes any, and which file systems are told theirs when they are made.
//! Which label it is, is the caller's to say; a process takes its own in `process_deeds`.

use std::ffi::{CStr, CString};
use std::path::Path;

use super::Error;
use super::options::Options;
use super::process::c_string;

/// There only while SELinux is on. Source: security/selinux/selinuxfs.c.
const ENFORCE: &str = "/sys/fs/selinux/enforce";

/// Parameters by which a file system is told labels; of two that say the same, SELinux refuses the mount.
/// Source: mount(8), "context=".
const TOLD_BY: &[&str] = &["context", "fscontext", "defcontext", "rootcontext"];

/// What shows the kernel: its labels are the policy's. The message queues are those of the IPC namespace, mounted once and
/// for all: their root is labelled instead.
const KERNELS_OWN: &[&str] = &["proc", "sysfs", "cgroup", "cgroup2", "mqueue"];

/// The label in a field of the spec.
///
/// # Errors
/// SELinux is not on: what was to be confined would not be.
pub(super) fn label(field: &str, text: Option<&str>) -> Result<Option<CString>, Error> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    if !Path::new(ENFORCE).exists() {
        return Err(Error::refused(field, format!("{text:?}, but SELinux is not on in this host's kernel")));
    }
    c_string(field, text).map(Some)
}

/// Adds the label of `linux.mountLabel` to what a new file system of this kind is told, unless that says its own.
pub(super) fn tell(options: &mut Options, kind: &str, label: Option<&CStr>) {
    let says_its_own = options.parameters.iter().any(|(key, _)| TOLD_BY.contains(&key.as_str()));
    if let Some(label) = label.filter(|_| !says_its_own && !KERNELS_OWN.contains(&kind)) {
        options.parameters.push(("context".into(), Some(label.to_string_lossy().into_owned())));
    }
}

/// A parameter's value as fsconfig(2) takes it: whoever writes options as one string has quotes around what has a comma.
pub(super) fn unquoted<'a>(key: &str, value: &'a str) -> &'a str {
    let inner = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    inner.filter(|_| TOLD_BY.contains(&key)).unwrap_or(value)
}

/// The same in the one string that mount(2) takes, in which a comma ends what is not in quotes.
pub(super) fn quoted(key: &str, value: &str) -> String {
    if TOLD_BY.contains(&key) { format!("\"{value}\"") } else { value.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: &str = "system_u:object_r:container_file_t:s0:c1,c2";

    fn told(words: &[&str], kind: &str) -> Vec<(String, Option<String>)> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let mut options = Options::parse("m", &words).expect("options");
        tell(&mut options, kind, Some(&CString::new(LABEL).expect("no NUL")));
        options.parameters
    }

    #[test]
    fn a_new_file_system_is_told_its_label_and_the_kernels_own_are_not() {
        assert_eq!(told(&["ro"], "tmpfs"), [("context".into(), Some(LABEL.into()))]);
        for kind in ["proc", "sysfs", "cgroup2", "mqueue"] {
            assert_eq!(told(&["ro"], kind), []);
        }
    }

    #[test]
    fn a_mount_that_says_its_own_label_keeps_it_without_quotes() {
        let own = "a:b:c:s0:c3,c4";
        assert_eq!(told(&[&format!("context=\"{own}\"")], "overlay"), [("context".into(), Some(own.into()))]);
        assert_eq!(told(&["rootcontext=a:b:c:s0"], "tmpfs"), [("rootcontext".into(), Some("a:b:c:s0".into()))]);
        assert_eq!(unquoted("source", "\"x\""), "\"x\"");
    }

    #[test]
    fn in_one_string_with_others_a_label_is_in_quotes() {
        assert_eq!(quoted("context", LABEL), format!("\"{LABEL}\""));
        assert_eq!(quoted("redirect_dir", "on"), "on");
    }
}
