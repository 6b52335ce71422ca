//! See `berth_runtime_service::fuzzing::container_requests`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_fuzz::within(8 << 20, || {
    berth_runtime_service::fuzzing::container_requests(data)
}));
