//! See `berth_image_service::fuzzing::LayerDirectory`. Runs in a root of its own, so that an entry that gets out of its
//! layer is found there, and is not the end of this machine.
#![no_main]

use std::sync::OnceLock;

use berth_image_service::fuzzing::LayerDirectory;

/// Paths that do not begin with a slash lead where they led before: the fuzzer's own files are found by those.
fn directory() -> &'static LayerDirectory {
    static DIRECTORY: OnceLock<LayerDirectory> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let root = berth_fuzz::own_directory("layers");
        std::os::unix::fs::chroot(&root).expect("a root of its own");
        LayerDirectory::make(std::path::Path::new("/")).expect("a directory of layers")
    })
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let directory = directory();
    berth_fuzz::within(8 << 20, || directory.feed(data));
});
