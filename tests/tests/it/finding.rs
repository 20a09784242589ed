//! Machines that find each other, and whether they are believed.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use cell_abi::AccountId;
use cell_peer::{Credentials, Request, tunnel};
use cell_tests::{Home, eventually, wat};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::frames::{receive, send};
use crate::liar::{Liar, Lie};
use crate::peers::{Donor, donor, identity};
use crate::remote_jobs::CAT;

/// Some machines that run jobs, one that has some, and a place for files.
struct World {
    donors: Vec<Donor>,
    home: Home,
    account: String,
    place: TempDir,
    cat: String,
}

const NAMES: [&str; 4] = ["one", "two", "three", "four"];

fn world(donors: usize) -> World {
    let home = Home::new();
    let donors: Vec<_> = (0..donors).map(|_| donor("jobs = true\n")).collect();
    let mut account = String::new();
    for (donor, name) in donors.iter().zip(NAMES) {
        account = donor.admit(&home, "50");
        home.cell(["peer", "add", &donor.key, "--name", name, "--at", &donor.address]).expect(0);
    }
    let place = tempfile::Builder::new().prefix("ct-f-").tempdir_in("/tmp").unwrap();
    let cat = place.path().join("cat.wasm");
    fs::write(&cat, wat::compile(CAT)).unwrap();
    let cat = cat.to_str().unwrap().to_owned();
    World { donors, home, account, place, cat }
}

impl World {
    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// A liar that this home knows by this name.
    fn liar(&self, name: &str, seed: u8, lie: Lie) -> Liar {
        let liar = Liar::new(&self.donors[0], seed, lie);
        self.home.cell(["peer", "add", &liar.key, "--name", name, "--at", &liar.address]).expect(0);
        liar
    }

    /// What is kept of a machine.
    fn reputation(&self, key: &str) -> Value {
        let listed = self.home.cell(["peer", "list", "--json"]).expect(0).json();
        let rows = [&listed["peers"], &listed["strangers"]];
        let mut rows = rows.into_iter().flat_map(|rows| rows.as_array().unwrap());
        let row = rows.find(|row| row["key"] == key).cloned().unwrap_or_default();
        if row["reputation"].is_null() { row } else { row["reputation"].clone() }
    }

    fn valid(&self, key: &str) -> Value {
        self.reputation(key)["engines"][0]["valid"].clone()
    }

    fn held(&self, donor: &Donor) -> u64 {
        let row = donor.nucleus.cell(["ledger", "balance", &self.account, "--json"]).json();
        row["accounts"][0]["held_nano_atp"].as_u64().unwrap_or(0)
    }

    fn spent(&self, donor: &Donor) -> i64 {
        eventually("nothing is held", || (self.held(donor) == 0).then_some(()));
        50_000_000_000 - donor.nucleus.balance(&self.account)
    }
}

/// Two machines that agree are believed, and what they say is shown once.
#[test]
fn replicas_agree() {
    let world = world(3);
    let bill = world.path("bill.json");
    let bill = bill.to_str().unwrap();
    let all = ["run", "--on", "one,two,three", "--replicas", "2", "--quorum", "2"];
    let more = ["--budget", "4", "--receipt", bill, &world.cat, "a"];
    let ran = world.home.cell_with_input([&all[..], &more].concat(), b"hello");
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(7), "hello"), "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("done").count(), 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("on 2 machines"), "{}", ran.stderr);
    let read = |path: &str| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let (first, second) = (read(bill), read(&format!("{bill}.1")));
    assert_ne!(first["node"], second["node"]);
    assert_eq!((&first["fuel"], &first["job"]), (&second["fuel"], &second["job"]));
    assert_eq!(first["fuel_max"], 2_000_000_000, "each has half of the budget");
    let mut asked = 0;
    for donor in &world.donors {
        let compiled = first["compile_fuel"].as_i64().unwrap();
        if world.reputation(&donor.key).is_null() || world.valid(&donor.key).is_null() {
            assert_eq!(world.spent(donor), 0);
            continue;
        }
        asked += 1;
        assert_eq!(world.valid(&donor.key), 1);
        assert_eq!(world.spent(donor), first["charge_nano_atp"].as_i64().unwrap() + compiled);
    }
    assert_eq!(asked, 2);
    for path in [bill, &format!("{bill}.1")] {
        let found = world.home.cell(["verify", path, "--module", &world.cat, "--json"]);
        assert_eq!(found.expect(0).json()["rerun"], 1);
    }
    let refused = world.home.cell(["run", "--on", "one", "--replicas", "2", &world.cat]);
    assert!(refused.expect(1).stderr.contains("2 machines are needed"), "{}", refused.stderr);
    let refused =
        world.home.cell(["run", "--on", "one,two", "--replicas", "2", "--quorum", "1", &world.cat]);
    refused.expect(2);
}

