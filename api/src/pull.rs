//! berth's pull-with-progress service (package `berth.v1`), generated from `proto/berth/v1/pull.proto`.
#![allow(missing_docs, clippy::all)]

tonic::include_proto!("berth.v1");
