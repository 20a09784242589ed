//! Calls cells from native programs: typed, raw or JSON, blocking or async, one call or many.
//!
//! It speaks `docs/PROTOCOL.md` over a cell's Unix socket. It starts no nucleus, keeps no money
//! and trusts no server: whatever comes in is bounded and checked, and ends in a typed [`Error`].
//!
//! ```no_run
//! # fn main() -> Result<(), cell_client::Error> {
//! use cell_client::{CallOptions, Client};
//!
//! let mut client = Client::connect("cells/hello/cell.sock", "hello")?;
//! let greet = client.open_raw("greet")?;
//! let reply = client.call_json(&greet, r#"{"name":"Ada"}"#, CallOptions::default())?;
//! println!("{} burned {} fuel", reply.text(), reply.fuel());
//! # Ok(())
//! # }
//! ```

mod blocking;
mod error;
mod inbox;
mod limits;
mod link;
mod options;
mod outbox;
mod response;
#[doc(hidden)]
pub mod ring;
mod session;
mod slot;
#[cfg(feature = "tokio")]
pub mod tokio;

pub use blocking::{Client, TypedClient};
pub use error::{Error, ProtocolError};
pub use limits::LIMITS;
pub use options::{
    CALLS_IN_FLIGHT_MAX, CallOptions, Config, FUEL_DEFAULT, RequestId, TIMEOUT_DEFAULT,
};
pub use response::{JsonResponse, RawResponse, Response};
pub use slot::{RawSlot, Slot};

pub use cell_abi::{Fuel, Receptor, Reject, Status};
