//! Why an object was not taken. None of these changes anything.

use cell_abi::NanoAtp;
use cell_ledger::LedgerError;

use crate::Equivocation;

/// Why an object was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// It is of another channel, another ledger, or another party.
    #[error("{0} is not of this channel")]
    Foreign(&'static str),
    /// It is not signed by whom it should be.
    #[error("{0} is not signed by its party")]
    BadSignature(&'static str),
    /// Its terms are not those of the quote, or no terms that can be.
    #[error("the channel's {0} is not as the quote says")]
    Terms(&'static str),
    /// An older one than is known already.
    #[error("{0} is an old one")]
    Stale(&'static str),
    /// A voucher for more than is set aside.
    #[error("a ceiling of {ceiling} ATP is above the deposit of {deposit} ATP")]
    AboveDeposit {
        /// What the voucher says.
        ceiling: NanoAtp,
        /// What is set aside.
        deposit: NanoAtp,
    },
    /// A receipt for more than its voucher.
    #[error("a charge of {charge} ATP is above the ceiling of {ceiling} ATP")]
    AboveCeiling {
        /// What the receipt says.
        charge: NanoAtp,
        /// What the voucher says.
        ceiling: NanoAtp,
    },
    /// A receipt that does not follow from the one before and from its leaves.
    #[error("the receipt's {0} does not follow from what came before")]
    DoesNotFollow(&'static str),
    /// Two receipts under one number. Shown to others, this is proof.
    #[error("the payee signed two receipts under one number")]
    Equivocation(Box<Equivocation>),
    /// Its time is over, or nearly.
    #[error("the channel's time is over")]
    Expired,
    /// It was closed; what is left was given back.
    #[error("the channel is closed")]
    Closed,
    /// It was never funded at this ledger.
    #[error("the channel has no deposit here")]
    Unfunded,
    /// More claims than a channel may have.
    #[error("a channel is claimed from at most {} times", crate::CLAIMS_MAX)]
    TooManyClaims,
    /// The ledger refused, or does not answer.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}
