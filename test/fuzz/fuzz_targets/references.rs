//! See `berth_image_service::fuzzing::references`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_fuzz::within(1 << 20, || berth_image_service::fuzzing::references(
    data
)));
