//! The databases of a lab from the outside, by a connection of the test's own: whole, to prove that nothing
//! changed, and single numbers.

use std::{collections::BTreeMap, path::Path};

use sqlx::{
    AssertSqlSafe, Column as _, ConnectOptions as _, Row as _, SqliteConnection, TypeInfo as _,
    ValueRef as _,
    sqlite::{SqliteConnectOptions, SqliteRow},
};

use super::{Lab, PATIENCE, refusals::within};

/// What any call may touch, because it only says who was seen when.
const TABLE_OF_NO_MEANING: &str = "peers";
const COLUMN_OF_NO_MEANING: &str = "active_at";

/// Everything that the nodes of a lab have stored, table by table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot(BTreeMap<String, Vec<String>>);

impl Snapshot {
    /// Fails if anything differs, and shows only that.
    #[track_caller]
    pub(crate) fn assert_same(&self, after: &Self, what: &str) {
        for (table, rows) in &self.0 {
            let now = after.0.get(table);
            assert_eq!(now, Some(rows), "{what} changed {table}");
        }
        assert_eq!(self.0.len(), after.0.len(), "{what} added tables");
    }

    /// The tables that differ.
    pub(crate) fn changed(&self, after: &Self) -> Vec<String> {
        let differs = |table: &&String| self.0.get(*table) != after.0.get(*table);
        after.0.keys().filter(differs).cloned().collect()
    }
}

impl Lab {
    /// Everything that all nodes have stored.
    pub(crate) async fn snapshot(&self) -> Snapshot {
        let domains: Vec<String> = self.places().keys().cloned().collect();
        let mut all = BTreeMap::new();
        for domain in domains {
            dump(&domain, &self.database(&domain), &mut all).await;
        }
        Snapshot(all)
    }

    /// The one number that a query answers.
    pub(crate) async fn number(&self, domain: &str, sql: &'static str) -> i64 {
        let mut database = open(&self.database(domain)).await;
        sqlx::query_scalar(sql)
            .fetch_one(&mut database)
            .await
            .unwrap()
    }

    /// Returns once a query answers this number: what a node does in its own time has happened.
    pub(crate) async fn becomes(&self, domain: &str, sql: &'static str, number: i64) {
        let come = async {
            while self.number(domain, sql).await != number {
                tokio::task::yield_now().await;
            }
        };
        within(PATIENCE, sql, come).await;
    }

    /// Turns the clock minute by minute until a query answers this number: what a node does now and then has
    /// happened, and was not just under way when the clock was turned.
    pub(crate) async fn becomes_in_time(&self, domain: &str, sql: &'static str, number: i64) {
        let come = async {
            while self.number(domain, sql).await != number {
                self.clock.turn(60_000);
            }
        };
        within(PATIENCE, sql, come).await;
    }

    /// The texts that a query answers.
    pub(crate) async fn texts(&self, domain: &str, sql: &'static str) -> Vec<String> {
        let mut database = open(&self.database(domain)).await;
        sqlx::query_scalar(sql)
            .fetch_all(&mut database)
            .await
            .unwrap()
    }

    /// Fails if a message waits anywhere: in a mailbox for its device or in an outbox for its domain.
    pub(crate) async fn assert_nothing_waits(&self) {
        let domains: Vec<String> = self.places().keys().cloned().collect();
        for domain in domains {
            for (table, sql) in [
                ("mailbox", "SELECT COUNT(*) FROM mailbox"),
                ("outbox", "SELECT COUNT(*) FROM outbox"),
                ("bodies", "SELECT COUNT(*) FROM bodies"),
            ] {
                let rows = self.number(&domain, sql).await;
                assert_eq!(rows, 0, "rows in the {table} of {domain}");
            }
        }
    }
}

async fn open(database: &Path) -> SqliteConnection {
    SqliteConnectOptions::new()
        .filename(database)
        .read_only(true)
        .connect()
        .await
        .unwrap()
}

/// All tables but the one that only says which domain was seen when.
async fn dump(domain: &str, database: &Path, into: &mut BTreeMap<String, Vec<String>>) {
    let mut database = open(database).await;
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%' \
         AND name NOT LIKE '%sqlx%' AND name <> 'peers' ORDER BY name",
    )
    .fetch_all(&mut database)
    .await
    .unwrap();
    for table in tables.into_iter().filter(|t| t != TABLE_OF_NO_MEANING) {
        let query = AssertSqlSafe(format!("SELECT * FROM {table}"));
        let rows = sqlx::query(query).fetch_all(&mut database).await.unwrap();
        let mut rows: Vec<String> = rows.iter().map(line).collect();
        rows.sort();
        into.insert(format!("{domain}: {table}"), rows);
    }
}

fn line(row: &SqliteRow) -> String {
    let columns = row.columns().iter();
    let meant = columns.filter(|column| column.name() != COLUMN_OF_NO_MEANING);
    let cells = meant.map(|column| {
        let raw = row.try_get_raw(column.ordinal()).unwrap();
        let value = match raw.type_info().name() {
            "INTEGER" => row.get::<i64, _>(column.ordinal()).to_string(),
            "TEXT" => row.get::<String, _>(column.ordinal()),
            "BLOB" => digest(&row.get::<Vec<u8>, _>(column.ordinal())),
            other => other.to_owned(),
        };
        format!("{}={value}", column.name())
    });
    cells.collect::<Vec<_>>().join(" ")
}

/// Bodies and keys are long; their hash tells them apart.
fn digest(bytes: &[u8]) -> String {
    let hash = skiserver::signing::sha256(&[bytes]);
    let [a, b, c, d, ..] = hash;
    format!("{}:{a:02x}{b:02x}{c:02x}{d:02x}", bytes.len())
}
