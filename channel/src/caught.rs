//! What proves that a party cheated, to anybody.

use cell_abi::AccountId;
use serde::{Deserialize, Serialize};

use crate::{ChannelError, Open, Receipt, Signed};

/// Two receipts of one payee, in one channel, under one number, that say different things.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Equivocation {
    /// The channel; signed by the payer.
    pub open: Signed<Open>,
    /// One of them.
    pub one: Signed<Receipt>,
    /// The other.
    pub other: Signed<Receipt>,
}

impl Equivocation {
    /// Who is proved to have signed both; an error if this proves nothing.
    pub fn check(&self) -> Result<AccountId, ChannelError> {
        let Open { payer, payee, payee_key, .. } = self.open.body;
        if !self.open.is_by(payer) {
            return Err(ChannelError::BadSignature("the opening"));
        }
        let channel = self.open.channel();
        for receipt in [&self.one, &self.other] {
            if receipt.body.channel != channel {
                return Err(ChannelError::Foreign("a receipt"));
            }
            if !receipt.is_by(payee_key) {
                return Err(ChannelError::BadSignature("a receipt"));
            }
        }
        let (one, other) = (&self.one.body, &self.other.body);
        if one.seq != other.seq || one == other {
            return Err(ChannelError::DoesNotFollow("number"));
        }
        Ok(payee)
    }
}
