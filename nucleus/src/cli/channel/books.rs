//! A channel in the books of the machine that works for it: an account of its own, under the channel's id.
//!
//! What a voucher allows is put there, so whatever runs for the channel can spend that and no more, as any
//! account's work does. What was paid out of it is the bill. What is left goes back where it came from.

use anyhow::Context as _;
use cell_abi::{AccountId, NanoAtp};
use cell_channel::Leaf;
use cell_ledger::{Command, ContentHash, Entry, Transfer, TransferId};

use crate::bank::Bank;

/// Entries of the journal that are read at a time.
const PAGE: u32 = 256;

/// The account, and what is known of its past.
pub(super) struct Books {
    account: AccountId,
    /// Lends what vouchers allow, and gets back what was not worked for.
    lender: AccountId,
    /// Up to here it was read.
    seq: u64,
    /// Lent so far, less what went back.
    lent: NanoAtp,
    /// How often something was lent or given back, which makes each a transfer of its own.
    pub(super) moved: u64,
    /// Payments for work, in order.
    pub(super) leaves: Vec<Leaf>,
}

impl Books {
    pub(super) fn open(bank: &Bank, channel: ContentHash) -> anyhow::Result<Self> {
        let issuer = bank.ledger.issuer()?;
        let own = issuer == bank.accounts.issuer();
        let mut this = Self {
            account: account(channel),
            // In a ledger that others issued it is the owner's own money that is lent.
            lender: if own { issuer } else { bank.accounts.owner },
            seq: 0,
            lent: NanoAtp::ZERO,
            moved: 0,
            leaves: Vec::new(),
        };
        this.read(bank)?;
        Ok(this)
    }

    /// Reads what came since.
    pub(super) fn read(&mut self, bank: &Bank) -> anyhow::Result<()> {
        let (mut news, mut before) = (Vec::new(), None);
        loop {
            let page = bank.ledger.history(Some(self.account), before, PAGE)?;
            let is_last = page.len() < PAGE as usize;
            let (new, known): (Vec<_>, Vec<_>) =
                page.into_iter().partition(|entry| entry.seq > self.seq);
            before = new.last().map(|entry| entry.seq);
            news.extend(new);
            if is_last || !known.is_empty() {
                break;
            }
        }
        for entry in news.into_iter().rev() {
            self.follow(bank, &entry)?;
            self.seq = entry.seq;
        }
        Ok(())
    }

    fn follow(&mut self, bank: &Bank, entry: &Entry) -> anyhow::Result<()> {
        match &entry.command {
            Command::Transfer(transfer) if transfer.credit == self.account => {
                self.moved += 1;
                self.lent = self.lent.checked_add(transfer.amount).context("lent too much")?;
            }
            Command::Transfer(transfer) if transfer.debit == self.account => {
                self.moved += 1;
                self.lent = self.lent.saturating_sub(transfer.amount);
            }
            Command::Settle(settle) => {
                let hold = bank.ledger.find_hold(settle.hold)?;
                // What others put there counts as lent: nobody works for more than was agreed to.
                let stray = settle.payments.iter().filter(|payment| payment.credit == self.account);
                for payment in stray {
                    self.lent = self.lent.checked_add(payment.amount).context("lent too much")?;
                }
                if hold.is_some_and(|hold| hold.account == self.account) {
                    self.leaves.extend(settle.payments.iter().map(|payment| Leaf {
                        transfer: payment.id,
                        amount_nano: payment.amount.0,
                        memo: payment.memo.clone(),
                    }));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Lets the channel's work cost this much altogether.
    pub(super) fn lend(&mut self, bank: &Bank, ceiling: NanoAtp) -> anyhow::Result<()> {
        self.read(bank)?;
        let more = ceiling.saturating_sub(self.lent);
        self.transfer(bank, self.lender, self.account, more)
    }

    /// What is set aside for work that is under way.
    pub(super) fn held(&self, bank: &Bank) -> anyhow::Result<NanoAtp> {
        Ok(bank.ledger.balance(self.account)?.held)
    }

    /// Gives back what nothing was done for.
    pub(super) fn give_back(&mut self, bank: &Bank) -> anyhow::Result<()> {
        self.read(bank)?;
        let left = bank.ledger.balance(self.account)?.available();
        self.transfer(bank, self.account, self.lender, left)
    }

    fn transfer(
        &mut self,
        bank: &Bank,
        debit: AccountId,
        credit: AccountId,
        amount: NanoAtp,
    ) -> anyhow::Result<()> {
        if amount == NanoAtp::ZERO {
            return Ok(());
        }
        let number = self.moved.to_le_bytes();
        let id = TransferId::derive("cell/channel/lent/v1", &[self.account.as_bytes(), &number]);
        let memo = format!("channel {}", self.account.short());
        bank.ledger.transfer(Transfer { id, debit, credit, amount, memo })?;
        self.read(bank)
    }
}

/// As many of these as so much is agreed to for; the last one may be cut.
///
/// More than that is on the account only where somebody else put it there.
pub(super) fn within(leaves: &[Leaf], room: NanoAtp) -> Vec<Leaf> {
    let mut room = room.0;
    let fitting = leaves.iter().map_while(|leaf| {
        let amount_nano = leaf.amount_nano.min(room);
        room -= amount_nano;
        (amount_nano > 0).then(|| Leaf { amount_nano, ..leaf.clone() })
    });
    fitting.collect()
}

/// The account of a channel.
pub(crate) fn account(channel: ContentHash) -> AccountId {
    AccountId::from_bytes(*channel.as_bytes())
}
