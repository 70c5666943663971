//! A peer that misbehaves on cue: its own domain, certificate and name, a peer door that records what it was
//! asked and answers from a script, and calls to real nodes with whatever certificate and header one likes.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use prost::Message;
use skiserver::{
    address::Domain,
    lab::ca::{Issued, LeafRequest},
    proto::skissm::ResponseCode,
    reply::Verdict,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, body::Body, server::NamedService};

use super::{Lab, PATIENCE, free_ports, raw::RawCodec, refusals::within};

mod bundles;
pub(crate) mod dial;
mod door;
mod letters;

pub(crate) use bundles::Target;
pub(crate) use dial::Dialler;

/// What the peer does with a request.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// Answers 200.
    Grant,
    /// Answers another code.
    Refuse(ResponseCode),
    /// Answers with this.
    Reply(Bytes),
    /// Ends the call in a gRPC error.
    Fail(tonic::Code),
    /// Cuts the connection.
    HangUp,
    /// Never answers; cuts nothing.
    Silence,
    /// Decides when it sees the request.
    Judge(fn(&Heard) -> Act),
}

impl Act {
    /// Answers with a message.
    pub(crate) fn reply(message: &impl Message) -> Self {
        Self::Reply(message.encode_to_vec().into())
    }
}

/// How the peer's door treats connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    /// It serves them.
    Awake,
    /// It accepts them and says nothing at all.
    Deaf,
    /// It cuts them at once.
    Gone,
}

/// A request that arrived.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    /// The method, as in the service's definition.
    pub(crate) rpc: String,
    /// The metadata `skiserver-domain`.
    pub(crate) domain: String,
    /// The encoded request.
    pub(crate) body: Bytes,
}

impl Heard {
    /// The request.
    pub(crate) fn request<R: Message + Default>(&self) -> R {
        R::decode(self.body.clone()).unwrap()
    }
}

/// A peer on cue. It lives as long as its lab.
pub(crate) struct Scripted {
    /// The domain that it plays.
    pub(crate) domain: Domain,
    /// Where its door is.
    pub(crate) address: SocketAddr,
    /// The certificate and key that it shows in both directions.
    pub(crate) issued: Arc<Issued>,
    script: Arc<Script>,
    mood: watch::Sender<Mood>,
}

#[derive(Default)]
struct Script {
    /// What comes next for a method, then what comes always.
    cues: Mutex<HashMap<String, VecDeque<Act>>>,
    always: Mutex<HashMap<String, Act>>,
    heard: watch::Sender<Vec<Heard>>,
}

impl Scripted {
    /// A peer with a good certificate of the lab's authority, known to the lab's name server.
    pub(crate) async fn join(lab: &Lab, domain: &str) -> Self {
        let issued = lab.authority.issue(&LeafRequest::new(domain)).unwrap();
        Self::join_as(lab, domain, issued).await
    }

    /// A peer that shows this certificate.
    pub(crate) async fn join_as(lab: &Lab, domain: &str, issued: Issued) -> Self {
        let domain = Domain::parse(domain).unwrap();
        let [address] = free_ports();
        let (issued, script) = (Arc::new(issued), Arc::<Script>::default());
        let mood = watch::Sender::new(Mood::Awake);
        let trusted = lab.authority.certificate_pem().to_owned();
        let stage = Stage {
            script: Arc::clone(&script),
        };
        let door = door::open(
            address,
            door::tls(&issued, &trusted),
            stage,
            mood.subscribe(),
        );
        lab.ground().spawn(door).await.unwrap();
        lab.name(&domain, address);
        Self {
            domain,
            address,
            issued,
            script,
            mood,
        }
    }

    /// Adds to what the peer does with the next requests of a method, one after another.
    pub(crate) fn next(&self, rpc: &str, acts: impl IntoIterator<Item = Act>) {
        let mut cues = self.script.cues.lock().unwrap();
        cues.entry(rpc.to_owned()).or_default().extend(acts);
    }

    /// What the peer does with requests of a method when nothing else comes next; without it, it grants them.
    pub(crate) fn always(&self, rpc: &str, act: Act) {
        let mut always = self.script.always.lock().unwrap();
        always.insert(rpc.to_owned(), act);
    }

    /// How its door treats connections from here on. Those that are open are cut.
    pub(crate) fn turns(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    /// Every request so far.
    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.script.heard.borrow().clone()
    }

    /// The first `count` requests of a method, once they are there.
    pub(crate) async fn hears(&self, rpc: &str, count: usize) -> Vec<Heard> {
        let mut heard = self.script.heard.subscribe();
        let of = |all: &[Heard]| -> Vec<Heard> {
            all.iter().filter(|h| h.rpc == rpc).cloned().collect()
        };
        let enough = heard.wait_for(|all| of(all).len() >= count);
        let what = format!("{count} × {rpc} at {}", self.domain);
        let all = within(PATIENCE, &what, enough).await.unwrap().clone();
        of(&all).into_iter().take(count).collect()
    }
}

/// The service behind the door: any method, one script.
#[derive(Clone)]
struct Stage {
    script: Arc<Script>,
}

impl NamedService for Stage {
    const NAME: &'static str = "skiserver.E2eeS2SService";
}

impl tower::Service<http::Request<Body>> for Stage {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let rpc = path.rsplit('/').next().unwrap_or_default().to_owned();
        let cut = request.extensions().get::<CancellationToken>().cloned();
        let play = Play {
            script: Arc::clone(&self.script),
            rpc,
            cut: cut.unwrap_or_default(),
        };
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(RawCodec);
            Ok(grpc.unary(play, request).await)
        })
    }
}

/// One request on the stage.
struct Play {
    script: Arc<Script>,
    rpc: String,
    cut: CancellationToken,
}

impl tonic::server::UnaryService<Bytes> for Play {
    type Response = Bytes;
    type Future = BoxFuture<'static, Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let header = |name: &str| {
            let value = request.metadata().get(name);
            value.map_or(String::new(), |v| v.to_str().unwrap().to_owned())
        };
        let heard = Heard {
            rpc: self.rpc.clone(),
            domain: header("skiserver-domain"),
            body: request.get_ref().clone(),
        };
        let mut act = self.script.cue(&self.rpc);
        while let Act::Judge(judge) = act {
            act = judge(&heard);
        }
        self.script.heard.send_modify(|all| all.push(heard));
        Box::pin(perform(act, self.cut.clone()))
    }
}

impl Script {
    fn cue(&self, rpc: &str) -> Act {
        let mut cues = self.cues.lock().unwrap_or_else(PoisonError::into_inner);
        let next = cues.get_mut(rpc).and_then(VecDeque::pop_front);
        let always = self.always.lock().unwrap_or_else(PoisonError::into_inner);
        next.or_else(|| always.get(rpc).cloned())
            .unwrap_or(Act::Grant)
    }
}

#[expect(clippy::disallowed_methods, reason = "a peer fails as it likes")]
async fn perform(act: Act, cut: CancellationToken) -> Result<Response<Bytes>, Status> {
    let verdict = |code: ResponseCode| {
        let verdict = Verdict {
            code: code.into(),
            msg: "as scripted".to_owned(),
        };
        Ok(Response::new(verdict.encode_to_vec().into()))
    };
    match act {
        Act::Grant | Act::Judge(_) => verdict(ResponseCode::Ok),
        Act::Refuse(code) => verdict(code),
        Act::Reply(bytes) => Ok(Response::new(bytes)),
        Act::Fail(code) => Err(Status::new(code, "as scripted")),
        Act::HangUp => {
            cut.cancel();
            std::future::pending().await
        }
        Act::Silence => std::future::pending().await,
    }
}
