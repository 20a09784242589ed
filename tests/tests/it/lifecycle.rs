//! A directory in `cells/` is a cell: it comes, changes, breaks, heals and goes.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;

use cell_client::{CallOptions, Client, Error, Status};
use cell_tests::{Background, GUARD, Home, Nucleus, Raw, eventually, status, wat};
use serde_json::Value;

fn echo() -> String {
    wat::cell("", wat::ECHO)
}

/// A cell that answers with this number.
fn numbered(number: u32) -> Vec<u8> {
    wat::compile(&wat::cell("", &wat::constant(number)))
}

fn ask_number(client: &mut Client) -> Result<u32, Error> {
    let slot = client.open_raw("run")?;
    let reply = client.call_raw(&slot, b"", CallOptions::default())?;
    Ok(u32::from_le_bytes(reply.bytes().try_into().unwrap()))
}

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
fn a_directory_comes_and_goes() {
    let nucleus = Nucleus::new();
    let row = nucleus.deploy_wat("echo", &echo(), "");
    assert_eq!(row["hash"].as_str().unwrap().len(), 64);
    let (mut raw, receptor) = Raw::opened(&nucleus.socket("echo"), "echo", "run");
    raw.call(receptor, 1, 1_000_000, b"hi");
    assert_eq!(raw.receive().1, b"hi");
    fs::remove_dir_all(nucleus.cell_directory("echo")).unwrap();
    eventually("the cell is gone", || nucleus.row("echo").is_none().then_some(()));
    // Who is connected learns it at the next call, and who connects at once.
    eventually("the worker was told", || {
        raw.call(receptor, 2, 1_000_000, b"hi");
        (status(&raw.receive().0) == Status::Gone).then_some(())
    });
    let (header, _) = raw.open("echo", "run", 3);
    assert_eq!(status(&header), Status::Gone);
    assert!(matches!(Client::connect(nucleus.socket("echo"), "echo"), Err(Error::Connect { .. })));
    let ran = nucleus.cell(["call", "echo.run"]);
    assert!(ran.expect(1).stderr.contains("cell ps"), "{}", ran.stderr);
    // And it comes back.
    nucleus.deploy_wat("echo", &echo(), "");
    nucleus.client("echo").open_raw("run").unwrap();
    nucleus.down();
}

#[test]
fn deploy_and_rm_by_command() {
    let nucleus = Nucleus::new();
    let project = nucleus.path().join("project");
    fs::create_dir(&project).unwrap();
    fs::write(project.join("Cell.toml"), wat::manifest("n", "")).unwrap();
    for number in 1..4 {
        fs::write(project.join("cell.wasm"), numbered(number)).unwrap();
        let deployed =
            nucleus.cell([Path::new("deploy"), &project, Path::new("--json")]).expect(0).json();
        assert_eq!(
            (&deployed["cell"], &deployed["live"]),
            (&"n".into(), &true.into()),
            "{deployed}"
        );
        // When the command ends, the new code answers.
        assert_eq!(ask_number(&mut nucleus.client("n")).unwrap(), number);
    }
    nucleus.cell(["rm", "n"]).expect(0);
    assert!(nucleus.row("n").is_none() && !nucleus.cell_directory("n").exists());
    nucleus.cell(["rm", "n"]).expect(1);
    nucleus.down();
}

/// New code twenty times over while calls come without a pause: none of them fails, and each
/// answer is of the code before or after.
#[test]
fn replaced_under_load() {
    let nucleus = Nucleus::new();
    nucleus.put("n", &wat::manifest("n", ""), &numbered(0));
    nucleus.wait_for("n", "live");
    let (stop, newest, calls) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicU64::new(0)),
    );
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let (home, stop, newest, calls) =
                ((*nucleus).clone(), Arc::clone(&stop), Arc::clone(&newest), Arc::clone(&calls));
            thread::spawn(move || {
                let mut client = home.client("n");
                let slot = client.open_raw("run").unwrap();
                let mut last = 0;
                while !stop.load(Relaxed) {
                    let reply = client.call_raw(&slot, b"", CallOptions::default()).unwrap();
                    let number = u32::from_le_bytes(reply.bytes().try_into().unwrap());
                    assert!(
                        number >= last && u64::from(number) <= newest.load(Relaxed),
                        "{number} after {last}"
                    );
                    last = number;
                    calls.fetch_add(1, Relaxed);
                }
                last
            })
        })
        .collect();
    for number in 1..=20 {
        let before = calls.load(Relaxed);
        newest.store(number.into(), Relaxed);
        nucleus.replace_wasm("n", &numbered(number));
        let mut client = nucleus.client("n");
        eventually("the new code answers", || {
            (ask_number(&mut nucleus.client("n")).unwrap() == number).then_some(())
        });
        client.ping().unwrap();
        eventually("the load goes on", || (calls.load(Relaxed) > before + 10).then_some(()));
    }
    stop.store(true, Relaxed);
    for thread in threads {
        assert_eq!(thread.join().expect("no call failed"), 20);
    }
    nucleus.down();
}

