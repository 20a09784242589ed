//! Signed statements about how far the journal was: who keeps one elsewhere can tell if it is rewritten
//! later.
//!
//! What is signed is a checkpoint's JSON: its fields in the order they are declared here, without spaces
//! and with an empty signature.

use cell_abi::AccountId;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::journal::Head;
use crate::receipts::{from_hex, hex, text};
use crate::{EntryHash, LedgerError};

/// What a signature is over besides the checkpoint: no other signed object reads alike.
const SIGNED: &[u8] = b"cell/checkpoint/v1\0";

/// The journal had so many entries, and the last one this hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// 1.
    pub version: u32,
    /// Who says so: an Ed25519 public key.
    #[serde(with = "text")]
    pub node: AccountId,
    /// The ledger's issuer, which names the ledger.
    #[serde(with = "text")]
    pub issuer: AccountId,
    /// Entries of the journal.
    pub entries: u64,
    /// The last one's hash, which covers all of them.
    #[serde(with = "text")]
    pub head_hash: EntryHash,
    /// When, in milliseconds since 1970, by the ledger's clock.
    pub time_ms: u64,
    /// Ed25519, by `node`, as 128 hexadecimal digits.
    pub signature: String,
}

impl Checkpoint {
    /// Signs where the journal of this issuer ends.
    pub fn sign(head: Head, issuer: AccountId, time_ms: u64, key: &SigningKey) -> Self {
        let mut this = Self {
            version: 1,
            node: AccountId::from_bytes(key.verifying_key().to_bytes()),
            issuer,
            entries: head.seq,
            head_hash: head.hash,
            time_ms,
            signature: String::new(),
        };
        this.signature = hex(&key.sign(&this.signed()).to_bytes());
        this
    }

    /// Whether it is what its node signed.
    pub fn is_signed(&self) -> bool {
        let check = || {
            let key = VerifyingKey::from_bytes(self.node.as_bytes()).ok()?;
            let signature: [u8; 64] = from_hex(&self.signature)?.try_into().ok()?;
            key.verify_strict(&self.signed(), &Signature::from_bytes(&signature)).ok()
        };
        self.version == 1 && check().is_some()
    }

    fn signed(&self) -> Vec<u8> {
        let unsigned = Self { signature: String::new(), ..self.clone() };
        // Numbers and texts can always be written.
        [SIGNED, &serde_json::to_vec(&unsigned).unwrap_or_default()].concat()
    }
}

/// What a store kept.
pub(crate) fn read(text: &str) -> Result<Checkpoint, LedgerError> {
    serde_json::from_str(text)
        .map_err(|error| LedgerError::Corrupt { reason: format!("a checkpoint: {error}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_signed() {
        let issuer = AccountId::from_bytes([1; 32]);
        let key = SigningKey::from_bytes(&[7; 32]);
        let checkpoint = Checkpoint::sign(Head::empty(issuer), issuer, 7, &key);
        assert!(checkpoint.is_signed());
        for changed in [
            Checkpoint { entries: 1, ..checkpoint.clone() },
            Checkpoint { time_ms: 8, ..checkpoint.clone() },
            Checkpoint { head_hash: EntryHash::from_bytes([0; 32]), ..checkpoint.clone() },
            Checkpoint { issuer: AccountId::from_bytes([2; 32]), ..checkpoint.clone() },
            Checkpoint { node: issuer, ..checkpoint.clone() },
            Checkpoint { version: 2, ..checkpoint.clone() },
            Checkpoint { signature: String::new(), ..checkpoint },
        ] {
            assert!(!changed.is_signed(), "{changed:?}");
        }
    }
}
