//! See `cli/src/stream/fuzzing.rs`. The client is a binary: its sources are taken, those that read frames.
#![no_main]

#[path = "../../../cli/src/stream"]
#[allow(dead_code)]
mod stream {
    pub(crate) mod fuzzing;
    mod spdy;
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_fuzz::within(2 << 20, || stream::fuzzing::feed(data)));
