//! CRI v1 (package `runtime.v1`), generated from `proto/runtime/v1/api.proto`.
#![allow(missing_docs, clippy::all)]

tonic::include_proto!("runtime.v1");

/// The compiled descriptors of every .proto served on the CRI socket, as an encoded `FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));
