//! Creating and opening the file: its schema, its mark, its settings.
//!
//! It reads and writes no books.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cell_abi::AccountId;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use crate::LedgerError;

/// "Cell" in ASCII, at a fixed place in the file's header, where `file` and other tools look.
const APPLICATION_ID: i64 = 0x4365_6c6c;
const SCHEMA_VERSION: i64 = 2;
/// How long a batch waits for another process's transaction before it gets [`LedgerError::Busy`].
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// The triggers are against mistakes, not against attackers: those are what the hash chain is for.
const SCHEMA: &str = "
CREATE TABLE ledger (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    issuer BLOB NOT NULL CHECK (length(issuer) = 32)
) STRICT;
CREATE TABLE journal (
    seq INTEGER PRIMARY KEY CHECK (seq >= 1),
    time_ms INTEGER NOT NULL CHECK (time_ms >= 0),
    kind INTEGER NOT NULL,
    content BLOB NOT NULL,
    prev_hash BLOB NOT NULL CHECK (length(prev_hash) = 32),
    hash BLOB NOT NULL CHECK (length(hash) = 32)
) STRICT;
CREATE TABLE accounts (
    id BLOB PRIMARY KEY CHECK (length(id) = 32),
    posted INTEGER NOT NULL,
    held INTEGER NOT NULL CHECK (held >= 0)
) STRICT, WITHOUT ROWID;
CREATE TABLE transfers (
    id BLOB PRIMARY KEY CHECK (length(id) = 32),
    seq INTEGER NOT NULL REFERENCES journal
) STRICT, WITHOUT ROWID;
CREATE TABLE holds (
    id BLOB PRIMARY KEY CHECK (length(id) = 32),
    account BLOB NOT NULL REFERENCES accounts,
    amount INTEGER NOT NULL CHECK (amount > 0),
    session BLOB NOT NULL CHECK (length(session) = 32),
    expires_ms INTEGER NOT NULL CHECK (expires_ms >= 0),
    opened_seq INTEGER NOT NULL REFERENCES journal,
    resolved_seq INTEGER REFERENCES journal
) STRICT, WITHOUT ROWID;
CREATE INDEX holds_open_by_session ON holds (session) WHERE resolved_seq IS NULL;
CREATE INDEX holds_open_by_expiry ON holds (expires_ms) WHERE resolved_seq IS NULL;
CREATE TABLE touched (
    account BLOB NOT NULL REFERENCES accounts,
    seq INTEGER NOT NULL REFERENCES journal,
    PRIMARY KEY (account, seq)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER journal_update BEFORE UPDATE ON journal BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER journal_delete BEFORE DELETE ON journal BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER transfers_update BEFORE UPDATE ON transfers BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER transfers_delete BEFORE DELETE ON transfers BEGIN SELECT RAISE(ABORT, 'append-only'); END;
";

/// What makes version 2 from version 1.
const CHECKPOINTS: &str = "
CREATE TABLE checkpoints (
    entries INTEGER NOT NULL CHECK (entries >= 0),
    node BLOB NOT NULL CHECK (length(node) = 32),
    content TEXT NOT NULL,
    PRIMARY KEY (entries, node)
) STRICT, WITHOUT ROWID;
";

/// Puts an empty ledger at `path` unless a file is there; of several processes at once, one does.
///
/// The file is made complete under another name and then linked, which fails if the name is taken. So a ledger
/// that was cut to zero bytes is never mistaken for one that is still to be created.
pub(super) fn create_if_missing(path: &Path, issuer: AccountId) -> Result<(), LedgerError> {
    if exists(path)? {
        return Ok(());
    }
    let wal = beside(path, "-wal");
    // SQLite would replay the leftover into the new file. It may be a living one: then the ledger exists by now.
    if exists(&wal)? && !exists(path)? {
        let reason = format!("{} is there and {} is not", wal.display(), path.display());
        return Err(LedgerError::Corrupt { reason });
    }
    let draft = new_draft(path)?;
    let created = create(&draft, issuer).and_then(|()| match fs::hard_link(&draft, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked.map_err(|error| io_error("link", path, &error)),
    });
    let removed = fs::remove_file(&draft).map_err(|error| io_error("remove", &draft, &error));
    created.and(removed)?;
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new("."));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| io_error("sync", directory, &error))
}

