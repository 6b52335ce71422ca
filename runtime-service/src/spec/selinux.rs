//! SELinux labels of pods and containers, as texts: parsed, put together, replaced in part. Which of them the policy knows
//! is the kernel's to say (`host::selinux`).

use std::fmt;

use berth_api::cri;
use serde::{Deserialize, Serialize};

use super::Invalid;

/// `user:role:type`, and the level on a policy that has levels, which may hold colons itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Context {
    user: String,
    role: String,
    kind: String,
    level: Option<String>,
}

impl Context {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        let (user, role, kind, level) = (parts.next()?, parts.next()?, parts.next()?, parts.next());
        let whole = ![Some(&user), Some(&role), Some(&kind), level.as_ref()].contains(&Some(&String::new()));
        whole.then_some(Self { user, role, kind, level })
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.user, self.role, self.kind)?;
        self.level.iter().try_for_each(|level| write!(f, ":{level}"))
    }
}

/// What the policy gives to containers that say nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Defaults {
    process: Context,
    file: Context,
}

/// A pod's, and those of its containers that say nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PodLabels {
    /// Of processes.
    pub(crate) process: String,
    /// Of files: the root, what is mounted, volumes that are relabelled.
    pub(crate) mount: String,
}

/// A container's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Labels {
    /// `None`: what the policy makes of the shim's.
    pub(crate) process: Option<String>,
    pub(crate) mount: String,
}

/// Categories that a policy has for containers. Source: `mcs_num_cats` of the reference policy.
pub(crate) const CATEGORIES: u16 = 1024;

impl Defaults {
    /// Of a policy's `contexts/lxc_contexts`: lines of `key = "context"`, of which `process` and `file` count.
    ///
    /// # Errors
    /// The line that is missing, or is no context.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let of = |wanted: &str| {
            let lines = text.lines().filter_map(|line| line.split('#').next()?.split_once('='));
            let mut values =
                lines.filter(|(key, _)| key.trim() == wanted).map(|(_, value)| value.trim().trim_matches('"'));
            let value = values.next_back().ok_or_else(|| format!("it has no line `{wanted} = \"…\"`"))?;
            Context::parse(value).ok_or_else(|| format!("its {wanted}, {value:?}, is no user:role:type:level"))
        };
        Ok(Self { process: of("process")?, file: of("file")? })
    }

    pub(crate) fn process(&self) -> String {
        self.process.to_string()
    }

    pub(crate) fn file(&self) -> String {
        self.file.to_string()
    }

    /// The level with this pair of categories; `None` on a policy without levels.
    pub(crate) fn level(&self, low: u16, high: u16) -> Option<String> {
        let sensitivity = self.process.level.as_deref()?.split([':', '-']).next()?;
        Some(format!("{sensitivity}:c{low},c{high}"))
    }

    /// Labels with the parts that `options` names, of which user and level are those of files too; what says no level has
    /// this one.
    ///
    /// # Errors
    /// The part that cannot be one.
    pub(crate) fn with(
        &self,
        options: Option<&cri::SeLinuxOption>,
        level: Option<String>,
        field: &str,
    ) -> Result<PodLabels, Invalid> {
        let nothing = cri::SeLinuxOption::default();
        let asked = options.unwrap_or(&nothing);
        let part = |name: &str, value: &str, default: &str| match value {
            "" => Ok(default.to_owned()),
            _ if value.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c)) => Ok(value.to_owned()),
            _ => Err(Invalid::new(format!("{field}.{name}"), format!("{value:?} is no name of SELinux's"))),
        };
        let level = match asked.level.as_str() {
            "" => level.or_else(|| self.process.level.clone()),
            level if level.chars().all(|c| c.is_ascii_alphanumeric() || "_.-:,".contains(c)) => Some(level.to_owned()),
            other => return Err(Invalid::new(format!("{field}.level"), format!("{other:?} is no level"))),
        };
        let process = Context {
            user: part("user", &asked.user, &self.process.user)?,
            role: part("role", &asked.role, &self.process.role)?,
            kind: part("type", &asked.r#type, &self.process.kind)?,
            level: level.clone(),
        };
        let mount = Context { user: part("user", &asked.user, &self.file.user)?, level, ..self.file.clone() };
        Ok(PodLabels { process: process.to_string(), mount: mount.to_string() })
    }
}

/// Those that were asked for, if any part was.
pub(crate) fn asked(options: Option<&cri::SeLinuxOption>) -> Option<&cri::SeLinuxOption> {
    options.filter(|options| **options != cri::SeLinuxOption::default())
}

impl PodLabels {
    /// The level of its processes.
    pub(crate) fn level(&self) -> Option<String> {
        Context::parse(&self.process)?.level
    }

