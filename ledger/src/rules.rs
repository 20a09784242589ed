//! The rules: whether a command is allowed, and what it changes.
//!
//! It keeps no data and reads no clock; a store calls [`apply_all`] inside its transaction, through [`Tables`].

use std::collections::{BTreeMap, BTreeSet};

use cell_abi::status::Fault;
use cell_abi::{AccountId, NanoAtp};

use crate::command::{MEMO_BYTES_MAX, PAYMENTS_MAX};
use crate::journal::{Head, Row};
use crate::{
    Balance, Command, Entry, Hold, HoldId, HoldRecord, LedgerError, Outcome, Settle, Transfer,
    TransferId,
};

/// The least the issuer may have. Symmetric, so that all money in circulation fits one account.
const ISSUER_FLOOR: i64 = -i64::MAX;
/// The largest amount, time and balance: what a signed 64-bit column holds.
const LARGEST: u64 = i64::MAX.unsigned_abs();

/// What the rules read and write; one transaction of a store.
pub trait Tables {
    /// The one account that may go negative.
    fn issuer(&self) -> AccountId;
    /// The end of the journal.
    fn head(&self) -> Head;
    /// A balance; zero if the account was never seen.
    fn balance(&self, account: AccountId) -> Result<Balance, LedgerError>;
    /// The entry that used this transfer id.
    fn transfer_seq(&self, id: TransferId) -> Result<Option<u64>, LedgerError>;
    /// A hold, open or resolved.
    fn hold(&self, id: HoldId) -> Result<Option<HoldRecord>, LedgerError>;
    /// The open holds that a void of many is about.
    fn open_holds(&self, which: Which) -> Result<Vec<HoldRecord>, LedgerError>;
    /// A journal entry that is known to exist.
    fn entry(&self, seq: u64) -> Result<Entry, LedgerError>;
    /// Appends the row and makes its changes; on an error the whole transaction must be rolled back.
    fn write(&mut self, row: &Row, changes: &Changes) -> Result<(), LedgerError>;
}

/// A choice among the open holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Which {
    /// All of a session.
    Session(crate::SessionId),
    /// All whose `expires_ms` is at or before this time.
    ExpiredAt(u64),
}

/// What one applied command changes beside the journal.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// New values; these accounts are also the ones whose history the entry is part of.
    pub balances: BTreeMap<AccountId, Balance>,
    /// Ids that are used from now on.
    pub transfers: BTreeSet<TransferId>,
    /// Holds that were opened (insert) or resolved (set `resolved_seq`).
    pub holds: Vec<HoldRecord>,
}

/// Applies a batch, with one result for each command, whatever the others got.
///
/// The outer error is the host's fault and may have come halfway through a command: the whole transaction must be
/// rolled back.
pub fn apply_all(
    tables: &mut impl Tables,
    commands: &[Command],
    now_ms: u64,
) -> Result<Vec<Result<Outcome, LedgerError>>, LedgerError> {
    let mut results = Vec::with_capacity(commands.len());
    for command in commands {
        match apply(tables, command, now_ms) {
            Err(error) if error.fault() == Fault::Host => return Err(error),
            result => results.push(result),
        }
    }
    Ok(results)
}

/// Applies one command: writes all of it, or writes nothing and says why.
fn apply(tables: &mut impl Tables, command: &Command, now_ms: u64) -> Result<Outcome, LedgerError> {
    check_shape(command, now_ms)?;
    if let Some(outcome) = first_answer(tables, command)? {
        return Ok(outcome);
    }
    let mut plan =
        Plan { tables, seq: tables.head().seq.saturating_add(1), changes: Changes::default() };
    let outcome = match command {
        Command::Transfer(transfer) => plan.transfer(transfer)?,
        Command::Hold(hold) => plan.hold(hold)?,
        Command::Settle(settle) => plan.settle(settle)?,
        Command::Void { hold } => {
            let hold = plan.known_hold(*hold)?;
            plan.void(vec![hold])?
        }
        Command::VoidSession { session } => {
            plan.void(tables.open_holds(Which::Session(*session))?)?
        }
        Command::VoidExpired { now_ms } => {
            plan.void(tables.open_holds(Which::ExpiredAt(*now_ms))?)?
        }
    };
    let changes = plan.changes;
    if outcome != Outcome::NothingToVoid {
        let row = Row::following(tables.head(), now_ms, command, &outcome);
        tables.write(&row, &changes)?;
    }
    Ok(outcome)
}

/// What can be said of a command without looking at the ledger.
fn check_shape(command: &Command, now_ms: u64) -> Result<(), LedgerError> {
    check_time(now_ms)?;
    match command {
        Command::Transfer(transfer) => {
            check_amount(transfer.amount)?;
            check_memo(&transfer.memo)?;
            check_pair(transfer.debit, transfer.credit)
        }
        Command::Hold(hold) => check_hold(hold),
        Command::Settle(settle) => {
            if settle.payments.len() > PAYMENTS_MAX {
                return Err(LedgerError::TooManyPayments { payments: settle.payments.len() });
            }
            for payment in &settle.payments {
                check_amount(payment.amount)?;
                check_memo(&payment.memo)?;
            }
            settle.next.as_ref().map_or(Ok(()), check_hold)
        }
        Command::VoidExpired { now_ms } => check_time(*now_ms),
        Command::Void { .. } | Command::VoidSession { .. } => Ok(()),
    }
}

