//! A container's seccomp filter as `linux.seccomp`: the default profile, a file's, or none.

use berth_api::cri;
use cri::security_profile::ProfileType;
use serde::Deserialize;
use serde_json::{Value, json};

use super::seccomp_default;
use super::{Held, Invalid, caps};

const FIELD: &str = "config.linux.security_context.seccomp";
const OLD_FIELD: &str = "config.linux.security_context.seccomp_profile_path";

/// What is asked for, where anything is.
enum Asked {
    Default,
    File {
        /// Absolute.
        path: String,
        /// The field that names it.
        field: String,
    },
}

/// The field wins over its deprecated form. No profile at all is unconfined: so CRI has it.
fn asked(security: &cri::LinuxContainerSecurityContext) -> Result<Option<Asked>, Invalid> {
    let Some(profile) = &security.seccomp else {
        #[allow(deprecated)]
        return old(&security.seccomp_profile_path, OLD_FIELD);
    };
    match profile.profile_type() {
        ProfileType::Unconfined => Ok(None),
        ProfileType::RuntimeDefault => Ok(Some(Asked::Default)),
        ProfileType::Localhost => file(&profile.localhost_ref, format!("{FIELD}.localhost_ref")).map(Some),
    }
}

fn old(text: &str, field: &str) -> Result<Option<Asked>, Invalid> {
    match text {
        "" | "unconfined" => Ok(None),
        "runtime/default" | "docker/default" => Ok(Some(Asked::Default)),
        text if text.starts_with("localhost/") => file(text, field.into()).map(Some),
        text => Err(Invalid::new(field, format!("{text:?} is none of runtime/default, unconfined and localhost/PATH"))),
    }
}

fn file(reference: &str, field: String) -> Result<Asked, Invalid> {
    match reference.strip_prefix("localhost/").unwrap_or(reference) {
        path if path.starts_with('/') => Ok(Asked::File { path: path.to_owned(), field }),
        path => Err(Invalid::new(field, format!("{path:?} is no absolute path"))),
    }
}

/// A sandbox's deprecated form, `field`: it is of a process that a pod does not have, but it has to mean something.
///
/// # Errors
/// An unknown form, or a file without an absolute path.
pub(crate) fn check_old(text: &str, field: &str) -> Result<(), Invalid> {
    old(text, field).map(drop)
}

/// The path of the profile file this request needs, if it needs one, and the field that names it. The caller reads it.
///
/// # Errors
/// A Localhost profile without an absolute path; an unknown form of the deprecated field.
pub(crate) fn needs_file(security: &cri::LinuxContainerSecurityContext) -> Result<Option<(String, String)>, Invalid> {
    match asked(security)? {
        Some(Asked::File { path, field }) if !security.privileged => Ok(Some((path, field))),
        _ => Ok(None),
    }
}

/// `linux.seccomp`, or `None` for an unconfined container.
pub(super) fn build(
    security: &cri::LinuxContainerSecurityContext,
    text: Option<&str>,
    held: &Held,
) -> Result<Option<Value>, Invalid> {
    match asked(security)? {
        None => Ok(None),
        Some(Asked::Default) => Ok(Some(seccomp_default::profile(&caps::granted(security, held)?))),
        Some(Asked::File { path, field }) => {
            let problem = |p: String| Invalid::new(field.clone(), format!("{path}: {p}"));
            let text = text.ok_or_else(|| problem("not read".into()))?;
            from_file(text, &caps::granted(security, held)?).map(Some).map_err(problem)
        }
    }
}

/// A profile file in the format of Docker's and the kubelet's documentation: `linux.seccomp` with conditions.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    arch_map: Vec<ArchMap>,
    #[serde(default)]
    flags: Vec<String>,
    listener_path: Option<String>,
    listener_metadata: Option<String>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    #[serde(default)]
    name: String,
    #[serde(default)]
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Value>>,
    #[serde(default, rename = "comment")]
    _comment: String,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Condition {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
    /// `MAJOR.MINOR`; empty: any.
    #[serde(default)]
    min_kernel: String,
}

