//! One call costs the same wherever and however often it runs, and never more than its limit.

use cell_abi::Status;
use cell_host::{CellOptions, Isolation, Sandbox, StopHandle};

use crate::support::{ECHO, SPIN, call, call_with, deploy, wat};

/// Sums the request's bytes, so that the fuel depends on the input.
const SUM: &str = r#"
    (local $sum i32) (local $at i32)
    (loop $next
        (local.set $sum (i32.add (local.get $sum) (i32.load8_u (i32.add (local.get $ptr) (local.get $at)))))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br_if $next (i32.lt_u (local.get $at) (local.get $len))))
    (i32.store (i32.const 1024) (local.get $sum))
    (i64.or (i64.shl (i64.const 4) (i64.const 32)) (i64.const 1024))"#;

fn fresh() -> CellOptions {
    let mut options = CellOptions::default();
    options.isolation = Isolation::Call;
    options
}

#[tokio::test]
async fn reused_and_fresh_instances_burn_the_same() {
    let reused = deploy(&wat("", SUM), CellOptions::default());
    let fresh = deploy(&wat("", SUM), fresh());
    let first = call(&reused, b"hello", 1_000_000).await;
    assert_eq!(first.0, Status::Ok);
    for _ in 0..1000 {
        assert_eq!(call(&reused, b"hello", 1_000_000).await, first);
        assert_eq!(call(&fresh, b"hello", 1_000_000).await, first);
    }
    let longer = call(&reused, b"hello there", 1_000_000).await;
    assert!(longer.1 > first.1, "more input must burn more: {longer:?}");
}

#[tokio::test]
async fn exactly_the_burned_fuel_is_enough_and_one_less_is_not() {
    let cell = deploy(&wat("", SUM), CellOptions::default());
    let request = vec![3; 50_000];
    let (_, burned, reply) = call(&cell, &request, 1_000_000_000).await;
    assert_eq!(reply, 150_000u32.to_le_bytes());
    assert_eq!(call(&cell, &request, burned).await, (Status::Ok, burned, reply));
    let (status, charged, _) = call(&cell, &request, burned - 1).await;
    assert_eq!((status, charged), (Status::OutOfFuel, burned - 1));
    for limit in [0, 1, 2, burned / 2] {
        let (status, charged, _) = call(&cell, &request, limit).await;
        assert_eq!((status, charged), (Status::OutOfFuel, limit));
    }
}

#[tokio::test]
async fn an_endless_loop_burns_exactly_its_limit() {
    let cell = deploy(&wat("", SPIN), CellOptions::default());
    for limit in [1, 1_000, 10_000_000] {
        let (status, charged, _) = call(&cell, b"", limit).await;
        assert_eq!((status, charged), (Status::OutOfFuel, limit));
    }
}

/// Growing memory is due at once although wasm's own counter cannot be changed in between.
#[tokio::test]
async fn pages_are_paid_for_and_cannot_be_had_on_credit() {
    let grow = |pages: u32| format!("(drop (memory.grow (i32.const {pages}))) {ECHO}");
    let (_, none, _) = call(&deploy(&wat("", &grow(0)), fresh()), b"", 1 << 40).await;
    let (status, ten, _) = call(&deploy(&wat("", &grow(10)), fresh()), b"", 1 << 40).await;
    assert_eq!(status, Status::Ok);
    assert_eq!(ten - none, 10 * cell_host::price::MEMORY_PAGE);
    // Enough for the wasm but not for the pages.
    let (status, charged, _) = call(&deploy(&wat("", &grow(10)), fresh()), b"", ten - 1).await;
    assert_eq!((status, charged), (Status::OutOfFuel, ten - 1));
    // A guest that grows and then spins is stopped by what it owes, not after its limit in wasm alone.
    let spin = format!("(drop (memory.grow (i32.const 10))) {SPIN}");
    let (status, charged, _) = call(&deploy(&wat("", &spin), fresh()), b"", 5_000_000).await;
    assert_eq!((status, charged), (Status::OutOfFuel, 5_000_000));
}

/// An instance whose memory grew would burn less at the next growth, so it is not used again.
#[tokio::test]
async fn growth_is_paid_on_every_call() {
    let handler = format!("(drop (memory.grow (i32.const 1))) {ECHO}");
    let cell = deploy(&wat("", &handler), CellOptions::default());
    let first = call(&cell, b"", 1 << 40).await;
    assert_eq!(call(&cell, b"", 1 << 40).await, first);
}

#[tokio::test]
async fn a_refused_growth_costs_no_pages() {
    let handler = format!("(drop (memory.grow (i32.const 60000))) {ECHO}");
    let (status, burned, _) = call(&deploy(&wat("", &handler), fresh()), b"", 1 << 40).await;
    assert_eq!(status, Status::Ok);
    assert!(burned < cell_host::price::MEMORY_PAGE, "{burned}");
}

/// Host calls reset wasm's slice counter; a guest that makes nothing else must still yield.
#[tokio::test]
async fn a_loop_of_host_calls_yields() {
    let imports = r#"(import "cell_v1" "fuel_left" (func $left (result i64)))"#;
    let cell =
        deploy(&wat(imports, "(loop $again (drop (call $left)) (br $again)) unreachable"), fresh());
    let stop = StopHandle::new();
    let running = call_with(&cell, b"", 1 << 40, &stop);
    tokio::pin!(running);
    let mut polls = 0;
    let (status, burned, _) = std::future::poll_fn(|cx| {
        polls += 1;
        if polls == 5 {
            stop.cancel();
        }
        running.as_mut().poll(cx)
    })
    .await;
    assert_eq!(status, Status::Cancelled);
    assert!(burned > 0 && burned < 1 << 30, "{burned}");
}

#[tokio::test]
async fn a_stopped_call_pays_what_it_burned() {
    let cell = deploy(&wat("", SPIN), fresh());
    let stop = StopHandle::new();
    let running = call_with(&cell, b"", 1 << 40, &stop);
    tokio::pin!(running);
    let mut polls = 0;
    let (status, burned, _) = std::future::poll_fn(|cx| {
        polls += 1;
        if polls == 3 {
            stop.time_out();
        }
        running.as_mut().poll(cx)
    })
    .await;
    assert_eq!(status, Status::TimedOut);
    let slice = cell_host::limits::SLICE_FUEL;
    assert!((2 * slice..3 * slice).contains(&burned), "{burned}");
}

/// The engine id pins the version whose fuel is counted.
#[test]
fn the_engine_version_is_the_locked_one() {
    let lock =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock")).unwrap();
    let wanted =
        format!("name = \"wasmtime\"\nversion = \"{}\"\n", cell_host::engine::WASMTIME_VERSION);
    assert!(lock.contains(&wanted), "update engine::WASMTIME_VERSION");
    assert_eq!(Sandbox::engine_id(), Sandbox::engine_id());
}

/// The first growth of an empty memory was taken for the module's own start, and cost nothing.
#[tokio::test]
async fn growth_from_nothing_is_paid() {
    let text = wat("", "(drop (memory.grow (i32.const 10))) (i64.const 0)")
        .replace("(memory (export \"memory\") 4)", "(memory (export \"memory\") 0)");
    // An empty memory holds only an empty mailbox, at address 65536 of none: the growth comes first.
    let text = text.replace(
        "(else (i32.const 65536))",
        "(else (drop (memory.grow (i32.const 10))) (i32.const 65536))",
    );
    let (status, burned, _) = call(&deploy(&text, fresh()), b"", 1 << 40).await;
    assert_eq!(status, Status::Ok);
    assert!(burned > 20 * cell_host::price::MEMORY_PAGE, "{burned}");
}
