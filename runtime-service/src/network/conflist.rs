//! A network configuration list: read, checked, and rendered for each plugin. Source: CNI SPEC, "Configuration format".

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Error;

/// Versions of the contract that the daemon speaks, oldest first.
const VERSIONS: &[&str] = &["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Largest file that is read, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// A list of plugins that make one network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct NetworkList {
    pub(crate) version: String,
    pub(crate) name: String,
    pub(crate) plugins: Vec<Plugin>,
}

/// One plugin's configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plugin {
    /// `type`: the binary's name.
    pub(crate) kind: String,
    /// The object as it was written.
    conf: Map<String, Value>,
}

impl Plugin {
    /// It declares this capability.
    pub(crate) fn declares(&self, capability: &str) -> bool {
        self.conf.get("capabilities").is_some_and(|c| c[capability] == true)
    }
}

impl NetworkList {
    /// Parses a `.conflist`, or a `.conf` with one plugin.
    ///
    /// # Errors
    /// What is wrong, with the key.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut object: Map<String, Value> = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let version = version(&object)?;
        let name = match object.get("name") {
            Some(Value::String(name)) if name_is_valid(name) => name.clone(),
            Some(other) => return Err(format!("key \"name\": {other} is no network name")),
            None => return Err("key \"name\" is missing".into()),
        };
        let plugins = match object.remove("plugins") {
            Some(Value::Array(list)) if !list.is_empty() => list
                .into_iter()
                .enumerate()
                .map(|(i, p)| plugin(&format!("plugins[{i}]"), p))
                .collect::<Result<_, _>>()?,
            Some(_) => return Err("key \"plugins\" is no list with at least one plugin".into()),
            None if object.contains_key("type") => vec![plugin("the plugin", Value::Object(object))?],
            None => return Err("key \"plugins\" is missing".into()),
        };
        Ok(Self { version, name, plugins })
    }

    /// What `plugin` reads on standard input.
    pub(crate) fn stdin(&self, plugin: &Plugin, previous: Option<&Value>, capabilities: &Map<String, Value>) -> Value {
        let mut conf = plugin.conf.clone();
        let declared = conf.remove("capabilities").unwrap_or_default();
        let given: Map<String, Value> = capabilities
            .iter()
            .filter(|(name, _)| declared[name.as_str()] == true)
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        conf.insert("cniVersion".into(), self.version.as_str().into());
        conf.insert("name".into(), self.name.as_str().into());
        if !given.is_empty() {
            conf.insert("runtimeConfig".into(), given.into());
        }
        if let Some(previous) = previous {
            conf.insert("prevResult".into(), previous.clone());
        }
        Value::Object(conf)
    }
}

fn version(object: &Map<String, Value>) -> Result<String, String> {
    let known = |v: &str| VERSIONS.iter().position(|k| *k == v);
    // With `cniVersions`, the highest that both sides know counts.
    if let Some(Value::Array(list)) = object.get("cniVersions") {
        let best = list.iter().filter_map(|v| known(v.as_str()?)).max();
        return best.map(|i| VERSIONS[i].to_owned()).ok_or_else(|| {
            format!("key \"cniVersions\" has none of the versions that berth speaks ({})", VERSIONS.join(", "))
        });
    }
    match object.get("cniVersion") {
        Some(Value::String(v)) if known(v).is_some() => Ok(v.clone()),
        Some(other) => Err(format!("key \"cniVersion\": {other} is none of {}", VERSIONS.join(", "))),
        None => Err(format!("key \"cniVersion\" is missing (one of {})", VERSIONS.join(", "))),
    }
}

fn plugin(place: &str, value: Value) -> Result<Plugin, String> {
    let Value::Object(conf) = value else { return Err(format!("{place} is no object")) };
    match conf.get("type") {
        // A binary's name: never a path.
        Some(Value::String(kind)) if name_is_valid(kind) => Ok(Plugin { kind: kind.clone(), conf }),
        Some(other) => Err(format!("{place}, key \"type\": {other} is no plugin's name")),
        None => Err(format!("{place}: key \"type\" is missing")),
    }
}

fn name_is_valid(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    first && name.len() <= 128 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// The first configuration of a directory by file name.
///
/// # Errors
/// It cannot be read or parsed.
pub(super) fn first_in(dir: &Path) -> Result<Option<NetworkList>, Error> {
    let broken = |path: &Path, problem: String| Error::Broken { path: path.to_owned(), problem };
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(broken(dir, e.to_string())),
        Ok(entries) => entries,
    };
    let is_conf = |path: &Path| path.extension().is_some_and(|e| e == "conf" || e == "conflist" || e == "json");
    let mut paths: Vec<_> = entries.flatten().map(|e| e.path()).filter(|p| is_conf(p)).collect();
    paths.sort();
    let Some(path) = paths.first() else { return Ok(None) };
    let meta = fs::metadata(path).map_err(|e| broken(path, e.to_string()))?;
    if meta.len() > FILE_MAX {
        return Err(broken(path, format!("{} bytes are more than {FILE_MAX}", meta.len())));
    }
    let text = fs::read_to_string(path).map_err(|e| broken(path, e.to_string()))?;
    NetworkList::parse(&text).map(Some).map_err(|problem| broken(path, problem))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_plugin_gets_what_it_declares_and_what_came_before() {
        let text = r#"{"cniVersion":"1.0.0","name":"n","plugins":[
            {"type":"bridge","x":1},{"type":"portmap","capabilities":{"portMappings":true,"other":false}}]}"#;
        let list = NetworkList::parse(text).expect("parses");
        let caps = json!({"portMappings": [1], "other": 2});
        let caps = caps.as_object().expect("object");
        let first = list.stdin(&list.plugins[0], None, caps);
        assert_eq!(first, json!({"cniVersion": "1.0.0", "name": "n", "type": "bridge", "x": 1}));
        let second = list.stdin(&list.plugins[1], Some(&json!({"ips": []})), caps);
        assert_eq!(
            second,
            json!({"cniVersion": "1.0.0", "name": "n", "type": "portmap",
                   "runtimeConfig": {"portMappings": [1]}, "prevResult": {"ips": []}})
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, word) in [
            ("{", "EOF"),
            (r#"{"name":"n","plugins":[{"type":"a"}]}"#, "cniVersion"),
            (r#"{"cniVersion":"9.9.9","name":"n","plugins":[{"type":"a"}]}"#, "9.9.9"),
            (r#"{"cniVersion":"1.0.0","plugins":[{"type":"a"}]}"#, "name"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#, "plugins"),
            (r#"{"cniVersion":"1.0.0","name":"n"}"#, "plugins"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"../sh"}]}"#, "plugins[0]"),
        ] {
            let error = NetworkList::parse(text).expect_err(text);
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn the_highest_common_version_counts() {
        let text = r#"{"cniVersion":"0.3.1","cniVersions":["0.3.1","1.1.0","2.0.0"],"name":"n","type":"bridge"}"#;
        assert_eq!(NetworkList::parse(text).expect("parses").version, "1.1.0");
    }
}
