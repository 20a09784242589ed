//! Key-value state: transactional per call, one call at a time, within its quota.

use std::sync::Arc;

use cell_abi::Status;
use cell_host::state::Writes;
use cell_host::{CellOptions, StateError, StateStore};

use crate::support::{ECHO, SPIN, call, deploy, wat};

const KV: &str = r#"
    (import "cell_v1" "kv_get" (func $get (param i32 i32) (result i64)))
    (import "cell_v1" "kv_value" (func $value (param i32 i32) (result i32)))
    (import "cell_v1" "kv_set" (func $set (param i32 i32 i32 i32) (result i32)))
    (import "cell_v1" "kv_delete" (func $delete (param i32 i32) (result i32)))
    (import "cell_v1" "fuel_left" (func $left (result i64)))
    (data (i32.const 0) "k")"#;

/// Adds one to the u32 under `k`; traps after writing if the request starts with `t`.
const COUNT: &str = r#"
    (i32.store (i32.const 64) (i32.const 0))
    (drop (call $get (i32.const 0) (i32.const 1)))
    (drop (call $value (i32.const 64) (i32.const 4)))
    (i32.store (i32.const 64) (i32.add (i32.load (i32.const 64)) (i32.const 1)))
    (drop (call $set (i32.const 0) (i32.const 1) (i32.const 64) (i32.const 4)))
    (if (i32.eq (i32.load8_u (local.get $ptr)) (i32.const 116)) (then unreachable))
    (i64.or (i64.shl (i64.const 4) (i64.const 32)) (i64.const 64))"#;

#[tokio::test]
async fn a_trap_leaves_no_write() {
    let cell = deploy(&wat(KV, COUNT), CellOptions::default());
    assert_eq!(call(&cell, b"a", 10_000_000).await.2, 1u32.to_le_bytes());
    assert_eq!(call(&cell, b"t", 10_000_000).await.0, Status::Trapped);
    assert_eq!(call(&cell, b"a", 10_000_000).await.2, 2u32.to_le_bytes());
}

#[tokio::test]
async fn an_empty_limit_leaves_no_write() {
    let cell = deploy(&wat(KV, COUNT), CellOptions::default());
    let (_, burned, _) = call(&cell, b"a", 10_000_000).await;
    assert_eq!(call(&cell, b"a", burned - 1).await.0, Status::OutOfFuel);
    assert_eq!(call(&cell, b"a", burned * 2).await.2, 2u32.to_le_bytes());
}

/// Two hundred calls at once on sixteen instances, each read-then-write: none may be lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_calls_take_turns() {
    let cell = deploy(&wat(KV, COUNT), CellOptions::default());
    let calls: Vec<_> = (0..200)
        .map(|_| {
            let cell = cell.clone();
            tokio::spawn(async move { call(&cell, b"a", 10_000_000).await.0 })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap(), Status::Ok);
    }
    assert_eq!(call(&cell, b"a", 10_000_000).await.2, 201u32.to_le_bytes());
}

#[tokio::test]
async fn the_quota_holds() {
    // Sets `k` to the whole request and answers with what kv_set said.
    let handler = r#"
        (i32.store (i32.const 64) (call $set (i32.const 0) (i32.const 1) (local.get $ptr) (local.get $len)))
        (i64.or (i64.shl (i64.const 4) (i64.const 32)) (i64.const 64))"#;
    let mut options = CellOptions::default();
    options.state_bytes_max = 100;
    let cell = deploy(&wat(KV, handler), options);
    let mut answers = Vec::new();
    for bytes in [99, 100, 99, 10] {
        let (status, _, reply) = call(&cell, &vec![1; bytes], 10_000_000).await;
        assert_eq!(status, Status::Ok);
        answers.push(reply[0]);
    }
    assert_eq!(answers, [0, 1, 0, 0]);
    let long_key = format!("(drop (call $get (i32.const 0) (i32.const 1025))) {ECHO}");
    let cell = deploy(&wat(KV, &long_key), CellOptions::default());
    assert_eq!(call(&cell, b"", 10_000_000).await.0, Status::OverLimit);
}

/// A call that is stopped while it holds the state must let the next one have it.
#[tokio::test]
async fn a_runaway_gives_the_state_back() {
    let handler = format!(
        "(drop (call $get (i32.const 0) (i32.const 1))) (if (i32.eqz (local.get $len)) (then {SPIN})) {ECHO}"
    );
    let cell = deploy(&wat(KV, &handler), CellOptions::default());
    assert_eq!(call(&cell, b"", 5_000_000).await.0, Status::OutOfFuel);
    assert_eq!(call(&cell, b"x", 5_000_000).await.0, Status::Ok);
}

/// State whose disk is gone.
#[derive(Debug)]
struct Broken;

impl StateStore for Broken {
    fn begin(&self) -> Result<Option<u64>, StateError> {
        Ok(Some(0))
    }

    fn value(&self, _key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        Err(StateError("no disk".into()))
    }

    fn commit(&self, _writes: &Writes) -> Result<(), StateError> {
        Err(StateError("no disk".into()))
    }

    fn end(&self) {}
}

/// The host's own fault is told as such, and nobody pays for it: when reading, and when committing.
#[tokio::test]
async fn a_broken_store_costs_nothing() {
    let set_only = format!(
        "(drop (call $set (i32.const 0) (i32.const 1) (local.get $ptr) (i32.const 1))) {ECHO}"
    );
    for handler in [COUNT, &set_only] {
        let mut options = CellOptions::default();
        options.state = Arc::new(Broken);
        let cell = deploy(&wat(KV, handler), options);
        let (status, fuel, _) = call(&cell, b"a", 10_000_000).await;
        assert_eq!((status, fuel), (Status::HostFault, 0));
    }
}
