//! What each object is refused for, and what each row of the table of failures comes to, by hand.

use cell_abi::{AccountId, NanoAtp};
use cell_ledger::{
    ContentHash, Ledger, LedgerError, LedgerOptions, MemoryStore, SystemClock, Transfer,
    TransferId, signed,
};
use ed25519_dalek::SigningKey;
use proptest::prelude::*;

use crate::payee::{LEAF_MEMO_BYTES_MAX, LIFE_S_MAX};
use crate::{
    CLAIMS_MAX, ChannelError, Escrow, Funded, Leaf, LedgerAt, Open, Payee, Payer, Quote, Reason,
    Receipt, Signed, Voucher, Wish,
};

fn key(number: u8) -> SigningKey {
    SigningKey::from_bytes(&[number; 32])
}

fn now_s() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

fn quote() -> Quote {
    Quote {
        payee: signed::node(&key(2)),
        payee_key: signed::node(&key(20)),
        ledgers: vec![LedgerAt { key: signed::node(&key(3)), address: "ledger:1".into() }],
        engine_id: "engine".into(),
        rates: vec![0; 3],
        deposit_nano_min: 100,
        dispute_s_min: 60,
        valid_until_s: now_s() + 60,
    }
}

fn wish() -> Wish {
    Wish {
        payer: signed::node(&key(1)),
        ledger: signed::node(&key(3)),
        deposit: NanoAtp(1000),
        salt: ContentHash::derive("salt", &[]),
        expires_s: now_s() + 1000,
    }
}

/// A ledger on which the payer has this much.
fn ledger(funds: u64) -> Ledger {
    let issuer = AccountId::from_bytes([9; 32]);
    let options = LedgerOptions::default();
    let ledger = Ledger::start(MemoryStore::new(issuer), SystemClock, options).unwrap();
    let (id, credit) = (TransferId::derive("funds", &[]), signed::node(&key(1)));
    let amount = NanoAtp(funds);
    ledger.transfer(Transfer { id, debit: issuer, credit, amount, memo: String::new() }).unwrap();
    ledger
}

fn opened(wish: &Wish) -> Payer {
    Payer::open(Signed::new(quote(), &key(2)), wish, &key(1), key(10), now_s()).unwrap()
}

fn both(ledger: &Ledger) -> (Payer, Payee) {
    let payer = opened(&wish());
    let payee = accepted(ledger, &payer);
    (payer, payee)
}

fn accepted(ledger: &Ledger, payer: &Payer) -> Payee {
    let record = payer.record().clone();
    let funded = Escrow::new(ledger, &key(3)).fund(&record.open).unwrap();
    let accepted = Payee::accept(record.quote, record.open, funded.clone(), key(20), now_s());
    let (payee, accept) = accepted.unwrap();
    payer.is_accepted(&accept, &funded).unwrap();
    payee
}

fn leaf(number: u64, amount_nano: u64) -> Leaf {
    let transfer = TransferId::derive("leaf", &[&number.to_le_bytes()]);
    Leaf { transfer, amount_nano, memo: format!("work {number}") }
}

#[test]
fn terms_that_the_payee_does_not_accept() {
    #[track_caller]
    fn check(change: impl Fn(&mut Open), expect: ChannelError) {
        let ledger = ledger(10_000);
        let quote = Signed::new(quote(), &key(2));
        let mut open = opened(&wish()).record().open.body.clone();
        open.quote = quote.hash();
        change(&mut open);
        let open = Signed::new(open, &key(1));
        let deposit = open.body.deposit_nano;
        let (channel, expires_ms) = (open.channel(), u64::MAX);
        let funded = Funded { channel, amount_nano: deposit, seq: 1, expires_ms };
        let funded = Signed::new(funded, &key(3));
        let told = Payee::accept(quote, open, funded, key(20), now_s()).err();
        assert_eq!(told, Some(expect));
        drop(ledger);
    }
    check(|open| open.quote = ContentHash::derive("x", &[]), ChannelError::Terms("quote"));
    check(|open| open.payee = signed::node(&key(7)), ChannelError::Terms("payee"));
    check(|open| open.payee_key = signed::node(&key(7)), ChannelError::Terms("payee"));
    check(|open| open.payer_key = open.payee_key, ChannelError::Terms("payer"));
    check(|open| open.ledger = signed::node(&key(7)), ChannelError::Terms("ledger"));
    check(|open| open.deposit_nano = 99, ChannelError::Terms("deposit"));
    check(|open| open.dispute_s = 59, ChannelError::Terms("time for disputes"));
    check(|open| open.expires_s = now_s() + LIFE_S_MAX + 1, ChannelError::Terms("end"));
    check(|open| open.expires_s = u64::MAX, ChannelError::Terms("end"));
    check(|open| open.expires_s = now_s() + 59, ChannelError::Expired);
    check(|open| open.payer = signed::node(&key(7)), ChannelError::BadSignature("the opening"));
}

