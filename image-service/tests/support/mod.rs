//! What the tests of images share: a registry of their own, and images made of archives written byte by byte.

// Each test binary uses its own part of this.
#![allow(dead_code, unreachable_pub)]

pub mod image;
pub mod registry;
pub mod tar;
pub mod tree;
