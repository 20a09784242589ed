//! What the parties say to each other, each signed by whoever it binds.
//!
//! A signature is over the object's domain and its JSON, as [`cell_ledger::signed`] has it. An object names
//! its channel, and a channel's id is the hash of all it was opened with, its ledger among that: so none is
//! of use in another channel, or on another ledger.

use cell_abi::{AccountId, NanoAtp};
use cell_ledger::{ContentHash, TransferId, signed};
use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};

/// Something that can be signed.
pub trait Object: Serialize {
    /// Keeps objects of one kind from passing for another.
    const DOMAIN: &'static str;
}

/// An object and a signature; whose that is must be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signed<T> {
    /// What is signed.
    pub body: T,
    /// Ed25519, as 128 hexadecimal digits.
    pub signature: String,
}

impl<T: Object> Signed<T> {
    /// Signs.
    pub fn new(body: T, key: &SigningKey) -> Self {
        let signature = signed::sign(T::DOMAIN, &body, key);
        Self { body, signature }
    }

    /// Whether this account signed it.
    pub fn is_by(&self, account: AccountId) -> bool {
        signed::is_signed(T::DOMAIN, &self.body, account, &self.signature)
    }

    /// The hash of what is signed.
    pub fn hash(&self) -> ContentHash {
        // Numbers and texts can always be written.
        let json = serde_json::to_vec(&self.body).unwrap_or_default();
        ContentHash::derive(T::DOMAIN, &[&json])
    }
}

/// A ledger: whose machine keeps it, and where that listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerAt {
    /// The machine's key, which signs [`Funded`].
    #[serde(with = "signed::text")]
    pub key: AccountId,
    /// HOST:PORT, or RELAYKEY@HOST:PORT.
    pub address: String,
}

/// What the payee offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quote {
    /// Who offers, and is paid.
    #[serde(with = "signed::text")]
    pub payee: AccountId,
    /// What it signs receipts with.
    #[serde(with = "signed::text")]
    pub payee_key: AccountId,
    /// The ledgers whose money it takes.
    pub ledgers: Vec<LedgerAt>,
    /// What meters the work: another one counts otherwise, and needs another channel.
    pub engine_id: String,
    /// nano-ATP for a unit of each dimension besides fuel; one fuel is one nano-ATP.
    pub rates: Vec<u64>,
    /// The least deposit, in nano-ATP.
    pub deposit_nano_min: u64,
    /// How long the payee wants to be able to claim after the end, at least.
    pub dispute_s_min: u64,
    /// Until when a channel may be opened by it, in seconds since 1970.
    pub valid_until_s: u64,
}

/// A channel: everything that its parties agree to. Its hash is the channel's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Open {
    /// The ledger's machine.
    #[serde(with = "signed::text")]
    pub ledger: AccountId,
    /// Whose money it is; signs this.
    #[serde(with = "signed::text")]
    pub payer: AccountId,
    /// Signs vouchers, and nothing else.
    #[serde(with = "signed::text")]
    pub payer_key: AccountId,
    /// Who is paid.
    #[serde(with = "signed::text")]
    pub payee: AccountId,
    /// Signs receipts, and nothing else; as the quote says.
    #[serde(with = "signed::text")]
    pub payee_key: AccountId,
    /// The hash of the quote.
    #[serde(with = "signed::text")]
    pub quote: ContentHash,
    /// What is set aside, in nano-ATP.
    pub deposit_nano: u64,
    /// Makes it another channel than the one before.
    #[serde(with = "signed::text")]
    pub salt: ContentHash,
    /// When no more work is done, in seconds since 1970 by the ledger's clock.
    pub expires_s: u64,
    /// How long after that, or after a request to close, the payee may claim.
    pub dispute_s: u64,
}

/// The ledger's word that the deposit is set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Funded {
    /// The channel.
    #[serde(with = "signed::text")]
    pub channel: ContentHash,
    /// What is set aside, in nano-ATP.
    pub amount_nano: u64,
    /// The entry of the ledger's journal.
    pub seq: u64,
    /// Until when claims are paid, in milliseconds since 1970.
    pub expires_ms: u64,
}

/// The payee's word that it works for this channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accept {
    /// The channel.
    #[serde(with = "signed::text")]
    pub channel: ContentHash,
    /// The hash of the ledger's word.
    #[serde(with = "signed::text")]
    pub funded: ContentHash,
}

