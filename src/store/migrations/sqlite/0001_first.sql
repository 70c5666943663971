-- Keys that this node signs with. Old ones stay for the devices that registered under them.
CREATE TABLE server_keys (
    key_id INTEGER PRIMARY KEY AUTOINCREMENT,
    algorithm BIGINT NOT NULL,
    public_key BLOB NOT NULL,
    private_key BLOB NOT NULL,
    certificate BLOB NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE users (
    user_key INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id TEXT NOT NULL UNIQUE,
    -- Lower case: two people may not differ in case alone.
    folded_id TEXT NOT NULL UNIQUE,
    user_name TEXT NOT NULL,
    state BIGINT NOT NULL DEFAULT 0,
    allow_attention BIGINT NOT NULL DEFAULT 1,
    allow_greeting BIGINT NOT NULL DEFAULT 1,
    allow_auto_friend BIGINT NOT NULL DEFAULT 0,
    created_at BIGINT NOT NULL
);

CREATE TABLE authenticators (
    authenticator TEXT PRIMARY KEY,
    user_key BIGINT NOT NULL REFERENCES users (user_key)
);
CREATE INDEX authenticators_by_user ON authenticators (user_key);

CREATE TABLE auth_codes (
    authenticator TEXT PRIMARY KEY,
    code_hash BLOB NOT NULL,
    attempts BIGINT NOT NULL DEFAULT 0,
    expires_at BIGINT NOT NULL
);
CREATE INDEX auth_codes_by_end ON auth_codes (expires_at);

CREATE TABLE invitations (
    code_hash BLOB PRIMARY KEY,
    inviter_key BIGINT NOT NULL REFERENCES users (user_key),
    expires_at BIGINT NOT NULL
);
CREATE INDEX invitations_by_end ON invitations (expires_at);

CREATE TABLE devices (
    device_key INTEGER PRIMARY KEY AUTOINCREMENT,
    user_key BIGINT NOT NULL REFERENCES users (user_key),
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    e2ee_pack_id BIGINT NOT NULL,
    asym_public_key BLOB NOT NULL,
    sign_public_key BLOB NOT NULL,
    spk_id BIGINT NOT NULL,
    spk_public_key BLOB NOT NULL,
    spk_signature BLOB NOT NULL,
    -- The server key that this device was given at its registration.
    signing_key_id BIGINT NOT NULL REFERENCES server_keys (key_id),
    password_hash TEXT NOT NULL,
    -- The tag of the newest message ever queued for this device.
    last_msg_t BIGINT NOT NULL DEFAULT 0,
    queued_rows BIGINT NOT NULL DEFAULT 0,
    queued_bytes BIGINT NOT NULL DEFAULT 0,
    -- One-time keys up to this id were handed out, or skipped for good.
    opk_issued_max BIGINT NOT NULL DEFAULT 0,
    supply_asked BIGINT NOT NULL DEFAULT 0,
    registered_at BIGINT NOT NULL,
    active_at BIGINT NOT NULL,
    UNIQUE (user_id, device_id)
);
CREATE INDEX devices_by_user ON devices (user_key);

-- What must outlive a device: its newest tag, for the day it registers again.
CREATE TABLE removed_devices (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    last_msg_t BIGINT NOT NULL,
    removed_at BIGINT NOT NULL,
    PRIMARY KEY (user_id, device_id)
) WITHOUT ROWID;
CREATE INDEX removed_devices_by_age ON removed_devices (removed_at);

CREATE TABLE one_time_keys (
    device_key BIGINT NOT NULL REFERENCES devices (device_key),
    opk_id BIGINT NOT NULL,
    public_key BLOB NOT NULL,
    PRIMARY KEY (device_key, opk_id)
) WITHOUT ROWID;

CREATE TABLE tokens (
    token_hash BLOB PRIMARY KEY,
    device_key BIGINT NOT NULL REFERENCES devices (device_key),
    issued_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
) WITHOUT ROWID;
CREATE INDEX tokens_by_device ON tokens (device_key, issued_at);
CREATE INDEX tokens_by_end ON tokens (expires_at);

-- One row for each side that is ours.
CREATE TABLE sessions (
    device_key BIGINT NOT NULL REFERENCES devices (device_key),
    peer TEXT NOT NULL,
    peer_user TEXT NOT NULL,
    peer_domain TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (device_key, peer)
) WITHOUT ROWID;
CREATE INDEX sessions_by_peer ON sessions (peer);
CREATE INDEX sessions_by_domain ON sessions (device_key, peer_domain);

-- Invites that our devices sent: an accept is taken only if it answers one.
CREATE TABLE invites (
    from_device TEXT NOT NULL,
    to_device TEXT NOT NULL,
    session_id TEXT NOT NULL,
    invite_t BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (from_device, to_device, session_id)
) WITHOUT ROWID;
CREATE INDEX invites_by_end ON invites (expires_at);

-- What was already done, so that it is done once.
CREATE TABLE done_once (
    done_key BLOB PRIMARY KEY,
    answer BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
) WITHOUT ROWID;
CREATE INDEX done_once_by_end ON done_once (expires_at);

-- Each body once, however many rows refer to it.
CREATE TABLE bodies (
    body_hash BLOB PRIMARY KEY,
    refs BIGINT NOT NULL,
    body BLOB NOT NULL
);

CREATE TABLE mailbox (
    device_key BIGINT NOT NULL,
    msg_t BIGINT NOT NULL,
    nonce BIGINT NOT NULL,
    kind BIGINT NOT NULL,
    sender TEXT NOT NULL,
    body_hash BLOB NOT NULL,
    bytes BIGINT NOT NULL,
    received_on BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (device_key, msg_t, nonce)
) WITHOUT ROWID;
-- How much of a mailbox one sender fills.
CREATE INDEX mailbox_by_sender ON mailbox (device_key, sender, bytes) WHERE sender <> '';

CREATE TABLE outbox (
    place BIGINT PRIMARY KEY,
    domain TEXT NOT NULL,
    lane TEXT NOT NULL,
    method BIGINT NOT NULL,
    body_hash BLOB NOT NULL,
    bytes BIGINT NOT NULL,
    -- Who is told when this is late, expires or is refused; nobody if empty.
    sender TEXT NOT NULL,
    recipient TEXT NOT NULL,
    msg_id TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    late_told_at BIGINT NOT NULL DEFAULT 0,
    -- A code and words once the peer refused for good; the row goes when the sender was told.
    refused_code BIGINT NOT NULL DEFAULT 0,
    refused_text TEXT NOT NULL DEFAULT ''
);
CREATE INDEX outbox_by_lane ON outbox (domain, lane, place);
CREATE INDEX outbox_by_end ON outbox (expires_at);
CREATE INDEX outbox_by_notice ON outbox (late_told_at, created_at) WHERE sender <> '';
CREATE INDEX outbox_refused ON outbox (refused_code) WHERE refused_code <> 0;

CREATE TABLE peers (
    domain TEXT PRIMARY KEY,
    last_contact_at BIGINT NOT NULL DEFAULT 0,
    failing_since BIGINT NOT NULL DEFAULT 0,
    last_error TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
CREATE INDEX peers_by_contact ON peers (last_contact_at);

CREATE TABLE friendships (
    user_key BIGINT NOT NULL REFERENCES users (user_key),
    friend TEXT NOT NULL,
    nickname TEXT NOT NULL DEFAULT '',
    memoname TEXT NOT NULL DEFAULT '',
    status BIGINT NOT NULL DEFAULT 0,
    block_state BIGINT NOT NULL DEFAULT 0,
    modified_at BIGINT NOT NULL,
    PRIMARY KEY (user_key, friend)
) WITHOUT ROWID;
CREATE INDEX friendships_by_time ON friendships (user_key, modified_at);
