//! A machine without a port of its own: it waits at a relay, and others reach it through that.

use std::fs;
use std::io::Read as _;
use std::thread;
use std::time::Duration;

use cell_abi::{AccountId, CellName};
use cell_peer::{Credentials, PeerError, Request, TOKEN_BYTES, Token, tunnel};
use cell_tests::{Home, Nucleus, eventually, sample, wat};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::donate::{ALWAYS, Donate, is_working, wait_for};
use crate::peers::{identity, key};
use crate::remote_jobs::CAT;

const TIMEOUT: Duration = Duration::from_secs(20);

/// A relay.
struct Relay {
    nucleus: Nucleus,
    key: String,
    address: String,
}

fn relay(settings: &str) -> Relay {
    let home = Home::new();
    let settings = |listen: &str| format!("[peers]\nlisten = \"{listen}\"\n{settings}");
    fs::write(home.path().join("nucleus.toml"), settings("127.0.0.1:0")).unwrap();
    let nucleus = Nucleus::up(&home);
    let listed = home.cell(["peer", "list", "--json"]).expect(0).json();
    let address = listed["listens"].as_str().unwrap().to_owned();
    // The next one listens where this one does.
    fs::write(home.path().join("nucleus.toml"), settings(&address)).unwrap();
    Relay { nucleus, key: key(&home), address }
}

impl Relay {
    fn knows(&self, home: &Home) -> String {
        let key = key(home);
        self.nucleus.cell(["peer", "add", &key]).expect(0);
        key
    }

    /// Where machines that wait here are.
    fn at(&self) -> String {
        format!("{}@{}", self.key, self.address)
    }

    fn key(&self) -> AccountId {
        AccountId::parse(&self.key).unwrap()
    }

    /// Asks this machine for something, as this home.
    fn ask(&self, home: &Home, request: &Request) -> Result<impl std::io::Read, PeerError> {
        ask(&self.address, self.key(), home, request)
    }

    #[track_caller]
    fn refuses(&self, home: &Home, request: &Request, expect: &str) {
        match self.ask(home, request).map(drop) {
            Err(PeerError::Refused(why)) => assert!(why.contains(expect), "{expect}: {why}"),
            other => panic!("{expect}: {other:?}"),
        }
    }
}

fn ask(
    address: &str,
    wanted: AccountId,
    home: &Home,
    request: &Request,
) -> Result<impl std::io::Read + use<>, PeerError> {
    let credentials = Credentials::new(&identity(home), tunnel::now_s()).unwrap();
    let socket = tunnel::dial(address, &credentials, wanted, request, TIMEOUT)?;
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    Ok(socket)
}

/// A machine that waits at a relay, with a cell and jobs for others; and one that has work for it.
struct Behind {
    nucleus: Nucleus,
    key: String,
    home: Home,
    place: TempDir,
    cat: String,
}

fn behind(relay: &Relay, settings: &str) -> Behind {
    let (donor, home) = (Home::new(), Home::new());
    let text = format!("[peers]\nthrough = [\"{}\"]\njobs = true\n{settings}", relay.at());
    fs::write(donor.path().join("nucleus.toml"), text).unwrap();
    let key = relay.knows(&donor);
    let account = relay.knows(&home);
    let nucleus = Nucleus::up(&donor);
    nucleus.cell(["peer", "add", &account]).expect(0);
    nucleus.cell(["ledger", "grant", "50", &account]).expect(0);
    let (wasm, manifest) = sample("counter");
    nucleus.put("counter", &format!("{manifest}\npeers = true\n"), &wasm);
    nucleus.wait_for("counter", "live");
    let place = tempfile::Builder::new().prefix("ct-w-").tempdir_in("/tmp").unwrap();
    let cat = place.path().join("cat.wasm");
    fs::write(&cat, wat::compile(CAT)).unwrap();
    let cat = cat.to_str().unwrap().to_owned();
    Behind { nucleus, key, home, place, cat }
}

/// How a machine fares at its relay.
fn way(home: &Home) -> Value {
    home.cell(["peer", "list", "--json"]).expect(0).json()["through"][0].clone()
}

