//! Outcomes and response codes, both ways. The only file that names `ResponseCode` or builds a `Status`.

use prost::Message;
use tonic::{Response, Status};

use crate::{
    address::Domain,
    error::{Error, Result},
    limits,
    proto::{
        skiserver::*,
        skissm::{ResponseCode, *},
    },
};

/// An answer that carries a code and a text, as all of them do.
pub trait Reply: Message + Default + 'static {
    /// The code on the wire.
    fn code(&self) -> i32;
    /// The words beside it.
    fn text(&self) -> &str;
    /// Puts code and words on the answer.
    fn stamp(&mut self, code: i32, text: String);
}

macro_rules! replies {
    ($($reply:ident)*) => {
        $(impl Reply for $reply {
            fn code(&self) -> i32 {
                self.code
            }
            fn text(&self) -> &str {
                &self.msg
            }
            fn stamp(&mut self, code: i32, text: String) {
                self.code = code;
                self.msg = text;
            }
        })*
    };
}

replies! {
    AcceptResponse AcquireAuthCodeResponse AcquireGroupMemberInfosResponse AcquireServerInfoResponse
    AddFriendResponse AddGroupMemberDeviceResponse AddGroupMembersResponse AskUserIdAvailableResponse
    BackupMsgResponse BlockFriendResponse ConsumeProtoMsgResponse CreateGroupResponse DownloadMsgResponse
    FindUserResponse GetFriendsResponse GetGroupResponse GetPreKeyBundleResponse GetUserResponse InviteResponse
    JoinGroupResponse LeaveGroupResponse LoginResponse LogoutResponse MemoFriendResponse PublishSpkResponse
    RegisterUserResponse RemoveFriendResponse RemoveGroupMembersResponse RemoveUserDeviceResponse
    SendGroupMsgResponse SendOne2oneMsgResponse SubmitProtoMsgResponse SupplyOpksResponse UnBlockFriendResponse
    UpdateAuthenticatorResponse UpdateGroupManagersResponse UpdateGroupNameResponse UpdateMsgBackupKeyResponse
    UpdatePushIdResponse UpdateUserNameResponse UpdateUserPrivacyResponse
}

/// What every answer of a peer begins with; the rest is skipped.
#[derive(Clone, PartialEq, Message)]
pub struct Verdict {
    /// The code on the wire.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// The words beside it.
    #[prost(string, tag = "2")]
    pub msg: String,
}

/// What a delivery from the outbox does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// The peer has it on disk.
    Done,
    /// It can succeed later.
    Retry(String),
    /// It never will.
    Final(i32, String),
}

impl Verdict {
    /// Sorts a peer's code into done, later and never (architecture, section 7).
    pub fn fate(self) -> Fate {
        let text: String = self.msg.chars().take(limits::PEER_TEXT_CHARS_MAX).collect();
        match ResponseCode::try_from(self.code) {
            Ok(ResponseCode::Ok) => Fate::Done,
            Ok(
                ResponseCode::BadRequest
                | ResponseCode::Forbidden
                | ResponseCode::NotFound
                | ResponseCode::RequestConflict,
            ) => Fate::Final(self.code, text),
            _ => Fate::Retry(format!("code {}: {text}", self.code)),
        }
    }
}

/// The code of a request that this domain refuses in the peer's place.
pub const FORBIDDEN: i32 = ResponseCode::Forbidden as i32;

/// Whether a peer's code is its last word: asking again never helps.
pub fn is_final(code: i32) -> bool {
    let msg = String::new();
    matches!(Verdict { code, msg }.fate(), Fate::Final(..))
}

/// Whether a peer's final code says that the device or user does not exist.
pub fn is_not_found(code: i32) -> bool {
    code == ResponseCode::NotFound as i32
}

fn code_of(error: &Error) -> ResponseCode {
    match error {
        Error::Invalid(_) | Error::NotHere => ResponseCode::BadRequest,
        Error::Unauthenticated(_) => ResponseCode::Unauthorized,
        Error::Forbidden(_) => ResponseCode::Forbidden,
        Error::NotFound(_) => ResponseCode::NotFound,
        Error::Conflict(_) => ResponseCode::RequestConflict,
        Error::Empty => ResponseCode::NoContent,
        Error::Throttled(_) => ResponseCode::ExpectationFailed,
        Error::Busy(_) | Error::Unreachable(_) | Error::NotYet => ResponseCode::ServiceUnavailable,
        Error::Internal(_) => ResponseCode::InternalServerError,
        // A peer's 401 or 5xx is about us and it, and our caller would take it as its own.
        Error::Refused { code, .. } => match ResponseCode::try_from(*code) {
            Ok(
                code @ (ResponseCode::NoContent
                | ResponseCode::BadRequest
                | ResponseCode::Forbidden
                | ResponseCode::NotFound
                | ResponseCode::RequestConflict
                | ResponseCode::ExpectationFailed),
            ) => code,
            _ => ResponseCode::ServiceUnavailable,
        },
    }
}

/// Puts the code on whatever came out. What only the operator can mend is logged here, once.
pub fn stamp<R: Reply>(rpc: &'static str, outcome: Result<R>) -> Response<R> {
    let (mut reply, code, text) = match outcome {
        Ok(reply) => (reply, ResponseCode::Ok, String::new()),
        Err(error) => {
            if let Error::Internal(cause) = &error {
                tracing::error!(rpc, %cause, "a call failed");
            }
            (R::default(), code_of(&error), error.to_string())
        }
    };
    metrics::counter!("skiserver_calls_total", "rpc" => rpc, "code" => (code as i32).to_string())
        .increment(1);
    reply.stamp(code as i32, text);
    Response::new(reply)
}

/// A peer's answer as ours: 200 passes, everything else is the error that it stands for.
pub fn from_peer<R: Reply>(domain: &Domain, reply: R) -> Result<R> {
    match ResponseCode::try_from(reply.code()) {
        Ok(ResponseCode::Ok) => Ok(reply),
        Ok(ResponseCode::NoContent) => Err(Error::Empty),
        _ => Err(Error::Refused {
            domain: domain.clone(),
            code: reply.code(),
            message: reply
                .text()
                .chars()
                .take(limits::PEER_TEXT_CHARS_MAX)
                .collect(),
        }),
    }
}

/// The end of a stream whose token is missing, expired or revoked.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the place that builds them"
)]
pub fn unauthenticated(text: &'static str) -> Status {
    Status::new(tonic::Code::Unauthenticated, text)
}

/// The end of a stream that another took over, or that a draining node closes.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the place that builds them"
)]
pub fn ended(text: &'static str) -> Status {
    Status::new(tonic::Code::Aborted, text)
}

/// A node that can't take a stream just now.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the place that builds them"
)]
pub fn unavailable(text: &'static str) -> Status {
    Status::new(tonic::Code::Unavailable, text)
}

/// A request at the peer door that names a domain its certificate does not prove.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the place that builds them"
)]
pub fn denied(text: &'static str) -> Status {
    Status::new(tonic::Code::PermissionDenied, text)
}
