//! The rules every store must pass: call [`run`] from the tests of a store.
//!
//! It does not test durability or what happens between processes; those tests are each store's own.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "it is a test that other crates can call"
)]

use cell_abi::{AccountId, NanoAtp};

use crate::command::{MEMO_BYTES_MAX, PAYMENTS_MAX};
use crate::{
    Balance, Checkpoint, Command, Hold, HoldId, LedgerError, LedgerStore, Outcome, Payment,
    SessionId, Settle, Transfer, TransferId,
};

/// The issuer of every ledger under test.
pub const ISSUER: AccountId = AccountId::from_bytes([0; 32]);
const ALICE: AccountId = AccountId::from_bytes([1; 32]);
const BOB: AccountId = AccountId::from_bytes([2; 32]);
const CAROL: AccountId = AccountId::from_bytes([3; 32]);
const LARGEST: u64 = i64::MAX.unsigned_abs();

/// Runs every rule on a fresh store from `create`, which gets the issuer. Panics at the first broken one.
pub fn run(mut create: impl FnMut(AccountId) -> Box<dyn LedgerStore>) {
    let rules: [fn(&mut Book); 16] = [
        transfers_move_money,
        transfers_repeat_harmlessly,
        shapes_are_refused,
        amounts_end_at_i64,
        holds_reserve,
        holds_grant_what_is_there,
        settling_pays_and_releases,
        settling_refuses_whole,
        settling_repeats_harmlessly,
        settling_opens_the_next_hold,
        voiding_releases_once,
        sessions_are_voided_together,
        expiry_counts_when_voided,
        refusals_leave_no_trace,
        history_is_paged,
        checkpoints_are_kept,
    ];
    for rule in rules {
        let mut book = Book { store: create(ISSUER), now_ms: 1_000 };
        assert_eq!(book.store.issuer(), ISSUER);
        rule(&mut book);
        book.audit();
    }
}

