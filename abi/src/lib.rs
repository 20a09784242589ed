//! What every part of Cell speaks: wire frames, ids, units, statuses and interface schemas.
//!
//! This crate does no I/O, reads no clock and allocates nothing that a peer could size.
//! It builds for wasm and for native targets, so that one definition serves both sides.
#![no_std]

extern crate alloc;

pub mod frame;
pub mod id;
pub mod interface;
pub mod limit;
pub mod limits;
pub mod name;
pub mod open;
pub mod schema;
pub mod status;
pub mod units;

pub use frame::{Flags, FrameError, Header, Hello, Kind};
pub use id::{AccountId, CellHash, EngineId, Fingerprint};
pub use interface::{Interface, InterfaceError, ReceptorInterface};
pub use limit::{Amount, Limit};
pub use name::{CellName, NameError, ReceptorName};
pub use open::Open;
pub use schema::{Message, Receptor, Signal, Text};
pub use status::{Fault, Reject, Status};
pub use units::{Fuel, NanoAtp};
