//! See `berth_shim::fuzzing::oci_specs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_fuzz::within(8 << 20, || berth_shim::fuzzing::oci_specs(data)));
