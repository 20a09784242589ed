//! Many calls, many callers, many cells: instances follow, turns are taken, and sleepers cost little.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use cell_client::{CallOptions, Client, Config, Fuel, Status};
use cell_tests::{GUARD, Nucleus, eventually, wat};

fn instances(nucleus: &Nucleus, cell: &str) -> u64 {
    nucleus.row(cell).unwrap()["stats"]["instances"].as_u64().unwrap()
}

/// Load rises and instances follow, up to what the manifest lets; it ends and they go; and the budget
/// of whoever asked is spent once, however many of them served it.
#[test]
fn instances_follow_the_load() {
    let nucleus = Nucleus::new();
    nucleus.deploy_wat("spin", &wat::cell("", wat::SPIN), "replicas_max = 6\nidle_s = 1");
    let before = nucleus.spent();
    let mut burned = 0_u64;
    for calls in [1_u64, 3, 6, 12] {
        let mut client = nucleus.client("spin");
        let slot = client.open_raw("run").unwrap();
        let options = CallOptions { fuel: Fuel(60_000_000_000), timeout: GUARD };
        let sent: Vec<_> =
            (0..calls).map(|_| client.send_raw(&slot, b"", options).unwrap()).collect();
        client.flush().unwrap();
        let expect = calls.min(6);
        eventually(&format!("{expect} instances serve {calls} calls"), || {
            let now = instances(&nucleus, "spin");
            assert!(now <= expect, "{now} instances for {calls} calls");
            (now == expect).then_some(())
        });
        for call in sent {
            client.cancel(call).unwrap();
        }
        for _ in 0..calls {
            let error = client.receive().unwrap().1.unwrap_err();
            let ended = [Some(Status::Cancelled), Some(Status::OutOfFuel)];
            assert!(ended.contains(&error.status()) && error.fuel() <= options.fuel, "{error}");
            burned += error.fuel().0;
        }
        eventually("they are gone", || (instances(&nucleus, "spin") == 0).then_some(()));
    }
    println!("{burned} fuel was burned by up to six instances at once, and paid once");
    nucleus.wait_for_earned("spin", Fuel(burned));
    assert_eq!(u64::try_from(nucleus.spent() - before).unwrap(), burned);
    nucleus.down();
}

/// One caller has sixty-four long calls in flight at a cell with one instance; another caller's call
/// waits for the one that runs, and not for the sixty-three behind it.
#[test]
fn callers_take_turns() {
    let nucleus = Nucleus::new();
    let work = "(local $left i32)
        (local.set $left (i32.const 20000000))
        (loop $again
            (local.set $left (i32.sub (local.get $left) (i32.const 1)))
            (br_if $again (local.get $left)))";
    let handler = format!("{work} {}", wat::ECHO);
    nucleus.deploy_wat("work", &wat::cell("", &handler), "replicas_max = 1");
    let options = CallOptions { fuel: Fuel(1_000_000_000), timeout: GUARD };
    let answered = Arc::new(AtomicU64::new(0));
    let greedy = {
        let (home, answered) = ((*nucleus).clone(), Arc::clone(&answered));
        thread::spawn(move || {
            let mut client = home.client("work");
            let slot = client.open_raw("run").unwrap();
            for _ in 0..64 {
                client.send_raw(&slot, b"", options).unwrap();
            }
            client.flush().unwrap();
            for _ in 0..64 {
                client.receive().unwrap().1.unwrap();
                answered.fetch_add(1, Relaxed);
            }
        })
    };
    eventually("the greedy one is served", || (answered.load(Relaxed) > 0).then_some(()));
    let mut client = nucleus.client("work");
    let slot = client.open_raw("run").unwrap();
    let mut waited = Vec::new();
    for _ in 0..5 {
        let before = answered.load(Relaxed);
        client.call_raw(&slot, b"", options).unwrap();
        waited.push(answered.load(Relaxed) - before);
    }
    println!("the other's calls waited for {waited:?} of the greedy one's");
    // One runs and one may be next; what the greedy one had not read yet is counted as well. In the
    // order in which they came, the first would have waited for all that were sent before it.
    assert!(waited.iter().all(|waited| *waited <= 16), "{waited:?}");
    greedy.join().unwrap();
    nucleus.down();
}

