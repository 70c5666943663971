//! What expires, in small batches: between two of them the writer serves everybody else. Requests that wait
//! for a peer and what is known of peers are not among it: `peers` tells senders first.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{Store, Wake, mailbox};
use crate::{
    clock::Clock,
    error::Result,
    limits::{
        Limits, REMOVED_DEVICES_DAYS, RETENTION_BATCH_ROWS, RETENTION_BATCHES_MAX,
        RETENTION_DEVICES, RETENTION_SECONDS,
    },
    node::Node,
};

const DAY_MS: i64 = 86_400_000;

/// A table with an end of life: its name, the days that rows outlive the time in them, and the statement that
/// deletes at most `$2` rows whose time is `$1` or earlier.
struct Expiring {
    table: &'static str,
    days: i64,
    delete: &'static str,
}

const EXPIRING: [Expiring; 6] = [
    Expiring {
        table: "done_once",
        days: 0,
        delete: "DELETE FROM done_once WHERE done_key IN
            (SELECT done_key FROM done_once WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2)",
    },
    Expiring {
        table: "invites",
        days: 0,
        delete: "DELETE FROM invites WHERE (from_device, to_device, session_id) IN
            (SELECT from_device, to_device, session_id FROM invites WHERE expires_at <= $1
             ORDER BY expires_at LIMIT $2)",
    },
    Expiring {
        table: "auth_codes",
        days: 0,
        delete: "DELETE FROM auth_codes WHERE authenticator IN
            (SELECT authenticator FROM auth_codes WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2)",
    },
    Expiring {
        table: "invitations",
        days: 0,
        delete: "DELETE FROM invitations WHERE code_hash IN
            (SELECT code_hash FROM invitations WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2)",
    },
    Expiring {
        table: "tokens",
        days: 0,
        delete: "DELETE FROM tokens WHERE token_hash IN
            (SELECT token_hash FROM tokens WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2)",
    },
    Expiring {
        table: "removed_devices",
        days: REMOVED_DEVICES_DAYS,
        delete: "DELETE FROM removed_devices WHERE (user_id, device_id) IN
            (SELECT user_id, device_id FROM removed_devices WHERE removed_at <= $1
             ORDER BY removed_at LIMIT $2)",
    },
];

const DEVICES_WITH_OLD_MAIL: &str = "SELECT d.device_key FROM devices d WHERE d.queued_rows > 0
      AND EXISTS (SELECT 1 FROM mailbox m WHERE m.device_key = d.device_key AND m.msg_t < $1)
    ORDER BY d.device_key LIMIT $2";

/// Sweeps every minute until the node stops.
pub async fn run(node: Arc<Node>) {
    work(&node.store, &node.clock, &node.limits, &node.stop).await;
}

async fn work(store: &Store, clock: &Clock, limits: &Limits, stop: &CancellationToken) {
    while stop
        .run_until_cancelled(clock.sleep(Duration::from_secs(RETENTION_SECONDS)))
        .await
        .is_some()
    {
        let swept = sweep(store, clock.now_ms(), limits).await;
        if let Err(error) = swept.and(store.maintain().await) {
            tracing::error!(?error, "the database could not be tidied up");
        }
    }
}

/// Deletes what is past its time, a bounded number of rows. A table that fails does not keep the others.
pub async fn sweep(store: &Store, now: i64, limits: &Limits) -> Result<()> {
    let mail = old_mail(store, now - i64::from(limits.mailbox_days) * DAY_MS).await;
    let mut outcome = mail;
    for expiring in &EXPIRING {
        outcome = outcome.and(expired(store, expiring, now).await);
    }
    outcome
}

async fn expired(store: &Store, expiring: &Expiring, now: i64) -> Result<()> {
    let until = now - expiring.days * DAY_MS;
    for _ in 0..RETENTION_BATCHES_MAX {
        let mut tx = store.begin().await?;
        let rows = tx
            .execute(expiring.delete, [until.into(), RETENTION_BATCH_ROWS.into()])
            .await?;
        if rows == 0 {
            break;
        }
        tx.commit(Wake::default()).await?;
        metrics::counter!("skiserver_store_expired_total", "table" => expiring.table)
            .increment(rows);
        if rows < u64::from(RETENTION_BATCH_ROWS) {
            break;
        }
    }
    Ok(())
}

