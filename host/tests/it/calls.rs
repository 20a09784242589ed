//! How calls end, and cells that call cells.

use cell_abi::{Reject, Status};
use cell_host::{Callee, CellOptions};

use crate::support::{ECHO, SPIN, World, call, deploy, wat};

#[track_caller]
fn check(imports: &str, handler: &str, expect: Status) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let cell = deploy(&wat(imports, handler), CellOptions::default());
    let (status, fuel, message) = runtime.block_on(call(&cell, b"request", 10_000_000));
    assert_eq!(status, expect, "{}", String::from_utf8_lossy(&message));
    assert!(fuel <= 10_000_000);
    // Whatever happened, the next call finds a working cell.
    let (again, fuel_again, _) = runtime.block_on(call(&cell, b"request", 10_000_000));
    assert_eq!((again, fuel_again), (status, fuel));
    message
}

#[test]
fn every_end_has_its_status() {
    assert_eq!(check("", ECHO, Status::Ok), b"request");
    check("", "unreachable", Status::Trapped);
    check("", "(i64.load (i32.const -4))", Status::Trapped);
    check("", "(i64.extend_i32_u (i32.div_u (i32.const 1) (i32.const 0)))", Status::Trapped);
    check("", "(call 1 (local.get $receptor) (local.get $ptr) (local.get $len))", Status::Trapped);
    check("", "(i64.const -1)", Status::BadRequest);
    check("", SPIN, Status::OutOfFuel);
    // A reply past the end of memory, one that wraps, and one larger than a frame.
    check("", "(i64.const 0x00000001_7fffffff)", Status::BadReply);
    check("", "(i64.const 0xfffffff0_fffffff0)", Status::BadReply);
    check("", "(i64.const 0x40000000_00000000)", Status::BadReply);
    let exit = r#"(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))"#;
    check(exit, "(call $exit (i32.const 3)) unreachable", Status::Exited);
}

#[test]
fn a_reject_carries_code_and_message() {
    let imports = r#"(import "cell_v1" "reject" (func $reject (param i32 i32 i32)))"#;
    let handler = "(call $reject (i32.const 42) (local.get $ptr) (local.get $len)) (i64.const 0)";
    let payload = check(imports, handler, Status::Rejected);
    assert_eq!(Reject::decode(&payload), Some(Reject::new(42, "request")));
    let bad = format!("{} (i64.const -1)", handler.replace("(i64.const 0)", ""));
    assert_eq!(check(imports, &bad, Status::BadRequest), b"request");
}

#[test]
fn host_calls_check_their_addresses() {
    let imports = r#"
        (import "cell_v1" "log" (func $log (param i32 i32 i32)))
        (import "cell_v1" "context" (func $context (param i32)))
        (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))"#;
    check(
        imports,
        "(call $log (i32.const 1) (i32.const -8) (i32.const 100)) (i64.const 0)",
        Status::Trapped,
    );
    check(imports, "(call $context (i32.const -8)) (i64.const 0)", Status::Trapped);
    // A length of 4 GiB is charged before anything is read, so it burns the whole limit.
    check(
        imports,
        "(call $log (i32.const 1) (i32.const 0) (i32.const -1)) (i64.const 0)",
        Status::OutOfFuel,
    );
    check(
        imports,
        "(drop (call $random (i32.const 0) (i32.const -1))) (i64.const 0)",
        Status::OutOfFuel,
    );
}

#[tokio::test]
async fn prints_become_log_lines() {
    let world = World::new();
    let imports = r#"(import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))"#;
    let handler = r#"
        (i32.store (i32.const 0) (local.get $ptr))
        (i32.store (i32.const 4) (local.get $len))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))
        (i64.const 0)"#;
    let cell = world.deploy("printer", &wat(imports, handler), CellOptions::default());
    for text in ["one\ntw", "o\n"] {
        assert_eq!(call(&cell, text.as_bytes(), 10_000_000).await.0, Status::Ok);
    }
    assert_eq!(*world.lines.lock().unwrap(), ["Info one", "Info two"]);
}

