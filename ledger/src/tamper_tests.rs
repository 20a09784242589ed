//! Somebody edits the file behind the ledger's back, and the audit must say where.

use std::fs;
use std::path::PathBuf;

use cell_abi::AccountId;
use rusqlite::{Connection, params};
use tempfile::TempDir;

use crate::conformance::{ISSUER, hold, hold_id, settle, transfer, transfer_id};
use crate::journal::{Head, Row};
use crate::{Command, EntryHash, LedgerError, LedgerStore, Outcome, SqliteStore, VerifyError};

const ALICE: AccountId = AccountId::from_bytes([1; 32]);
const BOB: AccountId = AccountId::from_bytes([2; 32]);

/// Eight entries: 1 issues 1,000 to Alice, 2 pays Bob 100, 3 to 5 hold and settle, 6 to 8 hold, void, pay.
fn books() -> (TempDir, PathBuf) {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("ledger.db");
    let mut store = SqliteStore::open_or_create(&path, ISSUER).unwrap();
    let commands = [
        transfer(1, ISSUER, ALICE, 1_000),
        transfer(2, ALICE, BOB, 100),
        hold(1, ALICE, 300, 300),
        settle(1, &[(3, BOB, 50)], Some(hold(2, ALICE, 200, 200))),
        settle(2, &[(4, BOB, 20)], None),
        hold(3, BOB, 70, 70),
        hold(4, ALICE, 10, 10),
        transfer(5, BOB, ALICE, 25),
    ];
    for (position, command) in commands.into_iter().enumerate() {
        let results = store.apply(&[command], 1_000 + position as u64).unwrap();
        assert!(results[0].is_ok(), "{results:?}");
    }
    assert_eq!(store.verify().unwrap().entries, 8);
    (home, path)
}

/// Runs SQL with every safeguard of the schema off, as somebody with the file could.
fn tamper(path: &PathBuf, sql: &str) {
    let connection = Connection::open(path).unwrap();
    let changed = connection.execute_batch(&format!(
        "PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON;
         DROP TRIGGER journal_update; DROP TRIGGER journal_delete;
         DROP TRIGGER transfers_update; DROP TRIGGER transfers_delete; {sql}"
    ));
    changed.unwrap();
    assert!(connection.changes() > 0, "nothing was changed by {sql}");
}

#[track_caller]
fn verify_after(sql: &str) -> VerifyError {
    let (_home, path) = books();
    tamper(&path, sql);
    SqliteStore::open(&path).unwrap().verify().expect_err(sql)
}

#[track_caller]
fn check_altered(sql: &str, expect_seq: u64) {
    let error = verify_after(sql);
    assert!(
        matches!(error, VerifyError::AlteredEntry { seq, .. } if seq == expect_seq),
        "{sql}: {error}"
    );
}

#[track_caller]
fn check_table(sql: &str, expect_table: &str, expect_key: &str, expect_seq: u64) {
    match verify_after(sql) {
        VerifyError::TableDiffers { table, key, seq, .. } => {
            assert_eq!((table, key.as_str(), seq), (expect_table, expect_key, expect_seq), "{sql}");
        }
        error => panic!("{sql}: {error}"),
    }
}

#[test]
fn altered_entries_are_named() {
    check_altered("UPDATE journal SET time_ms = time_ms + 1 WHERE seq = 3", 3);
    check_altered("UPDATE journal SET kind = 2 WHERE seq = 2", 2);
    check_altered("UPDATE journal SET content = zeroblob(length(content)) WHERE seq = 5", 5);
    check_altered("UPDATE journal SET content = CAST(content || x'00' AS BLOB) WHERE seq = 8", 8);
    check_altered("UPDATE journal SET hash = zeroblob(32) WHERE seq = 4", 4);
    let chain = verify_after("UPDATE journal SET prev_hash = zeroblob(32) WHERE seq = 4");
    assert!(matches!(chain, VerifyError::BrokenChain { seq: 4, .. }), "{chain}");
    let undecodable = VerifyError::Undecodable { seq: 6 };
    assert_eq!(verify_after("UPDATE journal SET kind = 300 WHERE seq = 6"), undecodable);
}

/// What the schema itself forbids is found before anything is read from the books.
#[test]
fn broken_constraints_are_refused_at_open() {
    #[track_caller]
    fn check(sql: &str, expect: &str) {
        let (_home, path) = books();
        tamper(&path, sql);
        match SqliteStore::open(&path) {
            Err(LedgerError::Corrupt { reason }) => {
                assert!(reason.contains(expect), "{sql}: {reason}")
            }
            other => panic!("{sql}: {other:?}"),
        }
    }
    check("UPDATE journal SET hash = x'00' WHERE seq = 6", "CHECK constraint failed in journal");
    check("UPDATE accounts SET held = -1", "CHECK constraint failed in accounts");
    check("UPDATE holds SET amount = 0", "CHECK constraint failed in holds");
}