#[track_caller]
fn wait_until_it_waits(home: &Home) {
    eventually("the machine waits at the relay", || (way(home)["waits"] == true).then_some(()));
}

#[track_caller]
fn wait_for_refusal(home: &Home, expect: &str) {
    eventually("the relay says why not", || {
        way(home)["why_not"].as_str().filter(|why| why.contains(expect)).map(drop)
    });
}

impl Behind {
    fn on(&self, relay: &Relay) -> String {
        format!("{}@{}", self.key, relay.at())
    }
}

/// Nothing listens where the work is done; the bill is as for any other machine, and the relay has none.
#[test]
fn a_machine_without_a_port_works_for_others() {
    let relay = relay("relay = true\n");
    let behind = behind(&relay, "");
    wait_until_it_waits(&behind.nucleus);
    let listed = behind.nucleus.cell(["peer", "list", "--json"]).expect(0).json();
    assert_eq!(listed["listens"], Value::Null);
    let told = behind.nucleus.cell(["peer", "list"]).expect(0).stdout.clone();
    assert!(told.contains(&format!("others reach it through {}", relay.at())), "{told}");
    let bill = behind.place.path().join("bill.json");
    let (on, bill) = (behind.on(&relay), bill.to_str().unwrap());
    let input = "0123456789abcdef".repeat(50_000);
    let run = ["run", "--on", &on, "--receipt", bill, "--budget", "5", &behind.cat];
    let ran = behind.home.cell_with_input(run, input.as_bytes());
    assert_eq!(ran.code, Some(7), "{}", ran.stderr);
    assert!(ran.stdout == input);
    let receipt: Value = serde_json::from_slice(&fs::read(bill).unwrap()).unwrap();
    assert_eq!(receipt["node"], json!(behind.key));
    let verify = ["verify", bill, "--module", &behind.cat, "--json"];
    assert_eq!(behind.home.cell(verify).expect(0).json()["rerun"], 1);
    // By a name, and a call.
    behind.home.cell(["peer", "add", &behind.key, "--name", "den", "--at", &relay.at()]).expect(0);
    let called = behind.home.cell(["call", "cell://den/counter.add", r#"{"by":2}"#, "--json"]);
    assert_eq!(called.expect(0).json()["reply"]["value"], 2);
    let called = behind.home.cell(["call", &format!("cell://{on}/counter.add"), r#"{"by":3}"#]);
    called.expect(0);
    // And by a cell of the other machine.
    behind.nucleus.deploy_wat("far", &wat::cell("", wat::ECHO), "peers = true");
    let caller = Nucleus::up(&behind.home);
    caller.cell(["deploy", "far", "--at", "den"]).expect(0);
    caller.wait_for("far", "away");
    caller.deploy_wat("near", &wat::caller("far"), "");
    let called = caller.cell(["call", "near.run", "hi", "--raw"]);
    assert_eq!(called.expect(0).stdout, "\0\0\0\0hi", "its status, and its answer");
    // The relay's books know nothing of it.
    let account = key(&behind.home);
    assert_eq!((relay.nucleus.balance(&account), relay.nucleus.balance(&behind.key)), (0, 0));
    behind.nucleus.cell(["ledger", "verify"]).expect(0);
}

/// Its record says where it waits, and `--on any` knocks there: at the machine, not at its relay.
#[test]
fn a_machine_without_a_port_is_found() {
    let place = tempfile::Builder::new().prefix("ct-w-").tempdir_in("/tmp").unwrap();
    let nodes = place.path().join("nodes.jsonl");
    let nodes = nodes.to_str().unwrap();
    let relay = relay("relay = true\n");
    let behind = behind(&relay, &format!("announce = \"{nodes}\"\n"));
    wait_until_it_waits(&behind.nucleus);
    let found = eventually("it is announced", || {
        let found = behind.home.cell(["peer", "find", "--from", nodes, "--json"]);
        Some(found.json()).filter(|_| found.code == Some(0)).filter(|rows| rows[0].is_object())
    });
    assert_eq!(found[0]["addresses"], json!([relay.at()]));
    let run = ["run", "--on", "any", "--from", nodes, &behind.cat];
    // On a busy machine it may not answer in the time that one is given.
    eventually("it is found, and runs the job", || {
        let ran = behind.home.cell_with_input(run, b"hello");
        (ran.code == Some(7) && ran.stdout == "hello").then_some(())
    });
    // Where the relay is there and the machine is not, nobody is.
    drop(behind.nucleus);
    let run = ["run", "--on", "any", "--from", nodes, &behind.cat];
    eventually("nobody is found", || {
        let ran = behind.home.cell_with_input(run, b"hello");
        (ran.code == Some(1)).then_some(())
    });
}

/// The way a home user has it: the one with an open port has the work.
#[test]
fn a_relay_has_work_of_its_own() {
    let relay = relay("relay = true\n");
    let behind = behind(&relay, "");
    behind.nucleus.cell(["peer", "add", &relay.key]).expect(0);
    behind.nucleus.cell(["ledger", "grant", "50", &relay.key]).expect(0);
    wait_until_it_waits(&behind.nucleus);
    let run = ["run", "--on", &behind.on(&relay), &behind.cat];
    let ran = relay.nucleus.cell_with_input(run, b"hello");
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(7), "hello"), "{}", ran.stderr);
    // Its owner does not wait there, nor is he taken for a peer otherwise.
    relay.refuses(&relay.nucleus, &Request::Wait, "does not wait at itself");
    relay.refuses(&relay.nucleus, &Request::Job, "does not call itself");
}

/// A relay that is killed takes its connections along; machines come back to the next one by themselves.
#[test]
fn a_relay_that_dies_is_tried_again() {
    let mut relay = relay("relay = true\n");
    let behind = behind(&relay, "");
    wait_until_it_waits(&behind.nucleus);
    let home = relay.nucleus.kill();
    eventually("the machine has lost its relay", || {
        (way(&behind.nucleus)["waits"] == false).then_some(())
    });
    let run =
        ["call", &format!("cell://{}@{}@{}/counter.add", behind.key, relay.key, relay.address)];
    behind.home.cell(run).expect(1);
    relay.nucleus = Nucleus::up(&home);
    wait_until_it_waits(&behind.nucleus);
    let run = ["run", "--on", &format!("{}@{}", behind.key, relay.at()), &behind.cat];
    let ran = behind.home.cell_with_input(run, b"hello");
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(7), "hello"), "{}", ran.stderr);
    // The machine's own gateway may die as well.
    let gateway = behind.nucleus.process().children().into_iter();
    let is_one = |word: &String| word == "gateway";
    let gateway = gateway.into_iter().find(|child| child.arguments().get(1).is_some_and(is_one));
    gateway.unwrap().kill();
    eventually("it is reached again", || {
        let ran = behind.home.cell_with_input(run, b"hello");
        (ran.code == Some(7)).then_some(())
    });
}

