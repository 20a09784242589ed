//! A module on its way to another machine: lines that are cut in the middle, several at once, and machines that
//! send what is not what they say.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use cell_abi::{AccountId, CellHash};
use cell_peer::{Credentials, Request, tunnel};
use cell_tests::{Home, Random, eventually, wat};
use serde_json::{Value, json};

use crate::frames::{receive, send};
use crate::peers::{Donor, identity, key};
use crate::remote_jobs::{CAT, two};

const MIB: usize = 1 << 20;

/// What a job's frames begin with.
const SPEC: u8 = 1;
const MODULE: u8 = 2;
const INPUT: u8 = 3;
const NEED_MODULE: u8 = 16;
const END: u8 = 21;

/// [`CAT`], with so many bytes beside it that no two modules have in common.
fn long_module(seed: u64, bytes: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let filling: Vec<u8> = (0..bytes).map(|_| random.below(256).to_le_bytes()[0]).collect();
    let mut wasm = wat::compile(CAT);
    let content = [b"\x01x", filling.as_slice()].concat();
    wasm.push(0);
    let mut length = content.len();
    // Its length, seven bits at a time.
    while length > 0x7f {
        wasm.push((length & 0x7f | 0x80).to_le_bytes()[0]);
        length >>= 7;
    }
    wasm.push(length.to_le_bytes()[0]);
    wasm.extend(content);
    wasm
}

/// A line to a machine that is cut after so many bytes in one direction, each connection after its own number;
/// further ones stay. It counts what went.
struct Line {
    address: String,
    carried: Arc<AtomicU64>,
}

impl Line {
    fn new(to: &str, cuts: Vec<usize>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (carried, to) = (Arc::<AtomicU64>::default(), to.to_owned());
        let (all, mut cuts) = (Arc::clone(&carried), cuts.into_iter());
        // It ends with the test's process.
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let far = TcpStream::connect(&to).unwrap();
                let (mut back, mut to_near) = (far.try_clone().unwrap(), near.try_clone().unwrap());
                thread::spawn(move || {
                    let _ = std::io::copy(&mut back, &mut to_near);
                    let _ = to_near.shutdown(Shutdown::Write);
                });
                let (all, left) = (Arc::clone(&all), cuts.next().unwrap_or(usize::MAX));
                thread::spawn(move || carry(near, far, left, &all));
            }
        });
        Self { address, carried }
    }

    fn carried(&self) -> usize {
        self.carried.load(Relaxed).try_into().unwrap()
    }
}

fn carry(mut near: TcpStream, mut far: TcpStream, mut left: usize, all: &AtomicU64) {
    let mut bytes = [0; 4096];
    while left > 0 {
        let most = left.min(bytes.len());
        let Ok(read @ 1..) = near.read(&mut bytes[..most]) else {
            let _ = far.shutdown(Shutdown::Write);
            return;
        };
        if far.write_all(&bytes[..read]).is_err() {
            return;
        }
        all.fetch_add(read as u64, Relaxed);
        left -= read;
    }
    for stream in [near, far] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// What a machine kept of modules that did not come as a whole, in bytes, by name.
fn parts(donor: &Donor) -> Vec<(String, usize)> {
    let Ok(all) = fs::read_dir(donor.nucleus.path().join("modules")) else { return Vec::new() };
    let about = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        Some((name.strip_suffix(".part")?.to_owned(), fs::metadata(entry.path()).ok()?.len()))
    };
    let sized = all.filter_map(about).map(|(name, length)| (name, length.try_into().unwrap()));
    sized.collect()
}

/// Cut twice in the middle, the module goes over once, and runs and is paid once.
#[test]
fn a_cut_upload_goes_on() {
    let two = two("");
    two.donor.nucleus.cell(["ledger", "grant", "1000", &two.account]).expect(0);
    let module = two.place.path().join("long.wasm");
    let wasm = long_module(1, 12 * MIB);
    fs::write(&module, &wasm).unwrap();
    let line = Line::new(&two.donor.address, vec![7 * MIB, 3 * MIB]);
    let on = format!("{}@{}", two.donor.key, line.address);
    let bill = two.place.path().join("bill.json");
    let (module, bill) = (module.to_str().unwrap(), bill.to_str().unwrap());
    let run = ["run", "--on", &on, "--receipt", bill, "--budget", "5", module];
    let ran = two.home.cell_with_input(run, b"all of it");
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(7), "all of it"), "{}", ran.stderr);
    for again in ["dialling again (2 of 6)", "dialling again (3 of 6)"] {
        assert!(ran.stderr.contains(again), "{}", ran.stderr);
    }
    let carried = line.carried();
    println!("{} bytes of module, {carried} sent in three connections", wasm.len());
    // Each cut takes at most a record that had not come as a whole; handshakes and lengths are small.
    assert!(carried < wasm.len() + MIB / 2, "{carried}");
    assert_eq!(parts(&two.donor), []);
    let receipt: Value = serde_json::from_slice(&fs::read(bill).unwrap()).unwrap();
    let paid = ["compile_fuel", "charge_nano_atp"].map(|part| receipt[part].as_i64().unwrap());
    assert_eq!(two.spent() + 1_000_000_000_000, paid.iter().sum::<i64>());
    two.donor.nucleus.cell(["ledger", "verify"]).expect(0);
}