/// The amount inside an entry, not only its envelope: somebody is paid 200 instead of 100.
#[test]
fn an_altered_amount_is_named() {
    let (_home, path) = books();
    let connection = Connection::open(&path).unwrap();
    let content: Vec<u8> = connection
        .query_row("SELECT content FROM journal WHERE seq = 2", [], |row| row.get(0))
        .unwrap();
    let mut altered = content;
    assert_eq!(altered[96..104], 100_u64.to_le_bytes());
    altered[96..104].copy_from_slice(&200_u64.to_le_bytes());
    connection.execute_batch("DROP TRIGGER journal_update").unwrap();
    connection.execute("UPDATE journal SET content = ?1 WHERE seq = 2", [altered]).unwrap();
    drop(connection);
    let error = SqliteStore::open(&path).unwrap().verify().unwrap_err();
    assert!(matches!(error, VerifyError::AlteredEntry { seq: 2, .. }), "{error}");
}

#[test]
fn missing_entries_are_named() {
    let missing = |seq| VerifyError::MissingEntry { seq };
    assert_eq!(verify_after("DELETE FROM journal WHERE seq = 1"), missing(1));
    assert_eq!(verify_after("DELETE FROM journal WHERE seq = 4"), missing(4));
    assert_eq!(verify_after("DELETE FROM journal WHERE seq = 8"), missing(8));
    assert_eq!(verify_after("DELETE FROM journal WHERE seq > 5"), missing(6));
    assert_eq!(verify_after("DELETE FROM journal"), missing(1));
}

#[test]
fn altered_tables_are_named() {
    let (alice, bob) = (ALICE.to_string(), BOB.to_string());
    let touched = |account: &str, seq: u64| format!("{account} in entry {seq}");
    let by_id =
        |table: &str, set: &str, id: &str| format!("UPDATE {table} SET {set} WHERE id = x'{id}'");
    check_table(&by_id("accounts", "posted = posted + 1", &alice), "account", &alice, 8);
    check_table(&by_id("accounts", "held = 0", &bob), "account", &bob, 8);
    check_table(&by_id("accounts", "held = held + 1", &alice), "account", &alice, 8);
    check_table(&format!("DELETE FROM accounts WHERE id = x'{alice}'"), "account", &alice, 8);
    let stranger = "aa".repeat(32);
    check_table(
        &format!("INSERT INTO accounts VALUES (x'{stranger}', 0, 0)"),
        "account",
        &stranger,
        0,
    );

    let paid = transfer_id(3).to_string();
    check_table(&format!("DELETE FROM transfers WHERE id = x'{paid}'"), "transfer", &paid, 4);
    check_table(&by_id("transfers", "seq = 1", &paid), "transfer", &paid, 4);
    check_table(
        &format!("INSERT INTO transfers VALUES (x'{stranger}', 2)"),
        "transfer",
        &stranger,
        2,
    );

    let (resolved, open) = (hold_id(1).to_string(), hold_id(3).to_string());
    check_table(&by_id("holds", "resolved_seq = NULL", &resolved), "hold", &resolved, 4);
    check_table(&by_id("holds", "resolved_seq = 8", &open), "hold", &open, 6);
    check_table(&by_id("holds", "expires_ms = 1", &open), "hold", &open, 6);
    check_table(&by_id("holds", "amount = 1", &open), "hold", &open, 6);
    check_table(&format!("DELETE FROM holds WHERE id = x'{open}'"), "hold", &open, 6);

    let delete = format!("DELETE FROM touched WHERE account = x'{bob}' AND seq = 5");
    check_table(&delete, "touched", &touched(&bob, 5), 5);
    let insert = format!("INSERT INTO touched VALUES (x'{bob}', 1)");
    check_table(&insert, "touched", &touched(&bob, 1), 1);
}

#[test]
fn another_issuer_breaks_the_chain() {
    let error = verify_after(&format!("UPDATE ledger SET issuer = x'{ALICE}'"));
    assert!(matches!(error, VerifyError::BrokenChain { seq: 1, .. }), "{error}");
}

