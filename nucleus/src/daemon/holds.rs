//! What is set aside for each user, and paying from it.
//!
//! Each user has at most one open hold. Raising it, or paying from it, resolves it and opens the
//! next one in the same ledger command, so money is never free in between.
//!
//! While the ledger cannot be reached nothing more is set aside: calls go on within what they have
//! and then end for want of ATP. What they burn meanwhile is kept here, in its order, and paid as
//! soon as the ledger answers again.

use std::collections::{HashMap, VecDeque};

use anyhow::Context as _;
use cell_abi::{AccountId, NanoAtp};
use cell_host::Taken;
use cell_ledger::command::PAYMENTS_MAX;
use cell_ledger::{HoldId, LedgerError, Payment, Settle, TransferId};

use super::book::Book;
use crate::bank::{Bank, Held};
use crate::link::UsageRow;
use crate::link::records::Record;

/// Users' cells whose sums are kept, so that only the sums are rounded; those of further ones are rounded
/// with each report.
pub(super) const TOTALS_MAX: usize = 65_536;

pub(super) struct Holds {
    bank: Bank,
    of_user: HashMap<u32, Held>,
    /// The accounts of peers, by the number that stands for each.
    peers: HashMap<u32, AccountId>,
    /// Of those, the ones whose worker is gone.
    leaving: Vec<u32>,
    /// Asked for, and the answer was lost: to be asked again, word for word, before anything else.
    in_doubt: Option<InDoubt>,
    /// What is to be done after that.
    waiting: VecDeque<Waiting>,
    /// What calls of a user to a cell without receipts took besides fuel since the nucleus started, so
    /// that only their sum is rounded.
    taken: HashMap<(u32, String), Taken>,
    book: Book,
}

enum InDoubt {
    Settle(u32, Settle),
    /// A hold that may have been opened, and that nobody waits for any more; or one to be released.
    Void(HoldId),
}

enum Waiting {
    Pay(Report),
    Release(u32),
}

/// What a worker reports of a user's calls.
struct Report {
    worker: u64,
    sequence: u64,
    uid: u32,
    dues: Vec<Due>,
}

/// What is due to one cell.
struct Due {
    cell: String,
    nano_atp: u64,
    calls: u64,
}

impl Holds {
    pub(super) fn new(bank: Bank, book: Book) -> Self {
        Self {
            bank,
            of_user: HashMap::new(),
            peers: HashMap::new(),
            leaving: Vec::new(),
            in_doubt: None,
            waiting: VecDeque::new(),
            taken: HashMap::new(),
            book,
        }
    }

    /// From now on this number stands for a peer, who pays for itself.
    pub(super) fn name_peer(&mut self, uid: u32, account: AccountId) {
        self.peers.insert(uid, account);
    }

    /// The number stands for nobody any more, once what it owes is paid.
    pub(super) fn forget_peer(&mut self, uid: u32) {
        if self.peers.contains_key(&uid) {
            self.leaving.push(uid);
            self.forget_leaving();
        }
    }

    fn forget_leaving(&mut self) {
        if !self.is_behind() {
            for uid in std::mem::take(&mut self.leaving) {
                self.peers.remove(&uid);
                self.taken.retain(|(user, _), _| *user != uid);
            }
        }
    }

    /// Whether an account has anything to spend.
    pub(super) fn can_pay(&self, account: AccountId) -> bool {
        let balance = self.bank.ledger.balance(account);
        // What is held may be held for the same account's calls.
        balance.is_ok_and(|balance| balance.posted_nano > 0)
    }

    /// Whether anything is set aside for a user's calls.
    pub(super) fn has_hold(&self, uid: u32) -> bool {
        self.of_user.contains_key(&uid)
    }

    fn account(&self, uid: u32) -> AccountId {
        self.peers.get(&uid).copied().unwrap_or_else(|| self.bank.accounts.user(uid))
    }

