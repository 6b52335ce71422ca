//! Every field of RunPodSandboxRequest and CreateContainerRequest is honoured or refused, never ignored: `fields.tsv`
//! says which, with the test that proves it. A new field in the .proto fails here until it has a row.

use std::collections::BTreeMap;

use berth_api::cri;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};
use tonic::Status;

use super::refuse;

const TABLE: &str = include_str!("../../fields.tsv");

/// Messages whose fields are taken as one: they come and go together.
const WHOLE: &[&str] = &["runtime.v1.Int64Value"];

fn pool() -> DescriptorPool {
    DescriptorPool::decode(cri::FILE_DESCRIPTOR_SET).expect("descriptors")
}

/// Every leaf below a message, `[]` behind a list's name.
fn leaves(message: &MessageDescriptor, prefix: &str, out: &mut Vec<String>) {
    for field in message.fields() {
        let list = if field.is_list() { "[]" } else { "" };
        let path = format!("{prefix}{}{list}", field.name());
        match field.kind() {
            Kind::Message(inner) if !field.is_map() && !WHOLE.contains(&inner.full_name()) => {
                leaves(&inner, &format!("{path}."), out);
            }
            _ => out.push(path),
        }
    }
}

fn rows() -> BTreeMap<&'static str, Vec<(&'static str, &'static str)>> {
    let mut rows = BTreeMap::<_, Vec<_>>::new();
    for line in TABLE.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let columns: Vec<&str> = line.split('\t').collect();
        let [request, path, what] = columns[..] else { panic!("three columns: {line:?}") };
        rows.entry(request).or_default().push((path, what));
    }
    rows
}

/// The row of a leaf: its own, or one of a whole subtree (`a.b.*`).
fn row<'a>(rows: &[(&'a str, &'a str)], leaf: &str) -> Option<(&'a str, &'a str)> {
    let covers = |path: &str| path == leaf || path.strip_suffix('*').is_some_and(|stem| leaf.starts_with(stem));
    rows.iter().copied().find(|(path, _)| covers(path))
}

/// A message with nothing set but this leaf, to something that is not its default.
fn only(message: &MessageDescriptor, leaf: &str) -> DynamicMessage {
    let mut out = DynamicMessage::new(message.clone());
    let (head, rest) = leaf.split_once('.').unwrap_or((leaf, ""));
    let field = message.get_field_by_name(head.trim_end_matches("[]")).expect(head);
    let value = match field.kind() {
        Kind::Message(inner) if !rest.is_empty() => Value::Message(only(&inner, rest)),
        _ => something(&field),
    };
    let value = match field.is_list() {
        true => Value::List(vec![value]),
        false => value,
    };
    out.set_field(&field, value);
    out
}

fn something(field: &FieldDescriptor) -> Value {
    if field.is_map() {
        return Value::Map([(MapKey::String("k".into()), Value::String("v".into()))].into());
    }
    match field.kind() {
        Kind::Bool => Value::Bool(true),
        Kind::Int32 => Value::I32(7),
        Kind::Int64 => Value::I64(7),
        Kind::Uint32 => Value::U32(7),
        Kind::Uint64 => Value::U64(7),
        Kind::String => Value::String("something".into()),
        Kind::Bytes => Value::Bytes(b"something".to_vec().into()),
        // NODE, the only mode beside the default that each of the namespaces knows.
        Kind::Enum(e) if e.name() == "NamespaceMode" => Value::EnumNumber(2),
        Kind::Enum(_) => Value::EnumNumber(1),
        Kind::Message(inner) => Value::Message(only(&inner, "value")),
        other => panic!("no value for {other:?}"),
    }
}

fn check<T: Message + Default>(request: &str, refuse: impl Fn(&T) -> Result<(), Status>, sources: &str) {
    let descriptor = pool().get_message_by_name(&format!("runtime.v1.{request}")).expect(request);
    let mut all = Vec::new();
    leaves(&descriptor, "", &mut all);
    let rows = rows().remove(request).unwrap_or_default();
    let mut wrong = Vec::new();
    for leaf in &all {
        let Some((_, what)) = row(&rows, leaf) else {
            wrong.push(format!("{leaf}: has no row"));
            continue;
        };
        let bytes = only(&descriptor, leaf).encode_to_vec();
        let message = T::decode(bytes.as_slice()).expect("the same wire form");
        match (what, refuse(&message)) {
            ("refused", Ok(())) => wrong.push(format!("{leaf}: is not refused")),
            ("refused", Err(status)) => {
                // The path names the field or the message that holds it; a list's element by its number.
                let named = status.message().split(": ").next().unwrap_or_default().replace("[0]", "[]");
                if named.is_empty() || !leaf.starts_with(&named) {
                    wrong.push(format!("{leaf}: is refused as {:?}", status.message()));
                }
            }
            (test, Ok(())) if !sources.contains(&format!("fn {test}(")) => {
                wrong.push(format!("{leaf}: there is no test {test:?}"));
            }
            (_, Ok(())) => {}
            (_, Err(status)) => wrong.push(format!("{leaf}: is refused: {}", status.message())),
        }
    }
    for (path, _) in &rows {
        if !all.iter().any(|leaf| row(&[(path, "")], leaf).is_some()) {
            wrong.push(format!("{path}: is no field"));
        }
    }
    assert!(wrong.is_empty(), "{request}:\n{}", wrong.join("\n"));
}

/// Every test source that a row can name.
fn sources() -> String {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    let mut dirs = vec![root.join("src"), root.join("../test/tests")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).expect("sources").flatten() {
            match entry.path() {
                path if path.is_dir() => dirs.push(path),
                path if path.extension().is_some_and(|e| e == "rs") => {
                    text += &std::fs::read_to_string(path).expect("source");
                }
                _ => {}
            }
        }
    }
    text
}

#[test]
fn every_field_of_a_sandbox_is_honoured_or_refused() {
    check::<cri::RunPodSandboxRequest>("RunPodSandboxRequest", refuse::run_pod_sandbox, &sources());
}

#[test]
fn every_field_of_a_container_is_honoured_or_refused() {
    check::<cri::CreateContainerRequest>("CreateContainerRequest", refuse::create_container, &sources());
}