/// Somebody who knows the format rewrites an entry and all hashes after it; the rules and the tables remain.
#[test]
fn rewritten_history_breaks_a_rule_or_a_table() {
    #[track_caller]
    fn check(seq: u64, command: &Command, outcome: Outcome) -> VerifyError {
        let (_home, path) = books();
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch("DROP TRIGGER journal_update").unwrap();
        let entries = SqliteStore::open(&path).unwrap().history(None, None, 100).unwrap();
        let mut head = Head::empty(ISSUER);
        for entry in entries.iter().rev() {
            let forged = entry.seq == seq;
            let row = Row::following(
                head,
                entry.time_ms,
                if forged { command } else { &entry.command },
                if forged { &outcome } else { &entry.outcome },
            );
            let sql = "UPDATE journal SET kind = ?1, content = ?2, prev_hash = ?3, hash = ?4 WHERE seq = ?5";
            let values = params![
                row.kind,
                row.content,
                row.prev_hash.as_bytes(),
                row.hash.as_bytes(),
                row.seq
            ];
            connection.execute(sql, values).unwrap();
            head = row.head();
        }
        SqliteStore::open(&path).unwrap().verify().unwrap_err()
    }
    let broken = |seq, rule| VerifyError::BrokenRule { seq, rule };
    let posted = Outcome::Posted { seq: 2 };
    let settled = |paid, released| Outcome::Settled {
        seq: 5,
        paid: cell_abi::NanoAtp(paid),
        released: cell_abi::NanoAtp(released),
        next_granted: cell_abi::NanoAtp::ZERO,
    };
    let held = |granted| Outcome::Held { seq: 6, granted: cell_abi::NanoAtp(granted) };

    // A smaller payment breaks no rule, and the balances tell.
    let error = check(2, &transfer(2, ALICE, BOB, 99), posted);
    assert!(matches!(error, VerifyError::TableDiffers { table: "account", .. }), "{error}");
    let negative = "no account but the issuer is negative, and nobody holds more than is posted";
    assert_eq!(check(2, &transfer(2, BOB, ALICE, 100), posted), broken(2, negative));
    assert_eq!(
        check(2, &transfer(2, ALICE, BOB, 0), posted),
        broken(2, "a transfer moves something")
    );
    assert_eq!(check(2, &transfer(2, BOB, BOB, 1), posted), broken(2, "debit and credit differ"));
    assert_eq!(
        check(2, &transfer(1, ALICE, BOB, 1), posted),
        broken(2, "a transfer id is used once")
    );
    let within = "payments stay within the hold";
    assert_eq!(check(5, &settle(2, &[(4, BOB, 201)], None), settled(201, 0)), broken(5, within));
    let paid_sum = "paid is the sum of the payments";
    assert_eq!(check(5, &settle(2, &[(4, BOB, 20)], None), settled(21, 179)), broken(5, paid_sum));
    let rest = "released is what was not paid";
    assert_eq!(check(5, &settle(2, &[(4, BOB, 20)], None), settled(20, 181)), broken(5, rest));
    let once = "a hold is opened before it is resolved, and resolved once";
    assert_eq!(check(5, &settle(1, &[(4, BOB, 20)], None), settled(20, 180)), broken(5, once));
    let grant = "a hold grants what is available";
    assert_eq!(check(6, &hold(3, BOB, 70, 70), held(69)), broken(6, grant));
    assert_eq!(check(6, &hold(3, BOB, 171, 1), held(171)), broken(6, grant));
    assert_eq!(check(6, &hold(1, BOB, 70, 70), held(70)), broken(6, "a hold id is used once"));
}

/// A flipped bit on the disk, wherever the memo of entry 2 lies in the file.
#[test]
fn a_flipped_byte_is_found() {
    let (_home, path) = books();
    let mut bytes = fs::read(&path).unwrap();
    let memo = b"transfer 2";
    let places: Vec<_> = bytes
        .windows(memo.len())
        .enumerate()
        .filter(|(_, window)| window == memo)
        .map(|(at, _)| at)
        .collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at] ^= 1;
    }
    fs::write(&path, bytes).unwrap();
    let error = SqliteStore::open(&path).unwrap().verify().unwrap_err();
    assert!(matches!(error, VerifyError::AlteredEntry { seq: 2, .. }), "{error}");
}

/// Pages of garbage in the middle of the file: opening refuses, and the file is left as it is.
#[test]
fn damaged_pages_are_refused_at_open() {
    let (_home, path) = books();
    let mut bytes = fs::read(&path).unwrap();
    let pages = bytes.len() / 4096;
    for page in 2..pages {
        bytes[page * 4096..page * 4096 + 64].fill(0xa5);
    }
    fs::write(&path, &bytes).unwrap();
    let refused = SqliteStore::open_or_create(&path, ISSUER).unwrap_err();
    assert!(matches!(refused, LedgerError::Corrupt { .. }), "{refused}");
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

/// What a file alone cannot tell: it was replaced by an older copy of itself. A kept head hash can.
#[test]
fn a_kept_head_tells_an_older_copy() {
    let (home, path) = books();
    let older = home.path().join("older.db");
    fs::copy(&path, &older).unwrap();
    let mut store = SqliteStore::open(&path).unwrap();
    store.apply(&[transfer(9, ALICE, BOB, 1)], 2_000).unwrap();
    let kept = store.verify().unwrap();
    let hash_at = |store: &SqliteStore, seq: u64| -> Option<EntryHash> {
        store
            .history(None, Some(seq + 1), 1)
            .unwrap()
            .first()
            .filter(|entry| entry.seq == seq)
            .map(|entry| entry.hash)
    };
    assert_eq!(hash_at(&store, kept.entries), Some(kept.head_hash));
    assert_eq!(hash_at(&SqliteStore::open(&older).unwrap(), kept.entries), None);
}
