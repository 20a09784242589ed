//! What was billed for which call: leaves, and signed receipts over them.
//!
//! Receipts of one payer, one cell, one engine and one price list are a *chain*: each counts on from the
//! one before and holds its hash. Counters are cumulative, and the charge follows from them, so the
//! latest receipt alone says what is owed. Under each receipt hang *leaves*, one for each of its calls,
//! in a [`merkle`] tree whose root the receipt holds.
//!
//! What is hashed and signed is a value's JSON: its fields in the order they are declared here, without
//! spaces. It deliberately does not run anything again: who can run wasm compares with a [`Leaf`].

pub mod merkle;
mod store;

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use cell_abi::{AccountId, CellHash, EngineId};
use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};

use crate::id::digest;
use crate::signed::{self, json, text};
use crate::{ContentHash, ReceiptHash};
pub use store::{Filter, KeptCall, ReceiptStore, StoreError};

/// The version of the format that this program writes and reads.
pub const VERSION: u32 = 1;
/// What a receipt's signature is over besides the receipt.
const SIGNED: &str = "cell/receipt/v1";
/// The dimension that every call has.
pub const FUEL: &str = "fuel";

/// So much of each dimension, by its name.
pub type Counters = BTreeMap<String, u64>;

/// One call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leaf {
    /// Its number within its chain, from 1.
    pub call: u64,
    /// BLAKE3 of the code that ran.
    #[serde(with = "text")]
    pub cell_hash: CellHash,
    /// Which receptor, by its place in the cell's interface.
    pub receptor: u16,
    /// By way of the JSON adapter.
    pub json: bool,
    /// Memory that the instance might have.
    pub memory_bytes_max: u64,
    /// State that the cell might have.
    pub state_bytes_max: u64,
    /// The most it might burn, callees included.
    pub fuel_max: u64,
    /// What it burned, callees included.
    pub fuel: u64,
    /// What it is billed for, by dimension; `fuel` is without callees, which have leaves of their own.
    pub billed: Counters,
    /// How it ended: a status of the wire protocol.
    pub status: u32,
    /// Bytes of the request.
    pub input_bytes: u64,
    /// BLAKE3 of the request, or of nothing if it did not come.
    #[serde(with = "text")]
    pub input_hash: ContentHash,
    /// Bytes of the reply, or of the message of a call that failed.
    pub output_bytes: u64,
    /// BLAKE3 of those.
    #[serde(with = "text")]
    pub output_hash: ContentHash,
    /// Bytes of the tape: what it learned from clocks, randomness, state and other cells.
    pub tape_bytes: u64,
    /// BLAKE3 of the tape.
    #[serde(with = "text")]
    pub tape_hash: ContentHash,
    /// Why running it again would not tell, if so.
    pub not_checkable: Option<String>,
}

/// A price: so many nano-ATP for so many of a dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Nano-ATP.
    pub nano_atp: u64,
    /// For so many; never 0.
    pub per: u64,
}

/// What the calls of a chain have cost so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// [`VERSION`].
    pub version: u32,
    /// Who ran the calls and signs: an Ed25519 public key.
    #[serde(with = "text")]
    pub node: AccountId,
    /// Who pays.
    #[serde(with = "text")]
    pub payer: AccountId,
    /// The cell's name.
    pub cell: String,
    /// Who earns.
    #[serde(with = "text")]
    pub payee: AccountId,
    /// What fuel counts depend on.
    #[serde(with = "text")]
    pub engine_id: EngineId,
    /// The price of each dimension.
    pub rates: BTreeMap<String, Rate>,
    /// Its place in its chain, from 1.
    pub sequence: u64,
    /// The receipt before it; zeros for the first.
    #[serde(with = "text")]
    pub previous: ReceiptHash,
    /// The first of its calls.
    pub first_call: u64,
    /// The last.
    pub last_call: u64,
    /// Of all calls of the chain so far.
    pub counters: Counters,
    /// What all of them cost, in nano-ATP.
    pub charge_nano_atp: u64,
    /// Root over the leaves of its calls.
    #[serde(with = "text")]
    pub leaves_root: ContentHash,
    /// When it was signed, in milliseconds since 1970, by the node's clock.
    pub time_ms: u64,
    /// Ed25519, by `node`, as 128 hexadecimal digits.
    pub signature: String,
}

