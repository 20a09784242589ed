//! A donor that cheats: it proves who it is, is paid by a channel, and does not do what it bills.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use cell_abi::NanoAtp;
use cell_channel::{
    Claim, Equivocation, Funded, Leaf, LedgerAt, Open, Payee, Quote, Reason, Receipt, Signed,
    Voucher,
};
use cell_ledger::{TransferId, signed};
use ed25519_dalek::SigningKey;

use super::liar::Liar;
use super::*;

/// What the liar does when it has its first voucher.
type Cheat = dyn Fn(&mut Lines, &mut Payee, &SigningKey) + Send + Sync;

/// A consumer whose peer `den` is a liar.
struct Cheated {
    consumer: Machine,
    liar: Liar,
    place: TempDir,
    /// What the liar could claim.
    claims: Arc<Mutex<Vec<Claim>>>,
}

fn payee_key() -> SigningKey {
    SigningKey::from_bytes(&[21; 32])
}

fn cheated(
    cheat: Arc<Cheat>,
    job: impl Fn(UnixStream, &SigningKey) + Send + Sync + 'static,
) -> Cheated {
    let consumer = machine("escrow = true");
    let ledger = LedgerAt {
        key: AccountId::parse(&consumer.key).unwrap(),
        address: consumer.address.clone(),
    };
    let claims = Arc::new(Mutex::new(Vec::new()));
    let claimed = Arc::clone(&claims);
    let liar = Liar::new(20, move |key, _, request, socket| match request {
        Request::Channel => be_paid(Lines::new(socket), key, &ledger, &*cheat, &claimed),
        Request::Job => job(socket, key),
        other => panic!("{other:?}"),
    });
    let on = liar.account().to_string();
    consumer.nucleus.cell(["peer", "add", &on, "--name", "den", "--at", &liar.address]).expect(0);
    let place = tempfile::Builder::new().prefix("ct-h-").tempdir_in("/tmp").unwrap();
    Cheated { consumer, liar, place, claims }
}

/// An honest beginning, and then the cheat.
fn be_paid(
    mut lines: Lines,
    key: &SigningKey,
    ledger: &LedgerAt,
    cheat: &Cheat,
    claims: &Mutex<Vec<Claim>>,
) {
    let quote = Quote {
        payee: signed::node(key),
        payee_key: signed::node(&payee_key()),
        ledgers: vec![ledger.clone()],
        engine_id: "any".into(),
        rates: vec![0; 3],
        deposit_nano_min: 1,
        dispute_s_min: 2,
        valid_until_s: tunnel::now_s() + 60,
    };
    let quote = Signed::new(quote, key);
    assert_eq!(lines.hear::<Value>(), Some(json!("quote")));
    lines.say(json!({ "quote": quote }));
    let Some(mut opened) = lines.hear::<Value>() else { return };
    let open: Signed<Open> = serde_json::from_value(opened["open"]["open"].take()).unwrap();
    let funded: Signed<Funded> = serde_json::from_value(opened["open"]["funded"].take()).unwrap();
    let (mut payee, accept) =
        Payee::accept(quote, open, funded, payee_key(), tunnel::now_s()).unwrap();
    lines.say(json!({ "accepted": accept }));
    while let Some(mut message) = lines.hear::<Value>() {
        if let Ok(voucher) = serde_json::from_value::<Signed<Voucher>>(message["voucher"].take()) {
            payee.take(voucher, tunnel::now_s()).unwrap();
            lines.say(json!({ "credited": { "ceiling_nano": payee.ceiling().0 } }));
            cheat(&mut lines, &mut payee, &payee_key());
            claims.lock().unwrap().extend(payee.claim());
        } else if let Ok(close) = serde_json::from_value(message["close"].take()) {
            let closed = payee.close(close).unwrap();
            lines.say(json!({ "closed": { "deposit_nano": 0, "paid_nano": 0, "expires_ms": 0, "is_open": false } }));
            drop(closed);
        }
    }
}

/// A job's session that says nothing, until the consumer hangs up.
fn silent(socket: UnixStream, _: &SigningKey) {
    let mut lines = Lines::new(socket);
    std::thread::sleep(Duration::from_secs(1));
    lines.say(json!(null));
}

