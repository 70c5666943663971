//! What a good request is answered, and that each way to spoil it is refused without a trace.

use std::time::Duration;

use skiserver::{proto::skissm::ResponseCode, reply::Reply};
use tonic::{Response, Status};

use super::{Lab, PATIENCE};

/// One way to spoil a request: what is wrong, how it gets wrong, and the code of the answer.
pub(crate) type Spoil<R> = (&'static str, fn(&mut R), ResponseCode);

/// The answer of a unary call, which ends in gRPC `OK` whatever the code is.
pub(crate) async fn answer<R>(call: impl Future<Output = Result<Response<R>, Status>>) -> R {
    within(PATIENCE, "an answer", call)
        .await
        .unwrap_or_else(|status| panic!("the call ended in {status:?}"))
        .into_inner()
}

/// Waits for what must happen, but not for ever.
pub(crate) async fn within<T>(patience: Duration, what: &str, event: impl Future<Output = T>) -> T {
    let happened = tokio::time::timeout(patience, event).await;
    happened.unwrap_or_else(|_| panic!("waited {patience:?} for {what} in vain"))
}

/// Fails unless the answer has this code; shows the words beside the other one.
#[track_caller]
pub(crate) fn assert_code<R: Reply>(reply: &R, code: ResponseCode) {
    let found = ResponseCode::try_from(reply.code());
    assert_eq!(found, Ok(code), "the words: {:?}", reply.text());
}

/// Sends `good` spoiled in every way listed: each is refused with its code and changes nothing in any database.
/// In the end the good one is granted, so it was the spoiling that was refused.
pub(crate) async fn refuses_each<Rq: Clone, Rs: Reply>(
    lab: &Lab,
    good: &Rq,
    spoils: &[Spoil<Rq>],
    call: impl AsyncFn(Rq) -> Result<Response<Rs>, Status>,
) {
    let before = lab.snapshot().await;
    for (what, spoil, code) in spoils {
        let mut request = good.clone();
        spoil(&mut request);
        let reply = answer(call(request)).await;
        assert_eq!(
            ResponseCode::try_from(reply.code()),
            Ok(*code),
            "{what}: {:?}",
            reply.text()
        );
        assert!(!reply.text().is_empty(), "{what}: refused without a word");
        before.assert_same(&lab.snapshot().await, what);
    }
    let reply = answer(call(good.clone())).await;
    assert_code(&reply, ResponseCode::Ok);
}
