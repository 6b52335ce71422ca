//! The daemon's decoders of bytes from outside, for `test/fuzz`: one function a target, which panics when a promise is
//! broken. Each room has its own; this is their door.

pub use crate::network::fuzzing::network_answers;
pub use crate::pod::fuzzing::mountinfo;
pub use crate::spec::fuzzing::{container_requests, seccomp_profiles, users};
pub use crate::stats::fuzzing::kernel_files;
pub use crate::streaming::fuzzing::{spdy, stream_requests, websocket};
pub use crate::task::fuzzing::shim_answers;

#[cfg(test)]
#[path = "../../test/fuzz/kept.rs"]
mod kept;

#[cfg(test)]
mod tests {
    use super::kept;

    #[test]
    fn kept_inputs_of_every_target_are_borne() {
        kept::feed_each(&[
            ("network_answers", &super::network_answers),
            ("kernel_files", &super::mountinfo),
            ("container_requests", &super::container_requests),
            ("seccomp_profiles", &super::seccomp_profiles),
            ("users", &super::users),
            ("kernel_files", &super::kernel_files),
            ("spdy", &super::spdy),
            ("stream_requests", &super::stream_requests),
            ("websocket", &super::websocket),
            ("shim_answers", &super::shim_answers),
        ]);
    }
}
