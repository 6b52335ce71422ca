//! Layers: from a compressed stream to a directory in overlay form. Knows files, not images.
//!
//! `stream` decompresses and hashes, `tar` reads entries, `apply` makes files of them, `settle` fits the layer onto the
//! ones below.

pub(crate) mod apply;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
pub(crate) mod settle;
pub(crate) mod stream;
pub(crate) mod tar;
