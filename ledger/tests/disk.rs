//! A disk that fails under the ledger: it crashes at any sync and loses what no sync has covered, in
//! whole or in part, it cannot be written, it is full, or a sync fails.
//!
//! The disk is a library put between the program and its files (`disk/faults.c`); a child process,
//! this same program, pays as long as it can. Whatever happened, the books open afterwards, add up,
//! and have everything that was acknowledged.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "helpers of tests, too, panic; children report on stderr, which the test harness leaves alone"
)]

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cell_abi::{AccountId, NanoAtp};
use cell_ledger::{Ledger, LedgerError, Outcome, Transfer, TransferId};

const ISSUER: AccountId = AccountId::from_bytes([0; 32]);
const ALICE: AccountId = AccountId::from_bytes([1; 32]);
const BOB: AccountId = AccountId::from_bytes([2; 32]);
const LEDGER: &str = "CELL_DISK_LEDGER";
const NAME: &str = "CELL_DISK_NAME";
const KINDS: [&str; 5] = ["crash", "torn", "eio", "enospc", "fsync"];
/// What the library ends a process with that crashes.
const CRASHED: i32 = 77;
const PAYMENTS: u64 = 12;
/// A ledger is used by so many children, one after the other.
const CHILDREN_PER_LEDGER: u64 = 10;
const RUNS: u64 = 400;

fn transfer(id: TransferId, debit: AccountId, credit: AccountId, amount: u64) -> Transfer {
    Transfer { id, debit, credit, amount: NanoAtp(amount), memo: String::new() }
}

/// Pays until it has paid, or the ledger has stopped.
fn pay(path: &Path, name: &str) {
    let ledger = match Ledger::open(path, ISSUER) {
        Ok(ledger) => ledger,
        Err(error) => return eprintln!("not opened: {error}"),
    };
    let grant = transfer(TransferId::derive("grant", &[]), ISSUER, ALICE, 1_000_000);
    if let Err(error) = ledger.transfer(grant) {
        return eprintln!("stopped: {error}");
    }
    eprintln!("granted");
    for number in 0..PAYMENTS {
        let id = TransferId::derive("pay", &[name.as_bytes(), &number.to_le_bytes()]);
        match ledger.transfer(transfer(id, ALICE, BOB, 3)) {
            Ok(Outcome::Posted { .. }) => eprintln!("paid {id}"),
            other => {
                // Once it has stopped it takes nothing any more, whatever the disk does then.
                let again = ledger.transfer(transfer(id, ALICE, BOB, 3));
                assert!(matches!(again, Err(LedgerError::Stopped { .. })), "{other:?}, {again:?}");
                return eprintln!("stopped: {other:?}");
            }
        }
    }
}

/// The library, built; `None`, told, where there is no C compiler.
fn library(directory: &Path) -> Option<PathBuf> {
    let library = directory.join("faults.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/disk/faults.c");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
        .arg(&library)
        .args([source, "-ldl", "-lpthread"])
        .output();
    match built {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Some(library)
        }
        Err(error) => {
            eprintln!("skipped: disk::the_books_survive_a_disk_that_fails: cc: {error}");
            None
        }
    }
}

#[test]
fn the_books_survive_a_disk_that_fails() {
    if let Some(path) = env::var_os(LEDGER) {
        return pay(path.as_ref(), &env::var(NAME).unwrap());
    }
    let home = tempfile::tempdir().unwrap();
    let Some(library) = library(home.path()) else { return };
    let (mut crashed, mut stopped, mut untouched) = (0, 0, 0);
    let mut acknowledged: Vec<TransferId> = Vec::new();
    for run in 0..RUNS {
        let number = run / CHILDREN_PER_LEDGER;
        let path = home.path().join(format!("ledger{number}.db"));
        if run % CHILDREN_PER_LEDGER == 0 {
            acknowledged.clear();
        }
        let kind = KINDS[usize::try_from(run % 5).unwrap()];
        let mixed = TransferId::derive("fault", &[&run.to_le_bytes()]);
        // So many that a child comes to most of them: it syncs about 18 times, and writes 60.
        let end = if ["eio", "enospc"].contains(&kind) { 60 } else { 18 };
        let at = 1 + u64::from(mixed.as_bytes()[0]) % end;
        let what = format!("run {run}: {kind} at {at}");
        let output = Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "the_books_survive_a_disk_that_fails",
                "--nocapture",
                "--test-threads=1",
            ])
            .env("LD_PRELOAD", &library)
            .env("CELL_DISK_FAULT", kind)
            .env("CELL_DISK_AT", at.to_string())
            .env("CELL_DISK_SEED", run.to_string())
            .env("CELL_DISK_PATH", "ledger")
            .env(LEDGER, &path)
            .env(NAME, run.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains("panicked"), "{what}: {said}");
        let paid = said.lines().filter_map(|line| line.strip_prefix("paid "));
        acknowledged.extend(paid.map(|id| TransferId::parse(id).unwrap()));
        match output.status.code() {
            Some(CRASHED) => crashed += 1,
            Some(0) if said.contains("stopped:") || said.contains("not opened:") => stopped += 1,
            Some(0) => untouched += 1,
            _ => panic!("{what}: {}: {said}", output.status),
        }
        check_books(&what, &path, said.contains("granted"), &acknowledged);
    }
    println!(
        "{RUNS} runs: {crashed} crashed, {stopped} stopped, {untouched} ended before the fault"
    );
    assert!(crashed > RUNS / 4 && stopped > RUNS / 5, "hardly anything failed");
}

fn check_books(what: &str, path: &Path, granted: bool, acknowledged: &[TransferId]) {
    if !path.exists() {
        assert!(!granted && acknowledged.is_empty(), "{what}: the ledger is gone");
        return;
    }
    let ledger = Ledger::open(path, ISSUER).unwrap_or_else(|error| panic!("{what}: {error}"));
    let verified = ledger.verify().unwrap_or_else(|error| panic!("{what}: {error}"));
    let balances = ledger.accounts().unwrap();
    let sum: i128 = balances.iter().map(|(_, balance)| i128::from(balance.posted_nano)).sum();
    assert_eq!(sum, 0, "{what}");
    let paid = ledger.balance(BOB).unwrap().posted_nano;
    assert_eq!(paid, i64::try_from(verified.transfers.saturating_sub(1) * 3).unwrap(), "{what}");
    if granted {
        assert_eq!(ledger.balance(ALICE).unwrap().posted_nano, 1_000_000 - paid, "{what}");
    }
    for id in acknowledged {
        let other = ledger.transfer(transfer(*id, ALICE, BOB, 1));
        let conflict = Err(LedgerError::TransferConflict { id: *id });
        assert_eq!(other, conflict, "{what}: an acknowledged payment is lost");
    }
}
