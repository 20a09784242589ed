//! The works that need no socket: a metered cell next to Wasmtime called by hand, in this process.
//!
//! The floor has the sandbox's own Wasmtime settings and none of its accounting: no meter, no
//! limiter, no deadline, no queue. It does what any embedder would have to do.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use cell_abi::{AccountId, CellName, Fuel, Status};
use cell_host::{
    Allocation, CallSpec, Cell, CellOptions, Isolation, Lease, Limits, NoServices, Sandbox,
    StopHandle, gate,
};
use wasmtime::{
    Config, Engine, InstanceAllocationStrategy, InstancePre, Linker, Memory, Module,
    PoolingAllocationConfig, Store, TypedFunc,
};

use crate::cli::Plan;
use crate::measure::{Repeated, Side, Tally, compare};
use crate::nucleus::ECHO;
use crate::report::Report;
use crate::row::{Row, Target, Unit};

/// What stands in the mode column: nothing crosses a process.
const MODE: &str = "in process";
const INSTANCES_MAX: u32 = 100;
const MEMORY_BYTES_MAX: usize = 64 << 20;
/// Enough for any kernel, and for any run.
const FUEL: u64 = 1 << 60;
const REQUEST: [u8; 64] = [7; 64];
/// Calls are timed by so many, since one takes no longer than a few looks at the clock.
const CALLS_PER_SAMPLE: u32 = 50;

/// Measures every wanted work.
pub(crate) fn measure(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let works =
        ["wasm call, instance at hand", "wasm call, held lease", "fresh instance + call + drop"];
    let kernels: Vec<_> = KERNELS.iter().filter(|kernel| plan.wants(kernel.work)).collect();
    if kernels.is_empty() && !works.iter().any(|work| plan.wants(work)) {
        return Ok(());
    }
    // WASI in the sandbox expects a runtime, even one that nothing waits on.
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let _entered = runtime.enter();
    let pooled =
        Allocation::Pooled { instances_max: INSTANCES_MAX, memory_bytes_max: MEMORY_BYTES_MAX };
    let sandbox = Arc::new(Sandbox::new(pooled)?);
    let fueled = Floor::new(true)?;
    let linked = fueled.link(ECHO)?;
    let kept = cell(&sandbox, ECHO, Isolation::Instance)?;

    let [at_hand, held, fresh] = works;
    if plan.wants(at_hand) {
        let mut bare = fueled.start(&linked)?;
        let (floor, ours) = (|| bare.call(), || call(&kept));
        compare_calls(plan, report, at_hand, CALLS_PER_SAMPLE, None, floor, ours)?;
    }
    if plan.wants(held) {
        let mut bare = fueled.start(&linked)?;
        let mut lease = drive(kept.checkout(0))
            .map_err(|(status, _)| anyhow!("take an instance: {}", status.describe()))?;
        let spec = spec();
        let (floor, ours) = (|| bare.call(), || call_on(&mut lease, &spec));
        compare_calls(plan, report, held, CALLS_PER_SAMPLE, None, floor, ours)?;
    }
    if plan.wants(fresh) {
        let cell = cell(&sandbox, ECHO, Isolation::Call)?;
        let target = Target { text: "≤ 1.3x", is_met: |row| row.ratio() <= 1.3 };
        let floor = || fueled.start(&linked).map_err(|e| format!("{e:#}"))?.call();
        compare_calls(plan, report, fresh, 1, Some(target), floor, || call(&cell))?;
    }
    measure_metering(plan, report, &sandbox, &kernels)
}

/// The same code without fuel, and as a cell.
fn measure_metering(
    plan: &Plan,
    report: &mut Report,
    sandbox: &Arc<Sandbox>,
    kernels: &[&Kernel],
) -> anyhow::Result<()> {
    let free = Floor::new(false)?;
    let mut rows = Vec::new();
    for kernel in kernels {
        let text = kernel.module();
        let mut bare = free.start(&free.link(&text)?)?;
        let cell = cell(sandbox, &text, Isolation::Instance)?;
        // Whatever the floor computes first is what both must compute every time.
        let expected = bare.reply().map_err(|e| anyhow!(e))?;
        let check = |found: Result<Vec<u8>, String>| match found {
            Ok(found) if found == expected => Ok(()),
            Ok(_) => Err("a kernel computed something else".to_owned()),
            Err(error) => Err(error),
        };
        let (floor, ours) = (|| check(bare.reply()), || check(reply(&cell)));
        rows.push(compare_calls(plan, report, kernel.work, 1, None, floor, ours)?);
    }
    if rows.len() == KERNELS.len() {
        let target = Target { text: "≤ 1.25x", is_met: |row| row.ratio() <= 1.25 };
        report.add(Row::mean("metering, geometric mean", &rows).with_target(Some(target)));
    }
    Ok(())
}