/// A connection whose cell was replaced by one with other types is told so, and not misread.
#[test]
fn replaced_by_other_types() {
    let nucleus = Nucleus::new();
    nucleus.deploy_wat("c", &echo(), "");
    let (mut raw, receptor) = Raw::opened(&nucleus.socket("c"), "c", "run");
    let row = nucleus.wait_for("c", "live");
    nucleus.replace_wasm(
        "c",
        &wat::compile(&echo().replace("run(bytes) -> bytes", "run(words) -> bytes")),
    );
    eventually("it was replaced", || {
        (nucleus.wait_for("c", "live")["hash"] != row["hash"]).then_some(())
    });
    raw.call(receptor, 1, 1_000_000, b"hi");
    assert_eq!(status(&raw.receive().0), Status::Gone);
    let (header, _) = raw.open("c", "run", 2);
    assert_eq!(status(&header), Status::Ok);
}

#[track_caller]
fn check_broken(nucleus: &Nucleus, name: &str, manifest: &str, wasm: &[u8], reason: &str) {
    nucleus.put(name, manifest, wasm);
    let row = nucleus.wait_for(name, "failed");
    let told = row["reason"].as_str().unwrap();
    assert!(told.contains(reason), "{name}: {told:?} does not hold {reason:?}");
    // People are told, too.
    assert!(nucleus.cell(["ps"]).expect(0).stdout.contains("failed"));
}

#[test]
fn broken_directories_are_named_and_heal() {
    let nucleus = Nucleus::new();
    let good = wat::compile(&echo());
    let plain = wat::manifest("a", "");
    check_broken(&nucleus, "a", "not toml at all", &good, "Cell.toml");
    check_broken(&nucleus, "b", &plain, &good, "must be the same");
    check_broken(&nucleus, "c", &wat::manifest("c", "replicas_max = 0"), &good, "replicas_max");
    check_broken(&nucleus, "d", &wat::manifest("d", "colour = 1"), &good, "colour");
    check_broken(&nucleus, "e", &wat::manifest("e", ""), b"no module", "not a WebAssembly module");
    check_broken(&nucleus, "f", &wat::manifest("f", "wasm = \"../../a.wasm\""), &good, "beside");
    check_broken(&nucleus, "g", &wat::manifest("g", "wasm = \"other.wasm\""), &good, "other.wasm");
    let command =
        wat::compile("(module (memory (export \"memory\") 1) (func (export \"_start\")))");
    check_broken(&nucleus, "h", &wat::manifest("h", ""), &command, "cell run");
    let nameless = wat::compile(&echo().replace("cell:interface", "something"));
    check_broken(&nucleus, "i", &wat::manifest("i", ""), &nameless, "cell:interface");
    check_broken(&nucleus, "Upper", &plain, &good, "Upper");
    check_broken(&nucleus, "sp ace", &plain, &good, "sp ace");
    let started = wat::compile("(module (memory (export \"memory\") 1) (func $f) (start $f))");
    check_broken(&nucleus, "j", &wat::manifest("j", ""), &started, "start section");
    let huge = wat::compile(&echo().replace("\"memory\") 4", "\"memory\") 2048"));
    check_broken(&nucleus, "k", &wat::manifest("k", ""), &huge, "");
    // Nothing but the directory is at fault: others work, and so does each once it is put right.
    nucleus.deploy_wat("fine", &echo(), "");
    for name in ["a", "c", "d", "e", "f", "g", "h", "i", "j", "k"] {
        fs::write(nucleus.cell_directory(name).join("Cell.toml"), wat::manifest(name, "")).unwrap();
        nucleus.replace_wasm(name, &good);
    }
    for name in ["a", "c", "d", "e", "f", "g", "h", "i", "j", "k", "fine"] {
        nucleus.wait_for(name, "live");
        assert_eq!(
            nucleus.client(name).open_raw("run").unwrap().schema(),
            "receptor run(bytes) -> bytes\n"
        );
    }
    nucleus.down();
}

