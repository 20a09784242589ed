//! What is set aside for each user, and paying from it.
//!
//! Each user has at most one open hold. Raising it, or paying from it, resolves it and opens the
//! next one in the same ledger command, so money is never free in between.

use std::collections::HashMap;

use anyhow::Context as _;
use cell_abi::{AccountId, NanoAtp};
use cell_ledger::{LedgerError, Payment, TransferId};

use crate::bank::{Bank, Held};
use crate::link::UsageRow;

pub(super) struct Holds {
    bank: Bank,
    of_user: HashMap<u32, Held>,
}

impl Holds {
    pub(super) fn new(bank: Bank) -> Self {
        Self { bank, of_user: HashMap::new() }
    }

    /// Sets aside more for a user's calls; returns how much more, which may be nothing.
    pub(super) fn raise(&mut self, uid: u32, amount_min: u64, amount: u64) -> anyhow::Result<u64> {
        let account = self.bank.accounts.user(uid);
        let amount = NanoAtp(amount.max(amount_min));
        let Some(held) = self.of_user.get(&uid).copied() else {
            return match self.bank.hold(account, NanoAtp(1), amount) {
                Ok(held) => {
                    self.of_user.insert(uid, held);
                    Ok(held.amount.0)
                }
                Err(LedgerError::InsufficientFunds { .. } | LedgerError::AmountTooLarge { .. }) => {
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
        Ok(raised.saturating_sub(held.amount).0)
    }

    /// Turns what a user's calls burned into transfers to the cells that served them.
    ///
    /// A transfer's id comes from the report it pays for: the ledger session, the number of the
    /// worker within it, and that worker's own count of its reports.
    pub(super) fn pay(
        &mut self,
        worker: u64,
        sequence: u64,
        uid: u32,
        rows: &[UsageRow],
    ) -> anyhow::Result<()> {
        let account = self.bank.accounts.user(uid);
        let Some(held) = self.of_user.get(&uid).copied() else {
            tracing::error!(
                uid,
                "the worker reports work that nothing was set aside for; it is not charged"
            );
            return Ok(());
        };
        let total =
            rows.iter().try_fold(NanoAtp::ZERO, |sum, row| sum.checked_add(NanoAtp(row.fuel)));
        let Some(rest) = total.and_then(|total| held.amount.checked_sub(total)) else {
            tracing::error!(
                uid,
                "the worker reports more work than was set aside; it is not charged"
            );
            return Ok(());
        };
        let session = self.bank.session();
        let payment = |row: &UsageRow| Payment {
            id: TransferId::derive(
                "cell/usage/v1",
                &[
                    session.as_bytes(),
                    &worker.to_le_bytes(),
                    &sequence.to_le_bytes(),
                    &uid.to_le_bytes(),
                    row.cell.as_bytes(),
                ],
            ),
            credit: self.bank.accounts.cell(&row.cell),
            amount: NanoAtp(row.fuel),
            memo: format!("{} calls of {}", row.calls, row.cell),
        };
        let payments: Vec<_> = rows.iter().filter(|row| row.fuel > 0).map(payment).collect();
        self.replace(uid, account, held, payments, rest, rest)?;
        Ok(())
    }

    /// Gives back what a user's calls do not need for now.
    pub(super) fn release(&mut self, uid: u32) -> anyhow::Result<()> {
        match self.of_user.remove(&uid) {
            Some(held) => self.bank.void(held).context("give back what was set aside"),
            None => Ok(()),
        }
    }

    fn replace(
        &mut self,
        uid: u32,
        account: AccountId,
        held: Held,
        payments: Vec<Payment>,
        next_min: NanoAtp,
        next: NanoAtp,
    ) -> anyhow::Result<NanoAtp> {
        let next = self
            .bank
            .settle(held, account, payments, next_min, next)
            .context("pay from what was set aside")?;
        match next {
            Some(held) => self.of_user.insert(uid, held),
            None => self.of_user.remove(&uid),
        };
        Ok(next.map_or(NanoAtp::ZERO, |held| held.amount))
    }
}
