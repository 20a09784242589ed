//! Seeded histories with faults: clients that ask, lose answers, ask again, late and in another
//! order, of a store that fails before and after it commits and is opened anew. A plain oracle that
//! shares no code with the rules follows what was really committed.
//!
//! `CELL_LEDGER_SEED=N cargo nextest run histories` runs one history again.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use cell_abi::{AccountId, NanoAtp};

use crate::conformance::ISSUER;
use crate::private_server::Server;
use crate::{
    Command, Hold, HoldId, LedgerError, LedgerStore, MemoryStore, Outcome, Payment, PostgresStore,
    SessionId, Settle, SqliteStore, Transfer, TransferId,
};

/// Numbers that depend on the seed alone (SplitMix64, Steele et al. 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// The books as a child would keep them: what everybody has, what is set aside, what was done.
#[derive(Default)]
struct Oracle {
    posted: BTreeMap<AccountId, i128>,
    held: BTreeMap<AccountId, i128>,
    /// What each id stood for, and whether a hold is still open.
    transfers: BTreeMap<TransferId, (AccountId, AccountId, u64)>,
    holds: BTreeMap<HoldId, (Hold, bool)>,
    /// What was answered to each command that was applied.
    answers: Vec<(Command, bool)>,
}

impl Oracle {
    /// Follows a command that the store committed or refused, and says whether it should have.
    fn follow(&mut self, command: &Command) -> bool {
        if let Some((_, answer)) = self.answers.iter().find(|(known, _)| known == command) {
            return *answer;
        }
        let allowed = match command {
            Command::Transfer(t) => {
                let fits = self.is_free(&[t.id]) && self.can_pay(t.debit, t.amount.0);
                if fits {
                    self.pay(t.id, t.debit, t.credit, t.amount.0);
                }
                fits
            }
            Command::Hold(hold) => self.open(hold),
            Command::Settle(settle) => self.settle(settle),
            Command::Void { hold } => self.close(*hold).is_some(),
            Command::VoidSession { session } => {
                let open: Vec<_> = self
                    .holds
                    .iter()
                    .filter(|(_, (hold, is_open))| *is_open && hold.session == *session)
                    .map(|(id, _)| *id)
                    .collect();
                for id in open {
                    self.close(id);
                }
                // Not remembered: asked again, it is about what is open then.
                return true;
            }
            Command::VoidExpired { .. } => return true,
        };
        if allowed {
            self.answers.push((command.clone(), true));
        }
        allowed
    }

    fn is_free(&self, ids: &[TransferId]) -> bool {
        ids.iter().all(|id| !self.transfers.contains_key(id))
    }

    fn can_pay(&self, account: AccountId, amount: u64) -> bool {
        let of = |map: &BTreeMap<AccountId, i128>| map.get(&account).copied().unwrap_or(0);
        account == ISSUER || of(&self.posted) - of(&self.held) >= i128::from(amount)
    }

    fn pay(&mut self, id: TransferId, debit: AccountId, credit: AccountId, amount: u64) {
        *self.posted.entry(debit).or_default() -= i128::from(amount);
        *self.posted.entry(credit).or_default() += i128::from(amount);
        assert!(self.transfers.insert(id, (debit, credit, amount)).is_none(), "paid twice");
    }

    fn open(&mut self, hold: &Hold) -> bool {
        if self.holds.contains_key(&hold.id) || !self.can_pay(hold.account, hold.amount.0) {
            return false;
        }
        *self.held.entry(hold.account).or_default() += i128::from(hold.amount.0);
        self.holds.insert(hold.id, (hold.clone(), true));
        true
    }

    fn close(&mut self, id: HoldId) -> Option<Hold> {
        let (hold, is_open) = self.holds.get_mut(&id)?;
        if !std::mem::take(is_open) {
            return None;
        }
        *self.held.entry(hold.account).or_default() -= i128::from(hold.amount.0);
        Some(hold.clone())
    }

