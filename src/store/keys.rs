//! Pre-keys: what devices registered for others to start sessions with. A one-time key leaves the store with
//! the statement that hands it out, and no id is ever handed out twice.

use std::collections::{HashMap, HashSet};

use super::{Row, Store, Tx, sql::many_rows};
use crate::{
    address::{Local, UserAddress},
    error::{Error, Result},
    proto::skissm::{IdentityKeyPublic, OneTimePreKeyPublic, SignedPreKeyPublic},
};

/// The public keys of one device, without a one-time key.
#[derive(Debug, Clone)]
pub struct DeviceKeys {
    /// The key of the device's row.
    pub device_key: i64,
    /// The device among its user's.
    pub device_id: String,
    /// The cipher pack of the keys.
    pub e2ee_pack_id: u32,
    /// Who the device is.
    pub identity: IdentityKeyPublic,
    /// Its current signed pre-key.
    pub spk: SignedPreKeyPublic,
}

const DEVICES: &str = "SELECT device_key, device_id, e2ee_pack_id, asym_public_key, sign_public_key, spk_id,
      spk_public_key, spk_signature
    FROM devices WHERE user_id = $1 AND ($2 = '' OR device_id = $2) AND device_id <> $3 ORDER BY device_key";
const PUBLISH: &str =
    "UPDATE devices SET spk_id = $2, spk_public_key = $3, spk_signature = $4 WHERE device_key = $1";
const ISSUED_MAX: &str = "SELECT opk_issued_max FROM devices WHERE device_key = $1";
const STOCK: &str = "SELECT opk_id FROM one_time_keys WHERE device_key = $1";
const SUPPLIED: &str = "UPDATE devices SET supply_asked = 0 WHERE device_key = $1";
const ASK: &str = "UPDATE devices SET supply_asked = 1 WHERE device_key = $1 AND supply_asked = 0
      AND (SELECT COUNT(*) FROM one_time_keys k WHERE k.device_key = $1) BETWEEN 1 AND $2
    RETURNING (SELECT COUNT(*) FROM one_time_keys k WHERE k.device_key = $1)";

many_rows!(
    TAKE,
    1,
    "WITH v (device_key) AS (VALUES",
    "(CAST(? AS BIGINT))",
    ") DELETE FROM one_time_keys WHERE (device_key, opk_id) IN (SELECT v.device_key,
         (SELECT MIN(k.opk_id) FROM one_time_keys k WHERE k.device_key = v.device_key) FROM v)
       RETURNING device_key, opk_id, public_key"
);
many_rows!(
    REMEMBER,
    2,
    "WITH v (device_key, opk_id) AS (VALUES",
    "(CAST(? AS BIGINT), CAST(? AS BIGINT))",
    ") UPDATE devices SET opk_issued_max = v.opk_id FROM v
       WHERE devices.device_key = v.device_key AND devices.opk_issued_max < v.opk_id"
);
many_rows!(
    SUPPLY,
    3,
    "INSERT INTO one_time_keys (device_key, opk_id, public_key) VALUES",
    "(?, ?, ?)",
    "ON CONFLICT (device_key, opk_id) DO UPDATE SET public_key = excluded.public_key"
);

/// The keys of a user's devices, in the order of their registration: of all, or of the one named, but not of
/// `except`.
pub async fn bundle_devices(
    store: &Store,
    user: &Local<UserAddress>,
    device_id: Option<&str>,
    except: Option<&str>,
) -> Result<Vec<DeviceKeys>> {
    let rows = store.rows(DEVICES, asked(user, device_id, except)).await?;
    rows.iter().map(device_keys).collect()
}

/// The same inside a transaction, so that identity and one-time keys are of one registration.
pub async fn bundle_devices_within(
    tx: &mut Tx,
    user: &Local<UserAddress>,
    device_id: Option<&str>,
    except: Option<&str>,
) -> Result<Vec<DeviceKeys>> {
    let rows = tx.rows(DEVICES, asked(user, device_id, except)).await?;
    rows.iter().map(device_keys).collect()
}

fn asked(
    user: &Local<UserAddress>,
    device_id: Option<&str>,
    except: Option<&str>,
) -> [super::Value; 3] {
    [
        (&user.user_id).into(),
        device_id.unwrap_or_default().into(),
        except.unwrap_or_default().into(),
    ]
}