    /// Sets aside more for a user's calls; returns how much more, which may be nothing.
    pub(super) fn raise(&mut self, uid: u32, amount_min: u64, amount: u64) -> anyhow::Result<u64> {
        if self.is_behind() {
            return Ok(0);
        }
        let account = self.account(uid);
        let amount = NanoAtp(amount.max(amount_min));
        let Some(held) = self.of_user.get(&uid).copied() else {
            let hold = self.bank.new_hold(account, NanoAtp(1), amount);
            let id = hold.id;
            return match self.bank.open_hold(hold) {
                Ok(held) => {
                    self.of_user.insert(uid, held);
                    Ok(held.amount.0)
                }
                Err(LedgerError::InsufficientFunds { .. } | LedgerError::AmountTooLarge { .. }) => {
                    Ok(0)
                }
                Err(error) if error.is_passing() => {
                    self.fall_behind(InDoubt::Void(id), &error);
                    Ok(0)
                }
                Err(error) => Err(error).context("set money aside"),
            };
        };
        let Some(next) =
            held.amount.checked_add(amount).filter(|next| i64::try_from(next.0).is_ok())
        else {
            return Ok(0);
        };
        let raised = self.replace(uid, account, held, Vec::new(), held.amount, next)?;
        Ok(raised.map_or(0, |raised| raised.saturating_sub(held.amount).0))
    }

    /// Turns what a user's calls burned into transfers to the cells that served them. Where there are
    /// records of the calls, a receipt is written first, and what they say is what counts.
    pub(super) fn pay(
        &mut self,
        (worker, sequence): (u64, u64),
        uid: u32,
        rows: Vec<UsageRow>,
        records: Option<Vec<Record>>,
    ) -> anyhow::Result<()> {
        let dues = match records {
            None => self.dues(uid, rows),
            Some(records) => self.receipt(uid, &rows, records)?.into_iter().collect(),
        };
        if dues.is_empty() {
            return Ok(());
        }
        let report = Report { worker, sequence, uid, dues };
        if !self.is_behind() {
            return self.pay_now(report);
        }
        // None of these has been asked for, so several of a worker are as good as one.
        let of_user = |waiting: &&mut Waiting| waiting.uid() == report.uid;
        let rest = match self.waiting.iter_mut().rfind(of_user) {
            Some(Waiting::Pay(last)) if last.worker == report.worker => last.add(report),
            _ => Some(report),
        };
        self.waiting.extend(rest.map(Waiting::Pay));
        Ok(())
    }

    /// What each row's cell is to be paid; nothing of a report that passes what is set aside.
    fn dues(&mut self, uid: u32, rows: Vec<UsageRow>) -> Vec<Due> {
        let rates = self.book.rates();
        let cost = |row: &UsageRow| u128::from(row.fuel) + u128::from(Taken(row.taken).cost(rates));
        if !self.covers(uid, rows.iter().map(cost).sum()) {
            return Vec::new();
        }
        let due = |row: UsageRow| {
            let UsageRow { cell, fuel, taken, calls } = row;
            let extra = self.extra(uid, &cell, Taken(taken));
            Due { cell, nano_atp: fuel.saturating_add(extra), calls }
        };
        rows.into_iter().map(due).collect()
    }

    /// What calls are charged besides fuel, so that over all reports only the sum is rounded.
    fn extra(&mut self, uid: u32, cell: &str, taken: Taken) -> u64 {
        let rates = self.book.rates();
        if taken.cost(rates) == 0 {
            return 0;
        }
        let key = (uid, cell.to_owned());
        if self.taken.len() >= TOTALS_MAX && !self.taken.contains_key(&key) {
            return taken.charge(rates);
        }
        let total = self.taken.entry(key).or_default();
        let before = total.charge(rates);
        total.add(taken);
        total.charge(rates).saturating_sub(before)
    }

    /// Whether so much is set aside; a worker that reports more is not believed.
    fn covers(&self, uid: u32, cost: u128) -> bool {
        // What waits for the ledger is looked at when it answers.
        let held = self.of_user.get(&uid).map_or(0, |held| held.amount.0);
        let covers = cost <= held.into();
        if !covers {
            tracing::error!(
                uid,
                "the worker reports more work than was set aside; it is not charged"
            );
        }
        covers
    }

