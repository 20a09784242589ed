//! A payer that cheats: it speaks as a payer does, and says what no payer should.

use cell_abi::{CellName, NanoAtp};
use cell_channel::{
    Claim, Funded, Leaf, Open, Payer, Quote, Reason, Receipt, Resync, Signed, Voucher, Wish,
};
use cell_client::{CallOptions, Client, Config, Fuel};
use cell_ledger::{ContentHash, signed};
use cell_peer::PeerError;
use ed25519_dalek::SigningKey;

use super::*;
use crate::frames::{receive, send};

const TIMEOUT: Duration = Duration::from_secs(20);

/// The consumer's own key, in a test's hands.
struct Hand<'a> {
    two: &'a Strangers,
    identity: SigningKey,
    /// Signs vouchers.
    key: SigningKey,
}

impl<'a> Hand<'a> {
    fn new(two: &'a Strangers) -> Self {
        let identity = identity(&two.consumer.nucleus);
        // Whom the donor knows may have two lines at once.
        two.donor.nucleus.cell(["peer", "add", &two.consumer.key]).expect(0);
        Self { two, identity, key: SigningKey::from_bytes(&[77; 32]) }
    }

    fn dial(&self, machine: &Machine, request: &Request) -> Lines {
        let credentials = Credentials::new(&self.identity, tunnel::now_s()).unwrap();
        let wanted = AccountId::parse(&machine.key).unwrap();
        // A stranger has one line at a time, and the last one ends in its own time.
        let socket = eventually("there is a line", || {
            tunnel::dial(&machine.address, &credentials, wanted, request, TIMEOUT).ok()
        });
        Lines::new(socket)
    }

    /// Asks the donor, on a line of its own, and returns that line with the answer.
    fn ask(&self, message: &Value) -> (Lines, Value) {
        let mut lines = self.dial(&self.two.donor, &Request::Channel);
        lines.say(message);
        let answer = lines.hear().unwrap();
        (lines, answer)
    }

    fn quote(&self) -> (Lines, Signed<Quote>) {
        let (lines, mut answer) = self.ask(&json!("quote"));
        (lines, serde_json::from_value(answer["quote"].take()).unwrap())
    }

    fn wish(&self, deposit: u64) -> Wish {
        let payer = signed::node(&self.identity);
        let salt = ContentHash::derive("salt", &[&deposit.to_le_bytes()]);
        let expires_s = tunnel::now_s() + 600;
        // The consumer keeps the ledger itself.
        Wish { payer, ledger: payer, deposit: NanoAtp(deposit), salt, expires_s }
    }

    fn open(&self, quote: &Signed<Quote>, wish: &Wish) -> Payer {
        let (key, now_s) = (self.key.clone(), tunnel::now_s());
        Payer::open(quote.clone(), wish, &self.identity, key, now_s).unwrap()
    }

    /// The donor takes other peers' word for nothing, so this is asked as the donor would.
    fn escrow(&self, message: Value) -> Value {
        let donor = identity(&self.two.donor.nucleus);
        let credentials = Credentials::new(&donor, tunnel::now_s()).unwrap();
        let (at, wanted) = (&self.two.consumer.address, signed::node(&self.identity));
        let socket = eventually("the ledger has a line", || {
            tunnel::dial(at, &credentials, wanted, &Request::Escrow, TIMEOUT).ok()
        });
        let mut lines = Lines::new(socket);
        lines.say(message);
        lines.hear().unwrap()
    }

    fn fund(&self, open: &Signed<Open>) -> Value {
        self.escrow(json!({ "fund": open }))
    }

    /// A channel that is open, with its line.
    fn opened(&self, deposit: u64) -> (Lines, Payer, Signed<Funded>) {
        let (mut lines, quote) = self.quote();
        let payer = self.open(&quote, &self.wish(deposit));
        let open = payer.record().open.clone();
        let funded: Signed<Funded> =
            serde_json::from_value(self.fund(&open)["funded"].take()).unwrap();
        lines.say(json!({ "open": { "quote": quote, "open": open, "funded": funded } }));
        let answer: Value = lines.hear().unwrap();
        assert!(answer["accepted"].is_object(), "{answer}");
        (lines, payer, funded)
    }
}

#[track_caller]
fn refused(answer: &Value, expect: &str) {
    let why = answer["refused"].as_str().unwrap_or_default();
    assert!(why.contains(expect), "{expect}: {answer}");
}