/// The payer's word for all work up to a sum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Voucher {
    /// The channel.
    #[serde(with = "signed::text")]
    pub channel: ContentHash,
    /// From one on, in order.
    pub seq: u64,
    /// The most that everything so far may cost, in nano-ATP.
    pub ceiling_nano: u64,
}

/// A payment in the payee's own books, for work of this channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leaf {
    /// The transfer there; a receipt of the work names it too.
    #[serde(with = "signed::text")]
    pub transfer: TransferId,
    /// What was paid, in nano-ATP.
    pub amount_nano: u64,
    /// What for.
    pub memo: String,
}

impl Leaf {
    /// What stands for this leaf and all before it, if `before` does for those.
    pub fn chain(&self, before: ContentHash) -> ContentHash {
        let amount = self.amount_nano.to_le_bytes();
        let parts =
            [before.as_bytes().as_slice(), self.transfer.as_bytes(), &amount, self.memo.as_bytes()];
        ContentHash::derive("cell/atp/v1/leaf", &parts)
    }

    /// What stands for no leaves.
    pub fn none() -> ContentHash {
        ContentHash::derive("cell/atp/v1/leaf", &[])
    }
}

/// Why a receipt was signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Reason {
    /// Work goes on.
    Slice,
    /// The machine's owner wants it back, or it goes down.
    Preempted,
    /// The payer said that it is done.
    Close,
}

/// The payee's bill so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// The channel.
    #[serde(with = "signed::text")]
    pub channel: ContentHash,
    /// From one on, in order.
    pub seq: u64,
    /// The voucher it is within.
    pub voucher_seq: u64,
    /// What everything so far costs, in nano-ATP: the sum of its leaves.
    pub charge_nano: u64,
    /// How many leaves there are so far.
    pub leaves: u64,
    /// What stands for all of them.
    #[serde(with = "signed::text")]
    pub leaves_hash: ContentHash,
    /// The hash of the receipt before; of the channel's opening for the first.
    #[serde(with = "signed::text")]
    pub previous: ContentHash,
    /// Why now.
    pub reason: Reason,
}

/// Both parties' word that this is the last charge, and the rest the payer's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Close {
    /// The channel.
    #[serde(with = "signed::text")]
    pub channel: ContentHash,
    /// What everything cost, in nano-ATP.
    pub charge_nano: u64,
}

/// The payer's wish to have the rest back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloseRequest {
    /// The channel.
    #[serde(with = "signed::text")]
    pub channel: ContentHash,
}

/// What is claimed with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Signed by the payer.
    pub open: Signed<Open>,
    /// Signed by the payer's key.
    pub voucher: Signed<Voucher>,
    /// Signed by the payee's key.
    pub receipt: Signed<Receipt>,
}

/// A close that both have signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Closed {
    /// Signed by the payer's key.
    pub by_payer: Signed<Close>,
    /// Signed by the payee's key.
    pub by_payee: Signed<Close>,
}

/// What one side has of the other, for when that lost it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resync {
    /// The payer's last.
    pub voucher: Option<Signed<Voucher>>,
    /// The payee's last.
    pub receipt: Option<Signed<Receipt>>,
}

macro_rules! object {
    ($($name:ident $domain:literal),* $(,)?) => {
        $(impl Object for $name {
            const DOMAIN: &'static str = concat!("cell/atp/v1/", $domain);
        })*
    };
}

object! {
    Quote "quote",
    Open "open",
    Funded "funded",
    Accept "accept",
    Voucher "voucher",
    Receipt "receipt",
    Close "close",
    CloseRequest "close-request",
}

impl Signed<Open> {
    /// The channel's id.
    pub fn channel(&self) -> ContentHash {
        self.hash()
    }
}

impl Resync {
    /// The most that everything so far may cost, as the payer last agreed.
    pub fn ceiling(&self) -> NanoAtp {
        NanoAtp(self.voucher.as_ref().map_or(0, |voucher| voucher.body.ceiling_nano))
    }

    /// What everything so far costs, as the payee last billed.
    pub fn charge(&self) -> NanoAtp {
        NanoAtp(self.receipt.as_ref().map_or(0, |receipt| receipt.body.charge_nano))
    }

    /// How many leaves that bill is over.
    pub fn leaves(&self) -> u64 {
        self.receipt.as_ref().map_or(0, |receipt| receipt.body.leaves)
    }
}

impl Open {
    /// What is set aside.
    pub const fn deposit(&self) -> NanoAtp {
        NanoAtp(self.deposit_nano)
    }
}
