//! Jobs on another machine: its streams, its bill, and what happens when either side goes away.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use cell_abi::AccountId;
use cell_peer::{Credentials, Request, tunnel};
use cell_tests::process::Process;
use cell_tests::{Home, eventually, sample, wat};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::peers::{Donor, donor, identity, key};

/// Copies standard input to standard output, says `done` on standard error, and exits with 7.
pub(crate) const CAT: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 3)
    (data (i32.const 64) "done")
    (func (export "_start") (local $at i32) (local $left i32)
        (block $over (loop $more
            (i32.store (i32.const 0) (i32.const 1024))
            (i32.store (i32.const 4) (i32.const 65536))
            (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
            (br_if $over (i32.eqz (i32.load (i32.const 8))))
            (local.set $at (i32.const 1024))
            (local.set $left (i32.load (i32.const 8)))
            (loop $write_all
                (i32.store (i32.const 0) (local.get $at))
                (i32.store (i32.const 4) (local.get $left))
                (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 12)))
                (local.set $at (i32.add (local.get $at) (i32.load (i32.const 12))))
                (local.set $left (i32.sub (local.get $left) (i32.load (i32.const 12))))
                (br_if $write_all (local.get $left)))
            (br $more)))
        (i32.store (i32.const 0) (i32.const 64))
        (i32.store (i32.const 4) (i32.const 4))
        (drop (call $write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8)))
        (call $exit (i32.const 7))))"#;

pub(crate) const SPIN: &str = r#"(module (memory (export "memory") 1)
    (func (export "_start") (loop $again (br $again))))"#;

/// Waits for an hour.
const WAIT: &str = r#"(module
    (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (func (export "_start")
        (i32.store (i32.const 16) (i32.const 1))
        (i64.store (i32.const 24) (i64.const 3600000000000))
        (drop (call $poll (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 200)))))"#;

/// A machine that runs jobs, one that has some, and a place for files.
pub(crate) struct Two {
    pub(crate) donor: Donor,
    pub(crate) home: Home,
    pub(crate) account: String,
    pub(crate) place: TempDir,
}

pub(crate) fn two(settings: &str) -> Two {
    let (donor, home) = (donor(&format!("jobs = true\n{settings}")), Home::new());
    let account = donor.admit(&home, "50");
    home.cell(["peer", "add", &donor.key, "--name", "den", "--at", &donor.address]).expect(0);
    let place = tempfile::Builder::new().prefix("ct-j-").tempdir_in("/tmp").unwrap();
    Two { donor, home, account, place }
}

impl Two {
    pub(crate) fn module(&self, name: &str, text: &str) -> PathBuf {
        let path = self.place.path().join(format!("{name}.wasm"));
        fs::write(&path, wat::compile(text)).unwrap();
        path
    }

    /// Waits until nothing is held any more, and says what was spent.
    pub(crate) fn spent(&self) -> i64 {
        eventually("nothing is held", || {
            let answer = self.donor.nucleus.cell(["ledger", "balance", &self.account, "--json"]);
            let row = answer.json()["accounts"][0].clone();
            (row["held_nano_atp"] == 0)
                .then(|| 50_000_000_000 - row["posted_nano_atp"].as_i64().unwrap())
        })
    }

    pub(crate) fn jobs(&self) -> Vec<Process> {
        let children = self.donor.nucleus.process().children();
        let is_job = |child: &Process| child.arguments().get(1).is_some_and(|w| w == "peer-job");
        children.into_iter().filter(is_job).collect()
    }
}

