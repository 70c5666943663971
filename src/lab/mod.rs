//! What a federation on one machine needs around its nodes: certificates, names, addresses and configurations.
//! `skiserver lab` and the tests share it. Nothing here prints.

pub mod ca;
pub mod check;
pub mod dns;
pub mod files;
pub mod manifest;
pub mod node;
pub mod ports;

use std::{io, path::PathBuf};

/// Why a piece of a lab could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A file or folder could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A certificate, key or revocation list could not be made or read.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// What was given can't be used.
    #[error("{0}")]
    Unusable(String),
}
