//! The files a shim leaves in its bundle for whoever comes after it. Each is whole or absent.

use std::io;
use std::path::Path;

use berth_api::shim::{EFFECTIVE_FILE, EXIT_FILE, Effective, ExitRecord, FILE_FORMAT};
use serde::{Deserialize, Serialize};

use crate::step;

/// Writes `exit.json`; must return before anyone is told of the end.
///
/// # Errors
/// What the file system answers.
pub(crate) fn write_exit(bundle: &Path, record: &ExitRecord) -> io::Result<()> {
    let temporary = bundle.join("exit.json.tmp");
    step!("exit::record-write", std::fs::write(&temporary, json(record)?))?;
    step!("exit::record-rename", std::fs::rename(&temporary, bundle.join(EXIT_FILE)))
}

/// Reads `exit.json`; `None` if there is none or it is damaged.
///
/// # Errors
/// The file, by name, that a shim of a newer build has written: how its container ended is not for this one to say.
pub(crate) fn read_exit(bundle: &Path) -> io::Result<Option<ExitRecord>> {
    let path = bundle.join(EXIT_FILE);
    let Ok(bytes) = std::fs::read(&path) else { return Ok(None) };
    match serde_json::from_slice(&bytes) {
        Ok(Format { version }) if version > FILE_FORMAT => Err(io::Error::other(format!(
            "{}: a newer shim wrote it, in format {version}; this one knows formats up to {FILE_FORMAT}",
            path.display()
        ))),
        _ => Ok(serde_json::from_slice(&bytes).ok()),
    }
}

/// Writes `effective.json`, if the host withholds anything.
///
/// # Errors
/// What the file system answers.
pub(crate) fn write_effective(bundle: &Path, effective: &Effective) -> io::Result<()> {
    if *effective == Effective::default() {
        return Ok(());
    }
    let temporary = bundle.join("effective.json.tmp");
    step!("create::effective-write", std::fs::write(&temporary, json(effective)?))?;
    step!("create::effective-rename", std::fs::rename(&temporary, bundle.join(EFFECTIVE_FILE)))
}

/// Writes `effective.json` again, or removes one that has nothing to tell any more.
///
/// # Errors
/// What the file system answers.
pub(crate) fn rewrite_effective(bundle: &Path, effective: &Effective) -> io::Result<()> {
    if *effective != Effective::default() {
        return write_effective(bundle, effective);
    }
    match std::fs::remove_file(bundle.join(EFFECTIVE_FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[derive(Deserialize)]
struct Format {
    /// 0 in those of before there were numbers.
    #[serde(default)]
    version: u32,
}

#[derive(Serialize)]
struct Numbered<'a, T> {
    version: u32,
    #[serde(flatten)]
    record: &'a T,
}

fn json<T: Serialize>(record: &T) -> io::Result<Vec<u8>> {
    serde_json::to_vec(&Numbered { version: FILE_FORMAT, record }).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_newer_shim_wrote_is_not_taken_for_what_this_one_knows() {
        let bundle = tempfile::tempdir().expect("temporary directory");
        let path = bundle.path().join(EXIT_FILE);
        assert_eq!(read_exit(bundle.path()).expect("none"), None);
        let record = ExitRecord {
            status: 3,
            exited_at_ns: 5,
            oom_killed: false,
            killed_by_request: true,
            oom_limit: None,
            started_at_ns: Some(4),
        };
        write_exit(bundle.path(), &record).expect("write");
        assert_eq!(read_exit(bundle.path()).expect("read"), Some(record.clone()));
        let mut json = serde_json::to_value(&record).expect("JSON");
        std::fs::write(&path, json.to_string()).expect("write");
        assert_eq!(read_exit(bundle.path()).expect("of before there were numbers"), Some(record));
        std::fs::write(&path, "{").expect("write");
        assert_eq!(read_exit(bundle.path()).expect("damaged"), None);
        json["version"] = (FILE_FORMAT + 1).into();
        // Also one that looks like nothing that is known.
        for newer in [json, serde_json::json!({ "version": FILE_FORMAT + 1 })] {
            std::fs::write(&path, newer.to_string()).expect("write");
            let error = read_exit(bundle.path()).expect_err("newer").to_string();
            assert!(error.starts_with(&format!("{}: a newer shim wrote it, in format 2", path.display())), "{error}");
        }
    }
}
