//! What all targets share: a heap with a limit, so that a decoder that believes a length is found out, and a place for files.
#![forbid(unsafe_code)]

use std::alloc::System;
use std::path::PathBuf;
use std::sync::Once;

use cap::Cap;

#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

/// Who tells of a panic needs memory, too.
fn lift_limit_in_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let _ = HEAP.set_limit(usize::MAX);
            tell(panic);
        }));
    });
}

/// Runs `feed`, which may take `most` bytes of heap more than are taken now. An allocation beyond that fails, and that ends
/// the process: a finding.
pub fn within(most: usize, feed: impl FnOnce()) {
    lift_limit_in_panics();
    let _ = HEAP.set_limit(HEAP.allocated() + most);
    feed();
    let _ = HEAP.set_limit(usize::MAX);
}

/// An empty directory for this process, below the one for temporary files.
pub fn own_directory(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("{name}.{}", std::process::id()));
    std::fs::create_dir(&path).expect("make a directory");
    path
}
