//! Cells that call cells of other machines: both ledgers agree, load is spread, and who fails is skipped.

use std::fs;
use std::time::{Duration, Instant};

use cell_abi::Status;
use cell_client::{CallOptions, Client, Error, Fuel, RawSlot};
use cell_tests::{Home, Nucleus, eventually, sample, wat};
use rustix::process::Signal;

use crate::peers::{Donor, donor, key};

/// What a call of these tests may burn.
const LIMIT: Fuel = Fuel(50_000_000);

/// A machine that runs `far`, and lets `home` call it.
fn machine(home: &Home, handler: &str) -> Donor {
    let donor = donor("");
    donor.nucleus.deploy_wat("far", &wat::cell("", handler), "peers = true");
    donor.admit(home, "5");
    donor
}

/// A nucleus with `near`, which calls `far` at these machines and answers with what that brought.
fn caller(home: &Home, machines: &[String]) -> Nucleus {
    let nucleus = Nucleus::up(home);
    elsewhere(home, "far", machines);
    nucleus.deploy_wat("near", &wat::caller("far"), "");
    nucleus.wait_for("far", "away");
    nucleus
}

/// Says in `cells/` that these machines run a cell.
fn elsewhere(home: &Home, name: &str, machines: &[String]) {
    fs::create_dir_all(home.cell_directory(name)).unwrap();
    let manifest = wat::manifest(name, &format!("at = {machines:?}"));
    fs::write(home.cell_directory(name).join("Cell.toml"), manifest).unwrap();
}

fn at(donor: &Donor) -> String {
    format!("{}@{}", donor.key, donor.address)
}

/// Calls `near`: how its call of `far` ended, with what text, and what all of it cost.
fn call(
    client: &mut Client,
    slot: &RawSlot,
    timeout: Duration,
) -> Result<(Status, String, u64), Error> {
    let options = CallOptions { fuel: LIMIT, timeout };
    let reply = client.call_raw(slot, b"hi", options)?;
    let (code, text) = reply.bytes().split_first_chunk::<4>().unwrap();
    let status = Status::from_code(u32::from_le_bytes(*code)).unwrap();
    Ok((status, String::from_utf8_lossy(text).into_owned(), reply.fuel().0))
}

fn open(nucleus: &Nucleus) -> (Client, RawSlot) {
    let mut client = nucleus.client("near");
    let slot = client.open_raw("run").unwrap();
    (client, slot)
}

const PATIENCE: Duration = Duration::from_secs(60);

/// A cell calls one of another machine by its name, as it would one beside it: its caller pays here what
/// that machine asks of this one, to the unit, and the receipt of the call verifies here alone.
#[test]
fn a_cell_calls_a_cell_of_another_machine() {
    let (donor, home) = (donor(""), Home::new());
    let (wasm, manifest) = sample("worker");
    donor.nucleus.put("worker", &format!("{manifest}\npeers = true\n"), &wasm);
    donor.nucleus.wait_for("worker", "live");
    let key = donor.admit(&home, "5");
    home.cell(["peer", "add", &donor.key, "--name", "den", "--at", &donor.address]).expect(0);
    let nucleus = Nucleus::up(&home);
    home.cell(["deploy", "worker", "--at", "den"]).expect(0);
    nucleus.wait_for("worker", "away");
    let (wasm, manifest) = sample("frontend");
    let recorded = "isolation = \"call\"\nreceipts = true\n";
    nucleus.put("frontend", &format!("{manifest}\n{recorded}"), &wasm);
    nucleus.wait_for("frontend", "live");
    let request = r#"{"payloads":[[],[97],[102,111,111,98,97,114]]}"#;
    let called = home.cell(["call", "frontend.sum_up", request, "--json"]).expect(0).json();
    assert_eq!(called["reply"]["count"], 3, "{called}");
    let fuel = called["fuel"].as_i64().unwrap();
    eventually("the caller has paid", || (nucleus.spent() == fuel).then_some(()));
    let there = eventually("the machine was paid", || {
        let paid = donor.nucleus.balance("cell:worker");
        (paid > 0 && paid == nucleus.balance("cell:worker")).then_some(paid)
    });
    assert_eq!(donor.nucleus.balance(&key), 5_000_000_000 - there);
    assert_eq!(nucleus.balance("cell:frontend"), fuel - there);
    println!("both ledgers say {there} nano-ATP, and the caller paid {fuel} in all");
    eventually("`cell ps` counts them", || {
        let stats = &nucleus.row("worker")?["stats"];
        let counts = stats["calls"] == 3 && stats["timed"] == 3 && stats["failed"] == 0;
        (counts && stats["p50_us"].as_u64()? > 0).then_some(())
    });
    for nucleus in [&nucleus, &donor.nucleus] {
        nucleus.cell(["ledger", "verify"]).expect(0);
    }
    // What the other machine said is on the tape.
    donor.nucleus.kill();
    let listed = home.cell(["ledger", "receipts", "--cell", "frontend", "--json"]).expect(0).json();
    let hash = listed[0]["hash"].as_str().unwrap_or_else(|| panic!("{listed}")).to_owned();
    let verified = home.cell(["verify", &hash, "--json"]).expect(0).json();
    assert_eq!(verified["verified"], true, "{verified}");
}