/// Each refusal says what to type next.
#[test]
fn what_a_relay_refuses() {
    let closed = relay("");
    let open = relay("relay = true\n");
    let (waiting, home) = (Home::new(), Home::new());
    let machine = AccountId::parse(&key(&waiting)).unwrap();
    let through = Request::Through(machine);
    closed.knows(&waiting);
    closed.refuses(&waiting, &Request::Wait, "no peers.relay = true");
    closed.refuses(&home, &through, "no peers.relay = true");
    // Who is not known may not wait, nor ask; and not for whom is not known.
    open.refuses(&waiting, &Request::Wait, &format!("cell peer add {machine}"));
    open.refuses(&home, &through, &format!("cell peer add {}", key(&home)));
    open.knows(&home);
    open.refuses(&home, &through, &format!("cell peer add {machine}"));
    open.knows(&waiting);
    open.refuses(&home, &through, "does not wait here now");
    // As the one who asks sees it.
    let place = tempfile::Builder::new().prefix("ct-w-").tempdir_in("/tmp").unwrap();
    let cat = place.path().join("cat.wasm");
    fs::write(&cat, wat::compile(CAT)).unwrap();
    let run = ["run", "--on", &format!("{machine}@{}", open.at()), cat.to_str().unwrap()];
    let ran = home.cell(run);
    assert!(ran.expect(1).stderr.contains("does not wait here now"), "{}", ran.stderr);
    assert!(ran.stderr.contains("cell peer list"), "{}", ran.stderr);
    // One machine on the way, and one key for each.
    for (on, expect) in [
        (format!("{machine}@{}@{}", open.key, open.at()), "no RELAYKEY@HOST:PORT"),
        (format!("{machine}@12@{}", open.address), "no RELAYKEY@HOST:PORT"),
        (format!("{machine}@{machine}@{}", open.address), "the peer is"),
    ] {
        let ran = home.cell(["run", "--on", &on, cat.to_str().unwrap()]);
        assert!(ran.expect(1).stderr.contains(expect), "{expect}: {}", ran.stderr);
    }
    home.cell(["peer", "add", &key(&waiting), "--at", &open.at()]).expect(0);
    let twice = format!("{}@{}", open.key, open.at());
    home.cell(["peer", "add", &key(&waiting), "--at", &twice]).expect(2);
}

