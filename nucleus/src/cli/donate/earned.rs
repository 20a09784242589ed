//! What a lent machine earned: what other accounts than the owner's paid to its node and its cells.

use std::collections::HashSet;
use std::time::{SystemTime, UNIX_EPOCH};

use cell_abi::{AccountId, NanoAtp};
use cell_donor::Moment;
use cell_ledger::{Command, Entry, LedgerError, Payment, Settle};

use crate::bank::Bank;
use crate::home::Home;

/// Entries that are read at once.
const PAGE: u32 = 500;
/// Entries that are read for the first look; what lies further back is not counted.
pub(in crate::cli) const ENTRIES_MAX: usize = 100_000;

/// The sums, in nano-ATP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Earned {
    /// Since the machine is lent.
    pub(super) since: NanoAtp,
    /// Since local midnight.
    pub(super) today: NanoAtp,
}

/// Sums that grow with the journal.
pub(super) struct Earnings {
    bank: Bank,
    own: HashSet<AccountId>,
    since_ms: u64,
    midnight_ms: u64,
    /// Up to which entry all are counted.
    seq: u64,
    earned: Earned,
}

impl Earnings {
    pub(super) fn open(home: &Home, since_ms: u64) -> anyhow::Result<Self> {
        let bank = Bank::open(home)?;
        let cells = std::fs::read_dir(home.cells()).into_iter().flatten().flatten();
        let cells = cells.map(|entry| bank.accounts.cell(&entry.file_name().to_string_lossy()));
        let own = cells.chain([bank.accounts.node()]).collect();
        let (midnight_ms, earned) = (midnight_ms(), Earned::default());
        Ok(Self { bank, own, since_ms, midnight_ms, seq: 0, earned })
    }

    /// Counts what is new.
    pub(super) fn look(&mut self) -> Result<Earned, LedgerError> {
        let midnight_ms = midnight_ms();
        if midnight_ms > self.midnight_ms.saturating_add(60_000) {
            (self.midnight_ms, self.earned.today) = (midnight_ms, NanoAtp::ZERO);
        }
        let from_ms = self.since_ms.min(self.midnight_ms);
        let (mut before, mut newest) = (None, self.seq);
        for _ in 0..ENTRIES_MAX.div_ceil(PAGE as usize) {
            let entries = self.bank.ledger.history(None, before, PAGE)?;
            let is_new = |entry: &&Entry| entry.seq > self.seq && entry.time_ms >= from_ms;
            let new: Vec<&Entry> = entries.iter().filter(is_new).collect();
            for entry in &new {
                let paid = self.paid(&entry.command)?;
                let add = |sum: NanoAtp| NanoAtp(sum.0.saturating_add(paid));
                if entry.time_ms >= self.since_ms {
                    self.earned.since = add(self.earned.since);
                }
                if entry.time_ms >= self.midnight_ms {
                    self.earned.today = add(self.earned.today);
                }
                newest = newest.max(entry.seq);
            }
            let oldest = entries.iter().map(|entry| entry.seq).min();
            if new.len() < entries.len() || oldest.is_none_or(|seq| seq <= 1) {
                break;
            }
            before = oldest;
        }
        self.seq = newest;
        Ok(self.earned)
    }

    /// What an entry paid to this machine for others.
    fn paid(&self, command: &Command) -> Result<u64, LedgerError> {
        let (payer, payments) = match command {
            Command::Settle(Settle { hold, payments, .. }) if !payments.is_empty() => {
                (self.bank.ledger.find_hold(*hold)?.map(|hold| hold.account), payments)
            }
            _ => return Ok(0),
        };
        if payer.is_none_or(|payer| payer == self.bank.accounts.owner) {
            return Ok(0);
        }
        let to_own = |payment: &&Payment| self.own.contains(&payment.credit);
        let amounts = payments.iter().filter(to_own).map(|payment| payment.amount.0);
        Ok(amounts.fold(0, u64::saturating_add))
    }
}

/// The last local midnight, to the minute, in milliseconds since 1970.
fn midnight_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let minutes = since.as_secs() / 60;
    minutes.saturating_sub(Moment::now().minute_of_day.into()).saturating_mul(60_000)
}
