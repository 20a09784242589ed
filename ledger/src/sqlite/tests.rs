use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Barrier;
use std::thread;

use super::*;
use crate::conformance::{ISSUER, transfer};

const ALICE: AccountId = AccountId::from_bytes([1; 32]);
const BOB: AccountId = AccountId::from_bytes([2; 32]);

/// A file that is not right is refused with `expect`, by both ways to open it, and not a byte of it changes.
#[track_caller]
fn check_refused(path: &Path, expect: impl Fn(&LedgerError) -> bool) {
    let before = fs::read(path).unwrap();
    for opened in [SqliteStore::open(path), SqliteStore::open_or_create(path, ISSUER)] {
        let error = opened.unwrap_err();
        assert!(expect(&error), "{error}");
    }
    assert_eq!(fs::read(path).unwrap(), before);
}

#[test]
fn created_for_the_owner_only() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("ledger.db");
    assert_eq!(SqliteStore::open(&path).unwrap_err(), LedgerError::Missing { path: path.clone() });
    let mut store = SqliteStore::open_or_create(&path, ISSUER).unwrap();
    store.apply(&[transfer(1, ISSUER, ALICE, 1)], 1).unwrap();
    let mut names = Vec::new();
    for entry in fs::read_dir(home.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(names, ["ledger.db", "ledger.db-shm", "ledger.db-wal"]);
}

#[test]
fn settings_are_in_force() {
    let home = tempfile::tempdir().unwrap();
    let store = SqliteStore::open_or_create(&home.path().join("ledger.db"), ISSUER).unwrap();
    let check = |pragma, expect: &str| {
        let value = store
            .connection
            .pragma_query_value(None, pragma, |row| row.get::<_, rusqlite::types::Value>(0));
        let text = match value.unwrap() {
            rusqlite::types::Value::Integer(number) => number.to_string(),
            rusqlite::types::Value::Text(text) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(text, expect, "{pragma}");
    };
    check("journal_mode", "wal");
    check("synchronous", "2");
    check("foreign_keys", "1");
    check("trusted_schema", "0");
    check("application_id", "1130720364");
    check("user_version", "2");
    check("busy_timeout", "10000");
}

#[test]
fn other_files_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let not_a_ledger = |error: &LedgerError| matches!(error, LedgerError::NotALedger { .. });
    let path = home.path().join("empty.db");
    fs::write(&path, "").unwrap();
    check_refused(&path, not_a_ledger);
    let path = home.path().join("text.db");
    fs::write(&path, "not a database, and longer than the header of one ".repeat(20)).unwrap();
    check_refused(&path, not_a_ledger);
    let path = home.path().join("other.db");
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE other (id)").unwrap();
    check_refused(&path, not_a_ledger);
}

#[test]
fn other_versions_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("ledger.db");
    drop(SqliteStore::open_or_create(&path, ISSUER).unwrap());
    let set_version = |version: i64| {
        Connection::open(&path).unwrap().pragma_update(None, "user_version", version).unwrap();
    };
    set_version(3);
    check_refused(&path, |error| *error == LedgerError::NewerSchema { found: 3, known: 2 });
    set_version(0);
    check_refused(&path, |error| matches!(error, LedgerError::Corrupt { .. }));
    set_version(2);
    assert!(SqliteStore::open(&path).is_ok());
}

/// A file of version 1 had no table for checkpoints; its books are as they were.
#[test]
fn an_older_file_is_brought_to_this_version() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("ledger.db");
    let mut store = SqliteStore::open_or_create(&path, ISSUER).unwrap();
    let transfer = crate::Transfer {
        id: crate::TransferId::derive("test", &[]),
        debit: ISSUER,
        credit: ALICE,
        amount: cell_abi::NanoAtp(5),
        memo: "before".into(),
    };
    store.apply(&[Command::Transfer(transfer)], 1).unwrap()[0].clone().unwrap();
    let before = store.verify().unwrap();
    drop(store);
    let older = Connection::open(&path).unwrap();
    older.execute_batch("DROP TABLE checkpoints; PRAGMA user_version = 1;").unwrap();
    drop(older);
    // Several processes may find it at once.
    let opening: Vec<_> = (0..4)
        .map(|_| {
            let path = path.clone();
            thread::spawn(move || SqliteStore::open(&path).unwrap().verify().unwrap())
        })
        .collect();
    for opened in opening {
        assert_eq!(opened.join().unwrap(), before);
    }
    assert_eq!(SqliteStore::open(&path).unwrap().checkpoints().unwrap(), []);
}

#[test]
fn another_issuer_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("ledger.db");
    drop(SqliteStore::open_or_create(&path, ISSUER).unwrap());
    let wrong = LedgerError::WrongIssuer { found: ISSUER, expected: ALICE };
    assert_eq!(SqliteStore::open_or_create(&path, ALICE).unwrap_err(), wrong);
    assert_eq!(SqliteStore::open(&path).unwrap().issuer(), ISSUER);
}

