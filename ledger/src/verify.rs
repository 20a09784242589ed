//! The audit: folds a journal from nothing and compares the result with what a store's tables say.
//!
//! It shares no code with [`rules`](crate::rules), so that a mistake there shows up here as a difference.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::mem;

use cell_abi::{AccountId, NanoAtp};

use crate::journal::{Head, Row};
use crate::{
    Balance, Command, EntryHash, Hold, HoldId, HoldRecord, Outcome, Settle, TransferId, VerifyError,
};

/// What was checked and found right.
///
/// Whoever keeps `entries` and `head_hash` elsewhere can later tell that history was not rewritten: the entry at
/// that place must still have that hash.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified {
    /// Journal entries; the last one's place.
    pub entries: u64,
    /// Accounts ever seen.
    pub accounts: u64,
    /// Transfers and payments.
    pub transfers: u64,
    /// Holds that are open.
    pub open_holds: u64,
    /// The money in circulation: how far the issuer is below zero.
    pub issued: NanoAtp,
    /// The hash of the last entry.
    pub head_hash: EntryHash,
}

/// The tables of a store at one moment, for the comparison.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Every account's balance.
    pub accounts: BTreeMap<AccountId, Balance>,
    /// Every used transfer id, with its entry.
    pub transfers: BTreeMap<TransferId, u64>,
    /// Every hold.
    pub holds: BTreeMap<HoldId, HoldRecord>,
    /// Every account of every entry; the value repeats the entry.
    pub touched: BTreeMap<(AccountId, u64), u64>,
}

/// A journal being folded, one row after the other.
#[derive(Debug)]
pub struct Fold {
    issuer: AccountId,
    head: Head,
    accounts: BTreeMap<AccountId, Sums>,
    transfers: BTreeMap<TransferId, u64>,
    holds: BTreeMap<HoldId, HoldRecord>,
    open: BTreeSet<HoldId>,
    touched: BTreeMap<(AccountId, u64), u64>,
    /// The accounts of the entry being folded.
    changed: BTreeSet<AccountId>,
}

/// 128 bits, so that the audit itself cannot overflow before it checks.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    posted: i128,
    held: i128,
    last_seq: u64,
}

type Checked<T = ()> = Result<T, &'static str>;

impl Fold {
    /// Starts from the empty journal of this issuer.
    pub fn new(issuer: AccountId) -> Self {
        Self {
            issuer,
            head: Head::empty(issuer),
            accounts: BTreeMap::new(),
            transfers: BTreeMap::new(),
            holds: BTreeMap::new(),
            open: BTreeSet::new(),
            touched: BTreeMap::new(),
            changed: BTreeSet::new(),
        }
    }

    /// Adds the next row: its place, its chain, its hash, its content and every rule.
    pub fn push(&mut self, row: &Row) -> Result<(), VerifyError> {
        let seq = self.next_seq();
        if row.seq != seq {
            return Err(VerifyError::MissingEntry { seq });
        }
        if row.prev_hash != self.head.hash {
            return Err(VerifyError::BrokenChain {
                seq,
                found: row.prev_hash,
                expected: self.head.hash,
            });
        }
        let expected = row.computed_hash();
        if row.hash != expected {
            return Err(VerifyError::AlteredEntry { seq, found: row.hash, expected });
        }
        let (command, outcome) = row.decode().ok_or(VerifyError::Undecodable { seq })?;
        self.head = row.head();
        self.step(&command, &outcome).map_err(|rule| VerifyError::BrokenRule { seq, rule })
    }

    /// The place the next row must have.
    pub const fn next_seq(&self) -> u64 {
        self.head.seq.saturating_add(1)
    }

    /// Compares the folded journal with a store's tables.
    pub fn finish(self, found: &Snapshot) -> Result<Verified, VerifyError> {
        // Every entry touches an account, so a row beyond the head tells that the journal's end was cut off.
        if found.touched.values().any(|seq| *seq > self.head.seq) {
            return Err(VerifyError::MissingEntry { seq: self.next_seq() });
        }
        let (verified, accounts) = self.conclude()?;
        let last_seq = |account: &AccountId, _: &Balance| {
            self.accounts.get(account).map_or(0, |sums| sums.last_seq)
        };
        compare("account", &accounts, &found.accounts, AccountId::to_string, last_seq)?;
        compare("transfer", &self.transfers, &found.transfers, TransferId::to_string, |_, seq| {
            *seq
        })?;
        let hold_seq = |_: &HoldId, hold: &HoldRecord| hold.resolved_seq.unwrap_or(hold.opened_seq);
        compare("hold", &self.holds, &found.holds, HoldId::to_string, hold_seq)?;
        let key = |(account, seq): &(AccountId, u64)| format!("{account} in entry {seq}");
        compare("touched", &self.touched, &found.touched, key, |(_, seq), _| *seq)?;
        Ok(verified)
    }

