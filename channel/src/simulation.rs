//! Seeded worlds in which messages are lost, doubled, late and in another order, machines crash between any
//! two steps, and parties cheat. After every step all twelve invariants are looked at, by books that share
//! no code with the parties'.
//!
//! `CELL_CHANNEL_SEED=N cargo nextest run -p cell-channel worlds` runs one of them again.

mod cheats;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use cell_abi::{AccountId, NanoAtp};
use cell_ledger::{
    Clock, ContentHash, Ledger, LedgerOptions, MemoryStore, Transfer, TransferId, signed,
};
use ed25519_dalek::SigningKey;

use crate::{
    ChannelError, Claim, Close, Closed, Escrow, Funded, Leaf, LedgerAt, Open, Payee, PayeeRecord,
    Payer, PayerRecord, Quote, Reason, Receipt, Resync, Signed, Standing, Voucher, Wish,
};

/// Worlds that are run.
const WORLDS: u64 = 10_000;
const STEPS: u64 = 64;
const SLICE: NanoAtp = NanoAtp(1_000);
const FUNDS: u64 = 20_000;
const START_S: u64 = 1_000_000;
const LIFE_S: u64 = 10_000;
const DISPUTE_S: u64 = 600;

/// Numbers that depend on the seed alone (SplitMix64, Steele et al. 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end
    }

    fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

#[derive(Clone)]
struct Time(Arc<AtomicU64>);

impl Time {
    fn now_s(&self) -> u64 {
        self.0.load(Relaxed) / 1000
    }
}

impl Clock for Time {
    fn now_ms(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

fn key(number: u8) -> SigningKey {
    SigningKey::from_bytes(&[number; 32])
}

/// What is on its way.
#[derive(Clone)]
enum Packet {
    Voucher(Signed<Voucher>),
    Close(Signed<Close>),
    Closed(Closed),
    /// The leaves come after so many.
    Receipt(Signed<Receipt>, usize, Vec<Leaf>),
    /// All that the payee has.
    Shown(Box<PayeeRecord>, Vec<Leaf>),
}

/// One channel, with both its parties, their disks, and what really happened.
struct Channel {
    /// `None` while it has lost everything.
    payer: Option<Payer>,
    payer_disk: Option<PayerRecord>,
    payer_key: SigningKey,
    /// `None` for good once it lost its record.
    payee: Option<Payee>,
    payee_disk: Option<PayeeRecord>,
    open: Signed<Open>,
    /// The payee's own books: on its disk.
    leaves: Vec<Leaf>,
    wire: Vec<Packet>,
    /// All claims that could ever be made, for replays.
    claims: Vec<Claim>,
    /// The highest ceiling and its number that the payer signed; what it ever signed away.
    ceiling_signed: (u64, u64),
    /// The last receipt of each number that the payee signed, if it is honest.
    receipts: Vec<Signed<Receipt>>,
    agreed_to_close: bool,
    asked_to_close_s: Option<u64>,
    paid: u64,
}

struct World {
    random: Random,
    time: Time,
    ledger: Ledger,
    ledger_key: SigningKey,
    channels: Vec<Channel>,
    faults: u64,
    caught: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let (issuer, time) =
            (AccountId::from_bytes([9; 32]), Time(Arc::new(AtomicU64::new(START_S * 1000))));
        let ledger =
            Ledger::start(MemoryStore::new(issuer), time.clone(), LedgerOptions::default());
        let ledger = ledger.unwrap();
        let credit = signed::node(&key(1));
        let id = TransferId::derive("funds", &[]);
        let funds =
            Transfer { id, debit: issuer, credit, amount: NanoAtp(FUNDS), memo: String::new() };
        ledger.transfer(funds).unwrap();
        let mut world = Self {
            random: Random(seed),
            time,
            ledger,
            ledger_key: key(3),
            channels: Vec::new(),
            faults: 0,
            caught: 0,
        };
        for number in 0..2 {
            let channel = world.open(number);
            world.channels.push(channel);
        }
        world
    }

    fn escrow(&self) -> Escrow<'_> {
        Escrow::new(&self.ledger, &self.ledger_key)
    }

