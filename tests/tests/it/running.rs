//! What a cell has while it runs: its state, its log, and other cells.

use std::fs;
use std::thread;

use cell_client::{CallOptions, Error, Status};
use cell_tests::{GUARD, Home, Nucleus, eventually, wat};
use serde_json::Value;

#[track_caller]
fn count(home: &Home, by: i64) -> i64 {
    let mut client = home.client("counter");
    let slot = client.open::<counter::add::Receptor>().unwrap();
    client
        .call(&slot, &counter::Add { by }, CallOptions::default())
        .unwrap()
        .into_owned()
        .unwrap()
        .value
}

#[test]
fn state_survives() {
    let home = Home::new();
    let nucleus = Nucleus::up(&home);
    nucleus.deploy("counter");
    assert_eq!((count(&home, 5), count(&home, 2)), (5, 7));
    // New code, a restart, the worker's death, the nucleus' death.
    let row = nucleus.wait_for("counter", "live");
    fs::write(
        home.cell_directory("counter").join("Cell.toml"),
        wat::manifest("counter", "state_mb_max = 1\nreplicas_max = 3"),
    )
    .unwrap();
    eventually("the manifest was taken", || (count(&home, 0) == 7).then_some(()));
    assert_eq!(nucleus.wait_for("counter", "live")["hash"], row["hash"]);
    nucleus.down();
    let nucleus = Nucleus::up(&home);
    nucleus.wait_for("counter", "live");
    assert_eq!(count(&home, 1), 8);
    let worker = nucleus.worker();
    worker.kill();
    eventually("another worker serves", || (nucleus.worker() != worker).then_some(()));
    assert_eq!(count(&home, 1), 9);
    nucleus.kill();
    let nucleus = Nucleus::up(&home);
    nucleus.wait_for("counter", "live");
    assert_eq!(count(&home, 1), 10);
    // Many at once: each counts.
    let all = (0..4).map(|_| home.clone());
    let threads: Vec<_> =
        all.map(|home| thread::spawn(move || (0..25).map(|_| count(&home, 1)).max())).collect();
    let last = threads.into_iter().map(|thread| thread.join().unwrap()).max();
    assert_eq!((last, count(&home, 0)), (Some(Some(110)), 110));
    // Removed and deployed again it is another cell.
    home.cell(["rm", "counter"]).expect(0);
    nucleus.deploy("counter");
    assert_eq!(count(&home, 1), 1);
    nucleus.down();
}

const KV: &str = r#"
    (import "cell_v1" "kv_get" (func $get (param i32 i32) (result i64)))
    (import "cell_v1" "kv_set" (func $set (param i32 i32 i32 i32) (result i32)))
    (import "cell_v1" "kv_delete" (func $delete (param i32 i32) (result i32)))"#;

/// The first byte of the request is the key, all of it the value; answers what `kv_set` said.
const SET: &str = r#"
    (i32.store (i32.const 64) (call $set (local.get $ptr) (i32.const 1) (local.get $ptr) (local.get $len)))
    (i64.or (i64.shl (i64.const 4) (i64.const 32)) (i64.const 64))"#;

#[test]
fn the_quota_of_state_holds() {
    let home = Home::new();
    let mut nucleus = Nucleus::up(&home);
    nucleus.deploy_wat("kv", &wat::cell(KV, SET), "state_mb_max = 1");
    let set = |home: &Home, key: u8, bytes: usize| {
        let mut client = home.client("kv");
        let slot = client.open_raw("run").unwrap();
        let mut request = vec![key];
        request.resize(bytes, 0);
        client.call_raw(&slot, &request, CallOptions::default()).unwrap().bytes()[0]
    };
    for key in 0..10 {
        assert_eq!(set(&home, key, 100_000), 0);
    }
    // 1,000,010 of 1,048,576 bytes are used, also after a restart.
    for _ in 0..2 {
        assert_eq!(set(&home, 10, 100_000), 1);
        assert_eq!(set(&home, 10, 48_565), 0);
        assert_eq!(set(&home, 11, 10), 1);
        assert_eq!(set(&home, 10, 10), 0);
        nucleus.down();
        nucleus = Nucleus::up(&home);
        nucleus.wait_for("kv", "live");
    }
    let size: u64 = fs::read_dir(home.cell_directory("kv").join("data"))
        .unwrap()
        .map(|e| e.unwrap().metadata().unwrap().len())
        .sum();
    assert!(size < 8 << 20, "a mebibyte of state takes {size} bytes");
}

