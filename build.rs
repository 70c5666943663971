//! Compiles the wire contract under `proto/` without a system `protoc`, and keeps
//! the encoded descriptors for reflection and for the test that compares them with the tables.

use prost::Message as _;
use std::{env, error::Error, fs, path::PathBuf};

/// Everything else is imported by these.
const ROOTS: [&str; 7] = [
    "proto/skiserver/E2eeUnaryService.proto",
    "proto/skiserver/E2eeBidiService.proto",
    "proto/skiserver/E2eeBackupService.proto",
    "proto/skiserver/E2eeS2SService.proto",
    "proto/ski/UserState.proto",
    "proto/ski/BlockState.proto",
    "proto/ski/FriendStatus.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(ROOTS, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
