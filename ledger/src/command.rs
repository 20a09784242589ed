//! What can be asked of the ledger, and what it answers.
//!
//! It checks nothing: whether a command is allowed is decided in [`rules`](crate::rules).

use cell_abi::{AccountId, NanoAtp};

use crate::{HoldId, SessionId, TransferId};

/// The most UTF-8 bytes of a memo; a longer one is refused with `MemoTooLong`.
pub const MEMO_BYTES_MAX: usize = 128;
/// The most payments in one settlement, which bounds a journal row; more are refused with `TooManyPayments`.
pub const PAYMENTS_MAX: usize = 1024;

/// One change of the ledger: applied whole, or refused without a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command {
    /// Moves money now.
    Transfer(Transfer),
    /// Reserves money.
    Hold(Hold),
    /// Pays from a hold, releases the rest, and may reserve anew.
    Settle(Settle),
    /// Releases a hold without paying.
    Void {
        /// The hold.
        hold: HoldId,
    },
    /// Releases all open holds of a session, for when its holder is gone.
    VoidSession {
        /// The session.
        session: SessionId,
    },
    /// Releases all open holds whose `expires_ms` is at or before `now_ms`.
    VoidExpired {
        /// The caller's clock, in milliseconds since 1970.
        now_ms: u64,
    },
}

/// Moves `amount` from `debit` to `credit`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// Stands for this content for ever; see [`TransferId::derive`].
    pub id: TransferId,
    /// Who pays.
    pub debit: AccountId,
    /// Who is paid.
    pub credit: AccountId,
    /// More than zero.
    pub amount: NanoAtp,
    /// For people; at most [`MEMO_BYTES_MAX`] bytes.
    pub memo: String,
}

/// Reserves what is available, between `amount_min` and `amount`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Stands for this content for ever.
    pub id: HoldId,
    /// Whose money is reserved.
    pub account: AccountId,
    /// The most that is reserved; more than zero.
    pub amount: NanoAtp,
    /// The least that is of use; zero counts as one, because an empty hold is none.
    pub amount_min: NanoAtp,
    /// Who keeps the hold open.
    pub session: SessionId,
    /// When [`Command::VoidExpired`] releases it, in milliseconds since 1970; until then it can be settled.
    pub expires_ms: u64,
}

/// Resolves a hold: pays, releases the rest, and opens the next hold, all or nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settle {
    /// The hold to resolve.
    pub hold: HoldId,
    /// Transfers from the hold's account; their sum is at most what the hold reserves. None is allowed.
    pub payments: Vec<Payment>,
    /// A hold to open afterwards. If less than its `amount_min` is available then none is opened, its id stays
    /// unused, and the settlement succeeds nevertheless.
    pub next: Option<Hold>,
}

/// One transfer out of a hold; the debit is the hold's account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payment {
    /// Stands for this content for ever, in one space with the ids of plain transfers.
    pub id: TransferId,
    /// Who is paid; not the hold's own account.
    pub credit: AccountId,
    /// More than zero.
    pub amount: NanoAtp,
    /// For people; at most [`MEMO_BYTES_MAX`] bytes.
    pub memo: String,
}

/// The answer to an applied command. A repeated command gets the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The transfer is in the books.
    Posted {
        /// Its journal entry.
        seq: u64,
    },
    /// The hold is open.
    Held {
        /// Its journal entry.
        seq: u64,
        /// What it reserves.
        granted: NanoAtp,
    },
    /// The hold is resolved.
    Settled {
        /// Its journal entry.
        seq: u64,
        /// The sum of the payments.
        paid: NanoAtp,
        /// What the hold reserved and was not paid.
        released: NanoAtp,
        /// What the next hold reserves; zero if none was asked for, or none could be opened.
        next_granted: NanoAtp,
    },
    /// One or more holds are released.
    Voided {
        /// Its journal entry.
        seq: u64,
        /// How many holds.
        holds: u64,
        /// What they reserved together.
        released: NanoAtp,
    },
    /// No open hold was in that session, or had expired; there is no journal entry.
    NothingToVoid,
}
