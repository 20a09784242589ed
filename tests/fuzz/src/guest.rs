//! A cell that does to its host whatever the input says.
//!
//! The cell is an interpreter, compiled once: its request is a program of host calls with any
//! arguments, stores, jumps and ends. So an input costs microseconds, not a compilation.

mod imports;
mod interpreter;
mod program;

use std::sync::{Arc, LazyLock};

use cell_abi::Status;
use cell_host::{Cell, CellOptions, Isolation, Module, Sandbox, gate};

use crate::bytes::Bytes;
use crate::world::{Call, Ended, World, block_on, call, on_demand, pooled};

/// Most calls of one input.
const CALLS_MAX: usize = 16;
/// Enough for the request that asks whether the cell still works.
const HEALTH_FUEL: u64 = 1_000_000;
const HEALTH: &[u8] = b"still at work?";
const HEALTH_BYTES: u32 = 14;

/// The interpreter for each allocator.
struct Interpreter {
    pooled: Module,
    on_demand: Module,
}

impl Interpreter {
    fn new(steady: bool) -> Self {
        let wasm = wat::parse_str(interpreter::text(steady)).expect("the interpreter is a module");
        let info = gate::inspect(&wasm).expect("the gate takes it");
        let load = |sandbox: &Sandbox| sandbox.compile_and_load(&wasm, info.clone());
        Self {
            pooled: load(pooled()).expect("it compiles"),
            on_demand: load(on_demand()).expect("it compiles"),
        }
    }
}

/// Lets cells run the programs in the bytes; whatever they do, each call ends as promised, and the
/// cells go on working.
pub fn guest(data: &[u8]) {
    static STEADY: LazyLock<Interpreter> = LazyLock::new(|| Interpreter::new(true));
    static ALL: LazyLock<Interpreter> = LazyLock::new(|| Interpreter::new(false));
    let script = Script::read(data);
    if !script.steady {
        script.run(pooled(), &ALL.pooled);
        return;
    }
    // The same programs cost the same wherever they run.
    let seen = script.run(pooled(), &STEADY.pooled);
    let elsewhere = script.run(on_demand(), &STEADY.on_demand);
    // These two ends depend on the clock.
    let by_clock = |ended: &Ended| [Status::TimedOut, Status::BackingOff].contains(&ended.status);
    if !seen.iter().chain(&elsewhere).any(by_clock) {
        assert_eq!(elsewhere, seen, "two allocators, two bills");
    }
}

/// What an input says.
struct Script {
    options: CellOptions,
    fuel: u64,
    calls: Vec<Planned>,
    /// Nothing in it depends on the machine.
    steady: bool,
}

struct Planned {
    request: Vec<u8>,
    length: u32,
    abandon: bool,
}

impl Script {
    fn read(data: &[u8]) -> Self {
        let mut bytes = Bytes::new(data);
        let mut options = CellOptions::default();
        let flags = bytes.u8();
        options.isolation = if flags & 1 == 0 { Isolation::Instance } else { Isolation::Call };
        options.replicas_max = usize::from(flags >> 1 & 3) + 1;
        options.state_bytes_max = if flags & 8 == 0 { 1 << 20 } else { 32 };
        options.limits.memory_bytes_max = if flags & 16 == 0 { 1 << 20 } else { 5 << 16 };
        options.limits.table_elements_max = 100;
        options.limits.random_bytes_max = 1000;
        options.limits.host_call_bytes_max = if flags & 32 == 0 { 1 << 20 } else { 1000 };
        let fuel = u64::from(bytes.u16()) * 32;
        let steady = flags & 64 != 0;
        let mut calls = Vec::new();
        while !bytes.is_empty() && calls.len() < CALLS_MAX {
            let how = bytes.u8();
            let program = program::read(&mut bytes, usize::from(how & 15) + 1);
            let whole = u32::try_from(program.len()).unwrap_or(u32::MAX);
            let length = if how & 0x40 == 0 { whole } else { program::argument(&mut bytes) };
            calls.push(Planned { request: program, length, abandon: how & 0xb0 == 0xb0 });
        }
        Self { options, fuel, calls, steady }
    }

    fn run(&self, sandbox: &Arc<Sandbox>, module: &Module) -> Vec<Ended> {
        let world = World::new();
        let deploy = |name| {
            let mut options = self.options.clone();
            // Each run starts with a state of its own.
            options.state = Arc::new(cell_host::MemoryState::default());
            options.state_turn = Arc::default();
            world.deploy(sandbox, name, module.clone(), options).expect("it links")
        };
        let cell = deploy("self");
        deploy("callee");
        let healthy = health(&cell).expect("a new cell does not rest");
        let ends = self
            .calls
            .iter()
            .map(|planned| {
                let plan = Call {
                    receptor: interpreter::RUN,
                    length: planned.length,
                    request: &planned.request,
                    fuel: self.fuel,
                    abandon: planned.abandon,
                };
                let ended = block_on(call(&cell, plan));
                assert!(cell.instances() <= self.options.replicas_max);
                assert_eq!(cell.waiting(), 0, "a call that ended holds nothing");
                ended
            })
            .collect();
        match health(&cell) {
            Some(ended) => assert_eq!(ended, healthy, "it works as before, at the same price"),
            None => assert!(!self.calls.is_empty(), "a cell that never failed rests"),
        }
        world.retire();
        ends
    }
}

/// Calls `echo`, which answers whatever programs ran before it; `None` if the cell failed so often
/// that it rests.
fn health(cell: &Arc<Cell>) -> Option<Ended> {
    let ask = || {
        let plan = Call {
            receptor: interpreter::ECHO,
            length: HEALTH_BYTES,
            request: HEALTH,
            fuel: HEALTH_FUEL,
            abandon: false,
        };
        block_on(call(cell, plan))
    };
    // The last program may have left a strange mailbox, which holds for one call.
    ask();
    let mut ended = ask();
    for _ in 0..100 {
        if ended.status != Status::TimedOut {
            break;
        }
        // The machine was busy elsewhere.
        ended = ask();
    }
    if ended.status == Status::BackingOff {
        assert!(!ended.reply.is_empty() && ended.fuel == 0, "it says why it rests: {ended:?}");
        return None;
    }
    assert_eq!((ended.status, &*ended.reply), (Status::Ok, HEALTH), "{ended:?}");
    Some(ended)
}
