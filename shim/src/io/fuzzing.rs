//! Stream addresses and what containers print, for `test/fuzz`.

use std::os::unix::ffi::OsStrExt;

use super::log::fuzzing;
use super::target::{Target, parse};

/// Task's stdin, stdout and stderr: whatever path is meant is absolute and has no NUL.
pub fn task_strings(data: &[u8]) {
    let path = match parse(&String::from_utf8_lossy(data)) {
        Ok(Target::Log { path, .. } | Target::Fifo { path, .. }) => path,
        Ok(Target::Nothing | Target::Clients { .. }) => return,
        Err(why) => return assert!(!why.is_empty()),
    };
    assert!(path.is_absolute(), "{path:?}");
    // A plain path is passed on as it is: whoever opens it refuses a NUL.
    assert!(data.first() == Some(&b'/') || !path.as_os_str().as_bytes().contains(&0));
}

/// See `log::fuzzing`.
pub fn log_records(data: &[u8]) {
    fuzzing::records(data);
}
