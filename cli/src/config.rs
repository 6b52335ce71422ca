//! Pod and container files, JSON or YAML, as requests. Names may be written as in the contract (`log_path`) or as in
//! its JSON form (`logPath`). Unlike in crictl an unknown key is an error: what is not understood is not asked for.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use berth_api::cri::{ContainerConfig, PodSandboxConfig};
use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value};

use crate::error::Error;
use crate::json::{self, Named};
use crate::nearest::nearest;

/// # Errors
/// `Read`, or `Config` with the path of the offending key.
pub(crate) fn pod(path: &Path) -> Result<PodSandboxConfig, Error> {
    let wrong = |reason: &str| Error::Config { path: path.into(), reason: reason.into() };
    let mut config: PodSandboxConfig = load(path)?;
    let metadata = config.metadata.as_mut().ok_or_else(|| wrong("metadata is not set"))?;
    if metadata.name.is_empty() || metadata.namespace.is_empty() {
        return Err(wrong("metadata.name and metadata.namespace must be set"));
    }
    if metadata.uid.is_empty() {
        metadata.uid = uuid::Uuid::new_v4().to_string();
    }
    Ok(config)
}

/// # Errors
/// `Read`, or `Config` with the path of the offending key.
pub(crate) fn container(path: &Path) -> Result<ContainerConfig, Error> {
    let wrong = |reason: &str| Error::Config { path: path.into(), reason: reason.into() };
    let mut config: ContainerConfig = load(path)?;
    if config.metadata.as_ref().is_none_or(|metadata| metadata.name.is_empty()) {
        return Err(wrong("metadata.name is not set"));
    }
    let image = config.image.as_mut().filter(|image| !image.image.is_empty());
    let image = image.ok_or_else(|| wrong("image.image is not set"))?;
    if image.user_specified_image.is_empty() {
        image.user_specified_image = image.image.clone();
    }
    Ok(config)
}

fn load<M: Named>(path: &Path) -> Result<M, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })?;
    parse(&text).map_err(|reason| Error::Config { path: path.into(), reason })
}

fn parse<M: Named>(text: &str) -> Result<M, String> {
    // YAML would do for both; JSON's own parser says better what is wrong with JSON.
    let value: Value = match text.trim_start().starts_with('{') {
        true => serde_json::from_str(text).map_err(|error| error.to_string())?,
        false => serde_saphyr::from_str(text).map_err(|error| error.to_string())?,
    };
    json::parse(message(&json::descriptor::<M>(), value, "")?)
}

/// Checks every name and type against the contract, says where one is wrong, and gives fields their JSON names.
fn message(descriptor: &MessageDescriptor, value: Value, path: &str) -> Result<Value, String> {
    let Value::Object(keys) = value else {
        return Err(expected(path, "keys and values", &value));
    };
    let mut fields = Map::new();
    for (key, value) in keys {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let field = descriptor
            .get_field_by_name(&key)
            .or_else(|| descriptor.get_field_by_json_name(&key))
            .ok_or_else(|| unknown_key(descriptor, &key, &path))?;
        if value.is_null() {
            continue;
        }
        if fields.insert(field.json_name().to_owned(), content(&field, value, &path)?).is_some() {
            return Err(format!("{path}: set twice, as {} and as {}", field.name(), field.json_name()));
        }
    }
    Ok(Value::Object(fields))
}

fn content(field: &FieldDescriptor, value: Value, path: &str) -> Result<Value, String> {
    let kind = field.kind();
    if field.is_map() {
        let entry = kind.as_message().map(|entry| entry.map_entry_value_field().kind());
        let (Value::Object(entries), Some(kind)) = (&value, entry) else {
            return Err(expected(path, "keys and values", &value));
        };
        let entries = entries.clone().into_iter();
        let checked = entries.map(|(key, value)| {
            let path = format!("{path}[{key:?}]");
            Ok((key, single(&kind, value, &path)?))
        });
        return checked.collect::<Result<Map<_, _>, String>>().map(Value::Object);
    }
    if field.is_list() {
        let Value::Array(items) = value else {
            return Err(expected(path, "a list", &value));
        };
        let items = items.into_iter().enumerate();
        return items.map(|(i, item)| single(&kind, item, &format!("{path}[{i}]"))).collect();
    }
    single(&kind, value, path)
}

fn single(kind: &Kind, value: Value, path: &str) -> Result<Value, String> {
    match kind {
        Kind::Message(descriptor) => message(descriptor, value, path),
        Kind::Enum(values) => enumerated(values, value, path),
        Kind::Bool if value.is_boolean() => Ok(value),
        Kind::Bool => Err(expected(path, "true or false", &value)),
        Kind::String => text(value, path).map(Value::String),
        // Bytes in these files are a variable's value, written as text.
        Kind::Bytes => text(value, path).map(|text| BASE64.encode(text).into()),
        _ if value.is_number() || value.as_str().is_some_and(|text| text.parse::<f64>().is_ok()) => Ok(value),
        _ => Err(expected(path, "a number", &value)),
    }
}

/// A text. Whole numbers and truth values are taken as they are written; others could have been changed by reading.
fn text(value: Value, path: &str) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Bool(_) => Ok(value.to_string()),
        Value::Number(ref number) if number.is_i64() || number.is_u64() => Ok(value.to_string()),
        _ => Err(expected(path, "a text (in quotes)", &value)),
    }
}

