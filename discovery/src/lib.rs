//! How machines that want to trade compute find each other.
//!
//! A machine signs a [`NodeRecord`]: where it is, what it serves and for how much. Records lie in a
//! [`Rendezvous`], a file or a page of the web that anybody can keep, because they prove themselves; a
//! [`Directory`] keeps the newest of each machine. In a local network, [`lan`] finds machines without
//! any of that.
//!
//! What is found is where to knock. It deliberately opens no session, knows no ledger and trusts nobody.
//!
//! ```
//! use cell_discovery::{Added, Directory, NodeRecord, Offer, Rendezvous, publish};
//! use ed25519_dalek::SigningKey;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("nodes.jsonl");
//! let now_s = 1_800_000_000;
//! let key = SigningKey::from_bytes(&[7; 32]);
//! let offer = Offer { addresses: vec!["den.example:7316".parse()?], ..Offer::default() };
//! let record = NodeRecord::sign(offer, 1, now_s, now_s + 3600, &key)?;
//! publish(&path, &record, now_s)?;
//!
//! // Elsewhere, or by way of a web server: "http://rendezvous.example/nodes.jsonl".
//! let rendezvous: Rendezvous = path.to_str().ok_or("a path that is text")?.parse()?;
//! let mut directory = Directory::default();
//! for found in rendezvous.read(now_s)?.records {
//!     assert_eq!(directory.add(found, now_s)?, Added::New);
//! }
//! let found = directory.find(record.key, now_s).ok_or("nobody")?;
//! assert_eq!(found.addresses[0].as_str(), "den.example:7316");
//! # Ok(())
//! # }
//! ```

mod address;
mod directory;
mod error;
pub mod lan;
mod limits;
mod record;
mod rendezvous;
mod text;
mod web;

pub use address::{Address, LedgerAt};
pub use directory::{Added, Directory};
pub use error::DiscoveryError;
pub use limits::LIMITS;
pub use record::{LEDGERS_MAX, NodeRecord, Offer, Serves, VERSION};
pub use rendezvous::{Reading, Rendezvous, publish};

#[cfg(test)]
mod testing;
