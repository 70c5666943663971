//! Every bound of the node, with its unit in its name. The constants are fixed by formats and by what
//! clients survive; [`Limits`] holds what an operator may change, under `[limits]` in the configuration.

use serde::{Deserialize, Serialize};

/// The longest domain name that DNS knows.
pub const DOMAIN_BYTES_MAX: usize = 253;
/// The longest user id or group id.
pub const USER_ID_BYTES_MAX: usize = 64;
/// The longest device id.
pub const DEVICE_ID_BYTES_MAX: usize = 128;
/// The longest session id or message id that a client may choose; its own are 24.
pub const MSG_ID_BYTES_MAX: usize = 128;
/// The longest user name, in characters (contract section 15, decision 24).
pub const USER_NAME_CHARS_MAX: usize = 12;
/// The longest authenticator: an address or a number with its scheme.
pub const AUTHENTICATOR_BYTES_MAX: usize = 254;
/// The longest auth code: an invitation with its address.
pub const AUTH_CODE_BYTES_MAX: usize = 512;
/// The longest password that Login reads.
pub const PASSWORD_BYTES_MAX: usize = 256;
/// The longest token that is looked up.
pub const TOKEN_BYTES_MAX: usize = 256;
/// One-time pre-keys in one request.
pub const OPKS_PER_REQUEST_MAX: usize = 1_000;
/// At this stock the node asks the device for more one-time pre-keys.
pub const OPKS_LOW: u32 = 20;
/// Ignored device ids in one submission.
pub const IGNORED_DEVICES_MAX: usize = 256;
/// The longest text that is repeated from a peer's answer.
pub const PEER_TEXT_CHARS_MAX: usize = 200;
/// Message ids named in one notice to a sender.
pub const NOTICE_MSG_IDS_MAX: u32 = 100;
/// Password hashes that may wait for their turn; further calls are sent away.
pub const PASSWORDS_WAITING_MAX: usize = 128;
/// Auth codes on their way to a mail server or webhook at the same time.
pub const CODES_UNDER_WAY_MAX: usize = 256;
/// How long an invitation is valid.
pub const INVITATION_DAYS: i64 = 14;
/// Unused invitations of one user.
pub const INVITATIONS_PER_USER_MAX: i64 = 100;
/// Device addresses whose failed logins are counted.
pub const FAILURES_KEPT_MAX: usize = 100_000;
/// Entries of one cache.
pub const CACHE_ENTRIES_MAX: u64 = 65_536;
/// How long a cache may keep an entry.
pub const CACHE_SECONDS_MAX: u64 = 60;
/// Messages with a growing sequence may jump this far (contract section 14).
pub const GROUP_SEQUENCE_JUMP_MAX: u32 = 100_000;
/// Names in one certificate of a peer.
pub const CERTIFICATE_NAMES_MAX: usize = 256;
/// Targets of one domain's SRV records that are looked at.
pub const SRV_TARGETS_MAX: usize = 16;
/// Addresses of one host that are tried.
pub const HOST_ADDRESSES_MAX: usize = 8;
/// Domains, and hosts, whose DNS answers are remembered.
pub const DNS_ANSWERS_MAX: u64 = 10_000;
/// An answer of DNS is used at least this long.
pub const DNS_TTL_MIN_SECONDS: u32 = 5;
/// An answer of DNS is used at most this long.
pub const DNS_TTL_MAX_SECONDS: u32 = 3_600;
/// "There is no such thing", or no answer at all, is believed for this long.
pub const DNS_NEGATIVE_MS: i64 = 5_000;
/// While the name servers fail, the last answer is used up to this age.
pub const DNS_STALE_MS: i64 = 24 * 3_600_000;
/// One question is sent again after this time without an answer.
pub const DNS_RETRY_MS: u64 = 700;
/// One question is given up after this time.
pub const DNS_QUESTION_MS: u64 = 1_500;
/// The next address of a peer is tried beside the others after this time.
pub const CONNECT_STAGGER_MS: u64 = 250;
/// A target of lower priority is tried beside the others after this time.
pub const CONNECT_FALL_BACK_MS: u64 = 1_000;
/// Nodes of one domain to which one attempt to reach it speaks TLS.
pub const DIAL_HANDSHAKES_MAX: usize = 4;
/// After our handshake with a peer its first bytes, or its refusal, are awaited this long.
pub const PEER_GREETING_MS: u64 = 1_000;
/// A connection to a peer that was opened, or failed, this long before anybody asked for it is not used.
pub const DIALLED_MS: u64 = 2_000;
/// Calls that wait in one queue when a connection fails share its failure for this long.
pub const DIAL_FAILURE_SHARED_MS: u64 = 50;
/// A connection to a peer is tested after this time without traffic.
pub const PEER_PING_SECONDS: u64 = 10;
/// A peer that does not answer the test for this long is gone.
pub const PEER_PING_TIMEOUT_SECONDS: u64 = 5;
/// Domains to which connections are held.
pub const PEER_CHANNELS_MAX: usize = 2_048;
/// A connection to a peer is closed after this time without a call.
pub const PEER_CHANNEL_IDLE_MS: i64 = 5 * 60_000;
/// Connections that passed their handshake and wait to be served.
pub const ACCEPTED_MAX: usize = 64;
/// After an error of the listener itself the next connection is awaited this long.
pub const ACCEPT_PAUSE_MS: u64 = 100;
/// The contents of certificates, keys and revocation lists are compared at this interval.
pub const IDENTITY_RELOAD_SECONDS: u64 = 5;
/// An open connection's certificate is verified again after this time.
pub const PEER_JUDGED_MS: i64 = 60_000;

