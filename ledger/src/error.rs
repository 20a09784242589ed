//! Why the ledger refused a command, could not do its work, or does not add up.
//!
//! It holds no causes as values: a store's own errors are told as text, so that errors can be compared in tests.

use std::path::PathBuf;

use cell_abi::status::Fault;
use cell_abi::{AccountId, NanoAtp};

use crate::{EntryHash, HoldId, SessionId, TransferId};

/// Why a request was not done. [`LedgerError::fault`] says whose fault it is.
///
/// A command that got an error whose fault is the caller's or policy's was not applied and left no trace.
/// After [`LedgerError::Unavailable`], [`LedgerError::Stopped`] and [`LedgerError::Storage`] it is unknown: repeat the command, with the same ids.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// The account has less than the command needs, after what is held is set aside.
    #[error("account {account} has {available} ATP available, {needed} ATP are needed")]
    InsufficientFunds {
        /// Whose funds.
        account: AccountId,
        /// Posted less held.
        available: NanoAtp,
        /// The transfer's amount, or the hold's minimum.
        needed: NanoAtp,
    },
    /// The transfer id already stands for something else.
    #[error("transfer {id} already exists with other content")]
    TransferConflict {
        /// The id.
        id: TransferId,
    },
    /// The hold id already stands for something else.
    #[error("hold {id} already exists with other content")]
    HoldConflict {
        /// The id.
        id: HoldId,
    },
    /// There is no such hold.
    #[error("there is no hold {hold}")]
    UnknownHold {
        /// The id.
        hold: HoldId,
    },
    /// The hold was settled with other content, or voided.
    #[error("hold {hold} was resolved by journal entry {seq}")]
    HoldResolved {
        /// The hold.
        hold: HoldId,
        /// The entry that resolved it.
        seq: u64,
    },
    /// The hold expired and was voided; a hold that is past its time and not yet voided can be settled.
    #[error("hold {hold} expired and was voided by journal entry {seq}")]
    HoldExpired {
        /// The hold.
        hold: HoldId,
        /// The entry that voided it.
        seq: u64,
    },
    /// The payments of a settlement are more than the hold reserves.
    #[error("the payments are more than the {held} ATP that hold {hold} reserves")]
    PaymentsExceedHold {
        /// The hold.
        hold: HoldId,
        /// What it reserves.
        held: NanoAtp,
    },
    /// One amount is past the signed 64 bits of nano-ATP that a store keeps, about 9.2 billion ATP.
    #[error("an amount of {amount} ATP is past the largest, 9,223,372,036.854775807 ATP")]
    AmountTooLarge {
        /// The amount.
        amount: NanoAtp,
    },
    /// The account's balance would pass the signed 64 bits that a store keeps.
    ///
    /// In practice it is the issuer's: what it has issued and what it holds are together at most `i64::MAX`.
    #[error("the balance of account {account} would pass 9,223,372,036.854775807 ATP")]
    BalanceOverflow {
        /// Whose balance.
        account: AccountId,
    },
    /// Debit and credit are one account.
    #[error("account {account} cannot pay itself")]
    SelfTransfer {
        /// The account.
        account: AccountId,
    },
    /// A transfer, payment or hold of nothing.
    #[error("the amount is zero")]
    ZeroAmount,
    /// A hold asks for at least more than at most.
    #[error("the least amount, {amount_min} ATP, is above the asked {amount} ATP")]
    MinimumAboveAmount {
        /// The most that is asked.
        amount: NanoAtp,
        /// The least that is asked.
        amount_min: NanoAtp,
    },
    /// The memo is longer than [`MEMO_BYTES_MAX`](crate::command::MEMO_BYTES_MAX).
    #[error("the memo has {bytes} bytes, 128 are allowed")]
    MemoTooLong {
        /// Its length.
        bytes: usize,
    },
    /// A settlement has more than [`PAYMENTS_MAX`](crate::command::PAYMENTS_MAX) payments.
    #[error("the settlement has {payments} payments, 1024 are allowed")]
    TooManyPayments {
        /// How many.
        payments: usize,
    },
    /// A time is past signed 64 bits of milliseconds.
    #[error("{time_ms} ms is past the largest time")]
    TimeTooLarge {
        /// The time.
        time_ms: u64,
    },

    /// `queue_commands_max` commands wait already; only [`Ledger::submit`](crate::Ledger::submit) says this.
    #[error("the ledger's queue is full")]
    QueueFull,
    /// Another process kept the file locked for longer than the store waits. Nothing was applied.
    #[error("another process keeps the ledger locked")]
    Busy,
    /// There is no connection to the server, or it was lost. Repeat the command later, with the same
    /// ids: it is unknown whether it was applied.
    #[error("the ledger cannot be reached: {reason}")]
    Unavailable {
        /// What the connection said.
        reason: String,
    },
    /// The session was silent for too long and another process took over its holds. Nothing that it
    /// asks for is applied any more.
    #[error(
        "session {session} was taken over by another process, because it was not heard of for too long"
    )]
    Fenced {
        /// The session.
        session: SessionId,
    },
    /// The URL names no server that this program can use.
    #[error("the ledger's URL: {reason}")]
    BadUrl {
        /// What is wrong with it.
        reason: String,
    },
    /// An earlier error made the writer stop, for good: what reached the disk is known only after opening it again.
    #[error("the ledger has stopped: {reason}")]
    Stopped {
        /// The error that stopped it.
        reason: String,
    },
    /// The store could not read or write.
    #[error("ledger storage: {reason}")]
    Storage {
        /// What the store said.
        reason: String,
    },
    /// The ledger's data contradicts itself. It is left as it is; restore a backup.
    #[error("the ledger is corrupt: {reason}")]
    Corrupt {
        /// What was found.
        reason: String,
    },
    /// The file is something else. It is left as it is.
    #[error("{} is not a ledger", path.display())]
    NotALedger {
        /// The file.
        path: PathBuf,
    },
    /// The file was written by a newer version of this program. It is left as it is.
    #[error("the ledger has schema version {found}, this program knows up to {known}")]
    NewerSchema {
        /// The file's version.
        found: i64,
        /// The newest this program reads.
        known: i64,
    },
    /// The ledger exists and its issuer is another.
    #[error("the ledger's issuer is {found}, not {expected}")]
    WrongIssuer {
        /// The ledger's.
        found: AccountId,
        /// The one asked for.
        expected: AccountId,
    },
    /// There is no file, and creating it was not asked for.
    #[error("there is no ledger at {}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
}

