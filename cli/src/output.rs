//! Prints answers: table, JSON or YAML. One write for one answer, so that a pipe never gets half a document.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::Error;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
    Yaml,
}

/// Writes to stdout. A reader that has gone is told to `main`, which takes it for the end.
pub(crate) fn print(text: impl AsRef<[u8]>) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_ref()).and_then(|()| out.flush()).map_err(Error::Print)
}

/// A line to stdout.
pub(crate) fn line(text: impl AsRef<str>) -> Result<(), Error> {
    print(format!("{}\n", text.as_ref()))
}

/// Prints a document, or what `table` makes when that is wanted.
pub(crate) fn show<D: Serialize>(
    format: Format,
    document: impl FnOnce() -> D,
    table: impl FnOnce() -> String,
) -> Result<(), Error> {
    match format {
        Format::Table => print(table()),
        Format::Json => line(json(&document())),
        Format::Yaml => line(yaml(&document())),
    }
}

/// Indented by two.
fn json(document: &impl Serialize) -> String {
    serde_json::to_string_pretty(document).expect("documents come from JSON values or CRI messages")
}

fn yaml(document: &impl Serialize) -> String {
    serde_saphyr::to_string(document).expect("every JSON document is a YAML document")
}

/// One object as `inspect` and its siblings show it: its status, and what the runtime adds under `info` by topic.
pub(crate) fn with_info(mut document: Map<String, Value>, info: BTreeMap<String, String>) -> Value {
    for (topic, text) in info {
        document.insert(topic, topic_value(&text));
    }
    Value::Object(document)
}

/// Topics hold JSON objects or plain texts; as crictl has it, quotes around a plain text are dropped.
fn topic_value(text: &str) -> Value {
    match text.starts_with('{') {
        true => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
        false => text.trim_matches('"').into(),
    }
}

/// Several objects: one stands alone, more are a list.
pub(crate) fn one_or_list(mut documents: Vec<Value>) -> Value {
    match documents.len() {
        1 => documents.remove(0),
        _ => Value::Array(documents),
    }
}

/// `Labels:` and an indented line for each, or nothing when there are none.
pub(crate) fn pairs(title: &str, pairs: &BTreeMap<String, String>) -> String {
    let mut text = String::new();
    if !pairs.is_empty() {
        let _ = writeln!(text, "{title}:");
        for (key, value) in pairs {
            let _ = writeln!(text, "\t{key} -> {value}");
        }
    }
    text
}

/// The first 13 characters, as much as crictl shows; enough to name the object again.
pub(crate) fn short(id: &str) -> String {
    id.strip_prefix("sha256:").unwrap_or(id).chars().take(13).collect()
}

/// A map of the contract in the order of its keys.
pub(crate) fn sorted(map: &std::collections::HashMap<String, String>) -> BTreeMap<String, String> {
    map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn topics_are_json_or_text() {
        assert_eq!(topic_value("{\"pid\": 7}"), json!({"pid": 7}));
        assert_eq!(topic_value("\"OK\""), json!("OK"));
        assert_eq!(topic_value("{broken"), json!("{broken"));
    }

    #[test]
    fn yaml_keeps_texts_texts() {
        let value =
            json!({"a": "1", "b": "true", "c": 1, "d": [], "e": {}, "f": "x: y", "g": null, "h": "two\nlines\n"});
        let read: Value = serde_saphyr::from_str(&yaml(&value)).unwrap();
        assert_eq!(read, value, "{}", yaml(&value));
    }

    #[test]
    fn one_object_stands_alone() {
        assert_eq!(one_or_list(vec![json!({"a": 1})]), json!({"a": 1}));
        assert_eq!(one_or_list(vec![json!(1), json!(2)]), json!([1, 2]));
    }

    #[test]
    fn ids_are_cut() {
        assert_eq!(short("sha256:0123456789abcdef0123"), "0123456789abc");
    }
}