/// Machines that sign wrong results, and would be paid for more than they did.
#[test]
fn a_liar_among_honest_machines_is_found_out() {
    for (lie, seed) in [(Lie::Output, 11), (Lie::Fuel, 12)] {
        let world = world(2);
        let liar = world.liar("liar", seed, lie);
        let before = world.home.cell_with_input(["run", "--on", "liar", &world.cat], b"hello");
        assert_eq!(before.code, Some(7), "who is not checked is believed: {}", before.stderr);
        // The three together: the two that agree are believed.
        let three = ["run", "--on", "liar,one,two", "--replicas", "3", &world.cat];
        let ran = world.home.cell_with_input(three, b"hello");
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(7), "hello"), "{lie:?} {}", ran.stderr);
        assert!(ran.stderr.contains("do not agree"), "{}", ran.stderr);
        assert!(ran.stderr.contains("liar: exited with 7"), "{}", ran.stderr);
        let known = world.reputation(&liar.key);
        assert_eq!(
            (&known["engines"][0]["valid"], &known["is_distrusted"]),
            (&json!(0), &json!(false))
        );
        assert_eq!(world.valid(&world.donors[0].key), 1);
        // Two that do not agree: running it again here says who lied, and that is kept.
        let two = ["run", "--on", "liar,two", "--replicas", "2", &world.cat];
        let blind = world
            .home
            .cell_with_input([&two[..5], &["--check", "never"], &two[5..]].concat(), b"hello");
        assert_eq!((blind.code, blind.stdout.as_str()), (Some(125), ""), "{}", blind.stderr);
        let ran = world.home.cell_with_input(two, b"hello");
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(7), "hello"), "{lie:?} {}", ran.stderr);
        assert!(ran.stderr.contains("liar: its result is wrong"), "{}", ran.stderr);
        let known = world.reputation(&liar.key);
        assert_eq!(known["is_distrusted"], true, "{known}");
        let listed = world.home.cell(["peer", "list"]);
        assert!(listed.stdout.contains("distrusted"), "{}", listed.stdout);
        // It is not asked again by itself, until it is forgiven.
        let ran = world.home.cell_with_input(["run", "--on", "any", &world.cat], b"hello");
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(7), "hello"), "{}", ran.stderr);
        assert!(ran.stderr.contains("it has lied"), "{}", ran.stderr);
        world.home.cell(["peer", "remove", "liar"]).expect(0);
        assert!(world.reputation(&liar.key).is_null());
    }
}

/// One machine alone is checked by running its job again, and another one is asked in its place.
#[test]
fn a_lie_is_never_shown() {
    let world = world(2);
    let liar = world.liar("liar", 13, Lie::Output);
    let run = ["run", "--on", "liar,two", "--check", "adaptive", "--budget", "4", &world.cat];
    let ran = world.home.cell_with_input(run, b"hello");
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(7), "hello"), "{}", ran.stderr);
    assert!(ran.stderr.contains("liar: its result is wrong"), "{}", ran.stderr);
    assert_eq!(world.reputation(&liar.key)["is_distrusted"], true);
    let two = &world.donors[1];
    assert_eq!(world.valid(&two.key), 1);
    assert!(world.spent(two) < 2_000_000_000, "the liar's half is not spent again");
    let alone = ["run", "--on", "liar", "--check", "always", &world.cat];
    let ran = world.home.cell_with_input(alone, b"hello");
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(125), ""), "{}", ran.stderr);
    // What cannot be checked is not believed of who has proven nothing: it read none of its input.
    let spin = world.path("nothing.wasm");
    fs::write(&spin, wat::compile(NOTHING)).unwrap();
    let spin = spin.to_str().unwrap();
    let run = |check: &str| {
        world.home.cell_with_input(["run", "--on", "two", "--check", check, spin], b"hello")
    };
    let ran = run("adaptive");
    assert!(ran.expect(125).stderr.contains("cannot be checked"), "{}", ran.stderr);
    run("never").expect(0);
    world.home.cell(["run", "--on", "two", "--check", "always", spin]).expect(0);
}

