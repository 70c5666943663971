//! The way in: gRPC services, written as tables. This file turns a row into a handler: identify the caller,
//! run the operation as a task of its own, stamp the code. No RPC is named here.

use std::{future::Future, net::IpAddr, sync::Arc};

use tonic::{Request, Response, Status};

use crate::{
    caller::Caller,
    error::{Error, Result},
    node::Node,
    reply::{self, Reply},
};

pub mod admin;
pub mod auth;
pub mod certificate;
pub mod listener;
pub mod peer;
pub mod stream;
pub mod user;

/// Who may call a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    /// Anybody.
    Open,
    /// A device with a valid token.
    User,
    /// A domain with a valid certificate.
    Peer,
}

/// Writes the handlers of a service, one row each: who may call, the method, and the operation that does it.
/// `later` rows are methods of the next release: they know their caller and answer "not available yet".
macro_rules! rpc_table {
    ($service:path => $door:ident { $($who:ident $rpc:ident($request:ty) -> $reply:ty $(= $operation:path)?;)* }) => {
        #[tonic::async_trait]
        impl $service for $door {
            $(async fn $rpc(
                &self,
                request: tonic::Request<$request>,
            ) -> std::result::Result<tonic::Response<$reply>, tonic::Status> {
                $crate::doors::rpc_table!(@row $who self $rpc request $reply $(, $operation)?)
            })*
        }
    };
    (@row open $door:ident $rpc:ident $request:ident $reply:ty, $operation:path) => {
        $crate::doors::rpc_table!(@serve Open $door $rpc $request, $operation)
    };
    (@row user $door:ident $rpc:ident $request:ident $reply:ty, $operation:path) => {
        $crate::doors::rpc_table!(@serve User $door $rpc $request, $operation)
    };
    (@row peer $door:ident $rpc:ident $request:ident $reply:ty, $operation:path) => {
        $crate::doors::rpc_table!(@serve Peer $door $rpc $request, $operation)
    };
    (@row later_user $door:ident $rpc:ident $request:ident $reply:ty) => {
        $crate::doors::not_yet::<_, $reply>($door.node(), $crate::doors::Who::User, stringify!($rpc), $request).await
    };
    (@row later_peer $door:ident $rpc:ident $request:ident $reply:ty) => {
        $crate::doors::not_yet::<_, $reply>($door.node(), $crate::doors::Who::Peer, stringify!($rpc), $request).await
    };
    (@serve $who:ident $door:ident $rpc:ident $request:ident, $operation:path) => {
        $crate::doors::serve(
            $door.node(),
            $crate::doors::Who::$who,
            stringify!($rpc),
            $request,
            async move |node, caller, request| $operation(&node, &caller, request).await,
        )
        .await
    };
}
pub(crate) use rpc_table;

/// Identifies the caller, runs the operation on the node's tasks, so that a client that hangs up stops nothing
/// half-way, and stamps the code on whatever came out.
async fn serve<Rq, Rs, Op, Fut>(
    node: &Arc<Node>,
    who: Who,
    rpc: &'static str,
    request: Request<Rq>,
    operation: Op,
) -> Result<Response<Rs>, Status>
where
    Rs: Reply,
    Op: FnOnce(Arc<Node>, Caller, Rq) -> Fut,
    Fut: Future<Output = Result<Rs>> + Send + 'static,
{
    let started = std::time::Instant::now();
    let caller = match identify(node, who, &request).await {
        Ok(caller) => caller,
        Err(error) => return Ok(reply::stamp(rpc, Err(error))),
    };
    let _place = match &caller {
        Caller::Peer(domain) => match node.budgets.enter(domain) {
            Some(place) => Some(place),
            None => {
                return Ok(reply::stamp(
                    rpc,
                    Err(Error::Busy("too many requests at once")),
                ));
            }
        },
        Caller::Device(_) | Caller::Nobody(_) => None,
    };
    let task = node
        .tasks
        .spawn(operation(Arc::clone(node), caller, request.into_inner()));
    let outcome = task
        .await
        .unwrap_or_else(|error| Err(Error::internal(error)));
    metrics::histogram!("skiserver_call_seconds", "rpc" => rpc).record(started.elapsed());
    Ok(reply::stamp(rpc, outcome))
}

/// Answers for a method of the next release.
async fn not_yet<Rq, Rs: Reply>(
    node: &Arc<Node>,
    who: Who,
    rpc: &'static str,
    request: Request<Rq>,
) -> Result<Response<Rs>, Status> {
    serve(node, who, rpc, request, |_, _, _| {
        std::future::ready(Err::<Rs, _>(Error::NotYet))
    })
    .await
}

/// The caller, from what was verified.
async fn identify<Rq>(node: &Node, who: Who, request: &Request<Rq>) -> Result<Caller> {
    match who {
        Who::Open => Ok(Caller::Nobody(remote(request))),
        Who::User => auth::device(node, request.metadata())
            .await
            .map(|device| Caller::Device(Box::new(device))),
        Who::Peer => {
            certificate::domain(node, request.metadata(), request.extensions()).map(Caller::Peer)
        }
    }
}

/// The network address of the other end; unspecified if the connection did not tell, as in no real door.
fn remote<Rq>(request: &Request<Rq>) -> IpAddr {
    let info = request.extensions().get::<listener::ConnectInfo>();
    info.map_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), |info| {
        info.remote.ip().to_canonical()
    })
}
