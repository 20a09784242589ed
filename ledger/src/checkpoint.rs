//! Signed statements about how far the journal was: who keeps one elsewhere can tell if it is rewritten
//! later.

use cell_abi::AccountId;
use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};

use crate::journal::Head;
use crate::signed::{self, text};
use crate::{EntryHash, LedgerError};

/// What a checkpoint's signature is over besides the checkpoint.
const SIGNED: &str = "cell/checkpoint/v1";

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
            node: signed::node(key),
            issuer,
            entries: head.seq,
            head_hash: head.hash,
            time_ms,
            signature: String::new(),
        };
        this.signature = signed::sign(SIGNED, &this, key);
        this
    }

    /// Whether it is what its node signed.
    pub fn is_signed(&self) -> bool {
        let unsigned = Self { signature: String::new(), ..self.clone() };
        self.version == 1 && signed::is_signed(SIGNED, &unsigned, self.node, &self.signature)
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