/// A kernel's first two numbers. Source: containers/common's and moby's `minKernel`, which have no more.
fn kernel(text: &str) -> Option<(u32, u32)> {
    let (major, rest) = text.split_once('.')?;
    let minor = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

impl Condition {
    /// This kernel is at least the one that is named; `None` when none is.
    fn kernel_is_there(&self) -> Result<Option<bool>, String> {
        if self.min_kernel.is_empty() {
            return Ok(None);
        }
        let wrong = || format!("minKernel: {:?} is not MAJOR.MINOR", self.min_kernel);
        let wanted = kernel(&self.min_kernel).ok_or_else(wrong)?;
        let uname = rustix::system::uname();
        let release = uname.release().to_string_lossy();
        let here = kernel(&release).ok_or_else(|| format!("this kernel calls itself {release:?}"))?;
        Ok(Some(here >= wanted))
    }
}

pub(super) fn from_file(text: &str, granted: &[&str]) -> Result<Value, String> {
    let file: File = serde_json::from_str(text).map_err(|e| e.to_string())?;
    if file.listener_path.is_some() || file.listener_metadata.is_some() {
        return Err("listenerPath: seccomp notification is not supported".into());
    }
    let has = |name: &String| granted.contains(&name.strip_prefix("CAP_").unwrap_or(name));
    let here = |arch: &String| arch == seccomp_default::ARCH_NAME;
    let mut rules = Vec::new();
    for rule in &file.syscalls {
        let included = rule.includes.caps.iter().all(has)
            && (rule.includes.arches.is_empty() || rule.includes.arches.iter().any(here))
            && rule.includes.kernel_is_there()? != Some(false);
        let excluded = rule.excludes.caps.iter().any(has)
            || rule.excludes.arches.iter().any(here)
            || rule.excludes.kernel_is_there()? == Some(true);
        if !included || excluded {
            continue;
        }
        let names: Vec<&String> = rule.names.iter().chain((!rule.name.is_empty()).then_some(&rule.name)).collect();
        if names.is_empty() {
            return Err("a rule in `syscalls` names no call".into());
        }
        let mut out = json!({ "names": names, "action": rule.action });
        if let Some(errno) = rule.errno_ret {
            out["errnoRet"] = errno.into();
        }
        if let Some(args) = rule.args.as_ref().filter(|a| !a.is_empty()) {
            out["args"] = args.clone().into();
        }
        rules.push(out);
    }
    let mut architectures = file.architectures;
    for map in file.arch_map.into_iter().filter(|m| m.architecture == seccomp_default::ARCH) {
        architectures.push(map.architecture);
        architectures.extend(map.sub_architectures);
    }
    let mut out = json!({ "defaultAction": file.default_action, "syscalls": rules });
    if !architectures.is_empty() {
        out["architectures"] = json!(architectures);
    }
    if !file.flags.is_empty() {
        out["flags"] = json!(file.flags);
    }
    if let Some(errno) = file.default_errno_ret {
        out["defaultErrnoRet"] = errno.into();
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deprecated_form_says_the_same_and_the_field_wins() {
        #[allow(deprecated)]
        let with = |path: &str, seccomp: Option<cri::SecurityProfile>| {
            let seccomp_profile_path = path.to_owned();
            cri::LinuxContainerSecurityContext { seccomp_profile_path, seccomp, ..Default::default() }
        };
        let built = |path: &str| build(&with(path, None), Some(r#"{"defaultAction":"X"}"#), &Held::from_mask(u64::MAX));
        for none in ["", "unconfined"] {
            assert_eq!(built(none).expect(none), None);
        }
        for default in ["runtime/default", "docker/default"] {
            assert!(built(default).expect(default).is_some());
        }
        let file = needs_file(&with("localhost//etc/p", None)).expect("a file");
        assert_eq!(file, Some(("/etc/p".into(), OLD_FIELD.into())));
        assert_eq!(built("localhost//etc/p").expect("a file").expect("a filter")["defaultAction"], "X");
        for bad in ["localhost/p", "nonsense"] {
            assert_eq!(built(bad).expect_err(bad).field, OLD_FIELD);
        }
        let unconfined = cri::SecurityProfile { profile_type: ProfileType::Unconfined.into(), ..Default::default() };
        assert_eq!(
            build(&with("runtime/default", Some(unconfined)), None, &Held::from_mask(u64::MAX)).expect("none"),
            None
        );
    }

    #[test]
    fn a_file_with_conditions_becomes_plain_rules() {
        let text = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,
            "archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],
            "syscalls":[{"names":["read","write"],"action":"SCMP_ACT_ALLOW"},
                        {"name":"mount","action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
                        {"names":["clone"],"action":"SCMP_ACT_ALLOW","excludes":{"caps":["CAP_SYS_ADMIN"]},
                         "args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#;
        let names = |caps: &[&str]| {
            let value = from_file(text, caps).expect("parses");
            serde_json::from_value::<oci_spec::runtime::LinuxSeccomp>(value.clone()).expect("is an OCI filter");
            let rules = value["syscalls"].as_array().expect("rules").clone();
            rules.iter().flat_map(|r| r["names"].as_array().expect("names").clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&[]), ["read", "write", "clone"]);
        assert_eq!(names(&["SYS_ADMIN"]), ["read", "write", "mount"]);
        for (condition, there) in [
            (r#""includes":{"minKernel":"4.8"}"#, true),
            (r#""includes":{"minKernel":"4294967295.0"}"#, false),
            (r#""excludes":{"minKernel":"4294967295.0"}"#, true),
            (r#""excludes":{"minKernel":"4.8"}"#, false),
        ] {
            let rule = format!(r#"{{"names":["read"],"action":"SCMP_ACT_ALLOW",{condition}}}"#);
            let text = format!(r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{rule}]}}"#);
            let value = from_file(&text, &[]).expect("parses");
            assert_eq!(value["syscalls"].as_array().map(Vec::len), Some(usize::from(there)), "{condition}");
            let wrong = from_file(&text.replace("4.8", "new").replace("4294967295", "-"), &[]).expect_err("no number");
            assert!(wrong.contains("minKernel"), "{wrong}");
        }
        assert_eq!(kernel("6.18.44-fc"), Some((6, 18)));
        assert_eq!(kernel("6.1-rc3"), Some((6, 1)));
        assert!(from_file(r#"{"defaultAction":"X","surprise":1}"#, &[]).expect_err("unknown key").contains("surprise"));
    }
}
