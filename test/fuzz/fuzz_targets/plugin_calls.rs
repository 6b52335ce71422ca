//! See `berth_cni_plugins::fuzzing::plugin_calls`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_fuzz::within(4 << 20, || berth_cni_plugins::fuzzing::plugin_calls(
    data
)));
