//! A cell's key-value state in one SQLite file of its own.
//!
//! Commits survive the end of the process at any point; they are not forced to the disk one by
//! one, so a power cut may take the last moments with it, but never half of a call.

use std::fmt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cell_host::StateError;
use cell_host::state::Writes;
use rusqlite::{Connection, OptionalExtension as _, params};

/// The store; its file is opened when the cell first asks for its state.
pub(super) struct FileState {
    path: std::path::PathBuf,
    open: Mutex<Option<Open>>,
    /// Bytes of all keys and values, as last seen.
    counted: Mutex<Option<u64>>,
}

struct Open {
    connection: Connection,
    bytes: u64,
}

impl fmt::Debug for FileState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileState").field("path", &self.path).finish_non_exhaustive()
    }
}

impl FileState {
    /// State kept in this directory.
    pub(super) fn new(directory: &Path) -> Self {
        Self { path: directory.join("state.db"), open: Mutex::default(), counted: Mutex::default() }
    }

    fn with<T>(
        &self,
        work: impl FnOnce(&mut Open) -> rusqlite::Result<T>,
    ) -> Result<T, StateError> {
        let mut guard: MutexGuard<'_, Option<Open>> =
            self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let result = match guard.as_mut() {
            Some(open) => work(open),
            None => Open::at(&self.path).and_then(|open| work(guard.insert(open))),
        };
        if let Some(open) = guard.as_ref() {
            *self.counted.lock().unwrap_or_else(PoisonError::into_inner) = Some(open.bytes);
        }
        if result.is_err() {
            // The file may have been replaced or pulled away; the next call opens it anew.
            *guard = None;
        }
        result.map_err(|error| StateError(format!("{}: {error}", self.path.display())))
    }
}

impl Open {
    fn at(path: &Path) -> rusqlite::Result<Self> {
        let connection = Connection::open(path)?;
        connection.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA trusted_schema = OFF;
             CREATE TABLE IF NOT EXISTS state (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID, STRICT;",
        )?;
        let mut this = Self { connection, bytes: 0 };
        this.bytes = this.count()?;
        Ok(this)
    }

    fn count(&self) -> rusqlite::Result<u64> {
        let sum = "SELECT coalesce(sum(length(key) + length(value)), 0) FROM state";
        let bytes: i64 = self.connection.query_row(sum, [], |row| row.get(0))?;
        Ok(bytes.unsigned_abs())
    }
}

impl FileState {
    /// The value of a key.
    pub(super) fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        self.with(|open| {
            let mut select =
                open.connection.prepare_cached("SELECT value FROM state WHERE key = ?1")?;
            select.query_row([key], |row| row.get(0)).optional()
        })
    }

    /// Writes all of this or none of it; refuses to grow past this many bytes. The worker has seen to
    /// that before, unless it was taken over.
    pub(super) fn commit(&self, writes: &Writes, bytes_max: u64) -> Result<(), StateError> {
        let mut is_refused = false;
        self.with(|open| {
            let mut change = 0_i64;
            let transaction = open.connection.transaction()?;
            {
                let mut size = transaction.prepare_cached(
                    "SELECT length(key) + length(value) FROM state WHERE key = ?1",
                )?;
                let mut set = transaction
                    .prepare_cached("INSERT OR REPLACE INTO state (key, value) VALUES (?1, ?2)")?;
                let mut delete = transaction.prepare_cached("DELETE FROM state WHERE key = ?1")?;
                for (key, value) in writes {
                    let before: i64 =
                        size.query_row([key], |row| row.get(0)).optional()?.unwrap_or(0);
                    let after = match value {
                        Some(value) => {
                            set.execute(params![key, value])?;
                            i64::try_from(key.len() + value.len()).unwrap_or(i64::MAX)
                        }
                        None => {
                            delete.execute([key])?;
                            0
                        }
                    };
                    change += after - before;
                }
            }
            let bytes = open.bytes.saturating_add_signed(change);
            is_refused = change > 0 && bytes > bytes_max;
            if is_refused {
                return Ok(());
            }
            transaction.commit()?;
            open.bytes = bytes;
            Ok(())
        })?;
        if is_refused { Err(StateError("it would grow past its quota".into())) } else { Ok(()) }
    }

    /// Bytes of all keys and values.
    pub(super) fn bytes(&self) -> Result<u64, StateError> {
        self.with(|open| Ok(open.bytes))
    }

    /// The same as last seen; `None` if nobody has looked.
    pub(super) fn counted(&self) -> Option<u64> {
        *self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a state that is not open, and does not keep it open.
    pub(super) fn count_closed(&self) -> Result<(), StateError> {
        if !self.path.exists() {
            *self.counted.lock().unwrap_or_else(PoisonError::into_inner) = Some(0);
            return Ok(());
        }
        let was_open = self.is_open();
        let counted = self.bytes();
        if counted.is_err() {
            // Nobody can use it either; who opens it later counts it then.
            *self.counted.lock().unwrap_or_else(PoisonError::into_inner) = Some(0);
        }
        counted?;
        if !was_open {
            self.close();
        }
        Ok(())
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Closes the file until it is asked for again.
    pub(super) fn close(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_and_are_counted() {
        let directory = tempfile::tempdir().unwrap();
        let state = FileState::new(directory.path());
        let writes =
            Writes::from([(b"a".to_vec(), Some(vec![1, 2])), (b"b".to_vec(), Some(vec![3]))]);
        assert!(state.commit(&writes, 4).is_err());
        assert_eq!(state.bytes().unwrap(), 0);
        state.commit(&writes, 5).unwrap();
        // What is past its quota may still shrink.
        let fewer = Writes::from([(b"a".to_vec(), Some(vec![9])), (b"b".to_vec(), None)]);
        state.commit(&fewer, 0).unwrap();
        assert_eq!(state.bytes().unwrap(), 2);
        let reopened = FileState::new(directory.path());
        assert_eq!(reopened.counted(), None);
        reopened.count_closed().unwrap();
        assert_eq!((reopened.counted(), reopened.is_open()), (Some(2), false));
        assert_eq!(reopened.value(b"a").unwrap(), Some(vec![9]));
        assert_eq!(reopened.value(b"b").unwrap(), None);
        assert_eq!(reopened.bytes().unwrap(), 2);
    }

    #[test]
    fn a_missing_directory_is_an_error() {
        let state = FileState::new(Path::new("/nonexistent/cell"));
        assert!(state.value(b"a").is_err());
    }
}
