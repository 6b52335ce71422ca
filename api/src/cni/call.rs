//! One call of a plugin: the verb and its parameters, which travel in the environment.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::str::FromStr;

/// The verb.
pub const CNI_COMMAND: &str = "CNI_COMMAND";
/// The pod.
pub const CNI_CONTAINERID: &str = "CNI_CONTAINERID";
/// Path of the pod's network namespace.
pub const CNI_NETNS: &str = "CNI_NETNS";
/// Name of the interface inside the pod.
pub const CNI_IFNAME: &str = "CNI_IFNAME";
/// Extra arguments, `KEY=VALUE;KEY=VALUE`.
pub const CNI_ARGS: &str = "CNI_ARGS";
/// Directories of plugins, separated by `:`.
pub const CNI_PATH: &str = "CNI_PATH";

/// Key in `CNI_ARGS`: value `1` tells a plugin to ignore keys it does not know.
pub const ARG_IGNORE_UNKNOWN: &str = "IgnoreUnknown";

/// Key in `CNI_ARGS` of berth's own: value `1` says that the namespace at `CNI_NETNS` is the caller's, which drops it
/// right after DEL. The plugin may then leave a virtual device, quiet and without address, to go with the namespace,
/// and so save a synchronous delete (15 ms). Without it DEL deletes the device.
pub const ARG_NETNS_OWNED: &str = "BERTH_NETNS_OWNED";

/// Longest name of an interface. Source: `IFNAMSIZ` less its NUL.
pub const IFNAME_MAX: usize = 15;

/// What the plugin is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Attach the pod to the network.
    Add,
    /// Undo it; a repetition succeeds.
    Del,
    /// Is the attachment as ADD left it?
    Check,
    /// Free what no valid attachment holds.
    Gc,
    /// Can ADD be served?
    Status,
    /// Which versions are spoken?
    Version,
}

impl Verb {
    /// All of them.
    pub const ALL: [Verb; 6] = [Verb::Add, Verb::Del, Verb::Check, Verb::Gc, Verb::Status, Verb::Version];

    /// As it is written in `CNI_COMMAND`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Verb::Add => "ADD",
            Verb::Del => "DEL",
            Verb::Check => "CHECK",
            Verb::Gc => "GC",
            Verb::Status => "STATUS",
            Verb::Version => "VERSION",
        }
    }

    /// The variables without which the verb cannot be served, `CNI_COMMAND` aside.
    /// Source: SPEC.md, section 2, "CNI operations". (GC and STATUS need `CNI_PATH` only to delegate.)
    pub const fn required(self) -> &'static [&'static str] {
        match self {
            Verb::Add | Verb::Check => &[CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME],
            Verb::Del => &[CNI_CONTAINERID, CNI_IFNAME],
            Verb::Gc | Verb::Status | Verb::Version => &[],
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Verb {
    type Err = CallError;

    fn from_str(text: &str) -> Result<Self, CallError> {
        Verb::ALL.into_iter().find(|v| v.as_str() == text).ok_or_else(|| CallError::invalid(CNI_COMMAND, text))
    }
}

/// A call, as it is passed in the environment. What a verb does not use is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The verb.
    pub verb: Verb,
    /// The pod: a letter or digit, then letters, digits, `_`, `.` and `-`.
    pub container_id: String,
    /// Path of the pod's network namespace; `None` for a DEL whose namespace is gone.
    pub netns: Option<PathBuf>,
    /// Name of the interface inside the pod, at most 15 bytes.
    pub ifname: String,
    /// Extra arguments in their order.
    pub args: Args,
    /// Where other plugins are found, first match wins.
    pub path: Vec<PathBuf>,
}

/// The environment does not hold a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// Variables that the verb requires and that are missing or empty.
    Missing {
        /// What was asked; `None` when `CNI_COMMAND` itself is missing.
        verb: Option<Verb>,
        /// All of them.
        variables: Vec<&'static str>,
    },
    /// A variable whose value cannot be.
    Invalid {
        /// Which.
        variable: &'static str,
        /// Its value, made printable.
        value: String,
    },
}

