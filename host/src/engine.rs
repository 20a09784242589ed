//! The one Wasmtime engine of a process, configured for code that nobody trusts.

use std::fmt::Write as _;
use std::fs::File;
use std::num::NonZeroUsize;
use std::sync::Arc;

use cell_abi::{CellHash, EngineId};
use wasmtime::{
    Config, Engine, InstanceAllocationStrategy, Linker, PoolingAllocationConfig, Strategy,
};

use crate::budget::Budget;
use crate::error::{CompileError, LoadError};
use crate::gate::{ModuleInfo, ModuleKind};
use crate::guest::Guest;
use crate::{cost, host_calls, limits, price, wasi};

/// The engine version whose fuel this build counts; a test compares it with the lock file.
pub const WASMTIME_VERSION: &str = "48.0.8";

const WASM_STACK_BYTES: usize = 512 << 10;
const ASYNC_STACK_BYTES: usize = 2 << 20;

/// How instances get their memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// Each instance maps its own: for one job, or a few instances.
    OnDemand,
    /// Slots are reserved at start, so an instance takes microseconds.
    Pooled {
        /// Most instances alive at once; one more is refused with `NoSlot`.
        instances_max: u32,
        /// Largest memory any instance may have; a cell's own limit may be lower.
        memory_bytes_max: usize,
    },
}

/// The engine with everything a guest may import.
pub struct Sandbox {
    engine: Engine,
    budget: Arc<Budget>,
    cell_linker: Linker<Guest>,
    job_linker: Linker<Guest>,
}

impl std::fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sandbox").finish_non_exhaustive()
    }
}

/// A compiled module that can be started.
#[derive(Clone)]
pub struct Module {
    pub(crate) compiled: wasmtime::Module,
    pub(crate) info: ModuleInfo,
    pub(crate) hash: CellHash,
}

impl std::fmt::Debug for Module {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Module").field("hash", &self.hash).field("info", &self.info).finish()
    }
}

impl Module {
    /// What the gate found in the module.
    pub const fn info(&self) -> &ModuleInfo {
        &self.info
    }

    /// Hash of the wasm bytes.
    pub const fn hash(&self) -> CellHash {
        self.hash
    }
}

impl Sandbox {
    /// Makes the engine; a process should have one.
    ///
    /// Fails if the address space for the pool cannot be reserved.
    pub fn new(allocation: Allocation) -> Result<Self, LoadError> {
        let engine =
            Engine::new(&config(allocation)).map_err(|e| LoadError::Link(format!("{e:#}")))?;
        let mut job_linker = Linker::new(&engine);
        wasi::add_to_linker(&mut job_linker).map_err(|e| LoadError::Link(format!("{e:#}")))?;
        let mut cell_linker = Linker::new(&engine);
        wasi::add_to_linker(&mut cell_linker)
            .and_then(|()| host_calls::add_to_linker(&mut cell_linker))
            .map_err(|e| LoadError::Link(format!("{e:#}")))?;
        Ok(Self { engine, budget: Arc::default(), cell_linker, job_linker })
    }

    /// Sets what all guests of this sandbox together may have: linear memory and tables, in bytes.
    /// Default: no limit.
    ///
    /// A guest that would grow past it gets -1; a cell that needs a new instance then is `Busy`. Not
    /// counted: compiled code, stacks and the host's own tables.
    pub fn set_memory_bytes_max(&self, bytes: u64) {
        self.budget.set_max(bytes);
    }

