//! The wire contract as Rust types, generated from `proto/` at build time. Nothing here is written by hand.
#![allow(
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    unreachable_pub,
    unused_qualifications,
    reason = "generated code follows its generator's style"
)]

/// Messages that the client library reads and writes.
pub mod skissm {
    tonic::include_proto!("skissm");
}

/// Messages between an application and its node, and the four services.
pub mod skiserver {
    tonic::include_proto!("skiserver");
}

/// The numbers behind plain integer fields of the other two packages.
pub mod ski {
    tonic::include_proto!("ski");
}

/// All descriptors, encoded as one `FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