fn device_keys(row: &Row) -> Result<DeviceKeys> {
    Ok(DeviceKeys {
        device_key: row.int(0)?,
        device_id: row.text(1)?,
        e2ee_pack_id: row.u32(2)?,
        identity: IdentityKeyPublic {
            asym_public_key: row.blob(3)?,
            sign_public_key: row.blob(4)?,
        },
        spk: SignedPreKeyPublic {
            spk_id: row.u32(5)?,
            public_key: row.blob(6)?,
            signature: row.blob(7)?,
        },
    })
}

/// Takes one key of each device, the one with the lowest id. Devices that have none left are not in the answer.
pub async fn take(tx: &mut Tx, device_keys: &[i64]) -> Result<HashMap<i64, OneTimePreKeyPublic>> {
    let devices = device_keys.iter().map(|key| [(*key).into()]).collect();
    let mut taken = HashMap::new();
    let mut issued = Vec::new();
    for row in tx.many(&TAKE, devices).await? {
        let (device_key, opk_id) = (row.int(0)?, row.u32(1)?);
        let public_key = row.blob(2)?;
        taken.insert(device_key, OneTimePreKeyPublic { opk_id, public_key });
        issued.push([device_key.into(), opk_id.into()]);
    }
    tx.many(&REMEMBER, issued).await?;
    Ok(taken)
}

/// Replaces the signed pre-key, even under the same id: a device that missed the answer makes another key for it.
pub async fn publish_signed(tx: &mut Tx, device_key: i64, spk: &SignedPreKeyPublic) -> Result<()> {
    let values = [
        device_key.into(),
        spk.spk_id.into(),
        (&spk.public_key).into(),
        (&spk.signature).into(),
    ];
    match tx.execute(PUBLISH, values).await? {
        0 => Err(Error::NotFound("device")),
        _ => Ok(()),
    }
}

/// Takes new one-time keys in, lowest id first, until the device has `stock_max`; how many it were. One that is
/// in stock is replaced; one whose id was handed out or passed over is left out, for it would be issued twice.
/// From here on the device may be asked for more again.
pub async fn supply(
    tx: &mut Tx,
    device_key: i64,
    opks: &[OneTimePreKeyPublic],
    stock_max: u32,
) -> Result<usize> {
    let Some(row) = tx.row(ISSUED_MAX, [device_key.into()]).await? else {
        return Err(Error::NotFound("device"));
    };
    let issued_max = row.u32(0)?;
    let mut stock = HashSet::new();
    for row in tx.rows(STOCK, [device_key.into()]).await? {
        stock.insert(row.u32(0)?);
    }
    let stock_max = usize::try_from(stock_max).unwrap_or(usize::MAX);
    let mut opks: Vec<_> = opks.iter().filter(|opk| opk.opk_id > issued_max).collect();
    opks.sort_by_key(|opk| opk.opk_id);
    let mut rows = Vec::with_capacity(opks.len());
    for opk in opks {
        if stock.contains(&opk.opk_id) || stock.len() < stock_max {
            stock.insert(opk.opk_id);
            rows.push([
                device_key.into(),
                opk.opk_id.into(),
                (&opk.public_key).into(),
            ]);
        }
    }
    let kept = rows.len();
    tx.many(&SUPPLY, rows).await?;
    tx.execute(SUPPLIED, [device_key.into()]).await?;
    Ok(kept)
}