pub(crate) const CALL: &str = r#"(import "cell_v1" "call" (func $call (param i32 i32 i32 i32 i32 i32 i32 i32 i64) (result i64)))
    (import "cell_v1" "call_reply" (func $reply (param i32 i32) (result i32)))
    (data (i32.const 0) "callee") (data (i32.const 16) "run")"#;

/// Passes its request on and answers with the callee's status, then its reply.
pub(crate) fn forward(fuel: i64) -> String {
    format!(
        r#"(local $result i64)
        (local.set $result (call $call (i32.const 0) (i32.const 6) (i32.const 16) (i32.const 3)
            (i32.const 0) (i32.const 0) (local.get $ptr) (local.get $len) (i64.const {fuel})))
        (i32.store (i32.const 1024) (i32.wrap_i64 (i64.shr_u (local.get $result) (i64.const 32))))
        (i64.or
            (i64.shl (i64.extend_i32_u (i32.add (i32.const 4) (call $reply (i32.const 1028) (i32.const 1000)))) (i64.const 32))
            (i64.const 1024))"#
    )
}

async fn forwarded(callee: &str, fuel: i64, limit: u64) -> (Status, u64, u32) {
    let world = World::new();
    world.deploy("callee", &wat("", callee), CellOptions::default());
    let caller = world.deploy("caller", &wat(CALL, &forward(fuel)), CellOptions::default());
    let (status, burned, reply) = call(&caller, b"hi", limit).await;
    let inner = reply.first_chunk::<4>().map_or(u32::MAX, |code| u32::from_le_bytes(*code));
    (status, burned, inner)
}

#[tokio::test]
async fn a_callee_is_paid_from_its_callers_fuel() {
    let (status, burned, inner) = forwarded(ECHO, -1, 10_000_000).await;
    assert_eq!((status, inner), (Status::Ok, Status::Ok.code()));
    assert!(burned > 0);
    // What a runaway callee may burn is what its caller allows, and it comes off the caller's own.
    let (status, with_runaway, inner) = forwarded(SPIN, 1_000_000, 10_000_000).await;
    assert_eq!((status, inner), (Status::Ok, Status::OutOfFuel.code()));
    assert!(with_runaway > 1_000_000 && with_runaway < 1_100_000, "{with_runaway}");
    // A callee with everything the caller has leaves the caller nothing to go on with.
    let (status, burned, _) = forwarded(SPIN, -1, 10_000_000).await;
    assert_eq!((status, burned), (Status::OutOfFuel, 10_000_000));
    let (status, _, inner) = forwarded("unreachable", -1, 10_000_000).await;
    assert_eq!((status, inner), (Status::Ok, Status::Trapped.code()));
}

/// Each cell's share of a bill: callees apart, the sum the caller's total.
#[tokio::test]
async fn the_bill_names_every_cell() {
    let world = World::new();
    world.deploy("callee", &wat("", ECHO), CellOptions::default());
    let caller = world.deploy("caller", &wat(CALL, &forward(-1)), CellOptions::default());
    let mut lease = caller.checkout(0).await.unwrap();
    let stop = cell_host::StopHandle::new();
    lease.begin(crate::support::spec(10_000_000, &stop), 2).await.unwrap();
    let outcome = lease.finish(0, false).await;
    let [share] = &outcome.callees[..] else { panic!("{outcome:?}") };
    let Callee::Here(callee) = &share.cell else { panic!("{share:?}") };
    assert_eq!(callee.name().as_str(), "callee");
    let (_, alone, _) = call(callee, b"hi", 10_000_000).await;
    assert_eq!((share.fuel.0, share.calls), (alone, 1));
    assert!(outcome.fuel > share.fuel);
}

