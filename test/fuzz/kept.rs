//! The inputs kept for a target, as its crate's ordinary test feeds them: seeds, and what once broke it.

use std::path::Path;

/// A target's name, and what is fed.
type Target<'a> = (&'a str, &'a dyn Fn(&[u8]));

/// Feeds every kept input of each target.
pub(crate) fn feed_each(targets: &[Target<'_>]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../test/fuzz");
    for (target, feed) in targets {
        let of = |kind: &str| {
            let entries = std::fs::read_dir(root.join(kind).join(target)).into_iter().flatten();
            entries.map(|entry| entry.expect("an input").path()).collect::<Vec<_>>()
        };
        let seeds = of("seeds");
        assert!(!seeds.is_empty(), "{target} has no seed");
        for input in seeds.into_iter().chain(of("regressions")) {
            // A panic's message does not know the file: captured, it is shown only with a failure.
            println!("{}", input.display());
            feed(&std::fs::read(&input).expect("read an input"));
        }
    }
}