/// A job's session, by hand.
struct Session(UnixStream);

impl Session {
    fn open(donor: &Donor, home: &Home, wasm: &[u8]) -> Self {
        let credentials = Credentials::new(&identity(home), tunnel::now_s()).unwrap();
        let wanted = AccountId::parse(&donor.key).unwrap();
        let timeout = Duration::from_secs(20);
        let mut socket = eventually("the job is taken", || {
            tunnel::dial(&donor.address, &credentials, wanted, &Request::Job, timeout).ok()
        });
        let spec = json!({ "module": CellHash::of(wasm).to_string(), "module_bytes": wasm.len(),
            "arguments": ["x"], "environment": [], "memory_mb_max": 16, "budget_nano_atp": 5_000_000_000_u64,
            "is_budget_given": true, "timeout_ms": null, "recorded": false });
        send(&mut socket, SPEC, spec.to_string().as_bytes()).unwrap();
        Self(socket)
    }

    /// From where the machine wants the module, which is what it says next.
    fn wanted(&mut self) -> usize {
        let (kind, content) = receive(&mut self.0).unwrap();
        assert_eq!(kind, NEED_MODULE, "{content:?}");
        if content.is_empty() {
            return 0;
        }
        u64::from_le_bytes(content.try_into().unwrap()).try_into().unwrap()
    }

    fn send(&mut self, module: &[u8]) {
        for part in module.chunks(64 << 10) {
            send(&mut self.0, MODULE, part).unwrap();
        }
    }

    /// How it ended.
    fn end(mut self) -> Value {
        send(&mut self.0, INPUT, b"").unwrap();
        loop {
            let (kind, content) = receive(&mut self.0).unwrap();
            if kind == END {
                return serde_json::from_slice(&content).unwrap();
            }
            assert_ne!(kind, NEED_MODULE, "{content:?}");
        }
    }
}

/// Waits until this is there of a module of a machine.
fn wait_for(donor: &Donor, home: &Home, (wasm, bytes): (&[u8], usize)) {
    let name = format!("{}-{}", key(home), CellHash::of(wasm));
    eventually("the part is kept", || parts(donor).contains(&(name.clone(), bytes)).then_some(()));
}

/// One that sends something else under a module's name harms nobody but itself, and itself only once.
#[test]
fn what_is_wrong_is_its_senders_alone() {
    let two = two("");
    let other = Home::new();
    two.donor.admit(&other, "50");
    let wasm = long_module(2, 300 << 10);
    let half = 128 << 10;
    let mut poison = Session::open(&two.donor, &two.home, &wasm);
    assert_eq!(poison.wanted(), 0);
    poison.send(&vec![0x5a; half]);
    wait_for(&two.donor, &two.home, (&wasm, half));
    drop(poison);
    let mut honest = Session::open(&two.donor, &other, &wasm);
    assert_eq!(honest.wanted(), 0, "it is not told of another's part");
    honest.send(&wasm[..half]);
    wait_for(&two.donor, &other, (&wasm, half));
    drop(honest);
    // The first one, honest now: the rest does not fit what is there, so all is wanted.
    let mut again = Session::open(&two.donor, &two.home, &wasm);
    assert_eq!(again.wanted(), half);
    again.send(&wasm[half..]);
    assert_eq!(again.wanted(), 0);
    again.send(&vec![0x5a; wasm.len()]);
    let end = again.end();
    assert!(end["message"].as_str().unwrap().contains("not the one"), "{end}");
    let mut again = Session::open(&two.donor, &two.home, &wasm);
    assert_eq!(again.wanted(), 0);
    again.send(&wasm[..half]);
    wait_for(&two.donor, &two.home, (&wasm, half));
    drop(again);
    // The other one goes on where it was, and then the module is there for all.
    let mut honest = Session::open(&two.donor, &other, &wasm);
    assert_eq!(honest.wanted(), half);
    honest.send(&wasm[half..]);
    let end = honest.end();
    assert_eq!((&end["ran"], &end["exit"]), (&json!(true), &json!(7)), "{end}");
    let end = Session::open(&two.donor, &two.home, &wasm).end();
    assert_eq!((&end["ran"], &end["exit"]), (&json!(true), &json!(7)), "{end}");
    two.donor.nucleus.cell(["ledger", "verify"]).expect(0);
}