/// SQLite would replay a leftover WAL into the new file, and old money would be back in a new ledger.
#[test]
fn a_leftover_wal_is_not_replayed_into_a_new_file() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("ledger.db");
    fs::write(home.path().join("ledger.db-wal"), "leftover").unwrap();
    let refused = SqliteStore::open_or_create(&path, ISSUER).unwrap_err();
    assert!(matches!(refused, LedgerError::Corrupt { .. }), "{refused}");
    assert!(!path.exists());
}

#[test]
fn the_journal_is_append_only_for_everybody_with_sql() {
    let home = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open_or_create(&home.path().join("ledger.db"), ISSUER).unwrap();
    store.apply(&[transfer(1, ISSUER, ALICE, 1)], 1).unwrap();
    for sql in [
        "UPDATE journal SET time_ms = 0",
        "DELETE FROM journal",
        "UPDATE transfers SET seq = 1",
        "DELETE FROM transfers",
    ] {
        let error = store.connection.execute(sql, []).unwrap_err().to_string();
        assert!(error.contains("append-only"), "{sql}: {error}");
    }
}

#[test]
fn creating_at_once_creates_once() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("ledger.db");
    let barrier = Barrier::new(8);
    thread::scope(|scope| {
        for number in 0..8 {
            let (path, barrier) = (&path, &barrier);
            scope.spawn(move || {
                barrier.wait();
                let mut store = SqliteStore::open_or_create(path, ISSUER).unwrap();
                let results = store.apply(&[transfer(number, ISSUER, ALICE, 1)], 1).unwrap();
                assert!(results[0].is_ok());
            });
        }
    });
    let verified = SqliteStore::open(&path).unwrap().verify().unwrap();
    assert_eq!((verified.entries, verified.issued.0), (8, 8));
}

/// Several handles want the last unit, and each has its own id: one gets it, the others hear who is short.
#[test]
fn one_handle_wins_the_last_unit() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("ledger.db");
    SqliteStore::open_or_create(&path, ISSUER)
        .unwrap()
        .apply(&[transfer(0, ISSUER, ALICE, 1)], 1)
        .unwrap();
    for round in 0..20 {
        let barrier = Barrier::new(4);
        let wins: usize = thread::scope(|scope| {
            let racers: Vec<_> = (1..=4)
                .map(|racer| {
                    let (path, barrier) = (&path, &barrier);
                    scope.spawn(move || {
                        let mut store = SqliteStore::connect(path).unwrap();
                        barrier.wait();
                        let last = transfer(round * 10 + racer, ALICE, BOB, 1);
                        match store.apply(&[last], 1).unwrap().remove(0) {
                            Ok(_) => 1,
                            Err(LedgerError::InsufficientFunds { .. }) => 0,
                            Err(other) => panic!("{other}"),
                        }
                    })
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).sum()
        });
        assert_eq!(wins, 1, "round {round}");
        let mut store = SqliteStore::connect(&path).unwrap();
        store.apply(&[transfer(round * 10 + 9, BOB, ALICE, 1)], 1).unwrap().remove(0).unwrap();
    }
    assert_eq!(SqliteStore::open(&path).unwrap().verify().unwrap().entries, 41);
}

/// A full disk in the middle of a batch: nothing of the batch is there, and what was there before is.
#[test]
fn a_full_disk_rolls_the_batch_back() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("ledger.db");
    let mut store = SqliteStore::open_or_create(&path, ISSUER).unwrap();
    store.apply(&[transfer(0, ISSUER, ALICE, 500)], 1).unwrap();
    let before = store.verify().unwrap();
    let pages: i64 =
        store.connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    let limit = format!("PRAGMA max_page_count = {pages}");
    store.connection.query_row(&limit, [], |_| Ok(())).unwrap();
    let batch: Vec<_> = (1..500).map(|number| transfer(number, ALICE, BOB, 1)).collect();
    let full = store.apply(&batch, 1).unwrap_err();
    assert!(matches!(full, LedgerError::Storage { .. }), "{full}");
    assert_eq!(store.verify().unwrap(), before);
    store.connection.query_row("PRAGMA max_page_count = 100000", [], |_| Ok(())).unwrap();
    assert!(store.apply(&batch, 1).unwrap().iter().all(Result::is_ok));
}

/// Another process is in the middle of a transaction for longer than this one waits.
#[test]
fn a_locked_file_is_busy_and_nothing_else() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("ledger.db");
    let mut store = SqliteStore::open_or_create(&path, ISSUER).unwrap();
    store.connection.busy_timeout(std::time::Duration::ZERO).unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(store.apply(&[transfer(1, ISSUER, ALICE, 1)], 1), Err(LedgerError::Busy));
    assert_eq!(store.balance(ALICE), Ok(Balance::default()));
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(
        store.apply(&[transfer(1, ISSUER, ALICE, 1)], 1),
        Ok(vec![Ok(Outcome::Posted { seq: 1 })])
    );
}

/// A creation was killed, and the next start has the same process id, as in a container: it must not be stuck.
#[test]
fn a_leftover_draft_is_passed_over() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("ledger.db");
    for count in 0..1_000 {
        fs::write(
            home.path().join(format!("ledger.db.{}-{count}.new", std::process::id())),
            "half",
        )
        .unwrap();
    }
    assert_eq!(SqliteStore::open_or_create(&path, ISSUER).unwrap().verify().unwrap().entries, 0);
}
