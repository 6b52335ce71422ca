//! See `berth_runtime_service::fuzzing::shim_answers`. protobuf sets aside up to 10 MB for a field before it has seen it, and
//! frees them with the error.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_fuzz::within(16 << 20, || {
    berth_runtime_service::fuzzing::shim_answers(data);
}));
