//! The ledger in one SQLite file, which several processes may have open at once.
//!
//! It caches nothing between batches: each one is an immediate transaction that reads what it needs, because
//! another process may have written since. It never repairs: a file that is not right is refused and left alone.

mod file;
mod tables;

use std::path::{Path, PathBuf};

use cell_abi::AccountId;
use rusqlite::{Connection, ErrorCode, TransactionBehavior};

use crate::journal::Row;
use crate::rules;
use crate::{
    Balance, Checkpoint, Command, Entry, HoldId, HoldRecord, LedgerError, LedgerStore, Outcome,
    Verified, VerifyError,
};

/// A [`LedgerStore`] in an SQLite file, in WAL mode with `synchronous=FULL`.
#[derive(Debug)]
pub struct SqliteStore {
    connection: Connection,
    path: PathBuf,
    issuer: AccountId,
}

impl SqliteStore {
    /// Opens the ledger, or creates it, readable by its owner only (mode 0600), with this issuer.
    ///
    /// An existing file that is empty, something else, newer, damaged, or of another issuer is an error.
    pub fn open_or_create(path: &Path, issuer: AccountId) -> Result<Self, LedgerError> {
        file::create_if_missing(path, issuer)?;
        let store = Self::open(path)?;
        if store.issuer != issuer {
            return Err(LedgerError::WrongIssuer { found: store.issuer, expected: issuer });
        }
        Ok(store)
    }

    /// Opens an existing ledger. Reads the whole file once, to check its pages (`PRAGMA quick_check`).
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let store = Self::connect(path)?;
        file::check_pages(&store.connection, "quick_check")?;
        // A writer that was killed may have left a commit in the operating system's cache only. Checkpointing
        // forces it to the disk, so that no answer rests on something that a power cut takes back.
        store.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
        Ok(store)
    }

    /// Writes a copy of the ledger, as it is at one moment, to a new file (mode 0600), while others go on.
    pub fn backup(&self, to: &Path) -> Result<(), LedgerError> {
        file::backup(&self.connection, to)
    }

    fn connect(path: &Path) -> Result<Self, LedgerError> {
        let connection = file::connect(path)?;
        let issuer = connection.query_row("SELECT issuer FROM ledger", [], |row| row.get(0))?;
        Ok(Self { connection, path: path.to_owned(), issuer: AccountId::from_bytes(issuer) })
    }
}

impl LedgerStore for SqliteStore {
    fn apply(
        &mut self,
        commands: &[Command],
        now_ms: u64,
    ) -> Result<Vec<Result<Outcome, LedgerError>>, LedgerError> {
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut tables = tables::Writing::new(&transaction, self.issuer)?;
        let results = rules::apply_all(&mut tables, commands, now_ms)?;
        transaction.commit()?;
        Ok(results)
    }

    fn issuer(&self) -> AccountId {
        self.issuer
    }

    fn balance(&self, account: AccountId) -> Result<Balance, LedgerError> {
        tables::balance(&self.connection, account)
    }

    fn accounts(&self) -> Result<Vec<(AccountId, Balance)>, LedgerError> {
        tables::accounts(&self.connection)
    }

    fn history(
        &self,
        account: Option<AccountId>,
        before_seq: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Entry>, LedgerError> {
        tables::history(&self.connection, account, before_seq, limit)
    }

    fn hold(&self, id: HoldId) -> Result<Option<HoldRecord>, LedgerError> {
        tables::hold(&self.connection, id)
    }

    fn holds(&self) -> Result<Vec<HoldRecord>, LedgerError> {
        tables::open_holds(&self.connection)
    }

    fn verify(&self) -> Result<Verified, VerifyError> {
        // One read transaction, so that all tables are seen at one moment while others write.
        let transaction = self.connection.unchecked_transaction().map_err(LedgerError::from)?;
        file::check_pages(&transaction, "integrity_check")?;
        let fold = tables::fold(&transaction, self.issuer)?;
        fold.finish(&tables::snapshot(&transaction)?)
    }

    fn rows(&self, after_seq: u64, limit: u32) -> Result<Vec<Row>, LedgerError> {
        tables::rows(&self.connection, after_seq, limit)
    }

    fn keep_checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), LedgerError> {
        tables::keep_checkpoint(&self.connection, checkpoint)
    }

    fn checkpoints(&self) -> Result<Vec<Checkpoint>, LedgerError> {
        tables::checkpoints(&self.connection)
    }

    fn reopen(&self) -> Result<Box<dyn LedgerStore>, LedgerError> {
        Ok(Box::new(Self::connect(&self.path)?))
    }
}

/// Sorts SQLite's errors into: try again, the data is wrong, and the machine is.
impl From<rusqlite::Error> for LedgerError {
    fn from(error: rusqlite::Error) -> Self {
        let reason = error.to_string();
        match (error.sqlite_error_code(), &error) {
            (Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked), _) => Self::Busy,
            (
                Some(
                    ErrorCode::DatabaseCorrupt
                    | ErrorCode::NotADatabase
                    | ErrorCode::ConstraintViolation,
                ),
                _,
            )
            | (
                None,
                rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)
                | rusqlite::Error::QueryReturnedNoRows,
            ) => Self::Corrupt { reason },
            _ => Self::Storage { reason },
        }
    }
}

#[cfg(test)]
mod tests;