/// Of three machines of which one is not there, two share the load; one that is killed is skipped, and
/// comes back.
#[test]
fn load_is_spread_and_who_fails_is_skipped() {
    let home = Home::new();
    let (a, b) = (machine(&home, wat::ECHO), machine(&home, wat::ECHO));
    let nobody = format!("{}@127.0.0.1:1", key(&Home::new()));
    let nucleus = caller(&home, &[nobody, at(&a), at(&b)]);
    let earned = |donor: &Donor| donor.nucleus.balance("cell:far");
    let clients = 4;
    let rounds = |calls: usize| {
        std::thread::scope(|scope| {
            let run = || {
                let (mut client, slot) = open(&nucleus);
                let all = (0..calls).map(|_| call(&mut client, &slot, PATIENCE).unwrap());
                all.filter(|(status, text, _)| (*status, text.as_str()) != (Status::Ok, "hi"))
                    .collect::<Vec<_>>()
            };
            let running: Vec<_> = (0..clients).map(|_| scope.spawn(run)).collect();
            running
                .into_iter()
                .flat_map(|r| r.join().unwrap())
                .collect::<Vec<(Status, String, u64)>>()
        })
    };
    let (mut client, slot) = open(&nucleus);
    call(&mut client, &slot, PATIENCE).unwrap();
    let price = eventually("one call is paid", || {
        let paid = earned(&a) + earned(&b);
        (paid > 0).then_some(paid)
    });
    // The first answers say little of machines that are as good as one another.
    eventually("both have a part of the load", || {
        let before = (earned(&a), earned(&b));
        assert_eq!(rounds(100), []);
        let calls = 400;
        eventually("all are paid", || {
            (earned(&a) + earned(&b) - before.0 - before.1 == calls * price).then_some(())
        });
        let part = (earned(&a) - before.0) / price;
        println!("of {calls} calls, {part} at one machine");
        (part >= calls / 5 && part <= calls * 4 / 5).then_some(())
    });
    let Donor { nucleus: killed, address, key } = a;
    let first = killed.kill();
    let lost = rounds(50);
    assert!(lost.len() <= clients, "each client had one call under way: {lost:?}");
    assert!(lost.iter().all(|(status, ..)| *status == Status::Unreachable), "{lost:?}");
    // With the other one gone as well nobody is left, and the message says what happened to whom.
    let Donor { nucleus: killed, .. } = b;
    killed.kill();
    let (mut client, slot) = open(&nucleus);
    let text = eventually("nobody is left", || {
        let (status, text, _) = call(&mut client, &slot, PATIENCE).unwrap();
        (status == Status::Unreachable && text.contains("tried again in")).then_some(text)
    });
    assert!(text.contains(&key) && text.contains("127.0.0.1:1"), "{text}");
    // It comes back where it was.
    let settings = format!("[peers]\nlisten = \"{address}\"\n");
    fs::write(first.path().join("nucleus.toml"), settings).unwrap();
    let again = Nucleus::up(&first);
    again.wait_for("far", "live");
    eventually("it is asked again", || {
        (call(&mut client, &slot, PATIENCE).unwrap().0 == Status::Ok).then_some(())
    });
    nucleus.cell(["ledger", "verify"]).expect(0);
    again.cell(["ledger", "verify"]).expect(0);
}

