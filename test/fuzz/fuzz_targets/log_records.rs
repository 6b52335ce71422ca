//! See `berth_shim::fuzzing::log_records`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_fuzz::within(16 << 20, || berth_shim::fuzzing::log_records(data)));
