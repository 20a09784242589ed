//! The payee's side: how far it may work, and what it can claim.
//!
//! It remembers nothing by itself: after each change its [`PayeeRecord`] has to be kept, durably, before
//! anything is done that relies on it. A voucher is kept before its work, a receipt before it is sent.
//! Who has lost its record forfeits what it did not claim: it must not sign for that channel again, because
//! two receipts under one number prove a cheat.

use cell_abi::NanoAtp;
use cell_ledger::ContentHash;
use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};

use crate::{
    Accept, ChannelError, Claim, Close, Closed, Funded, Leaf, Open, Quote, Reason, Receipt, Resync,
    Signed, Voucher,
};

/// How long a channel may last, its time for disputes included, in seconds.
pub(crate) const LIFE_S_MAX: u64 = 30 * 24 * 3600;
/// Longest memo of a leaf, in bytes.
pub(crate) const LEAF_MEMO_BYTES_MAX: usize = 128;
/// How long before the end no more work is begun: clocks are not the same, and claims take time.
pub(crate) const STOP_EARLY_S: u64 = 60;

/// What the payee keeps of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PayeeRecord {
    /// Its own.
    pub quote: Signed<Quote>,
    /// The payer's.
    pub open: Signed<Open>,
    /// The ledger's.
    pub funded: Signed<Funded>,
    /// The last of each.
    pub last: Resync,
}

/// A channel that this side is paid by.
#[derive(Debug)]
pub struct Payee {
    record: PayeeRecord,
    channel: ContentHash,
    key: SigningKey,
}

impl Payee {
    /// Accepts a channel by its own quote, if the money is set aside on a ledger that the quote names.
    pub fn accept(
        quote: Signed<Quote>,
        open: Signed<Open>,
        funded: Signed<Funded>,
        key: SigningKey,
        now_s: u64,
    ) -> Result<(Self, Signed<Accept>), ChannelError> {
        let (terms, offer) = (&open.body, &quote.body);
        if !quote.is_by(offer.payee) {
            return Err(ChannelError::BadSignature("the quote"));
        }
        if !open.is_by(terms.payer) {
            return Err(ChannelError::BadSignature("the opening"));
        }
        let life_s = terms.expires_s.saturating_add(terms.dispute_s).saturating_sub(now_s);
        let knows = offer.ledgers.iter().any(|ledger| ledger.key == terms.ledger);
        let fits = [
            ("quote", terms.quote == quote.hash() && now_s <= offer.valid_until_s),
            ("payee", terms.payee == offer.payee && terms.payee_key == offer.payee_key),
            ("payer", terms.payer != terms.payee && terms.payer_key != terms.payee_key),
            ("ledger", knows),
            ("deposit", terms.deposit_nano >= offer.deposit_nano_min),
            ("time for disputes", terms.dispute_s >= offer.dispute_s_min),
            ("end", life_s <= LIFE_S_MAX),
        ];
        if let Some((what, _)) = fits.into_iter().find(|(_, fits)| !fits) {
            return Err(ChannelError::Terms(what));
        }
        let channel = open.channel();
        let end_ms = terms.expires_s.saturating_add(terms.dispute_s).saturating_mul(1000);
        if !funded.is_by(terms.ledger) {
            return Err(ChannelError::BadSignature("the ledger's word"));
        }
        if funded.body.channel != channel {
            return Err(ChannelError::Foreign("the ledger's word"));
        }
        if funded.body.amount_nano < terms.deposit_nano || funded.body.expires_ms < end_ms {
            return Err(ChannelError::Unfunded);
        }
        let accept = Accept { channel, funded: funded.hash() };
        let record = PayeeRecord { quote, open, funded, last: Resync::default() };
        let accept = Signed::new(accept, &key);
        let this = Self { record, channel, key };
        this.check_time(now_s)?;
        Ok((this, accept))
    }

    /// Goes on with a channel that was kept.
    pub fn resume(record: PayeeRecord, key: SigningKey) -> Self {
        let channel = record.open.channel();
        Self { record, channel, key }
    }

    /// What has to be kept.
    pub const fn record(&self) -> &PayeeRecord {
        &self.record
    }

    /// The channel's id.
    pub const fn channel(&self) -> ContentHash {
        self.channel
    }

    /// The most that everything so far may cost.
    pub fn ceiling(&self) -> NanoAtp {
        self.record.last.ceiling()
    }

    /// What the last receipt says.
    pub fn charge(&self) -> NanoAtp {
        self.record.last.charge()
    }

