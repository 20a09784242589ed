//! Two machines whose owners never met, and a ledger that both accept: each row of the table of failures,
//! over real sockets, and what a cheat gets.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use cell_abi::AccountId;
use cell_peer::{Credentials, Request, tunnel};
use cell_tests::process::Process;
use cell_tests::{Home, Nucleus, eventually, wat};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::peers::{Namespaces, identity, key};
use liar::Lines;

mod by_hand;
mod calls;
mod cheats;
mod liar;

/// Burns about half an ATP, and exits.
const COUNT: &str = r#"(module (memory (export "memory") 1)
    (func (export "_start") (local i64) (loop $again
        (local.set 0 (i64.add (local.get 0) (i64.const 1)))
        (br_if $again (i64.lt_u (local.get 0) (i64.const 150000000))))))"#;

const SPIN: &str = r#"(module (memory (export "memory") 1)
    (func (export "_start") (loop $again (br $again))))"#;

/// A machine that listens, and the settings of its `[peers]`.
struct Machine {
    nucleus: Nucleus,
    key: String,
    address: String,
}

fn machine(settings: &str) -> Machine {
    let home = Home::new();
    // One that stays when the nucleus starts again.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = format!("[peers]\nlisten = \"127.0.0.1:{port}\"\n{settings}");
    fs::write(home.path().join("nucleus.toml"), text).unwrap();
    let nucleus = Nucleus::up(&home);
    let listed = home.cell(["peer", "list", "--json"]).expect(0).json();
    let address = listed["listens"].as_str().unwrap().to_owned();
    Machine { nucleus, key: key(&home), address }
}

/// Who has work, and a ledger; who works for anybody that pays there; and a place for files.
struct Strangers {
    consumer: Machine,
    donor: Machine,
    place: TempDir,
}

impl Strangers {
    fn new(claim_s: u64) -> Self {
        let consumer = machine("escrow = true");
        let ledger = format!("{}@{}", consumer.key, consumer.address);
        let donor = machine(&format!(
            "jobs = true\ntrust = \"anyone-who-pays\"\nclaim_s = {claim_s}\nledgers = [\"{ledger}\"]"
        ));
        let add = ["peer", "add", &donor.key, "--name", "den", "--at", &donor.address];
        consumer.nucleus.cell(add).expect(0);
        let place = tempfile::Builder::new().prefix("ct-c-").tempdir_in("/tmp").unwrap();
        Self { consumer, donor, place }
    }