/// The machine's owner reads why it does not wait, and it does as soon as it may.
#[test]
fn a_machine_that_may_not_wait_says_so() {
    let relay = relay("relay = true\n");
    let donor = Home::new();
    let text = format!("[peers]\nthrough = [\"{}\"]\njobs = true\n", relay.at());
    fs::write(donor.path().join("nucleus.toml"), text).unwrap();
    let nucleus = Nucleus::up(&donor);
    wait_for_refusal(&donor, &format!("cell peer add {}", key(&donor)));
    let told = donor.cell(["peer", "list"]).expect(0).stdout.clone();
    assert!(told.contains("not through") && told.contains("cell peer add"), "{told}");
    relay.knows(&donor);
    wait_until_it_waits(&nucleus);
    // Who is forgotten is not found there any more, though its line is open.
    let home = Home::new();
    relay.knows(&home);
    relay.nucleus.cell(["peer", "remove", &key(&donor)]).expect(0);
    let through = Request::Through(AccountId::parse(&key(&donor)).unwrap());
    relay.refuses(&home, &through, "does not know");
}

/// With `trust = "anyone-who-pays"` a relay connects anybody, and the machine behind it decides by itself.
#[test]
fn strangers_come_through_where_the_relay_lets_them() {
    let relay = relay("relay = true\ntrust = \"anyone-who-pays\"\n");
    let behind = behind(&relay, "");
    wait_until_it_waits(&behind.nucleus);
    let stranger = Home::new();
    let call = ["call", &format!("cell://{}/counter.get", behind.on(&relay))];
    let ran = stranger.cell(call);
    let expect = format!("cell peer add {}", key(&stranger));
    assert!(ran.expect(1).stderr.contains(&expect), "{}", ran.stderr);
    behind.nucleus.cell(["peer", "add", &key(&stranger)]).expect(0);
    behind.nucleus.cell(["ledger", "grant", "1", &key(&stranger)]).expect(0);
    stranger.cell(call).expect(0);
    // To wait takes a name.
    relay.refuses(&stranger, &Request::Wait, "cell peer add");
}

/// A PC behind a router is lent like one with an open port, for as long as that lasts.
#[test]
fn a_machine_without_a_port_is_lent() {
    let relay = relay("relay = true\n");
    let behind = behind(&relay, ALWAYS);
    wait_until_it_waits(&behind.nucleus);
    let donating = Donate::start(&behind.nucleus);
    let row = wait_for(&behind.nucleus, "it works for others", is_working);
    assert_eq!(row["listens"], json!(relay.at()));
    let on = behind.on(&relay);
    let run = ["run", "--on", &on, &behind.cat];
    let ran = behind.home.cell_with_input(run, b"hello");
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(7), "hello"), "{}", ran.stderr);
    behind.nucleus.cell(["donate", "stop"]).expect(0);
    let ran = behind.home.cell_with_input(run, b"hello");
    assert!(ran.expect(1).stderr.contains("not lent"), "{}", ran.stderr);
    drop(donating);
}

