//! What callers and the kernel tell the shim, for `test/fuzz`: one function a target, which panics when a promise is broken.
//! Those of a room are in the room.

pub use crate::io::fuzzing::{log_records, task_strings};
pub use crate::runtime::fuzzing::oci_specs;

/// `/proc/PID/stat`, a line a process, each after its number: a family has its leader and nobody else's children.
pub fn process_tables(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let kin: Vec<_> = text
        .lines()
        .filter_map(|line| {
            let (pid, stat) = line.split_once(' ')?;
            crate::session::parse(pid.parse().ok()?, stat)
        })
        .take(256)
        .collect();
    let family = crate::session::family(7, kin.iter().copied());
    assert!(family.contains(&7));
    assert!(family.iter().all(|pid| *pid == 7 || kin.iter().any(|k| k.pid == *pid)));
}

#[cfg(test)]
#[path = "../../test/fuzz/kept.rs"]
mod kept;

#[cfg(test)]
mod tests {
    use super::kept;

    #[test]
    fn kept_inputs_of_every_target_are_borne() {
        kept::feed_each(&[
            ("log_records", &super::log_records),
            ("task_strings", &super::task_strings),
            ("oci_specs", &super::oci_specs),
            ("kernel_files", &super::process_tables),
        ]);
    }
}