    /// Writes a receipt for the calls of a report; nothing is due if they are not to be charged.
    fn receipt(
        &mut self,
        uid: u32,
        rows: &[UsageRow],
        records: Vec<Record>,
    ) -> anyhow::Result<Option<Due>> {
        let rates = self.book.rates();
        let cost = |record: &Record| {
            u128::from(record.own_fuel) + u128::from(Taken(record.taken).cost(rates))
        };
        let [row] = rows else {
            tracing::error!(uid, "records of calls that do not fit; they are not charged");
            return Ok(None);
        };
        if !self.covers(uid, records.iter().map(cost).sum()) {
            return Ok(None);
        }
        let (accounts, calls) = (self.bank.accounts, records.len() as u64);
        let payee = accounts.cell(&row.cell);
        let nano_atp = self.book.issue(self.account(uid), (&row.cell, payee), records)?;
        Ok(Some(Due { cell: row.cell.clone(), nano_atp, calls }))
    }

    /// Gives back what a user's calls do not need for now.
    pub(super) fn release(&mut self, uid: u32) -> anyhow::Result<()> {
        if !self.is_behind() {
            return self.release_now(uid);
        }
        let last = self.waiting.iter().rfind(|waiting| waiting.uid() == uid);
        if !matches!(last, Some(Waiting::Release(_))) {
            self.waiting.push_back(Waiting::Release(uid));
        }
        Ok(())
    }

    /// Does what had to wait for the ledger, as far as the ledger answers.
    pub(super) fn catch_up(&mut self) -> anyhow::Result<()> {
        if !self.is_behind() {
            return Ok(());
        }
        match self.in_doubt.take() {
            None => {}
            Some(InDoubt::Settle(uid, settle)) => drop(self.apply(uid, settle)?),
            Some(InDoubt::Void(id)) => self.void(id)?,
        }
        while self.in_doubt.is_none()
            && let Some(next) = self.waiting.pop_front()
        {
            match next {
                Waiting::Pay(report) => self.pay_now(report)?,
                Waiting::Release(uid) => self.release_now(uid)?,
            }
        }
        if !self.is_behind() {
            tracing::info!("the ledger answers again; what had to wait is paid");
            self.forget_leaving();
        }
        Ok(())
    }

    pub(super) const fn bank(&self) -> &Bank {
        &self.bank
    }

    /// Signs where the journal is, for whoever keeps that elsewhere.
    pub(super) fn checkpoint(&self) {
        if let Err(error) = self.bank.checkpoint(self.book.key()) {
            tracing::warn!(%error, "a checkpoint is missing");
        }
    }

    /// Whether something waits for the ledger.
    pub(super) fn is_behind(&self) -> bool {
        self.in_doubt.is_some() || !self.waiting.is_empty()
    }

    fn fall_behind(&mut self, what: InDoubt, error: &LedgerError) {
        tracing::warn!(%error, "calls go on within what is set aside for them");
        self.in_doubt = Some(what);
    }

    fn release_now(&mut self, uid: u32) -> anyhow::Result<()> {
        self.of_user.remove(&uid).map_or(Ok(()), |held| self.void(held.id))
    }

    /// Releases a hold that nobody has any more.
    fn void(&mut self, id: HoldId) -> anyhow::Result<()> {
        match self.bank.ledger.void(id) {
            Ok(_) => Ok(()),
            // It was never opened, or is released already.
            Err(error) if is_gone(&error) => Ok(()),
            Err(error) if error.is_passing() => {
                self.fall_behind(InDoubt::Void(id), &error);
                Ok(())
            }
            Err(error) => Err(error).context("give back what was set aside"),
        }
    }

