//! What is known of other domains: when they were last heard of, and since when they are silent.

use super::{Row, Store, Tx, sql::many_rows};
use crate::{
    address::Domain,
    error::{Error, Result},
};

many_rows!(
    NOTE,
    4,
    "INSERT INTO peers (domain, last_contact_at, failing_since, last_error) VALUES",
    "(?, ?, ?, ?)",
    "ON CONFLICT (domain) DO UPDATE SET
       last_contact_at = CASE WHEN excluded.last_contact_at > peers.last_contact_at
         THEN excluded.last_contact_at ELSE peers.last_contact_at END,
       failing_since = excluded.failing_since, last_error = excluded.last_error"
);

const HEARD_OF: &str = "SELECT domain FROM peers WHERE last_contact_at >= $1
    ORDER BY failing_since <> 0, last_contact_at DESC LIMIT $2";
const FORGET: &str = "DELETE FROM peers WHERE domain IN
      (SELECT domain FROM peers WHERE last_contact_at < $1 AND failing_since < $1 LIMIT $2)";

/// What is known of one domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Which.
    pub domain: Domain,
    /// When it last answered or called, Unix ms; 0 if never.
    pub contact_at: i64,
    /// Since when it is silent, Unix ms; 0 if it is not.
    pub failing_since: i64,
    /// What the last failure was; empty if it is not silent.
    pub error: String,
}

/// Writes down what is known; a contact never becomes older.
pub(crate) async fn note(tx: &mut Tx, notes: &[Note]) -> Result<()> {
    let rows = notes.iter().map(|note| {
        [
            note.domain.as_str().into(),
            note.contact_at.into(),
            note.failing_since.into(),
            (&note.error).into(),
        ]
    });
    tx.many(&NOTE, rows.collect()).await?;
    Ok(())
}

/// Domains heard of since `since`, at most `limit`: those that are not silent first, then the latest.
pub async fn heard_of(store: &Store, since: i64, limit: u32) -> Result<Vec<Domain>> {
    let rows = store.rows(HEARD_OF, [since.into(), limit.into()]).await?;
    rows.iter().map(|row| domain(row, 0)).collect()
}

/// Deletes at most `limit` domains not heard of since `before`; how many it were.
pub(crate) async fn forget(tx: &mut Tx, before: i64, limit: u32) -> Result<u64> {
    tx.execute(FORGET, [before.into(), limit.into()]).await
}

fn domain(row: &Row, column: usize) -> Result<Domain> {
    Domain::parse(&row.text(column)?).map_err(Error::internal)
}
