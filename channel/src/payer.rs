//! The payer's side: how much it agrees to, and whether what it is billed follows.
//!
//! It never signs a lower ceiling than before, nor one that is more than a slice above what it was shown to
//! owe. After each change its [`PayerRecord`] has to be kept; what is lost of it the payee can show.

use cell_abi::{AccountId, NanoAtp};
use cell_ledger::{ContentHash, signed};
use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};

use crate::payee::{LEAF_MEMO_BYTES_MAX, STOP_EARLY_S, follow, total};
use crate::{
    Accept, ChannelError, Close, CloseRequest, Equivocation, Funded, Leaf, Open, Quote, Receipt,
    Resync, Signed, Voucher,
};

/// What the payer wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// Whose money.
    pub payer: AccountId,
    /// On which ledger.
    pub ledger: AccountId,
    /// The most that it will pay.
    pub deposit: NanoAtp,
    /// Makes it a channel of its own.
    pub salt: ContentHash,
    /// When it ends, in seconds since 1970.
    pub expires_s: u64,
}

/// What the payer keeps of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PayerRecord {
    /// The payee's.
    pub quote: Signed<Quote>,
    /// Its own.
    pub open: Signed<Open>,
    /// The last of each.
    pub last: Resync,
}

/// A channel that this side pays by.
#[derive(Debug)]
pub struct Payer {
    record: PayerRecord,
    channel: ContentHash,
    key: SigningKey,
}

impl Payer {
    /// Opens a channel by this quote: `identity` signs the opening, `key` everything after.
    pub fn open(
        quote: Signed<Quote>,
        wish: &Wish,
        identity: &SigningKey,
        key: SigningKey,
        now_s: u64,
    ) -> Result<Self, ChannelError> {
        let offer = &quote.body;
        if !quote.is_by(offer.payee) {
            return Err(ChannelError::BadSignature("the quote"));
        }
        let fits = [
            ("time", now_s <= offer.valid_until_s),
            ("ledger", offer.ledgers.iter().any(|ledger| ledger.key == wish.ledger)),
            ("deposit", wish.deposit.0 >= offer.deposit_nano_min),
        ];
        if let Some((what, _)) = fits.into_iter().find(|(_, fits)| !fits) {
            return Err(ChannelError::Terms(what));
        }
        let open = Open {
            ledger: wish.ledger,
            payer: wish.payer,
            payer_key: signed::node(&key),
            payee: offer.payee,
            payee_key: offer.payee_key,
            quote: quote.hash(),
            deposit_nano: wish.deposit.0,
            salt: wish.salt,
            expires_s: wish.expires_s,
            dispute_s: offer.dispute_s_min,
        };
        let open = Signed::new(open, identity);
        Ok(Self::resume(PayerRecord { quote, open, last: Resync::default() }, key))
    }

    /// Goes on with a channel that was kept.
    pub fn resume(record: PayerRecord, key: SigningKey) -> Self {
        let channel = record.open.channel();
        Self { record, channel, key }
    }

    /// Goes on with a channel of which the payee alone has kept anything: `identity` once signed its opening.
    /// What follows is a [`Payer::resync`], before anything else is signed.
    pub fn restore(
        quote: Signed<Quote>,
        open: Signed<Open>,
        identity: AccountId,
        key: SigningKey,
    ) -> Result<Self, ChannelError> {
        if open.body.payer != identity || !open.is_by(identity) {
            return Err(ChannelError::BadSignature("the opening"));
        }
        if open.body.payer_key != signed::node(&key) || open.body.quote != quote.hash() {
            return Err(ChannelError::Foreign("the opening"));
        }
        Ok(Self::resume(PayerRecord { quote, open, last: Resync::default() }, key))
    }

    /// What has to be kept.
    pub const fn record(&self) -> &PayerRecord {
        &self.record
    }

    /// The channel's id.
    pub const fn channel(&self) -> ContentHash {
        self.channel
    }

    /// The most it has agreed to so far.
    pub fn ceiling(&self) -> NanoAtp {
        self.record.last.ceiling()
    }

    /// What it was shown to owe.
    pub fn charge(&self) -> NanoAtp {
        self.record.last.charge()
    }

    /// Whether the payee accepted this channel and the ledger's word for it.
    pub fn is_accepted(
        &self,
        accept: &Signed<Accept>,
        funded: &Signed<Funded>,
    ) -> Result<(), ChannelError> {
        let Accept { channel, funded: hash } = accept.body;
        if channel != self.channel || hash != funded.hash() {
            return Err(ChannelError::Foreign("the acceptance"));
        }
        match accept.is_by(self.record.open.body.payee_key) {
            true => Ok(()),
            false => Err(ChannelError::BadSignature("the acceptance")),
        }
    }