#[test]
fn logs_are_escaped_and_cut() {
    let nucleus = Nucleus::new();
    let log = r#"(import "cell_v1" "log" (func $log (param i32 i32 i32)))"#;
    nucleus.deploy_wat(
        "l",
        &wat::cell(
            log,
            &format!("(call $log (i32.const 2) (local.get $ptr) (local.get $len)) {}", wat::ECHO),
        ),
        "",
    );
    let mut client = nucleus.client("l");
    let slot = client.open_raw("run").unwrap();
    let mut say =
        |bytes: &[u8]| drop(client.call_raw(&slot, bytes, CallOptions::default()).unwrap());
    say(b"plain");
    say(b"\x1b[2J\x1b]0;owned\x07 and \xff\x00\r\n1999.000 error forged");
    // The file is opened when there is something to log.
    let text = eventually("the log is written", || {
        let text = nucleus.cell(["logs", "l", "-n", "1000000"]).expect(0).stdout.clone();
        text.contains("error forged").then_some(text)
    });
    assert!(text.contains("warn plain"), "{text}");
    assert!(
        !text.chars().any(|c| c.is_control() && c != '\n' && c != '\t'),
        "control characters reach the terminal"
    );
    assert!(
        text.contains("\\u{1b}[2J") && !text.lines().any(|line| line.starts_with("1999")),
        "a line was forged"
    );
    say(&vec![b'x'; 100_000]);
    for _ in 0..100 {
        say(&vec![b'y'; 100_000]);
    }
    let shown = nucleus.cell(["logs", "l", "-n", "1000000"]);
    let text = &shown.expect(0).stdout;
    assert!(text.lines().all(|line| line.len() < 20_000), "a record is without end");
    let size = fs::metadata(nucleus.cell_directory("l").join("log/cell.log")).unwrap().len();
    assert!(size < 8 << 20, "a flood of ten megabytes left {size}");
    // For machines: an object a line.
    let shown = nucleus.cell(["logs", "l", "-n", "3", "--json"]);
    for line in shown.expect(0).stdout.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        assert_eq!(record["level"], "warn", "{line}");
    }
    nucleus.cell(["logs", "nosuch"]).expect(1);
}

/// Two cells that call each other for ever, and one that calls itself: it ends, and says how.
#[test]
fn calls_in_a_circle() {
    let nucleus = Nucleus::new();
    nucleus.put("ping", &wat::manifest("ping", ""), &wat::compile(&wat::caller("pong")));
    nucleus.put("pong", &wat::manifest("pong", ""), &wat::compile(&wat::caller("ping")));
    nucleus.put("me", &wat::manifest("me", ""), &wat::compile(&wat::caller("me")));
    for name in ["ping", "pong", "me"] {
        nucleus.wait_for(name, "live");
    }
    for name in ["ping", "pong", "me"] {
        let mut client = nucleus.client(name);
        let slot = client.open_raw("run").unwrap();
        for _ in 0..5 {
            let reply = client.call_raw(&slot, b"hi", CallOptions::default()).unwrap();
            let statuses: Vec<_> = reply
                .bytes()
                .chunks(4)
                .map(|code| u32::from_le_bytes(code.try_into().unwrap_or_default()))
                .collect();
            assert!(statuses.contains(&Status::TooDeep.code()), "{name}: {statuses:?}");
        }
    }
    // Several circles at once, which could wait for one another's instances for ever.
    let threads: Vec<_> = (0..8)
        .map(|at| {
            let home = (*nucleus).clone();
            let name = ["ping", "pong", "me"][at % 3];
            thread::spawn(move || {
                let mut client = home.client(name);
                let slot = client.open_raw("run").unwrap();
                for _ in 0..10 {
                    match client.call_raw(
                        &slot,
                        b"hi",
                        CallOptions { timeout: GUARD, ..CallOptions::default() },
                    ) {
                        Ok(_) => {}
                        Err(error) => assert!(
                            matches!(error.status(), Some(Status::TooDeep | Status::Busy))
                                && !matches!(error, Error::TimedOut),
                            "{name}: {error}"
                        ),
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    // A callee that is not there is told to the caller's code.
    nucleus.deploy_wat("lost", &wat::caller("nowhere"), "");
    let mut client = nucleus.client("lost");
    let slot = client.open_raw("run").unwrap();
    let reply = client.call_raw(&slot, b"hi", CallOptions::default()).unwrap();
    assert_eq!(reply.bytes().first_chunk(), Some(&Status::UnknownCell.code().to_le_bytes()));
    nucleus.down();
}

/// A cell of one instance that calls itself waits for the very instance that it occupies: the
/// nucleus' time limit ends it, and the cell serves on.
#[test]
fn a_circle_of_one_instance() {
    let nucleus = Nucleus::new();
    nucleus.deploy_wat("me", &wat::caller("me"), "replicas_max = 1\ncall_ms_max = 300");
    let mut client = nucleus.client("me");
    let slot = client.open_raw("run").unwrap();
    for _ in 0..3 {
        match client.call_raw(
            &slot,
            b"hi",
            CallOptions { timeout: GUARD, ..CallOptions::default() },
        ) {
            Ok(reply) => {
                let refused = Status::TooDeep.code().to_le_bytes();
                assert!(reply.bytes().chunks(4).any(|code| code == refused), "{reply:?}");
            }
            Err(error) => assert_eq!(error.status(), Some(Status::TimedOut), "{error}"),
        }
    }
    eventually("its instance is free", || {
        (nucleus.row("me").unwrap()["stats"]["waiting"] == 0).then_some(())
    });
    nucleus.down();
}

/// What a call burned in each of two cells goes to each of them.
#[test]
fn callees_are_paid_their_share() {
    let nucleus = Nucleus::new();
    for name in ["worker", "frontend"] {
        nucleus.put_sample(name);
    }
    for name in ["worker", "frontend"] {
        nucleus.wait_for(name, "live");
    }
    let ran =
        nucleus.cell(["call", "frontend.sum_up", "{\"payloads\":[[1,2,3],[],[4]]}", "--json"]);
    let answer = ran.expect(0).json();
    assert_eq!(answer["reply"]["count"], 3, "{answer}");
    let home = nucleus.down();
    let balances = home.balances();
    let (worker, frontend) = (balances["cell:worker"], balances["cell:frontend"]);
    assert!(worker > 0 && frontend > 0, "{balances:?}");
    assert_eq!(Some(worker + frontend), answer["charge_nano_atp"].as_i64());
}
