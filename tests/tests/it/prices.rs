//! The rate card: quoted before, charged to the unit, and refused cleanly where the hold ends.

use std::fs;
use std::path::PathBuf;

use cell_abi::{AccountId, NanoAtp};
use cell_ledger::receipts::{Leaf, Receipt};
use cell_ledger::{Ledger, Transfer, TransferId};
use cell_tests::{Home, Nucleus, Ran, eventually, sample, wat};
use ed25519_dalek::SigningKey;
use serde_json::{Value, json};
use tempfile::TempDir;

/// 0.001 ATP for a start, 1,000 nano-ATP for a byte.
const PRICES: &str = "[prices]\nstart = 0.001\negress_gib = 1073.741824\n";

fn priced(prices: &str) -> Home {
    let home = Home::new();
    fs::write(home.path().join("nucleus.toml"), prices).unwrap();
    home
}

/// A command that writes this many bytes, four KiB at a time, and then waits for an hour if it is to.
fn command(bytes: u32, waits: bool) -> String {
    let wait = if waits {
        "(i32.store (i32.const 16) (i32.const 1))
         (i64.store (i32.const 24) (i64.const 3600000000000))
         (drop (call $poll (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 200)))"
    } else {
        ""
    };
    format!(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (func (export "_start") (local $left i32)
                (local.set $left (i32.const {bytes}))
                (block $done (loop $more
                    (br_if $done (i32.eqz (local.get $left)))
                    (i32.store (i32.const 0) (i32.const 4096))
                    (i32.store (i32.const 4) (i32.const 4096))
                    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
                    (local.set $left (i32.sub (local.get $left) (i32.const 4096)))
                    (br $more)))
                {wait}))"#
    )
}

struct Job {
    home: Home,
    place: TempDir,
    wasm: PathBuf,
}

impl Job {
    fn new(prices: &str, text: &str) -> Self {
        let place = tempfile::Builder::new().prefix("ct-p-").tempdir_in("/tmp").unwrap();
        let wasm = place.path().join("job.wasm");
        fs::write(&wasm, wat::compile(text)).unwrap();
        Self { home: priced(prices), place, wasm }
    }

    /// Runs it within so many nano-ATP; what it printed, and its receipt.
    fn run(&self, budget: u64) -> (Ran, Value) {
        let receipt = self.place.path().join("receipt.json");
        let (wasm, to) = (self.wasm.to_str().unwrap(), receipt.to_str().unwrap());
        let fuel = budget.to_string();
        let before = self.home.spent();
        let ran = self.home.cell(["run", "--fuel", &fuel, "--receipt", to, wasm]);
        let receipt: Value = serde_json::from_slice(&fs::read(&receipt).unwrap()).unwrap();
        let paid = self.home.spent() - before;
        assert_eq!(receipt["charge_nano_atp"].as_i64(), Some(paid), "{receipt}");
        assert!(paid <= i64::try_from(budget).unwrap(), "{receipt}");
        (ran, receipt)
    }

    fn verify(&self) -> Ran {
        let receipt = self.place.path().join("receipt.json");
        let (receipt, wasm) = (receipt.to_str().unwrap(), self.wasm.to_str().unwrap());
        self.home.cell(["verify", receipt, "--module", wasm, "--json"])
    }
}

