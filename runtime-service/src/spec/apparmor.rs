//! Which AppArmor profile a container asks for, from the field and from its deprecated form.

use berth_api::cri;
use cri::security_profile::ProfileType;

use super::Invalid;

const FIELD: &str = "config.linux.security_context.apparmor";
const OLD_FIELD: &str = "config.linux.security_context.apparmor_profile";

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AppArmor {
    /// No profile.
    Unconfined,
    /// The runtime's own profile where there is AppArmor. So CRI has it for a container that says nothing.
    DefaultIfAny,
    /// The runtime's own profile, by name of this field.
    Default(String),
    /// One that an administrator loaded, and the field that names it.
    Named(String, String),
}

impl AppArmor {
    /// The field wins over its deprecated form. A privileged container is confined only by a profile that it names.
    ///
    /// # Errors
    /// A profile without a name, or an unknown form.
    pub(crate) fn of(security: &cri::LinuxContainerSecurityContext) -> Result<Self, Invalid> {
        #[allow(deprecated)]
        let old = security.apparmor_profile.as_str();
        let asked = match &security.apparmor {
            Some(profile) => match profile.profile_type() {
                ProfileType::RuntimeDefault => AppArmor::Default(FIELD.into()),
                ProfileType::Unconfined => AppArmor::Unconfined,
                ProfileType::Localhost => named(&profile.localhost_ref, format!("{FIELD}.localhost_ref"))?,
            },
            // "equivalent to not specifying a profile": so CRI's comment on the deprecated field.
            None if matches!(old, "" | "runtime/default") => AppArmor::DefaultIfAny,
            None if old == "unconfined" => AppArmor::Unconfined,
            None if old.starts_with("localhost/") => named(old, OLD_FIELD.into())?,
            None => {
                let problem = format!("{old:?} is none of runtime/default, unconfined and localhost/NAME");
                return Err(Invalid::new(OLD_FIELD, problem));
            }
        };
        match asked {
            AppArmor::Default(_) | AppArmor::DefaultIfAny if security.privileged => Ok(AppArmor::Unconfined),
            asked => Ok(asked),
        }
    }
}

fn named(reference: &str, field: String) -> Result<AppArmor, Invalid> {
    match reference.strip_prefix("localhost/").unwrap_or(reference) {
        "" => Err(Invalid::new(field, "names no profile")),
        name if name.contains(['\0', '\n']) => Err(Invalid::new(field, format!("{name:?} is no name of a profile"))),
        name => Ok(AppArmor::Named(name.to_owned(), field)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(deprecated)]
    fn context(new: Option<(ProfileType, &str)>, old: &str, privileged: bool) -> cri::LinuxContainerSecurityContext {
        let profile = |(kind, name): (ProfileType, &str)| cri::SecurityProfile {
            profile_type: kind.into(),
            localhost_ref: name.into(),
        };
        let apparmor = new.map(profile);
        cri::LinuxContainerSecurityContext { apparmor, apparmor_profile: old.into(), privileged, ..Default::default() }
    }

    #[test]
    fn the_field_wins_over_its_deprecated_form() {
        use ProfileType::{Localhost, RuntimeDefault, Unconfined};
        let named = |field: &str| AppArmor::Named("p".into(), field.into());
        let reference = format!("{FIELD}.localhost_ref");
        for (new, old, expected) in [
            (None, "", AppArmor::DefaultIfAny),
            (None, "runtime/default", AppArmor::DefaultIfAny),
            (None, "unconfined", AppArmor::Unconfined),
            (None, "localhost/p", named(OLD_FIELD)),
            (Some((RuntimeDefault, "")), "unconfined", AppArmor::Default(FIELD.into())),
            (Some((Unconfined, "")), "localhost/p", AppArmor::Unconfined),
            (Some((Localhost, "p")), "unconfined", named(&reference)),
            (Some((Localhost, "localhost/p")), "", named(&reference)),
        ] {
            assert_eq!(AppArmor::of(&context(new, old, false)).expect("valid"), expected, "{new:?} {old:?}");
        }
    }

    #[test]
    fn a_privileged_container_is_confined_only_by_name() {
        use ProfileType::{Localhost, RuntimeDefault};
        for (new, old) in [(None, ""), (Some((RuntimeDefault, "")), ""), (None, "runtime/default")] {
            assert_eq!(AppArmor::of(&context(new, old, true)).expect("valid"), AppArmor::Unconfined);
        }
        let named = AppArmor::of(&context(Some((Localhost, "p")), "", true)).expect("valid");
        assert!(matches!(named, AppArmor::Named(name, _) if name == "p"));
    }

    #[test]
    fn a_profile_without_a_name_is_refused_with_its_field() {
        for (new, old, field) in [
            (Some((ProfileType::Localhost, "")), "", "apparmor.localhost_ref: names no profile"),
            (None, "localhost/", "apparmor_profile: names no profile"),
            (None, "nonsense", "apparmor_profile: \"nonsense\" is none of"),
            (Some((ProfileType::Localhost, "a\nb")), "", "is no name of a profile"),
        ] {
            let error = AppArmor::of(&context(new, old, false)).expect_err("refused").to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