fn compare_calls(
    plan: &Plan,
    report: &mut Report,
    work: &str,
    batch: u32,
    target: Option<Target>,
    floor: impl FnMut() -> Result<(), String>,
    ours: impl FnMut() -> Result<(), String>,
) -> anyhow::Result<Row> {
    let progress = report.progress(work, plan.rounds.count);
    let (mut floor, mut ours) = (Repeated { batch, work: floor }, Repeated { batch, work: ours });
    let (floor, ours) = compare(plan, &mut floor, &mut ours, || progress.inc(1))?;
    progress.finish_and_clear();
    let row = Row::new(work.to_owned(), MODE.to_owned(), Unit::Nanoseconds, floor, ours)
        .with_target(target);
    report.add(row.clone());
    Ok(row)
}

/// Polls a future until it is done; a guest that used up its slice is simply polled again.
fn drive<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
    }
}

fn cell(sandbox: &Arc<Sandbox>, text: &str, isolation: Isolation) -> anyhow::Result<Arc<Cell>> {
    let wasm = wat::parse_str(text)?;
    let info = gate::inspect(&wasm)?;
    let module = sandbox.compile_and_load(&wasm, info)?;
    let mut options = CellOptions::default();
    options.isolation = isolation;
    Ok(Cell::new(sandbox, CellName::parse("bench")?, module, options, Arc::new(NoServices))?)
}

fn spec() -> CallSpec {
    let deadline = Instant::now() + Duration::from_secs(3600);
    CallSpec::new(AccountId::from_bytes([0; 32]), Fuel(FUEL), deadline, StopHandle::new())
}

/// Calls that do nothing but take place, for whoever counts what that takes.
pub(crate) fn repeat_calls(times: u32) -> anyhow::Result<()> {
    let sandbox = Arc::new(Sandbox::new(Allocation::OnDemand)?);
    let cell = cell(&sandbox, ECHO, Isolation::Instance)?;
    (0..times).try_for_each(|_| call(&cell)).map_err(|error| anyhow!(error))
}

/// One call as a worker makes it: takes an instance, uses it, gives it back.
fn call(cell: &Arc<Cell>) -> Result<(), String> {
    let mut lease = drive(cell.checkout(0)).map_err(|(status, _)| status.describe().to_owned())?;
    call_on(&mut lease, &spec())
}

fn call_on(lease: &mut Lease, spec: &CallSpec) -> Result<(), String> {
    with_reply(lease, spec, check_echo)
}

/// A cell's reply, for kernels that take so long that a copy does not matter.
fn reply(cell: &Arc<Cell>) -> Result<Vec<u8>, String> {
    let mut lease = drive(cell.checkout(0)).map_err(|(status, _)| status.describe().to_owned())?;
    with_reply(&mut lease, &spec(), |reply| Ok(reply.to_vec()))
}

fn with_reply<T>(
    lease: &mut Lease,
    spec: &CallSpec,
    look: impl FnOnce(&[u8]) -> Result<T, String>,
) -> Result<T, String> {
    let outcome = drive(async {
        match lease.begin(spec.clone(), 64).await {
            Ok(()) => {
                lease.request_mut().copy_from_slice(&REQUEST);
                lease.finish(0, false).await
            }
            Err(outcome) => outcome,
        }
    });
    if outcome.status != Status::Ok || outcome.fuel == Fuel::ZERO {
        return Err(format!("{} after {} fuel", outcome.status.describe(), outcome.fuel));
    }
    look(lease.reply(&outcome))
}

fn check_echo(reply: &[u8]) -> Result<(), String> {
    if reply == REQUEST { Ok(()) } else { Err("a reply has wrong bytes".into()) }
}

/// Wasmtime with the sandbox's settings.
struct Floor {
    engine: Engine,
    has_fuel: bool,
}