/// The ceiling of the first pause after a failure; it doubles from there.
pub const RETRY_FIRST_MS: i64 = 1_000;
/// An outage is early for this long; pauses may grow longer after it.
pub const RETRY_EARLY_MS: i64 = 3_600_000;
/// A probe is one of the oldest requests of so many lanes.
pub const PROBED_LANES_MAX: usize = 32;
/// Calls for data under way to one peer that was silent when last asked.
pub const ASKS_OF_SILENT_PEER_MAX: u32 = 4;
/// A peer's own requests end its backoff this often at most: it may reach us while we can't reach it.
pub const CONTACT_CLEARS_EVERY_MS: i64 = 5_000;
/// How often a peer's contact is written down, and requests it put off are tried again because of it.
pub const CONTACT_NOTED_EVERY_MS: i64 = 60_000;
/// Peers heard of within this time are greeted at the start.
pub const GREETED_PEERS_DAYS: i64 = 7;
/// Peers greeted at the start at most, the latest heard of first.
pub const GREETED_PEERS_MAX: u32 = 10_000;
/// Peers not heard of for this long are forgotten.
pub const PEERS_DAYS: i64 = 30;
/// A lane whose peer puts it off for longer holds back no barrier, and no barrier put off so long holds back others.
pub const BARRIER_PATIENCE_MS: i64 = 60_000;
/// The outbox is looked through for late, expired and refused requests at this interval.
pub const OUTBOX_SWEEP_SECONDS: u64 = 5;
/// Requests of the outbox read, marked or deleted in one go.
pub const OUTBOX_BATCH_ROWS: u32 = 500;
/// A sender whose messages are still late is told again after this time.
pub const LATE_AGAIN_MS: i64 = 86_400_000;
/// One sender may fill one part in so many of a mailbox.
pub const MAILBOX_SHARES: i64 = 10;
/// Free pages of the database file that are kept for the next messages: 16 MiB.
pub const FREE_PAGES_KEPT: i64 = 4_096;
/// The database is swept for what expired at this interval.
pub const RETENTION_SECONDS: u64 = 60;
/// Rows that one transaction of a sweep deletes.
pub const RETENTION_BATCH_ROWS: u32 = 500;
/// Transactions of one table in one sweep; what is left waits for the next.
pub const RETENTION_BATCHES_MAX: u32 = 20;
/// Devices whose mailboxes a sweep looks through at once.
pub const RETENTION_DEVICES: u32 = 100;
/// The newest tag of a removed device is kept so long, for the day it registers again.
pub const REMOVED_DEVICES_DAYS: i64 = 400;
/// Another domain's user may have this many times the devices of ours.
pub const FOREIGN_DEVICES_FACTOR: usize = 4;

/// Connections that a draining node has nothing more to say on may stay open this long.
pub const DRAIN_FLUSH_MS: u64 = 1_000;

