//! What can go wrong, as one variant for each thing a caller can do about it. No response codes, no tonic:
//! `reply` turns these into answers.

use crate::address::Domain;

/// The result of everything that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One variant for each thing a caller can do about a failure. What only the operator can mend is
/// [`Error::Internal`]: its cause is logged, never sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field is missing, malformed, too long or contradicts another. Sending it again never helps.
    #[error("{0} is not valid")]
    Invalid(&'static str),
    /// No valid token or certificate came with the request.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// The caller is known and may not do this.
    #[error("{0}")]
    Forbidden(&'static str),
    /// The thing named does not exist, as its owner says.
    #[error("no such {0}")]
    NotFound(&'static str),
    /// The thing named is in a state that rules this out: taken, changed meanwhile.
    #[error("{0}")]
    Conflict(&'static str),
    /// Nothing to hand out; only pre-key bundles answer so.
    #[error("nothing to hand out")]
    Empty,
    /// A limit on accounts, codes or backups was reached.
    #[error("{0}")]
    Throttled(&'static str),
    /// This node can't take it just now, and a later attempt may succeed.
    #[error("{0}")]
    Busy(&'static str),
    /// The owner of the data can't be reached, or its answer could not be used.
    #[error("{0} does not answer")]
    Unreachable(Domain),
    /// The owner answered with a refusal, carried as the number it sent.
    #[error("{domain}: {message}")]
    Refused {
        /// Who refused.
        domain: Domain,
        /// The response code on the wire.
        code: i32,
        /// The owner's own words, cut to a sane length.
        message: String,
    },
    /// A peer asked us for something that a third domain owns.
    #[error("this domain does not own what was asked for")]
    NotHere,
    /// A method of the next release.
    #[error("not available yet")]
    NotYet,
    /// Only the operator can mend this.
    #[error("internal error")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Wraps a cause that the caller can do nothing about.
    pub fn internal(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal(cause.into())
    }
}