    fn settle(&mut self, settle: &Settle) -> bool {
        let ids: Vec<_> = settle.payments.iter().map(|payment| payment.id).collect();
        let sum: u64 = settle.payments.iter().map(|payment| payment.amount.0).sum();
        let fits = self.holds.get(&settle.hold).is_some_and(|(hold, is_open)| {
            *is_open
                && hold.amount.0 >= sum
                && settle.payments.iter().all(|p| p.credit != hold.account)
        });
        let next_is_new =
            settle.next.as_ref().is_none_or(|next| !self.holds.contains_key(&next.id));
        if !fits || !self.is_free(&ids) || !next_is_new {
            return false;
        }
        let Some(hold) = self.close(settle.hold) else { return false };
        for payment in &settle.payments {
            self.pay(payment.id, hold.account, payment.credit, payment.amount.0);
        }
        // Where there is too little for it none is opened, and the settlement stands.
        if let Some(next) = &settle.next {
            self.open(next);
        }
        true
    }
}

/// A store that fails as machines do, and notes what was really committed.
struct Faulty {
    inner: Box<dyn LedgerStore>,
    random: Random,
    oracle: Rc<RefCell<Oracle>>,
    faults: u64,
}

impl Faulty {
    fn apply(&mut self, batch: &[Command], now_ms: u64) -> Result<Vec<bool>, LedgerError> {
        let lost = || LedgerError::Unavailable { reason: "injected".into() };
        if self.random.one_in(6) {
            self.faults += 1;
            return Err(lost());
        }
        let results = self.inner.apply(batch, now_ms)?;
        let mut oracle = self.oracle.borrow_mut();
        let mut answers = Vec::new();
        for (command, result) in batch.iter().zip(&results) {
            let expected = oracle.follow(command);
            assert_eq!(result.is_ok(), expected, "{command:?}: {result:?}");
            if let Err(error) = result {
                assert_ne!(error.fault(), cell_abi::status::Fault::Host, "{command:?}: {error}");
            }
            answers.push(matches!(result, Ok(outcome) if *outcome != Outcome::NothingToVoid));
        }
        if self.random.one_in(6) {
            // Committed, and nobody hears of it.
            self.faults += 1;
            return Err(lost());
        }
        Ok(answers)
    }
}

/// A few accounts that are not the issuer.
fn account(number: u64) -> AccountId {
    AccountId::from_bytes([u8::try_from(1 + number).unwrap(); 32])
}

/// One client's next wish; ids are few, so that wishes meet each other.
fn wish(random: &mut Random) -> Command {
    let hold = |random: &mut Random| {
        let number = random.below(10);
        Hold {
            id: HoldId::derive("hold", &[&number.to_le_bytes()]),
            account: account(number % 3),
            // One id has one content most of the time: a conflict now and then is wanted.
            amount: NanoAtp(10 + number + u64::from(random.one_in(12))),
            amount_min: NanoAtp(10 + number),
            session: SessionId::derive("session", &[&(number % 2).to_le_bytes()]),
            expires_ms: u64::MAX >> 1,
        }
    };
    let fixed = |mut hold: Hold| {
        hold.amount_min = hold.amount;
        hold
    };
    match random.below(10) {
        0 | 1 => {
            let number = random.below(8);
            Command::Transfer(Transfer {
                id: TransferId::derive("issue", &[&number.to_le_bytes()]),
                debit: ISSUER,
                credit: account(number % 3),
                amount: NanoAtp(20 + number),
                memo: String::new(),
            })
        }
        2 | 3 => {
            let number = random.below(20);
            Command::Transfer(Transfer {
                id: TransferId::derive("pay", &[&number.to_le_bytes()]),
                debit: account(number % 3),
                credit: account((number + 1) % 3),
                amount: NanoAtp(1 + number + u64::from(random.one_in(12))),
                memo: String::new(),
            })
        }
        4 | 5 => Command::Hold(fixed(hold(random))),
        6..=8 => {
            let (of, next) = (hold(random), random.one_in(2).then(|| fixed(hold(random))));
            let payments = (0..random.below(3)).map(|place| Payment {
                id: TransferId::derive("settle", &[of.id.as_bytes(), &place.to_le_bytes()]),
                credit: account(3),
                amount: NanoAtp(1 + random.below(7)),
                memo: String::new(),
            });
            let payments = payments.collect();
            Command::Settle(Settle { hold: of.id, payments, next: next.filter(|n| n.id != of.id) })
        }
        _ if random.one_in(3) => Command::VoidSession { session: hold(random).session },
        _ => Command::Void { hold: hold(random).id },
    }
}

