//! The bill: the same call costs the same, always, and a limit is kept to the unit.

use cell_client::{CallOptions, Client, Error, Fuel, RawSlot, Status};
use cell_tests::{Nucleus, wat};
use hello::Shout;
use worker_interface::WorkLoad;

/// Sizes of requests, and how often each is sent.
const SIZES: [(usize, usize); 4] = [(0, 1000), (100, 1000), (100_000, 50), (1 << 20, 8)];

enum Request {
    Rkyv(Vec<u8>),
    Json(String),
}

impl Request {
    fn call(&self, client: &mut Client, slot: &RawSlot, fuel: u64) -> Result<u64, Error> {
        let options = CallOptions { fuel: Fuel(fuel), ..CallOptions::default() };
        match self {
            Self::Rkyv(bytes) => client.call_raw(slot, bytes, options).map(|reply| reply.fuel().0),
            Self::Json(text) => client.call_json(slot, text, options).map(|reply| reply.fuel().0),
        }
    }
}

/// Cell, receptor, how to make a request of a size.
type Case = (&'static str, &'static str, fn(usize) -> Request);

const CASES: [Case; 4] = [
    ("echo", "run", |size| Request::Rkyv(vec![7; size.min(100_000)])),
    ("worker", "worker", |size| {
        Request::Rkyv(
            cell_abi::schema::encode(&WorkLoad { id: 1, payload: vec![7; size] }).unwrap().to_vec(),
        )
    }),
    ("hello", "shout", |size| {
        Request::Rkyv(
            cell_abi::schema::encode(&Shout { text: "x".repeat(size), marks: 3 }).unwrap().to_vec(),
        )
    }),
    ("hello", "shout", |size| {
        Request::Json(format!("{{\"text\":\"{}\",\"marks\":3}}", "x".repeat(size)))
    }),
];

fn nucleus(isolation: &str) -> Nucleus {
    let nucleus = Nucleus::new();
    let line = format!("isolation = \"{isolation}\"");
    nucleus.put("echo", &wat::manifest("echo", &line), &wat::compile(&wat::cell("", wat::ECHO)));
    for name in ["worker", "hello"] {
        nucleus.put(name, &wat::manifest(name, &line), &cell_tests::sample(name).0);
    }
    for name in ["echo", "worker", "hello"] {
        nucleus.wait_for(name, "live");
    }
    nucleus
}

/// Calls of every case and size: the fuel of each, and what the ledger must say of each cell.
fn bills(nucleus: &Nucleus, runs_max: usize) -> (Vec<u64>, Vec<(&'static str, u64)>) {
    let mut bills = Vec::new();
    let mut earned = Vec::new();
    for (cell, receptor, request) in CASES {
        let mut client = nucleus.client(cell);
        let slot = client.open_raw(receptor).unwrap();
        for (size, runs) in SIZES {
            let request = request(size);
            let first = request.call(&mut client, &slot, 10_000_000_000).unwrap();
            for run in 1..runs.min(runs_max) {
                let again = request.call(&mut client, &slot, 10_000_000_000).unwrap();
                assert_eq!(again, first, "{cell}.{receptor} with {size} bytes, run {run}");
            }
            earned.push((cell, first * u64::try_from(runs.min(runs_max)).unwrap()));
            // Exactly enough is enough; one less is not, and is charged to the unit.
            assert_eq!(
                request.call(&mut client, &slot, first).unwrap(),
                first,
                "{cell}.{receptor} with {size} bytes"
            );
            let Err(error) = request.call(&mut client, &slot, first - 1) else {
                panic!("{cell}.{receptor} with {size} bytes ran on less than it burns")
            };
            assert_eq!(
                (error.status(), error.fuel()),
                (Some(Status::OutOfFuel), Fuel(first - 1)),
                "{error}"
            );
            earned.push((cell, 2 * first - 1));
            bills.push(first);
        }
    }
    (bills, earned)
}

/// After it went down, the ledger of a nucleus says what the replies said.
fn settle(nucleus: Nucleus, earned: &[(&str, u64)]) {
    let home = nucleus.down();
    let balances = home.balances();
    let mut total = 0;
    for name in ["echo", "worker", "hello"] {
        let expected: u64 =
            earned.iter().filter(|(cell, _)| *cell == name).map(|(_, fuel)| fuel).sum();
        assert_eq!(balances[&format!("cell:{name}")], i64::try_from(expected).unwrap(), "{name}");
        total += i64::try_from(expected).unwrap();
    }
    assert_eq!(home.spent(), total);
    home.cell(["ledger", "verify"]).expect(0);
}

/// The same in every run, on reused and on fresh instances, and in two nuclei with two homes.
#[test]
fn a_call_costs_the_same_every_time() {
    let reused = nucleus("instance");
    let (bills_reused, earned) = bills(&reused, usize::MAX);
    settle(reused, &earned);
    let fresh = nucleus("call");
    let (bills_fresh, earned) = bills(&fresh, usize::MAX);
    settle(fresh, &earned);
    assert_eq!(bills_reused, bills_fresh);
    let other = nucleus("instance");
    let (bills_other, earned) = bills(&other, 3);
    settle(other, &earned);
    assert_eq!(bills_reused, bills_other);
    println!("fuel by case and size: {bills_reused:?}");
    // A bill that does not depend on the work would pass everything above.
    for sizes in bills_reused.chunks(SIZES.len()).skip(1) {
        assert!(sizes.is_sorted_by(|a, b| a < b), "{sizes:?}");
    }
}

/// A limit below what any call burns is charged whole, down to nothing.
#[test]
fn tiny_limits_are_charged_whole() {
    let nucleus = Nucleus::new();
    nucleus.deploy_wat("spin", &wat::cell("", wat::SPIN), "");
    let mut client = nucleus.client("spin");
    let slot = client.open_raw("run").unwrap();
    let limits = [0, 1, 2, 1000, 499_999, 500_000, 500_001, 20_000_000];
    for limit in limits {
        let error = Request::Rkyv(Vec::new()).call(&mut client, &slot, limit).unwrap_err();
        assert_eq!(
            (error.status(), error.fuel()),
            (Some(Status::OutOfFuel), Fuel(limit)),
            "{error}"
        );
    }
    nucleus.wait_for_earned("spin", Fuel(limits.iter().sum()));
}

/// A limit that the account cannot cover is refused before anything runs, and costs nothing.
#[test]
fn a_limit_beyond_the_account_is_refused() {
    let nucleus = Nucleus::new();
    nucleus.deploy_wat("echo", &wat::cell("", wat::ECHO), "");
    let mut client = nucleus.client("echo");
    let slot = client.open_raw("run").unwrap();
    // What is left after the cell was compiled.
    let account = u64::try_from(nucleus.balance("owner")).unwrap();
    for limit in [account + 1, u64::MAX / 2, u64::MAX] {
        let error = Request::Rkyv(Vec::new()).call(&mut client, &slot, limit).unwrap_err();
        assert_eq!((error.status(), error.fuel()), (Some(Status::OutOfAtp), Fuel::ZERO), "{error}");
    }
    // The whole account is enough, and what was refused has not used any of it up.
    Request::Rkyv(Vec::new()).call(&mut client, &slot, account).unwrap();
}
