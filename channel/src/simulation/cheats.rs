//! Parties that say what is not so.

use cell_ledger::{ContentHash, LedgerError, TransferId, signed};

use super::{FUNDS, World, key};
use crate::{ChannelError, Claim, Leaf, Receipt, Signed};

impl World {
    /// A party says what is not so, to whoever might believe it.
    pub(super) fn cheat(&mut self, at: usize) {
        let which = self.random.below(6);
        let now_s = self.time.now_s();
        let channel = &mut self.channels[at];
        let Some(claim) = channel.claims.last().cloned() else { return };
        let (payee_key, channel_id) = (key(20), channel.open.channel());
        let before = self.ledger.balance(signed::node(&key(2))).unwrap();
        match which {
            // The payee bills above the ceiling.
            0 => {
                let mut receipt = claim.receipt.body.clone();
                receipt.charge_nano = claim.voucher.body.ceiling_nano + 1;
                let receipt = Signed::new(receipt, &payee_key);
                let told = self.escrow().claim(&Claim { receipt, ..claim });
                assert!(matches!(told, Err(ChannelError::AboveCeiling { .. })), "I3: {told:?}");
            }
            // It signs a voucher itself.
            1 => {
                let mut voucher = claim.voucher.body.clone();
                voucher.ceiling_nano = channel.open.body.deposit_nano;
                let voucher = Signed::new(voucher, &payee_key);
                let told = self.escrow().claim(&Claim { voucher, ..claim });
                assert_eq!(told, Err(ChannelError::BadSignature("the voucher")));
            }
            // It signs two receipts under one number.
            2 => {
                let Some(payer) = &mut channel.payer else { return };
                let Some(last) = payer.record().last.receipt.clone() else { return };
                let mut other = last.body;
                other.charge_nano = other.charge_nano.saturating_sub(1);
                let told = payer.take(Signed::new(other, &payee_key), &[]);
                let Err(ChannelError::Equivocation(proof)) = told else { panic!("I11: {told:?}") };
                assert_eq!(proof.check(), Ok(signed::node(&key(2))), "I11");
            }
            // It bills more than its leaves, or leaves that are others.
            3 => {
                let Some(payer) = &mut channel.payer else { return };
                let next = crate::payee::follow(
                    payer.record().last.receipt.as_ref(),
                    channel_id,
                    &[Leaf {
                        transfer: TransferId::derive("x", &[]),
                        amount_nano: 1,
                        memo: String::new(),
                    }],
                );
                let voucher_seq = payer.record().last.voucher.as_ref().map_or(0, |v| v.body.seq);
                let receipt = Receipt { voucher_seq, ..next };
                if receipt.charge_nano > payer.ceiling().0 {
                    return;
                }
                let told = payer.take(Signed::new(receipt, &payee_key), &[]);
                assert!(matches!(told, Err(ChannelError::DoesNotFollow(_))), "I12: {told:?}");
            }
            // The payer sends an old voucher, or one above the deposit.
            4 => {
                let Some(payee) = &mut channel.payee else { return };
                let ceiling = payee.ceiling();
                let mut voucher = claim.voucher.body;
                if payee.take(Signed::new(voucher.clone(), &channel.payer_key), now_s) == Ok(true) {
                    panic!("I2: an old voucher is news");
                }
                (voucher.seq, voucher.ceiling_nano) =
                    (u64::MAX, channel.open.body.deposit_nano + 1);
                assert!(payee.take(Signed::new(voucher, &channel.payer_key), now_s).is_err(), "I1");
                assert_eq!(payee.ceiling(), ceiling);
            }
            // The payer promises the same money again.
            _ => {
                let mut open = channel.open.body.clone();
                open.salt = ContentHash::derive("salt", &[b"again"]);
                open.deposit_nano = FUNDS + 1;
                let told = self.escrow().fund(&Signed::new(open, &key(1)));
                let refused = matches!(
                    told,
                    Err(ChannelError::Ledger(LedgerError::InsufficientFunds { .. })
                        | ChannelError::Expired)
                );
                assert!(refused, "I1: {told:?}");
            }
        }
        self.caught += 1;
        let after = self.ledger.balance(signed::node(&key(2))).unwrap();
        assert_eq!(before, after, "a cheat was paid");
    }
}
