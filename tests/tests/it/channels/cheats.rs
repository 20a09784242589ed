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
use crate::frames::{receive, send};

/// Twenty thousandths of an ATP, and what compiling the module costs.
const SLICE: &str = "0.02";
const SLICE_NANO: u64 = 20_000_000;

/// Says a word about stdout, and exits.
const HELLO: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 64) "hello")
    (func (export "_start")
        (i32.store (i32.const 0) (i32.const 64))
        (i32.store (i32.const 4) (i32.const 5))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#;

/// What a liar does besides being a donor.
trait Lie: Send + Sync + 'static {
    /// It was agreed to a slice.
    fn has_voucher(&self, _: &mut Lines, _: &mut Payee) {}

    /// It is to run a job: the receipt and the output that it sends; nothing to send nothing.
    fn runs(&self, _: &Value) -> Option<(Value, Vec<u8>)> {
        None
    }
}

/// A consumer whose peer `den` is a liar.
struct Cheated {
    consumer: Machine,
    liar: Liar,
    place: TempDir,
    claims: Arc<Mutex<Vec<Claim>>>,
}

fn payee_key() -> SigningKey {
    SigningKey::from_bytes(&[21; 32])
}

impl Cheated {
    fn by(lie: impl Lie) -> Self {
        let consumer = machine("escrow = true");
        let key = AccountId::parse(&consumer.key).unwrap();
        let ledger = LedgerAt { key, address: consumer.address.clone() };
        let claims = Arc::new(Mutex::new(Vec::new()));
        let (owed, claimed) = (Mutex::new(0), Arc::clone(&claims));
        let liar = Liar::new(20, move |key, _, request, socket| match request {
            Request::Channel => {
                let payee = open(Lines::new(socket), key, &ledger);
                let Some((lines, payee)) = payee else { return };
                be_paid(lines, payee, (key, &ledger), &lie, (&claimed, &owed));
            }
            Request::Job => run(socket, key, &lie, &owed),
            other => panic!("{other:?}"),
        });
        let on = liar.account().to_string();
        let add = ["peer", "add", &on, "--name", "den", "--at", &liar.address];
        consumer.nucleus.cell(add).expect(0);
        let place = tempfile::Builder::new().prefix("ct-h-").tempdir_in("/tmp").unwrap();
        Self { consumer, liar, place, claims }
    }

    /// Has the liar run it; returns its receipt, and what was told.
    fn run(&self, text: &str) -> (Option<i32>, String, PathBuf, PathBuf) {
        let (module, bill) =
            (self.place.path().join("job.wasm"), self.place.path().join("bill.json"));
        fs::write(&module, wat::compile(text)).unwrap();
        let (job, receipt) = (module.to_str().unwrap(), bill.to_str().unwrap());
        let run = ["run", "--on", "den", "--pay-by", "here", "--slice", SLICE, "--budget", "50"];
        let ran = self.consumer.nucleus.cell([&run[..], &["--receipt", receipt, job]].concat());
        (ran.code, ran.stdout.clone() + &ran.stderr, module, bill)
    }

    /// Claims all that the liar ever can, and says what it got.
    fn loot(&self) -> u64 {
        let key = AccountId::parse(&self.consumer.key).unwrap();
        let ledger = LedgerAt { key, address: self.consumer.address.clone() };
        let claims: Vec<_> = self.claims.lock().unwrap().clone();
        for claim in claims {
            ask(&self.liar.key, &ledger, &json!({ "claim": claim }));
        }
        self.consumer.nucleus.cell(["ledger", "verify"]).expect(0);
        let loot = self.consumer.nucleus.balance(&self.liar.account().to_string());
        u64::try_from(loot).unwrap()
    }
}

/// An honest beginning.
fn open(mut lines: Lines, key: &SigningKey, ledger: &LedgerAt) -> Option<(Lines, Payee)> {
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
    let mut opened = lines.hear::<Value>()?;
    let open: Signed<Open> = serde_json::from_value(opened["open"]["open"].take()).unwrap();
    let funded: Signed<Funded> = serde_json::from_value(opened["open"]["funded"].take()).unwrap();
    let accepted = Payee::accept(quote, open, funded, payee_key(), tunnel::now_s());
    let (payee, accept) = accepted.unwrap();
    lines.say(json!({ "accepted": accept }));
    Some((lines, payee))
}

