//! Cell's book of who owns what: a double-entry, append-only, zero-sum ledger in nano-ATP with two-phase holds.
//!
//! It deliberately knows no prices, no wasm and no key of its own: it neither decides what a call costs nor who may ask.
//!
//! * Every movement has a debit and a credit, so the sum over all accounts is always zero. Only the *issuer*,
//!   named when the ledger is created, may go negative; how far it is below zero is the money in circulation.
//! * Every id stands for one content. The same command again gets the first answer; another content under a
//!   used id is refused before anything else is looked at. So after any failure: ask again.
//! * Every applied command is one row of a hash-chained [`journal`]; [`LedgerStore::verify`] folds it from
//!   scratch and compares. A rewrite of the whole file is told only by a head hash kept elsewhere.
//!
//! Beside the books, [`receipts`] say what was billed for which call, signed, so that a payer can check it.
//!
//! The parts: [`command`] is what can be asked, [`rules`] decides, a [`LedgerStore`] holds the data
//! ([`SqliteStore`], [`PostgresStore`], [`MemoryStore`]), [`Ledger`] is the handle a program shares, [`verify`] is the audit.
//!
//! ```
//! use cell_abi::{AccountId, NanoAtp};
//! use cell_ledger::{Hold, HoldId, Ledger, Payment, SessionId, Settle, Transfer, TransferId};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (issuer, alice, cell) =
//!     (AccountId::from_bytes([0; 32]), AccountId::from_bytes([1; 32]), AccountId::from_bytes([2; 32]));
//! let home = tempfile::tempdir()?;
//! let ledger = Ledger::open(&home.path().join("ledger.db"), issuer)?;
//!
//! // An id made from what it pays for: granting twice grants once.
//! let grant = Transfer {
//!     id: TransferId::derive("example.grant", &[alice.as_bytes()]),
//!     debit: issuer,
//!     credit: alice,
//!     amount: NanoAtp(1_000),
//!     memo: "welcome".into(),
//! };
//! assert_eq!(ledger.transfer(grant.clone())?, ledger.transfer(grant)?);
//!
//! let hold = HoldId::derive("example.hold", &[b"call 1"]);
//! ledger.hold(Hold {
//!     id: hold,
//!     account: alice,
//!     amount: NanoAtp(300),
//!     amount_min: NanoAtp(300),
//!     session: SessionId::derive("example.session", &[b"1"]),
//!     expires_ms: u64::MAX >> 1,
//! })?;
//! assert_eq!(ledger.balance(alice)?.available(), NanoAtp(700));
//!
//! let payment = Payment {
//!     id: TransferId::derive("example.pay", &[hold.as_bytes()]),
//!     credit: cell,
//!     amount: NanoAtp(120),
//!     memo: "call 1".into(),
//! };
//! ledger.settle(Settle { hold, payments: vec![payment], next: None })?;
//! assert_eq!(ledger.balance(alice)?.available(), NanoAtp(880));
//! assert_eq!(ledger.verify()?.entries, 3);
//! # Ok(())
//! # }
//! ```

pub mod checkpoint;
pub mod command;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod error;
pub mod id;
pub mod journal;
pub mod ledger;
pub mod memory;
pub mod postgres;
#[cfg(any(test, feature = "conformance"))]
pub mod private_server;
pub mod receipts;
pub mod rules;
pub mod signed;
pub mod sqlite;
pub mod store;
pub mod verify;

pub use checkpoint::Checkpoint;
pub use command::{Command, Hold, Outcome, Payment, Settle, Transfer};
pub use error::{LedgerError, VerifyError};
pub use id::{ContentHash, EntryHash, HoldId, ReceiptHash, SessionId, TransferId};
pub use journal::Entry;
pub use ledger::{Clock, Ledger, LedgerOptions, SystemClock};
pub use memory::MemoryStore;
pub use postgres::PostgresStore;
pub use sqlite::SqliteStore;
pub use store::{Balance, HoldRecord, LedgerStore};
pub use verify::Verified;

#[cfg(test)]
mod history_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tamper_tests;