/// Code that does not start is told to its callers, who pay nothing, and hurts nobody else.
#[test]
fn a_cell_that_does_not_start() {
    let nucleus = Nucleus::new();
    let bad = echo().replace("(memory", "(func (export \"_initialize\") unreachable) (memory");
    nucleus.deploy_wat("bad", &bad, "");
    nucleus.deploy_wat("fine", &echo(), "");
    for _ in 0..3 {
        let mut client = nucleus.client("bad");
        let slot = client.open_raw("run").unwrap();
        let error = client.call_raw(&slot, b"", CallOptions::default()).unwrap_err();
        assert_eq!((error.status(), error.fuel().0), (Some(Status::Trapped), 0), "{error}");
    }
    let mut client = nucleus.client("fine");
    let slot = client.open_raw("run").unwrap();
    client.call_raw(&slot, b"", CallOptions::default()).unwrap();
    nucleus.down();
}

/// A broken change of a cell that served: what is told, and that mending it brings it back.
#[test]
fn pulled_from_under_it() {
    let nucleus = Nucleus::new();
    let good = wat::compile(&echo());
    nucleus.deploy_wat("c", &echo(), "");
    // The socket goes: a new one comes.
    fs::remove_file(nucleus.socket("c")).unwrap();
    eventually("there is a socket again", || {
        Client::connect(nucleus.socket("c"), "c").and_then(|mut client| client.open_raw("run")).ok()
    });
    nucleus.wait_for("c", "live");
    // The module goes: told as failed, and back with it.
    fs::remove_file(nucleus.cell_directory("c").join("cell.wasm")).unwrap();
    let row = nucleus.wait_for("c", "failed");
    assert!(row["reason"].as_str().unwrap().contains("cell.wasm"), "{row}");
    nucleus.replace_wasm("c", &good);
    nucleus.wait_for("c", "live");
    nucleus.client("c").open_raw("run").unwrap();
    // The manifest goes.
    fs::remove_file(nucleus.cell_directory("c").join("Cell.toml")).unwrap();
    let row = nucleus.wait_for("c", "failed");
    assert!(row["reason"].as_str().unwrap().contains("Cell.toml"), "{row}");
    fs::write(nucleus.cell_directory("c").join("Cell.toml"), wat::manifest("c", "")).unwrap();
    nucleus.wait_for("c", "live");
    // Log and data go, while it runs: calls go on.
    fs::remove_dir_all(nucleus.cell_directory("c").join("log")).unwrap();
    fs::remove_dir_all(nucleus.cell_directory("c").join("data")).unwrap();
    let mut client = nucleus.client("c");
    let slot = client.open_raw("run").unwrap();
    client.call_raw(&slot, b"x", CallOptions::default()).unwrap();
    nucleus.down();
}

#[test]
fn garbage_at_the_control_socket() {
    let nucleus = Nucleus::new();
    nucleus.deploy_wat("echo", &echo(), "");
    let socket = nucleus.path().join("nucleus.sock");
    let say = |bytes: &[u8]| {
        let stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(GUARD)).unwrap();
        // It may close before it has read all.
        let _ = (&stream).write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = (&stream).read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    for bytes in
        [&b"garbage\n"[..], b"{}\n", b"null\n", b"{\"ping\":1}\n", b"\"pin\"\n", b"[[[[[[[[\n"]
    {
        let answer: Value = serde_json::from_str(&say(bytes)).unwrap();
        assert!(answer["failed"].as_str().unwrap().contains("not a request"), "{answer}");
    }
    say(&[0xff; 10_000]);
    say(&[b'['; 100_000]);
    say(&[0; 100]);
    // Two hundred silent askers at once: some are turned away, and none stays in the way.
    let silent: Vec<_> = (0..200).map_while(|_| UnixStream::connect(&socket).ok()).collect();
    assert!(silent.len() > 64, "{}", silent.len());
    drop(silent);
    eventually("the nucleus answers", || (nucleus.cell(["ps"]).code == Some(0)).then_some(()));
    nucleus.client("echo").open_raw("run").unwrap();
    nucleus.down();
}

#[test]
fn one_nucleus_per_home() {
    let nucleus = Nucleus::new();
    let ran = nucleus.cell(["up"]);
    assert!(ran.expect(0).stdout.contains("up already"), "{ran:?}");
    let ran = nucleus.cell(["up", "--foreground"]);
    assert!(ran.expect(1).stderr.contains("cell down"), "{ran:?}");
    // The one that was there goes on.
    nucleus.deploy_wat("echo", &echo(), "");
    nucleus.client("echo").open_raw("run").unwrap();
    let home = nucleus.down();
    home.cell(["down"]).expect(0);
    // Ten at once: one comes up, and all who asked for one in the background are content.
    let starts: Vec<_> = (0..10)
        .map(|_| home.clone())
        .map(|home| thread::spawn(move || home.cell(["up"])))
        .collect();
    let background = Background::up(&home);
    let codes: Vec<_> = starts.into_iter().map(|start| start.join().unwrap()).collect();
    assert!(codes.iter().all(|ran| ran.code == Some(0)), "{codes:?}");
    home.wait_for("echo", "live");
    home.client("echo").open_raw("run").unwrap();
    background.down();
}

