//! The CNI contract between a runtime and its network plugins: call, configuration, result, error. Pure: environment,
//! stdin and stdout as values; nobody is executed here.
//! Source: <https://github.com/containernetworking/cni/blob/main/SPEC.md>, version 1.1.0.

pub mod call;
pub mod config;
pub mod error;
pub mod result;
pub mod version;
