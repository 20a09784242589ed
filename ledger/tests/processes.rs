//! Several processes on one file, some of them killed: what was acknowledged is there, and the books add up.
//!
//! Each test starts this same program again as its children; the environment tells them what to be.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "helpers of tests, too, panic; children report on stderr, which the test harness leaves alone"
)]

use std::env;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Program, Stdio};

use cell_abi::{AccountId, NanoAtp};
use cell_ledger::{
    Hold, HoldId, Ledger, LedgerError, LedgerStore as _, Outcome, Payment, SessionId, Settle,
    SqliteStore, Transfer, TransferId,
};

const ISSUER: AccountId = AccountId::from_bytes([0; 32]);
const ALICE: AccountId = AccountId::from_bytes([1; 32]);
const BOB: AccountId = AccountId::from_bytes([2; 32]);
const LEDGER: &str = "CELL_LEDGER_TEST_FILE";
const NAME: &str = "CELL_LEDGER_TEST_NAME";

fn start_child(test: &str, path: &Path, name: &str) -> Child {
    Program::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(LEDGER, path)
        .env(NAME, name)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The file and the child's name, if this process is a child.
fn as_child() -> Option<(PathBuf, String)> {
    Some((env::var_os(LEDGER)?.into(), env::var(NAME).unwrap()))
}

fn transfer(id: TransferId, debit: AccountId, credit: AccountId, amount: u64) -> Transfer {
    Transfer { id, debit, credit, amount: NanoAtp(amount), memo: String::new() }
}

/// Pays for ever, in groups: transfers, holds and settlements, each acknowledged by a line with its transfer id.
fn pay_until_killed(path: &Path, name: &str) {
    let ledger = Ledger::open(path, ISSUER).unwrap();
    std::thread::scope(|scope| {
        for payer in 0..4_u64 {
            let ledger = ledger.clone();
            scope.spawn(move || {
                let session = SessionId::derive("session", &[name.as_bytes()]);
                for number in 0_u64.. {
                    let parts: [&[u8]; 3] =
                        [name.as_bytes(), &payer.to_le_bytes(), &number.to_le_bytes()];
                    let (id, hold) =
                        (TransferId::derive("pay", &parts), HoldId::derive("hold", &parts));
                    if number % 2 == 0 {
                        ledger.transfer(transfer(id, ALICE, BOB, 3)).unwrap();
                    } else {
                        let (amount, expires_ms) = (NanoAtp(10), ledger.now_ms() + 1_000_000);
                        let hold = Hold {
                            id: hold,
                            account: ALICE,
                            amount,
                            amount_min: amount,
                            session,
                            expires_ms,
                        };
                        ledger.hold(hold.clone()).unwrap();
                        let payment =
                            Payment { id, credit: BOB, amount: NanoAtp(3), memo: String::new() };
                        ledger
                            .settle(Settle { hold: hold.id, payments: vec![payment], next: None })
                            .unwrap();
                    }
                    eprintln!("paid {id}");
                }
            });
        }
    });
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    if let Some((path, name)) = as_child() {
        return pay_until_killed(&path, &name);
    }
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("ledger.db");
    let ledger = Ledger::open(&path, ISSUER).unwrap();
    ledger
        .transfer(transfer(TransferId::derive("grant", &[]), ISSUER, ALICE, 1_000_000_000))
        .unwrap();
    drop(ledger);

    let mut acknowledged = Vec::new();
    for round in 0..15_u64 {
        // Odd rounds kill two processes that share the file.
        let names: Vec<_> = (0..=round % 2).map(|child| format!("{round} {child}")).collect();
        let mut children: Vec<_> = names
            .iter()
            .map(|name| start_child("what_was_acknowledged_survives_a_kill", &path, name))
            .collect();
        // The payers go on while this reads, so the kill meets them at any point of a commit.
        let wanted =
            usize::from(TransferId::derive("kill", &[&round.to_le_bytes()]).as_bytes()[0]) % 60 + 1;
        let mut outputs: Vec<_> =
            children.iter_mut().map(|child| BufReader::new(child.stderr.take().unwrap())).collect();
        let mut lines = Vec::new();
        for output in &mut outputs {
            lines.extend(output.by_ref_lines().take(wanted));
        }
        assert_eq!(
            lines.len(),
            wanted * names.len(),
            "a child ended before it was killed: {lines:?}"
        );
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        for output in &mut outputs {
            lines.extend(output.by_ref_lines());
        }
        // Only a line that is complete acknowledges.
        acknowledged.extend(lines.iter().filter(|line| line.ends_with('\n')).map(|line| {
            TransferId::parse(
                line.trim_end().strip_prefix("paid ").unwrap_or_else(|| panic!("{line}")),
            )
            .unwrap()
        }));
        check_books(&path, &names, &acknowledged);
    }
}

fn check_books(path: &Path, names: &[String], acknowledged: &[TransferId]) {
    let ledger = Ledger::open(path, ISSUER).unwrap();
    let before = ledger.verify().unwrap();
    let paid = ledger.balance(BOB).unwrap().posted_nano;
    assert_eq!(paid, i64::try_from((before.transfers - 1) * 3).unwrap());
    let accounts = ledger.accounts().unwrap();
    assert_eq!(
        accounts.iter().map(|(_, balance)| i128::from(balance.posted_nano)).sum::<i128>(),
        0
    );
    // An id that is there conflicts with any other content; one that is missing would be paid.
    for id in acknowledged {
        let other = ledger.transfer(transfer(*id, ALICE, BOB, 1));
        assert_eq!(
            other,
            Err(LedgerError::TransferConflict { id: *id }),
            "an acknowledged payment is lost"
        );
    }
    let held: u64 = ledger.holds().unwrap().iter().map(|hold| hold.amount.0).sum();
    assert_eq!(ledger.balance(ALICE).unwrap().held.0, held);
    for name in names {
        ledger.void_session(SessionId::derive("session", &[name.as_bytes()])).unwrap();
    }
    assert_eq!(ledger.balance(ALICE).unwrap().held, NanoAtp::ZERO);
    assert_eq!(ledger.verify().unwrap().open_holds, 0);
}

/// Two processes want the last unit again and again; each unit is paid exactly once.
#[test]
fn one_process_wins_the_last_unit() {
    const ROUNDS: u64 = 40;
    if let Some((path, name)) = as_child() {
        let mut store = SqliteStore::open(&path).unwrap();
        for round in 0..ROUNDS {
            let id = TransferId::derive("race", &[name.as_bytes(), &round.to_le_bytes()]);
            let race = cell_ledger::Command::Transfer(transfer(id, ALICE, BOB, 1));
            match store.apply(&[race], round).unwrap().remove(0) {
                Ok(Outcome::Posted { .. }) => eprintln!("won"),
                Err(LedgerError::InsufficientFunds { .. }) => eprintln!("lost"),
                other => panic!("{other:?}"),
            }
        }
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("ledger.db");
    let ledger = Ledger::open(&path, ISSUER).unwrap();
    // Money for one and a half of them: the last unit falls into the middle of the race.
    ledger
        .transfer(transfer(TransferId::derive("grant", &[]), ISSUER, ALICE, ROUNDS * 3 / 2))
        .unwrap();
    let children =
        ["a", "b"].map(|name| start_child("one_process_wins_the_last_unit", &path, name));
    let outputs = children.map(|child| child.wait_with_output().unwrap());
    let mut won = 0;
    for output in &outputs {
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        won += text.lines().filter(|line| *line == "won").count() as u64;
    }
    assert_eq!(won, ROUNDS * 3 / 2);
    assert_eq!(ledger.balance(ALICE).unwrap().posted_nano, 0);
    assert_eq!(ledger.balance(BOB).unwrap().posted_nano, 60);
    assert_eq!(ledger.verify().unwrap().entries, ROUNDS * 3 / 2 + 1);
}

/// Lines with their end, so that a torn last line can be told, without giving the reader away.
trait ByRefLines {
    fn by_ref_lines(&mut self) -> impl Iterator<Item = String>;
}

impl<R: BufRead> ByRefLines for R {
    fn by_ref_lines(&mut self) -> impl Iterator<Item = String> {
        std::iter::from_fn(|| {
            let mut line = String::new();
            (self.read_line(&mut line).unwrap() > 0).then_some(line)
        })
    }
}
