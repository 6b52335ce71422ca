//! What the kernel tells, of every crate that reads it: the decoders are cheap, and each input is fed to all of them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_fuzz::within(2 << 20, || {
    berth_runtime_service::fuzzing::kernel_files(data);
    berth_runtime_service::fuzzing::mountinfo(data);
    berth_shim::fuzzing::process_tables(data);
    berth_cni_plugins::fuzzing::netlink_answers(data);
}));