impl Floor {
    fn new(has_fuel: bool) -> anyhow::Result<Self> {
        let mut pool = PoolingAllocationConfig::new();
        pool.total_core_instances(INSTANCES_MAX)
            .total_memories(INSTANCES_MAX)
            .total_tables(INSTANCES_MAX)
            .total_stacks(INSTANCES_MAX)
            .max_memories_per_module(1)
            .max_tables_per_module(1)
            .table_elements(Limits::CELL.table_elements_max)
            .max_core_instance_size(256 << 10)
            .max_memory_size(MEMORY_BYTES_MAX)
            .linear_memory_keep_resident(0)
            .max_unused_warm_slots(64)
            .decommit_batch_size(16);
        let mut config = Config::new();
        config
            .consume_fuel(has_fuel)
            .max_wasm_stack(512 << 10)
            .async_stack_size(2 << 20)
            .async_stack_zeroing(true)
            .cranelift_nan_canonicalization(true)
            .memory_reservation(4 << 30)
            .memory_guard_size(32 << 20)
            .memory_may_move(false)
            .memory_init_cow(true)
            .allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        let engine = Engine::new(&config).map_err(|e| anyhow!("make an engine: {e:#}"))?;
        Ok(Self { engine, has_fuel })
    }

    fn link(&self, text: &str) -> anyhow::Result<InstancePre<()>> {
        let module = Module::new(&self.engine, wat::parse_str(text)?)
            .map_err(|e| anyhow!("compile: {e:#}"))?;
        Linker::new(&self.engine).instantiate_pre(&module).map_err(|e| anyhow!("link: {e:#}"))
    }

    fn start(&self, linked: &InstancePre<()>) -> anyhow::Result<Bare> {
        let mut store = Store::new(&self.engine, ());
        let start = |e: wasmtime::Error| anyhow!("start: {e:#}");
        if self.has_fuel {
            store.set_fuel(FUEL).map_err(start)?;
        }
        let instance = drive(linked.instantiate_async(&mut store)).map_err(start)?;
        let memory = instance.get_memory(&mut store, "memory").context("no memory")?;
        let mailbox = instance.get_typed_func(&mut store, "cell_mailbox").map_err(start)?;
        let receive = instance.get_typed_func(&mut store, "cell_receive").map_err(start)?;
        Ok(Bare { store, memory, mailbox, receive })
    }
}

/// Code that is loaded from its file, started and called, each time anew.
pub(crate) struct Woken {
    floor: Floor,
    artefact: tempfile::NamedTempFile,
}

impl Woken {
    pub(crate) fn new(text: &str) -> anyhow::Result<Self> {
        let floor = Floor::new(true)?;
        let compiled = floor.engine.precompile_module(&wat::parse_str(text)?);
        let artefact = tempfile::NamedTempFile::new()?;
        std::fs::write(artefact.path(), compiled.map_err(|e| anyhow!("compile: {e:#}"))?)?;
        Ok(Self { floor, artefact })
    }

    #[allow(unsafe_code, reason = "deserialising native code is unsafe by contract")]
    fn wake(&self) -> anyhow::Result<()> {
        // SAFETY: `new` wrote the file with this engine, and nobody else writes to it.
        let module = unsafe { Module::deserialize_file(&self.floor.engine, self.artefact.path()) };
        let module = module.map_err(|e| anyhow!("load: {e:#}"))?;
        let linked = Linker::new(&self.floor.engine)
            .instantiate_pre(&module)
            .map_err(|e| anyhow!("link: {e:#}"))?;
        self.floor.start(&linked)?.call().map_err(|e| anyhow!(e))
    }
}

impl Side for Woken {
    fn slice(&mut self, length: Duration, tally: &mut Tally) {
        let end = Instant::now() + length;
        while Instant::now() < end {
            let started = Instant::now();
            if !tally.take(self.wake().map(|()| started.elapsed())) {
                return;
            }
        }
    }
}

/// An instance without a host around it.
struct Bare {
    store: Store<()>,
    memory: Memory,
    mailbox: TypedFunc<u32, u32>,
    receive: TypedFunc<(u32, u32, u32), u64>,
}

impl Bare {
    fn call(&mut self) -> Result<(), String> {
        let (start, end) = self.run()?;
        check_echo(self.memory.data(&self.store).get(start..end).unwrap_or_default())
    }

    fn reply(&mut self) -> Result<Vec<u8>, String> {
        let (start, end) = self.run()?;
        Ok(self.memory.data(&self.store).get(start..end).unwrap_or_default().to_vec())
    }