/// Openings that the donor does not take: each is funded for real, and wrong in one thing.
#[test]
fn openings_that_are_refused() {
    let two = Strangers::new(60);
    let hand = Hand::new(&two);
    let mut number = 10_000_000;
    let mut check = |change: &dyn Fn(&mut Quote, &mut Open, &mut Funded), expect: &str| {
        number += 1;
        let (mut lines, quote) = hand.quote();
        let mut terms = hand.open(&quote, &hand.wish(number)).record().open.body.clone();
        let (mut offer, mut word) = (quote.body.clone(), None);
        change(&mut offer, &mut terms, &mut nothing());
        let open = Signed::new(terms.clone(), &hand.identity);
        let answer = hand.fund(&open);
        if let Ok(funded) = serde_json::from_value::<Signed<Funded>>(answer["funded"].clone()) {
            word = Some(funded);
        }
        let mut body = word.map_or_else(nothing, |funded| funded.body);
        let before = body.clone();
        change(&mut offer, &mut terms, &mut body);
        // Whoever changes the ledger's word must sign it with some key.
        let key = if body == before { &hand.identity } else { &hand.key };
        let funded = Signed::new(body, key);
        let quote = Signed { body: offer, ..quote };
        lines.say(json!({ "open": { "quote": quote, "open": open, "funded": funded } }));
        refused(&lines.hear().unwrap(), expect);
    };
    check(&|offer, _, _| offer.engine_id = "other".into(), "not signed by its party");
    check(&|offer, _, _| offer.rates = vec![0, 0, 0, 0], "not signed by its party");
    check(&|_, open, _| open.quote = ContentHash::derive("x", &[]), "quote is not as");
    check(&|_, open, _| open.expires_s = tunnel::now_s() + 30, "time is over");
    check(&|_, open, _| open.dispute_s = 59, "time for disputes is not as");
    check(&|_, open, _| open.expires_s += 40 * 24 * 3600, "end is not as");
    check(&|_, _, funded| funded.amount_nano += 1, "not signed by its party");
    let (mut lines, ..) = hand.opened(20_000_000);
    lines.say(json!("nonsense"));
    assert_eq!(lines.hear::<Value>(), None, "nonsense ends the session");
    assert_eq!((two.paid(), two.earned()), (0, 0));
}

fn nothing() -> Funded {
    let channel = ContentHash::derive("none", &[]);
    Funded { channel, amount_nano: 0, seq: 0, expires_ms: 0 }
}

/// The same money twice: the ledger sets it aside once, and the donor takes only the ledger's word.
#[test]
fn money_is_promised_once() {
    let two = Strangers::new(60);
    let hand = Hand::new(&two);
    let (_, quote) = hand.quote();
    let all = 700_000_000_000;
    let (one, other) = (hand.wish(all), hand.wish(all + 1));
    let first = hand.open(&quote, &one).record().open.clone();
    assert!(hand.fund(&first)["funded"].is_object());
    assert_eq!(hand.fund(&first), hand.fund(&first), "asked again, it answers the same");
    let second = hand.open(&quote, &other).record().open.clone();
    refused(&hand.fund(&second), "available");
    assert_eq!(two.held(), i64::try_from(all).unwrap());
    // It makes the word up: that is not the ledger's.
    let funded =
        Funded { channel: second.channel(), amount_nano: all + 1, seq: 1, expires_ms: u64::MAX };
    let (mut lines, quote) = hand.quote();
    let open = hand.open(&quote, &other).record().open.clone();
    let funded = Signed::new(Funded { channel: open.channel(), ..funded }, &hand.key);
    lines.say(json!({ "open": { "quote": quote, "open": open, "funded": funded } }));
    refused(&lines.hear().unwrap(), "not signed by its party");
    println!("money promised twice: set aside once; 0 nano-ATP lost");
}

