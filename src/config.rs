//! The configuration: one TOML file and `SKISERVER__…` variables over it, checked once at start. Nothing
//! else reads the environment. Relative paths are taken from the file's folder.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{address::Domain, limits::Limits};

/// Why a configuration is refused, in words for the person who wrote it.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {reason}")]
pub struct ConfigError {
    file: String,
    reason: String,
}

/// All settings of a node.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The domain that this node serves.
    pub domain: String,
    /// The `o` of the signing certificate; the domain if empty.
    #[serde(default)]
    pub operator: String,
    /// Where the doors listen.
    #[serde(default)]
    pub doors: Doors,
    /// Certificates of the doors.
    pub tls: Tls,
    /// The database.
    #[serde(default)]
    pub store: StoreSettings,
    /// Name servers.
    #[serde(default)]
    pub dns: Dns,
    /// Which domains may talk to us, and what proves them.
    #[serde(default)]
    pub federation: Federation,
    /// Exceptions for single domains.
    #[serde(default)]
    pub peer: Vec<Peer>,
    /// How auth codes reach people.
    pub codes: Codes,
    /// Who may register, with what.
    #[serde(default)]
    pub accounts: Accounts,
    /// Switches about keys and signatures.
    #[serde(default)]
    pub keys: Keys,
    /// Logs.
    #[serde(default)]
    pub log: Log,
    /// Bounds.
    #[serde(default)]
    pub limits: Limits,
}

/// Where the doors listen.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Doors {
    /// Users' apps.
    pub client: SocketAddr,
    /// Other domains.
    pub peer: SocketAddr,
    /// The operator; loopback only.
    pub admin: SocketAddr,
}

impl Default for Doors {
    fn default() -> Self {
        Self {
            client: ([0, 0, 0, 0], 7443).into(),
            peer: ([0, 0, 0, 0], 7444).into(),
            admin: ([127, 0, 0, 1], 7445).into(),
        }
    }
}

/// Certificates of the doors, as PEM files that are read again when they change.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The chain, leaf first.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Another chain for the peer door and for calls to peers.
    pub peer_certificate: Option<PathBuf>,
    /// The private key of that one.
    pub peer_key: Option<PathBuf>,
}

/// The database.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreSettings {
    /// The SQLite file.
    pub path: PathBuf,
    /// Connections that only read.
    pub readers: u32,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            path: "skiserver.db".into(),
            readers: 4,
        }
    }
}

/// Name servers.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dns {
    /// Asked instead of the system's, if any are named.
    pub servers: Vec<SocketAddr>,
}

/// Which domains may talk to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// All.
    #[default]
    Open,
    /// Only those listed; an empty list means nobody.
    Allow,
    /// All but those listed.
    Deny,
}

/// Which domains may talk to us, and what proves them.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Federation {
    /// How `domains` is meant.
    pub policy: Policy,
    /// The list of the policy.
    pub domains: Vec<String>,
    /// Private certificate authorities, PEM.
    pub ca_files: Vec<PathBuf>,
    /// Also trust the public authorities.
    pub public_roots: bool,
    /// Revocation lists, PEM.
    pub crl_files: Vec<PathBuf>,
}

impl Default for Federation {
    fn default() -> Self {
        Self {
            policy: Policy::Open,
            domains: Vec::new(),
            ca_files: Vec::new(),
            public_roots: true,
            crl_files: Vec::new(),
        }
    }
}

/// Exceptions for one domain.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Which domain.
    pub domain: String,
    /// `host:port` that is dialled instead of asking DNS.
    pub address: Option<String>,
    /// Authorities that are trusted for this domain instead of the federation's.
    #[serde(default)]
    pub ca_files: Vec<PathBuf>,
    /// Trust the public authorities for this domain.
    #[serde(default)]
    pub public_roots: bool,
    /// `sha256/…` pins of the public key; they replace the check of the chain.
    #[serde(default)]
    pub pins: Vec<String>,
}

/// How auth codes reach people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Delivery {
    /// By mail.
    Smtp,
    /// By a POST to a URL of the operator's.
    Webhook,
    /// Into a file, for labs and development only.
    File,
}

/// How auth codes reach people.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Codes {
    /// Which of the tables below is used.
    pub delivery: Delivery,
    /// For `smtp`.
    pub smtp: Option<Smtp>,
    /// For `webhook`.
    pub webhook: Option<Webhook>,
    /// For `file`.
    pub file: Option<CodeFile>,
}

/// The mail server that takes auth codes.
#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Smtp {
    /// Its name, as its certificate has it.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Who signs in; nobody if absent.
    pub user: Option<String>,
    /// The password of that user.
    #[serde(skip_serializing)]
    pub password: Option<String>,
    /// The sender of the mails.
    pub from: String,
    /// How the connection is protected.
    pub tls: SmtpTls,
}

impl std::fmt::Debug for Smtp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Smtp({}:{})", self.host, self.port)
    }
}

