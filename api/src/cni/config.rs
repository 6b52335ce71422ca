//! A network's configuration list, and the configuration that one plugin of it gets on stdin.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::call::is_name;
use super::version::{Version, highest_common};

/// Key under which a chained plugin finds the result of those before it.
pub const PREV_RESULT: &str = "prevResult";
/// Key under which a plugin finds the arguments for its capabilities.
pub const RUNTIME_CONFIG: &str = "runtimeConfig";
/// Key under which GC finds the attachments that must stay.
pub const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";

/// A network: its plugins in the order of ADD.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkList {
    /// The newest version that both the list and berth speak.
    pub cni_version: Version,
    /// Name of the network, unique on the host.
    pub name: String,
    /// CHECK must not be called.
    pub disable_check: bool,
    /// GC must not be called.
    pub disable_gc: bool,
    /// Plugins are those of `plugins` alone, not of the directory called like the network.
    pub load_only_inlined_plugins: bool,
    /// In the order of ADD; DEL runs backwards. Never empty unless plugins come from the directory.
    pub plugins: Vec<Plugin>,
}

/// One plugin of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plugin {
    /// Name of its executable.
    pub kind: String,
    /// Everything that was said of it, `type` and `capabilities` included.
    pub config: Map<String, Value>,
}

/// One pod on one network, as GC is told of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attachment {
    /// The pod.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface inside it.
    pub ifname: String,
}

/// What a call adds to a plugin's configuration.
#[derive(Clone, Debug, Default)]
pub struct Extras<'a> {
    /// The result so far (ADD), or that of ADD (CHECK, DEL), in the list's version.
    pub prev_result: Option<&'a Value>,
    /// Arguments by capability; each plugin gets those it declares.
    pub capability_args: Option<&'a Map<String, Value>>,
    /// For GC: what must stay.
    pub valid_attachments: Option<&'a [Attachment]>,
}

/// A configuration that cannot be used: which file, which key, why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, as the caller named it.
    pub file: String,
    /// Path of the key, such as `plugins[0].type`; empty when the file is not JSON at all.
    pub key: String,
    /// What is wrong.
    pub problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key.as_str() {
            "" => write!(f, "{}: {}", self.file, self.problem),
            key => write!(f, "{}: {key}: {}", self.file, self.problem),
        }
    }
}

impl std::error::Error for ConfigError {}

impl NetworkList {
    /// Reads a `.conflist`.
    ///
    /// # Errors
    /// The first thing that is wrong, with `file` and its key.
    pub fn parse(file: &str, text: &[u8]) -> Result<Self, ConfigError> {
        let object = Fields::parse(file, text)?;
        let load_only_inlined_plugins = object.flag("loadOnlyInlinedPlugins")?;
        let plugins = match object.map.get("plugins") {
            None => Vec::new(),
            Some(Value::Array(plugins)) => {
                let numbered = plugins.iter().enumerate();
                numbered.map(|(i, p)| object.plugin(&format!("plugins[{i}]"), p)).collect::<Result<_, _>>()?
            }
            Some(_) => return object.fail("plugins", "is not a list"),
        };
        if plugins.is_empty() && (load_only_inlined_plugins || !object.map.contains_key("loadOnlyInlinedPlugins")) {
            return object.fail("plugins", "is missing or empty");
        }
        Ok(NetworkList {
            cni_version: object.version()?,
            name: object.name()?,
            disable_check: object.flag("disableCheck")?,
            disable_gc: object.flag("disableGC")?,
            load_only_inlined_plugins,
            plugins,
        })
    }

    /// Reads a `.conf` or `.json` of the old form, which is one plugin, as a list of one.
    ///
    /// # Errors
    /// As `parse`.
    pub fn parse_single(file: &str, text: &[u8]) -> Result<Self, ConfigError> {
        let object = Fields::parse(file, text)?;
        if object.map.contains_key("plugins") {
            return object.fail("plugins", "is only for a .conflist");
        }
        Ok(NetworkList {
            cni_version: object.version()?,
            name: object.name()?,
            disable_check: false,
            disable_gc: false,
            load_only_inlined_plugins: true,
            plugins: vec![object.plugin("", &Value::Object(object.map.clone()))?],
        })
    }

    /// Whether a plugin of the list declares the capability.
    pub fn declares(&self, capability: &str) -> bool {
        self.plugins.iter().any(|p| p.declares(capability))
    }

    /// The configuration of one plugin for one call, as it is written to its stdin.
    pub fn stdin(&self, plugin: &Plugin, extras: &Extras<'_>) -> Vec<u8> {
        Value::Object(self.plugin_config(plugin, extras)).to_string().into_bytes()
    }