fn token(line: &mut impl std::io::Read) -> Token {
    let mut token = [0; TOKEN_BYTES];
    line.read_exact(&mut token).unwrap();
    token
}

/// A token is worth something to one machine, once; whoever guesses gets nothing, and takes nothing away.
#[test]
fn tokens_are_for_one_machine() {
    let relay = relay("relay = true\n");
    let (waiting, other, asking) = (Home::new(), Home::new(), Home::new());
    for home in [&waiting, &other, &asking] {
        relay.knows(home);
    }
    let mut line = relay.ask(&waiting, &Request::Wait).unwrap();
    let machine = AccountId::parse(&key(&waiting)).unwrap();
    let (address, wanted) = (relay.address.clone(), relay.key());
    let asker = asking.clone();
    let asked =
        thread::spawn(move || ask(&address, wanted, &asker, &Request::Through(machine)).map(drop));
    let token = token(&mut line);
    relay.refuses(&waiting, &Request::Meet([0; TOKEN_BYTES]), "nobody waits for you");
    relay.refuses(&other, &Request::Meet(token), "nobody waits for you");
    drop(relay.ask(&waiting, &Request::Meet(token)).unwrap());
    assert_eq!(asked.join().unwrap(), Ok(()));
    relay.refuses(&waiting, &Request::Meet(token), "nobody waits for you");
    // Whoever waits anew is told from then on; the line before is closed.
    let mut again = relay.ask(&waiting, &Request::Wait).unwrap();
    let mut rest = Vec::new();
    line.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    let (address, asker) = (relay.address.clone(), asking.clone());
    let asked =
        thread::spawn(move || ask(&address, wanted, &asker, &Request::Through(machine)).map(drop));
    self::token(&mut again);
    // It does not come: the asker is told so, and does not wait for ever.
    match asked.join().unwrap() {
        Err(PeerError::Refused(why)) => assert!(why.contains("did not come"), "{why}"),
        other => panic!("{other:?}"),
    }
    // One that hangs up waits no more.
    drop(again);
    eventually("it does not wait any more", || {
        match relay.ask(&asking, &Request::Through(machine)).map(drop) {
            Err(PeerError::Refused(why)) if why.contains("does not wait here now") => Some(()),
            _ => None,
        }
    });
}

/// One who asks again and again for a machine that does not come keeps nobody else from it.
#[test]
fn a_flood_keeps_nobody_out() {
    let relay = relay("relay = true\n");
    let behind = behind(&relay, "");
    wait_until_it_waits(&behind.nucleus);
    let (slow, flooding) = (Home::new(), Home::new());
    relay.knows(&slow);
    relay.knows(&flooding);
    let mut line = relay.ask(&slow, &Request::Wait).unwrap();
    let machine = AccountId::parse(&key(&slow)).unwrap();
    let (address, wanted) = (relay.address.clone(), relay.key());
    let through = move |home: &Home| {
        let (home, address) = (home.clone(), address.clone());
        thread::spawn(move || ask(&address, wanted, &home, &Request::Through(machine)).map(drop))
    };
    let under_way: Vec<_> = (0..4).map(|_| through(&flooding)).collect();
    for _ in 0..4 {
        token(&mut line);
    }
    relay.refuses(&flooding, &Request::Through(machine), "too many wait for that machine");
    // Another one is told to the machine all the same, and other machines are reached.
    let asked = through(&behind.home);
    drop(relay.ask(&slow, &Request::Meet(token(&mut line))).unwrap());
    assert_eq!(asked.join().unwrap(), Ok(()));
    let call = ["call", &format!("cell://{}/counter.get", behind.on(&relay))];
    behind.home.cell(call).expect(0);
    drop(under_way);
    // Nor does who asks for what is not there, or says nothing.
    let nothing = Request::Cell(CellName::parse("nothing").unwrap());
    relay.refuses(&flooding, &nothing, "there is no cell");
}
