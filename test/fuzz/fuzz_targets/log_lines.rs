//! See `cli/src/log/fuzzing.rs`. The client is a binary: its sources are taken, those that read logs.
#![no_main]

use std::sync::OnceLock;

#[path = "../../../cli/src/log"]
#[allow(dead_code)]
mod log {
    pub(crate) mod fuzzing;
    mod line;
    mod tail;
}

use log::fuzzing::LogFile;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    static FILE: OnceLock<LogFile> = OnceLock::new();
    let file = FILE.get_or_init(|| LogFile::at(&berth_fuzz::own_directory("log").join("log")).expect("a log"));
    berth_fuzz::within(2 << 20, || file.feed(data));
});