/// More calls in flight than one user may have: the rest is told so, and nothing of it runs.
#[test]
fn calls_of_one_user_are_bounded() {
    let nucleus = Nucleus::new();
    // No cell alone has more than may wait for one.
    for at in 0..4 {
        let name = format!("spin{at}");
        nucleus.deploy_wat(&name, &wat::cell("", wat::SPIN), "replicas_max = 1");
    }
    let options = CallOptions { fuel: Fuel(1_000_000), timeout: GUARD };
    let busy = Arc::new(AtomicU64::new(0));
    // A connection has 256 at most; what is beyond is not read.
    let callers: Vec<_> = (0..40)
        .map(|at| {
            let (home, busy) = ((*nucleus).clone(), Arc::clone(&busy));
            thread::spawn(move || {
                let mut client = home.client(&format!("spin{}", at % 4));
                let slot = client.open_raw("run").unwrap();
                for _ in 0..250 {
                    client.send_raw(&slot, b"", options).unwrap();
                }
                client.flush().unwrap();
                for _ in 0..250 {
                    let error = client.receive().unwrap().1.unwrap_err();
                    match error.status() {
                        Some(Status::OutOfFuel) => assert_eq!(error.fuel(), options.fuel),
                        Some(Status::Busy) => {
                            assert_eq!(error.fuel(), Fuel::ZERO);
                            assert!(error.to_string().contains("calls in flight"), "{error}");
                            busy.fetch_add(1, Relaxed);
                        }
                        other => panic!("{other:?}: {error}"),
                    }
                }
            })
        })
        .collect();
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    let busy = busy.load(Relaxed);
    println!("{busy} of 10000 calls were told Busy");
    assert!(busy > 0 && busy < 5000, "{busy}");
    nucleus.down();
}

/// A cell that answers with a number from its code and the same number from its data.
fn numbered(number: u32) -> Vec<u8> {
    let bytes: String = number.to_le_bytes().iter().map(|byte| format!("\\{byte:02x}")).collect();
    let data = format!("(data (i32.const 16) \"{bytes}\")");
    let handler = format!(
        "(i32.store (i32.const 0) (i32.const {number}))
         (i32.store (i32.const 4) (i32.load (i32.const 16)))
         (i64.shl (i64.const 8) (i64.const 32))"
    );
    wat::compile(&wat::cell("", &handler).replace("(@custom", &format!("{data} (@custom")))
}

/// New code two hundred times over while calls come without a pause: none of them fails, and each
/// answer is of one code alone.
#[test]
fn replaced_two_hundred_times() {
    let nucleus = Nucleus::new();
    nucleus.put("n", &wat::manifest("n", ""), &numbered(0));
    nucleus.wait_for("n", "live");
    let (stop, newest, calls) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicU64::new(0)),
    );
    let callers: Vec<_> = (0..2)
        .map(|_| {
            let (home, stop, newest, calls) =
                ((*nucleus).clone(), Arc::clone(&stop), Arc::clone(&newest), Arc::clone(&calls));
            thread::spawn(move || {
                let mut client = home.client("n");
                let slot = client.open_raw("run").unwrap();
                let (mut last, mut seen) = (0, HashSet::new());
                while !stop.load(Relaxed) {
                    let reply = client.call_raw(&slot, b"", CallOptions::default()).unwrap();
                    let word = |at: usize| {
                        u32::from_le_bytes(reply.bytes()[at..at + 4].try_into().unwrap())
                    };
                    assert_eq!(word(0), word(4), "a mix of codes answered");
                    assert!(word(0) >= last && u64::from(word(0)) <= newest.load(Relaxed));
                    last = word(0);
                    seen.insert(last);
                    calls.fetch_add(1, Relaxed);
                }
                seen
            })
        })
        .collect();
    for number in 1..=200_u32 {
        newest.store(number.into(), Relaxed);
        nucleus.replace_wasm("n", &numbered(number));
        let mut client = nucleus.client("n");
        let slot = client.open_raw("run").unwrap();
        eventually("the new code answers", || {
            let reply = client.call_raw(&slot, b"", CallOptions::default()).unwrap();
            (reply.bytes()[..4] == number.to_le_bytes()).then_some(())
        });
    }
    stop.store(true, Relaxed);
    let seen: HashSet<u32> =
        callers.into_iter().flat_map(|caller| caller.join().expect("no call failed")).collect();
    println!("{} calls, answered by {} of 201 codes", calls.load(Relaxed), seen.len());
    assert!(seen.len() > 100, "the callers hardly noticed: {}", seen.len());
    nucleus.down();
}

