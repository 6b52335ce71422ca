//! System calls that no crate wraps safely. All `unsafe` of the crate.
