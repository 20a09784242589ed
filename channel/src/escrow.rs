//! The ledger's side: the deposit, the claims on it, and when it goes back.
//!
//! It keeps nothing of its own. A channel is a row of holds with ids that follow from the channel's: each
//! claim settles the last of them and opens the next one over what is left, in one command of the ledger.
//! When that expires the ledger voids it, which gives the rest back.

use cell_abi::{AccountId, NanoAtp};
use cell_ledger::{
    Command, ContentHash, Hold, HoldId, HoldRecord, Ledger, LedgerError, Outcome, Payment,
    SessionId, Settle, TransferId,
};
use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};

use crate::{ChannelError, Claim, CloseRequest, Closed, Funded, Open, Signed};

/// How often a channel may be claimed from, or asked to close.
pub const CLAIMS_MAX: u64 = 1000;

/// Deposits of channels at one ledger.
#[derive(Debug)]
pub struct Escrow<'a> {
    ledger: &'a Ledger,
    key: &'a SigningKey,
}

/// How a channel stands at its ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Standing {
    /// What was set aside, in nano-ATP.
    pub deposit_nano: u64,
    /// What the payee got of it, in nano-ATP.
    pub paid_nano: u64,
    /// Until when more can be claimed, in milliseconds since 1970.
    pub expires_ms: u64,
    /// Whether more can be claimed.
    pub is_open: bool,
}

/// The last of a channel's holds.
struct Last {
    number: u64,
    deposit: NanoAtp,
    hold: HoldRecord,
}

impl<'a> Escrow<'a> {
    /// The deposits of this ledger, whose machine signs with this key.
    pub const fn new(ledger: &'a Ledger, key: &'a SigningKey) -> Self {
        Self { ledger, key }
    }

    /// Sets the deposit aside. The same again is answered with the same.
    pub fn fund(&self, open: &Signed<Open>) -> Result<Signed<Funded>, ChannelError> {
        let channel = self.check(open)?;
        let Open { payer, expires_s, dispute_s, .. } = open.body;
        let expires_ms =
            (expires_s.checked_add(dispute_s).and_then(|end_s| end_s.checked_mul(1000)))
                .ok_or(ChannelError::Terms("end"))?;
        let id = hold_id(channel, 0);
        if self.ledger.find_hold(id)?.is_none()
            && self.ledger.now_ms() >= expires_s.saturating_mul(1000)
        {
            return Err(ChannelError::Expired);
        }
        let amount = open.body.deposit();
        let hold = hold(channel, 0, payer, amount, expires_ms);
        let Outcome::Held { seq, granted } = self.ledger.hold(hold)? else {
            return Err(ChannelError::Unfunded);
        };
        let funded = Funded { channel, amount_nano: granted.0, seq, expires_ms };
        Ok(Signed::new(funded, self.key))
    }

    /// Pays what the receipt says and was not paid yet. The same again pays nothing more, and is no error.
    pub fn claim(&self, claim: &Claim) -> Result<Standing, ChannelError> {
        let channel = self.check(&claim.open)?;
        let charge = claim.charge(channel)?;
        self.advance(&claim.open.body, channel, |last, paid| {
            let more = charge.0.saturating_sub(paid.0);
            (more > 0).then_some((NanoAtp(more), Some(last.hold.expires_ms)))
        })
    }

    /// Pays the last charge and gives back the rest, because both say so.
    pub fn close(&self, open: &Signed<Open>, closed: &Closed) -> Result<Standing, ChannelError> {
        let channel = self.check(open)?;
        let Closed { by_payer, by_payee } = closed;
        if by_payer.body != by_payee.body || by_payer.body.channel != channel {
            return Err(ChannelError::Foreign("the close"));
        }
        if !by_payer.is_by(open.body.payer_key) || !by_payee.is_by(open.body.payee_key) {
            return Err(ChannelError::BadSignature("the close"));
        }
        let charge = by_payer.body.charge_nano;
        let standing = self.standing(open)?;
        if !standing.is_open {
            return Ok(standing);
        }
        if charge > standing.deposit_nano || charge < standing.paid_nano {
            return Err(ChannelError::DoesNotFollow("charge"));
        }
        self.advance(&open.body, channel, |_, paid| {
            Some((NanoAtp(charge.saturating_sub(paid.0)), None))
        })
    }

    /// Gives the rest back after the time for disputes; until then the payee may claim.
    pub fn request_close(
        &self,
        open: &Signed<Open>,
        request: &Signed<CloseRequest>,
    ) -> Result<Standing, ChannelError> {
        let channel = self.check(open)?;
        if request.body.channel != channel {
            return Err(ChannelError::Foreign("the request"));
        }
        if !request.is_by(open.body.payer_key) {
            return Err(ChannelError::BadSignature("the request"));
        }
        let window_ms = open.body.dispute_s.saturating_mul(1000);
        let end_ms = self.ledger.now_ms().saturating_add(window_ms);
        self.advance(&open.body, channel, |last, _| {
            (end_ms < last.hold.expires_ms).then_some((NanoAtp::ZERO, Some(end_ms)))
        })
    }

    /// How it stands.
    pub fn standing(&self, open: &Signed<Open>) -> Result<Standing, ChannelError> {
        self.look(self.check(open)?)
    }

    pub(crate) fn look(&self, channel: ContentHash) -> Result<Standing, ChannelError> {
        let last = self.last(channel)?.ok_or(ChannelError::Unfunded)?;
        self.standing_of(&last)
    }