    /// What the journal alone makes: the totals, and every account's balance.
    pub fn conclude(&self) -> Result<(Verified, BTreeMap<AccountId, Balance>), VerifyError> {
        let mut accounts = BTreeMap::new();
        let mut total = 0;
        for (account, sums) in &self.accounts {
            total += sums.posted;
            accounts.insert(*account, sums.balance().map_err(|rule| self.broken(rule))?);
        }
        if total != 0 {
            return Err(self.broken("the sum over all accounts is zero"));
        }
        let issued = self.accounts.get(&self.issuer).map_or(0, |sums| sums.posted.unsigned_abs());
        let verified = Verified {
            entries: self.head.seq,
            accounts: accounts.len() as u64,
            transfers: self.transfers.len() as u64,
            open_holds: self.open.len() as u64,
            issued: NanoAtp(u64::try_from(issued).unwrap_or(u64::MAX)),
            head_hash: self.head.hash,
        };
        Ok((verified, accounts))
    }

    fn broken(&self, rule: &'static str) -> VerifyError {
        VerifyError::BrokenRule { seq: self.head.seq, rule }
    }

    fn step(&mut self, command: &Command, outcome: &Outcome) -> Checked {
        match (command, *outcome) {
            (Command::Transfer(transfer), _) => {
                self.pay(transfer.id, transfer.debit, transfer.credit, transfer.amount)?;
            }
            (Command::Hold(hold), Outcome::Held { granted, .. }) => {
                expect(granted > NanoAtp::ZERO, "an opened hold reserves something")?;
                self.open(hold, granted)?;
            }
            (Command::Settle(settle), Outcome::Settled { paid, released, next_granted, .. }) => {
                self.settle(settle, paid, released, next_granted)?;
            }
            (Command::Void { hold }, outcome) => self.void(&[*hold], outcome)?,
            (Command::VoidSession { session }, outcome) => {
                let holds = self.open_where(|hold| hold.session == *session);
                self.void(&holds, outcome)?;
            }
            (Command::VoidExpired { now_ms }, outcome) => {
                let holds = self.open_where(|hold| hold.expires_ms <= *now_ms);
                self.void(&holds, outcome)?;
            }
            _ => return Err("an outcome belongs to its command"),
        }
        self.check_changed()
    }

    fn settle(
        &mut self,
        settle: &Settle,
        paid: NanoAtp,
        released: NanoAtp,
        next_granted: NanoAtp,
    ) -> Checked {
        let hold = self.resolve(settle.hold)?;
        let mut sum = 0;
        for payment in &settle.payments {
            sum += u128::from(payment.amount.0);
            self.pay(payment.id, hold.account, payment.credit, payment.amount)?;
        }
        expect(sum <= u128::from(hold.amount.0), "payments stay within the hold")?;
        expect(sum == u128::from(paid.0), "paid is the sum of the payments")?;
        expect(
            sum + u128::from(released.0) == u128::from(hold.amount.0),
            "released is what was not paid",
        )?;
        match &settle.next {
            Some(next) => self.open(next, next_granted),
            None => {
                expect(next_granted == NanoAtp::ZERO, "nothing is granted that was not asked for")
            }
        }
    }

    fn void(&mut self, holds: &[HoldId], outcome: Outcome) -> Checked {
        let mut sum = 0;
        for hold in holds {
            sum += u128::from(self.resolve(*hold)?.amount.0);
        }
        match outcome {
            Outcome::Voided { holds: count, released, .. } => {
                expect(
                    count > 0 && count == holds.len() as u64,
                    "the outcome counts the voided holds",
                )?;
                expect(u128::from(released.0) == sum, "released is the sum of the voided holds")
            }
            _ => Err("an outcome belongs to its command"),
        }
    }

