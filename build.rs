//! Compiles `proto/` without a system protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_source_info(true).include_imports(true).open_files(["device.proto", "router.proto"])?;
    // For reflection over gRPC, comments included.
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    std::fs::write(out.join("protocols.bin"), compiler.encode_file_descriptor_set())?;
    prost_build::Config::new().enable_type_names().compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