/// What the other machine refuses its caller hears, and pays nothing for; what runs away there costs its
/// limit on both sides, and who gives up pays the limit here.
#[test]
fn what_fails_elsewhere_is_told_and_paid_once() {
    let home = Home::new();
    let there = machine(&home, wat::SPIN);
    let key = key(&home);
    let nucleus = caller(&home, &[at(&there)]);
    let (mut client, slot) = open(&nucleus);
    // Everything its caller has left: what it burned there leaves nothing to go on with here.
    let ended = call(&mut client, &slot, PATIENCE).unwrap_err();
    assert_eq!((ended.status(), ended.fuel()), (Some(Status::OutOfFuel), LIMIT), "{ended}");
    let paid = eventually("both have paid", || {
        let paid = there.nucleus.balance("cell:far");
        (paid > 0 && paid == nucleus.balance("cell:far")).then_some(paid)
    });
    assert_eq!(there.nucleus.balance(&key), 5_000_000_000 - paid);
    eventually("the caller has paid", || (nucleus.spent().unsigned_abs() == LIMIT.0).then_some(()));
    // A machine that knows the caller no more, or has nothing for it.
    there.nucleus.cell(["peer", "remove", &key]).expect(0);
    let told = |expect: Status, text: &str| {
        let (mut client, slot) = open(&nucleus);
        let found = eventually(text, || {
            let (status, found, _) = call(&mut client, &slot, PATIENCE).ok()?;
            (status == expect && found.contains(text)).then_some(found)
        });
        assert!(found.contains(&there.key), "{found}");
    };
    elsewhere(&home, "far", &[at(&there), at(&there)]);
    told(Status::Unreachable, "cell peer add");
    elsewhere(&home, "far", &[format!("cell://{}/nothing", at(&there))]);
    there.nucleus.cell(["peer", "add", &key]).expect(0);
    told(Status::Unreachable, "there is no cell `nothing`");
    // A name that nobody has.
    elsewhere(&home, "far", &["attic".into()]);
    let (mut client, slot) = open(&nucleus);
    eventually("no peer is called", || {
        let (_, found, _) = call(&mut client, &slot, PATIENCE).ok()?;
        found.contains("no peer is called `attic`").then_some(())
    });
    eventually("`cell ps` has the last error", || {
        let row = nucleus.row("far")?;
        row["stats"]["last_error"].as_str()?.contains("attic").then_some(())
    });
    home.cell(["rm", "far"]).expect(0);
    assert_eq!(call(&mut client, &slot, PATIENCE).unwrap().0, Status::UnknownCell);
    nucleus.cell(["ledger", "verify"]).expect(0);
}

/// The process that speaks with other machines is lost, and with it the calls that it carried; the next ones go on.
#[test]
fn the_gateway_is_lost() {
    let home = Home::new();
    let there = machine(&home, wat::ECHO);
    let nucleus = caller(&home, &[at(&there)]);
    let (mut client, slot) = open(&nucleus);
    let children = || nucleus.process().children().into_iter();
    let gateway =
        || children().find(|c| c.arguments().get(1).is_some_and(|word| word == "gateway"));
    assert_eq!(gateway(), None, "nobody needs one yet");
    assert_eq!(call(&mut client, &slot, PATIENCE).unwrap().0, Status::Ok);
    for _ in 0..2 {
        gateway().unwrap().kill();
        eventually("calls go on", || {
            let (status, text, _) = call(&mut client, &slot, PATIENCE).unwrap();
            assert!(matches!(status, Status::Ok | Status::Unreachable), "{status:?} {text}");
            (status == Status::Ok).then_some(())
        });
    }
    nucleus.cell(["ledger", "verify"]).expect(0);
}

/// A machine that is there no more, and whose connection nobody has told that, costs its callers their time and
/// nothing else.
#[test]
fn a_machine_that_says_nothing_is_given_up() {
    let home = Home::new();
    let there = machine(&home, wat::ECHO);
    let nucleus = caller(&home, &[at(&there)]);
    let (mut client, slot) = open(&nucleus);
    let (_, _, usual) = call(&mut client, &slot, PATIENCE).unwrap();
    let gateway = there.gateway();
    gateway.signal(Signal::STOP);
    let (status, text, cost) = call(&mut client, &slot, PATIENCE).unwrap();
    gateway.signal(Signal::CONT);
    assert_eq!(status, Status::Unreachable, "{text}");
    assert!(text.contains("went away") && cost < usual, "{text}: {cost} {usual}");
    eventually("it is asked again", || {
        (call(&mut client, &slot, PATIENCE).unwrap().0 == Status::Ok).then_some(())
    });
}