/// What the donor was paid, what the receipt says, and what running it again costs are one number.
#[test]
fn a_job_runs_elsewhere_and_is_paid() {
    let two = two("");
    let cat = two.module("cat", CAT);
    let bill = two.place.path().join("bill.json");
    let (cat, bill) = (cat.to_str().unwrap(), bill.to_str().unwrap());
    let input = "0123456789abcdef".repeat(50_000);
    let owner = two.donor.nucleus.balance("owner");
    let run = ["run", "--on", "den", "--receipt", bill, "--budget", "5", cat, "a", "b"];
    let ran = two.home.cell_with_input(run, input.as_bytes());
    assert_eq!(ran.code, Some(7), "{}", ran.stderr);
    assert!(ran.stdout == input);
    assert!(
        ran.stderr.starts_with("done") && ran.stderr.contains("exited with 7"),
        "{}",
        ran.stderr
    );
    let receipt: Value = serde_json::from_slice(&fs::read(bill).unwrap()).unwrap();
    assert_eq!((&receipt["payer"], &receipt["node"]), (&json!(two.account), &json!(two.donor.key)));
    let compiled = receipt["compile_fuel"].as_i64().unwrap();
    assert!(compiled > 0);
    let charge = receipt["charge_nano_atp"].as_i64().unwrap();
    assert_eq!(two.spent(), compiled + charge);
    assert_eq!(two.donor.nucleus.balance("owner"), owner, "the donor's owner pays nothing");
    let hash = receipt["output_hash"].as_str().unwrap();
    assert_eq!(hash, cell_ledger::receipts::content_hash(input.as_bytes()).to_string());
    // The receipt is checked where the job came from, which has a ledger of its own for that.
    let found = two.home.cell(["verify", bill, "--module", cat, "--json"]).expect(0).json();
    assert_eq!((&found["rerun"], &found["not_checkable"]), (&json!(1), &json!([])));
    // Once more: the module is there already, sent by nobody and compiled.
    let again = two.home.cell_with_input(["run", "--on", "den", "--json", cat], b"");
    assert_eq!((again.code, again.stdout.as_str()), (Some(7), ""));
    let kept = fs::read_dir(two.donor.nucleus.path().join("modules")).unwrap().count();
    assert_eq!(kept, 1);
    let line = again.stderr.lines().find_map(|line| line.strip_prefix("done")).unwrap_or_default();
    let receipt: Value = serde_json::from_str(line).unwrap();
    assert_eq!(
        (&receipt["compile_fuel"], &receipt["counters"]["start"]),
        (&json!(0), &json!(null))
    );
    two.donor.nucleus.cell(["ledger", "verify"]).expect(0);
}

#[test]
fn what_is_not_run_costs_nothing() {
    let two = two("job_memory_mb_max = 16\n");
    let cat = two.module("cat", CAT);
    let cat = cat.to_str().unwrap();
    let told = |arguments: &[&str], code: i32, expect: &str| {
        let all = [&["run", "--on"], arguments].concat();
        let ran = two.home.cell_with_input(&all, b"");
        assert!(ran.expect(code).stderr.contains(expect), "{expect}: {}", ran.stderr);
    };
    told(&["den", cat], 126, "1 to 16 MiB");
    told(&["nobody", cat], 2, "no peer is called");
    told(&["den", "--dir", "/tmp::/t", cat], 2, "cannot be used with");
    let bytes = two.place.path().join("bytes.wasm");
    fs::write(&bytes, b"\0asm\x01\0\0\0nonsense").unwrap();
    told(&["den", "--memory", "8", bytes.to_str().unwrap()], 126, "the other machine: refused");
    let counter = two.place.path().join("counter.wasm");
    fs::write(&counter, sample("counter").0).unwrap();
    assert_eq!(two.spent(), 0);
    // Compiling is paid, whatever becomes of the job.
    told(&["den", "--memory", "8", counter.to_str().unwrap()], 126, "this is a cell");
    let compiled = two.spent();
    told(
        &["den", "--memory", "8", "--budget", "1000", cat],
        122,
        "the other machine: the account has",
    );
    told(&["den", "--memory", "8", "--fuel", "1", cat], 122, "does not cover");
    let (_, rest) = (compiled, two.spent());
    assert!(rest < 5_000_000_000, "{rest}");
    // Another machine that was never asked for this.
    let closed = donor("");
    closed.admit(&two.home, "1");
    let at = format!("{}@{}", closed.key, closed.address);
    told(&[&at, cat], 1, "runs no jobs of others");
    two.donor.nucleus.cell(["ledger", "verify"]).expect(0);
}

