//! Receipts of calls and jobs: what is honest verifies on a machine of its own, and what is not is named.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use cell_ledger::receipts::{FUEL, Leaf, Receipt};
use cell_tests::{Home, Nucleus, Ran, eventually, sample};
use ed25519_dalek::SigningKey;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Calls of the samples: cell, receptor, input, exit code.
const CALLS: &[(&str, &str, &str, i32)] = &[
    ("hello", "greet", r#"{"name":"Ada"}"#, 0),
    ("hello", "shout", r#"{"text":"hm","marks":3}"#, 0),
    ("hello", "greet", r#"{"nome":"Ada"}"#, 1),
    ("counter", "add", r#"{"by":3}"#, 0),
    ("counter", "add", r#"{"by":-1}"#, 0),
    ("counter", "get", "null", 0),
    ("crasher", "crash", r#"{"Not":"yet"}"#, 0),
    ("crasher", "crash", r#"{"Panic":"now"}"#, 123),
    ("crasher", "crash", r#""Unreachable""#, 123),
    ("crasher", "crash", r#""OutOfBounds""#, 123),
    ("crasher", "crash", r#""StackOverflow""#, 123),
    ("crasher", "crash", r#"{"Exit":3}"#, 123),
    ("frontend", "sum_up", r#"{"payloads":[[1,2],[3]]}"#, 0),
    ("worker", "worker", r#"{"id":1,"payload":[1,2,3]}"#, 0),
    ("runaway", "spin", "null", 122),
];

/// A nucleus whose samples keep receipts.
fn nucleus() -> Nucleus {
    let nucleus = Nucleus::new();
    for name in ["hello", "counter", "crasher", "frontend", "worker", "runaway", "hello-c"] {
        let (wasm, manifest) = sample(name);
        nucleus.put(name, &format!("{manifest}\nisolation = \"call\"\nreceipts = true\n"), &wasm);
        nucleus.wait_for(name, "live");
    }
    nucleus
}

fn call(home: &Home, cell: &str, receptor: &str, input: &str) -> Ran {
    home.cell(["call", &format!("{cell}.{receptor}"), input, "--fuel", "20000000"])
}

/// All receipts, when they cover so many calls of a cell.
fn receipts(home: &Home, cell: &str, calls: u64) -> Vec<Value> {
    eventually(&format!("{calls} calls of {cell} have receipts"), || {
        let listed = home.cell(["ledger", "receipts", "--cell", cell, "-n", "0", "--json"]);
        let listed: Vec<Value> = serde_json::from_str(&listed.stdout).ok()?;
        (listed.last()?["last_call"].as_u64()? >= calls).then_some(listed)
    })
}

/// Writes one receipt with its calls to a file.
fn exported(home: &Home, receipt: &Value, place: &TempDir) -> (PathBuf, Value) {
    let path = place.path().join("exported.json");
    let digits = receipt["hash"].as_str().unwrap();
    home.cell(["ledger", "receipts", digits, "--export", path.to_str().unwrap()]).expect(0);
    let value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    (path, value)
}

fn place() -> TempDir {
    tempfile::Builder::new().prefix("ct-r-").tempdir_in("/tmp").unwrap()
}

fn module(name: &str, place: &TempDir) -> PathBuf {
    let path = place.path().join(format!("{name}.wasm"));
    fs::write(&path, sample(name).0).unwrap();
    path
}

/// `cell verify` in a home that knows nothing of the one that wrote the receipt.
fn verify_elsewhere(elsewhere: &Home, file: &Path, module: &Path) -> (i32, Value) {
    let (file, module) = (file.to_str().unwrap(), module.to_str().unwrap());
    let ran = elsewhere.cell(["verify", file, "--module", module, "--json"]);
    (ran.code.unwrap(), ran.json())
}

/// Every call of every sample, however it ends, is in a receipt; each verifies, here and elsewhere; the
/// sums are what the ledger moved.
#[test]
fn honest_receipts_of_all_samples_verify() {
    let nucleus = nucleus();
    let mut counts = BTreeMap::<&str, u64>::new();
    for (cell, receptor, input, code) in CALLS {
        call(&nucleus, cell, receptor, input).expect(*code);
        *counts.entry(cell).or_default() += 1;
    }
    nucleus.cell(["call", "hello-c.greet", "--raw", "Ada", "--fuel", "20000000"]);
    // The two payloads of the frontend's batch.
    *counts.entry("worker").or_default() += 2;
    let (elsewhere, place) = (Home::new(), place());
    for (cell, calls) in &counts {
        let listed = receipts(&nucleus, cell, *calls);
        let last = listed.last().unwrap();
        assert_eq!(last["last_call"].as_u64(), Some(*calls), "{cell}");
        let earned = nucleus.balance(&format!("cell:{cell}"));
        assert_eq!(last["charge_nano_atp"].as_i64(), Some(earned), "{cell}");
        for receipt in &listed {
            let ran = nucleus.cell(["verify", &receipt["hash"].as_str().unwrap()[..12], "--json"]);
            let found = ran.expect(0).json();
            assert_eq!(found["not_checkable"], json!([]), "{cell}: {found}");
            let count = receipt["last_call"].as_u64().unwrap()
                - receipt["first_call"].as_u64().unwrap()
                + 1;
            assert_eq!(found["rerun"], count, "{cell}");
            let (path, _) = exported(&nucleus, receipt, &place);
            let (code, found) = verify_elsewhere(&elsewhere, &path, &module(cell, &place));
            assert_eq!((code, &found["rerun"]), (0, &json!(count)), "{cell}: {found}");
        }
    }
    let csv = nucleus.cell(["ledger", "receipts", "-n", "0", "--csv"]).expect(0).stdout.clone();
    assert!(csv.starts_with("hash,time_ms,cell,payer,") && csv.lines().count() > counts.len());
}

/// What a lying nucleus can do with an exported receipt: it changes a leaf, and signs anew.
struct Liar {
    key: SigningKey,
    export: Value,
}

impl Liar {
    fn write(&self, place: &TempDir, change: impl FnOnce(&mut Leaf)) -> PathBuf {
        let receipt: Receipt = serde_json::from_value(self.export["receipt"].clone()).unwrap();
        let leaf = self.export["calls"][0]["leaf"].clone();
        let mut leaf: Leaf = serde_json::from_value(leaf).unwrap();
        change(&mut leaf);
        let forged = Receipt::issue(&receipt.terms(), None, &[leaf.clone()], &self.key).unwrap();
        forged.check().unwrap();
        let mut export = self.export.clone();
        (export["receipt"], export["calls"][0]["leaf"]) = (json!(forged), json!(leaf));
        let path = place.path().join("forged.json");
        fs::write(&path, export.to_string()).unwrap();
        path
    }
}

#[test]
fn a_lying_nucleus_is_named() {
    let nucleus = nucleus();
    call(&nucleus, "counter", "add", r#"{"by":3}"#).expect(0);
    let receipt = receipts(&nucleus, "counter", 1).remove(0);
    let (elsewhere, place) = (Home::new(), place());
    let module = module("counter", &place);
    let (_, export) = exported(&nucleus, &receipt, &place);
    let key = fs::read(nucleus.path().join("identity")).unwrap();
    let liar = Liar { key: SigningKey::from_bytes(&key.try_into().unwrap()), export };
    let named = |file: &Path, expect: &str| {
        let (code, found) = verify_elsewhere(&elsewhere, file, &module);
        let text = found["differences"].to_string();
        assert!(code == 1 && text.contains(expect), "{expect}: {found}");
    };
    let honest = liar.write(&place, |_| {});
    assert_eq!(verify_elsewhere(&elsewhere, &honest, &module).0, 0);
    // One unit of fuel more.
    let inflated = liar.write(&place, |leaf| {
        leaf.fuel += 1;
        *leaf.billed.get_mut(FUEL).unwrap() += 1;
    });
    named(&inflated, "call 1: fuel: billed ");
    named(&liar.write(&place, |leaf| *leaf.billed.get_mut(FUEL).unwrap() += 1), "fuel of its own");
    // One byte of the answer.
    let other = cell_ledger::receipts::content_hash(b"another answer");
    named(&liar.write(&place, |leaf| leaf.output_hash = other), "call 1: output: billed ");
    named(&liar.write(&place, |leaf| leaf.status = 0x0c), "call 1: outcome: billed ");
    named(&liar.write(&place, |leaf| leaf.input_hash = other), "the request is not the one");
    named(&liar.write(&place, |leaf| leaf.tape_hash = other), "the tape is not the one");
    // One of two leaves is shown by its neighbour; without that nothing is claimed, and nobody accused.
    let terms: Receipt = serde_json::from_value(liar.export["receipt"].clone()).unwrap();
    let leaf: Leaf = serde_json::from_value(liar.export["calls"][0]["leaf"].clone()).unwrap();
    let second = Leaf { call: 2, ..leaf.clone() };
    let two = [leaf, second.clone()];
    let receipt = Receipt::issue(&terms.terms(), None, &two, &liar.key).unwrap();
    for (path, rerun) in [(json!([second.hash().to_string()]), 1), (json!([]), 0)] {
        let mut export = liar.export.clone();
        (export["receipt"], export["calls"][0]["path"]) = (json!(receipt), path);
        let file = place.path().join("one-of-two.json");
        fs::write(&file, export.to_string()).unwrap();
        let (code, found) = verify_elsewhere(&elsewhere, &file, &module);
        assert!(code == 0 && found["rerun"] == rerun, "{found}");
        assert!(rerun == 1 || found["not_checkable"].to_string().contains("its place"), "{found}");
    }
    // What somebody else changes is not signed.
    for pointer in ["/receipt/charge_nano_atp", "/calls/0/leaf/fuel", "/receipt/time_ms"] {
        let mut changed = liar.export.clone();
        let value = changed.pointer_mut(pointer).unwrap();
        *value = json!(value.as_u64().unwrap() + 1);
        let path = place.path().join("changed.json");
        fs::write(&path, changed.to_string()).unwrap();
        let (code, found) = verify_elsewhere(&elsewhere, &path, &module);
        assert!(code == 1 && found["rerun"] == 0, "{pointer}: {found}");
    }
    // Another module than the one that ran is no proof of anything.
    let (hello, honest) = (self::module("hello", &place), liar.write(&place, |_| {}));
    let ran =
        elsewhere.cell(["verify", honest.to_str().unwrap(), "--module", hello.to_str().unwrap()]);
    assert!(ran.expect(1).stderr.contains("is not the module that ran"), "{}", ran.stderr);
}

/// Receipts go on where they were, whatever the nucleus died of, and never say less than what was paid.
#[test]
fn a_chain_outlives_its_nucleus() {
    let nucleus = nucleus();
    call(&nucleus, "counter", "add", r#"{"by":1}"#).expect(0);
    receipts(&nucleus, "counter", 1);
    let home = Home::clone(&nucleus);
    drop(nucleus);
    let nucleus = Nucleus::up(&home);
    nucleus.wait_for("counter", "live");
    call(&nucleus, "counter", "add", r#"{"by":1}"#).expect(0);
    let listed = receipts(&nucleus, "counter", 2);
    let (first, second) = (&listed[0], &listed[1]);
    assert_eq!((&first["sequence"], &second["sequence"]), (&json!(1), &json!(2)));
    assert_eq!(second["previous"], first["hash"]);
    nucleus.cell(["verify", second["hash"].as_str().unwrap(), "--call", "2"]).expect(0);
    // Without the receipt before it the sums cannot be checked; that a leaf is its own still can.
    let (place, elsewhere) = (place(), Home::new());
    let (path, mut export) = exported(&nucleus, second, &place);
    export["before"] = json!(null);
    fs::write(&path, export.to_string()).unwrap();
    let (code, found) = verify_elsewhere(&elsewhere, &path, &module("counter", &place));
    assert!(code == 0 && found["rerun"] == 1 && found["not_checkable"] != json!([]), "{found}");
    let fuel = export.pointer_mut("/calls/0/leaf/fuel").unwrap();
    *fuel = json!(fuel.as_u64().unwrap() + 1);
    fs::write(&path, export.to_string()).unwrap();
    let (code, found) = verify_elsewhere(&elsewhere, &path, &module("counter", &place));
    let text = found["differences"].to_string();
    assert!(code == 1 && text.contains("not signed over this leaf"), "{found}");
    let no_such = nucleus.cell(["verify", second["hash"].as_str().unwrap(), "--call", "3"]);
    assert!(no_such.expect(1).stderr.contains("no such call"), "{}", no_such.stderr);
    eventually("it is paid", || {
        let earned = nucleus.balance("cell:counter");
        (second["charge_nano_atp"].as_i64() == Some(earned)).then_some(())
    });
}

/// A call that was stopped from outside is billed and says that it cannot be checked.
#[test]
fn what_cannot_be_checked_says_so() {
    let nucleus = Nucleus::new();
    let (wasm, _) = sample("runaway");
    let manifest =
        "[cell]\nname = \"runaway\"\ncall_ms_max = 50\nisolation = \"call\"\nreceipts = true\n";
    nucleus.put("runaway", manifest, &wasm);
    nucleus.wait_for("runaway", "live");
    nucleus.cell(["call", "runaway.spin", "null", "--budget", "500"]).expect(124);
    let receipt = receipts(&nucleus, "runaway", 1).remove(0);
    let found =
        nucleus.cell(["verify", receipt["hash"].as_str().unwrap(), "--json"]).expect(0).json();
    assert_eq!(found["not_checkable"], json!(["call 1: stopped"]));
    assert_eq!(found["rerun"], 0);
}

#[test]
fn receipts_need_a_fresh_instance_for_each_call() {
    let nucleus = Nucleus::new();
    let (wasm, manifest) = sample("hello");
    nucleus.put("hello", &format!("{manifest}\nreceipts = true\n"), &wasm);
    let row = nucleus.wait_for("hello", "failed");
    assert!(row.to_string().contains("needs isolation"), "{row}");
}

/// A job's receipt has what it takes to run the job again.
#[test]
fn a_jobs_receipt_verifies() {
    let (home, elsewhere, place) = (Home::new(), Home::new(), place());
    let module = module("mandelbrot", &place);
    let path = place.path().join("receipt.json");
    let (wasm, file) = (module.to_str().unwrap(), path.to_str().unwrap());
    home.cell(["run", wasm, "--receipt", file]).expect(0);
    let (code, found) = verify_elsewhere(&elsewhere, &path, &module);
    assert_eq!((code, &found["rerun"]), (0, &json!(1)), "{found}");
    let receipt: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (pointer, value) in
        [("/fuel", json!(1)), ("/output_hash", json!("0")), ("/node", json!(""))]
    {
        let mut changed = receipt.clone();
        *changed.pointer_mut(pointer).unwrap() = value;
        let path = place.path().join("changed.json");
        fs::write(&path, changed.to_string()).unwrap();
        let (code, found) = verify_elsewhere(&elsewhere, &path, &module);
        assert!(code == 1 && found["rerun"] == 0, "{pointer}: {found}");
    }
    for garbage in ["", "{}", "[1]", "\u{0}", r#"{"version":1,"outcome":{}}"#] {
        fs::write(&path, garbage).unwrap();
        elsewhere.cell(["verify", file]).expect(1);
    }
    elsewhere.cell(["verify", "beef"]).expect(1);
    elsewhere.cell(["verify", "nothing"]).expect(1);
}
