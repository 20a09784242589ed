//! Charges the owner for the state that cells keep, where that has a price.
//!
//! All cells' state is counted in bytes times milliseconds since the nucleus started, and what the count
//! comes to is paid to the node now and then. While the owner cannot pay, no state may grow.

use std::time::{Duration, Instant};

use cell_abi::NanoAtp;
use cell_ledger::{LedgerError, Transfer, TransferId};

use super::state::States;
use crate::bank::Bank;
use crate::prices::STORAGE_PER;

/// How often it is paid.
const EVERY: Duration = Duration::from_secs(2);

/// What is owed for state.
pub(super) struct Storage {
    /// For a GiB and an hour.
    price: NanoAtp,
    states: States,
    /// Bytes times milliseconds.
    counted: u128,
    paid: NanoAtp,
    at: Instant,
    /// Counts payments, so that each has an id of its own.
    sequence: u64,
    /// Asked for, and the answer was lost.
    in_doubt: Option<Transfer>,
}

impl Storage {
    pub(super) fn new(price: NanoAtp, states: States) -> Self {
        Self {
            price,
            states,
            counted: 0,
            paid: NanoAtp::ZERO,
            at: Instant::now(),
            sequence: 0,
            in_doubt: None,
        }
    }

    /// Counts on, and pays if it is time.
    pub(super) fn tick(&mut self, bank: &Bank) -> Result<(), LedgerError> {
        let since = self.at.elapsed();
        if self.price == NanoAtp::ZERO || since < EVERY {
            return Ok(());
        }
        self.at += since;
        self.counted += u128::from(self.states.bytes()) * since.as_millis();
        self.pay(bank)
    }

    /// Pays what is owed, or as much of it as the owner has.
    fn pay(&mut self, bank: &Bank) -> Result<(), LedgerError> {
        let transfer = match self.in_doubt.take() {
            Some(transfer) => transfer,
            None => match self.owed() {
                NanoAtp::ZERO => return Ok(()),
                owed => self.transfer(bank, owed),
            },
        };
        match bank.ledger.transfer(transfer.clone()) {
            Ok(_) => {
                self.paid = self.paid.checked_add(transfer.amount).unwrap_or(self.paid);
                // A part that was in doubt leaves the rest owed.
                self.set_unpaid(self.owed() > NanoAtp::ZERO);
                Ok(())
            }
            Err(LedgerError::InsufficientFunds { available, .. }) => {
                self.set_unpaid(true);
                if available == NanoAtp::ZERO {
                    return Ok(());
                }
                let part = self.transfer(bank, available.min(transfer.amount));
                match bank.ledger.transfer(part.clone()) {
                    Ok(_) => self.paid = self.paid.checked_add(part.amount).unwrap_or(self.paid),
                    // Somebody was faster.
                    Err(LedgerError::InsufficientFunds { .. }) => {}
                    Err(error) if error.is_passing() => self.in_doubt = Some(part),
                    Err(error) => return Err(error),
                }
                Ok(())
            }
            Err(error) if error.is_passing() => {
                self.in_doubt = Some(transfer);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// What the count comes to, rounded down, less what was paid.
    fn owed(&self) -> NanoAtp {
        let cost = self.counted.saturating_mul(self.price.0.into());
        let cost = cost / (u128::from(STORAGE_PER) * 1000);
        NanoAtp(u64::try_from(cost).unwrap_or(u64::MAX)).saturating_sub(self.paid)
    }

    fn transfer(&mut self, bank: &Bank, amount: NanoAtp) -> Transfer {
        self.sequence += 1;
        let (session, sequence) = (bank.session(), self.sequence.to_le_bytes());
        let parts: [&[u8]; 2] = [session.as_bytes(), &sequence];
        Transfer {
            id: TransferId::derive("cell/storage/v1", &parts),
            debit: bank.accounts.owner,
            credit: bank.accounts.node(),
            amount,
            memo: "state".into(),
        }
    }

    fn set_unpaid(&self, unpaid: bool) {
        if self.states.set_unpaid(unpaid) && unpaid {
            tracing::warn!(
                "the owner cannot pay for what cells keep; no state grows until it can, see `cell ledger grant`"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::Home;

    /// Half an hour of two GiB is a GiB-hour; what the owner lacks is owed, and paid later.
    #[test]
    fn what_is_owed_is_paid_to_the_unit() {
        let home = tempfile::tempdir().unwrap();
        let bank = Bank::open(&Home::locate(Some(home.path().to_owned())).unwrap()).unwrap();
        let price = NanoAtp(700_000_000_001);
        let mut storage = Storage::new(price, States::default());
        let balance = |account| bank.ledger.balance(account).unwrap().posted_nano;
        storage.counted = 2 * (1 << 30) * 1_800_000 - 1;
        storage.pay(&bank).unwrap();
        let node = bank.accounts.node();
        assert_eq!(balance(node), 700_000_000_000);
        storage.counted *= 2;
        storage.pay(&bank).unwrap();
        assert_eq!((balance(node), balance(bank.accounts.owner)), (1_000_000_000_000, 0));
        assert!(storage.states.is_unpaid());
        let grant = Transfer {
            id: TransferId::derive("grant", &[]),
            debit: bank.accounts.issuer(),
            credit: bank.accounts.owner,
            amount: price,
            memo: String::new(),
        };
        bank.ledger.transfer(grant).unwrap();
        storage.pay(&bank).unwrap();
        assert_eq!(balance(node), 1_400_000_000_001);
        assert!(!storage.states.is_unpaid());
        storage.pay(&bank).unwrap();
        assert_eq!(balance(node), 1_400_000_000_001);
    }
}
