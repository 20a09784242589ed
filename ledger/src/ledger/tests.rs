use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};

use super::*;
use crate::MemoryStore;
use crate::conformance::{ISSUER, hold, transfer};

const ALICE: AccountId = AccountId::from_bytes([1; 32]);
const BOB: AccountId = AccountId::from_bytes([2; 32]);

/// A store that reports each batch and can be made to wait, fail or panic before it applies it.
struct Scripted {
    inner: MemoryStore,
    batches: Sender<usize>,
    steps: Receiver<Step>,
}

enum Step {
    Apply,
    Fail(LedgerError),
    Panic,
}

impl LedgerStore for Scripted {
    fn apply(
        &mut self,
        commands: &[Command],
        now_ms: u64,
    ) -> Result<Vec<Result<Outcome, LedgerError>>, LedgerError> {
        self.batches.send(commands.len()).unwrap();
        match self.steps.recv().unwrap() {
            Step::Apply => self.inner.apply(commands, now_ms),
            Step::Fail(error) => Err(error),
            Step::Panic => panic!("scripted"),
        }
    }

    fn issuer(&self) -> AccountId {
        self.inner.issuer()
    }

    fn balance(&self, account: AccountId) -> Result<Balance, LedgerError> {
        self.inner.balance(account)
    }

    fn accounts(&self) -> Result<Vec<(AccountId, Balance)>, LedgerError> {
        self.inner.accounts()
    }

    fn history(
        &self,
        account: Option<AccountId>,
        before_seq: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Entry>, LedgerError> {
        self.inner.history(account, before_seq, limit)
    }

    fn hold(&self, id: HoldId) -> Result<Option<HoldRecord>, LedgerError> {
        self.inner.hold(id)
    }

    fn holds(&self) -> Result<Vec<HoldRecord>, LedgerError> {
        self.inner.holds()
    }

    fn verify(&self) -> Result<Verified, VerifyError> {
        self.inner.verify()
    }

    fn rows(&self, after_seq: u64, limit: u32) -> Result<Vec<Row>, LedgerError> {
        self.inner.rows(after_seq, limit)
    }

    fn keep_checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), LedgerError> {
        self.inner.keep_checkpoint(checkpoint)
    }

    fn checkpoints(&self) -> Result<Vec<Checkpoint>, LedgerError> {
        self.inner.checkpoints()
    }

    fn reopen(&self) -> Result<Box<dyn LedgerStore>, LedgerError> {
        self.inner.reopen()
    }
}

#[derive(Clone, Default)]
struct TestClock(Arc<AtomicU64>);

impl Clock for TestClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// A ledger whose batches wait for a step each, with a queue of four and batches of three.
fn scripted() -> (Ledger, MemoryStore, Receiver<usize>, Sender<Step>) {
    let inner = MemoryStore::new(ISSUER);
    let (batches, seen) = mpsc::channel();
    let (script, steps) = mpsc::channel();
    let options = LedgerOptions { queue_commands_max: 4, batch_commands_max: 3 };
    let store = Scripted { inner: inner.clone(), batches, steps };
    (Ledger::start(store, TestClock::default(), options).unwrap(), inner, seen, script)
}

fn stopped_by(reason: &str) -> LedgerError {
    LedgerError::Stopped { reason: reason.into() }
}

#[test]
fn commits_in_groups_and_says_when_the_queue_is_full() {
    let (ledger, _, seen, script) = scripted();
    let (answers, answered) = mpsc::channel();
    let submit = |number| {
        let answers = answers.clone();
        ledger.submit(transfer(number, ISSUER, ALICE, 1), move |result| {
            answers.send((number, result)).unwrap()
        })
    };
    submit(1).unwrap();
    // The writer is inside its first batch; four more fill the queue.
    assert_eq!(seen.recv(), Ok(1));
    for number in 2..=5 {
        submit(number).unwrap();
    }
    assert_eq!(submit(6), Err(LedgerError::QueueFull));
    for expect in [3, 1] {
        script.send(Step::Apply).unwrap();
        assert_eq!(seen.recv(), Ok(expect));
    }
    script.send(Step::Apply).unwrap();
    for number in 1..=5 {
        assert_eq!(answered.recv(), Ok((number, Ok(Outcome::Posted { seq: number }))));
    }
    assert_eq!(ledger.balance(ALICE).unwrap().available().0, 5);
}

#[test]
fn an_error_of_the_store_stops_everything_for_good() {
    let (ledger, _, seen, script) = scripted();
    let (answers, answered) = mpsc::channel();
    for number in 1..=2 {
        let answers = answers.clone();
        ledger
            .submit(transfer(number, ISSUER, ALICE, 1), move |result| answers.send(result).unwrap())
            .unwrap();
        if number == 1 {
            assert_eq!(seen.recv(), Ok(1));
        }
    }
    script.send(Step::Fail(LedgerError::Storage { reason: "disk I/O error".into() })).unwrap();
    let stopped = stopped_by("ledger storage: disk I/O error");
    // The one that failed and the one that waited behind it.
    assert_eq!(answered.recv(), Ok(Err(stopped.clone())));
    assert_eq!(answered.recv(), Ok(Err(stopped.clone())));
    assert_eq!(ledger.apply(transfer(3, ISSUER, ALICE, 1)), Err(stopped.clone()));
    assert_eq!(
        ledger.submit(transfer(3, ISSUER, ALICE, 1), |_| unreachable!()),
        Err(stopped.clone())
    );
    assert_eq!(ledger.balance(ALICE), Err(stopped.clone()));
    assert_eq!(ledger.verify(), Err(VerifyError::Unreadable(stopped)));
    drop(ledger);
    assert_eq!(seen.recv().ok(), None, "the store was asked again");
}

