//! Compiles the service's definition. In Rust throughout, so nobody needs `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let definition = protox::compile(["proto/weather.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(definition)?;
    Ok(())
}