    /// Whether it was signed by the payer, and what it says can be.
    fn check(&self, open: &Signed<Open>) -> Result<ContentHash, ChannelError> {
        let Open { payer, payee, ledger, .. } = open.body;
        if ledger.as_bytes() != self.key.verifying_key().as_bytes() {
            return Err(ChannelError::Foreign("the channel"));
        }
        if !open.is_by(payer) {
            return Err(ChannelError::BadSignature("the opening"));
        }
        if payer == payee {
            return Err(ChannelError::Terms("payee"));
        }
        Ok(open.channel())
    }

    /// Settles the last hold as `plan` says: a payment, and until when the next hold lasts; `None` changes
    /// nothing. Others may settle it first, and then it is looked at again.
    fn advance(
        &self,
        open: &Open,
        channel: ContentHash,
        plan: impl Fn(&Last, NanoAtp) -> Option<(NanoAtp, Option<u64>)>,
    ) -> Result<Standing, ChannelError> {
        loop {
            let last = self.last(channel)?.ok_or(ChannelError::Unfunded)?;
            let standing = self.standing_of(&last)?;
            let Some((pay, until_ms)) = plan(&last, NanoAtp(standing.paid_nano)) else {
                return Ok(standing);
            };
            if last.hold.resolved_seq.is_some() {
                return Err(ChannelError::Closed);
            }
            if self.ledger.now_ms() >= last.hold.expires_ms {
                return Err(ChannelError::Expired);
            }
            if last.number >= CLAIMS_MAX && until_ms.is_some() {
                return Err(ChannelError::TooManyClaims);
            }
            let left = last.hold.amount.checked_sub(pay);
            let left = left.ok_or(ChannelError::DoesNotFollow("charge"))?;
            let next = until_ms.filter(|_| left > NanoAtp::ZERO);
            let next =
                next.map(|until_ms| hold(channel, last.number + 1, open.payer, left, until_ms));
            let number = last.number.to_le_bytes();
            let payment = Payment {
                id: TransferId::derive("cell/channel/claim/v1", &[channel.as_bytes(), &number]),
                credit: open.payee,
                amount: pay,
                memo: format!("channel {}", channel.short()),
            };
            let payments = if pay > NanoAtp::ZERO { vec![payment] } else { Vec::new() };
            match self.ledger.settle(Settle { hold: last.hold.id, payments, next }) {
                Err(LedgerError::HoldResolved { .. } | LedgerError::HoldExpired { .. }) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => return self.look(channel),
            }
        }
    }

    /// The last of the channel's holds, open or resolved.
    fn last(&self, channel: ContentHash) -> Result<Option<Last>, ChannelError> {
        let Some(first) = self.ledger.find_hold(hold_id(channel, 0))? else { return Ok(None) };
        let (deposit, mut number, mut hold) = (first.amount, 0, first);
        while hold.resolved_seq.is_some() {
            let Some(next) = self.ledger.find_hold(hold_id(channel, number + 1))? else { break };
            (number, hold) = (number + 1, next);
        }
        Ok(Some(Last { number, deposit, hold }))
    }

    fn standing_of(&self, last: &Last) -> Result<Standing, ChannelError> {
        let before = last.deposit.saturating_sub(last.hold.amount);
        // What resolved the last one paid as well, unless it was time that did.
        let (paid, is_open) = match last.hold.resolved_seq {
            None => (NanoAtp::ZERO, self.ledger.now_ms() < last.hold.expires_ms),
            Some(seq) => (self.paid_by(seq)?, false),
        };
        Ok(Standing {
            deposit_nano: last.deposit.0,
            paid_nano: before.0.saturating_add(paid.0),
            expires_ms: last.hold.expires_ms,
            is_open,
        })
    }

    fn paid_by(&self, seq: u64) -> Result<NanoAtp, ChannelError> {
        let row = self.ledger.rows(seq.saturating_sub(1), 1)?.pop();
        let entry = row.as_ref().map(cell_ledger::journal::Row::entry).transpose()?;
        Ok(match entry.map(|entry| (entry.command, entry.outcome)) {
            Some((Command::Settle(_), Outcome::Settled { paid, .. })) => paid,
            _ => NanoAtp::ZERO,
        })
    }
}

impl Claim {
    /// What it is for, if voucher and receipt are the parties' and of this channel.
    fn charge(&self, channel: ContentHash) -> Result<NanoAtp, ChannelError> {
        let (voucher, receipt) = (&self.voucher.body, &self.receipt.body);
        if voucher.channel != channel || receipt.channel != channel {
            return Err(ChannelError::Foreign("the claim"));
        }
        if !self.voucher.is_by(self.open.body.payer_key) {
            return Err(ChannelError::BadSignature("the voucher"));
        }
        if !self.receipt.is_by(self.open.body.payee_key) {
            return Err(ChannelError::BadSignature("the receipt"));
        }
        let (charge, ceiling) = (NanoAtp(receipt.charge_nano), NanoAtp(voucher.ceiling_nano));
        if ceiling > self.open.body.deposit() {
            return Err(ChannelError::AboveDeposit { ceiling, deposit: self.open.body.deposit() });
        }
        if charge > ceiling {
            return Err(ChannelError::AboveCeiling { charge, ceiling });
        }
        Ok(charge)
    }
}

fn hold(
    channel: ContentHash,
    number: u64,
    account: AccountId,
    amount: NanoAtp,
    expires_ms: u64,
) -> Hold {
    Hold {
        id: hold_id(channel, number),
        account,
        amount,
        amount_min: amount,
        // Nobody's run: it outlives every process, and ends by time.
        session: SessionId::derive("cell/channel/session/v1", &[channel.as_bytes()]),
        expires_ms,
    }
}

fn hold_id(channel: ContentHash, number: u64) -> HoldId {
    HoldId::derive("cell/channel/hold/v1", &[channel.as_bytes(), &number.to_le_bytes()])
}