/// The ledger's word must be the ledger's, for this channel, for the whole deposit, for long enough.
#[test]
fn deposits_that_are_none() {
    #[track_caller]
    fn check(change: impl Fn(&mut Funded), signer: u8, expect: ChannelError) {
        let payer = opened(&wish());
        let ledger = ledger(10_000);
        let record = payer.record().clone();
        let mut funded = Escrow::new(&ledger, &key(3)).fund(&record.open).unwrap().body;
        change(&mut funded);
        let funded = Signed::new(funded, &key(signer));
        let told = Payee::accept(record.quote, record.open, funded, key(20), now_s()).err();
        assert_eq!(told, Some(expect));
    }
    check(|_| {}, 1, ChannelError::BadSignature("the ledger's word"));
    check(|funded| funded.amount_nano -= 1, 3, ChannelError::Unfunded);
    check(|funded| funded.expires_ms -= 1, 3, ChannelError::Unfunded);
    let other = ContentHash::derive("x", &[]);
    check(move |funded| funded.channel = other, 3, ChannelError::Foreign("the ledger's word"));
}

#[test]
fn two_channels_on_one_balance() {
    let ledger = ledger(1500);
    let of_ledger = key(3);
    let escrow = Escrow::new(&ledger, &of_ledger);
    escrow.fund(&opened(&wish()).record().open).unwrap();
    let again = Wish { salt: ContentHash::derive("other", &[]), ..wish() };
    let told = escrow.fund(&opened(&again).record().open);
    let short = matches!(told, Err(ChannelError::Ledger(LedgerError::InsufficientFunds { .. })));
    assert!(short, "{told:?}");
    // A ledger knows its own channels only.
    let other = Escrow::new(&ledger, &key(4)).fund(&opened(&wish()).record().open);
    assert_eq!(other, Err(ChannelError::Foreign("the channel")));
}

#[test]
fn a_channel_from_its_opening_to_its_close() {
    let ledger = ledger(5000);
    let (mut payer, mut payee) = both(&ledger);
    let of_ledger = key(3);
    let escrow = Escrow::new(&ledger, &of_ledger);
    let slice = NanoAtp(300);
    assert!(payee.bill(&[leaf(0, 1)], Reason::Slice).is_err(), "worked without a voucher");
    let mut done = 0;
    while let Some(voucher) = payer.voucher(slice, now_s()) {
        assert_eq!(payee.take(voucher.clone(), now_s()), Ok(true));
        assert_eq!(payee.take(voucher, now_s()), Ok(false), "a replay is no news, and no harm");
        let left = payee.ceiling().0 - payee.charge().0;
        let told = payee.bill(&[leaf(done, left + 1)], Reason::Slice);
        assert!(matches!(told, Err(ChannelError::AboveCeiling { .. })), "{told:?}");
        let leaves = [leaf(done, left - 10), leaf(done + 1, 5)];
        done += 2;
        let receipt = payee.bill(&leaves, Reason::Slice).unwrap().clone();
        assert_eq!(payer.take(receipt, &leaves), Ok(true));
        assert!(payer.ceiling().0 - payer.charge().0 <= slice.0, "more than a slice at stake");
    }
    assert!(payer.charge().0 > 900, "{}", payer.charge());
    let claim = payee.claim().unwrap();
    let standing = escrow.claim(&claim).unwrap();
    assert_eq!((standing.paid_nano, standing.is_open), (payer.charge().0, true));
    let closed = payee.close(payer.close()).unwrap();
    let standing = escrow.close(&payer.record().open, &closed).unwrap();
    assert_eq!((standing.paid_nano, standing.is_open), (payer.charge().0, false));
    assert_eq!(escrow.close(&payer.record().open, &closed), Ok(standing), "asked again");
    assert_eq!(escrow.claim(&claim), Ok(standing), "and claimed again");
    let of_payer = ledger.balance(signed::node(&key(1))).unwrap();
    assert_eq!((of_payer.available().0, of_payer.held), (5000 - payer.charge().0, NanoAtp::ZERO));
}

