//! Users and what proves them.

use super::{Row, Store, Tx};
use crate::{
    address::{Local, UserAddress},
    error::{Error, Result},
    proto::ski::UserState,
};

const TAKEN: &str = "SELECT user_key FROM users WHERE folded_id = $1";
const BY_ID: &str = "SELECT user_key, user_id, user_name, state FROM users WHERE user_id = $1";
const BY_AUTHENTICATOR: &str = "SELECT u.user_key, u.user_id, u.user_name, u.state FROM users u
    JOIN authenticators a ON a.user_key = u.user_key WHERE a.authenticator = $1";
const INSERT: &str =
    "INSERT INTO users (user_id, folded_id, user_name, created_at) VALUES ($1, $2, $3, $4)
    ON CONFLICT DO NOTHING RETURNING user_key, user_id, user_name, state";
const BIND: &str = "INSERT INTO authenticators (authenticator, user_key) VALUES ($1, $2)";

/// One user of this domain.
#[derive(Debug, Clone)]
pub struct User {
    /// The key of the row.
    pub key: i64,
    /// Unique on this domain.
    pub user_id: String,
    /// The registered name.
    pub user_name: String,
    /// Whether the account may be used.
    pub state: UserState,
}

/// Whether an id is gone, be it in another letter case.
pub async fn is_taken(store: &Store, user: &Local<UserAddress>) -> Result<bool> {
    Ok(store.row(TAKEN, [folded(user).into()]).await?.is_some())
}

/// The user with exactly this id.
pub async fn by_id(tx: &mut Tx, user: &Local<UserAddress>) -> Result<Option<User>> {
    let row = tx.row(BY_ID, [(&user.user_id).into()]).await?;
    row.as_ref().map(read).transpose()
}

/// The user that an authenticator in its canonical spelling is bound to.
pub async fn by_authenticator(tx: &mut Tx, authenticator: &str) -> Result<Option<User>> {
    let row = tx.row(BY_AUTHENTICATOR, [authenticator.into()]).await?;
    row.as_ref().map(read).transpose()
}

/// A new user, or `None` if the id is taken, be it in another letter case.
pub async fn insert(
    tx: &mut Tx,
    user: &Local<UserAddress>,
    user_name: &str,
    now: i64,
) -> Result<Option<User>> {
    let values = [
        (&user.user_id).into(),
        folded(user).into(),
        user_name.into(),
        now.into(),
    ];
    let row = tx.row(INSERT, values).await?;
    row.as_ref().map(read).transpose()
}

/// Binds an authenticator that its owner proved and that nobody has.
pub async fn bind(tx: &mut Tx, user_key: i64, authenticator: &str) -> Result<()> {
    tx.execute(BIND, [authenticator.into(), user_key.into()])
        .await?;
    Ok(())
}

/// A state as its column has it.
pub(super) fn state(row: &Row, column: usize) -> Result<UserState> {
    let number = i32::try_from(row.int(column)?).map_err(Error::internal)?;
    UserState::try_from(number).map_err(Error::internal)
}

fn folded(user: &UserAddress) -> String {
    user.user_id.to_lowercase()
}

fn read(row: &Row) -> Result<User> {
    Ok(User {
        key: row.int(0)?,
        user_id: row.text(1)?,
        user_name: row.text(2)?,
        state: state(row, 3)?,
    })
}
