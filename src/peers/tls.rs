//! The wire of a running node: channels that find a domain by DNS and prove both sides by certificates.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::{
    channel::{Channels, PeerError as ChannelError},
    wire::{self, PeerError, Wire},
};
use crate::{address::Domain, identity::Identity};

/// Requests over mutual TLS.
pub(super) struct Tls {
    channels: Arc<Channels>,
    identity: Arc<Identity>,
    bytes_max: usize,
}

impl Tls {
    pub(super) fn new(channels: Channels, identity: Arc<Identity>, bytes_max: usize) -> Self {
        Self {
            channels: Arc::new(channels),
            identity,
            bytes_max,
        }
    }
}

impl Wire for Tls {
    fn may_talk(&self, domain: &Domain) -> bool {
        self.identity.current().trust().may_talk(domain)
    }

    fn call<'a>(
        &'a self,
        domain: &'a Domain,
        path: &'a str,
        request: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Bytes, PeerError>> {
        let bytes_max = self.bytes_max;
        Box::pin(async move {
            let rpc = |channel, request| wire::unary(channel, path, request, bytes_max);
            let answer = self.channels.call(domain, deadline, request, rpc).await;
            answer.map_err(|error| match error {
                ChannelError::Failed(text) => PeerError::Failed(text),
                other => PeerError::Silent(other.to_string()),
            })
        })
    }

    fn tidy(&self, stop: CancellationToken) -> BoxFuture<'static, ()> {
        let channels = Arc::clone(&self.channels);
        Box::pin(async move { channels.tidy(stop).await })
    }
}
