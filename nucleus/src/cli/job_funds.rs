//! What a job is paid from: one hold over all that it may cost; or one slice after another, each paid when
//! it is spent, for a payer who agrees to no more than a slice at a time.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use cell_abi::{AccountId, NanoAtp};
use cell_host::limits::SLICE_FUEL;
use cell_ledger::{LedgerError, Payment, Settle, TransferId};

use crate::bank::{Bank, Held};
use crate::job_worker::{JobReport, Raise};
use crate::link::Link;

/// How long a job waits for its payer to agree to more, before it ends.
pub(super) const STARVED_TIME_MAX: Duration = Duration::from_secs(30);

/// With less than this left of its slices a job is not let on.
const LEAST_NANO: u64 = 2 * SLICE_FUEL;

/// The money of one job.
pub(super) struct Funds {
    account: AccountId,
    /// For people, in every payment.
    memo: String,
    held: Option<Held>,
    /// Out of holds before this one.
    paid: NanoAtp,
    /// All that it may cost, if that comes in slices.
    budget: Option<NanoAtp>,
    starved_since: Option<Instant>,
}

impl Funds {
    /// This hold; and where there is a budget it is only the first slice of that.
    pub(super) fn new(
        account: AccountId,
        memo: String,
        held: Held,
        budget: Option<NanoAtp>,
    ) -> Self {
        Self { account, memo, held: Some(held), paid: NanoAtp::ZERO, budget, starved_since: None }
    }

    /// The most that the job may cost.
    pub(super) fn most(&self) -> NanoAtp {
        self.budget.unwrap_or_else(|| self.held())
    }

    /// What it may spend for now, in nano-ATP; `None` for all. With the last slice its limit alone counts.
    pub(super) fn allowance(&self) -> Option<u64> {
        let slices = self.paid.0.saturating_add(self.held().0);
        self.budget.map(|budget| if slices < budget.0 { slices } else { u64::MAX })
    }

    fn held(&self) -> NanoAtp {
        self.held.map_or(NanoAtp::ZERO, |held| held.amount)
    }

    /// Pays slice after slice while the job runs, and returns its last report. A job whose payer agrees to
    /// no more is stopped.
    pub(super) fn feed(
        &mut self,
        bank: &mut Bank,
        link: &Link,
        stop: impl Fn(),
    ) -> anyhow::Result<Option<(JobReport, Vec<OwnedFd>)>> {
        let mut buffer = Vec::new();
        loop {
            let reported = link.receive::<JobReport>(&mut buffer)?;
            let Some((JobReport::Spent { nano_atp }, _)) = reported else { return Ok(reported) };
            let before = self.allowance();
            self.spend(bank, NanoAtp(nano_atp))?;
            if let Some(allowance) = self.allowance().filter(|_| self.allowance() > before) {
                // A job that has just ended needs no more.
                let _: io::Result<()> = link.send(&Raise { nano_atp: allowance }, &[]);
            }
            if self.is_starved(NanoAtp(nano_atp)) {
                stop();
            }
        }
    }

    /// The job has spent this much: once that is half of what is set aside, or all but what it is not let on
    /// with, it is paid, and as much as there is set aside anew.
    fn spend(&mut self, bank: &mut Bank, spent: NanoAtp) -> anyhow::Result<()> {
        let Some(budget) = self.budget else { return Ok(()) };
        let Some(held) = self.held else {
            return self.hold(bank, budget.saturating_sub(self.paid));
        };
        // What one long host call took beyond the slice is paid out of the next one.
        let due = spent.saturating_sub(self.paid).min(held.amount);
        let rest = budget.saturating_sub(self.paid).saturating_sub(due);
        let left = held.amount.saturating_sub(due);
        // The last slice is paid at the end.
        if left >= rest {
            return Ok(());
        }
        let is_half = due.0.saturating_mul(2) >= held.amount.0;
        let is_more = || bank.ledger.balance(self.account).map(|b| b.available() > NanoAtp::ZERO);
        if !is_half && (left.0 > LEAST_NANO || !is_more()?) {
            return Ok(());
        }
        let next = bank.new_hold(self.account, NanoAtp(1), rest);
        let payments =
            if due > NanoAtp::ZERO { vec![self.payment(bank, held, due)] } else { Vec::new() };
        let settled = bank.insist(&Settle { hold: held.id, payments, next: Some(next) });
        self.held = settled.context("pay for a slice")?;
        self.paid = self.paid.checked_add(due).context("such a charge cannot be")?;
        Ok(())
    }

    fn hold(&mut self, bank: &mut Bank, amount: NanoAtp) -> anyhow::Result<()> {
        match bank.hold(self.account, NanoAtp(1), amount) {
            Ok(held) => {
                self.held = Some(held);
                Ok(())
            }
            // The payer agrees to more in time, or it ends.
            Err(LedgerError::InsufficientFunds { .. }) => Ok(()),
            Err(error) => Err(error).context("set a slice aside"),
        }
    }

    /// Whether it waited too long for another slice.
    fn is_starved(&mut self, spent: NanoAtp) -> bool {
        let is_out = self.allowance().is_some_and(|all| all.saturating_sub(spent.0) < LEAST_NANO);
        if !is_out {
            self.starved_since = None;
            return false;
        }
        self.starved_since.get_or_insert_with(Instant::now).elapsed() > STARVED_TIME_MAX
    }

    fn payment(&self, bank: &Bank, held: Held, amount: NanoAtp) -> Payment {
        let id = TransferId::derive("cell/job/v1", &[held.id.as_bytes()]);
        Payment { id, credit: bank.accounts.node(), amount, memo: self.memo.clone() }
    }

    /// Pays the rest of what it cost. Returns what was paid altogether, and the last payment.
    pub(super) fn pay(
        mut self,
        bank: &mut Bank,
        charge: NanoAtp,
    ) -> anyhow::Result<(NanoAtp, TransferId)> {
        let due = charge.saturating_sub(self.paid);
        if self.held.is_none() && due > NanoAtp::ZERO {
            // What is not there was worked for in vain.
            self.held = bank.hold(self.account, NanoAtp(1), due).ok();
        }
        let Some(held) = self.held else {
            return Ok((self.paid, TransferId::derive("cell/job/v1", &[])));
        };
        let pay = due.min(held.amount);
        let payment = self.payment(bank, held, pay);
        let transfer = payment.id;
        let payments = if pay > NanoAtp::ZERO { vec![payment] } else { Vec::new() };
        bank.settle(held, payments).context("pay for the job")?;
        let all = self.paid.checked_add(pay).context("such a charge cannot be")?;
        Ok((all, transfer))
    }

    /// Gives back what is set aside, for a job that failed by this machine's fault.
    pub(super) fn give_back(&self, bank: &Bank) {
        if let Some(held) = self.held {
            // Where that fails it is void with this process.
            let _ = bank.void(held);
        }
    }
}