/// Bounds that an operator may change. Sizes are bytes, times are in the unit of the name.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Limits {
    /// The largest request that a door decodes.
    pub request_bytes_max: usize,
    /// The largest one-to-one or group message, accept or invite.
    pub message_bytes_max: usize,
    /// One-time pre-keys kept per device.
    pub opks_per_device_max: u32,
    /// Devices of one user.
    pub devices_per_user_max: u32,
    /// Tokens of one device; the oldest goes first.
    pub tokens_per_device_max: u32,
    /// How long a token lives.
    pub token_days: u32,
    /// Messages waiting for one device.
    pub mailbox_rows_max: u32,
    /// Bytes waiting for one device.
    pub mailbox_bytes_max: u64,
    /// How long an unconsumed message is kept.
    pub mailbox_days: u32,
    /// Streams on which a message may be known received before it is dropped.
    pub mailbox_received_max: u32,
    /// Requests waiting for one peer.
    pub outbox_rows_max: u32,
    /// Bytes waiting for one peer.
    pub outbox_bytes_max: u64,
    /// How long a request waits for its peer before it expires.
    pub outbox_days: u32,
    /// After this time the sender is told that its messages are late.
    pub late_notice_minutes: u32,
    /// Unconsumed messages on one stream.
    pub stream_window_max: u32,
    /// A message leaves the window after this time, though nobody consumed it.
    pub stream_window_seconds: u32,
    /// The backlog starts this long after the stream opened, at the earliest.
    pub stream_settle_ms: u32,
    /// Delivery starts without an `AcquireSyncMsg` after this time.
    pub stream_sync_wait_ms: u32,
    /// The node sends a heartbeat at this interval.
    pub heartbeat_seconds: u32,
    /// Open streams of the node.
    pub streams_max: u32,
    /// Connections to one door.
    pub connections_max: u32,
    /// Connections to a door from one address.
    pub connections_per_address_max: u32,
    /// Requests under way on one connection.
    pub requests_per_connection_max: u32,
    /// Requests of one peer under way at our peer door.
    pub requests_per_peer_max: u32,
    /// A connection of another domain is closed gracefully at this age; users' connections stay.
    pub connection_age_minutes: u32,
    /// How long a TLS handshake may take, on either side.
    pub handshake_ms: u32,
    /// A connection to a door is cut if nothing arrives in this time after the handshake.
    pub first_byte_ms: u32,
    /// How long opening a connection to a peer may take.
    pub connect_ms: u32,
    /// The fast path asks a peer for this long before the message goes through the outbox.
    pub fast_path_ms: u32,
    /// A call that needs a peer's data gives up after this time.
    pub ask_ms: u32,
    /// A delivery from the outbox gives up after this time.
    pub deliver_ms: u32,
    /// Lanes of one peer served side by side.
    pub lanes_per_peer_max: u32,
    /// Deliveries under way to all peers together.
    pub deliveries_max: u32,
    /// Probes of silent peers under way together.
    pub probes_max: u32,
    /// The longest pause between two attempts in the first hour of an outage.
    pub retry_early_max_seconds: u32,
    /// The longest pause between two attempts after that.
    pub retry_late_max_seconds: u32,
    /// How long an auth code is valid.
    pub auth_code_seconds: u32,
    /// Wrong tries that end an auth code.
    pub auth_code_attempts_max: u32,
    /// Auth codes for one authenticator an hour.
    pub auth_codes_per_authenticator_hour: u32,
    /// Auth codes, logins and registrations from one network address a minute.
    pub account_calls_per_address_minute: u32,
    /// Failed logins for one device from one network address an hour.
    pub login_failures_per_device_hour: u32,
    /// One-time keys that one caller gets of one device an hour; further bundles come without.
    pub opks_per_caller_hour: u32,
    /// One-time keys that one peer gets of one device an hour; further bundles come without.
    pub opks_per_peer_hour: u32,
    /// Bundle requests of one caller a minute.
    pub bundle_calls_per_caller_minute: u32,
    /// Invites of one device to devices without a session, an hour.
    pub first_contacts_per_sender_hour: u32,
    /// Invites of one peer domain to devices without a session, an hour.
    pub first_contacts_per_peer_hour: u32,
    /// Messages that one device may send a minute.
    pub messages_per_sender_minute: u32,
    /// Memory of one password hash, in KiB.
    pub argon2_memory_kib: u32,
    /// Passes of one password hash.
    pub argon2_passes: u32,
    /// Password hashes computed at the same time.
    pub argon2_parallel_max: u32,
    /// How long a drain waits for requests under way.
    pub drain_seconds: u32,
    /// An open transaction older than this is rolled back.
    pub transaction_ms: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_bytes_max: 16 << 20,
            message_bytes_max: 1 << 20,
            opks_per_device_max: 1_000,
            devices_per_user_max: 16,
            tokens_per_device_max: 10,
            token_days: 30,
            mailbox_rows_max: 10_000,
            mailbox_bytes_max: 256 << 20,
            mailbox_days: 30,
            mailbox_received_max: 10,
            outbox_rows_max: 100_000,
            outbox_bytes_max: 1 << 30,
            outbox_days: 7,
            late_notice_minutes: 10,
            stream_window_max: 256,
            stream_window_seconds: 30,
            stream_settle_ms: 1_000,
            stream_sync_wait_ms: 10_000,
            heartbeat_seconds: 30,
            streams_max: 20_000,
            connections_max: 20_000,
            connections_per_address_max: 256,
            requests_per_connection_max: 256,
            requests_per_peer_max: 256,
            connection_age_minutes: 60,
            handshake_ms: 5_000,
            first_byte_ms: 10_000,
            connect_ms: 5_000,
            fast_path_ms: 2_000,
            ask_ms: 5_000,
            deliver_ms: 10_000,
            lanes_per_peer_max: 32,
            deliveries_max: 256,
            probes_max: 64,
            retry_early_max_seconds: 15,
            retry_late_max_seconds: 300,
            auth_code_seconds: 600,
            auth_code_attempts_max: 5,
            auth_codes_per_authenticator_hour: 5,
            account_calls_per_address_minute: 30,
            login_failures_per_device_hour: 20,
            opks_per_caller_hour: 5,
            opks_per_peer_hour: 100,
            bundle_calls_per_caller_minute: 120,
            first_contacts_per_sender_hour: 200,
            first_contacts_per_peer_hour: 5_000,
            messages_per_sender_minute: 6_000,
            argon2_memory_kib: 19_456,
            argon2_passes: 2,
            argon2_parallel_max: 2,
            drain_seconds: 20,
            transaction_ms: 250,
        }
    }
}
