//! See `berth_image_service::fuzzing::manifests`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_fuzz::within(4 << 20, || berth_image_service::fuzzing::manifests(
    data
)));