    /// Agrees to another slice, once less than half of one is left; `None` while there is more, when the
    /// deposit is used up, and when it is too late.
    pub fn voucher(&mut self, slice: NanoAtp, now_s: u64) -> Option<Signed<Voucher>> {
        if now_s.saturating_add(STOP_EARLY_S) >= self.record.open.body.expires_s {
            return None;
        }
        let (charge, ceiling) = (self.charge(), self.ceiling());
        let wanted = charge.0.saturating_add(slice.0).min(self.record.open.body.deposit_nano);
        let left = ceiling.saturating_sub(charge);
        if wanted <= ceiling.0 || left.0 > slice.0 / 2 {
            return None;
        }
        let seq = self.record.last.voucher.as_ref().map_or(0, |voucher| voucher.body.seq);
        let voucher =
            Voucher { channel: self.channel, seq: seq.saturating_add(1), ceiling_nano: wanted };
        Some(self.record.last.voucher.insert(Signed::new(voucher, &self.key)).clone())
    }

    /// Takes a bill over these leaves, which come after those that it knows; `false` if it has it already.
    /// An error is a reason to agree to nothing more.
    pub fn take(
        &mut self,
        receipt: Signed<Receipt>,
        leaves: &[Leaf],
    ) -> Result<bool, ChannelError> {
        if !self.is_news(&receipt)? {
            return Ok(false);
        }
        if leaves.iter().any(|leaf| leaf.memo.len() > LEAF_MEMO_BYTES_MAX || leaf.amount_nano == 0)
        {
            return Err(ChannelError::DoesNotFollow("account"));
        }
        let last = self.record.last.receipt.as_ref();
        let next = follow(last, self.channel, leaves);
        let Receipt { seq, previous, .. } = receipt.body;
        let is_next = seq == next.seq;
        let fits = [
            // What came between two that were seen was lost on the way; its leaves were not.
            ("predecessor", !is_next || previous == next.previous),
            ("count", receipt.body.leaves == next.leaves),
            ("account", receipt.body.leaves_hash == next.leaves_hash),
            ("charge", receipt.body.charge_nano == next.charge_nano),
        ];
        if let Some((what, _)) = fits.into_iter().find(|(_, fits)| !fits) {
            return Err(ChannelError::DoesNotFollow(what));
        }
        self.record.last.receipt = Some(receipt);
        Ok(true)
    }

    /// What is its own of what the payee shows, after this side lost its record or the line was cut; the
    /// receipt comes with all leaves after those that are known here.
    pub fn resync(&mut self, theirs: Resync, leaves: &[Leaf]) -> Result<(), ChannelError> {
        if let Some(voucher) = theirs.voucher {
            if voucher.body.channel != self.channel {
                return Err(ChannelError::Foreign("the voucher"));
            }
            if !voucher.is_by(self.record.open.body.payer_key) {
                return Err(ChannelError::BadSignature("the voucher"));
            }
            let seq = self.record.last.voucher.as_ref().map_or(0, |voucher| voucher.body.seq);
            if voucher.body.seq > seq {
                self.record.last.voucher = Some(voucher);
            }
        }
        match theirs.receipt {
            Some(receipt) => self.take(receipt, leaves).map(drop),
            None => Ok(()),
        }
    }

    /// Says that this is all: the last receipt's charge is paid, and the rest comes back.
    pub fn close(&self) -> Signed<Close> {
        let close = Close { channel: self.channel, charge_nano: self.charge().0 };
        Signed::new(close, &self.key)
    }

    /// Asks the ledger for the rest, where the payee does not answer.
    pub fn request_close(&self) -> Signed<CloseRequest> {
        Signed::new(CloseRequest { channel: self.channel }, &self.key)
    }

    /// Whether the receipt is the payee's, of this channel, within what was agreed to, and not known yet.
    fn is_news(&self, receipt: &Signed<Receipt>) -> Result<bool, ChannelError> {
        let Receipt { channel, seq, charge_nano, voucher_seq, .. } = receipt.body;
        if channel != self.channel {
            return Err(ChannelError::Foreign("the receipt"));
        }
        if !receipt.is_by(self.record.open.body.payee_key) {
            return Err(ChannelError::BadSignature("the receipt"));
        }
        if let Some(last) = &self.record.last.receipt {
            if last == receipt {
                return Ok(false);
            }
            if seq == last.body.seq {
                let (open, one) = (self.record.open.clone(), last.clone());
                let proof = Equivocation { open, one, other: receipt.clone() };
                return Err(ChannelError::Equivocation(Box::new(proof)));
            }
            if seq < last.body.seq || charge_nano < last.body.charge_nano {
                return Err(ChannelError::Stale("the receipt"));
            }
        }
        let (charge, ceiling) = (NanoAtp(charge_nano), self.ceiling());
        let signed = self.record.last.voucher.as_ref().map_or(0, |voucher| voucher.body.seq);
        if charge > ceiling || voucher_seq > signed {
            return Err(ChannelError::AboveCeiling { charge, ceiling });
        }
        Ok(true)
    }
}

impl PayerRecord {
    /// What these leaves cost together.
    pub fn total(leaves: &[Leaf]) -> NanoAtp {
        total(leaves)
    }
}