/// Rows come in pages, oldest first; a checkpoint is kept once, and the first one stays.
fn checkpoints_are_kept(book: &mut Book) {
    (0..5).for_each(|amount| book.issue(ALICE, 10 + amount));
    let rows = book.store.rows(0, 100).unwrap();
    assert_eq!(rows.iter().map(|row| row.seq).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert_eq!(book.store.rows(1, 2).unwrap(), rows[1..3]);
    assert_eq!(book.store.rows(5, 2).unwrap(), []);
    assert_eq!(book.store.rows(u64::MAX, 2).unwrap(), []);
    let head = rows[4].head();
    let key = |seed| ed25519_dalek::SigningKey::from_bytes(&[seed; 32]);
    let sign = |time_ms, seed| Checkpoint::sign(head, ISSUER, time_ms, &key(seed));
    let (first, other) = (sign(1, 1), sign(1, 2));
    for checkpoint in [&first, &sign(2, 1), &other] {
        book.store.keep_checkpoint(checkpoint).unwrap();
    }
    let mut expected = [first, other];
    expected.sort_by_key(|checkpoint| checkpoint.node);
    assert_eq!(book.store.checkpoints().unwrap(), expected);
    assert!(expected.iter().all(|checkpoint| checkpoint.head_hash == rows[4].hash));
}

struct Book {
    store: Box<dyn LedgerStore>,
    now_ms: u64,
}

impl Book {
    fn apply(&mut self, command: Command) -> Result<Outcome, LedgerError> {
        self.store.apply(&[command], self.now_ms).unwrap().pop().unwrap()
    }

    #[track_caller]
    fn check(&mut self, command: Command, expect: Result<Outcome, LedgerError>) {
        let before = self.store.verify().unwrap();
        assert_eq!(self.apply(command), expect);
        let after = self.store.verify().unwrap();
        let refused = !matches!(expect, Ok(outcome) if outcome != Outcome::NothingToVoid);
        assert!(!refused || before == after, "a refused command left a trace");
    }

    /// Asks twice: the second answer must be the first, and change nothing.
    #[track_caller]
    fn check_twice(&mut self, command: Command, expect: Outcome) {
        self.check(command.clone(), Ok(expect));
        self.check_again(command, expect);
    }

    #[track_caller]
    fn check_again(&mut self, command: Command, expect: Outcome) {
        let before = self.store.verify().unwrap();
        self.check(command, Ok(expect));
        assert_eq!(self.store.verify().unwrap(), before, "a repetition left a trace");
    }

    #[track_caller]
    fn check_balance(&self, account: AccountId, posted_nano: i64, held: u64) {
        let expect = Balance { posted_nano, held: NanoAtp(held) };
        assert_eq!(self.store.balance(account), Ok(expect), "{account:?}");
    }

    #[track_caller]
    fn issue(&mut self, credit: AccountId, amount: u64) {
        let id = TransferId::derive("issue", &[credit.as_bytes(), &amount.to_le_bytes()]);
        let issue =
            Transfer { id, debit: ISSUER, credit, amount: NanoAtp(amount), memo: String::new() };
        assert!(matches!(self.apply(Command::Transfer(issue)), Ok(Outcome::Posted { .. })));
    }

    #[track_caller]
    fn audit(&self) {
        let verified = self.store.verify().unwrap();
        let accounts = self.store.accounts().unwrap();
        let sum: i128 = accounts.iter().map(|(_, balance)| i128::from(balance.posted_nano)).sum();
        assert_eq!(sum, 0);
        assert_eq!(verified.accounts, accounts.len() as u64);
        assert_eq!(verified.open_holds, self.store.holds().unwrap().len() as u64);
        assert_eq!(self.store.reopen().unwrap().verify().unwrap(), verified);
    }
}

fn transfers_move_money(book: &mut Book) {
    book.check_balance(ALICE, 0, 0);
    book.check(transfer(1, ISSUER, ALICE, 100), Ok(Outcome::Posted { seq: 1 }));
    book.check(transfer(2, ALICE, BOB, 30), Ok(Outcome::Posted { seq: 2 }));
    book.check(transfer(3, BOB, ISSUER, 10), Ok(Outcome::Posted { seq: 3 }));
    book.check(transfer(4, ALICE, BOB, 71), short(ALICE, 70, 71));
    book.check(transfer(4, CAROL, BOB, 1), short(CAROL, 0, 1));
    // A refused id is still free.
    book.check(transfer(4, ALICE, BOB, 70), Ok(Outcome::Posted { seq: 4 }));
    book.check_balance(ISSUER, -90, 0);
    book.check_balance(ALICE, 0, 0);
    book.check_balance(BOB, 90, 0);
    assert_eq!(book.store.accounts().unwrap().len(), 3);
}

fn transfers_repeat_harmlessly(book: &mut Book) {
    book.issue(ALICE, 100);
    book.check_twice(transfer(1, ALICE, BOB, 100), Outcome::Posted { seq: 2 });
    // The id decides before funds do: Alice has nothing left, and hears of the conflict.
    let conflict = || Err(LedgerError::TransferConflict { id: transfer_id(1) });
    book.check(transfer(1, ALICE, BOB, 99), conflict());
    book.check(transfer(1, ALICE, CAROL, 100), conflict());
    book.check(transfer(1, BOB, ALICE, 100), conflict());
    let Command::Transfer(mut other) = transfer(1, ALICE, BOB, 100) else { unreachable!() };
    other.memo = "other".into();
    book.check(Command::Transfer(other), conflict());
    book.now_ms += 1;
    book.check_again(transfer(1, ALICE, BOB, 100), Outcome::Posted { seq: 2 });
}

fn shapes_are_refused(book: &mut Book) {
    book.issue(ALICE, 100);
    book.check(hold(1, ALICE, 10, 10), Ok(Outcome::Held { seq: 2, granted: NanoAtp(10) }));
    book.check(transfer(1, ALICE, BOB, 0), Err(LedgerError::ZeroAmount));
    book.check(hold(2, ALICE, 0, 0), Err(LedgerError::ZeroAmount));
    book.check(settle(1, &[(1, BOB, 0)], None), Err(LedgerError::ZeroAmount));
    book.check(transfer(1, ALICE, ALICE, 1), Err(LedgerError::SelfTransfer { account: ALICE }));
    book.check(
        settle(1, &[(1, ALICE, 1)], None),
        Err(LedgerError::SelfTransfer { account: ALICE }),
    );
    let above = LedgerError::MinimumAboveAmount { amount: NanoAtp(5), amount_min: NanoAtp(6) };
    book.check(hold(2, ALICE, 5, 6), Err(above.clone()));
    book.check(settle(1, &[], Some(hold(2, ALICE, 5, 6))), Err(above));

    let with_memo = |bytes: usize| {
        let Command::Transfer(transfer) = transfer(1, ALICE, BOB, 1) else { unreachable!() };
        Command::Transfer(Transfer { memo: "m".repeat(bytes), ..transfer })
    };
    book.check(
        with_memo(MEMO_BYTES_MAX + 1),
        Err(LedgerError::MemoTooLong { bytes: MEMO_BYTES_MAX + 1 }),
    );
    book.check(with_memo(MEMO_BYTES_MAX), Ok(Outcome::Posted { seq: 3 }));

    let many: Vec<_> = (0..=PAYMENTS_MAX).map(|number| (number as u64 + 10, BOB, 1)).collect();
    let too_many = LedgerError::TooManyPayments { payments: PAYMENTS_MAX + 1 };
    book.check(settle(1, &many, None), Err(too_many));

    let late = LARGEST + 1;
    let too_late = LedgerError::TimeTooLarge { time_ms: late };
    book.check(Command::VoidExpired { now_ms: late }, Err(too_late.clone()));
    let Command::Hold(endless) = hold(2, ALICE, 1, 1) else { unreachable!() };
    book.check(Command::Hold(Hold { expires_ms: late, ..endless }), Err(too_late.clone()));
    book.now_ms = late;
    book.check(transfer(2, ALICE, BOB, 1), Err(too_late));
}

fn amounts_end_at_i64(book: &mut Book) {
    let too_large = |amount| Err(LedgerError::AmountTooLarge { amount: NanoAtp(amount) });
    book.check(transfer(1, ISSUER, ALICE, LARGEST + 1), too_large(LARGEST + 1));
    book.check(transfer(1, ISSUER, ALICE, u64::MAX), too_large(u64::MAX));
    book.check(hold(1, ALICE, u64::MAX, 1), too_large(u64::MAX));
    book.check(transfer(1, ISSUER, ALICE, LARGEST), Ok(Outcome::Posted { seq: 1 }));
    // All the money there can be is out: not even one more, to whomever, paid or held.
    let overflow = || Err(LedgerError::BalanceOverflow { account: ISSUER });
    book.check(transfer(2, ISSUER, ALICE, 1), overflow());
    book.check(transfer(2, ISSUER, BOB, 1), overflow());
    book.check(hold(2, ISSUER, 1, 1), overflow());
    book.check(
        hold(1, ALICE, LARGEST, LARGEST),
        Ok(Outcome::Held { seq: 2, granted: NanoAtp(LARGEST) }),
    );
    // A sum that passes 64 bits on its way is still only too much.
    let exceeds = LedgerError::PaymentsExceedHold { hold: hold_id(1), held: NanoAtp(LARGEST) };
    let thrice = [(2, BOB, LARGEST), (3, BOB, LARGEST), (4, BOB, LARGEST)];
    book.check(settle(1, &thrice, None), Err(exceeds));
    book.check(settle(1, &[(2, BOB, LARGEST)], None), Ok(settled(3, LARGEST, 0, 0)));
    book.check(transfer(5, BOB, ISSUER, 1), Ok(Outcome::Posted { seq: 4 }));
    book.check(hold(2, ISSUER, 1, 1), Ok(Outcome::Held { seq: 5, granted: NanoAtp(1) }));
    book.check(transfer(6, ISSUER, BOB, 1), overflow());
}

fn holds_reserve(book: &mut Book) {
    book.issue(ALICE, 100);
    book.check_twice(hold(1, ALICE, 60, 60), Outcome::Held { seq: 2, granted: NanoAtp(60) });
    book.check_balance(ALICE, 100, 60);
    assert_eq!(book.store.balance(ALICE).unwrap().available(), NanoAtp(40));
    book.check(transfer(1, ALICE, BOB, 41), short(ALICE, 40, 41));
    book.check(hold(2, ALICE, 41, 41), short(ALICE, 40, 41));
    book.check(hold(1, ALICE, 61, 60), Err(LedgerError::HoldConflict { id: hold_id(1) }));
    book.check(hold(1, BOB, 60, 60), Err(LedgerError::HoldConflict { id: hold_id(1) }));
    let holds = book.store.holds().unwrap();
    assert_eq!((holds.len(), holds[0].id, holds[0].amount), (1, hold_id(1), NanoAtp(60)));
}

fn holds_grant_what_is_there(book: &mut Book) {
    book.issue(ALICE, 100);
    book.check_twice(hold(1, ALICE, 500, 50), Outcome::Held { seq: 2, granted: NanoAtp(100) });
    book.check(hold(2, ALICE, 500, 1), short(ALICE, 0, 1));
    // Zero as the least counts as one.
    book.check(hold(2, ALICE, 500, 0), short(ALICE, 0, 1));
    book.check(hold(2, BOB, 5, 0), short(BOB, 0, 1));
}

fn settling_pays_and_releases(book: &mut Book) {
    book.issue(ALICE, 100);
    book.apply(hold(1, ALICE, 80, 80)).unwrap();
    book.check(
        settle(1, &[(1, BOB, 10), (2, CAROL, 20), (3, BOB, 5)], None),
        Ok(settled(3, 35, 45, 0)),
    );
    book.check_balance(ALICE, 65, 0);
    book.check_balance(BOB, 15, 0);
    book.check_balance(CAROL, 20, 0);
    assert_eq!(book.store.holds(), Ok(vec![]));
    book.apply(hold(2, ALICE, 65, 65)).unwrap();
    book.check(settle(2, &[], None), Ok(settled(5, 0, 65, 0)));
    book.check_balance(ALICE, 65, 0);
}

fn settling_refuses_whole(book: &mut Book) {
    book.issue(ALICE, 100);
    book.apply(hold(1, ALICE, 50, 50)).unwrap();
    book.apply(transfer(1, ALICE, BOB, 10)).unwrap();
    let exceeds = LedgerError::PaymentsExceedHold { hold: hold_id(1), held: NanoAtp(50) };
    book.check(settle(1, &[(2, BOB, 30), (3, BOB, 21)], None), Err(exceeds));
    // A payment's id is taken even by a transfer that looks the same: that one was not paid from the hold.
    let taken = |number| Err(LedgerError::TransferConflict { id: transfer_id(number) });
    book.check(settle(1, &[(2, BOB, 30), (1, BOB, 10)], None), taken(1));
    book.check(settle(1, &[(2, BOB, 1), (2, BOB, 1)], None), taken(2));
    book.check(
        settle(1, &[], Some(hold(1, ALICE, 50, 50))),
        Err(LedgerError::HoldConflict { id: hold_id(1) }),
    );
    book.check(settle(9, &[], None), Err(LedgerError::UnknownHold { hold: hold_id(9) }));
    book.check(settle(1, &[(2, BOB, 50)], None), Ok(settled(4, 50, 0, 0)));
    book.check(transfer(2, ALICE, BOB, 50), taken(2));
}

fn settling_repeats_harmlessly(book: &mut Book) {
    book.issue(ALICE, 100);
    book.apply(hold(1, ALICE, 50, 50)).unwrap();
    let first = settle(1, &[(1, BOB, 50)], Some(hold(2, ALICE, 50, 50)));
    book.check_twice(first.clone(), settled(3, 50, 0, 50));
    let resolved = LedgerError::HoldResolved { hold: hold_id(1), seq: 3 };
    book.check(settle(1, &[(1, BOB, 49)], Some(hold(2, ALICE, 50, 50))), Err(resolved.clone()));
    book.check(settle(1, &[(1, BOB, 50)], None), Err(resolved.clone()));
    book.check(Command::Void { hold: hold_id(1) }, Err(resolved));
    book.check(hold(2, ALICE, 50, 50), Err(LedgerError::HoldConflict { id: hold_id(2) }));
    // The opening, too, has its answer for ever.
    book.check_again(hold(1, ALICE, 50, 50), Outcome::Held { seq: 2, granted: NanoAtp(50) });
    book.check(settle(2, &[], None), Ok(settled(4, 0, 50, 0)));
    book.check_again(first, settled(3, 50, 0, 50));
}

fn settling_opens_the_next_hold(book: &mut Book) {
    book.issue(ALICE, 100);
    book.apply(hold(1, ALICE, 100, 100)).unwrap();
    // What was released is available to the next hold; 70 are asked for and 60 are left.
    book.check_twice(
        settle(1, &[(1, BOB, 40)], Some(hold(2, ALICE, 70, 60))),
        settled(3, 40, 60, 60),
    );
    book.check_balance(ALICE, 60, 60);
    // 20 are left and at least 30 are needed: settled all the same, and nothing is opened.
    book.check_twice(
        settle(2, &[(2, BOB, 40)], Some(hold(3, ALICE, 70, 30))),
        settled(4, 40, 20, 0),
    );
    book.check_balance(ALICE, 20, 0);
    assert_eq!(book.store.holds(), Ok(vec![]));
    book.check(settle(3, &[], None), Err(LedgerError::UnknownHold { hold: hold_id(3) }));
    // Its id stayed unused, and using it does not change the settlement's answer.
    book.check(hold(3, ALICE, 20, 20), Ok(Outcome::Held { seq: 5, granted: NanoAtp(20) }));
    book.check_again(
        settle(2, &[(2, BOB, 40)], Some(hold(3, ALICE, 70, 30))),
        settled(4, 40, 20, 0),
    );
    // The next hold may be on who was just paid.
    book.check(settle(3, &[(3, CAROL, 7)], Some(hold(4, CAROL, 9, 1))), Ok(settled(6, 7, 13, 7)));
    book.check_balance(CAROL, 7, 7);
}

fn voiding_releases_once(book: &mut Book) {
    book.issue(ALICE, 100);
    book.apply(hold(1, ALICE, 30, 30)).unwrap();
    book.check_twice(Command::Void { hold: hold_id(1) }, voided(3, 1, 30));
    book.check_balance(ALICE, 100, 0);
    let resolved = LedgerError::HoldResolved { hold: hold_id(1), seq: 3 };
    book.check(settle(1, &[(1, BOB, 1)], None), Err(resolved));
    book.check(
        Command::Void { hold: hold_id(2) },
        Err(LedgerError::UnknownHold { hold: hold_id(2) }),
    );
}

fn sessions_are_voided_together(book: &mut Book) {
    book.issue(ALICE, 100);
    book.issue(BOB, 50);
    let in_session = |command: Command, session| match command {
        Command::Hold(hold) => Command::Hold(Hold { session, ..hold }),
        other => other,
    };
    let (first, second) =
        (SessionId::derive("session", &[b"1"]), SessionId::derive("session", &[b"2"]));
    book.apply(in_session(hold(1, ALICE, 10, 10), first)).unwrap();
    book.apply(in_session(hold(2, BOB, 20, 20), first)).unwrap();
    book.apply(in_session(hold(3, ALICE, 30, 30), second)).unwrap();
    book.apply(in_session(hold(4, ALICE, 40, 40), first)).unwrap();
    book.check(settle(4, &[(1, BOB, 40)], None), Ok(settled(7, 40, 0, 0)));
    book.check(Command::VoidSession { session: first }, Ok(voided(8, 2, 30)));
    book.check(Command::VoidSession { session: first }, Ok(Outcome::NothingToVoid));
    book.check_balance(ALICE, 60, 30);
    book.check_balance(BOB, 90, 0);
    let resolved = LedgerError::HoldResolved { hold: hold_id(1), seq: 8 };
    book.check(Command::Void { hold: hold_id(1) }, Err(resolved));
    // A session's name can be used again.
    book.apply(in_session(hold(5, ALICE, 5, 5), first)).unwrap();
    book.check(Command::VoidSession { session: first }, Ok(voided(10, 1, 5)));
}

fn expiry_counts_when_voided(book: &mut Book) {
    book.issue(ALICE, 100);
    for number in 1..=3 {
        let Command::Hold(hold) = hold(number, ALICE, 10, 10) else { unreachable!() };
        book.apply(Command::Hold(Hold { expires_ms: 2_000 + number, ..hold })).unwrap();
    }
    book.check(Command::VoidExpired { now_ms: 2_000 }, Ok(Outcome::NothingToVoid));
    book.now_ms = 9_000;
    // All are past their time. The one that is settled before it was voided is settled.
    book.check(settle(1, &[(1, BOB, 10)], None), Ok(settled(5, 10, 0, 0)));
    book.check(Command::VoidExpired { now_ms: 2_002 }, Ok(voided(6, 1, 10)));
    let expired = LedgerError::HoldExpired { hold: hold_id(2), seq: 6 };
    book.check(settle(2, &[(2, BOB, 10)], None), Err(expired.clone()));
    book.check(Command::Void { hold: hold_id(2) }, Err(expired));
    book.check_balance(ALICE, 90, 10);
}

fn refusals_leave_no_trace(book: &mut Book) {
    let batch = [
        transfer(1, ISSUER, ALICE, 100),
        transfer(2, ALICE, BOB, 101),
        hold(1, ALICE, 60, 60),
        hold(2, ALICE, 60, 60),
        settle(1, &[(3, BOB, 20)], Some(hold(3, ALICE, 1, 1))),
        transfer(3, ISSUER, CAROL, 1),
        transfer(1, ISSUER, ALICE, 100),
        transfer(4, ALICE, CAROL, 79),
    ];
    let expect = vec![
        Ok(Outcome::Posted { seq: 1 }),
        short(ALICE, 100, 101),
        Ok(Outcome::Held { seq: 2, granted: NanoAtp(60) }),
        short(ALICE, 40, 60),
        Ok(settled(3, 20, 40, 1)),
        Err(LedgerError::TransferConflict { id: transfer_id(3) }),
        Ok(Outcome::Posted { seq: 1 }),
        Ok(Outcome::Posted { seq: 4 }),
    ];
    assert_eq!(book.store.apply(&batch, book.now_ms), Ok(expect));
    assert_eq!(book.store.apply(&[], book.now_ms), Ok(vec![]));
    assert_eq!(book.store.verify().unwrap().entries, 4);
    book.check_balance(ALICE, 1, 1);
}

fn history_is_paged(book: &mut Book) {
    for number in 1..=5 {
        book.now_ms += 1;
        book.apply(transfer(number, ISSUER, if number % 2 == 0 { BOB } else { ALICE }, number))
            .unwrap();
    }
    book.apply(hold(1, BOB, 3, 3)).unwrap();
    let check = |account, before_seq, limit, expect: &[u64]| {
        let entries = book.store.history(account, before_seq, limit).unwrap();
        let seqs: Vec<_> = entries.iter().map(|entry| entry.seq).collect();
        assert_eq!(seqs, expect, "{account:?} {before_seq:?} {limit}");
    };
    check(None, None, 100, &[6, 5, 4, 3, 2, 1]);
    check(None, None, 2, &[6, 5]);
    check(None, Some(5), 2, &[4, 3]);
    check(None, Some(u64::MAX), 1, &[6]);
    check(None, Some(1), 10, &[]);
    check(Some(BOB), None, 100, &[6, 4, 2]);
    check(Some(ALICE), Some(5), 100, &[3, 1]);
    check(Some(CAROL), None, 100, &[]);
    let entry = book.store.history(None, Some(3), 1).unwrap().remove(0);
    assert_eq!((entry.seq, entry.time_ms), (2, 1_002));
    assert_eq!(
        (entry.command, entry.outcome),
        (transfer(2, ISSUER, BOB, 2), Outcome::Posted { seq: 2 })
    );
    assert_eq!(
        book.store.history(None, None, 1).unwrap()[0].hash,
        book.store.verify().unwrap().head_hash
    );
}

pub(crate) fn transfer_id(number: u64) -> TransferId {
    TransferId::derive("transfer", &[&number.to_le_bytes()])
}

pub(crate) fn hold_id(number: u64) -> HoldId {
    HoldId::derive("hold", &[&number.to_le_bytes()])
}

pub(crate) fn transfer(number: u64, debit: AccountId, credit: AccountId, amount: u64) -> Command {
    let memo = format!("transfer {number}");
    Command::Transfer(Transfer {
        id: transfer_id(number),
        debit,
        credit,
        amount: NanoAtp(amount),
        memo,
    })
}

pub(crate) fn hold(number: u64, account: AccountId, amount: u64, amount_min: u64) -> Command {
    Command::Hold(Hold {
        id: hold_id(number),
        account,
        amount: NanoAtp(amount),
        amount_min: NanoAtp(amount_min),
        session: SessionId::derive("session", &[]),
        expires_ms: 5_000,
    })
}

pub(crate) fn settle(
    number: u64,
    payments: &[(u64, AccountId, u64)],
    next: Option<Command>,
) -> Command {
    let payments = payments.iter().map(|(number, credit, amount)| Payment {
        id: transfer_id(*number),
        credit: *credit,
        amount: NanoAtp(*amount),
        memo: format!("payment {number}"),
    });
    let next = next.map(|next| match next {
        Command::Hold(hold) => hold,
        other => unreachable!("not a hold: {other:?}"),
    });
    Command::Settle(Settle { hold: hold_id(number), payments: payments.collect(), next })
}

fn settled(seq: u64, paid: u64, released: u64, next_granted: u64) -> Outcome {
    let (paid, released, next_granted) = (NanoAtp(paid), NanoAtp(released), NanoAtp(next_granted));
    Outcome::Settled { seq, paid, released, next_granted }
}

fn voided(seq: u64, holds: u64, released: u64) -> Outcome {
    Outcome::Voided { seq, holds, released: NanoAtp(released) }
}

fn short(account: AccountId, available: u64, needed: u64) -> Result<Outcome, LedgerError> {
    Err(LedgerError::InsufficientFunds {
        account,
        available: NanoAtp(available),
        needed: NanoAtp(needed),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemoryStore, SqliteStore};

    #[test]
    fn memory() {
        run(|issuer| Box::new(MemoryStore::new(issuer)));
    }

    #[test]
    fn sqlite() {
        let home = tempfile::tempdir().unwrap();
        let mut files = 0;
        run(|issuer| {
            files += 1;
            let path = home.path().join(format!("{files}.db"));
            Box::new(SqliteStore::open_or_create(&path, issuer).unwrap())
        });
    }
}
