//! Running a call again from its record: the same answer for the same fuel, or it is said.

use std::sync::Arc;

use cell_abi::{Fuel, Status};
use cell_host::{
    CallRecord, Cell, CellOptions, Flaw, Isolation, NoServices, Replay, Replayed, StopHandle,
};

use crate::support::{ECHO, World, module, sandbox, spec, wat};

/// Adds one to the u32 under `k`, draws eight random bytes, looks at the clock twice and at its
/// context, and calls another cell with what it found. Answers with all of that.
const CURIOUS: &str = r#"
    (import "cell_v1" "kv_get" (func $get (param i32 i32) (result i64)))
    (import "cell_v1" "kv_value" (func $value (param i32 i32) (result i32)))
    (import "cell_v1" "kv_set" (func $set (param i32 i32 i32 i32) (result i32)))
    (import "cell_v1" "kv_delete" (func $delete (param i32 i32) (result i32)))
    (import "cell_v1" "context" (func $context (param i32)))
    (import "cell_v1" "call" (func $call (param i32 i32 i32 i32 i32 i32 i32 i32 i64) (result i64)))
    (import "cell_v1" "call_reply" (func $reply (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
    (data (i32.const 0) "k")
    (data (i32.const 16) "echo")
    (data (i32.const 24) "run")"#;

const ASK: &str = r#"
    (i64.store (i32.const 1224) (call $get (i32.const 0) (i32.const 1)))
    (drop (call $value (i32.const 1024) (i32.const 4)))
    (i32.store (i32.const 1024) (i32.add (i32.load (i32.const 1024)) (i32.const 1)))
    (drop (call $set (i32.const 0) (i32.const 1) (i32.const 1024) (i32.const 4)))
    (i32.store (i32.const 1232) (call $delete (i32.const 16) (i32.const 4)))
    (drop (call $random (i32.const 1032) (i32.const 8)))
    (drop (call $clock (i32.const 0) (i64.const 1) (i32.const 1040)))
    (drop (call $clock (i32.const 1) (i64.const 1) (i32.const 1048)))
    (call $context (i32.const 1056))
    (i64.store (i32.const 1120) (call $call (i32.const 16) (i32.const 4) (i32.const 24) (i32.const 3)
        (i32.const 0) (i32.const 0) (i32.const 1024) (i32.const 96) (i64.const 1000000)))
    (drop (call $reply (i32.const 1128) (i32.const 96)))
    (if (i32.eq (i32.load8_u (local.get $ptr)) (i32.const 116)) (then unreachable))
    ;; As many more steps as the clock and the random bytes say: other ones are another bill.
    (i32.store (i32.const 2048) (i32.and (i32.xor (i32.load (i32.const 1032)) (i32.load (i32.const 1048))) (i32.const 0xffff)))
    (loop $again
        (i32.store (i32.const 2048) (i32.sub (i32.load (i32.const 2048)) (i32.const 1)))
        (br_if $again (i32.gt_s (i32.load (i32.const 2048)) (i32.const 0))))
    (i64.or (i64.shl (i64.const 212) (i64.const 32)) (i64.const 1024))"#;

fn options() -> CellOptions {
    let mut options = CellOptions::default();
    (options.isolation, options.receipts) = (Isolation::Call, true);
    options
}

/// Calls a cell; the records of it and of what it called, innermost first, and the reply.
async fn recorded(cell: &Arc<Cell>, request: &[u8], fuel: u64) -> Vec<CallRecord> {
    let mut lease = cell.checkout(0).await.unwrap();
    let begun = lease.begin(spec(fuel, &StopHandle::new()), u32::try_from(request.len()).unwrap());
    match begun.await {
        Ok(()) => {
            lease.request_mut().copy_from_slice(request);
            lease.finish(0, false).await.records
        }
        Err(outcome) => outcome.records,
    }
}

pub(crate) async fn again(text: &str, record: &CallRecord) -> Replayed {
    let services = Arc::new(NoServices);
    let cell =
        Cell::new(&sandbox(), record.cell.clone(), module(text), options(), services).unwrap();
    let replay = Replay {
        receptor: record.receptor,
        json: record.json,
        limit: record.limit,
        input_bytes: record.input_bytes,
        input: record.input.clone(),
        tape: record.tape.clone(),
    };
    replay.run(&cell, StopHandle::new()).await.unwrap()
}

#[track_caller]
pub(crate) fn agree(record: &CallRecord, replayed: &Replayed) {
    let hash = blake3::hash(&replayed.output);
    assert_eq!(record.flaw, None);
    assert!(!replayed.diverged);
    assert_eq!(
        (replayed.status, replayed.fuel, replayed.own_fuel, *hash.as_bytes()),
        (record.status, record.fuel, record.own_fuel, record.output_hash)
    );
}

#[tokio::test]
async fn what_a_call_learned_is_enough_to_run_it_again() {
    let world = World::new();
    world.deploy("echo", &wat("", ECHO), options());
    let curious = wat(CURIOUS, ASK);
    let cell = world.deploy("curious", &curious, options());
    let mut bills = Vec::new();
    for count in 1..=5_u32 {
        let records = recorded(&cell, b"a", 10_000_000).await;
        let [inner, outer] = records.as_slice() else { panic!("{} records", records.len()) };
        assert_eq!((inner.cell.as_str(), outer.cell.as_str()), ("echo", "curious"));
        assert_eq!(outer.own_fuel.0 + inner.own_fuel.0, outer.fuel.0);
        let replayed = again(&curious, outer).await;
        agree(outer, &replayed);
        assert_eq!(replayed.output[..4], count.to_le_bytes(), "the state as it was then");
        agree(inner, &again(&wat("", ECHO), inner).await);
        bills.push(outer.fuel.0);
    }
    bills.dedup();
    assert!(bills.len() > 1, "clock and randomness had no say in the bill, so this shows nothing");
}

#[tokio::test]
async fn calls_that_fail_are_run_again_too() {
    let world = World::new();
    world.deploy("echo", &wat("", ECHO), CellOptions::default());
    let curious = wat(CURIOUS, ASK);
    let cell = world.deploy("curious", &curious, options());
    for (request, fuel, status) in [
        (&b"t"[..], 10_000_000, Status::Trapped),
        (b"a", 60_100, Status::OutOfFuel),
        (b"a", 1_000_000, Status::OutOfFuel),
        (&[0; 100_001], 10_000_000, Status::TooLarge),
    ] {
        let records = recorded(&cell, request, fuel).await;
        let record = records.last().unwrap();
        assert_eq!(record.status, status);
        agree(record, &again(&curious, record).await);
    }
}

/// What starts an instance may learn something as well.
#[tokio::test]
async fn the_start_of_an_instance_is_on_the_tape() {
    let text = wat(
        r#"(import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
           (func (export "_initialize") (drop (call $random (i32.const 512) (i32.const 8))))"#,
        "(i64.or (i64.shl (i64.const 8) (i64.const 32)) (i64.const 512))",
    );
    let cell = World::new().deploy("seeded", &text, options());
    let records = recorded(&cell, b"", 1_000_000).await;
    agree(&records[0], &again(&text, &records[0]).await);
}

#[tokio::test]
async fn what_was_changed_is_seen() {
    let world = World::new();
    world.deploy("echo", &wat("", ECHO), CellOptions::default());
    let curious = wat(CURIOUS, ASK);
    let cell = world.deploy("curious", &curious, options());
    let record = recorded(&cell, b"a", 10_000_000).await.pop().unwrap();
    // Another program than it says.
    assert!(again(&wat("", ECHO), &record).await.diverged);
    let honest = again(&curious, &record).await;
    // The first three events are the state's size and what `k` was when it was read and written:
    // nothing and something empty are the same to this cell.
    for at in 25..record.tape.len() {
        let mut changed = record.clone();
        changed.tape[at] ^= 1;
        let replayed = again(&curious, &changed).await;
        assert_ne!(replayed, honest, "byte {at} of the tape has no meaning");
    }
    let mut short = record.clone();
    short.limit = Fuel(record.fuel.0 - 1);
    assert_eq!(again(&curious, &short).await.status, Status::OutOfFuel);
}

#[tokio::test]
async fn a_stopped_call_cannot_be_checked() {
    let cell = World::new().deploy("test", &wat("", ECHO), options());
    let stop = StopHandle::new();
    let mut lease = cell.checkout(0).await.unwrap();
    lease.begin(spec(1_000_000, &stop), 0).await.unwrap();
    stop.cancel();
    let outcome = lease.finish(0, false).await;
    assert_eq!(outcome.status, Status::Cancelled);
    assert_eq!(outcome.records[0].flaw, Some(Flaw::Stopped));
    assert_eq!(outcome.records[0].own_fuel, outcome.fuel);
}
