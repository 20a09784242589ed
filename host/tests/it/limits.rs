//! What an instance may take of the host, and what the gate refuses.

use std::sync::Arc;
use std::time::Duration;

use cell_abi::{CellHash, CellName, Status};
use cell_host::artefact::{REASON_BYTES_MAX, REFUSALS_MAX};
use cell_host::{
    Allocation, ArtefactCache, Cell, CellOptions, GateError, ModuleKind, NoServices, Sandbox, gate,
};

use crate::support::{ECHO, call, deploy, sandbox, wat};

#[track_caller]
fn refused(text: &str, expect: &str) {
    let wasm = wat::parse_str(text).unwrap();
    let error = gate::inspect(&wasm).expect_err("the gate must refuse");
    assert!(error.to_string().contains(expect), "{error}");
}

#[test]
fn the_gate_names_what_it_refuses() {
    refused("(module)", "neither a cell");
    refused(r#"(module (func (export "_start")))"#, "no memory");
    refused(&wat("", ECHO).replace("cell:interface", "other"), "no cell:interface");
    refused(&wat(r#"(import "env" "system" (func))"#, ECHO), "imports `env` `system`");
    refused(&wat(r#"(import "cell_v1" "nothing" (func))"#, ECHO), "imports `cell_v1` `nothing`");
    refused(&wat(r#"(import "cell_v1" "log" (global i32))"#, ECHO), "imports `cell_v1` `log`");
    refused(&wat("", ECHO).replace("(memory", "(func $s) (start $s) (memory"), "start section");
    refused(&wat("(memory 1)", ECHO), "2 memories");
    refused(&wat("(table 1 funcref) (table 1 funcref)", ECHO), "2 tables");
    assert!(matches!(gate::inspect(b"\x7fELF"), Err(GateError::NotWasm(_))));
    assert!(matches!(gate::inspect(b""), Err(GateError::NotWasm(_))));
    assert!(matches!(gate::inspect(b"\0asm\x0d\0\x01\0"), Err(GateError::Component)));
    let large = vec![0; gate::MODULE_BYTES_MAX + 1];
    assert!(matches!(gate::inspect(&large), Err(GateError::TooMany { what: "bytes", .. })));
    // Every cut of a good module is refused or still whole, and never a panic.
    let good = wat::parse_str(wat("", ECHO)).unwrap();
    for cut in 0..good.len() {
        let _ = gate::inspect(&good[..cut]);
    }
}

/// Cells of one module that were deployed at once: two threads kept its artefact under one temporary name,
/// the second found it renamed, and its cell was not deployed.
#[test]
fn one_artefact_is_kept_by_many_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let cache = ArtefactCache::open(directory.path().join("cache"), [1; 32]).unwrap();
    let hash = CellHash::of(b"module");
    let artefact = vec![7; 100_000];
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..50).for_each(|_| cache.store(hash, &artefact).unwrap()));
        }
    });
    assert!(cache.find(hash).is_some());
    let left = std::fs::read_dir(directory.path().join("cache")).unwrap();
    let left = left.filter(|entry| {
        entry.as_ref().unwrap().path().extension().is_some_and(|extension| extension == "tmp")
    });
    assert_eq!(left.count(), 0);
}

/// What a compiler refused is not tried again, unless somebody says so or changed what is written.
#[test]
fn refusals_are_remembered() {
    let directory = tempfile::tempdir().unwrap();
    let open = |key| ArtefactCache::open(directory.path().join("cache"), [key; 32]).unwrap();
    let (cache, other) = (open(1), open(2));
    let hash = CellHash::of(b"a module");
    assert_eq!(cache.refused(hash), None);
    let refused = cache.refuse(hash, "it crashed").unwrap();
    assert_eq!(
        (refused.reason.as_str(), cache.refused(hash)),
        ("it crashed", Some(refused.clone()))
    );
    assert_eq!(other.refused(hash), None);
    let mut bytes = std::fs::read(&refused.file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&refused.file, &bytes).unwrap();
    assert_eq!(cache.refused(hash), None);
    // Cut at a character: the last one would be the 1024th and the 1025th byte.
    let long = "a".repeat(REASON_BYTES_MAX - 1) + "é";
    let cut = cache.refuse(hash, &long).unwrap().reason;
    assert_eq!(cut.len(), REASON_BYTES_MAX - 1);
    assert_eq!(cache.refused(hash).unwrap().reason, cut);
    std::fs::remove_file(&refused.file).unwrap();
    assert_eq!(cache.refused(hash), None);
    // There is room for so many, and then the oldest goes.
    let hashes: Vec<_> = (0..=REFUSALS_MAX).map(|n| CellHash::of(&n.to_le_bytes())).collect();
    for hash in &hashes {
        cache.refuse(*hash, "no").unwrap();
    }
    let kept = hashes.iter().filter(|hash| cache.refused(**hash).is_some()).count();
    assert_eq!(kept, REFUSALS_MAX);
    assert_eq!(cache.refused(hashes[REFUSALS_MAX]).unwrap().reason, "no");
}

#[tokio::test]
async fn memory_stops_at_its_limit() {
    // Grows page by page until it is refused, then answers with the pages it has.
    let handler = r#"
        (loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
        (i32.store (i32.const 0) (memory.size))
        (i64.or (i64.shl (i64.const 4) (i64.const 32)) (i64.const 0))"#;
    let mut options = CellOptions::default();
    options.limits.memory_bytes_max = 20 * 65536;
    let cell = deploy(&wat("", handler), options.clone());
    assert_eq!(call(&cell, b"", 1 << 40).await.2, 20u32.to_le_bytes());
    // A module that starts with more does not start.
    options.limits.memory_bytes_max = 65536;
    let cell = deploy(&wat("", handler), options);
    assert_eq!(call(&cell, b"", 1 << 40).await.0, Status::Trapped);
}

#[tokio::test]
async fn a_start_that_never_ends_is_ended() {
    let spin = r#"(func (export "_initialize") (loop $again (br $again)))"#;
    let cell = deploy(
        &wat("", ECHO).replace("(memory", &format!("{spin} (memory")),
        CellOptions::default(),
    );
    let (status, fuel, message) = call(&cell, b"", 1_000_000).await;
    assert_eq!((status, fuel), (Status::Trapped, 0), "{}", String::from_utf8_lossy(&message));
}

#[test]
fn a_changed_artefact_is_not_loaded() {
    let directory = tempfile::tempdir().unwrap();
    let cache = ArtefactCache::open(directory.path().join("cache"), [1; 32]).unwrap();
    let wasm = wat::parse_str(wat("", ECHO)).unwrap();
    let hash = CellHash::of(&wasm);
    assert!(cache.find(hash).is_none());
    cache.store(hash, &sandbox().compile(&wasm, ModuleKind::Cell).unwrap()).unwrap();
    let info = gate::inspect(&wasm).unwrap();
    sandbox().load(cache.find(hash).unwrap(), info, hash).unwrap();
    // Another key, a flipped bit, a cut file: none is taken for ours.
    let other = ArtefactCache::open(directory.path().join("cache"), [2; 32]).unwrap();
    assert!(other.find(hash).is_none());
    let path = std::fs::read_dir(directory.path().join("cache"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|extension| extension == "cwasm"))
        .unwrap();
    let good = std::fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    std::fs::write(&path, &bad).unwrap();
    assert!(cache.find(hash).is_none());
    std::fs::write(&path, &good[..good.len() - 1]).unwrap();
    assert!(cache.find(hash).is_none());
    std::fs::write(&path, &good).unwrap();
    assert!(cache.find(hash).is_some());
}

/// Exports of other types than a cell's are refused when it is compiled, not when it is called.
#[test]
fn exports_of_other_types_are_refused() {
    let good = wat("", ECHO);
    for (from, to) in [
        (
            "(func (export \"cell_mailbox\") (param i32) (result i32)",
            "(func (export \"cell_mailbox\") (param i64) (result i32) (unreachable))(func (param i32) (result i32)",
        ),
        ("(memory", "(func (export \"_initialize\") (result i32) (i32.const 1)) (memory"),
        ("(memory", "(global (export \"cell_receive_json\") i32 (i32.const 1)) (memory"),
    ] {
        let wasm = wat::parse_str(good.replace(from, to)).unwrap();
        let error = sandbox().compile(&wasm, ModuleKind::Cell).unwrap_err();
        assert!(error.to_string().contains("must be a function"), "{error}");
    }
}

/// Ten crashes in a row, whoever caused them, and the cell rests; one success and it is well.
#[tokio::test]
async fn a_cell_that_only_crashes_rests() {
    let handler = format!("(if (i32.eq (local.get $len) (i32.const 1)) (then unreachable)) {ECHO}");
    let cell = deploy(&wat("", &handler), CellOptions::default());
    let before = cell_host::limits::CRASHES_BEFORE_REST;
    for _ in 0..3 * before {
        for _ in 1..before {
            assert_eq!(call(&cell, b"x", 1_000_000).await.0, Status::Trapped);
        }
        assert_eq!(call(&cell, b"ok", 1_000_000).await.0, Status::Ok);
    }
    assert!(cell.resting().is_none());
    for _ in 0..before {
        assert_eq!(call(&cell, b"x", 1_000_000).await.0, Status::Trapped);
    }
    let (status, fuel, reason) = call(&cell, b"ok", 1_000_000).await;
    assert_eq!((status, fuel), (Status::BackingOff, 0));
    let reason = String::from_utf8_lossy(&reason).into_owned();
    assert!(reason.contains("unreachable") && reason.contains("10 times"), "{reason}");
    while cell.resting().is_some() {
        tokio::time::sleep(cell_host::limits::REST_MIN).await;
    }
    assert_eq!(call(&cell, b"ok", 1_000_000).await.0, Status::Ok);
}

/// Guests that together would have more than the sandbox lets them: growing fails, starting is busy.
#[tokio::test]
async fn all_guests_together_are_bounded() {
    let sandbox = Arc::new(Sandbox::new(Allocation::OnDemand).unwrap());
    let text = wat("", "(memory.grow (i32.const 16)) drop (i64.const 0)");
    let wasm = wat::parse_str(&text).unwrap();
    let module = sandbox.compile_and_load(&wasm, gate::inspect(&wasm).unwrap()).unwrap();
    let grown = wat(
        "",
        "(i32.store (i32.const 0) (memory.grow (i32.const 16))) (i64.shl (i64.const 4) (i64.const 32))",
    );
    let grown = wat::parse_str(&grown).unwrap();
    let other = sandbox.compile_and_load(&grown, gate::inspect(&grown).unwrap()).unwrap();
    let cell = |name: &str, module| {
        let name = CellName::parse(name).unwrap();
        Cell::new(&sandbox, name, module, CellOptions::default(), Arc::new(NoServices)).unwrap()
    };
    let (cell, other) = (cell("a", module), cell("b", other));
    let start = {
        let _lease = cell.checkout(0).await.unwrap();
        sandbox.memory_bytes()
    };
    // Idle, it keeps what it has; there is room for one more that does not grow.
    sandbox.set_memory_bytes_max(2 * start + (1 << 20) - 1);
    let (status, _, reply) = call(&other, b"", 10_000_000).await;
    assert_eq!((status, &reply[..]), (Status::Ok, &[0xff; 4][..]), "memory.grow gives -1");
    sandbox.set_memory_bytes_max(start);
    assert_eq!(other.stop_idle(Duration::ZERO), 1);
    let (status, fuel, reason) = call(&other, b"", 10_000_000).await;
    assert_eq!((status, fuel), (Status::Busy, 0), "{}", String::from_utf8_lossy(&reason));
    // What was taken comes back with the instances.
    cell.stop_idle(Duration::ZERO);
    assert_eq!(sandbox.memory_bytes(), 0);
    assert_eq!(call(&other, b"", 10_000_000).await.0, Status::Ok);
}

/// Before it rested, a cell that cannot start was compiled into an instance for every single call.
#[tokio::test]
async fn a_cell_that_does_not_start_rests() {
    let broken = r#"(func (export "_initialize") unreachable)"#;
    let text = wat("", ECHO).replace("(memory", &format!("{broken} (memory"));
    let cell = deploy(&text, CellOptions::default());
    for _ in 0..cell_host::limits::STARTS_BEFORE_REST {
        assert_eq!(call(&cell, b"", 1_000_000).await.0, Status::Trapped);
    }
    let (status, fuel, reason) = call(&cell, b"", 1_000_000).await;
    assert_eq!((status, fuel), (Status::BackingOff, 0));
    assert!(String::from_utf8_lossy(&reason).contains("does not start"));
}