    fn run(&mut self) -> Result<(usize, usize), String> {
        let failed = |e: wasmtime::Error| format!("{e:#}");
        let at = drive(self.mailbox.call_async(&mut self.store, 64)).map_err(failed)?;
        let start = usize::try_from(at).map_err(|e| e.to_string())?;
        let mailbox = self.memory.data_mut(&mut self.store).get_mut(start..start + REQUEST.len());
        mailbox.ok_or("the mailbox is not in memory")?.copy_from_slice(&REQUEST);
        let answer =
            drive(self.receive.call_async(&mut self.store, (0, at, 64))).map_err(failed)?;
        let [l0, l1, l2, l3, h0, h1, h2, h3] = answer.to_le_bytes();
        let start =
            usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).map_err(|e| e.to_string())?;
        let length =
            usize::try_from(u32::from_le_bytes([h0, h1, h2, h3])).map_err(|e| e.to_string())?;
        Ok((start, start + length))
    }
}

/// Code of one kind, whose result is eight bytes.
struct Kernel {
    work: &'static str,
    /// Functions beside the cell's exports.
    functions: &'static str,
    /// Leaves an i64; `$n` and `$x` are free to use.
    body: &'static str,
}

const KERNELS: [Kernel; 4] = [
    Kernel {
        work: "metering: calls (fib)",
        functions: "(func $fib (param $n i32) (result i32)
            (if (result i32) (i32.lt_u (local.get $n) (i32.const 2))
                (then (local.get $n))
                (else (i32.add
                    (call $fib (i32.sub (local.get $n) (i32.const 1)))
                    (call $fib (i32.sub (local.get $n) (i32.const 2)))))))",
        body: "(i64.extend_i32_u (call $fib (i32.const 24)))",
    },
    Kernel {
        work: "metering: arithmetic",
        functions: "",
        body: "(local.set $x (i64.const 88172645463325252))
            (loop $again
                (local.set $x (i64.xor (local.get $x) (i64.shl (local.get $x) (i64.const 13))))
                (local.set $x (i64.xor (local.get $x) (i64.shr_u (local.get $x) (i64.const 7))))
                (local.set $x (i64.xor (local.get $x) (i64.shl (local.get $x) (i64.const 17))))
                (local.set $n (i32.add (local.get $n) (i32.const 1)))
                (br_if $again (i32.lt_u (local.get $n) (i32.const 200000))))
            (local.get $x)",
    },
    Kernel {
        work: "metering: memory, 16 KiB",
        functions: "",
        // Stays in the first-level cache.
        body: "(loop $again
                (i64.store offset=131072 (i32.and (local.get $n) (i32.const 16376))
                    (i64.add
                        (i64.load offset=131072 (i32.and (local.get $n) (i32.const 16376)))
                        (i64.const 1)))
                (i64.store offset=131072 (i32.and (local.get $n) (i32.const 16376))
                    (i64.sub
                        (i64.load offset=131072 (i32.and (local.get $n) (i32.const 16376)))
                        (i64.const 1)))
                (local.set $x (i64.add (local.get $x)
                    (i64.load offset=131072 (i32.and (local.get $n) (i32.const 16376)))))
                (local.set $n (i32.add (local.get $n) (i32.const 8)))
                (br_if $again (i32.lt_u (local.get $n) (i32.const 1048576))))
            (local.get $x)",
    },
    Kernel {
        work: "metering: memory, 512 KiB",
        functions: "",
        // As little beside the memory as a loop can have, so fuel weighs most; and it may miss.
        body: "(loop $again
                (i64.store offset=131072 (local.get $n)
                    (i64.add (i64.load offset=131072 (local.get $n)) (i64.const 1)))
                (i64.store offset=131072 (local.get $n)
                    (i64.sub (i64.load offset=131072 (local.get $n)) (i64.const 1)))
                (local.set $x (i64.add (local.get $x) (i64.load offset=131072 (local.get $n))))
                (local.set $n (i32.add (local.get $n) (i32.const 8)))
                (br_if $again (i32.lt_u (local.get $n) (i32.const 524288))))
            (local.get $x)",
    },
];

impl Kernel {
    fn module(&self) -> String {
        let Self { functions, body, .. } = self;
        format!(
            r#"(module
                (memory (export "memory") 16)
                (@custom "cell:interface" "receptor run(bytes) -> bytes\n\n")
                {functions}
                (func $run (result i64) (local $n i32) (local $x i64) {body})
                (func (export "cell_mailbox") (param i32) (result i32) (i32.const 65536))
                (func (export "cell_receive") (param i32 i32 i32) (result i64)
                    (i64.store (i32.const 65536) (call $run))
                    (i64.const 0x8_00010000)))"#
        )
    }
}