/// A cell that only crashes rests, and says so; a mended module answers at once.
#[test]
fn a_crash_loop_rests_until_it_is_mended() {
    let nucleus = Nucleus::new();
    nucleus.deploy_wat("c", &wat::cell("", "unreachable"), "");
    nucleus.deploy_wat("fine", &wat::cell("", wat::ECHO), "");
    let mut client = nucleus.client("c");
    let slot = client.open_raw("run").unwrap();
    let mut call = || client.call_raw(&slot, b"", CallOptions::default());
    let ends: Vec<_> = (0..200).map(|_| call().unwrap_err()).collect();
    let trapped = ends.iter().filter(|end| end.status() == Some(Status::Trapped)).count();
    let rested = ends.iter().filter(|end| end.status() == Some(Status::BackingOff)).count();
    assert_eq!(trapped + rested, 200);
    assert!(trapped >= 10 && rested > trapped, "{trapped} trapped, {rested} were let rest");
    assert!(
        ends.iter()
            .filter(|end| end.status() == Some(Status::BackingOff))
            .all(|end| { end.fuel() == Fuel::ZERO && end.to_string().contains("unreachable") })
    );
    // Each rest is longer than the one before: soon it is long enough to be seen.
    let row = eventually("`cell ps` says so", || {
        let _ = call();
        nucleus.row("c").filter(|row| row["state"] == "resting")
    });
    let reason = row["reason"].as_str().unwrap();
    assert!(reason.contains("times in a row") && reason.contains("unreachable"), "{reason}");
    assert!(nucleus.cell(["ps"]).expect(0).stdout.contains("resting"));
    let mut neighbour = nucleus.client("fine");
    let fine = neighbour.open_raw("run").unwrap();
    neighbour.call_raw(&fine, b"hi", CallOptions::default()).unwrap();
    // A mended module: its first call is answered, without a rest.
    let wasm = wat::compile(&wat::cell("", wat::ECHO));
    let row = nucleus.row("c").unwrap();
    nucleus.replace_wasm("c", &wasm);
    eventually("the new code is live", || {
        nucleus.row("c").filter(|new| new["hash"] != row["hash"] && new["state"] == "live")
    });
    assert!(call().unwrap().bytes().is_empty());
    nucleus.down();
}

/// Cells that nobody calls: what they take, of memory and of descriptors.
#[test]
fn sleepers_cost_little() {
    const CELLS: u64 = 400;
    let nucleus = Nucleus::new();
    nucleus.deploy_wat("echo", &wat::cell("", wat::ECHO), "");
    let mut client = nucleus.client("echo");
    let slot = client.open_raw("run").unwrap();
    client.call_raw(&slot, b"", CallOptions::default()).unwrap();
    let (daemon, worker) = (nucleus.process(), nucleus.worker());
    let before = daemon.resident_kib() + worker.resident_kib();
    let wasm = wat::compile(&wat::cell("", wat::ECHO));
    for number in 0..CELLS {
        let name = format!("c{number}");
        nucleus.put(&name, &wat::manifest(&name, ""), &wasm);
    }
    eventually("all are live", || {
        let shown = nucleus.cell(["ps", "--json"]).expect(0).json();
        let live = shown.as_array().unwrap().iter().filter(|row| row["state"] == "live").count();
        (live as u64 == CELLS + 1).then_some(())
    });
    let after = daemon.resident_kib() + worker.resident_kib();
    let each = after.saturating_sub(before) / CELLS;
    println!("{CELLS} sleeping cells: {each} KiB each");
    assert!(each <= 16, "{each} KiB each");
    // Any of them wakes.
    for number in [0, CELLS / 2, CELLS - 1] {
        let name = format!("c{number}");
        let mut client = nucleus.client(&name);
        let slot = client.open_raw("run").unwrap();
        assert_eq!(client.call_raw(&slot, b"hi", CallOptions::default()).unwrap().bytes(), b"hi");
    }
    nucleus.down();
}

/// The compiled code of a cell that sleeps is removed, or changed: it is made again.
#[test]
fn code_that_is_lost_is_made_again() {
    let nucleus = Nucleus::new();
    nucleus.deploy_wat("a", &wat::cell("", wat::ECHO), "");
    let artefacts = nucleus.path().join("artefacts");
    for entry in std::fs::read_dir(&artefacts).unwrap().flatten() {
        std::fs::remove_file(entry.path()).unwrap();
    }
    let mut client = nucleus.client("a");
    let slot = client.open_raw("run").unwrap();
    assert_eq!(client.call_raw(&slot, b"hi", CallOptions::default()).unwrap().bytes(), b"hi");
    // With its module gone as well there is nothing to run: that is told, and costs nothing.
    nucleus.deploy_wat("b", &wat::cell("", "(i64.const 0)"), "");
    for entry in std::fs::read_dir(&artefacts).unwrap().flatten() {
        std::fs::write(entry.path(), b"not code").unwrap();
    }
    std::fs::remove_file(nucleus.cell_directory("b").join("cell.wasm")).unwrap();
    let mut client = nucleus.client("b");
    let slot = client.open_raw("run").unwrap();
    let error = client.call_raw(&slot, b"", CallOptions::default()).unwrap_err();
    assert_eq!((error.status(), error.fuel()), (Some(Status::HostFault), Fuel::ZERO), "{error}");
    nucleus.down();
}