const NOTHING: &str = r#"(module (memory (export "memory") 1) (func (export "_start")))"#;

/// The tenth valid result in a row is the last that must be checked.
#[test]
fn who_is_right_often_is_checked_less() {
    let world = world(1);
    let key = &world.donors[0].key;
    let run = || world.home.cell(["run", "--on", "any", &world.cat]).expect(7).clone();
    for count in 1..=10 {
        run();
        assert_eq!(world.valid(key), count);
    }
    // Each further one is checked with a chance of one in ten at most.
    let (mut ran, mut valid) = (0, json!(10));
    let is_unchecked = (0..20).any(|_| {
        run();
        ran += 1;
        let before = std::mem::replace(&mut valid, world.valid(key));
        before == valid
    });
    assert!(is_unchecked, "every one of twenty was checked");
    let known = world.reputation(key);
    assert_eq!(known["engines"][0]["jobs"], 10 + ran, "{known}");
    let listed = world.home.cell(["peer", "list"]);
    assert!(listed.stdout.contains("right in a row"), "{}", listed.stdout);
}

/// Whoever is down, or runs no jobs, is passed over.
#[test]
fn any_machine_that_can() {
    let mut world = world(1);
    world
        .home
        .cell(["peer", "add", &"ab".repeat(32), "--name", "down", "--at", "127.0.0.1:1"])
        .expect(0);
    world.home.cell(["peer", "add", &"cd".repeat(32), "--name", "nowhere"]).expect(0);
    let closed = donor("");
    closed.admit(&world.home, "1");
    world
        .home
        .cell(["peer", "add", &closed.key, "--name", "closed", "--at", &closed.address])
        .expect(0);
    let ran = world.home.cell_with_input(["run", "--on", "any", &world.cat], b"hello");
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(7), "hello"), "{}", ran.stderr);
    let ran = world.home.cell(["run", "--on", "down,closed,one", &world.cat]);
    assert!(ran.expect(7).stderr.contains("closed does not run it"), "{}", ran.stderr);
    assert!(ran.stderr.contains("down does not run it"), "{}", ran.stderr);
    world.donors.pop().unwrap().nucleus.kill();
    let ran = world.home.cell(["run", "--on", "any", &world.cat]);
    assert!(ran.expect(1).stderr.contains("runs no jobs of others"), "{}", ran.stderr);
    world.home.cell(["peer", "add", &"ab".repeat(32), "--name", "any"]).expect(2);
}

/// A machine that dies in the middle: another one runs the job from its beginning, with all of its input, and
/// both together cannot have charged more than the budget.
#[test]
fn a_lost_job_is_run_elsewhere() {
    let mut world = world(2);
    let mut command =
        world.home.command(["run", "--on", "any", "--budget", "5", "--timeout", "60", &world.cat]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"first ").unwrap();
    // What compiling costs is set aside, and paid, before.
    let at = eventually("one of them has the job, and half of the budget", || {
        world.donors.iter().position(|donor| world.held(donor) == 2_500_000_000)
    });
    let lost = world.donors.remove(at);
    let key = lost.key.clone();
    lost.nucleus.kill();
    eventually("the other one has it", || {
        (world.held(&world.donors[0]) == 2_500_000_000).then_some(())
    });
    stdin.write_all(b"second").unwrap();
    drop(stdin);
    let ended = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(7), "{stderr}");
    assert_eq!(String::from_utf8_lossy(&ended.stdout), "first second");
    assert!(stderr.contains("the connection was lost"), "{stderr}");
    assert!(world.spent(&world.donors[0]) <= 2_500_000_000);
    assert_eq!(world.reputation(&key)["lost"], 1);
    assert_eq!(world.valid(&world.donors[0].key), 1);
}

