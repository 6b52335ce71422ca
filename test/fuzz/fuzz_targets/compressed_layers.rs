//! See `berth_image_service::fuzzing::compressed_layers`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_fuzz::within(12 << 20, || {
    berth_image_service::fuzzing::compressed_layers(data)
}));
