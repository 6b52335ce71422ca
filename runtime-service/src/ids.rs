//! Names of pods and containers as the daemon makes them.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($name:ident, $what:literal) => {
        #[doc = concat!("Id of a ", $what, ": 64 hex digits from 32 random bytes, made only by `random` and `parse`.")]
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// A new id from the kernel's random source.
            ///
            /// # Errors
            /// The kernel gave no random bytes.
            pub fn random() -> std::io::Result<Self> {
                let mut bytes = [0u8; 32];
                rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
                Ok(Self(hex::encode(bytes)))
            }

            /// `None` unless `text` is 64 lower-case hex digits.
            pub fn parse(text: &str) -> Option<Self> {
                let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
                (text.len() == 64 && text.bytes().all(hex)).then(|| Self(text.to_owned()))
            }

            /// The 64 digits.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                Self::parse(&text).ok_or_else(|| format!("{text:?} is not a {} id", $what))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

id!(PodId, "pod");
id!(ContainerId, "container");

impl ContainerId {
    /// That of the pod's sandbox container, which shims find the pod's others by.
    pub(crate) fn of_sandbox(pod: &PodId) -> Self {
        Self(pod.0.clone())
    }
}

/// A new id for a process beside a container's init: 16 hex digits.
///
/// # Errors
/// The kernel gave no random bytes.
pub(crate) fn exec_id() -> std::io::Result<String> {
    let mut bytes = [0u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(hex::encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_64_lower_case_hex_digits_are_an_id() {
        let id = PodId::random().expect("random bytes");
        assert_eq!(PodId::parse(id.as_str()), Some(id.clone()));
        for bad in
            ["", "abc", &id.as_str()[1..], &id.as_str().to_uppercase().replace(|c: char| c.is_ascii_digit(), "A")]
        {
            assert_eq!(PodId::parse(bad), None, "{bad}");
        }
    }
}
