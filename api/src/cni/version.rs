//! The versions of the CNI contract that berth speaks.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A version of the contract. Ordered: a later one is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 0.3.1: results carry interfaces; an address says its family in `version`.
    V0_3_1,
    /// 0.4.0: adds CHECK and with it `disableCheck`, and `prevResult` for DEL.
    V0_4_0,
    /// 1.0.0: an address no longer says its family.
    V1_0_0,
    /// 1.1.0: adds GC and STATUS, `mtu` and other fields of interfaces and routes.
    V1_1_0,
}

impl Version {
    /// What berth speaks, oldest first.
    pub const SUPPORTED: [Version; 4] = [Version::V0_3_1, Version::V0_4_0, Version::V1_0_0, Version::V1_1_0];

    /// The newest one.
    pub const LATEST: Version = Version::V1_1_0;

    /// As it is written in `cniVersion`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }
}

/// A version that berth does not speak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownVersion(pub String);

impl fmt::Display for UnknownVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CNI version {:?} is not one of 0.3.1, 0.4.0, 1.0.0, 1.1.0", self.0)
    }
}

impl std::error::Error for UnknownVersion {}

impl FromStr for Version {
    type Err = UnknownVersion;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Version::SUPPORTED.into_iter().find(|v| v.as_str() == text).ok_or_else(|| UnknownVersion(text.into()))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A plugin's answer to VERSION.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionAnswer {
    /// The version this answer is written in: that of the question, or the plugin's newest.
    pub cni_version: String,
    /// What the plugin speaks; may hold versions that we do not.
    pub supported_versions: Vec<String>,
}

impl VersionAnswer {
    /// The answer of a plugin that speaks what this module does.
    pub fn ours(asked_in: &str) -> Self {
        VersionAnswer {
            cni_version: asked_in.into(),
            supported_versions: Version::SUPPORTED.iter().map(|v| v.to_string()).collect(),
        }
    }

    /// The newest version that both the plugin and we speak.
    pub fn highest_common(&self) -> Option<Version> {
        highest_common(self.supported_versions.iter().map(String::as_str))
    }
}

/// The newest of `theirs` that we speak too.
pub fn highest_common<'a>(theirs: impl IntoIterator<Item = &'a str>) -> Option<Version> {
    theirs.into_iter().filter_map(|v| v.parse().ok()).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_and_survive_text() {
        assert!(Version::SUPPORTED.is_sorted());
        assert_eq!(Version::SUPPORTED.last(), Some(&Version::LATEST));
        for v in Version::SUPPORTED {
            assert_eq!(v.to_string().parse(), Ok(v));
        }
        assert_eq!("0.2.0".parse::<Version>(), Err(UnknownVersion("0.2.0".into())));
    }

    #[test]
    fn highest_common_ignores_what_we_do_not_speak() {
        assert_eq!(highest_common(["9.9.9", "1.0.0", "0.4.0"]), Some(Version::V1_0_0));
        assert_eq!(highest_common(["0.1.0"]), None);
    }

    #[test]
    fn version_answer_names_all() {
        let json = serde_json::to_value(VersionAnswer::ours("1.0.0")).unwrap();
        let expected = serde_json::json!({
            "cniVersion": "1.0.0",
            "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        });
        assert_eq!(json, expected);
    }
}