    fn pay(
        &mut self,
        id: TransferId,
        debit: AccountId,
        credit: AccountId,
        amount: NanoAtp,
    ) -> Checked {
        expect(amount > NanoAtp::ZERO, "a transfer moves something")?;
        expect(debit != credit, "debit and credit differ")?;
        let earlier = self.transfers.insert(id, self.head.seq);
        expect(earlier.is_none(), "a transfer id is used once")?;
        self.touch(debit).posted -= i128::from(amount.0);
        self.touch(credit).posted += i128::from(amount.0);
        Ok(())
    }

    fn open(&mut self, hold: &Hold, granted: NanoAtp) -> Checked {
        let sums = self.accounts.get(&hold.account).copied().unwrap_or_default();
        let spendable = sums.posted - sums.held
            + if hold.account == self.issuer { i128::from(i64::MAX) } else { 0 };
        let most = spendable.min(i128::from(hold.amount.0));
        let enough = most >= i128::from(hold.amount_min.0).max(1);
        expect(
            i128::from(granted.0) == if enough { most } else { 0 },
            "a hold grants what is available",
        )?;
        if granted == NanoAtp::ZERO {
            return Ok(());
        }
        self.touch(hold.account).held += i128::from(granted.0);
        let record = HoldRecord {
            id: hold.id,
            account: hold.account,
            amount: granted,
            session: hold.session,
            expires_ms: hold.expires_ms,
            opened_seq: self.head.seq,
            resolved_seq: None,
        };
        self.open.insert(hold.id);
        expect(self.holds.insert(hold.id, record).is_none(), "a hold id is used once")
    }

    fn resolve(&mut self, id: HoldId) -> Checked<HoldRecord> {
        expect(self.open.remove(&id), "a hold is opened before it is resolved, and resolved once")?;
        let record = self.holds.get_mut(&id).ok_or("an open hold is known")?;
        record.resolved_seq = Some(self.head.seq);
        let record = *record;
        self.touch(record.account).held -= i128::from(record.amount.0);
        Ok(record)
    }

    fn open_where(&self, choose: impl Fn(&HoldRecord) -> bool) -> Vec<HoldId> {
        self.open.iter().filter(|id| self.holds.get(id).is_some_and(&choose)).copied().collect()
    }

    fn touch(&mut self, account: AccountId) -> &mut Sums {
        let seq = self.head.seq;
        self.touched.insert((account, seq), seq);
        self.changed.insert(account);
        let sums = self.accounts.entry(account).or_default();
        sums.last_seq = seq;
        sums
    }

    /// Looks only at what the current entry changed; the rest was checked when it changed.
    fn check_changed(&mut self) -> Checked {
        for account in mem::take(&mut self.changed) {
            let sums = self.accounts.get(&account).copied().unwrap_or_default();
            let balance = sums.balance()?;
            let floor = if account == self.issuer { -i128::from(i64::MAX) } else { 0 };
            expect(
                i128::from(balance.posted_nano) - sums.held >= floor,
                "no account but the issuer is negative, and nobody holds more than is posted",
            )?;
        }
        Ok(())
    }
}

impl Sums {
    fn balance(self) -> Checked<Balance> {
        let posted_nano = i64::try_from(self.posted).map_err(|_| "a balance fits 64 bits")?;
        let held = u64::try_from(self.held).map_err(|_| "what is held is not negative")?;
        Ok(Balance { posted_nano, held: NanoAtp(held) })
    }
}

fn expect(holds: bool, rule: &'static str) -> Checked {
    if holds { Ok(()) } else { Err(rule) }
}

fn compare<K: Ord, V: PartialEq + Debug>(
    table: &'static str,
    expected: &BTreeMap<K, V>,
    found: &BTreeMap<K, V>,
    key_text: impl Fn(&K) -> String,
    last_seq: impl Fn(&K, &V) -> u64,
) -> Result<(), VerifyError> {
    let differs = |key: &K, expected: Option<&V>, found: Option<&V>| {
        let text = |value: Option<&V>| {
            value.map_or_else(|| "nothing".to_owned(), |value| format!("{value:?}"))
        };
        VerifyError::TableDiffers {
            table,
            key: key_text(key),
            found: text(found),
            expected: text(expected),
            seq: expected.or(found).map_or(0, |value| last_seq(key, value)),
        }
    };
    for (key, value) in expected {
        if found.get(key) != Some(value) {
            return Err(differs(key, Some(value), found.get(key)));
        }
    }
    match found.iter().find(|(key, _)| !expected.contains_key(key)) {
        Some((key, value)) => Err(differs(key, None, Some(value))),
        None => Ok(()),
    }
}
