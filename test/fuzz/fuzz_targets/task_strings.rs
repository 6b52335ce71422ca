//! See `berth_shim::fuzzing::task_strings`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_fuzz::within(1 << 20, || berth_shim::fuzzing::task_strings(data)));
