//! SIGKILL at random moments under load: money is right, nobody hangs, nothing stays behind.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use cell_abi::schema::encode;
use cell_client::{CallOptions, Client, Error, Fuel};
use cell_tests::{Background, GUARD, Home, Nucleus, Random, eventually, process, wat};
use worker_interface::WorkLoad;

/// What the clients saw.
#[derive(Default)]
struct Seen {
    /// Fuel in replies.
    billed: AtomicU64,
    /// Limits of calls that were sent and whose reply never came.
    unanswered: AtomicU64,
    answered: AtomicU64,
    errors: Mutex<BTreeMap<String, u64>>,
    stop: AtomicBool,
}

impl Seen {
    fn count(&self, error: &Error) {
        let kind = match error {
            Error::Failed { status, .. } => format!("{status:?}"),
            error => format!("{error:?}").split(['(', ' ']).next().unwrap_or_default().to_owned(),
        };
        *self.errors.lock().unwrap().entry(kind).or_default() += 1;
    }
}

/// Calls one after the other and many at once, and connects again whenever the connection is gone.
fn load(home: &Home, task: &Task, fuel: Fuel, seen: &Seen) {
    let Task { cell, receptor, request, window } = task;
    let options = CallOptions { fuel, timeout: GUARD };
    while !seen.stop.load(Relaxed) {
        let opened = Client::connect(home.socket(cell), cell)
            .and_then(|mut client| Ok((client.open_raw(receptor)?, client)));
        let (slot, mut client) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                seen.count(&error);
                // Nobody listens for a moment; asking in a tight loop would only take the time
                // that the nucleus needs to come up.
                thread::sleep(Duration::from_millis(2));
                continue;
            }
        };
        let mut in_flight = 0_u64;
        let ended = loop {
            if seen.stop.load(Relaxed) && in_flight == 0 {
                return;
            }
            let stopping = seen.stop.load(Relaxed);
            if !stopping && in_flight < *window {
                match client.send_raw(&slot, request, options) {
                    Ok(_) => in_flight += 1,
                    // It may have gone out in part.
                    Err(error) => {
                        in_flight += 1;
                        break error;
                    }
                }
                continue;
            }
            match client.receive() {
                Ok((_, reply)) => {
                    in_flight -= 1;
                    seen.answered.fetch_add(1, Relaxed);
                    let fuel = match reply {
                        Ok(reply) => reply.fuel(),
                        Err(error) => {
                            seen.count(&error);
                            error.fuel()
                        }
                    };
                    seen.billed.fetch_add(fuel.0, Relaxed);
                }
                Err(error) => break error,
            }
        };
        seen.count(&ended);
        seen.unanswered.fetch_add(in_flight * options.fuel.0, Relaxed);
    }
}

/// One client's work.
struct Task {
    cell: &'static str,
    receptor: &'static str,
    request: Vec<u8>,
    /// Calls in flight at once.
    window: u64,
}

fn tasks() -> Vec<Task> {
    let work =
        |bytes: usize| encode(&WorkLoad { id: 1, payload: vec![7; bytes] }).unwrap().to_vec();
    let add = encode(&counter::Add { by: 1 }).unwrap().to_vec();
    vec![
        Task { cell: "worker", receptor: "worker", request: work(20_000), window: 1 },
        Task { cell: "worker", receptor: "worker", request: work(20_000), window: 32 },
        Task { cell: "worker", receptor: "worker", request: work(200_000), window: 2 },
        Task { cell: "counter", receptor: "add", request: add, window: 4 },
        // Never ends by itself: in flight at every moment.
        Task { cell: "spin", receptor: "run", request: Vec::new(), window: 2 },
    ]
}

fn start_load(home: &Home, seen: &Arc<Seen>) -> Vec<thread::JoinHandle<()>> {
    let spawn = |task: Task| {
        let mut client = home.client(task.cell);
        let slot = client.open_raw(task.receptor).unwrap();
        let generous = CallOptions { fuel: Fuel(4_000_000), timeout: GUARD };
        let ended = client.call_raw(&slot, &task.request, generous);
        let fuel = ended.map_or_else(|error| error.fuel(), |reply| reply.fuel());
        seen.billed.fetch_add(fuel.0, Relaxed);
        assert!(fuel > Fuel::ZERO);
        let (home, seen) = (home.clone(), Arc::clone(seen));
        // A limit that is only just enough makes what unanswered calls may have burned a small sum.
        thread::spawn(move || load(&home, &task, fuel, &seen))
    };
    tasks().into_iter().map(spawn).collect()
}

#[track_caller]
fn answers(home: &Home) {
    let options = CallOptions { fuel: Fuel(40_000_000), timeout: GUARD };
    eventually("the worker cell answers again", || {
        let mut client = Client::connect(home.socket("counter"), "counter").ok()?;
        let slot = client.open_raw("get").ok()?;
        client.call_raw(&slot, &encode(&()).unwrap(), options).ok()
    });
}