    /// Two channels of the same parties, on the same ledger, by the same quote.
    fn open(&mut self, number: u8) -> Channel {
        let (identity, payee, payee_key) = (key(1), key(2), key(20));
        let (payer_key, ledger) = (key(10 + number), signed::node(&self.ledger_key));
        let quote = Quote {
            payee: signed::node(&payee),
            payee_key: signed::node(&payee_key),
            ledgers: vec![LedgerAt { key: ledger, address: "ledger:1".into() }],
            engine_id: "engine".into(),
            rates: vec![0; 3],
            deposit_nano_min: 1_000,
            dispute_s_min: DISPUTE_S,
            valid_until_s: START_S + 60,
        };
        let quote = Signed::new(quote, &payee);
        let wish = Wish {
            payer: signed::node(&identity),
            ledger,
            deposit: NanoAtp(2_000 + self.random.below(6_000)),
            salt: ContentHash::derive("salt", &[&[number]]),
            expires_s: START_S + LIFE_S,
        };
        let now_s = self.time.now_s();
        let payer = Payer::open(quote.clone(), &wish, &identity, payer_key.clone(), now_s).unwrap();
        let open = payer.record().open.clone();
        let funded = self.escrow().fund(&open).unwrap();
        assert_eq!(self.escrow().fund(&open).as_ref(), Ok(&funded), "I8");
        let accepted = Payee::accept(quote, open.clone(), funded.clone(), payee_key, now_s);
        let (payee, accept) = accepted.unwrap();
        payer.is_accepted(&accept, &funded).unwrap();
        Channel {
            payer_disk: Some(payer.record().clone()),
            payee_disk: Some(payee.record().clone()),
            payer: Some(payer),
            payer_key,
            payee: Some(payee),
            open,
            leaves: Vec::new(),
            wire: Vec::new(),
            claims: Vec::new(),
            ceiling_signed: (0, 0),
            receipts: Vec::new(),
            agreed_to_close: false,
            asked_to_close_s: None,
            paid: 0,
        }
    }

    fn step(&mut self) {
        let at = usize::from(self.random.one_in(2));
        match self.random.below(18) {
            0..=1 => self.agree(at),
            2..=3 => self.work(at),
            4..=5 => self.bill(at),
            6..=10 => self.deliver(at),
            11 => self.claim(at),
            12 => self.crash_payer(at),
            13 => self.crash_payee(at),
            14 => self.pass_time(),
            15..=16 => self.cheat(at),
            _ => self.end(at),
        }
    }

    /// The payer keeps a voucher, and sends it unless it crashes before.
    fn agree(&mut self, at: usize) {
        let now_s = self.time.now_s();
        let dies = self.random.one_in(12);
        let channel = &mut self.channels[at];
        if channel.agreed_to_close {
            return;
        }
        let Some(payer) = &mut channel.payer else { return self.show(at) };
        let before = (payer.charge(), payer.ceiling());
        if let Some(voucher) = payer.voucher(SLICE, now_s) {
            let Voucher { seq, ceiling_nano, .. } = voucher.body;
            assert!(ceiling_nano > before.1.0, "I2: a ceiling went down");
            assert!(ceiling_nano <= channel.open.body.deposit_nano, "I1");
            assert!(ceiling_nano - before.0.0 <= SLICE.0, "more than a slice at stake");
            let (signed_seq, signed_ceiling) = channel.ceiling_signed;
            channel.ceiling_signed = (signed_seq.max(seq), signed_ceiling.max(ceiling_nano));
            if dies {
                // Signed, not kept, not sent: nobody has it.
                channel.payer = channel
                    .payer_disk
                    .clone()
                    .map(|record| Payer::resume(record, channel.payer_key.clone()));
                return;
            }
            channel.payer_disk = Some(payer.record().clone());
            channel.wire.push(Packet::Voucher(voucher));
        }
    }

    /// The payee works, within what it was agreed to; each piece is in its own books when it is done.
    fn work(&mut self, at: usize) {
        let amount = 1 + self.random.below(SLICE.0 / 3);
        let now_s = self.time.now_s();
        let channel = &mut self.channels[at];
        let Some(payee) = &channel.payee else { return };
        let done: u64 = channel.leaves.iter().map(|leaf| leaf.amount_nano).sum();
        if done + amount > payee.ceiling().0 || now_s + 60 >= channel.open.body.expires_s {
            return;
        }
        let count = channel.leaves.len() as u64;
        let channel_id = channel.open.channel();
        let transfer = TransferId::derive("leaf", &[channel_id.as_bytes(), &count.to_le_bytes()]);
        channel.leaves.push(Leaf { transfer, amount_nano: amount, memo: format!("work {count}") });
        let kept = channel.payee_disk.as_ref().and_then(|record| record.last.voucher.as_ref());
        let kept = kept.map_or(0, |voucher| voucher.body.ceiling_nano);
        assert!(done + amount <= kept, "I6, I7: worked for a voucher that is not kept");
    }