/// Marks a device as asked for more one-time keys if its stock is low but not empty and it was not asked since
/// its last supply; its stock then.
pub async fn mark_supply_asked(tx: &mut Tx, device_key: i64, low: u32) -> Result<Option<u32>> {
    let row = tx.row(ASK, [device_key.into(), low.into()]).await?;
    row.map(|row| row.u32(0)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{
        Wake,
        tests::{Fixture, TestDevice},
    };
    use crate::testing::Must as _;

    fn opk(opk_id: u32, text: &str) -> OneTimePreKeyPublic {
        OneTimePreKeyPublic {
            opk_id,
            public_key: text.as_bytes().to_vec().into(),
        }
    }

    async fn supplied(
        fixture: &Fixture,
        device: &TestDevice,
        ids: impl IntoIterator<Item = u32>,
    ) -> usize {
        let opks: Vec<_> = ids
            .into_iter()
            .map(|id| opk(id, &format!("key {id}")))
            .collect();
        let mut tx = fixture.store.begin().await.must();
        let kept = supply(&mut tx, device.key, &opks, 100).await.must();
        tx.commit(Wake::default()).await.must();
        kept
    }

    async fn taken(fixture: &Fixture, device: &TestDevice) -> Option<u32> {
        let mut tx = fixture.store.begin().await.must();
        let mut taken = take(&mut tx, &[device.key]).await.must();
        tx.commit(Wake::default()).await.must();
        taken.remove(&device.key).map(|opk| opk.opk_id)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn sixty_four_takers_at_once_get_different_keys_and_the_rest_get_none() {
        let fixture = Fixture::new().await;
        let bob = fixture.device("bob", "phone").await;
        supplied(&fixture, &bob, 1..=60).await;

        let mut takers = tokio::task::JoinSet::new();
        for _ in 0..64 {
            let (store, key) = (fixture.store.clone(), bob.key);
            takers.spawn(async move {
                let mut tx = store.begin().await.must();
                let taken = take(&mut tx, &[key]).await.must();
                tx.commit(Wake::default()).await.must();
                taken.get(&key).map(|opk| opk.opk_id)
            });
        }
        let mut ids: Vec<u32> = takers.join_all().await.into_iter().flatten().collect();

        ids.sort_unstable();
        assert!(ids.into_iter().eq(1..=60));
        assert_eq!(
            fixture.number("SELECT opk_issued_max FROM devices").await,
            60
        );
    }

    #[tokio::test]
    async fn one_key_of_each_device_is_taken_lowest_id_first() {
        let fixture = Fixture::new().await;
        let mut devices = Vec::new();
        for n in 1..=10 {
            let device = fixture.device("bob", &n.to_string()).await;
            supplied(&fixture, &device, [n + 20, n + 10]).await;
            devices.push(device);
        }
        let empty = fixture.device("bob", "empty").await;
        let mut keys: Vec<i64> = devices.iter().map(|device| device.key).collect();
        keys.push(empty.key);

        let mut tx = fixture.store.begin().await.must();
        let taken = take(&mut tx, &keys).await.must();
        tx.commit(Wake::default()).await.must();

        assert_eq!(taken.len(), 10);
        for (device, n) in devices.iter().zip(1_u32..) {
            assert_eq!(taken[&device.key], opk(n + 10, &format!("key {}", n + 10)));
        }
        assert_eq!(
            fixture.number("SELECT COUNT(*) FROM one_time_keys").await,
            10
        );
    }

    #[tokio::test]
    async fn a_key_that_was_taken_comes_back_if_the_transaction_does_not_commit() {
        let fixture = Fixture::new().await;
        let bob = fixture.device("bob", "phone").await;
        supplied(&fixture, &bob, [1, 2]).await;

        let mut tx = fixture.store.begin().await.must();
        take(&mut tx, &[bob.key]).await.must();
        drop(tx);

        assert_eq!(
            [taken(&fixture, &bob).await, taken(&fixture, &bob).await],
            [Some(1), Some(2)]
        );
    }

    #[tokio::test]
    async fn no_id_is_issued_twice_whatever_is_supplied() {
        let fixture = Fixture::new().await;
        let bob = fixture.device("bob", "phone").await;
        supplied(&fixture, &bob, [1, 2, 5]).await;
        let mut issued = vec![taken(&fixture, &bob).await, taken(&fixture, &bob).await];

        let kept = [
            supplied(&fixture, &bob, [1, 2]).await,
            supplied(&fixture, &bob, [3, 5]).await,
            supplied(&fixture, &bob, [2, 7]).await,
        ];
        for _ in 0..4 {
            issued.push(taken(&fixture, &bob).await);
        }
        let after_all = supplied(&fixture, &bob, [4, 6, 7]).await;
        issued.push(taken(&fixture, &bob).await);

        assert_eq!((kept, after_all), ([0, 2, 1], 0));
        assert_eq!(
            issued,
            [Some(1), Some(2), Some(3), Some(5), Some(7), None, None]
        );
    }

    #[tokio::test]
    async fn a_key_in_stock_is_replaced() {
        let fixture = Fixture::new().await;
        let bob = fixture.device("bob", "phone").await;
        supplied(&fixture, &bob, [1]).await;

        let mut tx = fixture.store.begin().await.must();
        supply(&mut tx, bob.key, &[opk(1, "another")], 100)
            .await
            .must();
        let taken = take(&mut tx, &[bob.key]).await.must();
        tx.commit(Wake::default()).await.must();

        assert_eq!(taken[&bob.key], opk(1, "another"));
    }

    #[tokio::test]
    async fn a_stock_is_bounded_and_low_ids_come_first() {
        let fixture = Fixture::new().await;
        let bob = fixture.device("bob", "phone").await;
        supplied(&fixture, &bob, 1..=90).await;

        let first = supplied(&fixture, &bob, (81..=120).rev()).await;
        let full = supplied(&fixture, &bob, 101..=110).await;

        assert_eq!((first, full), (20, 0), "ten are replaced, ten are new");
        assert_eq!(
            fixture
                .number("SELECT MAX(opk_id) FROM one_time_keys")
                .await,
            100
        );
    }

    #[tokio::test]
    async fn a_device_is_asked_once_between_two_supplies_and_never_when_it_has_none() {
        let fixture = Fixture::new().await;
        let bob = fixture.device("bob", "phone").await;
        let asked = async || {
            let mut tx = fixture.store.begin().await.must();
            let asked = mark_supply_asked(&mut tx, bob.key, 3).await.must();
            tx.commit(Wake::default()).await.must();
            asked
        };

        let empty = asked().await;
        supplied(&fixture, &bob, 1..=4).await;
        let enough = asked().await;
        taken(&fixture, &bob).await;
        let low = [asked().await, asked().await];
        supplied(&fixture, &bob, []).await;
        let again = asked().await;

        assert_eq!((empty, enough), (None, None));
        assert_eq!(low, [Some(3), None]);
        assert_eq!(again, Some(3));
    }

    #[tokio::test]
    async fn a_signed_pre_key_replaces_the_one_before_even_under_its_id() {
        let fixture = Fixture::new().await;
        let bob = fixture.device("bob", "phone").await;
        let user = bob.address.user();
        let spk = |public: &str| SignedPreKeyPublic {
            spk_id: 1,
            public_key: public.as_bytes().to_vec().into(),
            signature: vec![1, 2, 3].into(),
        };

        for text in ["first", "second"] {
            let mut tx = fixture.store.begin().await.must();
            publish_signed(&mut tx, bob.key, &spk(text)).await.must();
            tx.commit(Wake::default()).await.must();
        }
        let mut tx = fixture.store.begin().await.must();
        let gone = publish_signed(&mut tx, -1, &spk("third")).await;

        let devices = bundle_devices(&fixture.store, &user, None, None)
            .await
            .must();
        assert_eq!(devices[0].spk, spk("second"));
        assert!(matches!(gone, Err(Error::NotFound("device"))));
    }

    #[tokio::test]
    async fn devices_are_found_all_or_one_but_never_the_one_left_out() {
        let fixture = Fixture::new().await;
        for device in ["phone", "laptop", "tablet"] {
            fixture.device("bob", device).await;
        }
        let carol = fixture.device("carol", "phone").await;
        let bob = fixture.device("bob", "last").await.address.user();
        let ids = async |user, device_id, except| {
            let devices = bundle_devices(&fixture.store, user, device_id, except)
                .await
                .must();
            devices
                .into_iter()
                .map(|device| device.device_id)
                .collect::<Vec<_>>()
        };

        assert_eq!(
            ids(&bob, None, None).await,
            ["phone", "laptop", "tablet", "last"]
        );
        assert_eq!(
            ids(&bob, None, Some("laptop")).await,
            ["phone", "tablet", "last"]
        );
        assert_eq!(ids(&bob, Some("tablet"), Some("laptop")).await, ["tablet"]);
        assert!(ids(&bob, Some("laptop"), Some("laptop")).await.is_empty());
        assert!(ids(&bob, Some("watch"), None).await.is_empty());
        assert_eq!(ids(&carol.address.user(), None, None).await, ["phone"]);
    }
}