#[test]
fn killed_at_random_moments() {
    let rounds: u64 = std::env::var("CELL_CRASH_ROUNDS")
        .map_or(12, |text| text.parse().expect("CELL_CRASH_ROUNDS is a number"));
    let seed = std::env::var("CELL_CRASH_SEED")
        .map_or(1, |text| text.parse().expect("CELL_CRASH_SEED is a number"));
    let mut random = Random::new(seed);
    let home = Home::new();
    // The load would be out of ATP before the last of a hundred rounds.
    home.cell(["ledger", "grant", "1000000", "owner"]).expect(0);
    for name in ["worker", "counter"] {
        home.put_sample(name);
    }
    home.put("spin", &wat::manifest("spin", ""), &wat::compile(&wat::cell("", wat::SPIN)));
    let granted = home.balance("owner");
    let mut nucleus = Nucleus::up(&home);
    for name in ["worker", "counter", "spin"] {
        nucleus.wait_for(name, "live");
    }
    let seen = Arc::new(Seen::default());
    let threads = start_load(&home, &seen);
    for round in 0..rounds {
        let answered = seen.answered.load(Relaxed);
        eventually("calls are answered", || {
            (seen.answered.load(Relaxed) > answered + 20).then_some(())
        });
        // The moment is what this test is about; a report to the ledger goes out every 40 ms.
        thread::sleep(Duration::from_micros(random.below(300_000)));
        let worker = nucleus.worker();
        if round % 2 == 0 {
            worker.kill();
            eventually("the worker is gone", || (!worker.is_alive()).then_some(()));
        } else {
            nucleus.kill();
            assert!(!worker.is_alive(), "round {round}: the worker outlived its nucleus");
            nucleus = Nucleus::up(&home);
        }
        answers(&home);
    }
    seen.stop.store(true, Relaxed);
    for thread in threads {
        thread.join().expect("a client thread ended well");
    }
    nucleus.down();
    check(&home, &seen, granted);
}

fn check(home: &Home, seen: &Seen, granted: i64) {
    let errors = seen.errors.lock().unwrap().clone();
    let verified = home.cell(["ledger", "verify", "--json"]).expect(0).json();
    assert_eq!(
        (&verified["sum_nano_atp"], &verified["open_holds"]),
        (&0.into(), &0.into()),
        "{verified}"
    );
    let balances = home.balances();
    let calls_cost = granted - balances["owner"] - home.spent_on_compiling();
    let paid = u64::try_from(calls_cost).unwrap();
    let earned: i64 = balances
        .iter()
        .filter(|(name, _)| name.starts_with("cell:"))
        .map(|(_, amount)| amount)
        .sum();
    let (billed, unanswered) = (seen.billed.load(Relaxed), seen.unanswered.load(Relaxed));
    println!(
        "{} calls answered, {billed} fuel billed, at most {unanswered} unanswered, {paid} paid; {errors:?}",
        seen.answered.load(Relaxed)
    );
    // What the owner lost the cells got, and it is covered by work that was done.
    assert_eq!(u64::try_from(earned).unwrap(), paid);
    assert!(
        paid > 0 && paid <= billed + unanswered,
        "{paid} paid for {billed} billed and at most {unanswered} more"
    );
    // Every end was one that a client can act on; none was a deadline that passed in silence.
    let known = ["Connect", "Disconnected", "Io", "Goaway", "OutOfFuel", "Gone", "Cancelled"];
    for kind in errors.keys() {
        assert!(known.contains(&kind.as_str()), "{errors:?}");
    }
    assert!(
        errors.contains_key("Disconnected") || errors.contains_key("Io"),
        "nothing was ever cut off: {errors:?}"
    );
    assert_eq!(home.sockets(), Vec::<std::path::PathBuf>::new());
    assert_eq!(process::naming(home.path()), []);
    // The background form works in a home with this history, too.
    let background = Background::up(home);
    home.wait_for("counter", "live");
    answers(home);
    let mut client = home.client("counter");
    let slot = client.open::<counter::get::Receptor>().unwrap();
    let count = client.call(&slot, &(), CallOptions::default()).unwrap().into_owned().unwrap();
    assert!(count.value > 0, "the counter lost everything");
    background.down();
    assert_eq!(home.sockets(), Vec::<std::path::PathBuf>::new());
    assert_eq!(process::naming(home.path()), []);
}

/// `cell down` clears up what a killed nucleus left.
#[test]
fn down_clears_up_after_a_kill() {
    let nucleus = Nucleus::new();
    nucleus.deploy_wat("echo", &wat::cell("", wat::ECHO), "");
    let home = nucleus.kill();
    // The cell's, the control socket and the one for metrics.
    assert_eq!(home.sockets().len(), 3, "{:?}", home.sockets());
    // Its sockets are there, and nobody behind them: typed errors, no hang.
    // The last thread of the worker may let go of them a moment after the first one ended.
    let error = eventually("nobody listens", || Client::connect(home.socket("echo"), "echo").err());
    assert!(
        matches!(error, Error::Connect { .. }) && error.to_string().contains("cell up"),
        "{error}"
    );
    home.cell(["call", "echo.run"]).expect(125);
    home.cell(["down"]).expect(0);
    assert_eq!(home.sockets(), Vec::<std::path::PathBuf>::new());
    assert_eq!(process::naming(home.path()), []);
}

/// Each worker counts its reports from zero. When their number alone named the transfers, the
/// reports of a second worker met those of the first under the same names, the ledger refused
/// them as other content, and cells worked unpaid until the count had passed the old one.
#[test]
fn work_after_a_workers_death_is_paid() {
    let nucleus = Nucleus::new();
    nucleus.deploy("worker");
    let mut earned = 0;
    for round in 0..3 {
        for call in 0..4 {
            let mut client =
                worker_interface::worker::Client::connect(nucleus.socket("worker"), "worker")
                    .unwrap();
            // Each call of another price, so that no report looks like an earlier one.
            let work = WorkLoad { id: 1, payload: vec![1; 10 * (round * 4 + call)] };
            earned += client.call(&work).unwrap().fuel().0;
            nucleus.wait_for_earned("worker", Fuel(earned));
        }
        let worker = nucleus.worker();
        worker.kill();
        eventually("another worker serves", || (nucleus.worker() != worker).then_some(()));
    }
    let home = nucleus.down();
    assert_eq!(home.spent(), i64::try_from(earned).unwrap());
}