/// A worker that hangs, as one that was taken over might, is ended and replaced; the nucleus does not
/// wait for it.
#[test]
fn a_worker_that_hangs_is_replaced() {
    let nucleus = Nucleus::new();
    nucleus.deploy_wat("echo", &wat::cell("", wat::ECHO), "");
    let worker = nucleus.worker();
    worker.signal(rustix::process::Signal::STOP);
    let wasm = wat::compile(&wat::cell("", wat::ECHO));
    for number in 0..3000 {
        let name = format!("c{number}");
        nucleus.put(&name, &wat::manifest(&name, ""), &wasm);
    }
    // The nucleus goes on answering, and then ends it.
    eventually("the worker was ended", || {
        nucleus.cell(["ps", "--json"]).expect(0);
        (!worker.is_alive()).then_some(())
    });
    nucleus.wait_for("echo", "live");
    nucleus.wait_for("c2999", "live");
    let mut client = nucleus.client("echo");
    let slot = client.open_raw("run").unwrap();
    assert_eq!(client.call_raw(&slot, b"hi", CallOptions::default()).unwrap().bytes(), b"hi");
    nucleus.down();
}

/// More cells are called than a worker has slots for instances: those that idle make room. The first
/// cell beyond the slots was once told that it is busy, for as long as the others' instances idled.
#[test]
fn idle_instances_make_room() {
    const CELLS: u32 = 1200;
    let nucleus = Nucleus::new();
    let wasm = wat::compile(&wat::cell("", wat::ECHO));
    for number in 0..CELLS {
        let name = format!("c{number}");
        nucleus.put(&name, &wat::manifest(&name, "idle_s = 600"), &wasm);
    }
    for number in 0..CELLS {
        let name = format!("c{number}");
        eventually("it is live", || nucleus.socket(&name).exists().then_some(()));
        let mut client = nucleus.client(&name);
        let slot = client.open_raw("run").unwrap();
        let reply = client.call_raw(&slot, b"hi", CallOptions::default());
        assert_eq!(reply.unwrap_or_else(|error| panic!("{name}: {error}")).bytes(), b"hi");
    }
    nucleus.down();
}

/// Heap allocations of the threads that serve calls, once two reports have added nothing.
fn allocations(nucleus: &Nucleus) -> u64 {
    const TWO_REPORTS: Duration = Duration::from_millis(1100);
    let look = || {
        let status = nucleus.cell(["top", "--json"]).json();
        status["nucleus"]["workers"][0]["allocations"].as_u64().unwrap()
    };
    let (mut last, mut since) = (look(), Instant::now());
    eventually("the count stands still", || {
        let now = look();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        (since.elapsed() > TWO_REPORTS).then_some(last)
    })
}

/// After the first calls the path from frame to frame works in memory that it has. What is left is
/// one block that Wasmtime allocates for each of a call's two fibers, for mailbox and receptor.
#[test]
fn steady_calls_allocate_their_fibers_and_nothing_else() {
    let nucleus = Nucleus::new();
    nucleus.deploy_wat("echo", &wat::cell("", wat::ECHO), "");
    let config = Config { shared_memory: true, ..Config::default() };
    let shared = Client::connect_with(nucleus.socket("echo"), "echo", config).unwrap();
    for mut client in [nucleus.client("echo"), shared] {
        let slot = client.open_raw("run").unwrap();
        let mut calls = |count: u32| {
            for _ in 0..count {
                let reply = client.call_raw(&slot, &[7; 64], CallOptions::default()).unwrap();
                client.recycle(reply);
            }
        };
        calls(1000);
        let before = allocations(&nucleus);
        calls(20_000);
        let more = allocations(&nucleus) - before;
        println!("{more} allocations for 20,000 calls; shared memory: {}", client.shares_memory());
        assert!((40_000..40_200).contains(&more), "{more} allocations for 20,000 calls");
    }
    nucleus.down();
}
