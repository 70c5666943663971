//! Calls to a node's peer door, with any certificate, or none, and any header.

use std::{io, net::SocketAddr, sync::Arc};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, ConfigBuilder, WantsVerifier, pki_types::ServerName, version::TLS13};
use skiserver::{lab::ca::Issued, proto::skiserver::e2ee_s2s_service_client::E2eeS2sServiceClient};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use super::{Scripted, door};
use crate::lab::Lab;

/// The methods of a peer door, as generated.
pub(crate) type PeerMethods = E2eeS2sServiceClient<InterceptedService<Channel, Header>>;

/// Who calls.
#[derive(Clone, Default)]
pub(crate) struct Dialler {
    /// The certificate that is shown, if any.
    pub(crate) issued: Option<Arc<Issued>>,
    /// The metadata `skiserver-domain`, if any.
    pub(crate) header: Option<String>,
}

/// Puts the domain into the metadata of every call.
#[derive(Clone)]
pub(crate) struct Header(Option<MetadataValue<Ascii>>);

impl Interceptor for Header {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(domain) = &self.0 {
            let metadata = request.metadata_mut();
            metadata.insert("skiserver-domain", domain.clone());
        }
        Ok(request)
    }
}

impl Scripted {
    /// The peer's own certificate and name.
    pub(crate) fn dialler(&self) -> Dialler {
        Dialler {
            issued: Some(Arc::clone(&self.issued)),
            header: Some(self.domain.to_string()),
        }
    }

    /// Calls a node as itself.
    pub(crate) fn calls(&self, lab: &Lab, domain: &str) -> PeerMethods {
        self.dialler().calls(lab, domain)
    }

    /// A bare channel to a node, as itself but for the header.
    pub(crate) fn channel(&self, lab: &Lab, domain: &str) -> Channel {
        self.dialler().channel(lab, domain)
    }
}

impl Dialler {
    /// The methods of a node's peer door.
    pub(crate) fn calls(&self, lab: &Lab, domain: &str) -> PeerMethods {
        let header = self.header.as_ref().map(|name| name.parse().unwrap());
        E2eeS2sServiceClient::with_interceptor(self.channel(lab, domain), Header(header))
            .max_decoding_message_size(16 << 20)
    }

    /// A channel to a node's peer door that opens with the first call.
    pub(crate) fn channel(&self, lab: &Lab, domain: &str) -> Channel {
        let tls = ClientConfig::builder_with_protocol_versions(&[&TLS13]);
        let tls = credentials(tls, lab, self.issued.as_deref());
        channel(domain, lab.config(domain).doors.peer, tls)
    }
}

/// A client that trusts the lab's authority and shows this certificate, if any.
pub(crate) fn credentials(
    tls: ConfigBuilder<ClientConfig, WantsVerifier>,
    lab: &Lab,
    issued: Option<&Issued>,
) -> ClientConfig {
    let tls = tls.with_root_certificates(door::roots(lab.authority.certificate_pem()));
    let mut tls = match issued {
        Some(issued) => {
            let (chain, key) = door::pair(issued);
            tls.with_client_auth_cert(chain, key).unwrap()
        }
        None => tls.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![b"h2".to_vec()];
    tls
}

/// Opens a connection as far as the client sees it: what the other side thinks of its certificate comes later.
pub(crate) async fn handshake(
    domain: &str,
    address: SocketAddr,
    tls: ClientConfig,
) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(domain.to_owned()).unwrap();
    let tcp = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(tls)).connect(name, tcp).await
}

/// A channel to `address`, whose certificate must name `domain`.
fn channel(domain: &str, address: SocketAddr, tls: ClientConfig) -> Channel {
    let name = domain.to_owned();
    let dial = tower::service_fn(move |_: Uri| {
        let (name, tls) = (name.clone(), tls.clone());
        async move { handshake(&name, address, tls).await.map(TokioIo::new) }
    });
    Endpoint::from_shared(format!("http://{domain}"))
        .unwrap()
        .origin(format!("https://{domain}").parse().unwrap())
        .connect_with_connector_lazy(dial)
}
