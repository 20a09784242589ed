//! What is paid besides fuel: each dimension where it dominates, and where the limit ends in the middle.

use std::sync::Arc;

use cell_abi::Status;
use cell_host::rates::Dimension;
use cell_host::{Cell, CellOptions, Isolation, Outcome, Rates, StopHandle, Taken};

use crate::support::{ECHO, SPIN, World, deploy, spec, wat};

const PLENTY: u64 = 1 << 40;

fn priced(rates: [u64; 3]) -> CellOptions {
    let mut options = CellOptions::default();
    options.isolation = Isolation::Call;
    options.rates = Rates(rates);
    options
}

async fn outcome(cell: &Arc<Cell>, request: &[u8], limit: u64) -> Outcome {
    let mut lease = cell.checkout(0).await.unwrap();
    let outcome = match lease
        .begin(spec(limit, &StopHandle::new()), u32::try_from(request.len()).unwrap())
        .await
    {
        Ok(()) => {
            lease.request_mut().copy_from_slice(request);
            lease.finish(0, false).await
        }
        Err(outcome) => outcome,
    };
    assert!(outcome.charge().0 <= limit, "{outcome:?} passes {limit}");
    outcome
}

/// The fuel of a call is the same whatever else is paid for.
async fn fuel_alone(text: &str, request: &[u8]) -> u64 {
    outcome(&deploy(text, priced([0; 3])), request, PLENTY).await.fuel.0
}

#[tokio::test]
async fn a_start_is_paid_before_it_runs() {
    let text = wat("", ECHO);
    let fuel = fuel_alone(&text, b"abc").await;
    let cell = deploy(&text, priced([1_000_000, 0, 0]));
    let paid = outcome(&cell, b"abc", PLENTY).await;
    assert_eq!((paid.status, paid.fuel.0, paid.charge().0), (Status::Ok, fuel, fuel + 1_000_000));
    assert_eq!(paid.taken(), Taken([1, 0, 0]));
    // Exactly enough is enough; one less pays for the start and leaves too little to run.
    assert_eq!(outcome(&cell, b"abc", fuel + 1_000_000).await.status, Status::Ok);
    let short = outcome(&cell, b"abc", fuel + 999_999).await;
    assert_eq!(short.status, Status::OutOfFuel);
    let none = outcome(&cell, b"abc", 999_999).await;
    assert_eq!((none.status, none.charge().0), (Status::OutOfFuel, 0), "nothing ran");
    // Who shares an instance shares its start.
    let mut options = priced([1_000_000, 0, 0]);
    options.isolation = Isolation::Instance;
    let shared = deploy(&text, options);
    assert_eq!(outcome(&shared, b"abc", PLENTY).await.charge().0, fuel);
}

#[tokio::test]
async fn a_reply_is_paid_by_the_byte() {
    let text = wat("", ECHO);
    let request = vec![7; 50_000];
    let fuel = fuel_alone(&text, &request).await;
    // 1,000 nano-ATP a byte.
    let cell = deploy(&text, priced([0, 1000 << 30, 0]));
    let paid = outcome(&cell, &request, PLENTY).await;
    assert_eq!((paid.status, paid.fuel.0), (Status::Ok, fuel));
    assert_eq!((paid.taken(), paid.charge().0), (Taken([0, 50_000, 0]), fuel + 50_000_000));
    let exact = outcome(&cell, &request, fuel + 50_000_000).await;
    assert_eq!(exact.status, Status::Ok);
    let short = outcome(&cell, &request, fuel + 49_999_999).await;
    assert_eq!((short.status, short.reply_bytes()), (Status::OutOfFuel, 0));
    assert_eq!(short.taken(), Taken([0, 49_999, 0]));
    assert!(String::from_utf8_lossy(&short.message).contains("besides"), "{short:?}");
}

/// A guest that holds memory is stopped by what that costs, long before its fuel is used up.
#[tokio::test]
async fn memory_is_paid_by_the_time() {
    let spin = format!("(drop (memory.grow (i32.const 100))) {SPIN}");
    // A nano-ATP for each microsecond that a page is held, 1,000 times the price of its fuel.
    let rate = 1000 * Dimension::Memory.per();
    let cell = deploy(&wat("", &spin), priced([0, 0, rate]));
    let limit = 10_000_000_000;
    let paid = outcome(&cell, b"", limit).await;
    let Taken([_, _, memory]) = paid.taken();
    assert_eq!(paid.status, Status::OutOfFuel);
    assert!(memory * 1000 > limit / 2, "memory dominates: {paid:?}");
    assert!(paid.charge().0 > limit - limit / 100, "{paid:?}");
    assert!(paid.fuel.0 < limit / 2, "{paid:?}");
    // Four pages at least, for as long as the call took.
    let short = outcome(&deploy(&wat("", ECHO), priced([0, 0, rate])), b"x", PLENTY).await;
    assert_eq!((short.status, short.taken().0[2] % 4), (Status::Ok, 0));
}

/// What a callee took stands on the caller's bill and limit, and is told apart for who is paid.
#[tokio::test]
async fn callees_are_paid_from_the_callers_limit() {
    let world = World::new();
    let imports = r#"(import "cell_v1" "call" (func $call (param i32 i32 i32 i32 i32 i32 i32 i32 i64) (result i64)))
"#;
    let data = r#"(data (i32.const 16) "calleerun")"#;
    let handler = format!(
        "(i64.store (i32.const 1024) (call $call (i32.const 16) (i32.const 6) (i32.const 22) (i32.const 3) (i32.const 0) (i32.const 0) (local.get $ptr) (local.get $len) (i64.const -1))) {ECHO}"
    );
    let text = wat(imports, &handler);
    let text = format!("{} {data})", text.trim_end().strip_suffix(')').unwrap());
    let rates = [1_000_000, 1000 << 30, 0];
    let callee = world.deploy("callee", &wat("", ECHO), priced(rates));
    let caller = world.deploy("caller", &text, priced(rates));
    let alone = outcome(&callee, b"12345678", PLENTY).await;
    let paid = outcome(&caller, b"12345678", PLENTY).await;
    assert_eq!(paid.status, Status::Ok);
    let [share] = &paid.callees[..] else { panic!("{paid:?}") };
    assert_eq!((share.fuel, share.taken), (alone.fuel, alone.taken()));
    assert_eq!(paid.taken(), Taken([1, 8, 0]));
    assert_eq!(paid.charge().0, paid.fuel.0 + 2 * 1_008_000);
    let least = paid.charge().0;
    assert_eq!(outcome(&caller, b"12345678", least).await.status, Status::Ok);
    for limit in [least - 1, least / 2, 1_000_001] {
        let short = outcome(&caller, b"12345678", limit).await;
        let of_callees = short.callees.iter().map(|share| share.fuel.0).sum::<u64>();
        assert!(of_callees <= short.fuel.0, "{short:?}");
    }
}