/// A machine that takes every job and never says how it ended costs no more than the budget, whoever is asked.
#[test]
fn no_try_is_left() {
    let world = world(1);
    let silent: Vec<_> =
        [21, 22, 23].map(|seed| Liar::new(&world.donors[0], seed, Lie::Silence)).into();
    let at: Vec<_> = silent.iter().map(|liar| format!("{}@{}", liar.key, liar.address)).collect();
    let ran = world.home.cell(["run", "--on", &at.join(","), "--tries", "2", &world.cat]);
    assert!(ran.expect(125).stderr.contains("no try is left"), "{}", ran.stderr);
    let lost: Vec<_> =
        silent.iter().map(|liar| world.reputation(&liar.key)["lost"].clone()).collect();
    assert_eq!(lost, [json!(1), json!(1), Value::Null]);
}

/// The same job twice, as somebody sends it whose line was lost: it runs once.
#[test]
fn one_number_is_run_once() {
    let world = world(1);
    let wasm = fs::read(&world.cat).unwrap();
    let run = |id: &str| {
        let credentials = Credentials::new(&identity(&world.home), tunnel::now_s()).unwrap();
        let (key, timeout) =
            (AccountId::parse(&world.donors[0].key).unwrap(), Duration::from_secs(20));
        let address = &world.donors[0].address;
        let dial = || tunnel::dial(address, &credentials, key, &Request::Job, timeout).ok();
        let mut socket = eventually("there is room for a job", dial);
        let spec = json!({ "id": id, "module": cell_abi::CellHash::of(&wasm).to_string(),
            "module_bytes": wasm.len(), "arguments": ["x"], "environment": [], "memory_mb_max": 16,
            "budget_nano_atp": 1_000_000_000, "is_budget_given": true, "timeout_ms": null, "recorded": false });
        send(&mut socket, 1, spec.to_string().as_bytes()).unwrap();
        loop {
            match receive(&mut socket).unwrap() {
                (16, _) => send(&mut socket, 2, &wasm).unwrap(),
                (17, content) if content == b"running" => send(&mut socket, 3, &[]).unwrap(),
                (21, content) => return serde_json::from_slice::<Value>(&content).unwrap(),
                _ => {}
            }
        }
    };
    let id = "7".repeat(64);
    let first = run(&id);
    assert_eq!((&first["ran"], &first["exit"]), (&json!(true), &json!(7)), "{first}");
    let paid = world.spent(&world.donors[0]);
    for wrong in [&id, "", "seven"] {
        let again = run(wrong);
        assert_eq!((&again["ran"], &again["exit"]), (&json!(false), &json!(126)), "{again}");
    }
    assert_eq!(world.spent(&world.donors[0]), paid);
    assert_eq!(run(&"8".repeat(64))["ran"], true);
}

