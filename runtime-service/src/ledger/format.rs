//! The number of a record's format, and what is done about one that this build does not know: it is told, and kept.
//!
//! Formats are numbered each by itself. Without a number a record is of format 0, of before there were numbers. A build
//! reads every format from 0 to its own and writes its own. A number is raised when a build of the number before would
//! read the record wrongly, or lose by writing it what it may not lose; a field more, that may be missing, is none.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What is written down for a later daemon.
pub(crate) trait Record: Serialize + DeserializeOwned {
    /// The newest format that this build knows, which it writes.
    const FORMAT: u32;
}

/// A record that was looked for: itself, or its path and why it cannot be read.
pub(crate) type Found<T> = Result<T, (PathBuf, String)>;

#[derive(Serialize)]
struct Numbered<'a, T> {
    version: u32,
    #[serde(flatten)]
    record: &'a T,
}

#[derive(Deserialize)]
struct Number {
    #[serde(default)]
    version: u32,
}

/// The record with its format's number, as JSON.
///
/// # Errors
/// A value that JSON does not have.
pub(crate) fn encode<T: Record>(record: &T) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec(&Numbered { version: T::FORMAT, record })?)
}

/// The record, if it is of a format that this build knows.
///
/// # Errors
/// What is wrong with it, for a person.
fn decode<T: Record>(bytes: &[u8]) -> Result<T, String> {
    let Number { version } = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if version > T::FORMAT {
        let known = T::FORMAT;
        return Err(format!("a newer berthd wrote it, in format {version}; this one knows formats up to {known}"));
    }
    serde_json::from_slice(bytes).map_err(|e| e.to_string())
}

/// Reads a record; `None` if there is none.
pub(crate) fn read<T: Record>(path: &Path) -> Option<Found<T>> {
    match fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => Some(Err((path.to_owned(), e.to_string()))),
        Ok(bytes) => Some(decode(&bytes).map_err(|problem| (path.to_owned(), problem))),
    }
}

/// What a record of whatever format seems to say. Good for telling, never for acting on.
pub(crate) fn glimpse<T: Record>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Records as builds of every format so far wrote them: `records/FORMAT/NAME`. A raised number brings its predecessor's.
#[cfg(test)]
pub(crate) fn is_read_in_every_format<T: Record>(name: &str) {
    let records = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ledger/records");
    for number in 0..T::FORMAT {
        let path = records.join(number.to_string()).join(name);
        let record: T = read(&path).unwrap_or_else(|| panic!("{} is missing", path.display())).expect("readable");
        let written = encode(&record).expect("JSON");
        let again: T = decode(&written).expect("what is written can be read");
        let of = |record: &T| serde_json::to_value(record).expect("JSON");
        assert_eq!(of(&again), of(&record), "{name}");
        let mut newer: serde_json::Value = serde_json::from_slice(&written).expect("JSON");
        assert_eq!(newer["version"], T::FORMAT, "{name}");
        newer["version"] = (T::FORMAT + 1).into();
        let told =
            decode::<T>(newer.to_string().as_bytes()).err().unwrap_or_else(|| panic!("{name} is taken for known"));
        assert!(told.contains("newer berthd"), "{name}: {told}");
    }
}

#[cfg(test)]
mod tests {
    use berth_api::shim::{Effective, ExitRecord};

    use super::super::{ContainerLimits, ContainerRecord, Held, PodLimitsRecord, PodRecord};
    use super::*;
    use crate::network::Attachment;
    use crate::pod::lifecycle::End;

    #[test]
    fn records_of_every_format_so_far_are_read() {
        is_read_in_every_format::<PodRecord>("pod.request");
        is_read_in_every_format::<Attachment>("pod.network");
        is_read_in_every_format::<PodLimitsRecord>("pod.resources");
        is_read_in_every_format::<Held>("pod.held");
        is_read_in_every_format::<ContainerRecord>("container.request");
        is_read_in_every_format::<End>("container.exit");
        is_read_in_every_format::<ContainerLimits>("container.resources");
        is_read_in_every_format::<ExitRecord>("exit.json");
        is_read_in_every_format::<Effective>("effective.json");
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Thing {
        name: String,
    }

    impl Record for Thing {
        const FORMAT: u32 = 3;
    }

    #[test]
    fn every_format_up_to_ones_own_is_read_and_ones_own_is_written() {
        let thing = Thing { name: "n".into() };
        let written = encode(&thing).expect("JSON");
        assert_eq!(String::from_utf8_lossy(&written), r#"{"version":3,"name":"n"}"#);
        for text in [r#"{"name":"n"}"#, r#"{"version":0,"name":"n"}"#, r#"{"name":"n","version":3,"more":1}"#] {
            assert_eq!(decode::<Thing>(text.as_bytes()).as_ref(), Ok(&thing), "{text}");
        }
    }

    #[test]
    fn a_newer_format_is_told_before_what_is_in_it() {
        for text in [r#"{"version":4,"name":"n"}"#, r#"{"title":"n","version":4}"#] {
            let told = decode::<Thing>(text.as_bytes()).expect_err(text);
            assert_eq!(told, "a newer berthd wrote it, in format 4; this one knows formats up to 3");
        }
        for text in ["", "{", "[]", r#"{"version":-1,"name":"n"}"#, r#"{"version":3}"#] {
            decode::<Thing>(text.as_bytes()).expect_err(text);
        }
    }
}