    fn plugin_config(&self, plugin: &Plugin, extras: &Extras<'_>) -> Map<String, Value> {
        let mut config = plugin.config.clone();
        config.remove("capabilities");
        config.insert("cniVersion".into(), self.cni_version.as_str().into());
        config.insert("name".into(), self.name.clone().into());
        let args: Map<_, _> = extras
            .capability_args
            .into_iter()
            .flatten()
            .filter(|(capability, _)| plugin.declares(capability))
            .map(|(capability, args)| (capability.clone(), args.clone()))
            .collect();
        if !args.is_empty() {
            config.insert(RUNTIME_CONFIG.into(), Value::Object(args));
        }
        if let Some(result) = extras.prev_result {
            config.insert(PREV_RESULT.into(), result.clone());
        }
        if let Some(attachments) = extras.valid_attachments {
            let list =
                attachments.iter().map(|a| serde_json::json!({"containerID": a.container_id, "ifname": a.ifname}));
            config.insert(VALID_ATTACHMENTS.into(), list.collect());
        }
        config
    }
}

impl Plugin {
    /// Whether it takes arguments for the capability.
    pub fn declares(&self, capability: &str) -> bool {
        self.config.get("capabilities").and_then(|c| c.get(capability)).and_then(Value::as_bool) == Some(true)
    }
}

