//! How auth codes leave the node: by mail, through the operator's webhook, or into a file for labs. A code and
//! whom it is for are never logged.

use std::{path::PathBuf, sync::Arc, time::Duration};

use lettre::{
    AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor,
    message::{Mailbox, header::ContentType},
    transport::smtp::{
        PoolConfig,
        authentication::Credentials,
        client::{Tls, TlsParameters},
        extension::ClientId,
    },
};
use serde::Serialize;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use crate::{
    authenticator::Authenticator,
    config::{Codes, Config, Delivery, SmtpTls},
    error::{Error, Result},
    limits,
};

/// A mail server that is silent for so long is given up.
const SMTP_COMMAND_PATIENCE: Duration = Duration::from_secs(10);
/// One mail, with connecting and signing in.
const SMTP_PATIENCE: Duration = Duration::from_secs(30);
/// Connections to the mail server.
const SMTP_CONNECTIONS_MAX: u32 = 4;
/// One call of the webhook.
const WEBHOOK_PATIENCE: Duration = Duration::from_secs(5);

/// The configured way for auth codes. Copies share its connections.
#[derive(Clone)]
pub struct CodeGateway {
    way: Arc<Way>,
    under_way: Arc<Semaphore>,
}

enum Way {
    Smtp(Box<Smtp>),
    Webhook(Webhook),
    File(CodeFile),
}

/// A code on its way to a person.
pub struct Dispatch {
    /// Whom it is for.
    pub authenticator: Authenticator,
    /// The digits.
    pub code: String,
    /// When it ends, Unix ms.
    pub expires_at: i64,
    /// For how many minutes it is valid, as a person is told.
    pub minutes: u32,
}

/// The right to send one code, so that a silent mail server can't pile up tasks.
pub struct Slot(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

/// What webhooks and files get.
#[derive(Serialize)]
struct Line<'a> {
    authenticator: &'a str,
    code: &'a str,
    expires_at: i64,
}

impl CodeGateway {
    /// The way that the configuration names. Opens no connection, but refuses what can't work.
    pub fn new(config: &Config) -> Result<Self> {
        let codes = &config.codes;
        let way = match codes.delivery {
            Delivery::Smtp => Way::Smtp(Box::new(Smtp::new(codes, &config.domain)?)),
            Delivery::Webhook => Way::Webhook(Webhook::new(codes)?),
            Delivery::File => Way::File(CodeFile::new(codes)?),
        };
        Ok(Self {
            way: Arc::new(way),
            under_way: Arc::new(Semaphore::new(limits::CODES_UNDER_WAY_MAX)),
        })
    }

    /// Whether this way reaches the authenticator at all: a mail server sends no text messages.
    pub fn reaches(&self, authenticator: &Authenticator) -> bool {
        !matches!(*self.way, Way::Smtp(_)) || authenticator.mail_address().is_some()
    }

    /// Whether sending is quick and local, so that it is done before the asker is answered.
    pub fn is_immediate(&self) -> bool {
        matches!(*self.way, Way::File(_))
    }

    /// Takes the right to send a code, or says that too many are on their way.
    pub fn slot(&self) -> Result<Slot> {
        let permit = Arc::clone(&self.under_way).try_acquire_owned();
        permit
            .map(Slot)
            .map_err(|_| Error::Busy("too many codes are on their way"))
    }

    /// Sends a code, within a deadline. Nobody is told but the operator when it fails.
    pub async fn send(&self, _slot: Slot, dispatch: Dispatch) -> Result<()> {
        let sent = match &*self.way {
            Way::Smtp(smtp) => smtp.send(&dispatch).await,
            Way::Webhook(webhook) => webhook.send(&dispatch).await,
            Way::File(file) => file.send(&dispatch).await,
        };
        let outcome = if sent.is_ok() { "sent" } else { "failed" };
        metrics::counter!("skiserver_auth_codes_total", "outcome" => outcome).increment(1);
        sent
    }
}

fn unusable(key: &str, why: impl std::fmt::Display) -> Error {
    Error::internal(format!("{key}: {why}"))
}

struct Smtp {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
    domain: String,
}