/// What is wrong with a receipt, or with what is said to belong to it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiptError {
    /// It is of another version.
    #[error("it is a receipt of version {0}, this program knows {VERSION}")]
    Version(u32),
    /// The signature is not the node's, or not of this receipt.
    #[error("the signature is not the node's over this receipt: something in it was changed")]
    Signature,
    /// Calls or sequence do not make sense.
    #[error("calls {0} to {1} are no range")]
    Calls(u64, u64),
    /// The charge does not follow from counters and prices.
    #[error("its counters at its prices make {expected} nano-ATP, it charges {charged}")]
    Charge {
        /// What they make.
        expected: u128,
        /// What it says.
        charged: u64,
    },
    /// A dimension without a price, or a price that divides by nothing.
    #[error("there is no price for `{0}`")]
    Price(String),
    /// The leaves are not those it was signed over.
    #[error("the leaves are not those that the receipt was signed over")]
    Leaves,
    /// A leaf is not the one in its place.
    #[error("leaf {0} is not where it should be")]
    LeafOrder(u64),
    /// The leaves do not add up to what the receipt counts.
    #[error("the leaves make {leaves} of `{dimension}`, the receipt counts {receipt}")]
    Sum {
        /// Of what.
        dimension: String,
        /// By the leaves.
        leaves: u128,
        /// By the receipt, since the one before it.
        receipt: u128,
    },
    /// It does not follow the receipt before it.
    #[error("it does not follow receipt {0}: {1}")]
    Chain(u64, &'static str),
}

impl Leaf {
    /// What a tree of leaves is made of.
    pub fn hash(&self) -> ContentHash {
        merkle::leaf(&json(self))
    }
}

impl Receipt {
    /// The receipt for these further calls of a chain: counts on from `last`, and is signed.
    ///
    /// `terms` has everything that names the chain; its counters and the rest are not looked at.
    pub fn issue(
        terms: &Terms,
        last: Option<&Self>,
        leaves: &[Leaf],
        key: &SigningKey,
    ) -> Result<Self, ReceiptError> {
        let mut counters = last.map_or_else(Counters::new, |last| last.counters.clone());
        for leaf in leaves {
            for (dimension, amount) in &leaf.billed {
                let counter = counters.entry(dimension.clone()).or_default();
                *counter = counter.saturating_add(*amount);
            }
        }
        let first_call = last.map_or(1, |last| last.last_call + 1);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut this = Self {
            version: VERSION,
            node: signed::node(key),
            payer: terms.payer,
            cell: terms.cell.clone(),
            payee: terms.payee,
            engine_id: terms.engine_id,
            rates: terms.rates.clone(),
            sequence: last.map_or(1, |last| last.sequence + 1),
            previous: last.map_or(ReceiptHash::from_bytes([0; 32]), Self::hash),
            first_call,
            last_call: first_call + (leaves.len() as u64).saturating_sub(1),
            charge_nano_atp: 0,
            counters,
            leaves_root: root(leaves),
            time_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            signature: String::new(),
        };
        let charge = this.charge()?;
        this.charge_nano_atp = u64::try_from(charge)
            .map_err(|_| ReceiptError::Charge { expected: charge, charged: u64::MAX })?;
        this.signature = signed::sign(SIGNED, &this, key);
        Ok(this)
    }

    /// What names its chain.
    pub fn terms(&self) -> Terms {
        Terms {
            payer: self.payer,
            cell: self.cell.clone(),
            payee: self.payee,
            engine_id: self.engine_id,
            rates: self.rates.clone(),
        }
    }

    /// How many calls it is over.
    pub const fn calls(&self) -> u64 {
        self.last_call.saturating_sub(self.first_call).saturating_add(1)
    }

    /// The hash that the next receipt holds.
    pub fn hash(&self) -> ReceiptHash {
        ReceiptHash::from_bytes(digest("cell/receipt/v1/hash", &[&json(self)]))
    }

    /// Checks all that can be checked by the receipt alone: signature, calls, charge.
    pub fn check(&self) -> Result<(), ReceiptError> {
        if self.version != VERSION {
            return Err(ReceiptError::Version(self.version));
        }
        let unsigned = Self { signature: String::new(), ..self.clone() };
        if !signed::is_signed(SIGNED, &unsigned, self.node, &self.signature) {
            return Err(ReceiptError::Signature);
        }
        if self.first_call == 0 || self.last_call < self.first_call || self.sequence == 0 {
            return Err(ReceiptError::Calls(self.first_call, self.last_call));
        }
        let expected = self.charge()?;
        if expected != u128::from(self.charge_nano_atp) {
            return Err(ReceiptError::Charge { expected, charged: self.charge_nano_atp });
        }
        Ok(())
    }

