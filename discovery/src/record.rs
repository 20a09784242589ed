//! What a machine says of itself, signed by its identity: where it is, what it serves and for how much.
//!
//! Whether that is true, and whom to trust, is not decided here: a record proves only who wrote it.

use std::collections::{BTreeMap, BTreeSet};

use cell_abi::limits::NAME_BYTES_MAX;
use cell_abi::{AccountId, CellName, EngineId};
use cell_ledger::signed;
use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};

use crate::address::{Address, LedgerAt};
use crate::error::{DiscoveryError, printable};
use crate::text;

/// The version of the format that this program writes and reads.
pub const VERSION: u32 = 1;
/// What a record's signature is over besides the record.
const SIGNED: &str = "cell/node/v1";

/// Longest record, in bytes.
pub(crate) const RECORD_BYTES_MAX: usize = 8 << 10;
/// Addresses of one machine.
pub(crate) const ADDRESSES_MAX: usize = 8;
/// Cells that one machine names.
pub(crate) const CELLS_MAX: usize = 64;
/// Dimensions that one machine has prices for.
pub(crate) const RATES_MAX: usize = 8;
/// Ledgers that one machine takes payment in.
pub const LEDGERS_MAX: usize = 8;
/// How long a record holds, in seconds.
pub(crate) const VALID_S_MAX: u64 = 7 * 24 * 3600;
/// How far two machines' clocks may be apart, in seconds.
pub(crate) const CLOCKS_APART_S_MAX: u64 = 600;

/// What a machine serves to others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serves {
    /// Whether it runs programs of others.
    pub jobs: bool,
    /// Cells that others may call there.
    #[serde(with = "text::many")]
    pub cells: BTreeSet<CellName>,
}

/// What a machine has to say, before it is signed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offer {
    /// Where it listens, or through whom it is reached; at least one.
    pub addresses: Vec<Address>,
    /// What for.
    pub serves: Serves,
    /// What its fuel counts depend on.
    pub engine_id: Option<EngineId>,
    /// Its prices in nano-ATP, by dimension and for as much of it as a price list counts at once.
    pub rates: BTreeMap<String, u64>,
    /// The ledgers in which it can be paid.
    pub ledgers: Vec<LedgerAt>,
}

/// A machine's signed word on where it is and what it serves.
///
/// It has one writing: JSON without spaces, in the order of these fields. So nobody can make another
/// text of it that still is its owner's word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct NodeRecord {
    /// [`VERSION`].
    pub version: u32,
    /// The machine's identity.
    #[serde(with = "signed::text")]
    pub key: AccountId,
    /// Where it listens, or through whom it is reached.
    #[serde(with = "text::many")]
    pub addresses: Vec<Address>,
    /// What for.
    pub serves: Serves,
    /// What its fuel counts depend on.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "text::optional")]
    pub engine_id: Option<EngineId>,
    /// Its prices in nano-ATP, by dimension and for as much of it as a price list counts at once.
    pub rates: BTreeMap<String, u64>,
    /// The ledgers in which it can be paid.
    #[serde(with = "text::many")]
    pub ledgers: Vec<LedgerAt>,
    /// Of two records of one machine, the one with the higher number counts.
    pub seq: u64,
    /// When it was signed, in seconds since 1970.
    pub issued_s: u64,
    /// Until when it holds, in seconds since 1970.
    pub expires_s: u64,
    /// Ed25519 over the record with this left empty.
    pub signature: String,
}

impl NodeRecord {
    /// Signs an offer, which then holds between these times, in seconds since 1970.
    pub fn sign(
        offer: Offer,
        seq: u64,
        issued_s: u64,
        expires_s: u64,
        key: &SigningKey,
    ) -> Result<Self, DiscoveryError> {
        let Offer { addresses, serves, engine_id, rates, ledgers } = offer;
        let mut this = Self {
            version: VERSION,
            key: signed::node(key),
            addresses,
            serves,
            engine_id,
            rates,
            ledgers,
            seq,
            issued_s,
            expires_s,
            signature: String::new(),
        };
        this.signature = signed::sign(SIGNED, &this, key);
        this.check_form()?;
        match this.to_json().len() {
            bytes if bytes > RECORD_BYTES_MAX => Err(DiscoveryError::RecordTooLong(bytes)),
            _ => Ok(this),
        }
    }

    /// Reads a record of the right form. It is nobody's word before [`check`](Self::check).
    pub fn parse(bytes: &[u8]) -> Result<Self, DiscoveryError> {
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(DiscoveryError::RecordTooLong(bytes.len()));
        }
        let wrong = |error| DiscoveryError::Record(printable(error));
        let this: Self = serde_json::from_slice(bytes).map_err(wrong)?;
        this.check_form()?;
        if this.to_json().as_bytes() != bytes {
            return Err(DiscoveryError::Record("it is not in the one writing that it has".into()));
        }
        Ok(this)
    }

    /// Whether the machine signed this, and it holds now, which is in seconds since 1970.
    pub fn check(&self, now_s: u64) -> Result<(), DiscoveryError> {
        if !signed::is_signed(SIGNED, &self.unsigned(), self.key, &self.signature) {
            return Err(DiscoveryError::Signature(self.key));
        }
        if self.issued_s > now_s.saturating_add(CLOCKS_APART_S_MAX) {
            return Err(DiscoveryError::Early(self.key));
        }
        if self.has_expired(now_s) {
            return Err(DiscoveryError::Expired(self.key));
        }
        Ok(())
    }

    /// The record's one writing, which has no line breaks.
    pub fn to_json(&self) -> String {
        // Numbers, texts and maps with text keys can always be written.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Whether it is past its time, however the clocks differ.
    pub(crate) fn has_expired(&self, now_s: u64) -> bool {
        self.expires_s.saturating_add(CLOCKS_APART_S_MAX) < now_s
    }

    /// Whether it says the same; one word can have several signatures.
    pub(crate) fn says_same(&self, other: &Self) -> bool {
        self.unsigned() == other.unsigned()
    }

    fn unsigned(&self) -> Self {
        Self { signature: String::new(), ..self.clone() }
    }

    fn check_form(&self) -> Result<(), DiscoveryError> {
        if self.version != VERSION {
            return Err(DiscoveryError::Version(self.version));
        }
        let counts = [
            ("addresses", self.addresses.len(), 1..=ADDRESSES_MAX),
            ("cells", self.serves.cells.len(), 0..=CELLS_MAX),
            ("rates", self.rates.len(), 0..=RATES_MAX),
            ("ledgers", self.ledgers.len(), 0..=LEDGERS_MAX),
        ];
        for (what, count, allowed) in counts {
            if !allowed.contains(&count) {
                let (least, most) = allowed.into_inner();
                let text = format!("{count} {what}, and {least} to {most} are allowed");
                return Err(DiscoveryError::Record(text));
            }
        }
        if let Some(name) = self.rates.keys().find(|name| !is_dimension(name)) {
            let name = printable(name);
            return Err(DiscoveryError::Record(format!("`{name}` is no dimension")));
        }
        if signed::from_hex(&self.signature).is_none_or(|bytes| bytes.len() != 64) {
            return Err(DiscoveryError::Record("a signature is 128 hexadecimal digits".into()));
        }
        match self.expires_s.checked_sub(self.issued_s) {
            Some(1..=VALID_S_MAX) => Ok(()),
            _ => Err(DiscoveryError::Record(format!("it holds for 1 to {VALID_S_MAX} s"))),
        }
    }
}

fn is_dimension(name: &str) -> bool {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed)
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
