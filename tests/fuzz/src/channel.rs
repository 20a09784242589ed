//! What strangers say about money and about themselves: objects of channels, and records of machines.

use std::cell::RefCell;

use cell_abi::{AccountId, NanoAtp};
use cell_channel::{
    Accept, Claim, Close, Equivocation, Funded, Leaf, LedgerAt, Payee, Payer, Quote, Reason,
    Receipt, Signed, Voucher, Wish,
};
use cell_discovery::NodeRecord;
use cell_ledger::{ContentHash, TransferId};
use ed25519_dalek::SigningKey;
use serde::de::DeserializeOwned;

const NOW_S: u64 = 1_800_000_000;

/// Both sides of a channel in which one slice was agreed to, and a part of it billed.
struct Both {
    payer: Payer,
    payee: Payee,
}

thread_local! {
    static BOTH: RefCell<Both> = RefCell::new(both());
}

/// Reads the bytes as every object that a party of a channel takes, and as a machine's record. None but the
/// parties' own changes anything.
pub fn channel(data: &[u8]) {
    BOTH.with_borrow_mut(|Both { payer, payee }| {
        let before = (payer.ceiling(), payer.charge(), payee.ceiling(), payee.charge());
        if let Some(voucher) = read::<Signed<Voucher>>(data) {
            assert_ne!(payee.take(voucher, NOW_S), Ok(true), "a voucher of nobody's");
        }
        if let Some(receipt) = read::<Signed<Receipt>>(data) {
            assert_ne!(payer.take(receipt, &[]), Ok(true), "a bill of nobody's");
        }
        if let Some(close) = read::<Signed<Close>>(data) {
            assert!(payee.close(close).is_err(), "a close of nobody's");
        }
        if let Some(proof) = read::<Equivocation>(data) {
            assert!(proof.check().is_err(), "nobody signed twice");
        }
        // Whatever else it is, it is read or not, and nothing more.
        let _ = (read::<Signed<Quote>>(data), read::<Signed<Funded>>(data));
        let _ = (read::<Signed<Accept>>(data), read::<Claim>(data));
        let after = (payer.ceiling(), payer.charge(), payee.ceiling(), payee.charge());
        assert_eq!(before, after);
    });
    if let Ok(record) = NodeRecord::parse(data) {
        assert_eq!(record.to_json().as_bytes(), data, "a record is not what was read");
        assert!(record.check(NOW_S).is_err(), "a record of nobody's");
    }
}

fn read<T: DeserializeOwned>(data: &[u8]) -> Option<T> {
    serde_json::from_slice(data).ok()
}

fn both() -> Both {
    let key = |seed: u8| SigningKey::from_bytes(&[seed; 32]);
    let account = |seed: u8| AccountId::from_bytes(key(seed).verifying_key().to_bytes());
    let quote = Quote {
        payee: account(2),
        payee_key: account(20),
        ledgers: vec![LedgerAt { key: account(3), address: "ledger:1".into() }],
        engine_id: "engine".into(),
        rates: vec![0; 3],
        deposit_nano_min: 1,
        dispute_s_min: 1,
        valid_until_s: NOW_S,
    };
    let wish = Wish {
        payer: account(1),
        ledger: account(3),
        deposit: NanoAtp(1_000),
        salt: ContentHash::derive("salt", &[]),
        expires_s: NOW_S + 3600,
    };
    let quote = Signed::new(quote, &key(2));
    let mut payer = Payer::open(quote, &wish, &key(1), key(10), NOW_S).expect("a channel");
    let record = payer.record().clone();
    let funded = Funded {
        channel: payer.channel(),
        amount_nano: 1_000,
        seq: 1,
        expires_ms: (NOW_S + 7200) * 1000,
    };
    let funded = Signed::new(funded, &key(3));
    let accepted = Payee::accept(record.quote, record.open, funded, key(20), NOW_S);
    let (mut payee, _) = accepted.expect("a channel");
    let voucher = payer.voucher(NanoAtp(500), NOW_S).expect("a slice");
    payee.take(voucher, NOW_S).expect("a voucher");
    let transfer = TransferId::derive("leaf", &[]);
    let leaves = [Leaf { transfer, amount_nano: 100, memo: "work".into() }];
    let receipt = payee.bill(&leaves, Reason::Slice).expect("a bill").clone();
    payer.take(receipt, &leaves).expect("a bill that fits");
    Both { payer, payee }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seeds are what both sides really said, so that what follows from them comes close.
    #[test]
    fn seeds_are_genuine() {
        BOTH.with_borrow_mut(|Both { payer, payee }| {
            let last = &payer.record().last;
            let said = [
                ("voucher", serde_json::to_string(&last.voucher).unwrap()),
                ("receipt", serde_json::to_string(&last.receipt).unwrap()),
                ("claim", serde_json::to_string(&payee.claim()).unwrap()),
            ];
            for (name, text) in said {
                let path = concat!(env!("CARGO_MANIFEST_DIR"), "/seeds/channel/");
                let path = format!("{path}{name}.json");
                let seed = std::fs::read_to_string(&path).unwrap_or_default();
                assert_eq!(seed.trim_end(), text, "{path}");
            }
        });
    }
}