#[test]
fn deployed_while_down() {
    let home = Home::new();
    let project = home.path().join("project");
    fs::create_dir(&project).unwrap();
    fs::write(project.join("Cell.toml"), wat::manifest("n", "")).unwrap();
    fs::write(project.join("cell.wasm"), numbered(7)).unwrap();
    let deployed = home.cell([Path::new("deploy"), &project, Path::new("--json")]).expect(0).json();
    assert_eq!(deployed["live"], false);
    assert_eq!(home.row("n").unwrap()["state"], "stopped");
    let ran = home.cell(["call", "n.run"]);
    assert!(ran.expect(125).stderr.contains("cell up"), "{}", ran.stderr);
    let nucleus = Nucleus::up(&home);
    nucleus.wait_for("n", "live");
    assert_eq!(ask_number(&mut home.client("n")).unwrap(), 7);
    let home = nucleus.down();
    home.cell(["rm", "n"]).expect(0);
    let nucleus = Nucleus::up(&home);
    assert!(nucleus.row("n").is_none());
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
    say(&vec![b'x'; 100_000]);
    for _ in 0..100 {
        say(&vec![b'y'; 100_000]);
    }
    let shown = nucleus.cell(["logs", "l", "-n", "1000000"]);
    let text = &shown.expect(0).stdout;
    assert!(text.contains("warn plain"), "{}", &text[..200]);
    assert!(
        !text.chars().any(|c| c.is_control() && c != '\n' && c != '\t'),
        "control characters reach the terminal"
    );
    assert!(
        text.contains("\\u{1b}[2J") && !text.lines().any(|line| line.starts_with("1999")),
        "a line was forged"
    );
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

/// Idle instances go after `idle_s`, the socket stays, and the next call starts one.
#[test]
fn idle_instances_go() {
    let nucleus = Nucleus::new();
    nucleus.deploy_wat("echo", &echo(), "idle_s = 1");
    let mut client = nucleus.client("echo");
    let slot = client.open_raw("run").unwrap();
    let instances = || nucleus.row("echo").unwrap()["stats"]["instances"].as_u64().unwrap();
    client.call_raw(&slot, b"", CallOptions::default()).unwrap();
    eventually("an instance is idle", || (instances() == 1).then_some(()));
    eventually("it is gone", || (instances() == 0).then_some(()));
    client.call_raw(&slot, b"", CallOptions::default()).unwrap();
}

/// A directory in `cells/` whose files are not files. When the manifest or the module was a pipe
/// that nobody writes to, the nucleus waited for it for ever: no cell was deployed any more, no
/// call was paid, and `cell down` did not end it.
#[test]
fn what_is_no_file_holds_nobody_up() {
    let nucleus = Nucleus::new();
    let mkfifo = |path: &Path| {
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    };
    let directory = |name: &str| {
        let directory = nucleus.cell_directory(name);
        fs::create_dir_all(&directory).unwrap();
        directory
    };
    let link = |to: &str, path: &Path| std::os::unix::fs::symlink(to, path).unwrap();
    fs::create_dir_all(nucleus.path().join("cells")).unwrap();
    fs::create_dir(directory("dirs").join("Cell.toml")).unwrap();
    link("Cell.toml", &directory("loop").join("Cell.toml"));
    fs::write(directory("large").join("Cell.toml"), vec![b'#'; 1 << 20]).unwrap();
    for name in ["wdir", "wzero"] {
        fs::write(directory(name).join("Cell.toml"), wat::manifest(name, "")).unwrap();
    }
    fs::create_dir(directory("wdir").join("cell.wasm")).unwrap();
    link("/dev/zero", &directory("wzero").join("cell.wasm"));
    for name in ["dirs", "loop", "large", "wdir", "wzero"] {
        let row = nucleus.wait_for(name, "failed");
        assert!(row["reason"].as_str().is_some_and(|reason| reason.len() > 10), "{row}");
    }
    mkfifo(&directory("wpipe").join("cell.wasm"));
    fs::write(directory("wpipe").join("Cell.toml"), wat::manifest("wpipe", "")).unwrap();
    let reason = |name| nucleus.wait_for(name, "failed")["reason"].as_str().map(str::to_owned);
    eventually("the pipe is refused", || reason("wpipe").filter(|text| !text.contains("No such")));
    mkfifo(&directory("pipe").join("Cell.toml"));
    nucleus.wait_for("pipe", "failed");
    nucleus.deploy_wat("echo", &echo(), "");
    nucleus.client("echo").open_raw("run").unwrap();
    nucleus.down();
}
