use super::*;
use cell_host::Rates;

use crate::home::Home;

fn holds(home: &tempfile::TempDir) -> (Holds, u32) {
    holds_at(home, Rates::default())
}

fn holds_at(home: &tempfile::TempDir, rates: Rates) -> (Holds, u32) {
    let home = Home::locate(Some(home.path().to_owned())).unwrap();
    let bank = Bank::open(&home).unwrap();
    let uid = bank.accounts.owner_uid();
    let book = Book::new(&home, 1 << 20, rates).unwrap();
    (Holds::new(bank, book), uid)
}

fn pay(holds: &mut Holds, uid: u32, sequence: u64, cell: &str, fuel: u64) -> anyhow::Result<()> {
    let rows = vec![UsageRow { cell: cell.into(), fuel, calls: 1, ..UsageRow::default() }];
    holds.pay((1, sequence), uid, rows, None)
}

fn earned(holds: &Holds, cell: &str) -> i64 {
    let account = holds.bank.accounts.cell(cell);
    holds.bank.ledger.balance(account).unwrap().posted_nano
}

/// A hold that somebody else released, as one that expired is, was asked for again and again: its user
/// was out of ATP for good.
#[test]
fn a_hold_that_is_gone_starves_nobody() {
    let home = tempfile::tempdir().unwrap();
    let (mut holds, uid) = holds(&home);
    assert_eq!(holds.raise(uid, 1, 1_000).unwrap(), 1_000);
    holds.bank.ledger.void(holds.of_user[&uid].id).unwrap();
    let error = pay(&mut holds, uid, 0, "a", 10).unwrap_err();
    assert!(error.downcast_ref::<LedgerError>().is_some_and(is_gone), "{error:#}");
    assert_eq!(holds.raise(uid, 1, 1_000).unwrap(), 1_000);
    pay(&mut holds, uid, 1, "a", 10).unwrap();
    assert_eq!(earned(&holds, "a"), 10);
    // Giving back what is gone is no failure either.
    holds.bank.ledger.void(holds.of_user[&uid].id).unwrap();
    holds.release(uid).unwrap();
}

/// What has to wait is kept by user and worker, however they take turns, and paid to the unit; a sum of
/// more cells than one payment takes is two.
#[test]
fn what_waits_is_merged_and_paid() {
    let home = tempfile::tempdir().unwrap();
    let (mut holds, uid) = holds(&home);
    holds.raise(uid, 1, 1_000_000).unwrap();
    let lost = HoldId::derive("lost", &[]);
    holds.fall_behind(InDoubt::Void(lost), &LedgerError::Busy);
    assert_eq!(holds.raise(uid, 1, 1_000).unwrap(), 0, "nothing more is set aside meanwhile");
    for sequence in 0..100 {
        pay(&mut holds, uid, sequence, "a", 3).unwrap();
        pay(&mut holds, uid + 1, sequence, "a", 5).unwrap();
    }
    assert_eq!(holds.waiting.len(), 1, "nothing was set aside for the other user");
    for cell in 0..PAYMENTS_MAX as u64 {
        pay(&mut holds, uid, 100 + cell, &format!("c{cell}"), 1).unwrap();
    }
    assert_eq!(holds.waiting.len(), 2, "a payment takes so many cells and no more");
    for _ in 0..3 {
        holds.release(uid).unwrap();
    }
    assert_eq!(holds.waiting.len(), 3);

    holds.catch_up().unwrap();
    assert!(!holds.is_behind());
    assert_eq!(earned(&holds, "a"), 300);
    assert_eq!(earned(&holds, "c0") + earned(&holds, "c1023"), 2);
    assert!(holds.of_user.is_empty());
    assert_eq!(holds.bank.ledger.verify().unwrap().open_holds, 0);
}

/// What is taken besides fuel is charged by its sum, and a worker that lies about it makes nothing free.
#[test]
fn only_sums_are_rounded() {
    let home = tempfile::tempdir().unwrap();
    // Three bytes cost a nano-ATP.
    let (mut holds, uid) = holds_at(&home, Rates([0, (1 << 30) / 3, 0]));
    holds.raise(uid, 1, 1_000).unwrap();
    let report = |holds: &mut Holds, sequence, taken| {
        let row = UsageRow { cell: "a".into(), fuel: 1, calls: 1, taken };
        holds.pay((1, sequence), uid, vec![row], None).unwrap();
    };
    report(&mut holds, 0, [0, u64::MAX, 0]);
    report(&mut holds, 1, [u64::MAX, 4_000, u64::MAX]);
    assert_eq!((earned(&holds, "a"), holds.taken.len()), (0, 0), "more than is set aside");
    for sequence in 2..302 {
        report(&mut holds, sequence, [9, 1, 9]);
    }
    // A third of a unit each; 300 times (2^30 / 3) of 2^30 is 99.99, rounded down.
    assert_eq!(earned(&holds, "a"), 300 + 99);
    for sequence in 302..1_000 {
        let row = UsageRow { cell: format!("c{sequence}"), fuel: 0, calls: 1, taken: [7, 0, 7] };
        holds.pay((1, sequence), uid, vec![row], None).unwrap();
    }
    assert_eq!(holds.taken.len(), 1, "what is free is not kept");
}