#[test]
fn prices_are_told_before() {
    let job = Job::new(PRICES, &command(4096, false));
    let wasm = job.wasm.to_str().unwrap();
    let quote = job.home.cell(["run", "--quote", wasm, "--json"]).expect(0).json();
    let card = json!({
        "fuel": { "nano_atp": 1, "per": 1 },
        "start": { "nano_atp": 1_000_000, "per": 1 },
        "egress": { "nano_atp": 1_073_741_824_000_u64, "per": 1 << 30 },
        "memory": { "nano_atp": 0, "per": 16_384_000_000_u64 },
        "storage": { "nano_atp": 0, "per": 3_865_470_566_400_u64 },
    });
    assert_eq!(quote["rates"], card);
    let inspected = job.home.cell(["inspect", wasm, "--json"]).expect(0).json();
    assert_eq!(inspected["rates"], card);
    let text = job.home.cell(["run", "--quote", wasm]).expect(0).stdout.clone();
    assert!(text.contains("egress   1,073.741824 ATP a GiB"), "{text}");
    assert!(!job.home.path().join("ledger.db").exists(), "a quote opens no account");
    // What nobody can pay for is not begun.
    let ran = job.home.cell(["run", "--fuel", "1000000", wasm]);
    assert!(ran.expect(122).stderr.contains("start"), "{}", ran.stderr);
    for wrong in ["[prices]\nstart = -1", "[prices]\nfuel = 2", "[prices]\nstart = \"1,5\""] {
        let ran = priced(wrong).cell(["run", wasm]);
        assert!(ran.expect(1).stderr.contains("nucleus.toml"), "{}", ran.stderr);
    }
}

#[test]
fn output_and_starts_of_jobs_are_paid() {
    let job = Job::new(PRICES, &command(40_960, false));
    let (ran, receipt) = job.run(10_000_000_000);
    assert_eq!(ran.expect(0).stdout.len(), 40_960);
    let fuel = receipt["fuel"].as_u64().unwrap();
    assert_eq!(receipt["counters"], json!({ "fuel": fuel, "start": 1, "egress": 40_960 }));
    let charge = receipt["charge_nano_atp"].as_u64().unwrap();
    assert_eq!(charge, fuel + 1_000_000 + 40_960_000);
    assert_eq!(job.verify().expect(0).json()["rerun"], 1);
    // A node that counts more than a run takes is told by running it again, and so is a sum that is no sum.
    let key = fs::read(job.home.path().join("identity")).unwrap();
    let key = SigningKey::from_bytes(&key.try_into().unwrap());
    let huge = json!({ "nano_atp": u64::MAX, "per": 1 });
    for (pointer, value, expect) in [
        ("/counters/start", json!(2), "starts: billed 2"),
        ("/counters/egress", json!(40_961), "egress: billed 40961"),
        ("/counters/memory", json!(1), "no price"),
        ("/rates/start", huge, "charge: billed"),
    ] {
        let mut forged = receipt.clone();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        forged.pointer_mut(parent).unwrap()[name] = value;
        forged.as_object_mut().unwrap().remove("signature");
        forged["signature"] =
            json!(cell_ledger::signed::sign("cell/job-receipt/v1", &forged, &key));
        fs::write(job.place.path().join("receipt.json"), forged.to_string()).unwrap();
        let told = job.verify();
        let text = format!("{}{}", told.expect(1).stdout, told.stderr);
        assert!(text.contains(expect), "{expect}: {text}");
    }
    // Exactly that is enough; less ends in the middle, and what was done until then is paid.
    job.run(charge).0.expect(0);
    let (short, receipt) = job.run(charge - 1);
    assert!(short.expect(122).stderr.contains("besides used up"), "{}", short.stderr);
    let egress = receipt["counters"]["egress"].as_u64().unwrap();
    assert!(egress + 4096 >= 40_960 && egress <= 40_960, "{receipt}");
    let found = job.verify().expect(0).json();
    assert!(found["not_checkable"].to_string().contains("charges"), "{found}");
    // A job that says it was charged for more than it counts is found out.
    let mut forged = receipt;
    forged["charge_nano_atp"] = json!(charge);
    fs::write(job.place.path().join("receipt.json"), forged.to_string()).unwrap();
    assert!(job.verify().expect(1).stdout.contains("changed"));
}

/// A job whose fuel ends after it took a little besides was billed as no re-run could find it.
#[test]
fn a_job_that_runs_out_of_fuel_after_some_output_is_not_accused() {
    let prints = command(4096, false);
    let spins =
        prints.trim_end().strip_suffix("))").unwrap().to_owned() + "(loop $ever (br $ever))))";
    let job = Job::new("[prices]\negress_gib = 1", &spins);
    job.run(50_000_000).0.expect(122);
    let found = job.verify().expect(0).json();
    assert!(found["not_checkable"].to_string().contains("charges"), "{found}");
}