fn leaf(amount_nano: u64) -> Leaf {
    let transfer = TransferId::derive("liar", &[&amount_nano.to_le_bytes()]);
    Leaf { transfer, amount_nano, memo: "work".into() }
}

impl Cheated {
    fn run(&self, slice: &str) -> String {
        let module = self.place.path().join("count.wasm");
        fs::write(&module, wat::compile(COUNT)).unwrap();
        let module = module.to_str().unwrap();
        let run =
            ["run", "--on", "den", "--pay-by", "here", "--slice", slice, "--budget", "50", module];
        let ran = self.consumer.nucleus.cell(run);
        assert!(ran.code != Some(0), "{}", ran.stderr);
        ran.stderr
    }

    /// Claims the most that the liar ever can, and says what it got.
    fn loot(&self) -> u64 {
        let claims: Vec<_> = self.claims.lock().unwrap().clone();
        for claim in claims {
            let credentials = Credentials::new(&self.liar.key, tunnel::now_s()).unwrap();
            let wanted = AccountId::parse(&self.consumer.key).unwrap();
            let at = &self.consumer.address;
            let timeout = Duration::from_secs(20);
            let dialled =
                tunnel::dial(at, &credentials, wanted, &Request::Escrow, timeout).unwrap();
            let mut lines = Lines::new(dialled);
            lines.say(json!({ "claim": claim }));
            lines.hear::<Value>().unwrap();
        }
        let balances = self.consumer.nucleus.balances();
        let loot = balances.get(&self.liar.account().to_string()).copied().unwrap_or(0);
        u64::try_from(loot).unwrap()
    }
}

/// It bills all that was agreed to, again and again, and does nothing: with each bill the payer would agree
/// to another slice, but the end of the job does not fit the bill.
#[test]
fn a_bill_for_nothing_costs_no_more_than_was_agreed_to() {
    let bill_all = |lines: &mut Lines, payee: &mut Payee, _: &SigningKey| {
        if payee.charge() > NanoAtp::ZERO {
            return;
        }
        let leaves = [leaf(payee.ceiling().0)];
        let receipt = payee.bill(&leaves, Reason::Slice).unwrap();
        lines.say(json!({ "leaves": leaves }));
        lines.say(json!({ "bill": { "receipt": receipt, "is_last": true } }));
    };
    let cheated = cheated(Arc::new(bill_all), silent);
    let told = cheated.run("0.02");
    assert!(told.contains("hung up") || told.contains("lost"), "{told}");
    let loot = cheated.loot();
    let slice = 20_000_000 + cell_host::price::compile(wat::compile(COUNT).len() as u64);
    assert!(loot <= slice, "{loot} {slice}");
    println!("a donor that bills for nothing: {loot} nano-ATP, one slice of {slice}");
}

/// Two receipts under one number: it gets no more, and what it signed proves it to anybody.
#[test]
fn two_receipts_under_one_number_are_proof() {
    let twice = |lines: &mut Lines, payee: &mut Payee, key: &SigningKey| {
        let leaves = [leaf(1_000)];
        let receipt = payee.bill(&leaves, Reason::Slice).unwrap().clone();
        lines.say(json!({ "leaves": leaves }));
        lines.say(json!({ "bill": { "receipt": receipt, "is_last": false } }));
        let other = Receipt { charge_nano: 2_000, ..receipt.body };
        lines.say(json!({ "bill": { "receipt": Signed::new(other, key), "is_last": false } }));
    };
    let cheated = cheated(Arc::new(twice), silent);
    let told = cheated.run("0.02");
    assert!(told.contains("two receipts under one number"), "{told}");
    let entries = fs::read_dir(cheated.consumer.nucleus.path()).unwrap();
    let mut proofs = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("cheat-"));
    let proof = fs::read(proofs.next().unwrap()).unwrap();
    let proof: Equivocation = serde_json::from_slice(&proof).unwrap();
    assert_eq!(proof.check(), Ok(cheated.liar.account()));
    let loot = cheated.loot();
    println!("a donor that signs two receipts: {loot} nano-ATP, and a proof");
    assert!(loot <= 20_000_000 + cell_host::price::compile(wat::compile(COUNT).len() as u64));
}
