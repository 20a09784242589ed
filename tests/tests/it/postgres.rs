//! Nuclei that keep their ledger in one PostgreSQL database: they pay from the same books, outlive
//! its failures, and leave it right when they are killed.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use cell_abi::{Fuel, Status};
use cell_client::{CallOptions, Client, Error};
use cell_ledger::private_server::Server;
use cell_tests::process::Process;
use cell_tests::{GUARD, Home, Nucleus, eventually, wat};
use serde_json::Value;

const OPTIONS: CallOptions = CallOptions { fuel: Fuel(200_000), timeout: GUARD };

/// A home whose ledger is this database.
fn home(url: &str) -> Home {
    let home = Home::new();
    fs::write(home.path().join("nucleus.toml"), format!("ledger = {url:?}\n")).unwrap();
    home
}

fn owner(home: &Home) -> String {
    home.cell(["id", "--json"]).expect(0).json()["owner"].as_str().unwrap().to_owned()
}

fn verified(home: &Home) -> Value {
    home.cell(["ledger", "verify", "--json"]).expect(0).json()
}

/// What calls burned until this says to stop; each call is tried until it is served.
fn call_until(socket: &Path, stop: &AtomicBool, burned: &AtomicU64) -> Result<(), Error> {
    let mut client = Client::connect(socket, "echo")?;
    let slot = client.open_raw("run")?;
    while !stop.load(Relaxed) {
        match client.call_raw(&slot, b"hello", OPTIONS) {
            Ok(reply) => drop(burned.fetch_add(reply.fuel().0, Relaxed)),
            // The ledger cannot be reached, and what was set aside is used up.
            Err(error) if error.status() == Some(Status::OutOfAtp) => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Four nuclei under load; the server is killed and comes back, a nucleus is killed and comes back.
#[test]
fn four_nuclei_share_a_ledger() {
    let Some(mut server) = Server::start("postgres::four_nuclei_share_a_ledger") else { return };
    let url = server.database();
    let homes: Vec<Home> = (0..4).map(|_| home(&url)).collect();
    let mut nuclei = Vec::new();
    for (number, home) in homes.iter().enumerate() {
        if number > 0 {
            // Its money comes from whoever made the ledger; nobody else can make any.
            let refused = home.cell(["ledger", "grant", "5"]).expect(126).stderr.clone();
            assert!(refused.contains(&owner(home)), "{refused}");
            homes[0].cell(["ledger", "grant", "50", &owner(home)]).expect(0);
        }
        let nucleus = Nucleus::up(home);
        nucleus.deploy_wat("echo", &wat::cell("", wat::ECHO), "");
        nuclei.push(nucleus);
    }
    let burned: [AtomicU64; 4] = Default::default();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let sockets: Vec<_> = homes.iter().map(|home| home.socket("echo")).collect();
        let callers: Vec<_> = (0..4)
            .map(|at| {
                let (socket, stop, burned) = (sockets[at].clone(), &stop, &burned[at]);
                scope.spawn(move || call_until(&socket, stop, burned))
            })
            .collect();
        let progress = |more: u64| {
            let before: Vec<u64> = burned.iter().map(|fuel| fuel.load(Relaxed)).collect();
            eventually("every nucleus serves calls", || {
                let served = |at: usize| burned[at].load(Relaxed) >= before[at] + more;
                (0..nuclei.len()).all(served).then_some(())
            });
        };
        progress(20_000_000);
        server.kill();
        thread::sleep(Duration::from_millis(300));
        server.restart();
        progress(20_000_000);
        let last = nuclei.pop().unwrap().kill();
        assert_eq!(last.path(), homes[3].path());
        stop.store(true, Relaxed);
        let mut ended: Vec<_> = callers.into_iter().map(|caller| caller.join().unwrap()).collect();
        assert!(ended.pop().unwrap().is_err(), "its nucleus was killed under it");
        assert!(ended.iter().all(Result::is_ok), "{ended:?}");
    });
    // What was burned is paid, to the unit.
    for (home, burned) in homes.iter().zip(&burned).take(3) {
        home.wait_for_earned("echo", Fuel(burned.load(Relaxed)));
    }
    // Of the killed one nothing is paid that nobody was served, and nothing twice.
    let earned = u64::try_from(homes[3].balance("cell:echo")).unwrap();
    let served = burned[3].load(Relaxed);
    assert!(earned > 0 && earned <= served + 100_000, "{earned} of {served}");
    nuclei.push(Nucleus::up(&homes[3]));
    for nucleus in nuclei {
        nucleus.down();
    }
    let books = verified(&homes[0]);
    assert_eq!(books["open_holds"], 0, "{books}");
    // Fails unless the sum is zero.
    homes[0].balances();
    println!("four nuclei burned {burned:?}; {books}");
}

/// Without a ledger calls go on within what is set aside, then they are out of ATP; when it is back
/// all is paid.
#[test]
fn a_lost_ledger_is_outlived() {
    let Some(mut server) = Server::start("postgres::a_lost_ledger_is_outlived") else { return };
    let home = home(&server.database());
    let nucleus = Nucleus::up(&home);
    nucleus.deploy_wat("echo", &wat::cell("", wat::ECHO), "");
    let mut client = nucleus.client("echo");
    let slot = client.open_raw("run").unwrap();
    let mut burned = client.call_raw(&slot, b"hello", OPTIONS).unwrap().fuel().0;
    server.kill();
    let mut served = 0;
    let refused = loop {
        match client.call_raw(&slot, b"hello", OPTIONS) {
            Ok(reply) => {
                burned += reply.fuel().0;
                served += 1;
                assert!(served < 100_000, "calls go on without anybody to pay");
            }
            Err(error) => break error,
        }
    };
    assert_eq!(refused.status(), Some(Status::OutOfAtp), "{refused}");
    assert!(served > 0, "calls end with the ledger");
    // Everything that needs no ledger works, and what does says why not.
    assert_eq!(home.row("echo").unwrap()["state"], "live");
    let told = home.cell(["ledger", "balance"]).expect(1).stderr.clone();
    assert!(told.contains("cannot be reached"), "{told}");

    server.restart();
    burned += eventually("calls are served again", || {
        Some(client.call_raw(&slot, b"hello", OPTIONS).ok()?.fuel().0)
    });
    home.wait_for_earned("echo", Fuel(burned));
    nucleus.down();
    assert_eq!(verified(&home)["open_holds"], 0);
    println!("{served} calls were served without a ledger");
}

/// A job runs on a shared ledger too, and its hold outlives a while without a word.
#[test]
fn a_job_is_paid_from_a_shared_ledger() {
    let Some(server) = Server::start("postgres::a_job_is_paid_from_a_shared_ledger") else {
        return;
    };
    let url = server.database();
    let home = Home::new();
    let wasm = home.path().join("job.wasm");
    let job = "(module (memory (export \"memory\") 1) (func (export \"_start\")))";
    fs::write(&wasm, wat::compile(job)).unwrap();
    let with = |arguments: &[&str]| {
        let mut all = vec!["--ledger", &url];
        all.extend(arguments);
        home.cell(all)
    };
    with(&["run", wasm.to_str().unwrap()]).expect(0);
    let balance = with(&["ledger", "balance", "node", "--json"]).expect(0).json();
    let earned = balance["accounts"][0]["posted_nano_atp"].as_i64().unwrap();
    assert!(earned > 100_000_000, "compiling and the job: {earned}");
    assert!(!home.path().join("ledger.db").exists(), "nothing was kept elsewhere");
    let bad = home.cell(["--ledger", "http://x", "ledger", "balance"]).expect(1).stderr.clone();
    assert!(bad.contains("URL"), "{bad}");
}

/// The server dies while a job runs, and is back a while after the job has ended: the job is paid, once.
/// It used to be given up at the first lost answer, and the hold that should have paid was released.
#[test]
fn a_job_outlives_the_ledgers_absence() {
    let name = "postgres::a_job_outlives_the_ledgers_absence";
    let Some(mut server) = Server::start(name) else { return };
    let home = home(&server.database());
    let wasm = home.path().join("job.wasm");
    let job = r#"(module
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 8) "\10\00\00\00\05\00\00\00here\n")
        (func (export "_start") (local $n i32)
            (drop (call $write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 0)))
            (loop $again
                (local.set $n (i32.add (local.get $n) (i32.const 1)))
                (br_if $again (i32.lt_u (local.get $n) (i32.const 1000000000))))))"#;
    fs::write(&wasm, wat::compile(job)).unwrap();
    let receipt = home.path().join("receipt.json");
    let mut command = home.command([Path::new("run"), Path::new("--receipt"), &receipt, &wasm]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let run = Process::of(child.id()).unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "here\n");
    server.kill();
    eventually("the job has ended", || run.children().is_empty().then_some(()));
    assert!(child.try_wait().unwrap().is_none(), "it gave up");
    server.restart();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let told: Value = serde_json::from_slice(&fs::read(&receipt).unwrap()).unwrap();
    let nano = |key: &str| told[key].as_i64().unwrap_or_else(|| panic!("{told}"));
    assert_eq!(home.balance("node"), nano("charge_nano_atp") + nano("compile_fuel"));
    assert_eq!(verified(&home)["open_holds"], 0);
}