impl CallError {
    fn invalid(variable: &'static str, value: &str) -> Self {
        CallError::Invalid { variable, value: value.into() }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::Missing { verb: Some(verb), variables } => {
                write!(f, "{verb} requires {} in the environment", variables.join(", "))
            }
            CallError::Missing { verb: None, variables } => write!(f, "{} is not set", variables.join(", ")),
            CallError::Invalid { variable, value } => write!(f, "{variable} has an invalid value {value:?}"),
        }
    }
}

impl std::error::Error for CallError {}

impl Call {
    /// A call without parameters, to be filled in.
    pub fn new(verb: Verb) -> Self {
        Call {
            verb,
            container_id: String::new(),
            netns: None,
            ifname: String::new(),
            args: Args::default(),
            path: Vec::new(),
        }
    }

    /// Reads a call from an environment.
    ///
    /// # Errors
    /// All missing variables at once, or the first one that cannot be.
    pub fn from_env(get: impl Fn(&str) -> Option<OsString>) -> Result<Self, CallError> {
        let get = |name| get(name).filter(|v| !v.is_empty());
        let text = |name| match get(name).map(OsString::into_string) {
            None => Ok(String::new()),
            Some(Ok(text)) => Ok(text),
            Some(Err(raw)) => Err(CallError::invalid(name, &raw.to_string_lossy())),
        };
        if get(CNI_COMMAND).is_none() {
            return Err(CallError::Missing { verb: None, variables: vec![CNI_COMMAND] });
        }
        let verb: Verb = text(CNI_COMMAND)?.parse()?;
        let missing: Vec<_> = verb.required().iter().copied().filter(|name| get(name).is_none()).collect();
        if !missing.is_empty() {
            return Err(CallError::Missing { verb: Some(verb), variables: missing });
        }
        let call = Call {
            verb,
            container_id: text(CNI_CONTAINERID)?,
            netns: get(CNI_NETNS).map(PathBuf::from),
            ifname: text(CNI_IFNAME)?,
            args: text(CNI_ARGS)?.parse()?,
            path: get(CNI_PATH).map(|p| split_path(&p)).unwrap_or_default(),
        };
        if !call.container_id.is_empty() && !is_name(&call.container_id) {
            return Err(CallError::invalid(CNI_CONTAINERID, &call.container_id));
        }
        if !call.ifname.is_empty() && !is_ifname(&call.ifname) {
            return Err(CallError::invalid(CNI_IFNAME, &call.ifname));
        }
        Ok(call)
    }

    /// The environment that carries this call; variables without a value are left out.
    pub fn env(&self) -> Vec<(&'static str, OsString)> {
        let mut path = OsString::new();
        for (i, dir) in self.path.iter().enumerate() {
            if i > 0 {
                path.push(":");
            }
            path.push(dir);
        }
        let pairs = [
            (CNI_COMMAND, self.verb.as_str().into()),
            (CNI_CONTAINERID, self.container_id.clone().into()),
            (CNI_NETNS, self.netns.clone().unwrap_or_default().into_os_string()),
            (CNI_IFNAME, self.ifname.clone().into()),
            (CNI_ARGS, self.args.to_string().into()),
            (CNI_PATH, path),
        ];
        pairs.into_iter().filter(|(_, value): &(_, OsString)| !value.is_empty()).collect()
    }
}

fn split_path(value: &OsStr) -> Vec<PathBuf> {
    let dirs = value.as_bytes().split(|b| *b == b':').filter(|dir| !dir.is_empty());
    dirs.map(|dir| PathBuf::from(OsStr::from_bytes(dir))).collect()
}

/// Whether a container id or a network's name may be this: a letter or digit, then letters, digits, `_`, `.`, `-`.
/// Source: SPEC.md, sections 1 and 2.
pub fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// Whether the kernel takes this as the name of an interface.
/// Source: `dev_valid_name` in net/core/dev.c; `%` would make it a pattern.
pub fn is_ifname(text: &str) -> bool {
    (1..=IFNAME_MAX).contains(&text.len())
        && !matches!(text, "." | "..")
        && !text.chars().any(|c| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control())
}