/// Opens an existing file that bears the mark, and sets what SQLite keeps per connection.
pub(super) fn connect(path: &Path) -> Result<Connection, LedgerError> {
    if !exists(path)? {
        return Err(LedgerError::Missing { path: path.to_owned() });
    }
    let mut connection = open_existing(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    let found = check_mark(&connection, path)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    use_wal(&connection)?;
    if found < SCHEMA_VERSION {
        upgrade(&mut connection)?;
    }
    Ok(connection)
}

/// Copies the whole file as it is at one moment; the copy is on the disk when this returns.
pub(super) fn backup(connection: &Connection, to: &Path) -> Result<(), LedgerError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
    let file = file.map_err(|error| io_error("create", to, &error))?;
    let written = (|| {
        let name = to.to_str().ok_or_else(|| LedgerError::Storage {
            reason: format!("{} is not a name in UTF-8", to.display()),
        })?;
        connection.execute("VACUUM INTO ?1", [name])?;
        file.sync_all().map_err(|error| io_error("sync", to, &error))
    })();
    // Half a copy is none.
    written.inspect_err(|_| drop(fs::remove_file(to)))
}

/// Runs `quick_check` or `integrity_check`.
pub(super) fn check_pages(connection: &Connection, pragma: &str) -> Result<(), LedgerError> {
    match connection.pragma_query_value(None, pragma, |row| row.get::<_, String>(0))?.as_str() {
        "ok" => Ok(()),
        first => Err(LedgerError::Corrupt { reason: first.to_owned() }),
    }
}

/// Brings an older file to the newest version, in one step; of several processes, one does.
fn upgrade(connection: &mut Connection) -> Result<(), LedgerError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found == 1 {
        transaction.execute_batch(CHECKPOINTS)?;
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    }
    Ok(transaction.commit()?)
}

/// The version of the file, which is one that this program knows.
fn check_mark(connection: &Connection, path: &Path) -> Result<i64, LedgerError> {
    let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let not_a_ledger = || LedgerError::NotALedger { path: path.to_owned() };
    match number("application_id") {
        Ok(APPLICATION_ID) => {}
        Ok(_) => return Err(not_a_ledger()),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) => {
            return Err(not_a_ledger());
        }
        Err(error) => return Err(error.into()),
    }
    match number("user_version")? {
        found @ 1..=SCHEMA_VERSION => Ok(found),
        found if found > SCHEMA_VERSION => {
            Err(LedgerError::NewerSchema { found, known: SCHEMA_VERSION })
        }
        found => {
            Err(LedgerError::Corrupt { reason: format!("there is no schema version {found}") })
        }
    }
}

/// An empty file of a new name. One left by a creation that was killed is passed over: its maker may be alive.
fn new_draft(path: &Path) -> Result<PathBuf, LedgerError> {
    static CREATIONS: AtomicU64 = AtomicU64::new(0);
    loop {
        let count = CREATIONS.fetch_add(1, Ordering::Relaxed);
        let draft = beside(path, &format!(".{}-{count}.new", process::id()));
        // SQLite gives the WAL the mode of the main file, so the mode is right from the first byte.
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft) {
            Ok(_) => return Ok(draft),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io_error("create", &draft, &error)),
        }
    }
}

fn create(draft: &Path, issuer: AccountId) -> Result<(), LedgerError> {
    let connection = open_existing(draft)?;
    connection.execute_batch("BEGIN")?;
    connection.pragma_update(None, "application_id", APPLICATION_ID)?;
    connection.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    connection.execute_batch(SCHEMA)?;
    connection.execute_batch(CHECKPOINTS)?;
    connection.execute("INSERT INTO ledger VALUES (1, ?1)", [issuer.as_bytes()])?;
    connection.execute_batch("COMMIT")?;
    use_wal(&connection)?;
    // Closing the last connection also writes the WAL back and removes it.
    connection.close().map_err(|(_, error)| error)?;
    File::open(draft)
        .and_then(|file| file.sync_all())
        .map_err(|error| io_error("sync", draft, &error))
}

/// Without CREATE, so that no file appears by accident, and without URI, so that a path is only a path.
fn open_existing(path: &Path) -> rusqlite::Result<Connection> {
    Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
}

fn use_wal(connection: &Connection) -> Result<(), LedgerError> {
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    if mode == "wal" {
        Ok(())
    } else {
        Err(LedgerError::Storage {
            reason: format!("the file system allows journal mode {mode}, wal is needed"),
        })
    }
}

fn exists(path: &Path) -> Result<bool, LedgerError> {
    path.try_exists().map_err(|error| io_error("look at", path, &error))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

fn io_error(verb: &str, path: &Path, error: &io::Error) -> LedgerError {
    LedgerError::Storage { reason: format!("{verb} {}: {error}", path.display()) }
}
