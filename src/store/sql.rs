//! What both engines share: values, rows, a connection that runs one statement at a time, and statements
//! for many rows. No statement of an aggregate lives here.

use bytes::Bytes;
use sqlx::{
    Arguments as _, Column as _, ConnectOptions as _, Row as _, SqliteConnection,
    sqlite::{SqliteArguments, SqliteConnectOptions, SqliteRow},
};

use crate::error::{Error, Result};

/// One bound value. Flags are integers; ids are text.
#[derive(Debug, Clone)]
pub enum Value {
    /// `BIGINT`.
    Int(i64),
    /// `TEXT`.
    Text(String),
    /// `BLOB` or `BYTEA`.
    Blob(Bytes),
}

macro_rules! value_from {
    ($($from:ty, $value:ident => $made:expr;)*) => {
        $(impl From<$from> for Value {
            fn from($value: $from) -> Self {
                $made
            }
        })*
    };
}

value_from! {
    i64, v => Self::Int(v);
    u32, v => Self::Int(i64::from(v));
    i32, v => Self::Int(i64::from(v));
    bool, v => Self::Int(i64::from(v));
    String, v => Self::Text(v);
    &str, v => Self::Text(v.to_owned());
    &String, v => Self::Text(v.clone());
    Bytes, v => Self::Blob(v);
    &Bytes, v => Self::Blob(v.clone());
    [u8; 32], v => Self::Blob(Bytes::copy_from_slice(&v));
    &[u8; 32], v => Self::Blob(Bytes::copy_from_slice(v));
    Vec<u8>, v => Self::Blob(v.into());
    &[u8], v => Self::Blob(Bytes::copy_from_slice(v));
}

/// One row of an answer; columns are read by position.
#[derive(Debug)]
pub struct Row(SqliteRow);

impl Row {
    /// The column as an integer.
    pub fn int(&self, column: usize) -> Result<i64> {
        self.0.try_get(column).map_err(Error::internal)
    }

    /// The column as text.
    pub fn text(&self, column: usize) -> Result<String> {
        self.0.try_get(column).map_err(Error::internal)
    }

    /// The column as bytes.
    pub fn blob(&self, column: usize) -> Result<Bytes> {
        self.0
            .try_get::<Vec<u8>, _>(column)
            .map(Bytes::from)
            .map_err(Error::internal)
    }

    /// The column as a SHA-256.
    pub fn hash(&self, column: usize) -> Result<[u8; 32]> {
        self.blob(column)?.as_ref().try_into().map_err(|_| {
            Error::internal(format!(
                "column {} holds no SHA-256",
                self.0.column(column).name()
            ))
        })
    }

    /// The column as a flag.
    pub fn flag(&self, column: usize) -> Result<bool> {
        Ok(self.int(column)? != 0)
    }

    /// The column as a small number.
    pub fn u32(&self, column: usize) -> Result<u32> {
        u32::try_from(self.int(column)?).map_err(Error::internal)
    }
}

pub(super) fn arguments(values: impl IntoIterator<Item = Value>) -> Result<SqliteArguments> {
    let mut arguments = SqliteArguments::default();
    for value in values {
        match value {
            Value::Int(v) => arguments.add(v),
            Value::Text(v) => arguments.add(v),
            Value::Blob(v) => arguments.add(Vec::from(v)),
        }
        .map_err(Error::Internal)?;
    }
    Ok(arguments)
}

/// One connection inside an open transaction. Everything that writes goes through one of these.
#[derive(Debug)]
pub struct Conn(SqliteConnection);

impl Conn {
    pub(super) async fn open(options: &SqliteConnectOptions) -> Result<Self> {
        options.connect().await.map(Self).map_err(Error::internal)
    }

    pub(super) fn raw(&mut self) -> &mut SqliteConnection {
        &mut self.0
    }

    pub(super) async fn close(self) {
        use sqlx::Connection as _;
        let _ = self.0.close().await;
    }

    /// Runs a statement and tells how many rows it touched.
    pub async fn execute(
        &mut self,
        sql: &'static str,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<u64> {
        let done = sqlx::query_with(sql, arguments(values)?)
            .execute(&mut self.0)
            .await;
        done.map(|d| d.rows_affected()).map_err(Error::internal)
    }

    /// Runs a statement and answers its rows.
    pub async fn rows(
        &mut self,
        sql: &'static str,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<Vec<Row>> {
        let rows = sqlx::query_with(sql, arguments(values)?)
            .fetch_all(&mut self.0)
            .await;
        rows.map(|r| r.into_iter().map(Row).collect())
            .map_err(Error::internal)
    }

    /// Runs a [`ManyRows`] statement over any number of rows, cut into the sizes that it has.
    pub async fn many<const N: usize>(
        &mut self,
        sql: &ManyRows<N>,
        rows: Vec<[Value; N]>,
    ) -> Result<Vec<Row>> {
        let mut answer = Vec::new();
        let mut rows = rows.into_iter();
        while rows.len() > 0 {
            let (size, text) = sql.fitting(rows.len());
            answer.extend(self.rows(text, rows.by_ref().take(size).flatten()).await?);
        }
        Ok(answer)
    }
}

pub(super) async fn read(
    pool: &sqlx::SqlitePool,
    sql: &'static str,
    values: impl IntoIterator<Item = Value>,
) -> Result<Vec<Row>> {
    let rows = sqlx::query_with(sql, arguments(values)?)
        .fetch_all(pool)
        .await;
    rows.map(|r| r.into_iter().map(Row).collect())
        .map_err(|error| match error {
            sqlx::Error::PoolTimedOut => Error::Busy("too many readers"),
            sqlx::Error::PoolClosed => super::STOPPED,
            other => Error::internal(other),
        })
}

const SIZES: [usize; 4] = [256, 64, 8, 1];

/// A statement in sizes for 1, 8, 64 and 256 rows of `N` columns each.
#[derive(Debug)]
pub struct ManyRows<const N: usize>([&'static str; 4]);

impl<const N: usize> ManyRows<N> {
    /// Writes the statement in each size. Every row is `pattern` with `?` for the next parameter.
    /// Called once per statement, from a `LazyLock`, so the texts live as long as the process.
    pub fn new(head: &str, pattern: &str, tail: &str) -> Self {
        Self(SIZES.map(|size| {
            let mut sql = head.to_owned();
            let mut parameter = 0;
            for row in 0..size {
                sql.push_str(if row == 0 { " " } else { ", " });
                for piece in pattern.split_inclusive('?') {
                    if let Some(text) = piece.strip_suffix('?') {
                        parameter += 1;
                        sql.push_str(text);
                        sql.push('$');
                        sql.push_str(&parameter.to_string());
                    } else {
                        sql.push_str(piece);
                    }
                }
            }
            sql.push(' ');
            sql.push_str(tail);
            &*sql.leak()
        }))
    }

    fn fitting(&self, rows: usize) -> (usize, &'static str) {
        let [s256, s64, s8, s1] = self.0;
        match rows {
            256.. => (256, s256),
            64.. => (64, s64),
            8.. => (8, s8),
            _ => (1, s1),
        }
    }
}

/// A statement that takes any number of rows: `many_rows!(NAME, columns, head, row pattern, tail)`.
macro_rules! many_rows {
    ($name:ident, $columns:literal, $head:expr, $pattern:expr, $tail:expr) => {
        static $name: std::sync::LazyLock<$crate::store::sql::ManyRows<$columns>> =
            std::sync::LazyLock::new(|| $crate::store::sql::ManyRows::new($head, $pattern, $tail));
    };
}
pub(crate) use many_rows;