    fn module(&self, name: &str, text: &str) -> String {
        let path = self.file(&format!("{name}.wasm"));
        fs::write(&path, wat::compile(text)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// A job that goes on for ever, once the donor has been paid for a part of it.
    fn spinning(&self) -> Running {
        let spin = self.module("spin", SPIN);
        let run = ["run", "--on", "den", "--pay-by", "here", "--slice", "0.05", &spin];
        let mut command = self.consumer.nucleus.command(run);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        eventually("three slices are paid", || (self.earned() > 150_000_000).then_some(()));
        Running(child)
    }

    /// What the donor's own books say it earned.
    fn earned(&self) -> i64 {
        self.donor.nucleus.balance("node")
    }

    /// What it got on the ledger.
    fn paid(&self) -> i64 {
        self.consumer.nucleus.balance(&self.donor.key)
    }

    /// What is set aside there.
    fn held(&self) -> i64 {
        let answer = self.consumer.nucleus.cell(["ledger", "balance", "owner", "--json"]).json();
        answer["accounts"][0]["held_nano_atp"].as_i64().unwrap()
    }

    fn channels(&self, home: &Home) -> Vec<Value> {
        let listed = home.cell(["channel", "list", "--json"]).expect(0).json();
        listed["channels"].as_array().unwrap().clone()
    }

    /// Both ledgers add up, and say the same.
    #[track_caller]
    fn agree(&self) {
        let paid = eventually("both ledgers say the same", || {
            let (earned, paid) = (self.earned(), self.paid());
            (earned == paid).then_some(paid)
        });
        for machine in [&self.consumer, &self.donor] {
            machine.nucleus.cell(["ledger", "verify"]).expect(0);
        }
        println!("both ledgers: {paid} nano-ATP");
    }
}

/// A command that runs.
struct Running(Child);

impl Running {
    fn end(mut self) -> (Option<i32>, String) {
        let code = self.0.wait().unwrap().code();
        let mut told = String::new();
        std::io::Read::read_to_string(&mut self.0.stderr.take().unwrap(), &mut told).unwrap();
        (code, told)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended, as a rule.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Slice after slice is agreed to while the job runs; the receipt, the bill and both ledgers are one number.
#[test]
fn a_stranger_is_paid_slice_by_slice() {
    let two = Strangers::new(3600);
    let (count, bill) = (two.module("count", COUNT), two.file("bill.json"));
    let bill = bill.to_str().unwrap();
    let run =
        ["run", "--on", "den", "--pay-by", "here", "--slice", "0.05", "--receipt", bill, &count];
    let ran = two.consumer.nucleus.cell(run);
    assert!(ran.expect(0).stderr.contains("the rest is back"), "{}", ran.stderr);
    let receipt: Value = serde_json::from_slice(&fs::read(bill).unwrap()).unwrap();
    let part = |field: &str| receipt[field].as_i64().unwrap();
    let cost = part("charge_nano_atp") + part("compile_fuel");
    assert_eq!((two.earned(), two.paid(), two.held()), (cost, cost, 0));
    two.agree();
    let spent = cell_tests::FIRST_GRANT - two.consumer.nucleus.balance("owner");
    assert_eq!(spent, cost, "the consumer paid nothing else");
    let [ours] = two.channels(&two.consumer.nucleus).try_into().unwrap();
    let [theirs] = two.channels(&two.donor.nucleus).try_into().unwrap();
    assert_eq!((&ours["channel"], &ours["pays"]), (&theirs["channel"], &json!(true)));
    assert_eq!(ours["charge_nano_atp"], cost);
    let ceiling = ours["ceiling_nano_atp"].as_i64().unwrap();
    let slice = 50_000_000 + part("compile_fuel");
    assert!(ceiling >= cost && ceiling - cost <= slice, "{ceiling} {cost} {slice}");
    assert!(ceiling > slice, "one slice was enough, which shows nothing");
    // What was lent to the channel went back, but for what was earned.
    let channel = ours["channel"].as_str().unwrap();
    assert_eq!(two.donor.nucleus.balance(channel), 0);
    let found = two.consumer.nucleus.cell(["verify", bill, "--module", &count, "--json"]);
    assert_eq!(found.expect(0).json()["not_checkable"], json!([]));
    // A second one: nothing is compiled, and it is a channel of its own.
    two.consumer.nucleus.cell(["run", "--on", "den", "--pay-by", "here", &count]).expect(0);
    two.agree();
    assert_eq!(two.channels(&two.donor.nucleus).len(), 2);
}

/// With addresses of their own, as in life.
#[test]
fn two_machines_trade_over_a_network() {
    let Some(network) = Namespaces::new() else { return };
    let (donor, consumer) = (Home::new(), Home::new());
    let settings = "[peers]\nlisten = \"10.77.0.2:7316\"\nescrow = true\n";
    fs::write(consumer.path().join("nucleus.toml"), settings).unwrap();
    let settings = format!(
        "[peers]\nlisten = \"10.77.0.1:7316\"\njobs = true\ntrust = \"anyone-who-pays\"\nledgers = [\"{}@10.77.0.2:7316\"]\n",
        key(&consumer)
    );
    fs::write(donor.path().join("nucleus.toml"), settings).unwrap();
    for (place, home) in [(0, &donor), (1, &consumer)] {
        let up = network.cell(place, home, &["up"]);
        assert!(up.status.success(), "{up:?}");
    }
    let _down = [crate::peers::Down(&donor), crate::peers::Down(&consumer)];
    let place = tempfile::Builder::new().prefix("ct-n-").tempdir_in("/tmp").unwrap();
    let (module, bill) = (place.path().join("count.wasm"), place.path().join("bill.json"));
    let (module, bill) = (module.to_str().unwrap(), bill.to_str().unwrap());
    fs::write(module, wat::compile(COUNT)).unwrap();
    let on = format!("{}@10.77.0.1:7316", key(&donor));
    let run = ["run", "--on", &on, "--pay-by", "here", "--slice", "0.1", "--receipt", bill, module];
    let ran = network.cell(1, &consumer, &run);
    assert!(ran.status.success(), "{ran:?}");
    let receipt: Value = serde_json::from_slice(&fs::read(bill).unwrap()).unwrap();
    let part = |field: &str| receipt[field].as_i64().unwrap();
    let cost = part("charge_nano_atp") + part("compile_fuel");
    assert_eq!((donor.balance("node"), consumer.balance(&key(&donor))), (cost, cost));
    consumer.cell(["verify", bill, "--module", module]).expect(0);
    println!("two namespaces: both ledgers say {cost} nano-ATP, and the receipt verifies");
}

/// The payer is killed: the donor stops, claims with what it has, and needs nobody for it. The payer, back
/// without a trace of the channel, learns of it from the donor, and gets the rest.
#[test]
fn a_payer_vanishes_and_has_lost_everything() {
    let two = Strangers::new(3600);
    let running = two.spinning();
    Process::of(running.0.id()).unwrap().kill();
    drop(running);
    let stands = eventually("the donor has claimed", || {
        let [channel] = two.channels(&two.donor.nucleus).try_into().unwrap();
        (!channel["standing"].is_null() && two.paid() == two.earned()).then_some(channel)
    });
    let (paid, ceiling) = (two.paid(), stands["ceiling_nano_atp"].as_i64().unwrap());
    assert!(paid > 150_000_000 && paid <= ceiling, "{paid} {ceiling}");
    println!("a payer that vanishes: {paid} nano-ATP claimed, of {ceiling} agreed to");
    let deposit = stands["deposit_nano_atp"].as_i64().unwrap();
    assert_eq!(two.held(), deposit - paid, "the rest is still set aside");
    fs::remove_dir_all(two.consumer.nucleus.path().join("channels")).unwrap();
    let home = &two.consumer.nucleus;
    let found = home.cell(["channel", "recover", "den", "--json"]).expect(0).json();
    assert_eq!(found["recovered"], json!([stands["channel"]]));
    home.cell(["channel", "close", stands["channel"].as_str().unwrap()]).expect(0);
    assert_eq!((two.held(), two.paid()), (0, paid));
    assert_eq!(home.cell(["channel", "recover", "den"]).expect(0).stdout, "nothing was lost\n");
    two.agree();
}

/// The donor is killed in the middle of a slice: the payer asks for the rest, and the donor, back in time,
/// claims what it had done.
#[test]
fn a_donor_vanishes_and_comes_back() {
    let two = Strangers::new(30);
    let running = two.spinning();
    let Strangers { consumer, donor, place } = two;
    let home = donor.nucleus.kill();
    let (code, told) = running.end();
    assert!(code != Some(0) && told.contains("the rest of the deposit comes back"), "{told}");
    let nucleus = Nucleus::up(&home);
    let two = Strangers { consumer, donor: Machine { nucleus, ..donor }, place };
    eventually("the donor claims what it did", || (two.paid() > 0).then_some(()));
    two.agree();
    let [channel] = two.channels(&two.consumer.nucleus).try_into().unwrap();
    let (ceiling, deposit) = (&channel["ceiling_nano_atp"], &channel["deposit_nano_atp"]);
    assert!(two.paid() <= ceiling.as_i64().unwrap());
    assert_eq!(two.held(), deposit.as_i64().unwrap() - two.paid());
}

/// The donor has lost its record of the channel: it forfeits what it did not claim, and the payer has the
/// rest back after the time for claims.
#[test]
fn a_donor_that_lost_its_vouchers_forfeits() {
    let two = Strangers::new(3);
    let running = two.spinning();
    let Strangers { consumer, donor, place } = two;
    let home = donor.nucleus.kill();
    fs::remove_dir_all(home.path().join("channels")).unwrap();
    drop(running.end());
    let nucleus = Nucleus::up(&home);
    let two = Strangers { consumer, donor: Machine { nucleus, ..donor }, place };
    let [channel] = two.channels(&two.consumer.nucleus).try_into().unwrap();
    let id = channel["channel"].as_str().unwrap();
    let told = two.consumer.nucleus.cell(["channel", "close", id]);
    assert!(told.expect(126).stderr.contains("does not know that channel"), "{}", told.stderr);
    two.consumer.nucleus.cell(["channel", "close", id, "--force"]).expect(0);
    eventually("the time for claims is over, and the rest is back", || {
        two.consumer.nucleus.cell(["channel", "close", id, "--force"]);
        (two.held() == 0).then_some(())
    });
    assert_eq!(two.paid(), 0, "nothing was claimed in time");
    two.consumer.nucleus.cell(["ledger", "verify"]).expect(0);
}

/// The donor's owner wants the machine back: what was done until then is paid, at once.
#[test]
fn a_machine_goes_down_and_its_work_is_paid() {
    let two = Strangers::new(3600);
    let running = two.spinning();
    let Strangers { consumer, donor, place } = two;
    let home = donor.nucleus.down();
    let (code, told) = running.end();
    assert_eq!(code, Some(130), "{told}");
    let nucleus = Nucleus::up(&home);
    let two = Strangers { consumer, donor: Machine { nucleus, ..donor }, place };
    assert!(two.paid() > 150_000_000);
    two.agree();
    assert_eq!(two.held(), 0, "the rest is back");
}

/// Who has no channel, no money and no name is told what is missing.
#[test]
fn what_is_missing_is_told() {
    let two = Strangers::new(3600);
    let (home, count) = (&two.consumer.nucleus, two.module("count", COUNT));
    #[track_caller]
    fn check(home: &Home, arguments: &[&str], code: i32, expect: &str) {
        let ran = home.cell(arguments);
        assert!(ran.expect(code).stderr.contains(expect), "{}", ran.stderr);
    }
    let run = ["run", "--on", "den", "--pay-by"];
    check(home, &["run", "--on", "den", &count], 1, "has nothing to spend");
    check(home, &[&run[..], &["nobody", &count]].concat(), 1, "write KEY@HOST:PORT");
    check(home, &[&run[..], &["den", &count]].concat(), 2, "it takes");
    check(home, &[&run[..], &["here", "--budget", "5000", &count]].concat(), 126, "available");
    check(home, &["run", "--pay-by", "here", &count], 2, "--on");
    check(home, &["channel", "close", "12"], 1, "cell channel list");
    check(&two.donor.nucleus, &["channel", "recover", "den"], 1, "no peer is called");
    assert_eq!((two.held(), two.paid()), (0, 0));
    let poor = Home::new();
    let on = format!("{}@{}", two.donor.key, two.donor.address);
    poor.cell(["run", "--on", &on, "--pay-by", "here", &count]).expect(2);
}