/// Vouchers that are old, forged, above the deposit, or another channel's; and a channel opened twice.
#[test]
fn vouchers_count_once() {
    let two = Strangers::new(60);
    let hand = Hand::new(&two);
    let (mut lines, mut payer, funded) = hand.opened(100_000_000);
    let mut say = |voucher: &Signed<Voucher>| {
        lines.say(json!({ "voucher": voucher }));
        lines.hear::<Value>().unwrap()
    };
    let first = payer.voucher(NanoAtp(30_000_000), tunnel::now_s()).unwrap();
    let credited = json!({ "credited": { "ceiling_nano": 30_000_000 } });
    assert_eq!(say(&first), credited);
    assert_eq!(say(&first), credited, "a replay changes nothing");
    let change = |change: &dyn Fn(&mut Voucher), key: &SigningKey| {
        let mut voucher = first.body.clone();
        change(&mut voucher);
        Signed::new(voucher, key)
    };
    refused(&say(&change(&|voucher| voucher.ceiling_nano = 1, &hand.key)), "old one");
    refused(&say(&change(&|voucher| voucher.seq = 2, &hand.key)), "old one");
    let above = |voucher: &mut Voucher| (voucher.seq, voucher.ceiling_nano) = (2, 100_000_001);
    refused(&say(&change(&above, &hand.key)), "above the deposit");
    let forged = |voucher: &mut Voucher| (voucher.seq, voucher.ceiling_nano) = (2, 50_000_000);
    refused(&say(&change(&forged, &hand.identity)), "not signed by its party");
    let other = ContentHash::derive("x", &[]);
    refused(&say(&change(&|voucher| voucher.channel = other, &hand.key)), "not of this channel");
    let channel = payer.channel().to_string();
    assert_eq!(two.donor.nucleus.balance(&channel), 30_000_000, "lent once");
    // The same channel again, on another line.
    let record = payer.record().clone();
    let again = json!({ "open": { "quote": record.quote, "open": record.open, "funded": funded } });
    refused(&hand.ask(&again).1, "too many");
    let resume = json!({ "resume": { "channel": channel, "leaves": 0 } });
    refused(&hand.ask(&resume).1, "still ends");
    // Nobody else can go on with it, or spend from it.
    let stranger = Home::new();
    let credentials = Credentials::new(&identity(&stranger), tunnel::now_s()).unwrap();
    let wanted = AccountId::parse(&two.donor.key).unwrap();
    let dial = tunnel::dial(&two.donor.address, &credentials, wanted, &Request::Channel, TIMEOUT);
    let mut theirs = Lines::new(dial.unwrap());
    theirs.say(&resume);
    refused(&theirs.hear().unwrap(), "does not know that channel");
    println!("a voucher replayed, forged or raised: 0 nano-ATP more to spend");
}

/// Claims that are forged, above what was agreed to, too late, or made again; asked of the ledger as the
/// donor would, with the donor's own key.
#[test]
fn claims_are_paid_once() {
    let two = Strangers::new(60);
    let hand = Hand::new(&two);
    let (mut lines, mut payer, _) = hand.opened(100_000_000);
    let voucher = payer.voucher(NanoAtp(30_000_000), tunnel::now_s()).unwrap();
    lines.say(json!({ "voucher": voucher }));
    lines.hear::<Value>().unwrap();
    drop(lines);
    // The key that the donor signs receipts with follows from its identity.
    let mut hasher = blake3::Hasher::new_derive_key("cell/atp/v1/payee-key");
    hasher.update(identity(&two.donor.nucleus).as_bytes());
    let theirs = SigningKey::from_bytes(hasher.finalize().as_bytes());
    let record = payer.record().clone();
    let receipt = |charge_nano: u64| Receipt {
        channel: payer.channel(),
        seq: 1,
        voucher_seq: 1,
        charge_nano,
        leaves: 1,
        leaves_hash: Leaf::none(),
        previous: payer.channel(),
        reason: Reason::Slice,
    };
    let claim = |charge: u64, key: &SigningKey, voucher: &Signed<Voucher>| {
        let (open, voucher) = (record.open.clone(), voucher.clone());
        let receipt = Signed::new(receipt(charge), key);
        hand.escrow(json!({ "claim": Claim { open, voucher, receipt } }))
    };
    let voucher = record.last.voucher.clone().unwrap();
    refused(&claim(30_000_001, &theirs, &voucher), "above the ceiling");
    refused(&claim(10_000_000, &hand.identity, &voucher), "not signed by its party");
    let raised = Voucher { ceiling_nano: 90_000_000, ..voucher.body };
    refused(&claim(80_000_000, &theirs, &Signed::new(raised, &theirs)), "not signed by its party");
    assert_eq!(two.paid(), 0);
    // What it bills without work, within the slice that was agreed to, is all that a donor can take.
    let first = claim(10_000_000, &theirs, &voucher);
    assert_eq!(first["standing"]["paid_nano"], 10_000_000, "{first}");
    assert_eq!(claim(10_000_000, &theirs, &voucher), first, "once");
    assert_eq!(claim(9_000_000, &theirs, &voucher), first, "an older one pays nothing more");
    assert_eq!(claim(30_000_000, &theirs, &voucher)["standing"]["paid_nano"], 30_000_000);
    assert_eq!(two.paid(), 30_000_000);
    println!("a donor that bills what it did not do: 30000000 nano-ATP, one slice of 30000000");
    // Closed by force and past its time, nothing more is paid.
    let request = payer.request_close();
    let asked =
        hand.escrow(json!({ "request-close": { "open": record.open, "request": request } }));
    assert_eq!(asked["standing"]["is_open"], true, "the donor has its time");
    let nonsense = hand.escrow(
        json!({ "standing": Signed { body: record.open.body.clone(), signature: "00".into() } }),
    );
    refused(&nonsense, "not signed by its party");
    let _: Resync = record.last;
    two.consumer.nucleus.cell(["ledger", "verify"]).expect(0);
}