    /// Linear memory and tables of all guests that exist, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.budget.used()
    }

    /// Compiles a module of this kind to an artefact for this machine, and sees that it can be
    /// linked. Takes as long as the module wants: run it where that does no harm, and only on bytes
    /// that passed the gate.
    pub fn compile(&self, wasm: &[u8], kind: ModuleKind) -> Result<Vec<u8>, CompileError> {
        let refused = |e: wasmtime::Error| CompileError::Refused(format!("{e:#}"));
        let module = wasmtime::Module::new(&self.engine, wasm).map_err(refused)?;
        self.linker(kind).instantiate_pre(&module).map_err(refused)?;
        check_exports(&module, kind)?;
        module.serialize().map_err(refused)
    }

    /// Loads an artefact that this machine compiled.
    ///
    /// The file is native code and is trusted: it must come from [`compile`](Self::compile), must
    /// have been kept where nobody else can write, and must not be changed while it is mapped;
    /// [`ArtefactCache`](crate::ArtefactCache) does all of this.
    #[allow(
        unsafe_code,
        reason = "deserialising native code is unsafe by contract; there is no safe way"
    )]
    pub fn load(
        &self,
        artefact: File,
        info: ModuleInfo,
        hash: CellHash,
    ) -> Result<Module, LoadError> {
        // SAFETY: the caller vouches that the file is an artefact of `compile`, unchanged since.
        let compiled = unsafe { wasmtime::Module::deserialize_open_file(&self.engine, artefact) }
            .map_err(|e| LoadError::Artefact(format!("{e:#}")))?;
        Ok(Module { compiled, info, hash })
    }

    /// Compiles and loads in one step, for programs without a cache.
    pub fn compile_and_load(&self, wasm: &[u8], info: ModuleInfo) -> Result<Module, LoadError> {
        let compiled = wasmtime::Module::new(&self.engine, wasm)
            .map_err(|e| LoadError::Artefact(format!("{e:#}")))?;
        Ok(Module { compiled, info, hash: CellHash::of(wasm) })
    }

    /// What fuel counts depend on; it stands in every receipt.
    pub fn engine_id() -> EngineId {
        let mut text = format!("cell/engine/v1\nwasmtime {WASMTIME_VERSION}\n");
        text.push_str("nan-canonical; no threads, relaxed-simd, gc, exceptions, tail-call, memory64, multi-memory\n");
        text.push_str(&cost::canonical());
        for (name, fuel) in price::TABLE {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name} {fuel}");
        }
        EngineId::from_bytes(*blake3::hash(text.as_bytes()).as_bytes())
    }

    pub(crate) const fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    pub(crate) const fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) const fn linker(&self, kind: ModuleKind) -> &Linker<Guest> {
        match kind {
            ModuleKind::Cell => &self.cell_linker,
            ModuleKind::Command => &self.job_linker,
        }
    }
}

/// What a module must export, and as what; the gate has seen the names only.
fn check_exports(module: &wasmtime::Module, kind: ModuleKind) -> Result<(), CompileError> {
    let required: &[(&str, &str, &str)] = match kind {
        ModuleKind::Cell => &[
            ("cell_mailbox", "i32", "i32"),
            ("cell_receive", "i32 i32 i32", "i64"),
            ("cell_receive_json", "i32 i32 i32", "i64"),
            ("_initialize", "", ""),
        ],
        ModuleKind::Command => &[("_start", "", "")],
    };
    let words = |types: &mut dyn Iterator<Item = wasmtime::ValType>| {
        types.map(|ty| ty.to_string()).collect::<Vec<_>>().join(" ")
    };
    for (name, params, results) in required {
        let Some(export) = module.get_export(name) else { continue };
        let fits = export.func().is_some_and(|ty| {
            words(&mut ty.params()) == *params && words(&mut ty.results()) == *results
        });
        if !fits {
            return Err(CompileError::Refused(format!(
                "the export `{name}` must be a function ({params}) -> ({results})"
            )));
        }
    }
    Ok(())
}

fn config(allocation: Allocation) -> Config {
    let mut config = Config::new();
    config
        .strategy(Strategy::Cranelift)
        // Fuel is money and preemption at once; an epoch besides would cost up to twice the time.
        .consume_fuel(true)
        .operator_cost(cost::operator_cost())
        .epoch_interruption(false)
        .max_wasm_stack(WASM_STACK_BYTES)
        .async_stack_size(ASYNC_STACK_BYTES)
        .async_stack_zeroing(true)
        // What a wasm32-wasip1 module does not need is off: most engine advisories live there.
        .wasm_multi_memory(false)
        .wasm_memory64(false)
        .wasm_relaxed_simd(false)
        .wasm_component_model(false)
        .wasm_tail_call(false)
        .wasm_custom_page_sizes(false)
        .wasm_wide_arithmetic(false)
        .wasm_stack_switching(false)
        .wasm_gc(false)
        .shared_memory(false)
        // The same bits on every machine.
        .cranelift_nan_canonicalization(true)
        .signals_based_traps(true)
        // Memories never move: growing is cheap and addresses need no check.
        .memory_reservation(4 << 30)
        .memory_guard_size(32 << 20)
        .memory_may_move(false)
        .guard_before_linear_memory(true)
        .memory_init_cow(true)
        .wasm_backtrace_max_frames(NonZeroUsize::new(32))
        .generate_address_map(true);
    if let Allocation::Pooled { instances_max, memory_bytes_max } = allocation {
        config.allocation_strategy(pool(instances_max, memory_bytes_max));
    }
    config
}

fn pool(instances_max: u32, memory_bytes_max: usize) -> InstanceAllocationStrategy {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_core_instances(instances_max)
        .total_memories(instances_max)
        .total_tables(instances_max)
        .total_stacks(instances_max)
        .max_memories_per_module(1)
        .max_tables_per_module(1)
        .table_elements(limits::Limits::CELL.table_elements_max)
        .max_core_instance_size(256 << 10)
        .max_memory_size(memory_bytes_max)
        .linear_memory_keep_resident(0)
        .max_unused_warm_slots(64)
        .decommit_batch_size(16);
    InstanceAllocationStrategy::Pooling(pool)
}
