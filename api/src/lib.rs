//! Contracts between berth's processes, and nothing else: wire types and the names of files that cross a process
//! boundary. No IO, no behaviour, no paths, no defaults, no logging.
#![forbid(unsafe_code)]

#[cfg(feature = "cni")]
pub mod cni;
#[cfg(feature = "cri")]
pub mod cri;
#[cfg(feature = "cri")]
pub mod debug;
#[cfg(feature = "cri")]
pub mod encoded;
#[cfg(feature = "cri")]
pub mod pull;
#[cfg(feature = "shim")]
pub mod shim;
