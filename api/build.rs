//! Compiles our .proto files without protoc: protox for CRI and berth.v1, ttrpc-codegen for the shim's service.

use std::env;
use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    if env::var_os("CARGO_FEATURE_CRI").is_some() {
        let set =
            protox::compile(["runtime/v1/api.proto", "berth/v1/pull.proto", "berth/debug/v1/debug.proto"], ["proto"])?;
        let mut bare = set.clone();
        // The comments are for the generated code's readers; at run time they would be most of the descriptor.
        bare.file.iter_mut().for_each(|file| file.source_code_info = None);
        std::fs::write(out.join("descriptor.bin"), bare.encode_to_vec())?;
        tonic_prost_build::configure().build_transport(true).compile_fds(set)?;
    }
    if env::var_os("CARGO_FEATURE_SHIM").is_some() {
        ttrpc_codegen::Codegen::new()
            .out_dir(&out)
            .inputs(["proto/berth/shim/v1/shim.proto"])
            .include("proto")
            .rust_protobuf()
            .rust_protobuf_customize(ttrpc_codegen::ProtobufCustomize::default().gen_mod_rs(false))
            .customize(ttrpc_codegen::Customize { async_all: true, ..Default::default() })
            .run()?;
        // Generated code may relax a lint; this one we do not let go, and it has no need of it.
        for name in ["shim.rs", "shim_ttrpc.rs"] {
            let code = std::fs::read_to_string(out.join(name))?;
            std::fs::write(out.join(name), code.replace("#![allow(unsafe_code)]\n", ""))?;
        }
        // The generated files begin with inner attributes, so they can only be reached as modules of a file beside them.
        std::fs::write(out.join("mod.rs"), "pub mod shim;\npub mod shim_ttrpc;\n")?;
    }
    Ok(())
}
