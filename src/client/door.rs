//! The client door of one node, as an app reaches it: an address, an authority to trust, and the domain that the
//! certificate must name.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    version::TLS13,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use super::ClientError;
use crate::{
    address::Domain,
    lab::manifest::NodeEntry,
    proto::skiserver::{
        e2ee_bidi_service_client::E2eeBidiServiceClient,
        e2ee_unary_service_client::E2eeUnaryServiceClient,
    },
};

/// The largest message that is taken from a node.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Opening a connection may take this long.
const CONNECT: Duration = Duration::from_secs(5);
/// A connection is probed at this interval and given up when a probe is not answered as long.
const PROBE: Duration = Duration::from_secs(10);

/// A channel that sends a device's token along.
pub type TokenChannel = InterceptedService<Channel, Bearer>;
/// All unary methods, as generated.
pub type Unary = E2eeUnaryServiceClient<TokenChannel>;
/// The stream, as generated.
pub type Bidi = E2eeBidiServiceClient<TokenChannel>;

/// Puts a token, if there is one, into the metadata of every call.
#[derive(Clone, Default)]
pub struct Bearer {
    header: Option<MetadataValue<Ascii>>,
}

impl Bearer {
    /// The header of a token.
    pub fn new(token: &str) -> Result<Self, ClientError> {
        let mut header = MetadataValue::try_from(format!("Bearer {token}"))
            .map_err(|_| ClientError::Setup("the token does not fit into a header".to_owned()))?;
        header.set_sensitive(true);
        Ok(Self {
            header: Some(header),
        })
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(header) = &self.header {
            request
                .metadata_mut()
                .insert("authorization", header.clone());
        }
        Ok(request)
    }
}

/// The client door of one node. Copies share one connection, which is opened by the first call and again by the
/// first after it broke.
#[derive(Clone)]
pub struct Door {
    domain: Domain,
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    channel: Channel,
    /// Where the node writes auth codes.
    auth_codes: PathBuf,
}

impl Door {
    /// The door at `address` of a node whose certificate comes from `ca_pem` and names `domain`.
    pub fn new(
        domain: Domain,
        address: SocketAddr,
        ca_pem: &str,
        auth_codes: PathBuf,
    ) -> Result<Self, ClientError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
            certificate
                .map_err(setup)
                .and_then(|der| roots.add(der).map_err(setup))?;
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(setup)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let tls = Arc::new(tls);
        let channel = channel(&domain, address, &tls)?;
        Ok(Self {
            domain,
            address,
            tls,
            channel,
            auth_codes,
        })
    }

    /// The door that `lab.json` describes.
    pub fn of(node: &NodeEntry) -> Result<Self, ClientError> {
        let domain = Domain::parse(&node.domain).map_err(setup)?;
        let ca_pem = std::fs::read_to_string(&node.ca)
            .map_err(|error| setup(format!("{}: {error}", node.ca.display())))?;
        Self::new(domain, node.client, &ca_pem, node.auth_codes.clone())
    }

    /// The same door over a connection of its own.
    pub fn apart(&self) -> Result<Self, ClientError> {
        Ok(Self {
            channel: channel(&self.domain, self.address, &self.tls)?,
            ..self.clone()
        })
    }

    /// The domain behind it.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Where the node writes auth codes.
    pub fn auth_codes(&self) -> &std::path::Path {
        &self.auth_codes
    }

    /// The bare channel, for services that this module does not name.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The unary methods with `bearer`; [`Bearer::default`] sends none.
    pub fn unary(&self, bearer: Bearer) -> Unary {
        E2eeUnaryServiceClient::with_interceptor(self.channel.clone(), bearer)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The stream with `bearer`.
    pub fn bidi(&self, bearer: Bearer) -> Bidi {
        E2eeBidiServiceClient::with_interceptor(self.channel.clone(), bearer)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
    }
}

fn setup(error: impl std::fmt::Display) -> ClientError {
    ClientError::Setup(error.to_string())
}

fn channel(
    domain: &Domain,
    address: SocketAddr,
    tls: &Arc<ClientConfig>,
) -> Result<Channel, ClientError> {
    let name = ServerName::try_from(domain.as_str().to_owned()).map_err(setup)?;
    let connector = TlsConnector::from(Arc::clone(tls));
    let dial = tower::service_fn(move |_: Uri| {
        let (name, connector) = (name.clone(), connector.clone());
        async move {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            let stream = connector.connect(name, tcp).await?;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    // The TLS is ours, so tonic must believe that the URI is plain; the origin is what the node sees.
    let origin: Uri = format!("https://{domain}").parse().map_err(setup)?;
    Ok(Endpoint::from_shared(format!("http://{domain}"))
        .map_err(setup)?
        .origin(origin)
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(PROBE)
        .keep_alive_timeout(PROBE)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(dial))
}
