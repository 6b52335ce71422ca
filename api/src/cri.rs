//! CRI v1 (package `runtime.v1`), generated from `proto/runtime/v1/api.proto`.
#![allow(missing_docs, clippy::all)]

tonic::include_proto!("runtime.v1");

mod server {
    include!(concat!(env!("OUT_DIR"), "/server/runtime.v1.rs"));
}
pub use server::{image_service_server, runtime_service_server};

/// The compiled descriptors of every .proto served on the CRI socket, as an encoded `FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_types::{FileDescriptorSet, MethodDescriptorProto};

    fn rpcs(package: &str) -> Vec<MethodDescriptorProto> {
        let set = FileDescriptorSet::decode(super::FILE_DESCRIPTOR_SET).expect("the build wrote it");
        let file = set.file.into_iter().find(|file| file.package() == package).expect("served on the socket");
        file.service.into_iter().flat_map(|service| service.method).collect()
    }

    #[test]
    fn cri_has_43_rpcs_of_which_7_stream() {
        let rpcs = rpcs("runtime.v1");
        assert_eq!(rpcs.len(), 43);
        assert_eq!(rpcs.iter().filter(|rpc| rpc.server_streaming()).count(), 7);
        assert!(rpcs.iter().all(|rpc| !rpc.client_streaming()));
    }

    #[test]
    fn pulls_are_in_the_same_descriptor() {
        assert_eq!(rpcs("berth.v1").iter().map(|rpc| rpc.name()).collect::<Vec<_>>(), ["Pull"]);
    }
}
