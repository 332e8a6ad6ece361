//! Compiles the service's definition. With a compiler in Rust, so `protoc` is not needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let definition = protox::compile(["proto/weather.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(definition)?;
    Ok(())
}
