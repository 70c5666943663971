//! One node of a lab as files in a folder: its certificate, its configuration and what it writes itself.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use super::{
    LabError,
    ca::{Authority, LeafRequest},
    dns::{self, Entry},
    files::{self, Access},
};
use crate::address::Domain;

const CONFIGURATION: &str = include_str!("../../federation/node.template.toml");
const ZONE: &str = include_str!("../../federation/zone.template");

/// Where the doors of a node listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doors {
    /// Users' apps.
    pub client: SocketAddr,
    /// Other domains.
    pub peer: SocketAddr,
    /// The operator.
    pub admin: SocketAddr,
}

impl Doors {
    /// All on loopback, at ports that the system chooses.
    pub fn anywhere() -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            client: any,
            peer: any,
            admin: any,
        }
    }
}

/// The folder of one node.
#[derive(Debug, Clone)]
pub struct NodeFolder {
    path: PathBuf,
}

impl NodeFolder {
    /// The node in `path`, which must be absolute if its paths are to go into `lab.json`.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Writes everything that the node needs to start: `ca.pem`, a fresh `node.pem` and `node.key`, and the
    /// configuration. What an earlier run stored stays.
    pub fn prepare(
        &self,
        domain: &Domain,
        doors: &Doors,
        dns: SocketAddr,
        authority: &Authority,
    ) -> Result<(), LabError> {
        files::folder(&self.path)?;
        files::write(
            &self.ca(),
            authority.certificate_pem().as_bytes(),
            Access::Public,
        )?;
        self.renew(authority, &LeafRequest::new(domain.as_str()))?;
        let text = configuration(domain, doors, dns);
        files::write(&self.config(), text.as_bytes(), Access::Public)
    }

    /// Replaces the node's certificate and key.
    pub fn renew(&self, authority: &Authority, request: &LeafRequest) -> Result<(), LabError> {
        authority
            .issue(request)?
            .save(&self.path.join("node.pem"), &self.path.join("node.key"))
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What its clients and peers trust.
    pub fn ca(&self) -> PathBuf {
        self.path.join("ca.pem")
    }

    /// What `skiserver serve --config` takes.
    pub fn config(&self) -> PathBuf {
        self.path.join("skiserver.toml")
    }

    /// The database.
    pub fn database(&self) -> PathBuf {
        self.path.join("skiserver.db")
    }

    /// The JSON lines with the auth codes of new users.
    pub fn auth_codes(&self) -> PathBuf {
        self.path.join("auth_codes.jsonl")
    }

    /// Where the lab puts what the node says.
    pub fn log(&self) -> PathBuf {
        self.path.join("node.log")
    }
}

/// The configuration of a lab's node. Its paths are those of [`NodeFolder`], relative to itself.
pub fn configuration(domain: &Domain, doors: &Doors, dns: SocketAddr) -> String {
    CONFIGURATION
        .replace("{{domain}}", domain.as_str())
        .replace("{{client}}", &doors.client.to_string())
        .replace("{{peer}}", &doors.peer.to_string())
        .replace("{{admin}}", &doors.admin.to_string())
        .replace("{{dns}}", &dns.to_string())
}

/// What the DNS says about a domain whose peer door is at `peer`, an IPv4 address.
pub fn zone(domain: &Domain, peer: SocketAddr, ttl_seconds: u32) -> Result<Vec<Entry>, LabError> {
    let text = ZONE
        .replace("{{domain}}", domain.as_str())
        .replace("{{ttl}}", &ttl_seconds.to_string())
        .replace("{{peer_port}}", &peer.port().to_string())
        .replace("{{peer_ip}}", &peer.ip().to_string());
    dns::parse_zone(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Delivery};
    use crate::testing::Must as _;

    #[test]
    fn a_node_loads_the_configuration_that_was_prepared() {
        let dir = tempfile::tempdir().must();
        let folder = NodeFolder::new(dir.path().join("a.test"));
        let domain = Domain::parse("a.test").must();
        let doors = Doors {
            client: ([127, 0, 0, 1], 1001).into(),
            peer: ([127, 0, 0, 1], 1002).into(),
            admin: ([127, 0, 0, 1], 1003).into(),
        };
        let dns = SocketAddr::from(([127, 0, 0, 1], 1004));

        let authority = Authority::generate("test").must();
        folder.prepare(&domain, &doors, dns, &authority).must();

        let config = Config::load(&folder.config()).must();
        assert_eq!(config.domain, "a.test");
        assert_eq!(config.doors.client, doors.client);
        assert_eq!(config.doors.peer, doors.peer);
        assert_eq!(config.doors.admin, doors.admin);
        assert_eq!(config.dns.servers, [dns]);
        assert_eq!(config.store.path, folder.database());
        assert_eq!(config.codes.delivery, Delivery::File);
        assert_eq!(config.codes.file.must().path, folder.auth_codes());
        assert_eq!(config.federation.ca_files, [folder.ca()]);
        assert!(!config.federation.public_roots && config.keys.supply_opks);
        assert!(config.tls.certificate.is_file() && config.tls.key.is_file());
        assert!(!files::read(&folder.config()).must().contains("{{"));
    }

    #[test]
    fn the_zone_leads_to_the_peer_door() {
        let domain = Domain::parse("a.test").must();

        let entries = zone(&domain, ([127, 0, 0, 1], 7444).into(), 5).must();

        let [srv, host] = entries.as_slice() else {
            panic!("{entries:?}");
        };
        assert_eq!(srv.name, "_skiserver-s2s._tcp.a.test.");
        assert_eq!(host.data, dns::Data::A(Ipv4Addr::LOCALHOST));
        assert_eq!(host.ttl_seconds, 5);
    }
}
