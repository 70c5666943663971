//! Invitations: codes by which a user of this domain lets one more in, who is then a friend.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::{
    address::UserAddress,
    error::{Error, Result},
    limits,
    node::Node,
    proto::ski::UserState,
    signing::sha256,
    store::{Wake, invitations, users},
};

const SCHEME: &str = "e2ee:";
const MARK: &str = ";invite=";
/// Random bytes of an invitation.
const RANDOM_BYTES: usize = 16;
const DAY_MS: i64 = 86_400_000;

/// An invitation as somebody shows it.
pub(super) struct Invitation {
    /// Who gave it, as it says.
    pub(super) inviter: UserAddress,
    /// What is stored of it.
    pub(super) hash: [u8; 32],
}

/// Makes an invitation in the name of a user, good for one registration. What is stored of it is its hash, so
/// nobody can read it later.
pub async fn create(node: &Node, inviter: &str) -> Result<String> {
    let inviter = node.home.user(inviter)?;
    let now = node.clock.now_ms();
    let secret = URL_SAFE_NO_PAD.encode(rand::random::<[u8; RANDOM_BYTES]>());

    let mut tx = node.store.begin().await?;
    let user = users::by_id(&mut tx, &inviter)
        .await?
        .filter(|user| user.state == UserState::Normal)
        .ok_or(Error::NotFound("user"))?;
    if invitations::count(&mut tx, user.key, now).await? >= limits::INVITATIONS_PER_USER_MAX {
        return Err(Error::Throttled("too many unused invitations"));
    }
    let expires_at = now + limits::INVITATION_DAYS * DAY_MS;
    invitations::insert(&mut tx, &hash(&secret), user.key, expires_at).await?;
    tx.commit(Wake::default()).await?;
    Ok(format!("{SCHEME}{}{MARK}{secret}", *inviter))
}

/// Reads an auth code as an invitation; `None` if it is of another kind.
pub(super) fn parse(auth_code: &str) -> Result<Option<Invitation>> {
    let Some(text) = auth_code.strip_prefix(SCHEME) else {
        return Ok(None);
    };
    let (inviter, secret) = text.split_once(MARK).ok_or(Error::Invalid("auth_code"))?;
    Ok(Some(Invitation {
        inviter: UserAddress::parse(inviter).map_err(|_| Error::Invalid("auth_code"))?,
        hash: hash(secret),
    }))
}

fn hash(secret: &str) -> [u8; 32] {
    sha256(&[secret.as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Must as _;

    #[test]
    fn an_invitation_names_its_inviter_and_hides_its_secret() {
        let invitation = parse("e2ee:alice@a.test;invite=abc").must().must();

        assert_eq!(invitation.inviter.to_string(), "alice@a.test");
        assert_eq!(invitation.hash, hash("abc"));
        assert!(parse("123456").must().is_none());
        for broken in ["e2ee:", "e2ee:alice@a.test", "e2ee:alice;invite=abc"] {
            assert!(
                matches!(parse(broken), Err(Error::Invalid("auth_code"))),
                "{broken}"
            );
        }
    }
}