fn check_hold(hold: &Hold) -> Result<(), LedgerError> {
    check_amount(hold.amount)?;
    check_time(hold.expires_ms)?;
    if hold.amount_min > hold.amount {
        return Err(LedgerError::MinimumAboveAmount {
            amount: hold.amount,
            amount_min: hold.amount_min,
        });
    }
    Ok(())
}

fn check_amount(amount: NanoAtp) -> Result<(), LedgerError> {
    match amount.0 {
        0 => Err(LedgerError::ZeroAmount),
        1..=LARGEST => Ok(()),
        _ => Err(LedgerError::AmountTooLarge { amount }),
    }
}

fn check_time(time_ms: u64) -> Result<(), LedgerError> {
    if time_ms > LARGEST { Err(LedgerError::TimeTooLarge { time_ms }) } else { Ok(()) }
}

fn check_memo(memo: &str) -> Result<(), LedgerError> {
    if memo.len() > MEMO_BYTES_MAX {
        Err(LedgerError::MemoTooLong { bytes: memo.len() })
    } else {
        Ok(())
    }
}

fn check_pair(debit: AccountId, credit: AccountId) -> Result<(), LedgerError> {
    if debit == credit { Err(LedgerError::SelfTransfer { account: debit }) } else { Ok(()) }
}

/// The answer of the first time if this is a repetition; an error if an id is taken by something else.
///
/// It comes before any look at funds, so that a retry never depends on what happened in between.
fn first_answer(tables: &impl Tables, command: &Command) -> Result<Option<Outcome>, LedgerError> {
    let (seq, otherwise) = match command {
        Command::Transfer(transfer) => match tables.transfer_seq(transfer.id)? {
            Some(seq) => (seq, LedgerError::TransferConflict { id: transfer.id }),
            None => return Ok(None),
        },
        Command::Hold(hold) => match tables.hold(hold.id)? {
            Some(record) => (record.opened_seq, LedgerError::HoldConflict { id: hold.id }),
            None => return Ok(None),
        },
        Command::Settle(Settle { hold, .. }) | Command::Void { hold } => {
            match tables.hold(*hold)?.map(|record| record.resolved_seq) {
                Some(Some(seq)) => (seq, LedgerError::HoldResolved { hold: *hold, seq }),
                Some(None) => return Ok(None),
                None => return Err(LedgerError::UnknownHold { hold: *hold }),
            }
        }
        Command::VoidSession { .. } | Command::VoidExpired { .. } => return Ok(None),
    };
    let first = tables.entry(seq)?;
    match (otherwise, &first.command) {
        (_, command_then) if command_then == command => Ok(Some(first.outcome)),
        (LedgerError::HoldResolved { hold, seq }, Command::VoidExpired { .. }) => {
            Err(LedgerError::HoldExpired { hold, seq })
        }
        (otherwise, _) => Err(otherwise),
    }
}

/// The changes of one command, gathered before any is written, so that a refusal has nothing to undo.
struct Plan<'a, T> {
    tables: &'a T,
    seq: u64,
    changes: Changes,
}

