//! How a plugin says no: one JSON object on stdout and exit status 1.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The configuration's version is not spoken.
pub const INCOMPATIBLE_VERSION: u32 = 1;
/// The configuration holds a field that is not supported; the message names it.
pub const UNSUPPORTED_FIELD: u32 = 2;
/// The container is unknown or gone: the runtime need not clean up.
pub const UNKNOWN_CONTAINER: u32 = 3;
/// A variable of the environment is missing or wrong.
pub const INVALID_ENVIRONMENT: u32 = 4;
/// Reading or writing failed.
pub const IO_FAILURE: u32 = 5;
/// The configuration is not the JSON it should be.
pub const DECODING_FAILURE: u32 = 6;
/// The configuration is well-formed and wrong.
pub const INVALID_CONFIG: u32 = 7;
/// A passing trouble: the runtime should try again later.
pub const TRY_AGAIN_LATER: u32 = 11;
/// STATUS: the plugin cannot serve ADD.
pub const NOT_AVAILABLE: u32 = 50;
/// STATUS: the plugin cannot serve ADD, and attached pods may have lost connectivity.
pub const NOT_AVAILABLE_LIMITED: u32 = 51;
/// First code that a plugin may give a meaning of its own. Source: SPEC.md, section 5, "Error".
pub const FIRST_OWN: u32 = 100;

/// A port of the host that the pod wants is held by another pod or by a process; the message names the holder. Of berth's
/// `bridge`, and far from the numbers that other plugins take.
pub const PORT_TAKEN: u32 = 48_642;

/// A plugin's refusal or failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Error {
    /// Version of the configuration, as it was given: it may be one that nobody here speaks.
    #[serde(default)]
    pub cni_version: String,
    /// One of the codes above, or the plugin's own.
    pub code: u32,
    /// The deed and the thing.
    #[serde(default)]
    pub msg: String,
    /// The cause, when there is more to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl Error {
    /// An error without details, in no version yet.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Error { cni_version: String::new(), code, msg: msg.into(), details: String::new() }
    }

    /// The same error with its cause.
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if !self.details.is_empty() {
            write!(f, ": {}", self.details)?;
        }
        write!(f, " (CNI code {})", self.code)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_survives_json_and_prints_its_cause() {
        let mut error = Error::new(INVALID_CONFIG, "unknown option \"mut\"").with_details("did you mean \"mtu\"?");
        error.cni_version = "1.1.0".into();
        let json = serde_json::to_string(&error).unwrap();
        assert_eq!(
            json,
            r#"{"cniVersion":"1.1.0","code":7,"msg":"unknown option \"mut\"","details":"did you mean \"mtu\"?"}"#
        );
        assert_eq!(serde_json::from_str::<Error>(&json).unwrap(), error);
        assert_eq!(error.to_string(), "unknown option \"mut\": did you mean \"mtu\"? (CNI code 7)");
    }

    #[test]
    fn a_terse_error_is_read() {
        let error: Error = serde_json::from_str(r#"{"code":999,"msg":"x"}"#).unwrap();
        assert_eq!(error, Error::new(999, "x"));
    }
}