    fn bill(&mut self, at: usize) {
        let dies = self.random.one_in(12);
        let channel = &mut self.channels[at];
        let Some(payee) = &mut channel.payee else { return };
        let from = payee.record().last.leaves();
        let from = usize::try_from(from).unwrap();
        let leaves = channel.leaves[from..].to_vec();
        if leaves.is_empty() {
            return;
        }
        let receipt = payee.bill(&leaves, Reason::Slice).unwrap().clone();
        if dies {
            let record = channel.payee_disk.clone().unwrap();
            channel.payee = Some(Payee::resume(record, key(20)));
            return;
        }
        channel.payee_disk = Some(payee.record().clone());
        channel.claims.extend(payee.claim());
        channel.receipts.push(receipt.clone());
        channel.wire.push(Packet::Receipt(receipt, from, leaves));
    }

    /// One of the packets arrives, or gets lost, or arrives and is on its way still.
    fn deliver(&mut self, at: usize) {
        let count = self.channels[at].wire.len() as u64;
        if count == 0 {
            return;
        }
        let place = usize::try_from(self.random.below(count)).unwrap();
        let packet = match self.random.below(4) {
            0 => {
                self.faults += 1;
                self.channels[at].wire[place].clone()
            }
            1 => {
                self.faults += 1;
                self.channels[at].wire.remove(place);
                return;
            }
            _ => self.channels[at].wire.remove(place),
        };
        // Now and then it arrives where it does not belong.
        let to = if self.random.one_in(10) { 1 - at } else { at };
        self.arrive(to, at, packet);
    }

    fn arrive(&mut self, to: usize, from: usize, packet: Packet) {
        let now_s = self.time.now_s();
        let is_stray = to != from;
        let channel = &mut self.channels[to];
        match packet {
            Packet::Voucher(voucher) => {
                let Some(payee) = &mut channel.payee else { return };
                let before = payee.record().last.voucher.clone();
                let taken = payee.take(voucher.clone(), now_s);
                assert!(!(is_stray && taken.is_ok()), "I10: a voucher of another channel");
                if taken == Ok(true) {
                    let seq = before.as_ref().map_or(0, |voucher| voucher.body.seq);
                    let ceiling = before.map_or(0, |voucher| voucher.body.ceiling_nano);
                    assert!(voucher.body.seq > seq && voucher.body.ceiling_nano > ceiling, "I2");
                    channel.payee_disk = Some(payee.record().clone());
                }
            }
            Packet::Receipt(receipt, after, leaves) => {
                let Some(payer) = &mut channel.payer else { return };
                let known = payer.record().last.leaves();
                if known != after as u64 && !is_stray {
                    // Some were lost; the payee is asked for all it has.
                    return self.show(to);
                }
                let before = payer.charge();
                let taken = payer.take(receipt, &leaves);
                assert!(!(is_stray && taken.is_ok()), "I10: a receipt of another channel");
                if taken == Ok(true) {
                    assert!(payer.charge() >= before, "I4");
                    channel.payer_disk = Some(payer.record().clone());
                }
            }
            Packet::Shown(record, leaves) => {
                if !is_stray {
                    self.resync(to, *record, &leaves);
                }
            }
            Packet::Close(close) => {
                let Some(payee) = &channel.payee else { return };
                let closed = payee.close(close);
                assert!(!(is_stray && closed.is_ok()), "I10: a close of another channel");
                if let Ok(closed) = closed {
                    channel.wire.push(Packet::Closed(closed));
                }
            }
            Packet::Closed(closed) => {
                let open = channel.open.clone();
                let stood = self.escrow().close(&open, &closed);
                assert!(!(is_stray && stood.is_ok()), "I10: a close of another channel");
            }
        }
    }