/// `CNI_ARGS`: pairs in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args(pub Vec<(String, String)>);

impl Args {
    /// The value of `key`; of several the last.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Whether `key` is set to a true value (`1` or `true`).
    pub fn is_set(&self, key: &str) -> bool {
        self.get(key).is_some_and(|v| v == "1" || v.eq_ignore_ascii_case("true"))
    }
}

impl FromStr for Args {
    type Err = CallError;

    fn from_str(text: &str) -> Result<Self, CallError> {
        let pairs = text.split(';').filter(|pair| !pair.is_empty()).map(|pair| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
            _ => Err(CallError::invalid(CNI_ARGS, text)),
        });
        pairs.collect::<Result<_, _>>().map(Args)
    }
}

impl fmt::Display for Args {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (key, value)) in self.0.iter().enumerate() {
            write!(f, "{}{key}={value}", if i > 0 { ";" } else { "" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Call, CallError> {
        Call::from_env(|name| pairs.iter().find(|(k, _)| *k == name).map(|(_, v)| v.into()))
    }

    #[test]
    fn a_call_survives_the_environment() {
        let call = Call {
            verb: Verb::Add,
            container_id: "0a".repeat(32),
            netns: Some("/run/berth/p/x/ns/net".into()),
            ifname: "eth0".into(),
            args: Args(vec![("K8S_POD_NAME".into(), "a=b".into()), (ARG_IGNORE_UNKNOWN.into(), "1".into())]),
            path: vec!["/opt/cni/bin".into(), "/usr/libexec/berth/cni".into()],
        };
        let env = call.env();
        let again = Call::from_env(|name| env.iter().find(|(k, _)| *k == name).map(|(_, v)| v.clone()));
        assert_eq!(again, Ok(call));
    }

    #[test]
    fn empty_parameters_are_left_out_of_the_environment() {
        assert_eq!(Call::new(Verb::Status).env(), vec![(CNI_COMMAND, "STATUS".into())]);
    }

    #[test]
    fn every_missing_variable_is_named() {
        let err = read(&[(CNI_COMMAND, "ADD"), (CNI_IFNAME, "eth0"), (CNI_NETNS, "")]).unwrap_err();
        assert_eq!(err.to_string(), "ADD requires CNI_CONTAINERID, CNI_NETNS in the environment");
        assert_eq!(read(&[]).unwrap_err().to_string(), "CNI_COMMAND is not set");
        let del = read(&[(CNI_COMMAND, "DEL"), (CNI_CONTAINERID, "a"), (CNI_IFNAME, "eth0")]).unwrap();
        assert_eq!(del.netns, None);
        for verb in ["VERSION", "STATUS", "GC"] {
            read(&[(CNI_COMMAND, verb)]).unwrap();
        }
    }

    #[test]
    fn values_that_cannot_be_are_refused() {
        let base = [(CNI_CONTAINERID, "a"), (CNI_NETNS, "/n"), (CNI_IFNAME, "eth0"), (CNI_COMMAND, "ADD")];
        let bad = [
            (CNI_COMMAND, "add"),
            (CNI_CONTAINERID, "../x"),
            (CNI_CONTAINERID, ".x"),
            (CNI_IFNAME, "a/b"),
            (CNI_IFNAME, ".."),
            (CNI_IFNAME, "sixteen-letters-"),
            (CNI_IFNAME, "eth%d"),
            (CNI_ARGS, "A=1;novalue"),
            (CNI_ARGS, "=1"),
        ];
        for (variable, value) in bad {
            let mut pairs = vec![(variable, value)];
            pairs.extend(base.iter().filter(|(k, _)| *k != variable));
            assert_eq!(read(&pairs), Err(CallError::invalid(variable, value)));
        }
    }

    #[test]
    fn the_last_of_equal_args_wins() {
        let args: Args = "A=1;;A=true;B=".parse().unwrap();
        assert!(args.is_set("A"));
        assert_eq!((args.get("A"), args.get("B"), args.get("C")), (Some("true"), Some(""), None));
    }
}