#[test]
fn a_panic_of_the_store_stops_and_answers() {
    let (ledger, _, _seen, script) = scripted();
    script.send(Step::Panic).unwrap();
    let stopped = stopped_by("ledger storage: the writer panicked");
    assert_eq!(ledger.apply(transfer(1, ISSUER, ALICE, 1)), Err(stopped.clone()));
    assert_eq!(ledger.apply(transfer(1, ISSUER, ALICE, 1)), Err(stopped));
}

#[test]
fn a_busy_file_stops_nothing() {
    let (ledger, _, _seen, script) = scripted();
    script.send(Step::Fail(LedgerError::Busy)).unwrap();
    script.send(Step::Apply).unwrap();
    assert_eq!(ledger.apply(transfer(1, ISSUER, ALICE, 1)), Err(LedgerError::Busy));
    assert_eq!(ledger.apply(transfer(1, ISSUER, ALICE, 1)), Ok(Outcome::Posted { seq: 1 }));
}

#[test]
fn a_panicking_answer_harms_nobody() {
    let (ledger, _, _seen, script) = scripted();
    script.send(Step::Apply).unwrap();
    script.send(Step::Apply).unwrap();
    ledger.submit(transfer(1, ISSUER, ALICE, 1), |_| panic!("scripted")).unwrap();
    assert_eq!(ledger.apply(transfer(2, ISSUER, ALICE, 1)), Ok(Outcome::Posted { seq: 2 }));
}

#[test]
fn the_last_drop_finishes_the_queue() {
    let (ledger, books, seen, script) = scripted();
    let (answers, answered) = mpsc::channel();
    for number in 1..=4 {
        let answers = answers.clone();
        ledger
            .submit(transfer(number, ISSUER, ALICE, 1), move |result| answers.send(result).unwrap())
            .unwrap();
    }
    for _ in 0..4 {
        script.send(Step::Apply).unwrap();
    }
    drop((ledger, answers));
    // Without waiting: the drop has waited.
    assert_eq!(answered.try_iter().filter(Result::is_ok).count(), 4);
    assert_eq!(seen.try_iter().sum::<usize>(), 4);
    assert_eq!(books.balance(ALICE).unwrap().posted_nano, 4);
}

/// The last handle lives in an answer: the writer must not wait for itself.
#[test]
fn the_last_drop_may_be_inside_an_answer() {
    let ledger =
        Ledger::start(MemoryStore::new(ISSUER), TestClock::default(), LedgerOptions::default())
            .unwrap();
    let (done, is_done) = mpsc::channel();
    let (dropped, is_dropped) = mpsc::channel();
    let inside = ledger.clone();
    ledger
        .submit(transfer(1, ISSUER, ALICE, 1), move |result| {
            is_dropped.recv().unwrap();
            drop(inside);
            done.send(result).unwrap();
        })
        .unwrap();
    drop(ledger);
    dropped.send(()).unwrap();
    assert_eq!(is_done.recv(), Ok(Ok(Outcome::Posted { seq: 1 })));
}

#[test]
fn the_clock_is_the_ledgers() {
    let clock = TestClock::default();
    clock.0.store(4_999, Ordering::SeqCst);
    let ledger =
        Ledger::start(MemoryStore::new(ISSUER), clock.clone(), LedgerOptions::default()).unwrap();
    ledger.apply(transfer(1, ISSUER, ALICE, 10)).unwrap();
    ledger.apply(hold(1, ALICE, 10, 10)).unwrap();
    assert_eq!(ledger.history(None, None, 1).unwrap()[0].time_ms, 4_999);
    assert_eq!(ledger.void_expired(), Ok(Outcome::NothingToVoid));
    clock.0.store(5_000, Ordering::SeqCst);
    assert!(matches!(ledger.void_expired(), Ok(Outcome::Voided { holds: 1, .. })));
}

#[test]
fn many_threads_on_one_file() {
    let home = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&home.path().join("ledger.db"), ISSUER).unwrap();
    ledger.apply(transfer(0, ISSUER, ALICE, 50)).unwrap();
    let paid: usize = thread::scope(|scope| {
        let payers: Vec<_> = (0..8_u64)
            .map(|payer| {
                let ledger = ledger.clone();
                let pay = move |number| {
                    ledger.apply(transfer(payer * 100 + number, ALICE, BOB, 1)).is_ok()
                };
                scope.spawn(move || (1..=10).filter(|number| pay(*number)).count())
            })
            .collect();
        payers.into_iter().map(|payer| payer.join().unwrap()).sum()
    });
    assert_eq!(paid, 50);
    assert_eq!(ledger.balance(BOB).unwrap().available().0, 50);
    assert_eq!(ledger.verify().unwrap().entries, 51);
}