#[tokio::test]
async fn a_circle_of_calls_ends() {
    let world = World::new();
    let itself = CALL.replace("\"callee\"", "\"caller\"");
    let caller = world.deploy("caller", &wat(&itself, &forward(-1)), CellOptions::default());
    let (status, _, reply) = call(&caller, b"hi", 100_000_000).await;
    assert_eq!(status, Status::Ok);
    // The innermost call was refused, and each level put its callee's status in front.
    let codes: Vec<_> =
        reply.chunks(4).take(8).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect();
    assert_eq!(codes[7], 0);
    assert_eq!(u32::from_le_bytes(reply[32..36].try_into().unwrap()), Status::TooDeep.code());
}

/// With one instance, a cell that calls itself waited for the instance it was keeping busy.
#[tokio::test]
async fn a_circle_of_one_instance_ends_at_once() {
    let world = World::new();
    let itself = CALL.replace("\"callee\"", "\"caller\"");
    let mut options = CellOptions::default();
    options.replicas_max = 1;
    let caller = world.deploy("caller", &wat(&itself, &forward(-1)), options);
    let (status, _, reply) = call(&caller, b"hi", 100_000_000).await;
    assert_eq!((status, &reply[..4]), (Status::Ok, &Status::TooDeep.code().to_le_bytes()[..]));
}

/// A mailbox that burned the limit and then said "too large" was free work.
#[tokio::test]
async fn a_mailbox_is_paid_for() {
    let spins = "(loop $again (local.set 0 (i32.sub (local.get 0) (i32.const 1))) (br_if $again (local.get 0))) (i32.const 0)";
    let text = wat("", ECHO).replace("(if (result i32) (i32.gt_u (local.get 0) (i32.const 100000)) (then (i32.const 0)) (else (i32.const 65536)))", spins);
    let cell = deploy(&text, CellOptions::default());
    let (status, fuel, _) = call(&cell, &[0; 10_000], 1_000_000).await;
    assert_eq!(status, Status::TooLarge);
    assert!(fuel > 10_000 * 4, "{fuel}");
}

/// A start is not billed, so what it calls or keeps would be free.
#[tokio::test]
async fn a_start_cannot_call_or_keep() {
    let world = World::new();
    world.deploy("callee", &wat("", ECHO), CellOptions::default());
    let start = format!(
        "(func (export \"_initialize\") (local $ptr i32) (local $len i32) (local $result i64) (drop {}))",
        "(call $call (i32.const 0) (i32.const 6) (i32.const 16) (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i64.const -1))"
    );
    let text = wat(CALL, ECHO).replace("(memory", &format!("{start} (memory"));
    let caller = world.deploy("caller", &text, CellOptions::default());
    assert_eq!(call(&caller, b"hi", 10_000_000).await.0, Status::Trapped);
}

/// Leaves that stay below a slice each, called without end, must not keep the thread.
#[tokio::test]
async fn a_loop_of_calls_yields() {
    let world = World::new();
    world.deploy("callee", &wat("", ECHO), CellOptions::default());
    let again = "(loop $again (drop (call $call (i32.const 0) (i32.const 6) (i32.const 16) (i32.const 3) \
        (i32.const 0) (i32.const 0) (local.get $ptr) (local.get $len) (i64.const -1))) (br $again)) unreachable";
    let caller = world.deploy("caller", &wat(CALL, again), CellOptions::default());
    let running = call(&caller, b"hi", 50_000_000);
    tokio::pin!(running);
    let mut polls = 0;
    let (status, burned, _) = std::future::poll_fn(|cx| {
        polls += 1;
        running.as_mut().poll(cx)
    })
    .await;
    assert_eq!((status, burned), (Status::OutOfFuel, 50_000_000));
    let slices = 50_000_000 / cell_host::limits::SLICE_FUEL;
    assert!(polls > slices / 2, "{polls} polls for {slices} slices");
}
