//! See `berth_image_service::fuzzing::archives`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_fuzz::within(8 << 20, || berth_image_service::fuzzing::archives(data)));
