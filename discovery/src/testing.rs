//! Records for the tests.

use ed25519_dalek::SigningKey;

use crate::record::{NodeRecord, Offer};

/// Now, in tests.
pub(crate) const NOW_S: u64 = 1_800_000_000;

/// An identity for each number.
pub(crate) fn key(number: u64) -> SigningKey {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    SigningKey::from_bytes(&bytes)
}

/// An offer with nothing but a place.
pub(crate) fn offer(address: &str) -> Offer {
    Offer { addresses: vec![address.parse().unwrap()], ..Offer::default() }
}

/// A record that holds for so long from now.
pub(crate) fn record(number: u64, seq: u64, holds_s: u64) -> NodeRecord {
    NodeRecord::sign(offer("h:1"), seq, NOW_S, NOW_S + holds_s, &key(number)).unwrap()
}