/// An object together with the file it came from, for the errors.
struct Fields<'a> {
    file: &'a str,
    map: Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn parse(file: &'a str, text: &[u8]) -> Result<Self, ConfigError> {
        let problem = match serde_json::from_slice(text) {
            Ok(Value::Object(map)) => return Ok(Fields { file, map }),
            Ok(_) => "is not a JSON object".to_string(),
            Err(e) => format!("is not JSON: {e}"),
        };
        Err(ConfigError { file: file.into(), key: String::new(), problem })
    }

    fn fail<T>(&self, key: &str, problem: impl Into<String>) -> Result<T, ConfigError> {
        Err(ConfigError { file: self.file.into(), key: key.into(), problem: problem.into() })
    }

    fn name(&self) -> Result<String, ConfigError> {
        match self.map.get("name") {
            Some(Value::String(name)) if is_name(name) => Ok(name.clone()),
            Some(Value::String(name)) => self.fail("name", format!("{name:?} cannot be the name of a network")),
            Some(_) => self.fail("name", "is not a string"),
            None => self.fail("name", "is missing"),
        }
    }

    /// The newest of `cniVersions` and `cniVersion` that we speak.
    fn version(&self) -> Result<Version, ConfigError> {
        let mut said = Vec::new();
        match self.map.get("cniVersions") {
            None => {}
            Some(Value::Array(versions)) => said.extend(versions.iter().filter_map(Value::as_str)),
            Some(_) => return self.fail("cniVersions", "is not a list of strings"),
        }
        match self.map.get("cniVersion") {
            None => {}
            Some(Value::String(version)) => said.push(version),
            Some(_) => return self.fail("cniVersion", "is not a string"),
        }
        match highest_common(said.iter().copied()) {
            Some(version) => Ok(version),
            None if said.is_empty() => self.fail("cniVersion", "is missing"),
            None => {
                self.fail("cniVersion", format!("none of {} is one of 0.3.1, 0.4.0, 1.0.0, 1.1.0", said.join(", ")))
            }
        }
    }

    /// A boolean, or the string that old lists have in its place.
    fn flag(&self, key: &str) -> Result<bool, ConfigError> {
        match self.map.get(key) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(*value),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
            Some(_) => self.fail(key, "is not true or false"),
        }
    }

    fn plugin(&self, key: &str, json: &Value) -> Result<Plugin, ConfigError> {
        let under = |name: &str| if key.is_empty() { name.to_string() } else { format!("{key}.{name}") };
        let Value::Object(config) = json else { return self.fail(key, "is not an object") };
        let capabilities = config.get("capabilities").map(Value::as_object);
        if capabilities.is_some_and(|c| c.is_none_or(|c| c.values().any(|v| !v.is_boolean()))) {
            return self.fail(&under("capabilities"), "is not an object of true and false");
        }
        match config.get("type") {
            Some(Value::String(kind)) if is_name(kind) => Ok(Plugin { kind: kind.clone(), config: config.clone() }),
            Some(Value::String(kind)) => self.fail(&under("type"), format!("{kind:?} cannot be the name of a plugin")),
            Some(_) => self.fail(&under("type"), "is not a string"),
            None => self.fail(&under("type"), "is missing"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(json: Value) -> Result<NetworkList, ConfigError> {
        NetworkList::parse("10-a.conflist", json.to_string().as_bytes())
    }

    fn two_plugins() -> NetworkList {
        parse(json!({
            "cniVersion": "0.4.0", "cniVersions": ["1.0.0", "1.1.0", "2.0.0"], "name": "pods", "disableCheck": "true",
            "plugins": [
                {"type": "bridge", "bridge": "b0", "capabilities": {"ips": true, "mac": false}},
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        }))
        .unwrap()
    }

    #[test]
    fn a_list_is_read_in_its_newest_common_version() {
        let list = two_plugins();
        assert_eq!((list.cni_version, list.name.as_str()), (Version::V1_1_0, "pods"));
        assert_eq!((list.disable_check, list.disable_gc), (true, false));
        assert_eq!(list.plugins.iter().map(|p| p.kind.as_str()).collect::<Vec<_>>(), ["bridge", "portmap"]);
        assert!(list.declares("portMappings") && !list.declares("mac"));
    }

    #[test]
    fn each_plugin_gets_the_arguments_it_declares() {
        let list = two_plugins();
        let args = json!({"ips": ["10.0.0.9/24"], "mac": "x", "portMappings": [{"hostPort": 80}]});
        let result = json!({"cniVersion": "1.1.0"});
        let extras = Extras { prev_result: Some(&result), capability_args: args.as_object(), ..Default::default() };
        let stdin = |i: usize| serde_json::from_slice::<Value>(&list.stdin(&list.plugins[i], &extras)).unwrap();
        let bridge = json!({
            "cniVersion": "1.1.0", "name": "pods", "type": "bridge", "bridge": "b0",
            "runtimeConfig": {"ips": ["10.0.0.9/24"]}, "prevResult": {"cniVersion": "1.1.0"},
        });
        assert_eq!(stdin(0), bridge);
        assert_eq!(stdin(1)["runtimeConfig"], json!({"portMappings": [{"hostPort": 80}]}));
    }

    #[test]
    fn without_extras_nothing_is_added() {
        let list = two_plugins();
        let stdin: Value = serde_json::from_slice(&list.stdin(&list.plugins[1], &Extras::default())).unwrap();
        assert_eq!(stdin, json!({"cniVersion": "1.1.0", "name": "pods", "type": "portmap"}));
    }

    #[test]
    fn gc_is_told_what_must_stay() {
        let list = two_plugins();
        let stay = [Attachment { container_id: "a".into(), ifname: "eth0".into() }];
        let extras = Extras { valid_attachments: Some(&stay), ..Default::default() };
        let stdin: Value = serde_json::from_slice(&list.stdin(&list.plugins[0], &extras)).unwrap();
        assert_eq!(stdin[VALID_ATTACHMENTS], json!([{"containerID": "a", "ifname": "eth0"}]));
        let read: Vec<Attachment> = serde_json::from_value(stdin[VALID_ATTACHMENTS].clone()).unwrap();
        assert_eq!(read, stay);
    }

    #[test]
    fn a_broken_list_names_file_and_key() {
        let cases = [
            (json!({"name": "a", "plugins": [{"type": "b"}]}), "cniVersion: is missing"),
            (
                json!({"cniVersion": "0.2.0", "name": "a", "plugins": [{"type": "b"}]}),
                "cniVersion: none of 0.2.0 is one of 0.3.1, 0.4.0, 1.0.0, 1.1.0",
            ),
            (json!({"cniVersion": "1.0.0", "plugins": [{"type": "b"}]}), "name: is missing"),
            (
                json!({"cniVersion": "1.0.0", "name": "a/b", "plugins": [{"type": "b"}]}),
                "name: \"a/b\" cannot be the name of a network",
            ),
            (json!({"cniVersion": "1.0.0", "name": "a", "plugins": []}), "plugins: is missing or empty"),
            (json!({"cniVersion": "1.0.0", "name": "a"}), "plugins: is missing or empty"),
            (json!({"cniVersion": "1.0.0", "name": "a", "plugins": {}}), "plugins: is not a list"),
            (json!({"cniVersion": "1.0.0", "name": "a", "plugins": [{}]}), "plugins[0].type: is missing"),
            (
                json!({"cniVersion": "1.0.0", "name": "a", "plugins": [{"type": "b"}, {"type": "../sh"}]}),
                "plugins[1].type: \"../sh\" cannot be the name of a plugin",
            ),
            (
                json!({"cniVersion": "1.0.0", "name": "a", "plugins": [{"type": "b", "capabilities": ["ips"]}]}),
                "plugins[0].capabilities: is not an object of true and false",
            ),
            (
                json!({"cniVersion": "1.0.0", "name": "a", "disableGC": 1, "plugins": [{"type": "b"}]}),
                "disableGC: is not true or false",
            ),
        ];
        for (json, problem) in cases {
            assert_eq!(parse(json).unwrap_err().to_string(), format!("10-a.conflist: {problem}"));
        }
        let torn = NetworkList::parse("x", b"{\"name\":").unwrap_err().to_string();
        assert!(torn.starts_with("x: is not JSON: EOF"), "{torn}");
        assert_eq!(NetworkList::parse("x", b"[]").unwrap_err().to_string(), "x: is not a JSON object");
    }

    #[test]
    fn a_single_plugin_is_a_list_of_one() {
        let text = br#"{"cniVersion": "0.3.1", "name": "lo", "type": "loopback"}"#;
        let list = NetworkList::parse_single("99-lo.conf", text).unwrap();
        assert_eq!((list.name.as_str(), list.plugins[0].kind.as_str()), ("lo", "loopback"));
        let error = NetworkList::parse_single("99-lo.conf", br#"{"cniVersion": "0.3.1", "name": "lo"}"#).unwrap_err();
        assert_eq!(error.to_string(), "99-lo.conf: type: is missing");
    }
}
