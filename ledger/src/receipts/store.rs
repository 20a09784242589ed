//! Where a node keeps its receipts, the leaves under them, and what is needed to run the calls again.
//!
//! Receipts stay. Leaves, requests and tapes are kept up to a number of bytes; the oldest go first, and
//! their calls cannot be checked any more.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cell_abi::AccountId;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row, params};

use super::{Leaf, Receipt, Terms};
use crate::signed::json;

/// "CelR" in ASCII.
const APPLICATION_ID: i64 = 0x4365_6c52;
const SCHEMA_VERSION: i64 = 1;
/// How long another process's transaction is waited for.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

const SCHEMA: &str = "
CREATE TABLE receipts (
    hash BLOB PRIMARY KEY CHECK (length(hash) = 32),
    chain BLOB NOT NULL CHECK (length(chain) = 32),
    sequence INTEGER NOT NULL,
    cell TEXT NOT NULL,
    payer BLOB NOT NULL CHECK (length(payer) = 32),
    time_ms INTEGER NOT NULL,
    receipt TEXT NOT NULL,
    UNIQUE (chain, sequence)
) STRICT;
CREATE INDEX receipts_by_time ON receipts (time_ms);
CREATE TABLE calls (
    number INTEGER PRIMARY KEY,
    chain BLOB NOT NULL,
    call INTEGER NOT NULL,
    leaf TEXT NOT NULL,
    input BLOB,
    tape BLOB,
    bytes INTEGER NOT NULL,
    UNIQUE (chain, call)
) STRICT;
";

/// Why receipts cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct StoreError {
    path: PathBuf,
    reason: String,
}

/// A leaf, and what its call needs to be run again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptCall {
    /// The leaf.
    pub leaf: Leaf,
    /// The request, if it was kept.
    pub input: Option<Vec<u8>>,
    /// The tape, if it was kept.
    pub tape: Option<Vec<u8>>,
}

/// Which receipts are asked for.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of this cell.
    pub cell: Option<String>,
    /// Of this payer.
    pub payer: Option<AccountId>,
    /// The latest so many; 0 for all.
    pub latest: u32,
}

/// The file.
#[derive(Debug)]
pub struct ReceiptStore {
    connection: Connection,
    path: PathBuf,
    bytes: u64,
    bytes_max: u64,
}

