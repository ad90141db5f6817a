//! Compiles `proto/` without a system protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["device.proto", "router.proto"], ["proto"])?;
    prost_build::Config::new().enable_type_names().compile_fds(files)?;
    Ok(())
}