#[test]
fn bills_that_the_payer_does_not_take() {
    #[track_caller]
    fn check(change: impl Fn(&mut Receipt), leaves: &[Leaf], expect: &str) {
        let ledger = ledger(5000);
        let (mut payer, mut payee) = both(&ledger);
        payee.take(payer.voucher(NanoAtp(500), now_s()).unwrap(), now_s()).unwrap();
        let first = [leaf(0, 100)];
        let one = payee.bill(&first, Reason::Slice).unwrap().clone();
        payer.take(one, &first).unwrap();
        let mut receipt = payee.bill(&[leaf(1, 50)], Reason::Slice).unwrap().body.clone();
        change(&mut receipt);
        let told = payer.take(Signed::new(receipt, &key(20)), leaves).unwrap_err().to_string();
        assert!(told.contains(expect), "{told}");
        assert_eq!(payer.charge(), NanoAtp(100), "a refused bill changes nothing");
    }
    let good = [leaf(1, 50)];
    check(|receipt| receipt.charge_nano += 1, &good, "charge does not follow");
    check(|receipt| receipt.charge_nano = 501, &good, "above the ceiling");
    check(|receipt| receipt.leaves += 1, &good, "count does not follow");
    check(|receipt| receipt.previous = ContentHash::derive("x", &[]), &good, "predecessor");
    check(|receipt| receipt.seq = 1, &good, "two receipts under one number");
    check(|receipt| receipt.seq = 0, &good, "old one");
    check(|receipt| receipt.voucher_seq = 2, &good, "above the ceiling");
    check(|receipt| receipt.channel = ContentHash::derive("x", &[]), &good, "not of this channel");
    check(|_| {}, &[leaf(2, 50)], "account does not follow");
    check(|_| {}, &[leaf(1, 49)], "account does not follow");
    check(|_| {}, &[leaf(1, 50), leaf(2, 0)], "account does not follow");
    let long = Leaf { memo: "x".repeat(LEAF_MEMO_BYTES_MAX + 1), ..leaf(1, 50) };
    check(|_| {}, &[long], "account does not follow");
}

#[test]
fn a_channel_is_claimed_from_so_often() {
    let ledger = ledger(5000);
    let mut payer = opened(&Wish { deposit: NanoAtp(CLAIMS_MAX + 10), ..wish() });
    let mut payee = accepted(&ledger, &payer);
    let of_ledger = key(3);
    let escrow = Escrow::new(&ledger, &of_ledger);
    payee.take(payer.voucher(NanoAtp(u64::MAX), now_s()).unwrap(), now_s()).unwrap();
    for number in 0..CLAIMS_MAX {
        payee.bill(&[leaf(number, 1)], Reason::Slice).unwrap();
        escrow.claim(&payee.claim().unwrap()).unwrap();
    }
    payee.bill(&[leaf(CLAIMS_MAX, 1)], Reason::Slice).unwrap();
    assert_eq!(escrow.claim(&payee.claim().unwrap()), Err(ChannelError::TooManyClaims));
    let standing = escrow.standing(&payer.record().open).unwrap();
    assert_eq!((standing.paid_nano, standing.is_open), (CLAIMS_MAX, true));
    // It can still be closed, and then everything that was done is paid.
    let leaves = [leaf(CLAIMS_MAX, 1)];
    let all: Vec<_> = (0..CLAIMS_MAX).map(|number| leaf(number, 1)).chain(leaves).collect();
    payer.resync(payee.record().last.clone(), &all).unwrap();
    let closed = payee.close(payer.close()).unwrap();
    let standing = escrow.close(&payer.record().open, &closed).unwrap();
    assert_eq!((standing.paid_nano, standing.is_open), (CLAIMS_MAX + 1, false));
}

proptest! {
    /// Any changed byte of any object is told, and no bytes make either side panic.
    #[test]
    fn a_changed_voucher_is_nobodys(at in 0_usize..300, bit in 0_u8..8) {
        let ledger = ledger(5000);
        let (mut payer, mut payee) = both(&ledger);
        let voucher = payer.voucher(NanoAtp(500), now_s()).unwrap();
        let mut text = serde_json::to_vec(&voucher).unwrap();
        let at = at % text.len();
        text[at] ^= 1 << bit;
        if let Ok(changed) = serde_json::from_slice::<Signed<Voucher>>(&text)
            && changed != voucher
        {
            prop_assert!(payee.take(changed, now_s()).is_err());
        }
        prop_assert_eq!(payee.ceiling(), NanoAtp::ZERO);
    }
}