#[test]
fn a_job_that_waits_ends_when_its_memory_is_not_paid() {
    // A page costs 61 nano-ATP a microsecond, so this waits for less than a second of its hour.
    let job = Job::new("[prices]\nmemory_gib_s = 1000", &command(0, true));
    let (ran, receipt) = job.run(50_000_000);
    assert!(ran.expect(122).stderr.contains("GiB·s of memory"), "{}", ran.stderr);
    let memory = receipt["counters"]["memory"].as_u64().unwrap();
    let cost = u128::from(memory) * 1_000_000_000_000 / 16_384_000_000;
    assert!(cost > 25_000_000 && receipt["wall_ms"].as_u64().unwrap() < 60_000, "{receipt}");
}

/// The ledger, the receipt and the caller agree to the unit on calls that take more than fuel.
#[test]
fn calls_are_paid_as_their_receipts_say() {
    let home = priced(PRICES);
    let nucleus = Nucleus::up(&home);
    let (wasm, manifest) = sample("counter");
    let fresh = format!("{manifest}\nisolation = \"call\"\n");
    nucleus.put("counter", &format!("{fresh}receipts = true\n"), &wasm);
    nucleus.put("plain", &fresh.replace("\"counter\"", "\"plain\""), &wasm);
    for cell in ["counter", "plain"] {
        nucleus.wait_for(cell, "live");
        for _ in 0..5 {
            let ran = nucleus.cell(["call", &format!("{cell}.add"), r#"{"by":1}"#]);
            ran.expect(0);
        }
    }
    let receipt = eventually("five calls have receipts", || {
        let listed = nucleus.cell(["ledger", "receipts", "-n", "0", "--json"]);
        let listed: Vec<Value> = serde_json::from_str(&listed.stdout).ok()?;
        listed.last().filter(|last| last["last_call"] == 5).cloned()
    });
    let count = |name: &str| receipt["counters"][name].as_u64().unwrap();
    let charge = count("fuel") + 5 * 1_000_000 + count("egress") * 1000;
    assert_eq!((count("start"), receipt["charge_nano_atp"].as_u64()), (5, Some(charge)));
    assert!(count("egress") > 0, "{receipt}");
    let charge = i64::try_from(charge).unwrap();
    for cell in ["cell:counter", "cell:plain"] {
        eventually(&format!("{cell} is paid"), || (nucleus.balance(cell) == charge).then_some(()));
    }
    assert_eq!(nucleus.spent(), 2 * charge);
    let digits = receipt["hash"].as_str().unwrap();
    assert_eq!(
        nucleus.cell(["verify", digits, "--json"]).expect(0).json()["not_checkable"],
        json!([])
    );
    // Whoever counts a byte or a start too many is told by running the call again.
    let place = tempfile::Builder::new().prefix("ct-p-").tempdir_in("/tmp").unwrap();
    let file = place.path().join("receipt.json");
    nucleus.cell(["ledger", "receipts", digits, "--export", file.to_str().unwrap()]).expect(0);
    let export: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let key = fs::read(nucleus.path().join("identity")).unwrap();
    let key = SigningKey::from_bytes(&key.try_into().unwrap());
    let honest: Receipt = serde_json::from_value(export["receipt"].clone()).unwrap();
    for dimension in ["egress", "start"] {
        let mut export = export.clone();
        let mut leaf: Leaf = serde_json::from_value(export["calls"][0]["leaf"].clone()).unwrap();
        leaf.call = 1;
        *leaf.billed.get_mut(dimension).unwrap() += 1;
        let forged = Receipt::issue(&honest.terms(), None, &[leaf.clone()], &key).unwrap();
        let call = json!({ "leaf": leaf, "path": [], "input": export["calls"][0]["input"], "tape": export["calls"][0]["tape"] });
        (export["receipt"], export["before"]) = (json!(forged), json!(null));
        export["calls"] = json!([call]);
        fs::write(&file, export.to_string()).unwrap();
        let told = nucleus.cell(["verify", file.to_str().unwrap()]);
        assert!(told.expect(1).stdout.contains(&format!("call 1: {dimension}")), "{}", told.stdout);
    }
}

/// A call whose limit ends in the middle of its reply costs no more than the limit, and the next is served.
#[test]
fn a_call_that_cannot_pay_for_its_reply_is_refused_cleanly() {
    let home = priced(PRICES);
    let nucleus = Nucleus::up(&home);
    nucleus.deploy_wat("echo", &wat::cell("", wat::ECHO), "");
    let call = |fuel: &str| {
        nucleus.cell(["call", "echo.run", "--raw", &"x".repeat(10_000), "--fuel", fuel])
    };
    call("9000000").expect(122);
    call("20000000").expect(0);
    eventually("both are paid", || (nucleus.balance("cell:echo") > 15_000_000).then_some(()));
    assert!(nucleus.balance("cell:echo") <= 29_000_000);
    nucleus.cell(["ledger", "verify"]).expect(0);
}

/// State is paid for as long as it is kept; an owner who cannot pay keeps it, and it does not grow.
#[test]
fn state_is_paid_for_or_does_not_grow() {
    let home = priced("[prices]\nstorage_gib_h = 1000000\n");
    home.cell(["ledger", "balance"]).expect(0);
    let imports = r#"(import "cell_v1" "kv_set" (func $set (param i32 i32 i32 i32) (result i32)))"#;
    // Keeps a MiB under the request, and answers whether that was refused.
    let handler = "(i32.store (i32.const 1024) (call $set (local.get $ptr) (local.get $len) (i32.const 0) (i32.const 1048576)))
        (i64.or (i64.shl (i64.const 4) (i64.const 32)) (i64.const 1024))";
    let text = wat::cell(imports, handler).replace("\"memory\") 4", "\"memory\") 20");
    let nucleus = Nucleus::up(&home);
    nucleus.deploy_wat("keeper", &text, "state_mb_max = 64");
    let keep = |key: &str| {
        let ran = nucleus.cell(["call", "keeper.run", "--raw", key, "--budget", "10"]);
        ran.expect(0).stdout.as_bytes().first().copied()
    };
    let node = || nucleus.balance("node");
    let compiled = node();
    for key in 0..8 {
        assert_eq!(keep(&key.to_string()), Some(0));
    }
    // Eight MiB cost two ATP a second.
    eventually("the node is paid for state", || (node() > compiled + 1_000_000_000).then_some(()));
    // Nearly all that the owner has goes elsewhere.
    let accounts = home.cell(["ledger", "balance", "--json"]).expect(0).json();
    let id = |name: &str| {
        let rows = accounts["accounts"].as_array().unwrap();
        let row = rows.iter().find(|row| row["name"] == name).unwrap();
        AccountId::parse(row["account"].as_str().unwrap()).unwrap()
    };
    let ledger = Ledger::open(&home.path().join("ledger.db"), id("issuer")).unwrap();
    let owner = ledger.balance(id("owner")).unwrap();
    let available = owner.posted_nano - i64::try_from(owner.held.0).unwrap() - 6_000_000_000;
    let transfer = Transfer {
        id: TransferId::derive("spend", &[]),
        debit: id("owner"),
        credit: id("cell:keeper"),
        amount: NanoAtp(u64::try_from(available).unwrap()),
        memo: String::new(),
    };
    ledger.transfer(transfer).unwrap();
    drop(ledger);
    eventually("the nucleus says that it is not paid", || {
        nucleus.log().contains("the owner cannot pay").then_some(())
    });
    // What comes in goes to what is owed, to the last unit, and nothing below zero.
    nucleus.cell(["ledger", "grant", "0.1"]).expect(0);
    eventually("what is owed takes what there is", || (home.balance("owner") == 0).then_some(()));
    nucleus.cell(["ledger", "grant", "1000"]).expect(0);
    eventually("what was owed is paid and state grows again", || {
        (keep("more") == Some(0)).then_some(())
    });
    nucleus.cell(["ledger", "verify"]).expect(0);
}