    /// Takes a voucher; `false` if it is the one that it has. It counts once the record is kept.
    pub fn take(&mut self, voucher: Signed<Voucher>, now_s: u64) -> Result<bool, ChannelError> {
        self.check_time(now_s)?;
        let Voucher { channel, seq, ceiling_nano } = voucher.body;
        if channel != self.channel {
            return Err(ChannelError::Foreign("the voucher"));
        }
        if !voucher.is_by(self.record.open.body.payer_key) {
            return Err(ChannelError::BadSignature("the voucher"));
        }
        let deposit = self.record.open.body.deposit();
        if NanoAtp(ceiling_nano) > deposit {
            return Err(ChannelError::AboveDeposit { ceiling: NanoAtp(ceiling_nano), deposit });
        }
        if let Some(last) = &self.record.last.voucher {
            if *last == voucher {
                return Ok(false);
            }
            if seq <= last.body.seq || ceiling_nano <= last.body.ceiling_nano {
                return Err(ChannelError::Stale("the voucher"));
            }
        }
        self.record.last.voucher = Some(voucher);
        Ok(true)
    }

    /// Signs the bill over these leaves, which came after those of the last receipt. It is sent once the
    /// record is kept.
    pub fn bill(
        &mut self,
        leaves: &[Leaf],
        reason: Reason,
    ) -> Result<&Signed<Receipt>, ChannelError> {
        let Some(voucher) = &self.record.last.voucher else {
            return Err(ChannelError::AboveCeiling {
                charge: total(leaves),
                ceiling: NanoAtp::ZERO,
            });
        };
        let next = follow(self.record.last.receipt.as_ref(), self.channel, leaves);
        let receipt = Receipt { voucher_seq: voucher.body.seq, reason, ..next };
        let (charge, ceiling) = (NanoAtp(receipt.charge_nano), NanoAtp(voucher.body.ceiling_nano));
        if charge > ceiling {
            return Err(ChannelError::AboveCeiling { charge, ceiling });
        }
        Ok(self.record.last.receipt.insert(Signed::new(receipt, &self.key)))
    }

    /// What to claim with; `None` while there is nothing to claim.
    pub fn claim(&self) -> Option<Claim> {
        let Resync { voucher, receipt } = self.record.last.clone();
        Some(Claim { open: self.record.open.clone(), voucher: voucher?, receipt: receipt? })
    }

    /// Agrees to the payer's close, if that is for what the last receipt says.
    pub fn close(&self, by_payer: Signed<Close>) -> Result<Closed, ChannelError> {
        let Close { channel, charge_nano } = by_payer.body;
        if channel != self.channel {
            return Err(ChannelError::Foreign("the close"));
        }
        if !by_payer.is_by(self.record.open.body.payer_key) {
            return Err(ChannelError::BadSignature("the close"));
        }
        if charge_nano != self.charge().0 {
            return Err(ChannelError::DoesNotFollow("charge"));
        }
        let by_payee = Signed::new(by_payer.body.clone(), &self.key);
        Ok(Closed { by_payer, by_payee })
    }

    fn check_time(&self, now_s: u64) -> Result<(), ChannelError> {
        match now_s.saturating_add(STOP_EARLY_S) >= self.record.open.body.expires_s {
            true => Err(ChannelError::Expired),
            false => Ok(()),
        }
    }
}

/// The receipt that follows this one over these leaves, but for its voucher and reason.
pub(crate) fn follow(
    last: Option<&Signed<Receipt>>,
    channel: ContentHash,
    leaves: &[Leaf],
) -> Receipt {
    let (seq, charge, count, hash, previous) = match last {
        None => (0, 0, 0, Leaf::none(), channel),
        Some(last) => {
            let Receipt { seq, charge_nano, leaves, leaves_hash, .. } = last.body;
            (seq, charge_nano, leaves, leaves_hash, last.hash())
        }
    };
    Receipt {
        channel,
        seq: seq.saturating_add(1),
        voucher_seq: 0,
        charge_nano: charge.saturating_add(total(leaves).0),
        leaves: count.saturating_add(leaves.len() as u64),
        leaves_hash: leaves.iter().fold(hash, |before, leaf| leaf.chain(before)),
        previous,
        reason: Reason::Slice,
    }
}

/// What they cost together.
pub(crate) fn total(leaves: &[Leaf]) -> NanoAtp {
    NanoAtp(leaves.iter().fold(0, |sum, leaf| leaf.amount_nano.saturating_add(sum)))
}
