//! What a place that keeps the ledger must offer.
//!
//! It holds no rules: every store runs [`rules::apply_all`](crate::rules::apply_all) inside its own transaction.

use cell_abi::{AccountId, NanoAtp};

use crate::journal::Row;
use crate::{
    Checkpoint, Command, Entry, HoldId, LedgerError, Outcome, SessionId, Verified, VerifyError,
};

/// A place that keeps the ledger. Several handles, in several processes, may be open on one place.
pub trait LedgerStore: Send {
    /// Applies commands in their order in one durable transaction, with one result each.
    ///
    /// A refused command leaves no trace and does not disturb the others. The outer error means that nothing was
    /// applied, or, where committing itself failed, that it is unknown.
    fn apply(
        &mut self,
        commands: &[Command],
        now_ms: u64,
    ) -> Result<Vec<Result<Outcome, LedgerError>>, LedgerError>;

    /// The one account that may go negative; fixed when the ledger was created.
    fn issuer(&self) -> AccountId;

    /// What the account has; zero for one that was never seen.
    fn balance(&self, account: AccountId) -> Result<Balance, LedgerError>;

    /// Every account ever seen, by id.
    fn accounts(&self) -> Result<Vec<(AccountId, Balance)>, LedgerError>;

    /// The newest `limit` entries that changed the account (or all), older than `before_seq`, newest first.
    fn history(
        &self,
        account: Option<AccountId>,
        before_seq: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Entry>, LedgerError>;

    /// A hold, open or resolved.
    fn hold(&self, id: HoldId) -> Result<Option<HoldRecord>, LedgerError>;

    /// All open holds, by id.
    fn holds(&self) -> Result<Vec<HoldRecord>, LedgerError>;

    /// Folds the journal from scratch and compares it with every table, at one moment.
    ///
    /// Reads everything and keeps in memory some hundred bytes for each entry.
    fn verify(&self) -> Result<Verified, VerifyError>;

    /// The rows of the journal after this place, oldest first, at most so many.
    fn rows(&self, after_seq: u64, limit: u32) -> Result<Vec<Row>, LedgerError>;

    /// Keeps a signed statement about the journal, beside it; one that is kept already stays.
    fn keep_checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), LedgerError>;

    /// All that are kept, by entries and node.
    fn checkpoints(&self) -> Result<Vec<Checkpoint>, LedgerError>;

    /// Another handle on the same place, for a thread that reads while this one writes.
    fn reopen(&self) -> Result<Box<dyn LedgerStore>, LedgerError>;
}

/// What an account has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Balance {
    /// Credits less debits, in nano-ATP; negative only for the issuer.
    pub posted_nano: i64,
    /// The sum of the account's open holds.
    pub held: NanoAtp,
}

impl Balance {
    /// What can be spent: posted less held. Zero for the issuer, which spends below zero.
    pub fn available(&self) -> NanoAtp {
        NanoAtp(u64::try_from(self.posted_nano).unwrap_or(0)).saturating_sub(self.held)
    }
}

/// A hold as the store keeps it, open or resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldRecord {
    /// The hold.
    pub id: HoldId,
    /// Whose money.
    pub account: AccountId,
    /// What was granted.
    pub amount: NanoAtp,
    /// Who keeps it open.
    pub session: SessionId,
    /// When it may be voided, in milliseconds since 1970.
    pub expires_ms: u64,
    /// The journal entry that opened it.
    pub opened_seq: u64,
    /// The journal entry that resolved it; `None` while it is open.
    pub resolved_seq: Option<u64>,
}
