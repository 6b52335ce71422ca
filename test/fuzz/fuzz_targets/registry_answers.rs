//! See `berth_image_service::fuzzing::registry_answers`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_fuzz::within(2 << 20, || {
    berth_image_service::fuzzing::registry_answers(data)
}));