    /// A transfer's id comes from the report it pays for: the ledger session, the number of the
    /// worker within it, and that worker's own count of its reports.
    fn pay_now(&mut self, report: Report) -> anyhow::Result<()> {
        let Report { worker, sequence, uid, dues } = report;
        let account = self.account(uid);
        let Some(held) = self.of_user.get(&uid).copied() else {
            tracing::error!(
                uid,
                "the worker reports work that nothing was set aside for; it is not charged"
            );
            return Ok(());
        };
        let total =
            dues.iter().try_fold(NanoAtp::ZERO, |sum, due| sum.checked_add(NanoAtp(due.nano_atp)));
        let Some(rest) = total.and_then(|total| held.amount.checked_sub(total)) else {
            tracing::error!(
                uid,
                "the worker reports more work than was set aside; it is not charged"
            );
            return Ok(());
        };
        let session = self.bank.session();
        let payment = |due: &Due| Payment {
            id: TransferId::derive(
                "cell/usage/v1",
                &[
                    session.as_bytes(),
                    &worker.to_le_bytes(),
                    &sequence.to_le_bytes(),
                    &uid.to_le_bytes(),
                    due.cell.as_bytes(),
                ],
            ),
            credit: self.bank.accounts.cell(&due.cell),
            amount: NanoAtp(due.nano_atp),
            memo: format!("{} calls of {}", due.calls, due.cell),
        };
        let payments: Vec<_> = dues.iter().filter(|due| due.nano_atp > 0).map(payment).collect();
        self.replace(uid, account, held, payments, rest, rest)?;
        Ok(())
    }

    /// The new hold's amount; `None` if the answer has to be waited for.
    fn replace(
        &mut self,
        uid: u32,
        account: AccountId,
        held: Held,
        payments: Vec<Payment>,
        next_min: NanoAtp,
        next: NanoAtp,
    ) -> anyhow::Result<Option<NanoAtp>> {
        let next = (next > NanoAtp::ZERO)
            .then(|| self.bank.new_hold(account, next_min.max(NanoAtp(1)), next));
        self.apply(uid, Settle { hold: held.id, payments, next })
    }

    fn apply(&mut self, uid: u32, settle: Settle) -> anyhow::Result<Option<NanoAtp>> {
        match self.bank.apply(&settle) {
            Ok(next) => {
                self.keep(uid, next);
                Ok(Some(next.map_or(NanoAtp::ZERO, |held| held.amount)))
            }
            Err(error) if error.is_passing() => {
                self.fall_behind(InDoubt::Settle(uid, settle), &error);
                Ok(None)
            }
            Err(error) => {
                if is_gone(&error) {
                    // Nothing is set aside any more; the next call asks for a hold of its own.
                    self.keep(uid, None);
                }
                Err(error).context("pay from what was set aside")
            }
        }
    }

    fn keep(&mut self, uid: u32, held: Option<Held>) {
        match held {
            Some(held) => self.of_user.insert(uid, held),
            None => self.of_user.remove(&uid),
        };
    }
}

impl Waiting {
    const fn uid(&self) -> u32 {
        match self {
            Self::Pay(report) => report.uid,
            Self::Release(uid) => *uid,
        }
    }
}

impl Report {
    /// Takes another one into this; gives it back if both together are more than one payment takes.
    fn add(&mut self, other: Self) -> Option<Self> {
        let is_new = |due: &&Due| self.dues.iter().all(|mine| mine.cell != due.cell);
        if self.dues.len() + other.dues.iter().filter(is_new).count() > PAYMENTS_MAX {
            return Some(other);
        }
        for due in other.dues {
            match self.dues.iter_mut().find(|mine| mine.cell == due.cell) {
                Some(mine) => {
                    mine.nano_atp = mine.nano_atp.saturating_add(due.nano_atp);
                    mine.calls = mine.calls.saturating_add(due.calls);
                }
                None => self.dues.push(due),
            }
        }
        None
    }
}

/// Whether the hold that was spoken of is not there any more: it expired, say.
const fn is_gone(error: &LedgerError) -> bool {
    matches!(
        error,
        LedgerError::UnknownHold { .. }
            | LedgerError::HoldResolved { .. }
            | LedgerError::HoldExpired { .. }
    )
}

#[cfg(test)]
mod tests;