impl LedgerError {
    /// Whether the very same request may succeed in a while.
    pub const fn is_passing(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Busy)
    }

    /// Who has to change something for the request to succeed.
    pub const fn fault(&self) -> Fault {
        match self {
            Self::InsufficientFunds { .. }
            | Self::TransferConflict { .. }
            | Self::HoldConflict { .. }
            | Self::UnknownHold { .. }
            | Self::HoldResolved { .. }
            | Self::HoldExpired { .. }
            | Self::PaymentsExceedHold { .. }
            | Self::SelfTransfer { .. }
            | Self::ZeroAmount
            | Self::MinimumAboveAmount { .. } => Fault::Caller,
            Self::AmountTooLarge { .. }
            | Self::BalanceOverflow { .. }
            | Self::MemoTooLong { .. }
            | Self::TooManyPayments { .. }
            | Self::TimeTooLarge { .. }
            | Self::QueueFull => Fault::Policy,
            Self::Busy
            | Self::Unavailable { .. }
            | Self::Fenced { .. }
            | Self::BadUrl { .. }
            | Self::Stopped { .. }
            | Self::Storage { .. }
            | Self::Corrupt { .. }
            | Self::NotALedger { .. }
            | Self::NewerSchema { .. }
            | Self::WrongIssuer { .. }
            | Self::Missing { .. } => Fault::Host,
        }
    }
}

/// What the audit found wrong first.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// A journal entry is missing.
    #[error("journal entry {seq} is missing")]
    MissingEntry {
        /// The first missing one.
        seq: u64,
    },
    /// An entry does not follow from the one before it; entry 1 follows from the issuer.
    #[error(
        "journal entry {seq} does not chain to the entry before it: prev_hash is {found}, expected {expected}"
    )]
    BrokenChain {
        /// The entry.
        seq: u64,
        /// Its `prev_hash`.
        found: EntryHash,
        /// The hash of the entry before.
        expected: EntryHash,
    },
    /// An entry's hash is not the hash of its fields: one of them was altered.
    #[error("journal entry {seq} was altered: its hash is {found}, its fields give {expected}")]
    AlteredEntry {
        /// The entry.
        seq: u64,
        /// The hash it has.
        found: EntryHash,
        /// The hash of its fields.
        expected: EntryHash,
    },
    /// An entry's content is not a command with its outcome.
    #[error("journal entry {seq} cannot be decoded")]
    Undecodable {
        /// The entry.
        seq: u64,
    },
    /// An entry is well formed and breaks a rule of the ledger.
    #[error("journal entry {seq} breaks a rule: {rule}")]
    BrokenRule {
        /// The entry.
        seq: u64,
        /// The rule.
        rule: &'static str,
    },
    /// A table beside the journal says something else than the journal.
    #[error(
        "{table} {key}: the table has {found}, the journal gives {expected} (last changed by entry {seq})"
    )]
    TableDiffers {
        /// Which table: `account`, `transfer`, `hold` or `touched`.
        table: &'static str,
        /// Which row.
        key: String,
        /// What the table has.
        found: String,
        /// What the journal gives.
        expected: String,
        /// The last journal entry that changed the row; zero if none did.
        seq: u64,
    },
    /// The store could not be read to the end.
    #[error(transparent)]
    Unreadable(#[from] LedgerError),
}