/// Work on credit: the deposit is back with the payer, and the channel is gone on with.
#[test]
fn a_channel_that_ends_is_not_worked_for() {
    let two = Strangers::new(2);
    let hand = Hand::new(&two);
    let (mut lines, mut payer, _) = hand.opened(100_000_000);
    let say = |lines: &mut Lines, message: &Value| {
        lines.say(message);
        lines.hear::<Value>().unwrap()
    };
    let slice = NanoAtp(10_000_000);
    let first = payer.voucher(slice, tunnel::now_s()).unwrap();
    say(&mut lines, &json!({ "voucher": first }));
    assert_eq!(say(&mut lines, &json!("bill")), json!({ "leaves": [] }));
    assert_eq!(lines.hear(), Some(json!("nothing-to-bill")));
    let closed = say(&mut lines, &json!({ "close": payer.close() }));
    assert_eq!(closed["closed"]["is_open"], false, "{closed}");
    let (channel, key) = (payer.channel(), hand.key.clone());
    let id = channel.to_string();
    assert_eq!((two.held(), two.donor.nucleus.balance(&id)), (0, 0));
    // It goes on as if nothing had happened.
    let (mut lines, shown) = hand.ask(&json!({ "resume": { "channel": id, "leaves": 0 } }));
    assert!(shown["shown"].is_object(), "{shown}");
    let all = Signed::new(Voucher { channel, seq: 2, ceiling_nano: 100_000_000 }, &key);
    let answer = lines.hear_after(&json!({ "voucher": all }));
    assert!(answer.is_none_or(|answer| answer["refused"].is_string()), "worked on credit");
    assert_eq!(two.donor.nucleus.balance(&id), 0, "nothing was lent");
    // Another one asks the ledger for its deposit behind the donor's back, and keeps its line.
    let (mut lines, mut payer, _) = hand.opened(100_000_001);
    let first = payer.voucher(slice, tunnel::now_s()).unwrap();
    say(&mut lines, &json!({ "voucher": first }));
    let id = payer.channel().to_string();
    assert_eq!(two.donor.nucleus.balance(&id), 10_000_000);
    let (open, request) = (payer.record().open.clone(), payer.request_close());
    hand.escrow(json!({ "request-close": { "open": open, "request": request } }));
    eventually("what was lent is taken back", || {
        // However much it has to say meanwhile.
        for _ in 0..20 {
            say(&mut lines, &json!("quote"));
        }
        (two.donor.nucleus.balance(&id) == 0).then_some(())
    });
    let all = Voucher { channel: payer.channel(), seq: 2, ceiling_nano: 100_000_001 };
    let answer = lines.hear_after(&json!({ "voucher": Signed::new(all, &key) }));
    assert!(answer.is_none_or(|answer| answer["refused"].is_string()), "worked on credit");
    assert_eq!(two.donor.nucleus.balance(&id), 0, "nothing more was lent");
    println!("a payer that takes its deposit back: 0 nano-ATP of work for it");
}

/// A thousand vouchers of a nano-ATP each would be a thousand rows of the donor's journal.
#[test]
fn vouchers_have_a_size() {
    let two = Strangers::new(60);
    let hand = Hand::new(&two);
    let (mut lines, payer, _) = hand.opened(100_000_000);
    for (seq, ceiling_nano, is_taken) in
        [(1, 9_999, false), (1, 10_000, true), (2, 10_001, false), (2, 100_000_000, true)]
    {
        let voucher = Voucher { channel: payer.channel(), seq, ceiling_nano };
        let answer = lines.hear_after(&json!({ "voucher": Signed::new(voucher, &hand.key) }));
        assert_eq!(answer.unwrap()["credited"].is_object(), is_taken, "{ceiling_nano}");
    }
    // Nor is a deposit too small to be worth its entry.
    let (_, quote) = hand.quote();
    let mut open = payer.record().open.body.clone();
    (open.deposit_nano, open.quote) = (999_999, quote.hash());
    refused(&hand.fund(&Signed::new(open, &hand.identity)), "a deposit has at least");
}