impl<T: Tables> Plan<'_, T> {
    fn transfer(&mut self, transfer: &Transfer) -> Result<Outcome, LedgerError> {
        self.post(transfer.id, transfer.debit, transfer.credit, transfer.amount)?;
        Ok(Outcome::Posted { seq: self.seq })
    }

    fn hold(&mut self, hold: &Hold) -> Result<Outcome, LedgerError> {
        let available = self.available(hold.account)?;
        let needed = needed(hold);
        if available < needed {
            return Err(self.short_of(hold.account, available, needed));
        }
        let granted = hold.amount.min(available);
        self.reserve(hold, granted)?;
        Ok(Outcome::Held { seq: self.seq, granted })
    }

    fn settle(&mut self, settle: &Settle) -> Result<Outcome, LedgerError> {
        let hold = self.known_hold(settle.hold)?;
        self.check_new_ids(settle)?;
        let mut paid = NanoAtp::ZERO;
        for payment in &settle.payments {
            check_pair(hold.account, payment.credit)?;
            paid = paid
                .checked_add(payment.amount)
                .filter(|paid| *paid <= hold.amount)
                .ok_or(LedgerError::PaymentsExceedHold { hold: hold.id, held: hold.amount })?;
        }
        self.release(hold)?;
        for payment in &settle.payments {
            self.post(payment.id, hold.account, payment.credit, payment.amount)?;
        }
        let next_granted = match &settle.next {
            Some(next) => self.hold_if_possible(next)?,
            None => NanoAtp::ZERO,
        };
        Ok(Outcome::Settled {
            seq: self.seq,
            paid,
            released: hold.amount.saturating_sub(paid),
            next_granted,
        })
    }

    fn void(&mut self, holds: Vec<HoldRecord>) -> Result<Outcome, LedgerError> {
        if holds.is_empty() {
            return Ok(Outcome::NothingToVoid);
        }
        let count = holds.len() as u64;
        let mut released = NanoAtp::ZERO;
        for hold in holds {
            // The issuer's floor bounds the sum of all holds, so this cannot pass 64 bits in a sound ledger.
            released = released
                .checked_add(hold.amount)
                .ok_or(LedgerError::BalanceOverflow { account: hold.account })?;
            self.release(hold)?;
        }
        Ok(Outcome::Voided { seq: self.seq, holds: count, released })
    }

    fn check_new_ids(&self, settle: &Settle) -> Result<(), LedgerError> {
        let mut ids = BTreeSet::new();
        for payment in &settle.payments {
            if !ids.insert(payment.id) || self.tables.transfer_seq(payment.id)?.is_some() {
                return Err(LedgerError::TransferConflict { id: payment.id });
            }
        }
        match &settle.next {
            Some(next) if self.tables.hold(next.id)?.is_some() => {
                Err(LedgerError::HoldConflict { id: next.id })
            }
            _ => Ok(()),
        }
    }

    fn hold_if_possible(&mut self, hold: &Hold) -> Result<NanoAtp, LedgerError> {
        let available = self.available(hold.account)?;
        if available < needed(hold) {
            return Ok(NanoAtp::ZERO);
        }
        let granted = hold.amount.min(available);
        self.reserve(hold, granted)?;
        Ok(granted)
    }

    fn post(
        &mut self,
        id: TransferId,
        debit: AccountId,
        credit: AccountId,
        amount: NanoAtp,
    ) -> Result<(), LedgerError> {
        let available = self.available(debit)?;
        if available < amount {
            return Err(self.short_of(debit, available, amount));
        }
        self.add(debit, -i128::from(amount.0), 0)?;
        self.add(credit, i128::from(amount.0), 0)?;
        self.changes.transfers.insert(id);
        Ok(())
    }

    fn reserve(&mut self, hold: &Hold, granted: NanoAtp) -> Result<(), LedgerError> {
        self.add(hold.account, 0, i128::from(granted.0))?;
        self.changes.holds.push(HoldRecord {
            id: hold.id,
            account: hold.account,
            amount: granted,
            session: hold.session,
            expires_ms: hold.expires_ms,
            opened_seq: self.seq,
            resolved_seq: None,
        });
        Ok(())
    }

    fn release(&mut self, hold: HoldRecord) -> Result<(), LedgerError> {
        self.add(hold.account, 0, -i128::from(hold.amount.0))?;
        self.changes.holds.push(HoldRecord { resolved_seq: Some(self.seq), ..hold });
        Ok(())
    }

    fn add(&mut self, account: AccountId, posted: i128, held: i128) -> Result<(), LedgerError> {
        let balance = self.balance(account)?;
        // Both addends fit 64 bits with their sign, so the sums fit 128.
        let posted_nano = i64::try_from(i128::from(balance.posted_nano) + posted).ok();
        let held = u64::try_from(i128::from(balance.held.0) + held).ok();
        match (posted_nano, held) {
            (Some(posted_nano), Some(held)) if held <= LARGEST => {
                self.changes.balances.insert(account, Balance { posted_nano, held: NanoAtp(held) });
                Ok(())
            }
            _ => Err(LedgerError::BalanceOverflow { account }),
        }
    }

    /// What the account can spend: posted less held, and for the issuer how far it is above its floor.
    fn available(&self, account: AccountId) -> Result<NanoAtp, LedgerError> {
        let balance = self.balance(account)?;
        let floor = if account == self.tables.issuer() { ISSUER_FLOOR } else { 0 };
        let available =
            i128::from(balance.posted_nano) - i128::from(balance.held.0) - i128::from(floor);
        Ok(NanoAtp(u64::try_from(available.max(0)).unwrap_or(u64::MAX)))
    }

    /// The issuer cannot lack funds, only room for a lower balance.
    fn short_of(&self, account: AccountId, available: NanoAtp, needed: NanoAtp) -> LedgerError {
        if account == self.tables.issuer() {
            LedgerError::BalanceOverflow { account }
        } else {
            LedgerError::InsufficientFunds { account, available, needed }
        }
    }

    fn balance(&self, account: AccountId) -> Result<Balance, LedgerError> {
        match self.changes.balances.get(&account) {
            Some(balance) => Ok(*balance),
            None => self.tables.balance(account),
        }
    }

    fn known_hold(&self, id: HoldId) -> Result<HoldRecord, LedgerError> {
        self.tables.hold(id)?.ok_or(LedgerError::UnknownHold { hold: id })
    }
}

fn needed(hold: &Hold) -> NanoAtp {
    hold.amount_min.max(NanoAtp(1))
}