/// Runs one history; `reopen` is what a process does that begins after the last one died.
fn run(seed: u64, steps: u64, mut reopen: impl FnMut() -> Box<dyn LedgerStore>) -> u64 {
    let mut random = Random(seed);
    let oracle = Rc::new(RefCell::new(Oracle::default()));
    let faults = Random(random.next());
    let mut store =
        Faulty { inner: reopen(), random: faults, oracle: Rc::clone(&oracle), faults: 0 };
    // Wishes whose answers were lost, and some that were answered and are asked again all the same.
    let mut unanswered: Vec<Command> = Vec::new();
    let mut acknowledged: Vec<Command> = Vec::new();
    for step in 0..steps {
        let mut batch: Vec<Command> = (0..=random.below(4)).map(|_| wish(&mut random)).collect();
        while !unanswered.is_empty() && random.one_in(2) {
            let at = usize::try_from(random.below(unanswered.len() as u64)).unwrap();
            batch.push(unanswered.swap_remove(at));
        }
        if !acknowledged.is_empty() && random.one_in(3) {
            let at = usize::try_from(random.below(acknowledged.len() as u64)).unwrap();
            batch.push(acknowledged[at].clone());
        }
        match store.apply(&batch, 1_000 + step) {
            Ok(answers) => {
                let done = batch.into_iter().zip(answers).filter(|(_, answer)| *answer);
                acknowledged.extend(done.map(|(command, _)| command));
            }
            Err(LedgerError::Unavailable { .. }) => unanswered.extend(batch),
            Err(error) => panic!("seed {seed}: {error}"),
        }
        if random.one_in(10) {
            store.inner = reopen();
        }
        check(seed, &*store.inner, &oracle.borrow(), &acknowledged);
    }
    store.faults
}

/// Nothing is lost, nothing is made, nobody pays twice.
fn check(seed: u64, store: &dyn LedgerStore, oracle: &Oracle, acknowledged: &[Command]) {
    let mut sum = 0;
    for (account, balance) in store.accounts().unwrap() {
        let posted = oracle.posted.get(&account).copied().unwrap_or(0);
        let held = oracle.held.get(&account).copied().unwrap_or(0);
        assert_eq!(i128::from(balance.posted_nano), posted, "seed {seed}: {account:?}");
        assert_eq!(i128::from(balance.held.0), held, "seed {seed}: {account:?}");
        assert!(account == ISSUER || posted >= held && held >= 0, "seed {seed}: {account:?}");
        sum += posted;
    }
    assert_eq!(sum, 0, "seed {seed}");
    let verified = store.verify().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    assert_eq!(verified.transfers, oracle.transfers.len() as u64, "seed {seed}");
    for command in acknowledged {
        let known = match command {
            Command::Transfer(transfer) => oracle.transfers.contains_key(&transfer.id),
            Command::Hold(hold) => oracle.holds.contains_key(&hold.id),
            _ => true,
        };
        assert!(known, "seed {seed}: {command:?} was acknowledged and is lost");
    }
}

/// Runs histories from a seed of their own each, or the one that the environment names.
fn histories(count: u64, steps: u64, mut one: impl FnMut(u64, u64) -> u64) {
    let wanted = std::env::var("CELL_LEDGER_SEED").ok().map(|seed| seed.parse().unwrap());
    let seeds = wanted.map_or(0..count, |seed: u64| seed..seed + 1);
    let (mut ran, mut faults) = (0, 0);
    for seed in seeds {
        faults += one(seed, steps);
        ran += 1;
    }
    println!("{ran} histories of {steps} steps, {faults} faults: nothing lost, made or paid twice");
    assert!(faults > 0 || wanted.is_some(), "nothing ever failed");
}

#[test]
fn histories_in_memory() {
    histories(10_000, 12, |seed, steps| {
        let store = MemoryStore::new(ISSUER);
        run(seed, steps, || Box::new(store.clone()))
    });
}

#[test]
fn histories_in_sqlite() {
    let home = tempfile::tempdir().unwrap();
    histories(400, 12, |seed, steps| {
        let path = home.path().join(format!("{seed}.db"));
        run(seed, steps, || Box::new(SqliteStore::open_or_create(&path, ISSUER).unwrap()))
    });
}

#[test]
fn histories_in_postgres() {
    let Some(server) = Server::start("histories_in_postgres") else { return };
    histories(40, 12, |seed, steps| {
        let url = server.database();
        run(seed, steps, || Box::new(PostgresStore::open_or_create(&url, ISSUER, None).unwrap()))
    });
}
