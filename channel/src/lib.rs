//! Payment between two who never met: the *payer* sets money aside on a ledger that both accept, and agrees
//! to one slice of work after another; the *payee* works no further than that, and can claim it alone.
//!
//! It has no sockets, no files and no clock, and signs nothing while work runs: a voucher for each slice and a
//! receipt now and then are all. What work is, and what it costs, it does not know either: it is told of
//! [`Leaf`]s, which are payments of the payee's own ledger.
//!
//! 1. The payee signs a [`Quote`]. The payer signs an [`Open`], which names it, and has the ledger set the
//!    deposit aside: [`Escrow::fund`] gives [`Funded`], signed by the ledger's machine.
//! 2. [`Payee::accept`] checks all that. From here on the payer signs [`Voucher`]s, each with a higher
//!    *ceiling* for everything so far ([`Payer::voucher`]); the payee keeps one before it works for it.
//! 3. The payee signs [`Receipt`]s, each with the charge so far; the payer checks them ([`Payer::take`]), and
//!    signs no further voucher where one is wrong. So it never agreed to more than a slice beyond what it was
//!    billed; whether what it was billed for was done is for whoever knows what work is.
//! 4. [`Escrow::claim`] pays the charge of the last receipt out of the deposit. Voucher and receipt suffice:
//!    nobody's consent is needed after the work. [`Escrow::close`] gives back the rest at once if both
//!    agree; [`Escrow::request_close`] after a window in which the payee may still claim; and time does it
//!    in any case.
//!
//! The whole state of a channel at its ledger is a row of holds there, so it is as durable as that is.

mod caught;
mod error;
mod escrow;
mod limits;
mod objects;
mod payee;
mod payer;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use caught::Equivocation;
pub use error::ChannelError;
pub use escrow::{CLAIMS_MAX, Escrow, Standing};
pub use limits::LIMITS;
pub use objects::{
    Accept, Claim, Close, CloseRequest, Closed, Funded, Leaf, LedgerAt, Object, Open, Quote,
    Reason, Receipt, Resync, Signed, Voucher,
};
pub use payee::{Payee, PayeeRecord};
pub use payer::{Payer, PayerRecord, Wish};
