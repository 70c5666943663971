//! `lab.json`: what a running lab tells the tools and tests that want to join it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    LabError,
    files::{self, Access},
};

/// A running lab. Readers outside this program depend on the names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The lab's name server.
    pub dns: SocketAddr,
    /// Its nodes.
    pub domains: Vec<NodeEntry>,
}

/// One node of a lab. All paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// The domain that it serves and that its certificate names.
    pub domain: String,
    /// Its process when the lab started.
    pub pid: u32,
    /// Its door for apps.
    pub client: SocketAddr,
    /// Its door for other domains.
    pub peer: SocketAddr,
    /// Its door for the operator.
    pub admin: SocketAddr,
    /// The authority to trust.
    pub ca: PathBuf,
    /// What starts it again at the same addresses.
    pub config: PathBuf,
    /// Its database.
    pub database: PathBuf,
    /// The JSON lines with auth codes.
    pub auth_codes: PathBuf,
}

impl Manifest {
    /// Where it lies in a lab's folder.
    pub fn file(folder: &Path) -> PathBuf {
        folder.join("lab.json")
    }

    /// Writes it whole.
    pub fn save(&self, file: &Path) -> Result<(), LabError> {
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|error| LabError::Unusable(format!("{}: {error}", file.display())))?;
        text.push('\n');
        files::write(file, text.as_bytes(), Access::Public)
    }

    /// Reads it back.
    pub fn load(file: &Path) -> Result<Self, LabError> {
        serde_json::from_str(&files::read(file)?)
            .map_err(|error| LabError::Unusable(format!("{}: {error}", file.display())))
    }

    /// The node of a domain.
    pub fn node(&self, domain: &str) -> Option<&NodeEntry> {
        self.domains.iter().find(|node| node.domain == domain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Must as _;

    #[test]
    fn the_file_has_the_names_that_readers_expect() {
        let dir = tempfile::tempdir().must();
        let file = Manifest::file(dir.path());
        let manifest = Manifest {
            dns: ([127, 0, 0, 1], 1).into(),
            domains: vec![NodeEntry {
                domain: "a.test".to_owned(),
                pid: 1234,
                client: ([127, 0, 0, 1], 2).into(),
                peer: ([127, 0, 0, 1], 3).into(),
                admin: ([127, 0, 0, 1], 4).into(),
                ca: "/lab/ca.pem".into(),
                config: "/lab/skiserver.toml".into(),
                database: "/lab/skiserver.db".into(),
                auth_codes: "/lab/auth_codes.jsonl".into(),
            }],
        };

        manifest.save(&file).must();

        assert_eq!(Manifest::load(&file).must(), manifest);
        let json: serde_json::Value = serde_json::from_str(&files::read(&file).must()).must();
        let expected = serde_json::json!({
            "dns": "127.0.0.1:1",
            "domains": [{
                "domain": "a.test", "pid": 1234, "client": "127.0.0.1:2", "peer": "127.0.0.1:3",
                "admin": "127.0.0.1:4", "ca": "/lab/ca.pem", "config": "/lab/skiserver.toml",
                "database": "/lab/skiserver.db", "auth_codes": "/lab/auth_codes.jsonl",
            }],
        });
        assert_eq!(json, expected);
    }
}
