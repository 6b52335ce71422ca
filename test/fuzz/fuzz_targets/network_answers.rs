//! See `berth_runtime_service::fuzzing::network_answers`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_fuzz::within(4 << 20, || {
    berth_runtime_service::fuzzing::network_answers(data)
}));