/// How a connection to a mail server is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SmtpTls {
    /// Plain first, then upgraded; refused if the server can't.
    Starttls,
    /// From the first byte.
    Implicit,
    /// Not at all: for a relay on the same host.
    None,
}

/// The operator's own service that takes auth codes.
#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// Where the JSON is posted.
    pub url: String,
    /// Sent as bearer token, if any.
    #[serde(skip_serializing)]
    pub bearer: Option<String>,
}

impl std::fmt::Debug for Webhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Webhook")
    }
}

/// A file of JSON lines.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CodeFile {
    /// The file; it is made if it does not exist.
    pub path: PathBuf,
}

/// Who may register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Registration {
    /// Whoever proves an authenticator, or holds an invitation.
    #[default]
    Open,
    /// New users need an invitation; further devices of a user need a code.
    Invitation,
}

/// Who may register, with what.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Accounts {
    /// Who may register.
    pub registration: Registration,
    /// Packs that a device may use; all that we know if empty.
    pub allowed_e2ee_pack_ids: Vec<u32>,
}

/// Switches about keys and signatures.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Keys {
    /// Ask devices for more one-time pre-keys. Off, because the current client library loses the private
    /// halves of what it uploads then (contract section 7.3).
    pub supply_opks: bool,
    /// Sign each delivered message.
    pub sign_messages: bool,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            supply_opks: false,
            sign_messages: true,
        }
    }
}

/// The shape of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

/// Logs.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// The shape of a line.
    pub format: LogFormat,
    /// Which lines, as `tracing` reads it.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            filter: "info,hickory_server=error,hickory_resolver=error,hickory_net=error,hickory_proto=error".into(),
        }
    }
}

impl Config {
    /// Reads `file` with the environment over it, and checks what can be checked without opening anything else.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let fail = |reason: String| ConfigError {
            file: file.display().to_string(),
            reason,
        };
        if !file.is_file() {
            return Err(fail("no such file".to_owned()));
        }
        let mut config: Self = config::Config::builder()
            .add_source(config::File::from(file).format(config::FileFormat::Toml))
            .add_source(
                config::Environment::with_prefix("SKISERVER")
                    .prefix_separator("__")
                    .separator("__"),
            )
            .build()
            .and_then(config::Config::try_deserialize)
            .map_err(|error| fail(error.to_string()))?;
        let folder = file.parent().map(Path::to_path_buf).unwrap_or_default();
        config.resolve(&std::path::absolute(&folder).unwrap_or(folder));
        config.check().map_err(fail)?;
        Ok(config)
    }

    /// The domain, which [`Config::load`] has checked.
    pub fn domain(&self) -> crate::error::Result<Domain> {
        Domain::parse(&self.domain)
    }

    /// The name of whoever runs this node, never empty.
    pub fn operator(&self) -> &str {
        if self.operator.is_empty() {
            &self.domain
        } else {
            &self.operator
        }
    }

    fn resolve(&mut self, folder: &Path) {
        let codes = self.codes.file.iter_mut().map(|f| &mut f.path);
        let peers = self.peer.iter_mut().flat_map(|p| p.ca_files.iter_mut());
        let tls = [&mut self.tls.certificate, &mut self.tls.key];
        let own = self
            .tls
            .peer_certificate
            .iter_mut()
            .chain(self.tls.peer_key.iter_mut());
        let federation = self
            .federation
            .ca_files
            .iter_mut()
            .chain(self.federation.crl_files.iter_mut());
        let all = codes.chain(peers).chain(tls).chain(own).chain(federation);
        for path in all.chain([&mut self.store.path]) {
            *path = folder.join(&*path);
        }
    }

    fn check(&mut self) -> Result<(), String> {
        let domain =
            |text: &str| Domain::parse(text).map_err(|_| format!("{text:?} is not a domain name"));
        self.domain = domain(&self.domain)?.as_str().to_owned();
        for listed in &mut self.federation.domains {
            *listed = domain(listed)?.as_str().to_owned();
        }
        for peer in &mut self.peer {
            peer.domain = domain(&peer.domain)?.as_str().to_owned();
        }
        if !self.doors.admin.ip().is_loopback() {
            return Err("doors.admin must be a loopback address: it has no password".to_owned());
        }
        if self.tls.peer_certificate.is_some() != self.tls.peer_key.is_some() {
            return Err("tls.peer_certificate and tls.peer_key go together".to_owned());
        }
        let codes = &self.codes;
        let missing = match codes.delivery {
            Delivery::Smtp if codes.smtp.is_none() => Some("codes.smtp"),
            Delivery::Webhook if codes.webhook.is_none() => Some("codes.webhook"),
            Delivery::File if codes.file.is_none() => Some("codes.file"),
            _ => None,
        };
        if let Some(table) = missing {
            return Err(format!("codes.delivery asks for the table [{table}]"));
        }
        if self.store.readers == 0 {
            return Err("store.readers must be at least 1".to_owned());
        }
        Ok(())
    }
}