/// Two jobs of one machine that bring one module at once: both run.
#[test]
fn two_bring_one_module_at_once() {
    let two = two("");
    let wasm = long_module(3, 400 << 10);
    let third = 128 << 10;
    let mut first = Session::open(&two.donor, &two.home, &wasm);
    assert_eq!(first.wanted(), 0);
    first.send(&wasm[..third]);
    wait_for(&two.donor, &two.home, (&wasm, third));
    let mut second = Session::open(&two.donor, &two.home, &wasm);
    assert_eq!(second.wanted(), third);
    second.send(&wasm[third..2 * third]);
    wait_for(&two.donor, &two.home, (&wasm, 2 * third));
    // The first one writes what is there already, and ends before the other does.
    first.send(&wasm[third..]);
    let end = first.end();
    assert_eq!((&end["ran"], &end["exit"]), (&json!(true), &json!(7)), "{end}");
    second.send(&wasm[2 * third..]);
    let end = second.end();
    assert_eq!((&end["ran"], &end["exit"]), (&json!(true), &json!(7)), "{end}");
    assert_eq!(parts(&two.donor), []);
}

/// However many modules a machine begins to send, only so much is kept of them.
#[test]
fn parts_do_not_fill_the_disk() {
    let two = two("");
    let begin = |seed: u64| -> Vec<u8> {
        let wasm = long_module(seed, 200 << 10);
        let mut session = Session::open(&two.donor, &two.home, &wasm);
        assert_eq!(session.wanted(), 0);
        session.send(&wasm[..100 << 10]);
        wait_for(&two.donor, &two.home, (&wasm, 100 << 10));
        wasm
    };
    let all: Vec<_> = (10..15).map(begin).collect();
    assert_eq!(parts(&two.donor).len(), 2);
    for wasm in &all[3..] {
        wait_for(&two.donor, &two.home, (wasm, 100 << 10));
    }
    assert_eq!(two.spent(), 0);
}

/// A line that stays cut: the command says how often it dialled, and that nothing ran.
#[test]
fn who_is_gone_is_dialled_a_few_times() {
    let two = two("");
    let module = two.place.path().join("long.wasm");
    fs::write(&module, long_module(4, 8 * MIB)).unwrap();
    // The handshake comes through, and little more.
    let line = Line::new(&two.donor.address, vec![20_000; 6]);
    let on = format!("{}@{}", two.donor.key, line.address);
    let ran = two.home.cell_with_input(["run", "--on", &on, module.to_str().unwrap()], b"");
    assert!(ran.expect(125).stderr.contains("dialling again (6 of 6)"), "{}", ran.stderr);
    assert!(ran.stderr.contains("nothing ran, and nothing is charged"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("(7"), "{}", ran.stderr);
    assert_eq!(two.spent(), 0);
}

/// More than there is to a module is not the rest of what came before: the next one begins anew.
#[test]
fn too_much_of_a_module_begins_anew() {
    let two = two("");
    let wasm = long_module(5, 300 << 10);
    let half = 128 << 10;
    let mut session = Session::open(&two.donor, &two.home, &wasm);
    assert_eq!(session.wanted(), 0);
    session.send(&wasm[..half]);
    wait_for(&two.donor, &two.home, (&wasm, half));
    drop(session);
    let mut more = Session::open(&two.donor, &two.home, &wasm);
    assert_eq!(more.wanted(), half);
    more.send(&wasm[..192 << 10]);
    let (kind, content) = receive(&mut more.0).unwrap();
    let end: Value = serde_json::from_slice(&content).unwrap();
    assert_eq!((kind, &end["message"]), (END, &json!("the module did not come")));
    drop(more);
    assert_eq!(parts(&two.donor), []);
    assert_eq!(Session::open(&two.donor, &two.home, &wasm).wanted(), 0);
    assert_eq!(two.spent(), 0);
}