impl ReceiptStore {
    /// Opens the file, making it if it is not there. Calls are kept up to so many bytes.
    pub fn open(path: &Path, bytes_max: u64) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let open = || -> rusqlite::Result<(Connection, u64)> {
            let mut connection = Connection::open_with_flags(path, flags)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            connection.pragma_update(None, "trusted_schema", false)?;
            let transaction =
                connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let number =
                |pragma| transaction.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
            match (number("application_id")?, number("user_version")?) {
                (APPLICATION_ID, SCHEMA_VERSION) => {}
                (0, 0) => {
                    transaction.execute_batch(SCHEMA)?;
                    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
                    transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
                }
                _ => return Err(rusqlite::Error::InvalidQuery),
            }
            transaction.commit()?;
            connection.pragma_update(None, "journal_mode", "wal")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            let sum = "SELECT coalesce(sum(bytes), 0) FROM calls";
            let bytes = connection.query_row(sum, [], |row| row.get::<_, u64>(0))?;
            Ok((connection, bytes))
        };
        let failed = |error| match error {
            rusqlite::Error::InvalidQuery => StoreError {
                path: path.to_owned(),
                reason: "it holds no receipts that this version can read".into(),
            },
            error => StoreError { path: path.to_owned(), reason: error.to_string() },
        };
        let (connection, bytes) = open().map_err(failed)?;
        Ok(Self { connection, path: path.to_owned(), bytes, bytes_max })
    }

    /// The latest receipt of a chain.
    pub fn last(&self, terms: &Terms) -> Result<Option<Receipt>, StoreError> {
        let chain = terms.chain();
        let select = "SELECT receipt FROM receipts WHERE chain = ?1 ORDER BY sequence DESC LIMIT 1";
        let text = self.connection.query_row(select, [chain.as_bytes()], text_of).optional();
        self.parsed(text.map_err(|error| self.failed(error))?)
    }

    /// Keeps a receipt and its calls; both are on the disk when this returns.
    pub fn append(&mut self, receipt: &Receipt, calls: &[KeptCall]) -> Result<(), StoreError> {
        let appended = self.try_append(receipt, calls);
        self.bytes = appended.map_err(|error| self.failed(error))?;
        Ok(())
    }

    fn try_append(&mut self, receipt: &Receipt, calls: &[KeptCall]) -> rusqlite::Result<u64> {
        let chain = receipt.terms().chain();
        let transaction = self.connection.transaction()?;
        let mut bytes = self.bytes;
        {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO receipts (hash, chain, sequence, cell, payer, time_ms, receipt)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?;
            let text = String::from_utf8(json(receipt)).unwrap_or_default();
            insert.execute(params![
                receipt.hash().as_bytes(),
                chain.as_bytes(),
                receipt.sequence,
                receipt.cell,
                receipt.payer.as_bytes(),
                receipt.time_ms,
                text
            ])?;
            let mut insert = transaction.prepare_cached(
                "INSERT INTO calls (chain, call, leaf, input, tape, bytes) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?;
            for call in calls {
                let leaf = String::from_utf8(json(&call.leaf)).unwrap_or_default();
                let kept = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
                let size = (leaf.len() + kept(&call.input) + kept(&call.tape)) as u64;
                bytes += size;
                insert.execute(params![
                    chain.as_bytes(),
                    call.leaf.call,
                    leaf,
                    call.input,
                    call.tape,
                    size
                ])?;
            }
            let mut oldest = transaction
                .prepare_cached("SELECT number, bytes FROM calls ORDER BY number LIMIT 1")?;
            let mut delete = transaction.prepare_cached("DELETE FROM calls WHERE number = ?1")?;
            while bytes > self.bytes_max
                && let Some((number, size)) = oldest
                    .query_row([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, u64>(1)?)))
                    .optional()?
            {
                delete.execute([number])?;
                bytes = bytes.saturating_sub(size);
            }
        }
        transaction.commit()?;
        Ok(bytes)
    }

    /// The receipts asked for, oldest first.
    pub fn receipts(&self, filter: &Filter) -> Result<Vec<Receipt>, StoreError> {
        let limit = if filter.latest == 0 { -1 } else { i64::from(filter.latest) };
        let select = "SELECT receipt FROM receipts WHERE (?1 IS NULL OR cell = ?1) AND (?2 IS NULL OR payer = ?2)
                      ORDER BY rowid DESC LIMIT ?3";
        let payer = filter.payer.as_ref().map(|payer| payer.as_bytes().to_vec());
        let read = || -> rusqlite::Result<Vec<String>> {
            let mut statement = self.connection.prepare_cached(select)?;
            statement.query_map(params![filter.cell, payer, limit], text_of)?.collect()
        };
        let texts = read().map_err(|error| self.failed(error))?;
        texts.into_iter().rev().filter_map(|text| self.parsed(Some(text)).transpose()).collect()
    }

    /// The receipts whose hash begins with these digits: at most two.
    pub fn find(&self, digits: &str) -> Result<Vec<Receipt>, StoreError> {
        let select = "SELECT receipt FROM receipts WHERE substr(lower(hex(hash)), 1, length(?1)) = ?1 LIMIT 2";
        let read = || -> rusqlite::Result<Vec<String>> {
            let mut statement = self.connection.prepare_cached(select)?;
            statement.query_map([digits.to_ascii_lowercase()], text_of)?.collect()
        };
        let texts = read().map_err(|error| self.failed(error))?;
        texts.into_iter().filter_map(|text| self.parsed(Some(text)).transpose()).collect()
    }

    /// The receipt before one in its chain.
    pub fn before(&self, receipt: &Receipt) -> Result<Option<Receipt>, StoreError> {
        let select = "SELECT receipt FROM receipts WHERE chain = ?1 AND sequence = ?2";
        let chain = receipt.terms().chain();
        let before = receipt.sequence.saturating_sub(1);
        let text = self
            .connection
            .query_row(select, params![chain.as_bytes(), before], text_of)
            .optional();
        self.parsed(text.map_err(|error| self.failed(error))?)
    }

    /// What is kept of a receipt's calls, in their order; calls that were given up are missing.
    pub fn calls(&self, receipt: &Receipt) -> Result<Vec<KeptCall>, StoreError> {
        let select = "SELECT leaf, input, tape FROM calls WHERE chain = ?1 AND call BETWEEN ?2 AND ?3 ORDER BY call";
        let chain = receipt.terms().chain();
        type Kept = (String, Option<Vec<u8>>, Option<Vec<u8>>);
        let read = || -> rusqlite::Result<Vec<Kept>> {
            let mut statement = self.connection.prepare_cached(select)?;
            let range = params![chain.as_bytes(), receipt.first_call, receipt.last_call];
            let row = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
            statement.query_map(range, row)?.collect()
        };
        let rows = read().map_err(|error| self.failed(error))?;
        let kept = |(leaf, input, tape): Kept| {
            let leaf = serde_json::from_str(&leaf).map_err(|error| self.broken(&error))?;
            Ok(KeptCall { leaf, input, tape })
        };
        rows.into_iter().map(kept).collect()
    }

    /// What is kept of calls now, in bytes.
    pub const fn kept_bytes(&self) -> u64 {
        self.bytes
    }

    fn parsed(&self, text: Option<String>) -> Result<Option<Receipt>, StoreError> {
        text.map(|text| serde_json::from_str(&text).map_err(|error| self.broken(&error)))
            .transpose()
    }

    fn failed(&self, error: rusqlite::Error) -> StoreError {
        StoreError { path: self.path.clone(), reason: error.to_string() }
    }

    fn broken(&self, error: &serde_json::Error) -> StoreError {
        StoreError {
            path: self.path.clone(),
            reason: format!("what it keeps cannot be read: {error}"),
        }
    }
}

fn text_of(row: &Row<'_>) -> rusqlite::Result<String> {
    row.get(0)
}