fn be_paid(
    mut lines: Lines,
    mut payee: Payee,
    (key, ledger): (&SigningKey, &LedgerAt),
    lie: &impl Lie,
    (claims, owed): (&Mutex<Vec<Claim>>, &Mutex<u64>),
) {
    while let Some(message) = lines.hear::<Value>() {
        if let Ok(voucher) = serde_json::from_value::<Signed<Voucher>>(message["voucher"].clone()) {
            payee.take(voucher, tunnel::now_s()).unwrap();
            lines.say(json!({ "credited": { "ceiling_nano": payee.ceiling().0 } }));
            lie.has_voucher(&mut lines, &mut payee);
        } else if message == json!("bill") {
            bill(&mut lines, &mut payee, *owed.lock().unwrap(), true);
        } else if let Ok(by_payer) = serde_json::from_value(message["close"].clone()) {
            let closed = payee.close(by_payer).unwrap();
            let question = json!({ "open": payee.record().open, "closed": closed });
            let answer = ask(key, ledger, &json!({ "close": question }));
            lines.say(json!({ "closed": answer["standing"] }));
        }
        claims.lock().unwrap().extend(payee.claim());
    }
}

/// Bills so much more.
fn bill(lines: &mut Lines, payee: &mut Payee, amount_nano: u64, is_last: bool) -> Signed<Receipt> {
    let transfer = TransferId::derive("liar", &[&payee.charge().0.to_le_bytes()]);
    let leaves = [Leaf { transfer, amount_nano, memo: "work".into() }];
    let receipt = payee.bill(&leaves, Reason::Slice).unwrap().clone();
    lines.say(json!({ "leaves": leaves }));
    lines.say(json!({ "bill": { "receipt": receipt, "is_last": is_last } }));
    receipt
}

/// Asks a ledger as this key's machine.
fn ask(key: &SigningKey, ledger: &LedgerAt, question: &Value) -> Value {
    let credentials = Credentials::new(key, tunnel::now_s()).unwrap();
    let timeout = Duration::from_secs(20);
    let socket = eventually("the ledger has a line", || {
        tunnel::dial(&ledger.address, &credentials, ledger.key, &Request::Escrow, timeout).ok()
    });
    let mut lines = Lines::new(socket);
    lines.say(question);
    lines.hear().unwrap()
}

/// A job's session.
fn run(mut socket: UnixStream, key: &SigningKey, lie: &impl Lie, owed: &Mutex<u64>) {
    let (_, spec) = receive(&mut socket).unwrap();
    let spec: Value = serde_json::from_slice(&spec).unwrap();
    let Some((mut receipt, output)) = lie.runs(&spec) else { return };
    receipt["node"] = json!(signed::node(key).to_string());
    receipt["payer"] = spec["channel"].clone();
    receipt["job"] = spec["id"].clone();
    receipt["output_hash"] = json!(cell_ledger::receipts::content_hash(&output).to_string());
    receipt.as_object_mut().unwrap().remove("signature");
    receipt["signature"] = json!(signed::sign("cell/job-receipt/v1", &receipt, key));
    *owed.lock().unwrap() =
        receipt["charge_nano_atp"].as_u64().unwrap() + receipt["compile_fuel"].as_u64().unwrap();
    let end = json!({ "exit": 0, "message": "done", "ran": true }).to_string();
    for (kind, content) in
        [(18, output), (20, receipt.to_string().into_bytes()), (21, end.into_bytes())]
    {
        send(&mut socket, kind, &content).unwrap();
    }
    // It hangs up when the other side has read that.
    let _ = receive(&mut socket);
}

/// What one slice may be, with what compiling the job costs.
fn slice(text: &str) -> u64 {
    SLICE_NANO + cell_host::price::compile(wat::compile(text).len() as u64)
}

/// It bills all that was agreed to, and does nothing.
struct BillsForNothing;

impl Lie for BillsForNothing {
    fn has_voucher(&self, lines: &mut Lines, payee: &mut Payee) {
        if payee.charge() == NanoAtp::ZERO {
            bill(lines, payee, payee.ceiling().0, false);
        }
    }
}

