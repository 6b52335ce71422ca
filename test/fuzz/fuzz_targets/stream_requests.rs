//! See `berth_runtime_service::fuzzing::stream_requests`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_fuzz::within(2 << 20, || {
    berth_runtime_service::fuzzing::stream_requests(data)
}));