/// A machine signs where it is into a file, and another one that never heard of it runs its job there.
#[test]
fn a_record_in_a_file_leads_to_a_machine() {
    let world = world(0);
    let nodes = world.path("nodes.jsonl");
    let nodes = nodes.to_str().unwrap();
    let announce = format!("jobs = true\nannounce = {nodes:?}\n[prices]\nstart = 0.25\n");
    let donor = donor(&announce);
    donor.admit(&world.home, "50");
    let found = eventually("it is published with its cells", || {
        let found = world.home.cell(["peer", "find", "--from", nodes, "--json"]);
        let found = found.json().as_array()?.first().cloned()?;
        (found["record"]["serves"]["cells"] == json!(["counter"])).then_some(found)
    });
    assert_eq!((&found["key"], &found["is_known"]), (&json!(donor.key), &json!(false)));
    assert_eq!(found["addresses"], json!([donor.address]));
    assert_eq!(found["record"]["serves"]["jobs"], true);
    assert_eq!(found["record"]["rates"]["start"], 250_000_000);
    // Only what the owner named is asked, unless it says where else to look.
    let ran = world.home.cell(["run", "--on", "any", &world.cat]);
    assert!(ran.expect(1).stderr.contains("no machine to ask"), "{}", ran.stderr);
    let run = ["run", "--on", "any", "--from", nodes, &world.cat];
    let ran = world.home.cell_with_input(run, b"hello");
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(7), "hello"), "{}", ran.stderr);
    assert_eq!(world.valid(&donor.key), 1);
    let listed = world.home.cell(["peer", "list", "--json"]).expect(0).json();
    assert_eq!(listed["strangers"][0]["key"], json!(donor.key));
    // It is known by its key alone, and where it is by its record.
    world.home.cell(["peer", "add", &donor.key, "--name", "den"]).expect(0);
    let ran = world.home.cell_with_input(["run", "--on", "any", &world.cat], b"hello");
    assert_eq!(ran.code, Some(7), "{}", ran.stderr);
    world.home.cell(["peer", "remove", "den"]).expect(0);
    let found = world.home.cell(["peer", "find", "--add", &donor.key, "--name", "den"]);
    assert!(found.expect(0).stdout.contains("serves jobs counter; "), "{}", found.stdout);
    let ran = world.home.cell_with_input(["run", "--on", "den", &world.cat], b"hello");
    assert_eq!(ran.code, Some(7), "{}", ran.stderr);
    world.home.cell(["peer", "find", "--add", &"ab".repeat(32)]).expect(1);
    // A file that somebody spoiled hides nobody else, and steers no terminal.
    let mut text = fs::read(nodes).unwrap();
    text.splice(0..0, *b"{\"version\":1,\"key\":\"\x1b[2J\"}\n");
    fs::write(nodes, text).unwrap();
    let found = world.home.cell(["peer", "find", "--from", nodes]);
    assert!(found.expect(0).stdout.contains(&donor.key), "{}", found.stdout);
    assert!(found.stderr.contains("line 1") && !found.stderr.contains('\x1b'), "{}", found.stderr);
    world.home.cell(["peer", "find", "--from", "/nothing/here"]).expect(1);
    world.home.cell(["peer", "find", "--from", "ftp://h/nodes.jsonl"]).expect(2);
    // Nobody listens there.
    world.home.cell(["peer", "find", "--from", "https://127.0.0.1:1/nodes.jsonl"]).expect(1);
}

/// An announcement that cannot be made is told, and harms nothing.
#[test]
fn a_place_that_cannot_be_written_is_no_end() {
    let donor = donor("jobs = true\nannounce = [\"/nothing/here/nodes.jsonl\"]\n");
    eventually("it is logged", || {
        donor.nucleus.log().contains("is not announced there").then_some(())
    });
    let home = Home::new();
    donor.admit(&home, "5");
    donor.nucleus.cell(["run", "--on", "x", "--from", "y", "/dev/null"]).expect(2);
}

/// Machines of one local network; a host that lets no multicast through is told of by name.
#[test]
fn a_neighbour_is_found() {
    let donor = donor("jobs = true\nannounce = \"lan\"\n");
    let home = Home::new();
    donor.admit(&home, "5");
    let find = || {
        let found = home.cell(["peer", "find", "--lan", "--json"]);
        let found = found.json().as_array().cloned().unwrap_or_default();
        found.into_iter().find(|row| row["key"] == json!(donor.key))
    };
    let Some(found) = (0..5).find_map(|_| find()) else {
        eprintln!(
            "skipped: a_neighbour_is_found: no multicast on this host\n{}",
            donor.nucleus.log()
        );
        return;
    };
    let port = donor.address.rsplit_once(':').unwrap().1;
    let addresses = found["addresses"].as_array().unwrap();
    let ends = |address: &Value| address.as_str().unwrap().ends_with(&format!(":{port}"));
    assert!(!addresses.is_empty() && addresses.iter().all(ends), "{found}");
    assert_eq!(found["record"], Value::Null);
}
