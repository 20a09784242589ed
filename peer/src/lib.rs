//! Sessions between machines: mutually authenticated, encrypted, and over any stream of bytes.
//!
//! [`Handshake`] and [`Session`] are state machines that do no I/O; [`tunnel`] moves bytes between a
//! network connection and a local one, [`splice`] between two network connections. What the bytes mean is not known here, and neither is whom to
//! trust: a session says who is at the other end, and its owner decides.
//!
//! `docs/PEERS.md` has the bytes.

pub mod credentials;
mod dial;
mod error;
mod handshake;
mod limits;
mod pace;
mod records;
mod request;
mod session;
pub mod splice;
pub mod tunnel;
mod wait;

pub use credentials::Credentials;
pub use error::PeerError;
pub use handshake::{Handshake, PREFACE, Step};
pub use limits::LIMITS;
pub use pace::Pace;
pub use records::Records;
pub use request::{Answer, Request, TOKEN_BYTES, Token};
pub use session::{Opened, Session};

#[cfg(test)]
mod relay_tests;
#[cfg(test)]
mod tests;