#[test]
fn a_bill_for_nothing_is_paid_up_to_what_was_agreed_to() {
    let cheated = Cheated::by(BillsForNothing);
    let (code, told, ..) = cheated.run(COUNT);
    assert!(code != Some(0) && told.contains("comes back"), "{told}");
    let (loot, slice) = (cheated.loot(), slice(COUNT));
    assert!(loot > 0 && loot <= slice, "{loot} {slice}");
    println!("a donor that bills for nothing gets {loot} nano-ATP: one slice is {slice}");
}

/// It signs two receipts under one number.
struct SignsTwice;

impl Lie for SignsTwice {
    fn has_voucher(&self, lines: &mut Lines, payee: &mut Payee) {
        let receipt = bill(lines, payee, 1_000, false);
        let other = Signed::new(Receipt { charge_nano: 2_000, ..receipt.body }, &payee_key());
        lines.say(json!({ "bill": { "receipt": other, "is_last": false } }));
    }
}

#[test]
fn two_receipts_under_one_number_are_proof() {
    let cheated = Cheated::by(SignsTwice);
    let (_, told, ..) = cheated.run(COUNT);
    assert!(told.contains("two receipts under one number"), "{told}");
    let entries = fs::read_dir(cheated.consumer.nucleus.path()).unwrap();
    let mut proofs = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("cheat-"));
    let proof: Equivocation =
        serde_json::from_slice(&fs::read(proofs.next().unwrap()).unwrap()).unwrap();
    assert_eq!(proof.check(), Ok(cheated.liar.account()));
    let loot = cheated.loot();
    assert!(loot <= slice(COUNT), "{loot}");
    println!("a donor that signs two receipts gets {loot} nano-ATP, and is proved to have");
}

/// It runs the job, and then says something else: more fuel, or another output.
struct Alters {
    honest: Value,
    fuel: u64,
    output: &'static [u8],
}

impl Alters {
    /// What an honest machine's receipt of the same job is.
    fn new(fuel: u64, output: &'static [u8]) -> Self {
        let (home, place) = (Home::new(), tempfile::tempdir_in("/tmp").unwrap());
        let (module, bill) = (place.path().join("job.wasm"), place.path().join("bill.json"));
        fs::write(&module, wat::compile(HELLO)).unwrap();
        let bill = bill.to_str().unwrap();
        home.cell(["run", "--budget", "50", "--receipt", bill, module.to_str().unwrap()]).expect(0);
        Self { honest: serde_json::from_slice(&fs::read(bill).unwrap()).unwrap(), fuel, output }
    }
}

impl Lie for Alters {
    fn runs(&self, _: &Value) -> Option<(Value, Vec<u8>)> {
        let mut receipt = self.honest.clone();
        receipt["fuel"] = json!(receipt["fuel"].as_u64().unwrap() + self.fuel);
        receipt["counters"]["fuel"] = receipt["fuel"].clone();
        let charge = receipt["charge_nano_atp"].as_u64().unwrap() + self.fuel;
        receipt["charge_nano_atp"] = json!(charge);
        Some((receipt, self.output.to_vec()))
    }
}

/// The payer cannot know at once; running it again proves it, by what the liar signed.
#[test]
fn more_fuel_or_another_result_is_caught_by_running_it_again() {
    #[track_caller]
    fn check(fuel: u64, output: &'static [u8], expect: &str) {
        let lie = Alters::new(fuel, output);
        let honest = lie.honest["charge_nano_atp"].as_u64().unwrap();
        let honest = honest + lie.honest["compile_fuel"].as_u64().unwrap();
        let cheated = Cheated::by(lie);
        let (code, told, module, bill) = cheated.run(HELLO);
        assert_eq!(code, Some(0), "{told}");
        let (module, bill) = (module.to_str().unwrap(), bill.to_str().unwrap());
        let checked = cheated.consumer.nucleus.cell(["verify", bill, "--module", module]);
        assert_eq!(checked.code == Some(0), expect.is_empty(), "{}", checked.stdout);
        assert!(checked.stdout.contains(expect), "{}", checked.stdout);
        let more = cheated.loot() - honest;
        assert_eq!(more, fuel);
        println!("{expect:?} told of a donor that got {more} nano-ATP too much, within one slice");
    }
    check(0, b"hello", "");
    check(5_000_000, b"hello", "fuel");
    check(0, b"hullo", "output");
}