/// Whoever calls from another machine does not spend what this one has elsewhere, unless its owner says so.
#[test]
fn peers_do_not_spend_what_is_elsewhere() {
    let home = Home::new();
    let there = machine(&home, wat::ECHO);
    let settings = "[peers]\nlisten = \"127.0.0.1:0\"\n";
    fs::write(home.path().join("nucleus.toml"), settings).unwrap();
    let nucleus = Nucleus::up(&home);
    elsewhere(&home, "far", &[at(&there)]);
    nucleus.wait_for("far", "away");
    nucleus.deploy_wat("near", &wat::caller("far"), "peers = true");
    let listens = home.cell(["peer", "list", "--json"]).expect(0).json()["listens"].clone();
    let stranger = Home::new();
    let account = key(&stranger);
    nucleus.cell(["peer", "add", &account]).expect(0);
    nucleus.cell(["ledger", "grant", "5", &account]).expect(0);
    let url = format!("cell://{}@{}/near.run", key(&home), listens.as_str().unwrap());
    let status = || {
        let called = stranger.cell(["call", &url, "hi", "--raw"]);
        let code = called.expect(0).stdout_bytes.first_chunk::<4>().copied().unwrap();
        Status::from_code(u32::from_le_bytes(code)).unwrap()
    };
    assert_eq!(status(), Status::UnknownCell);
    assert_eq!(there.nucleus.balance("cell:far"), 0);
    let text = format!("at = {:?}\npeers = true", [at(&there)]);
    let manifest = home.cell_directory("far").join("Cell.toml");
    fs::write(manifest, wat::manifest("far", &text)).unwrap();
    eventually("the owner lets them", || (status() == Status::Ok).then_some(()));
    let paid = eventually("both are paid the same", || {
        let paid = there.nucleus.balance("cell:far");
        (paid > 0 && nucleus.balance("cell:far") == paid).then_some(paid)
    });
    assert_eq!(nucleus.spent(), 0, "the owner pays there, and is paid here");
    assert_eq!(there.nucleus.balance(&key(&home)), 5_000_000_000 - paid);
}

/// A cell may move between here and elsewhere while it is called.
#[test]
fn a_cell_moves() {
    let home = Home::new();
    let there = machine(&home, wat::ECHO);
    let nucleus = caller(&home, &[at(&there)]);
    let (mut client, slot) = open(&nucleus);
    let text = |client: &mut Client| call(client, &slot, PATIENCE).unwrap().1;
    assert_eq!(text(&mut client), "hi");
    assert!(!home.socket("far").exists());
    // Both at once is a mistake, and says so; what ran before goes on.
    let here = wat::compile(&wat::cell("", &wat::constant(7)));
    fs::write(home.cell_directory("far").join("cell.wasm"), &here).unwrap();
    let row = nucleus.wait_for("far", "failed");
    assert!(row["reason"].as_str().unwrap().contains("remove one of them"), "{row}");
    assert_eq!(text(&mut client), "hi");
    fs::write(home.cell_directory("far").join("Cell.toml"), wat::manifest("far", "")).unwrap();
    nucleus.wait_for("far", "live");
    assert_eq!(text(&mut client), "\u{7}\0\0\0");
    let mut direct = nucleus.client("far");
    direct.open_raw("run").unwrap();
    // And away again.
    fs::remove_file(home.cell_directory("far").join("cell.wasm")).unwrap();
    elsewhere(&home, "far", &[at(&there)]);
    nucleus.wait_for("far", "away");
    let begun = Instant::now();
    while text(&mut client) != "hi" {
        assert!(begun.elapsed() < PATIENCE);
    }
    let called = home.cell(["call", "far.run", "hi", "--raw"]);
    assert_eq!(called.expect(0).stdout, "hi", "the owner's own calls go there too");
}