    fn show(&mut self, at: usize) {
        let channel = &mut self.channels[at];
        if let Some(payee) = &channel.payee {
            let count = payee.record().last.leaves();
            let leaves = channel.leaves[..usize::try_from(count).unwrap()].to_vec();
            let record = Box::new(payee.record().clone());
            channel.wire.push(Packet::Shown(record, leaves));
        }
    }

    /// The payer learns from the payee what it has lost.
    fn resync(&mut self, at: usize, record: PayeeRecord, leaves: &[Leaf]) {
        let channel = &mut self.channels[at];
        let identity = signed::node(&key(1));
        let PayeeRecord { quote, open, last, .. } = record;
        let payer = match channel.payer.take() {
            Some(payer) => Ok(payer),
            None => Payer::restore(quote, open, identity, channel.payer_key.clone()),
        };
        let mut payer = payer.unwrap();
        let known = payer.record().last.leaves();
        let more = leaves.get(usize::try_from(known).unwrap()..).unwrap_or_default();
        // What arrives late is old, and refused.
        if payer.resync(last, more).is_ok() {
            channel.payer_disk = Some(payer.record().clone());
        }
        channel.payer = Some(payer);
    }

    fn claim(&mut self, at: usize) {
        let count = self.channels[at].claims.len() as u64;
        if count == 0 {
            return;
        }
        // Often an old one.
        let place = usize::try_from(self.random.below(count)).unwrap();
        let claim = self.channels[at].claims[place].clone();
        let charge = claim.receipt.body.charge_nano;
        let end_ms = self.standing(at).expires_ms;
        match self.escrow().claim(&claim) {
            Ok(standing) => {
                assert!(standing.paid_nano >= charge, "a claim was not paid");
                assert_eq!(self.escrow().claim(&claim), Ok(standing), "I8");
                let before = self.channels[at].paid;
                let is_new = standing.paid_nano > before;
                assert!(!is_new || self.ledger.now_ms() < end_ms, "I9: claimed too late");
            }
            Err(ChannelError::Closed | ChannelError::Expired) => {}
            Err(error) => panic!("a good claim: {error}"),
        }
    }

    fn crash_payer(&mut self, at: usize) {
        self.faults += 1;
        let channel = &mut self.channels[at];
        let lost_all = self.random.one_in(3) && channel.payee.is_some();
        if lost_all {
            (channel.payer, channel.payer_disk) = (None, None);
            return self.show(at);
        }
        let record = channel.payer_disk.clone();
        channel.payer = record.map(|record| Payer::resume(record, channel.payer_key.clone()));
    }

    fn crash_payee(&mut self, at: usize) {
        self.faults += 1;
        let channel = &mut self.channels[at];
        if self.random.one_in(24) {
            // It forfeits what it did not claim, and never signs for this channel again.
            (channel.payee, channel.payee_disk) = (None, None);
            return;
        }
        let record = channel.payee_disk.clone();
        channel.payee = record.map(|record| Payee::resume(record, key(20)));
    }

    fn pass_time(&mut self) {
        let seconds = match self.random.below(16) {
            0 => self.random.below(LIFE_S),
            _ => self.random.below(60),
        };
        self.time.0.fetch_add(seconds * 1000, Relaxed);
        if self.random.one_in(2) {
            self.ledger.void_expired().unwrap();
        }
    }

    /// The payer closes: with the payee, or without.
    fn end(&mut self, at: usize) {
        let now_s = self.time.now_s();
        if !self.random.one_in(12) {
            return;
        }
        let with_payee = self.random.one_in(2);
        let channel = &mut self.channels[at];
        let Some(payer) = &channel.payer else { return };
        if with_payee {
            channel.agreed_to_close = true;
            let close = payer.close();
            channel.wire.push(Packet::Close(close));
            return;
        }
        let (open, request) = (channel.open.clone(), payer.request_close());
        match self.escrow().request_close(&open, &request) {
            Ok(standing) => {
                let asked = self.channels[at].asked_to_close_s.get_or_insert(now_s);
                let is_closed = !standing.is_open;
                assert!(is_closed || standing.expires_ms <= (*asked + DISPUTE_S) * 1000);
            }
            Err(ChannelError::Closed | ChannelError::Expired) => {}
            Err(error) => panic!("a good request: {error}"),
        }
    }

    fn standing(&self, at: usize) -> Standing {
        self.escrow().look(self.channels[at].open.channel()).unwrap()
    }

