//! The same random code in two places: instances from reserved slots and instances that map their
//! own memory, fresh ones and ones that served before. All must agree in result and bill.

use std::sync::Arc;

use cell_abi::{CellHash, Status};
use cell_host::{CellOptions, GateError, Isolation, ModuleKind, Sandbox, gate};

use crate::smith;
use crate::world::{Call, Ended, World, block_on, call, on_demand, pooled};

/// Enough for everything but loops.
const FUEL: u64 = 300_000;
/// Calls that each cell gets.
const CALLS: usize = 3;

/// Makes a cell of the bytes and runs it everywhere.
pub fn differential(data: &[u8]) {
    let Some(wasm) = smith::cell(data) else { return };
    let info = match gate::inspect(&wasm) {
        Ok(info) => info,
        // The engine is built without a collector, so it has no externref.
        Err(GateError::Feature { .. }) => return,
        Err(refused) => panic!("the gate takes a valid cell: {refused}"),
    };
    // As the product does: compiled in one place, loaded in another.
    let artefact = match on_demand().compile(&wasm, ModuleKind::Cell) {
        Ok(artefact) => artefact,
        // In a body only the compiler sees it.
        Err(refused) if refused.to_string().contains("gc types are disallowed") => return,
        Err(refused) => panic!("a valid cell compiles: {refused}"),
    };
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(&file, artefact).expect("the artefact is kept");
    let hash = CellHash::of(&wasm);
    let run = |sandbox: &Arc<Sandbox>, isolation| {
        let artefact = file.reopen().expect("the artefact is there");
        let module = sandbox.load(artefact, info.clone(), hash).expect("the artefact loads");
        let mut options = CellOptions::default();
        options.isolation = isolation;
        options.limits.memory_bytes_max = 2 << 20;
        options.limits.table_elements_max = 1000;
        let world = World::new();
        let cell = world.deploy(sandbox, "smith", module, options).expect("a valid cell links");
        let plan = Call { receptor: 0, length: 0, request: &[], fuel: FUEL, abandon: false };
        let ends: Vec<Ended> = (0..CALLS).map(|_| block_on(call(&cell, plan))).collect();
        world.retire();
        ends
    };
    let slots = run(pooled(), Isolation::Call);
    let maps = run(on_demand(), Isolation::Call);
    let kept_slots = run(pooled(), Isolation::Instance);
    let kept_maps = run(on_demand(), Isolation::Instance);
    let all = [&slots, &maps, &kept_slots, &kept_maps];
    if all.iter().any(|ends| ends.iter().any(|ended| ended.status == Status::TimedOut)) {
        // The machine was busy elsewhere.
        return;
    }
    assert_eq!(slots, maps, "two allocators, two bills");
    assert_eq!(kept_slots, kept_maps, "two allocators, two bills for an instance that is kept");
    assert!(slots.windows(2).all(|pair| pair.first() == pair.last()), "fresh is fresh: {slots:?}");
    assert_eq!(slots.first(), kept_slots.first(), "the first call is a fresh one");
}