/// A payer that agrees to one slice, and then says nothing: its job waits, ends, and costs that slice at most.
#[test]
fn a_job_whose_payer_agrees_to_no_more_ends() {
    let two = Strangers::new(60);
    let hand = Hand::new(&two);
    let wasm = wat::compile(SPIN);
    let (mut lines, mut payer, _) = hand.opened(2_000_000_000);
    let slice = 50_000_000 + cell_host::price::compile(wasm.len() as u64);
    let voucher = payer.voucher(NanoAtp(slice), tunnel::now_s()).unwrap();
    assert!(lines.hear_after(&json!({ "voucher": voucher })).unwrap()["credited"].is_object());
    let spec = json!({
        "id": "7".repeat(64), "module": cell_abi::CellHash::of(&wasm).to_string(),
        "module_bytes": wasm.len(), "arguments": ["spin"], "environment": [], "memory_mb_max": 16,
        "budget_nano_atp": 1_000_000_000, "is_budget_given": true, "timeout_ms": null,
        "recorded": false, "channel": payer.channel().to_string(),
    });
    let credentials = Credentials::new(&hand.identity, tunnel::now_s()).unwrap();
    let (at, wanted) = (&two.donor.address, AccountId::parse(&two.donor.key).unwrap());
    let mut job = tunnel::dial(at, &credentials, wanted, &Request::Job, TIMEOUT).unwrap();
    send(&mut job, 1, spec.to_string().as_bytes()).unwrap();
    let end: Value = loop {
        match receive(&mut job).unwrap() {
            (16, _) => send(&mut job, 2, &wasm).unwrap(),
            (21, content) => break serde_json::from_slice(&content).unwrap(),
            _ => {}
        }
    };
    assert_eq!((&end["exit"], &end["ran"]), (&json!(130), &json!(true)), "{end}");
    let earned = u64::try_from(two.earned()).unwrap();
    assert!(earned > slice - 10_000_000 && earned <= slice, "{earned} {slice}");
    println!("a payer that agrees to no more: {earned} nano-ATP earned, one slice is {slice}");
}

/// Each account's calls take a process here, and a machine may have many channels.
#[test]
fn few_accounts_of_one_machine_call_at_once() {
    let two = Strangers::new(60);
    two.donor.nucleus.deploy_wat("echo", &wat::cell("", wat::ECHO), "peers = true");
    let hand = Hand::new(&two);
    let mut deposit = 100_000_000;
    // A call by a channel of its own, whose connection stays.
    let mut call = || {
        deposit += 1;
        let (mut lines, mut payer, _) = hand.opened(deposit);
        let voucher = payer.voucher(NanoAtp(30_000_000), tunnel::now_s()).unwrap();
        lines.say(json!({ "voucher": voucher }));
        assert!(lines.hear::<Value>().unwrap()["credited"].is_object());
        let name = CellName::parse("echo").unwrap();
        let request = Request::PaidCell(*payer.channel().as_bytes(), name);
        let credentials = Credentials::new(&hand.identity, tunnel::now_s()).unwrap();
        let wanted = AccountId::parse(&two.donor.key).unwrap();
        let socket = tunnel::dial(&two.donor.address, &credentials, wanted, &request, TIMEOUT)?;
        let mut client = Client::from_stream(socket, "echo", Config::default()).unwrap();
        let slot = client.open_raw("run").unwrap();
        let options = CallOptions { fuel: Fuel(20_000_000), ..CallOptions::default() };
        client.call_raw(&slot, b"hi", options).unwrap();
        Ok(client)
    };
    let mut check = |most: usize| {
        let mut all: Vec<_> = (0..most).map(|_| call().unwrap()).collect();
        let refused: Result<_, PeerError> = call();
        assert!(refused.unwrap_err().to_string().contains("other accounts of yours"));
        // One that has hung up makes room.
        drop(all.pop());
        all.push(eventually("there is room", || call().ok()));
    };
    check(4);
    two.donor.nucleus.cell(["peer", "remove", &two.consumer.key]).expect(0);
    eventually("a stranger has fewer", || {
        let children = two.donor.nucleus.process().children();
        let is_worker = |child: &Process| child.arguments().get(1).is_some_and(|w| w == "worker");
        (children.into_iter().filter(is_worker).count() == 1).then_some(())
    });
    check(2);
    two.donor.nucleus.cell(["ledger", "verify"]).expect(0);
}
