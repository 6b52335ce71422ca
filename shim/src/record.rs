//! The files a shim leaves in its bundle for whoever comes after it. Each is whole or absent.

use std::io;
use std::path::Path;

use berth_api::shim::{EFFECTIVE_FILE, EXIT_FILE, Effective, ExitRecord, FILE_FORMAT};
use serde::Serialize;

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

/// Reads `exit.json`; `None` if there is none or it cannot be read.
pub(crate) fn read_exit(bundle: &Path) -> Option<ExitRecord> {
    serde_json::from_slice(&std::fs::read(bundle.join(EXIT_FILE)).ok()?).ok()
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

#[derive(Serialize)]
struct Numbered<'a, T> {
    version: u32,
    #[serde(flatten)]
    record: &'a T,
}

fn json<T: Serialize>(record: &T) -> io::Result<Vec<u8>> {
    serde_json::to_vec(&Numbered { version: FILE_FORMAT, record }).map_err(io::Error::from)
}