async fn old_mail(store: &Store, before: i64) -> Result<()> {
    let mut batches = 0;
    while batches < RETENTION_BATCHES_MAX {
        let values = [before.into(), RETENTION_DEVICES.into()];
        let devices = store.rows(DEVICES_WITH_OLD_MAIL, values).await?;
        if devices.is_empty() {
            break;
        }
        for device in &devices {
            let mut tx = store.begin().await?;
            let rows =
                mailbox::expire(&mut tx, device.int(0)?, before, RETENTION_BATCH_ROWS).await?;
            tx.commit(Wake::default()).await?;
            metrics::counter!("skiserver_mailbox_dropped_total", "why" => "expired")
                .increment(u64::try_from(rows).unwrap_or(u64::MAX));
            batches += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{
        Body, Value,
        tests::{Fixture, TestDevice, mail},
    };
    use crate::testing::Must as _;

    const HOUR_MS: i64 = 3_600_000;

    async fn insert(fixture: &Fixture, sql: &'static str, values: Vec<Value>) {
        let mut tx = fixture.store.begin().await.must();
        tx.execute(sql, values).await.must();
        tx.commit(Wake::default()).await.must();
    }

    /// Puts a row whose time is `at` into each table that expires.
    async fn rows_of(fixture: &Fixture, device: &TestDevice, name: &str, at: i64) {
        let text = || Value::from(name);
        let hash = || Body::new(bytes::Bytes::copy_from_slice(name.as_bytes())).hash();
        let (device, at) = (device.key, Value::from(at));
        let tables: [(&'static str, Vec<Value>); 6] = [
            (
                "INSERT INTO done_once (done_key, answer, expires_at) VALUES ($1, 0, $2)",
                vec![hash().into(), at.clone()],
            ),
            (
                "INSERT INTO invites (from_device, to_device, session_id, invite_t, expires_at)
                 VALUES ($1, $1, $1, 0, $2)",
                vec![text(), at.clone()],
            ),
            (
                "INSERT INTO auth_codes (authenticator, code_hash, expires_at) VALUES ($1, $2, $3)",
                vec![text(), hash().into(), at.clone()],
            ),
            (
                "INSERT INTO invitations (code_hash, inviter_key, expires_at)
                 SELECT $1, user_key, $3 FROM devices WHERE device_key = $2",
                vec![hash().into(), device.into(), at.clone()],
            ),
            (
                "INSERT INTO tokens (token_hash, device_key, issued_at, expires_at) VALUES ($1, $2, 0, $3)",
                vec![hash().into(), device.into(), at.clone()],
            ),
            (
                "INSERT INTO removed_devices (user_id, device_id, last_msg_t, removed_at) VALUES ($1, $1, 5, $2)",
                vec![text(), at.clone()],
            ),
        ];
        for (sql, values) in tables {
            insert(fixture, sql, values).await;
        }
    }

    async fn counts(fixture: &Fixture) -> [i64; 6] {
        [
            fixture.number("SELECT COUNT(*) FROM done_once").await,
            fixture.number("SELECT COUNT(*) FROM invites").await,
            fixture.number("SELECT COUNT(*) FROM auth_codes").await,
            fixture.number("SELECT COUNT(*) FROM invitations").await,
            fixture.number("SELECT COUNT(*) FROM tokens").await,
            fixture.number("SELECT COUNT(*) FROM removed_devices").await,
        ]
    }

    #[tokio::test]
    async fn each_table_is_swept_at_its_own_age() {
        let fixture = Fixture::new().await;
        let bob = fixture.device("bob", "phone").await;
        let now = fixture.clock.now_ms();
        rows_of(&fixture, &bob, "b.test", now).await;
        rows_of(&fixture, &bob, "c.test", now + HOUR_MS).await;
        let sweep = async |later_ms: i64| {
            sweep(&fixture.store, now + later_ms, fixture.store.limits())
                .await
                .must();
            counts(&fixture).await
        };

        assert_eq!(sweep(-1).await, [2; 6]);
        assert_eq!(sweep(0).await, [1, 1, 1, 1, 1, 2]);
        assert_eq!(sweep(HOUR_MS).await, [0, 0, 0, 0, 0, 2]);
        let kept = REMOVED_DEVICES_DAYS * DAY_MS;
        assert_eq!(sweep(kept).await, [0, 0, 0, 0, 0, 1]);
    }

    #[tokio::test]
    async fn a_sweep_is_bounded_and_the_next_goes_on() {
        let fixture = Fixture::new().await;
        let bound = i64::from(RETENTION_BATCH_ROWS * RETENTION_BATCHES_MAX);
        let many = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1)
            INSERT INTO auth_codes (authenticator, code_hash, expires_at) SELECT 'a' || i, $2, i FROM n";
        insert(
            &fixture,
            many,
            vec![(bound + 700).into(), (&[0_u8; 32]).into()],
        )
        .await;
        let sweep = async || {
            sweep(&fixture.store, i64::MAX / 2, fixture.store.limits())
                .await
                .must();
            fixture.number("SELECT COUNT(*) FROM auth_codes").await
        };

        let left = [sweep().await, sweep().await];

        assert_eq!(left, [700, 0]);
    }

    #[tokio::test]
    async fn the_worker_drops_mail_that_is_too_old_and_ends_with_the_node() {
        let fixture = Fixture::with(|limits| limits.mailbox_days = 3).await;
        let bob = fixture.device("bob", "phone").await;
        let carol = fixture.device("carol", "phone").await;
        for device in [&bob, &carol] {
            for n in 0..5 {
                let append = mail(&device.address, &n.to_string());
                fixture.store.append(append).await.must();
            }
        }
        fixture.clock.turn(3 * DAY_MS + HOUR_MS);
        fixture
            .store
            .append(mail(&carol.address, "fresh"))
            .await
            .must();
        let stop = CancellationToken::new();

        let waiting = async {
            while mailbox::count(&fixture.store).await.must() > 1 {
                fixture.clock.turn(60_000);
                tokio::task::yield_now().await;
            }
            stop.cancel();
        };
        let limits = fixture.store.limits();
        tokio::join!(work(&fixture.store, &fixture.clock, limits, &stop), waiting);

        assert_eq!(fixture.bodies(&bob).await.len(), 0);
        assert_eq!(fixture.bodies(&carol).await, ["fresh"]);
        fixture.assert_consistent().await;
    }
}
