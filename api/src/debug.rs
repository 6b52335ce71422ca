//! What is in progress inside the daemon (package `berth.debug.v1`), generated from `proto/berth/debug/v1/debug.proto`.
#![allow(missing_docs, clippy::all)]

tonic::include_proto!("berth.debug.v1");