    /// What must hold between any two steps.
    fn check(&mut self) {
        let (payer, payee) = (signed::node(&key(1)), signed::node(&key(2)));
        let (of_payer, of_payee) =
            (self.ledger.balance(payer).unwrap(), self.ledger.balance(payee).unwrap());
        let sum = of_payer.posted_nano + of_payee.posted_nano;
        assert_eq!(sum, i64::try_from(FUNDS).unwrap(), "I5: money came or went");
        let mut paid = 0;
        for at in 0..self.channels.len() {
            let standing = self.standing(at);
            let now_ms = self.ledger.now_ms();
            let channel = &mut self.channels[at];
            let worked: u64 = channel.leaves.iter().map(|leaf| leaf.amount_nano).sum();
            assert!(standing.paid_nano >= channel.paid, "a payment was taken back");
            assert!(standing.paid_nano <= worked, "I3, I12: paid for more than was done");
            assert!(worked <= channel.ceiling_signed.1, "I6: worked for more than was agreed to");
            assert!(channel.ceiling_signed.1 <= standing.deposit_nano, "I1");
            let end_ms =
                channel.asked_to_close_s.map_or(u64::MAX, |asked| (asked + DISPUTE_S) * 1000);
            let may_end = now_ms >= ((START_S + LIFE_S + DISPUTE_S) * 1000).min(end_ms);
            let is_whole = standing.paid_nano == standing.deposit_nano;
            assert!(
                standing.is_open || may_end || channel.agreed_to_close || is_whole,
                "I9: refunded before its time"
            );
            for pair in channel.receipts.windows(2) {
                let (one, next) = (&pair[0], &pair[1]);
                assert_eq!(next.body.seq, one.body.seq + 1, "I2");
                assert_eq!(next.body.previous, one.hash(), "I2");
                assert!(next.body.charge_nano >= one.body.charge_nano, "I4");
            }
            channel.paid = standing.paid_nano;
            paid += standing.paid_nano;
        }
        assert_eq!(of_payee.posted_nano, i64::try_from(paid).unwrap(), "I5");
    }

    /// At the end of all time everybody has what is theirs.
    fn finish(&mut self) -> u64 {
        for at in 0..self.channels.len() {
            if let Some(claim) = self.channels[at].payee.as_ref().and_then(Payee::claim) {
                let stood = self.escrow().claim(&claim);
                let late = matches!(stood, Err(ChannelError::Closed | ChannelError::Expired));
                let charge = claim.receipt.body.charge_nano;
                assert!(late || stood.is_ok_and(|standing| standing.paid_nano == charge));
            }
        }
        self.check();
        self.time.0.fetch_add((LIFE_S + DISPUTE_S) * 1000, Relaxed);
        self.ledger.void_expired().unwrap();
        let of_payer = self.ledger.balance(signed::node(&key(1))).unwrap();
        assert_eq!(of_payer.held, NanoAtp::ZERO, "I5, I9: something is set aside for ever");
        self.ledger.verify().unwrap();
        self.channels.iter().map(|channel| channel.paid).sum()
    }
}

#[test]
fn worlds_in_which_everything_goes_wrong() {
    let one = std::env::var("CELL_CHANNEL_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = one.map_or(0..WORLDS, |seed: u64| seed..seed + 1);
    let count = seeds.end - seeds.start;
    let (mut faults, mut caught, mut paid) = (0, 0, 0);
    for seed in seeds {
        let told = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..STEPS {
                world.step();
                world.check();
            }
            let paid = world.finish();
            (world.faults, world.caught, paid)
        });
        let Ok((more, cheats, sum)) = told else { panic!("CELL_CHANNEL_SEED={seed} repeats it") };
        faults += more;
        caught += cheats;
        paid += sum;
    }
    println!(
        "{count} worlds of {STEPS} steps, {faults} faults, {caught} cheats, {paid} nano-ATP paid: all twelve invariants held"
    );
    if count > 1 {
        // A world in which nothing happens shows nothing.
        assert!(faults > count && caught > count / 2 && paid > count * SLICE.0 / 5);
    }
}

// The last of each party's objects are all that the other needs.
const _: fn(&PayerRecord) -> &Resync = |record| &record.last;
const _: fn(&Signed<Funded>) -> ContentHash = |funded| funded.body.channel;