impl Smtp {
    fn new(codes: &Codes, domain: &str) -> Result<Self> {
        let settings = codes
            .smtp
            .as_ref()
            .ok_or_else(|| unusable("codes.smtp", "missing"))?;
        let tls = || {
            TlsParameters::new(settings.host.clone())
                .map_err(|error| unusable("codes.smtp.host", error))
        };
        let tls = match settings.tls {
            SmtpTls::Starttls => Tls::Required(tls()?),
            SmtpTls::Implicit => Tls::Wrapper(tls()?),
            SmtpTls::None => Tls::None,
        };
        let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&settings.host)
            .port(settings.port)
            .tls(tls)
            .hello_name(ClientId::Domain(domain.to_owned()))
            .timeout(Some(SMTP_COMMAND_PATIENCE))
            .pool_config(PoolConfig::new().max_size(SMTP_CONNECTIONS_MAX));
        if let (Some(user), Some(password)) = (&settings.user, &settings.password) {
            transport = transport.credentials(Credentials::new(user.clone(), password.clone()));
        }
        Ok(Self {
            transport: transport.build(),
            from: settings
                .from
                .parse()
                .map_err(|error| unusable("codes.smtp.from", error))?,
            domain: domain.to_owned(),
        })
    }

    async fn send(&self, dispatch: &Dispatch) -> Result<()> {
        let address = dispatch
            .authenticator
            .mail_address()
            .ok_or_else(|| Error::internal("a mail server sends to mail addresses only"))?;
        let address = address
            .parse()
            .map_err(|_| Error::internal("the mail library refuses the address"))?;
        let mail = Message::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, address))
            .subject(format!("{}: your code", self.domain))
            .header(ContentType::TEXT_PLAIN)
            .body(format!(
                "Your code for {} is\r\n\r\n    {}\r\n\r\nIt is valid for {} minutes. If you did not ask for it, \
                 ignore this mail; give the code to nobody.\r\n",
                self.domain, dispatch.code, dispatch.minutes
            ))
            .map_err(Error::internal)?;
        tokio::time::timeout(SMTP_PATIENCE, self.transport.send(mail))
            .await
            .map_err(|_| Error::internal("the mail server is too slow"))?
            // The server's own words may repeat the address, so only their kind is kept.
            .map_err(|error| Error::internal(smtp_failure(&error)))?;
        Ok(())
    }
}

fn smtp_failure(error: &lettre::transport::smtp::Error) -> &'static str {
    if error.is_permanent() {
        "the mail server refuses the mail for good"
    } else if error.is_transient() {
        "the mail server refuses the mail for the moment"
    } else if error.is_tls() {
        "TLS with the mail server failed"
    } else if error.is_timeout() {
        "the mail server is too slow"
    } else {
        "the mail server can't be reached or does not speak SMTP"
    }
}

struct Webhook {
    client: reqwest::Client,
    url: reqwest::Url,
    bearer: Option<String>,
}

impl Webhook {
    fn new(codes: &Codes) -> Result<Self> {
        let settings = codes
            .webhook
            .as_ref()
            .ok_or_else(|| unusable("codes.webhook", "missing"))?;
        let url: reqwest::Url = settings
            .url
            .parse()
            .map_err(|error| unusable("codes.webhook.url", error))?;
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(WEBHOOK_PATIENCE);
        let client = match url.scheme() {
            "https" => client,
            // A service on the same host needs no authorities, and a slim container has none.
            "http" => client.tls_certs_only([]),
            _ => {
                return Err(unusable("codes.webhook.url", "neither https nor http"));
            }
        };
        Ok(Self {
            client: client
                .build()
                .map_err(|error| unusable("codes.webhook", error))?,
            url,
            bearer: settings.bearer.clone(),
        })
    }

    async fn send(&self, dispatch: &Dispatch) -> Result<()> {
        let mut call = self.client.post(self.url.clone()).json(&Line {
            authenticator: dispatch.authenticator.canonical(),
            code: &dispatch.code,
            expires_at: dispatch.expires_at,
        });
        if let Some(bearer) = &self.bearer {
            call = call.bearer_auth(bearer);
        }
        let answer = call
            .send()
            .await
            // The URL may hold a secret of the operator's.
            .map_err(|error| Error::internal(error.without_url()))?;
        if answer.status().is_success() {
            Ok(())
        } else {
            let status = answer.status();
            Err(Error::internal(format!("the webhook answers {status}")))
        }
    }
}

struct CodeFile {
    path: PathBuf,
    /// Lines are written whole, one after another.
    turn: Mutex<()>,
}

impl CodeFile {
    fn new(codes: &Codes) -> Result<Self> {
        let settings = codes
            .file
            .as_ref()
            .ok_or_else(|| unusable("codes.file", "missing"))?;
        tracing::warn!(
            path = %settings.path.display(),
            "AUTH CODES ARE WRITTEN TO A FILE: whoever reads it can register as anybody. For labs and development only"
        );
        Ok(Self {
            path: settings.path.clone(),
            turn: Mutex::default(),
        })
    }

    /// Appends a line, which is on disk when this returns. It names the authenticator as it was asked for, so
    /// that a test finds what it sent.
    async fn send(&self, dispatch: &Dispatch) -> Result<()> {
        let mut line = serde_json::to_vec(&Line {
            authenticator: dispatch.authenticator.asked(),
            code: &dispatch.code,
            expires_at: dispatch.expires_at,
        })
        .map_err(Error::internal)?;
        line.push(b'\n');
        let path = self.path.clone();
        let _turn = self.turn.lock().await;
        tokio::task::spawn_blocking(move || append(&path, &line))
            .await
            .map_err(Error::internal)?
            .map_err(Error::internal)
    }
}

fn append(path: &std::path::Path, line: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    let mut options = std::fs::OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(line)?;
    file.sync_data()
}

#[cfg(test)]
mod tests;