    /// Checks that it counts on from the receipt before it, or is the first.
    pub fn check_follows(&self, before: Option<&Self>) -> Result<(), ReceiptError> {
        let Some(before) = before else {
            let is_first = self.sequence == 1
                && self.first_call == 1
                && self.previous == ReceiptHash::from_bytes([0; 32]);
            return if is_first {
                Ok(())
            } else {
                Err(ReceiptError::Chain(0, "it is not the first"))
            };
        };
        let wrong = |what| Err(ReceiptError::Chain(before.sequence, what));
        if before.sequence.checked_add(1) != Some(self.sequence) {
            return wrong("one is missing");
        }
        if self.previous != before.hash() {
            return wrong("it names another one");
        }
        if before.node != self.node || before.terms() != self.terms() {
            return wrong("it is of another chain");
        }
        if before.last_call.checked_add(1) != Some(self.first_call) {
            return wrong("calls are missing");
        }
        if before.counters.iter().any(|(name, count)| self.counters.get(name) < Some(count)) {
            return wrong("it counts less");
        }
        Ok(())
    }

    /// Checks that these are its leaves, and that they make what it counts since the one before it.
    pub fn check_leaves(&self, before: Option<&Self>, leaves: &[Leaf]) -> Result<(), ReceiptError> {
        if let Some((call, _)) =
            (self.first_call..=self.last_call).zip(leaves).find(|(call, leaf)| leaf.call != *call)
        {
            return Err(ReceiptError::LeafOrder(call));
        }
        if self.calls() != leaves.len() as u64 || root(leaves) != self.leaves_root {
            return Err(ReceiptError::Leaves);
        }
        for (dimension, count) in &self.counters {
            let earlier = before.and_then(|before| before.counters.get(dimension)).unwrap_or(&0);
            let of_leaf = |leaf: &Leaf| u128::from(*leaf.billed.get(dimension).unwrap_or(&0));
            let leaves: u128 = leaves.iter().map(of_leaf).sum();
            let receipt = u128::from(count.saturating_sub(*earlier));
            if leaves != receipt {
                return Err(ReceiptError::Sum { dimension: dimension.clone(), leaves, receipt });
            }
        }
        Ok(())
    }

    /// Checks that this leaf hangs under it.
    pub fn check_leaf(&self, leaf: &Leaf, path: &[ContentHash]) -> Result<(), ReceiptError> {
        if !(self.first_call..=self.last_call).contains(&leaf.call) {
            return Err(ReceiptError::LeafOrder(leaf.call));
        }
        let place = leaf.call - self.first_call;
        match merkle::root_by_path(leaf.hash(), place, self.calls(), path) {
            Some(root) if root == self.leaves_root => Ok(()),
            _ => Err(ReceiptError::LeafOrder(leaf.call)),
        }
    }

    /// What the counters cost at its prices, each dimension rounded down.
    fn charge(&self) -> Result<u128, ReceiptError> {
        charge(&self.counters, &self.rates)
    }
}

/// Everything that names a chain of receipts, besides who signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Who pays.
    pub payer: AccountId,
    /// For calls of which cell.
    pub cell: String,
    /// Who earns.
    pub payee: AccountId,
    /// What fuel counts depend on.
    pub engine_id: EngineId,
    /// The price of each dimension.
    pub rates: BTreeMap<String, Rate>,
}

impl Terms {
    /// The chain's name.
    pub fn chain(&self) -> ContentHash {
        let parts: [&[u8]; 5] = [
            self.payer.as_bytes(),
            self.cell.as_bytes(),
            self.payee.as_bytes(),
            self.engine_id.as_bytes(),
            &json(&self.rates),
        ];
        ContentHash::derive("cell/receipt/v1/chain", &parts)
    }
}

/// What counters cost at these prices, in nano-ATP, each dimension rounded down.
pub fn charge(counters: &Counters, rates: &BTreeMap<String, Rate>) -> Result<u128, ReceiptError> {
    let price = |(dimension, count): (&String, &u64)| {
        let rate = rates.get(dimension).filter(|rate| rate.per > 0);
        let rate = rate.ok_or_else(|| ReceiptError::Price(dimension.clone()))?;
        Ok(u128::from(*count) * u128::from(rate.nano_atp) / u128::from(rate.per))
    };
    counters.iter().map(price).try_fold(0, |sum: u128, price| Ok(sum.saturating_add(price?)))
}

/// BLAKE3 of bytes.
pub fn content_hash(bytes: &[u8]) -> ContentHash {
    ContentHash::from_bytes(*blake3::hash(bytes).as_bytes())
}

fn root(leaves: &[Leaf]) -> ContentHash {
    merkle::root(&leaves.iter().map(Leaf::hash).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests;
