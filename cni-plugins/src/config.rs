//! A plugin's configuration as it comes on stdin, and the check that every key of it is known.

use std::path::Path;

use berth_api::cni::call::is_name;
use berth_api::cni::config::{Attachment, PREV_RESULT, VALID_ATTACHMENTS};
use berth_api::cni::result::AddResult;
use berth_api::cni::version::Version;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::Error;

/// Keys that the contract, and not a plugin, gives a meaning. Source: SPEC.md, section 1.
const OF_THE_CONTRACT: &[&str] =
    &["cniVersion", "name", "type", "ipam", "dns", "args", "capabilities", "runtimeConfig", PREV_RESULT];

/// Keys with this prefix belong to the contract, also in versions to come.
const RESERVED_PREFIX: &str = "cni.dev/";

/// The network that a call is about.
#[derive(Debug)]
pub struct Network {
    /// Version of the configuration, and so of the answer.
    pub version: Version,
    /// Its name: letters, digits, `_`, `.`, `-`.
    pub name: String,
    /// Everything that was on stdin.
    pub config: Map<String, Value>,
}

impl Network {
    /// Reads what was on stdin.
    ///
    /// # Errors
    /// It is no object, its version is not spoken, or its name cannot be.
    pub fn new(config: Map<String, Value>) -> Result<Self, Error> {
        let version = match config.get("cniVersion") {
            Some(Value::String(version)) => version.parse()?,
            Some(_) => return Err(Error::config("cniVersion", "is not a string")),
            None => return Err(Error::config("cniVersion", "is missing")),
        };
        let name = match config.get("name") {
            Some(Value::String(name)) if is_name(name) => name.clone(),
            Some(name) => return Err(Error::config("name", format!("{name} cannot be the name of a network"))),
            None => return Err(Error::config("name", "is missing")),
        };
        Ok(Network { version, name, config })
    }

    /// The result of the plugins before us (ADD) or of our own ADD (CHECK, DEL).
    ///
    /// # Errors
    /// It is there and is not a result.
    pub fn prev_result(&self) -> Result<Option<AddResult>, Error> {
        let Some(json) = self.config.get(PREV_RESULT).filter(|json| !json.is_null()) else { return Ok(None) };
        let mut json = json.clone();
        if let Value::Object(object) = &mut json {
            // Runtimes of the time before results said their version mean that of the configuration.
            object.entry("cniVersion").or_insert_with(|| self.version.as_str().into());
        }
        match AddResult::from_value(json) {
            Ok((_, result)) => Ok(Some(result)),
            Err(e) => Err(Error::config(PREV_RESULT, e.to_string())),
        }
    }

    /// The attachments that GC must leave.
    ///
    /// # Errors
    /// They are missing (freeing everything would be the worst of guesses) or malformed.
    pub fn valid_attachments(&self) -> Result<Vec<Attachment>, Error> {
        match self.config.get(VALID_ATTACHMENTS) {
            Some(list) => Vec::deserialize_at(list, VALID_ATTACHMENTS),
            None => Err(Error::config(VALID_ATTACHMENTS, "is missing")),
        }
    }

    /// The plugin's own options, every key of which must be in `known` or in the contract.
    ///
    /// # Errors
    /// The first unknown key, or a value of the wrong type.
    pub fn options<T: DeserializeOwned>(&self, known: &'static [&'static str]) -> Result<T, Error> {
        let mine = |key: &&String| !key.starts_with(RESERVED_PREFIX) && !OF_THE_CONTRACT.contains(&key.as_str());
        all_known(self.config.keys().filter(mine), "", known)?;
        let own = self.config.iter().filter(|(key, _)| known.contains(&key.as_str()));
        T::deserialize_at(&Value::Object(own.map(|(k, v)| (k.clone(), v.clone())).collect()), "")
    }

    /// A value somewhere inside the configuration.
    pub fn at(&self, path: &[&str]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.config.get(*first)?, |value, key| value.get(key))
    }
}

/// Checks that every key is in `known`; `under` is the path of their object with a trailing dot, or empty.
pub(crate) fn all_known<'a>(
    keys: impl Iterator<Item = &'a String>,
    under: &str,
    known: &'static [&'static str],
) -> Result<(), Error> {
    for key in keys {
        if !known.contains(&key.as_str()) {
            return Err(Error::UnknownOption { key: format!("{under}{key}"), nearest: nearest(key, known) });
        }
    }
    Ok(())
}

/// `Deserialize` with an error that names the key.
pub(crate) trait DeserializeAt: DeserializeOwned {
    fn deserialize_at(json: &Value, key: &str) -> Result<Self, Error> {
        Self::deserialize(json).map_err(|e| match key {
            "" => Error::config("configuration", e.to_string()),
            key => Error::config(key, e.to_string()),
        })
    }
}

impl<T: DeserializeOwned> DeserializeAt for T {}

/// The known key most like `key`, if it is like it at all: at most a third of its letters differ, or two.
fn nearest(key: &str, known: &'static [&'static str]) -> Option<&'static str> {
    let near = known.iter().map(|k| (distance(key, k), *k)).min()?;
    (near.0 <= (key.len() / 3).max(2)).then_some(near.1)
}

/// Levenshtein's distance, case aside.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.to_lowercase().chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Whether both are the same directory, by device and inode: a path may be a link.
pub(crate) fn same_directory(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (a.metadata(), b.metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn network(json: Value) -> Result<Network, Error> {
        Network::new(json.as_object().unwrap().clone())
    }

    #[test]
    fn an_unknown_option_is_named_with_the_nearest_known() {
        let known: &[&str] = &["mtu", "hairpinMode", "isGateway"];
        let of = |key: &str| {
            let config = json!({"cniVersion": "1.1.0", "name": "n", "type": "bridge", "cni.dev/x": 1, key: true});
            network(config).unwrap().options::<Value>(known).unwrap_err().to_string()
        };
        assert_eq!(of("hairpinmode"), "unknown option \"hairpinmode\"; did you mean \"hairpinMode\"?");
        assert_eq!(of("isGatway"), "unknown option \"isGatway\"; did you mean \"isGateway\"?");
        assert_eq!(of("vlanTrunk"), "unknown option \"vlanTrunk\"");
    }

    #[test]
    fn a_network_needs_version_and_name() {
        let of = |json| network(json).unwrap_err().to_string();
        assert_eq!(of(json!({"name": "n"})), "cniVersion: is missing");
        assert!(of(json!({"cniVersion": "9.0.0", "name": "n"})).contains("9.0.0"));
        assert_eq!(of(json!({"cniVersion": "1.0.0", "name": ".."})), "name: \"..\" cannot be the name of a network");
    }

    #[test]
    fn gc_without_attachments_is_refused() {
        let network = network(json!({"cniVersion": "1.1.0", "name": "n"})).unwrap();
        assert!(network.valid_attachments().is_err());
    }

    #[test]
    fn distance_counts_edits() {
        for (a, b, edits) in [("mtu", "MTU", 0), ("mut", "mtu", 2), ("", "abc", 3), ("kitten", "sitting", 3)] {
            assert_eq!(distance(a, b), edits, "{a} {b}");
        }
    }
}
