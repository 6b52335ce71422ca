//! See `berth_runtime_service::fuzzing::seccomp_profiles`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_fuzz::within(4 << 20, || {
    berth_runtime_service::fuzzing::seccomp_profiles(data)
}));