    /// A container's: what it asks for, else its pod's. One that is the host's in other ways is not confined by a label
    /// that it did not ask for. Source: the custom of Docker and CRI-O.
    ///
    /// # Errors
    /// The part of its options that cannot be one.
    pub(crate) fn of_container(
        &self,
        defaults: &Defaults,
        security: &cri::LinuxContainerSecurityContext,
        field: &str,
    ) -> Result<Labels, Invalid> {
        let options = asked(security.selinux_options.as_ref());
        let PodLabels { process, mount } = match options {
            Some(options) => defaults.with(Some(options), self.level(), field)?,
            None => self.clone(),
        };
        let namespaces = security.namespace_options.clone().unwrap_or_default();
        let node = [namespaces.pid(), namespaces.ipc()].contains(&cri::NamespaceMode::Node);
        let free = options.is_none() && (security.privileged || node);
        Ok(Labels { process: (!free).then_some(process), mount })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXTS: &str = "# of the policy\nprocess = \"system_u:system_r:container_t:s0\"\n\
        content = \"system_u:object_r:virt_var_lib_t:s0\"\nfile=\"system_u:object_r:container_file_t:s0\"\n";

    fn defaults() -> Defaults {
        Defaults::parse(CONTEXTS).expect("contexts")
    }

    fn options(user: &str, role: &str, kind: &str, level: &str) -> Option<cri::SeLinuxOption> {
        Some(cri::SeLinuxOption { user: user.into(), role: role.into(), r#type: kind.into(), level: level.into() })
    }

    fn pod() -> PodLabels {
        let defaults = defaults();
        defaults.with(None, defaults.level(4, 700), "f").expect("labels")
    }

    #[test]
    fn the_policys_defaults_are_read() {
        assert_eq!(defaults().process(), "system_u:system_r:container_t:s0");
        assert_eq!(defaults().file(), "system_u:object_r:container_file_t:s0");
        for (text, told) in [
            ("process = \"a:b:c:s0\"\n", "no line `file = "),
            ("process = \"a:b\"\nfile = \"a:b:c\"\n", "\"a:b\", is no user:role:type:level"),
            ("process = \"a:b:c:\"\nfile = \"a:b:c\"\n", "is no user:role:type:level"),
            ("", "no line `process"),
        ] {
            let error = Defaults::parse(text).expect_err(text);
            assert!(error.contains(told), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_pod_that_says_nothing_has_a_pair_of_categories() {
        assert_eq!(pod().process, "system_u:system_r:container_t:s0:c4,c700");
        assert_eq!(pod().mount, "system_u:object_r:container_file_t:s0:c4,c700");
        assert_eq!(pod().level().as_deref(), Some("s0:c4,c700"));
    }

    #[test]
    fn a_policy_without_levels_has_none() {
        let defaults = Defaults::parse("process = \"a:b:c\"\nfile = \"a:b:f\"\n").expect("contexts");
        assert_eq!(defaults.level(1, 2), None);
        assert_eq!(defaults.with(None, None, "f").expect("labels").process, "a:b:c");
    }

    #[test]
    fn each_part_replaces_that_part_and_files_have_user_and_level() {
        for (asked, process, mount) in [
            (
                options("", "", "spc_t", ""),
                "system_u:system_r:spc_t:s0:c4,c700",
                "system_u:object_r:container_file_t:s0:c4,c700",
            ),
            (options("", "", "", "s0"), "system_u:system_r:container_t:s0", "system_u:object_r:container_file_t:s0"),
            (options("u", "r", "t", "s0-s1:c1.c3"), "u:r:t:s0-s1:c1.c3", "u:object_r:container_file_t:s0-s1:c1.c3"),
        ] {
            let labels = defaults().with(asked.as_ref(), pod().level(), "f").expect("labels");
            assert_eq!((labels.process.as_str(), labels.mount.as_str()), (process, mount));
        }
    }

    #[test]
    fn what_cannot_be_part_of_a_label_is_refused_by_its_field() {
        for (asked, field) in [
            (options("a:b", "", "", ""), "f.user"),
            (options("", "x y", "", ""), "f.role"),
            (options("", "", "t\"", ""), "f.type"),
            (options("", "", "", "s0\n"), "f.level"),
        ] {
            assert_eq!(defaults().with(asked.as_ref(), None, "f").expect_err(field).field, field);
        }
    }

    #[test]
    fn a_container_has_its_pods_labels_or_what_it_asks_for() {
        let security = |privileged, pid: cri::NamespaceMode, selinux_options| {
            let namespaces = cri::NamespaceOption { pid: pid.into(), ..Default::default() };
            let namespace_options = Some(namespaces);
            cri::LinuxContainerSecurityContext { privileged, namespace_options, selinux_options, ..Default::default() }
        };
        use cri::NamespaceMode::{Container, Node};
        let own = "system_u:system_r:container_t:s0:c4,c700";
        for (privileged, pid, asked, process) in [
            (false, Container, None, Some(own)),
            (false, Container, options("", "", "", ""), Some(own)),
            (true, Container, None, None),
            (false, Node, None, None),
            (true, Node, options("", "", "t", ""), Some("system_u:system_r:t:s0:c4,c700")),
            (false, Container, options("", "", "", "s0:c1"), Some("system_u:system_r:container_t:s0:c1")),
        ] {
            let labels = pod().of_container(&defaults(), &security(privileged, pid, asked), "f").expect("labels");
            assert_eq!(labels.process.as_deref(), process);
            assert!(labels.mount.starts_with("system_u:object_r:container_file_t:s0:c"), "{}", labels.mount);
        }
    }
}