/// Whoever goes away in the middle: the job ends, what it did is paid, and nothing stays held.
#[test]
fn either_side_may_go_away() {
    let two = two("");
    let spin = two.module("spin", SPIN);
    let spin = spin.to_str().unwrap();
    let slow = two.home.cell(["run", "--on", "den", "--timeout", "0.2", spin]);
    slow.expect(124);
    let before = two.spent();
    assert!(before > 0);
    let wait = two.module("wait", WAIT);
    let wait = wait.to_str().unwrap();
    // More input than the way there can hold, for a job that reads nothing of it.
    let input = two.place.path().join("input");
    fs::write(&input, vec![b'x'; 20 << 20]).unwrap();
    let start = || {
        let mut command = two.home.command(["run", "--on", "den", "--budget", "20", wait]);
        command.stdin(fs::File::open(&input).unwrap()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        eventually("the job's budget is set aside", || {
            let ran = two.donor.nucleus.cell(["ledger", "balance", &two.account, "--json"]);
            (ran.json()["accounts"][0]["held_nano_atp"] == 20_000_000_000_u64).then_some(())
        });
        child
    };
    let mut consumer = start();
    consumer.kill().unwrap();
    consumer.wait().unwrap();
    eventually("the job has ended", || two.jobs().is_empty().then_some(()));
    let paid = two.spent();
    assert!(paid > before && paid < 50_000_000_000, "{before} {paid}");
    // The other way round: a nucleus that goes down ends its jobs, and they are paid.
    let mut consumer = start();
    two.donor.nucleus.cell(["down"]).expect(0);
    let mut said = String::new();
    consumer.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let code = consumer.wait().unwrap().code();
    assert!(matches!(code, Some(130 | 125)), "{code:?}: {said}");
    let last = two.spent();
    assert!(last > paid, "{paid} {last}");
    two.donor.nucleus.cell(["ledger", "verify"]).expect(0);
}

/// What is no job ends, and costs nobody anything; a few at once are enough.
#[test]
fn nonsense_is_no_job() {
    let two = two("");
    let dial = || {
        let credentials = Credentials::new(&identity(&two.home), tunnel::now_s()).unwrap();
        let wanted = AccountId::parse(&two.donor.key).unwrap();
        let timeout = Duration::from_secs(20);
        tunnel::dial(&two.donor.address, &credentials, wanted, &Request::Job, timeout)
    };
    let random = [0x5a; 3000];
    for nonsense in
        [&b"\x01\x02\0\0\0{}"[..], b"\x03\0\0\0\0", b"\xff\xff\xff\xff\xff\xff", &random]
    {
        let mut socket = dial().unwrap();
        socket.write_all(nonsense).unwrap();
        let mut said = Vec::new();
        socket.read_to_end(&mut said).unwrap();
        assert!(String::from_utf8_lossy(&said).contains("no job came"), "{said:?}");
    }
    // A module that is not the announced one.
    let mut socket = dial().unwrap();
    let spec = json!({ "module": "ab".repeat(32), "module_bytes": 4, "arguments": ["x"], "environment": [],
        "memory_mb_max": 1, "budget_nano_atp": 1, "is_budget_given": true, "timeout_ms": null, "recorded": false });
    let spec = spec.to_string();
    let length = u32::try_from(spec.len()).unwrap().to_le_bytes();
    socket
        .write_all(&[&[1], &length[..], spec.as_bytes(), b"\x02\x04\0\0\0asmx"].concat())
        .unwrap();
    let mut said = Vec::new();
    socket.read_to_end(&mut said).unwrap();
    assert!(String::from_utf8_lossy(&said).contains("not the one"), "{said:?}");
    eventually("no job is left", || two.jobs().is_empty().then_some(()));
    let silent: Vec<_> = (0..2).map(|_| dial().unwrap()).collect();
    let refused = dial().unwrap_err();
    assert!(refused.to_string().contains("too many jobs"), "{refused}");
    drop(silent);
    eventually("no job is left", || two.jobs().is_empty().then_some(()));
    assert_eq!(two.spent(), 0);
    assert_eq!(key(&two.home), two.account);
}
