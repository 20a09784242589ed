use super::*;
use cell_host::Rates;

use crate::home::Home;

fn holds(home: &tempfile::TempDir) -> (Holds, u32) {
    let home = Home::locate(Some(home.path().to_owned())).unwrap();
    let bank = Bank::open(&home).unwrap();
    let uid = bank.accounts.owner_uid();
    let book = Book::new(&home, 1 << 20, Rates::default()).unwrap();
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
    assert_eq!(holds.waiting.len(), 2);
    for cell in 0..PAYMENTS_MAX as u64 {
        pay(&mut holds, uid, 100 + cell, &format!("c{cell}"), 1).unwrap();
    }
    assert_eq!(holds.waiting.len(), 3, "a payment takes so many cells and no more");
    for _ in 0..3 {
        holds.release(uid).unwrap();
    }
    assert_eq!(holds.waiting.len(), 4);

    holds.catch_up().unwrap();
    assert!(!holds.is_behind());
    assert_eq!(earned(&holds, "a"), 300, "the other user had nothing set aside");
    assert_eq!(earned(&holds, "c0") + earned(&holds, "c1023"), 2);
    assert!(holds.of_user.is_empty());
    assert_eq!(holds.bank.ledger.verify().unwrap().open_holds, 0);
}