fn enumerated(values: &EnumDescriptor, value: Value, path: &str) -> Result<Value, String> {
    if value.is_i64() {
        return Ok(value);
    }
    let Value::String(name) = &value else {
        return Err(expected(path, "a name or a number", &value));
    };
    if values.get_value_by_name(name).is_some() {
        return Ok(value);
    }
    let names: Vec<String> = values.values().map(|value| value.name().to_owned()).collect();
    Err(match nearest(name, names.iter().map(String::as_str)) {
        Some(known) => format!("{path}: unknown value {name:?}: did you mean {known:?}?"),
        None => format!("{path}: unknown value {name:?}: known are {}", names.join(", ")),
    })
}

fn unknown_key(descriptor: &MessageDescriptor, key: &str, path: &str) -> String {
    let names: Vec<String> = descriptor.fields().map(|field| field.name().to_owned()).collect();
    match nearest(key, names.iter().map(String::as_str)) {
        Some(known) => format!("{path}: unknown key: did you mean {known:?}?"),
        None => format!("{path}: unknown key: known here are {}", names.join(", ")),
    }
}

fn expected(path: &str, want: &str, got: &Value) -> String {
    let place = if path.is_empty() { "the file" } else { path };
    format!("{place}: want {want}, got {got}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "
metadata: {name: web, namespace: default, uid: u1, attempt: 1}
hostname: web
log_directory: /var/log/pods/web
dns_config: {servers: [10.0.0.10], searches: [svc.local]}
port_mappings:
- {protocol: UDP, container_port: 53}
labels: {app: web, tier: 1}
linux:
  cgroup_parent: /pods/u1
  sysctls: {net.ipv4.ip_forward: \"1\"}
  security_context:
    namespace_options: {network: 2, pid: CONTAINER}
    run_as_user: {value: 1000}
    seccomp: {profile_type: Unconfined}
";

    fn error<M: Named + std::fmt::Debug>(text: &str) -> String {
        parse::<M>(text).unwrap_err()
    }

    #[test]
    fn a_pod_file_is_read() {
        let pod: PodSandboxConfig = parse(POD).unwrap();
        assert_eq!(pod.metadata.as_ref().unwrap().attempt, 1);
        assert_eq!(pod.port_mappings[0].protocol, 1);
        assert_eq!(pod.labels["tier"], "1");
        let linux = pod.linux.unwrap();
        assert_eq!(linux.sysctls["net.ipv4.ip_forward"], "1");
        let security = linux.security_context.unwrap();
        let namespaces = security.namespace_options.unwrap();
        assert_eq!((namespaces.network, namespaces.pid), (2, 1));
        assert_eq!(security.run_as_user.unwrap().value, 1000);
        assert_eq!(security.seccomp.unwrap().profile_type, 1);
    }

    #[test]
    fn both_spellings_and_both_languages_mean_the_same() {
        let snake: ContainerConfig = parse(
            "metadata: {name: c}\nlog_path: c.log\nworking_dir: /w\nCDI_devices: [{name: a.b/c=0}]\nenvs: [{key: A, value: plain}]\n",
        )
        .unwrap();
        let camel: ContainerConfig = parse(
            r#"{"metadata": {"name": "c"}, "logPath": "c.log", "workingDir": "/w", "CDIDevices": [{"name": "a.b/c=0"}],
               "envs": [{"key": "A", "value": "plain"}], "linux": null}"#,
        )
        .unwrap();
        assert_eq!(snake, camel);
        assert_eq!(snake.envs[0].value, b"plain");
    }

    #[test]
    fn an_unknown_key_names_its_place_and_the_nearest_one() {
        assert_eq!(
            error::<PodSandboxConfig>("linux: {security_context: {run_as_usr: {value: 1}}}"),
            "linux.security_context.run_as_usr: unknown key: did you mean \"run_as_user\"?"
        );
        assert_eq!(
            error::<ContainerConfig>("mounts: [{host_path: /a}, {hostpth: /b}]"),
            "mounts[1].hostpth: unknown key: did you mean \"host_path\"?"
        );
        assert!(error::<ContainerConfig>("zzzzzzzzzzzz: 1").contains("known here are metadata, image"));
    }

    #[test]
    fn a_wrong_type_names_its_place() {
        let check = |text: &str, want: &str| assert_eq!(error::<ContainerConfig>(text), want);
        check("command: sh", "command: want a list, got \"sh\"");
        check("tty: maybe", "tty: want true or false, got \"maybe\"");
        check("labels: [a]", "labels: want keys and values, got [\"a\"]");
        check("labels: {a: 1.10}", "labels[\"a\"]: want a text (in quotes), got 1.1");
        check(
            "stop_signal: SIGNAL_TERM",
            "stop_signal: unknown value \"SIGNAL_TERM\": did you mean \"SIGNAL_SIGTERM\"?",
        );
        check("linux: {resources: {cpu_shares: many}}", "linux.resources.cpu_shares: want a number, got \"many\"");
        assert!(
            error::<ContainerConfig>("log_path: a\nlogPath: b").ends_with(": set twice, as log_path and as logPath")
        );
        check("just text", "the file: want keys and values, got \"just text\"");
    }

    #[test]
    fn a_file_without_a_name_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod.yaml");
        std::fs::write(&path, "metadata: {name: web}\n").unwrap();
        assert!(pod(&path).unwrap_err().to_string().contains("metadata.name and metadata.namespace"));
        std::fs::write(&path, "metadata: {name: web, namespace: default}\n").unwrap();
        assert!(!pod(&path).unwrap().metadata.unwrap().uid.is_empty());
        std::fs::write(&path, "metadata: {name: c}\nimage: {}\n").unwrap();
        assert!(container(&path).unwrap_err().to_string().contains("image.image is not set"));
    }
}
