//! A ledger in memory, for tests and for a nucleus that keeps nothing.
//!
//! It is not durable: when the last handle is dropped, the books are gone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use cell_abi::AccountId;

use crate::journal::{Head, Row};
use crate::rules::{self, Changes, Tables, Which};
use crate::verify::{Fold, Snapshot};
use crate::{
    Balance, Checkpoint, Command, Entry, HoldId, HoldRecord, LedgerError, LedgerStore, Outcome,
    TransferId, Verified, VerifyError,
};

/// A [`LedgerStore`] in memory; clones share one ledger.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    issuer: AccountId,
    books: Arc<Mutex<Books>>,
}

#[derive(Debug)]
struct Books {
    issuer: AccountId,
    rows: Vec<Row>,
    tables: Snapshot,
    checkpoints: BTreeMap<(u64, AccountId), Checkpoint>,
}

impl MemoryStore {
    /// An empty ledger of this issuer.
    pub fn new(issuer: AccountId) -> Self {
        let books = Books {
            issuer,
            rows: Vec::new(),
            tables: Snapshot::default(),
            checkpoints: BTreeMap::new(),
        };
        Self { issuer, books: Arc::new(Mutex::new(books)) }
    }

    fn books(&self) -> Result<MutexGuard<'_, Books>, LedgerError> {
        // A writer that panicked may have written half a command.
        self.books.lock().map_err(|_| LedgerError::Corrupt { reason: "a writer panicked".into() })
    }
}

impl LedgerStore for MemoryStore {
    fn apply(
        &mut self,
        commands: &[Command],
        now_ms: u64,
    ) -> Result<Vec<Result<Outcome, LedgerError>>, LedgerError> {
        rules::apply_all(&mut *self.books()?, commands, now_ms)
    }

    fn issuer(&self) -> AccountId {
        self.issuer
    }

    fn balance(&self, account: AccountId) -> Result<Balance, LedgerError> {
        self.books()?.balance(account)
    }

    fn accounts(&self) -> Result<Vec<(AccountId, Balance)>, LedgerError> {
        Ok(self
            .books()?
            .tables
            .accounts
            .iter()
            .map(|(account, balance)| (*account, *balance))
            .collect())
    }

    fn history(
        &self,
        account: Option<AccountId>,
        before_seq: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Entry>, LedgerError> {
        let books = self.books()?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let wanted = |row: &&Row| {
            before_seq.is_none_or(|before| row.seq < before)
                && account
                    .is_none_or(|account| books.tables.touched.contains_key(&(account, row.seq)))
        };
        books.rows.iter().rev().filter(wanted).take(limit).map(Row::entry).collect()
    }

    fn hold(&self, id: HoldId) -> Result<Option<HoldRecord>, LedgerError> {
        self.books()?.hold(id)
    }

    fn holds(&self) -> Result<Vec<HoldRecord>, LedgerError> {
        Ok(self.books()?.open_where(|_| true))
    }

    fn verify(&self) -> Result<Verified, VerifyError> {
        let books = self.books()?;
        let mut fold = Fold::new(self.issuer);
        books.rows.iter().try_for_each(|row| fold.push(row))?;
        fold.finish(&books.tables)
    }

    fn rows(&self, after_seq: u64, limit: u32) -> Result<Vec<Row>, LedgerError> {
        let (after, limit) = (usize::try_from(after_seq), usize::try_from(limit));
        let (after, limit) = (after.unwrap_or(usize::MAX), limit.unwrap_or(usize::MAX));
        Ok(self.books()?.rows.iter().skip(after).take(limit).cloned().collect())
    }

    fn keep_checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), LedgerError> {
        let key = (checkpoint.entries, checkpoint.node);
        self.books()?.checkpoints.entry(key).or_insert_with(|| checkpoint.clone());
        Ok(())
    }

    fn checkpoints(&self) -> Result<Vec<Checkpoint>, LedgerError> {
        Ok(self.books()?.checkpoints.values().cloned().collect())
    }

    fn reopen(&self) -> Result<Box<dyn LedgerStore>, LedgerError> {
        Ok(Box::new(self.clone()))
    }
}

impl Books {
    fn open_where(&self, choose: impl Fn(&HoldRecord) -> bool) -> Vec<HoldRecord> {
        let open = self.tables.holds.values().filter(|hold| hold.resolved_seq.is_none());
        open.filter(|hold| choose(hold)).copied().collect()
    }
}

impl Tables for Books {
    fn issuer(&self) -> AccountId {
        self.issuer
    }

    fn head(&self) -> Head {
        self.rows.last().map_or_else(|| Head::empty(self.issuer), Row::head)
    }

    fn balance(&self, account: AccountId) -> Result<Balance, LedgerError> {
        Ok(self.tables.accounts.get(&account).copied().unwrap_or_default())
    }

    fn transfer_seq(&self, id: TransferId) -> Result<Option<u64>, LedgerError> {
        Ok(self.tables.transfers.get(&id).copied())
    }

    fn hold(&self, id: HoldId) -> Result<Option<HoldRecord>, LedgerError> {
        Ok(self.tables.holds.get(&id).copied())
    }

    fn open_holds(&self, which: Which) -> Result<Vec<HoldRecord>, LedgerError> {
        Ok(match which {
            Which::Session(session) => self.open_where(|hold| hold.session == session),
            Which::ExpiredAt(now_ms) => self.open_where(|hold| hold.expires_ms <= now_ms),
        })
    }

    fn entry(&self, seq: u64) -> Result<Entry, LedgerError> {
        // Entry 1 is the first row.
        let row = usize::try_from(seq.wrapping_sub(1)).ok().and_then(|index| self.rows.get(index));
        row.ok_or_else(|| LedgerError::Corrupt {
            reason: format!("journal entry {seq} is missing"),
        })?
        .entry()
    }

    fn write(&mut self, row: &Row, changes: &Changes) -> Result<(), LedgerError> {
        self.rows.push(row.clone());
        self.tables
            .touched
            .extend(changes.balances.keys().map(|account| ((*account, row.seq), row.seq)));
        self.tables.accounts.extend(&changes.balances);
        self.tables.transfers.extend(changes.transfers.iter().map(|id| (*id, row.seq)));
        self.tables.holds.extend(changes.holds.iter().map(|hold| (hold.id, *hold)));
        Ok(())
    }
}
