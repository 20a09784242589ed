//! A deployed cell: its module, its instances, and the queue for them.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cell_abi::{CellHash, CellName, Interface, Status};
use wasmtime::InstancePre;

use crate::engine::{Module, Sandbox};
use crate::error::LoadError;
use crate::gate::ModuleKind;
use crate::guest::Guest;
use crate::health::Health;
use crate::instance::{Instance, Lease};
use crate::limits::{CRASHES_BEFORE_REST, Limits, STARTS_BEFORE_REST};
use crate::rates::Rates;
use crate::services::{LogLevel, Services};
use crate::state::{CellState, MemoryState, StateStore};
use crate::tape::Tape;
use crate::turns::Turns;

/// What an instance remembers from call to call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Isolation {
    /// An instance serves many calls, one after the other, and keeps its memory.
    #[default]
    Instance,
    /// Every call gets a fresh instance.
    Call,
}

/// How a cell is run.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CellOptions {
    /// What an instance remembers.
    pub isolation: Isolation,
    /// Most instances at once; further calls wait for one. Default 16.
    pub replicas_max: usize,
    /// What one instance may take.
    pub limits: Limits,
    /// Where key-value state is kept. Default: in memory.
    pub state: Arc<dyn StateStore>,
    /// Calls take turns on the state by this; cells that share a state must share it too, such as a
    /// cell's new code and the old code that still ends its calls.
    pub state_turn: Arc<tokio::sync::Mutex<()>>,
    /// Largest state, in bytes of keys and values. Default 16 MiB.
    ///
    /// A write past it is refused with 1 to the guest, which may go on.
    pub state_bytes_max: u64,
    /// Every call is recorded, so that it can be run again: see [`CallRecord`](crate::CallRecord).
    /// Checking a call needs to know all that it depended on, so this goes with `Isolation::Call`.
    pub receipts: bool,
    /// What its calls pay besides fuel. Default: nothing.
    pub rates: Rates,
}

impl Default for CellOptions {
    fn default() -> Self {
        Self {
            isolation: Isolation::Instance,
            replicas_max: 16,
            limits: Limits::CELL,
            state: Arc::new(MemoryState::default()),
            state_turn: Arc::default(),
            state_bytes_max: 16 << 20,
            receipts: false,
            rates: Rates::default(),
        }
    }
}

/// A cell that answers calls.
pub struct Cell {
    name: CellName,
    module: Module,
    options: CellOptions,
    state: CellState,
    sandbox: Arc<Sandbox>,
    services: Arc<dyn Services>,
    linked: InstancePre<Guest>,
    #[expect(
        clippy::vec_box,
        reason = "an instance moves between here and its lease as a pointer"
    )]
    idle: Mutex<Vec<Box<Instance>>>,
    /// One permit for each instance that may exist.
    turns: Arc<Turns>,
    live: AtomicUsize,
    /// Bytes of memory and tables of all its instances.
    memory: Arc<AtomicU64>,
    /// How its starts went, and how its calls.
    starts: Health,
    calls: Health,
    /// No instance is kept any more: the cell was removed or replaced.
    retired: AtomicBool,
}

impl std::fmt::Debug for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cell")
            .field("name", &self.name)
            .field("hash", &self.module.hash)
            .finish_non_exhaustive()
    }
}

impl Cell {
    /// Links a module as a cell. No instance exists until the first call.
    pub fn new(
        sandbox: &Arc<Sandbox>,
        name: CellName,
        module: Module,
        options: CellOptions,
        services: Arc<dyn Services>,
    ) -> Result<Arc<Self>, LoadError> {
        if module.info.kind != ModuleKind::Cell {
            return Err(LoadError::WrongKind("the module is a command; run it with `cell run`"));
        }
        let linked = sandbox
            .linker(ModuleKind::Cell)
            .instantiate_pre(&module.compiled)
            .map_err(|e| LoadError::Link(format!("{e:#}")))?;
        let state = CellState {
            store: Arc::clone(&options.state),
            turn: Arc::clone(&options.state_turn),
            bytes_max: options.state_bytes_max,
        };
        Ok(Arc::new(Self {
            name,
            module,
            state,
            sandbox: Arc::clone(sandbox),
            services,
            linked,
            idle: Mutex::default(),
            turns: Turns::new(options.replicas_max),
            live: AtomicUsize::new(0),
            memory: Arc::default(),
            starts: Health::new(STARTS_BEFORE_REST),
            calls: Health::new(CRASHES_BEFORE_REST),
            retired: AtomicBool::new(false),
            options,
        }))
    }

    /// Takes an idle instance, starts one, or waits for one, in this order. Callers with different
    /// numbers take turns.
    ///
    /// Refused: `Busy` when too many wait already or neither slot nor memory is free, `Trapped` when
    /// the cell does not start, `BackingOff` when it keeps failing and rests; with what the status
    /// alone does not say.
    pub async fn checkout(self: &Arc<Self>, caller: u64) -> Result<Lease, (Status, Vec<u8>)> {
        if let Some(reason) = self.resting() {
            return Err((Status::BackingOff, reason.into_bytes()));
        }
        let permit = self.turns.acquire(caller).await.ok_or((Status::Busy, Vec::new()))?;
        let idle = self.idle_instances().pop();
        let instance = match idle {
            Some(instance) => instance,
            // Seldom, so that what starting takes is not a part of every call.
            None => Box::pin(self.start()).await?,
        };
        self.live.fetch_add(1, Relaxed);
        Ok(Lease::new(Arc::clone(self), instance, permit))
    }

    /// A fresh instance that learns from this tape and nothing else, from its start on.
    pub(crate) async fn checkout_playing(self: &Arc<Self>, tape: Tape) -> Result<Lease, Status> {
        let permit = self.turns.acquire(0).await.ok_or(Status::Busy)?;
        let instance = Instance::start(self, Some(tape)).await.map_err(|error| match error {
            LoadError::NoSlot | LoadError::NoMemory => Status::Busy,
            _ => Status::Trapped,
        })?;
        self.live.fetch_add(1, Relaxed);
        Ok(Lease::new(Arc::clone(self), instance, permit))
    }

    /// Destroys instances that have been idle this long; returns how many.
    pub fn stop_idle(&self, idle: Duration) -> usize {
        let now = Instant::now();
        let mut instances = self.idle_instances();
        let before = instances.len();
        let stopped: Vec<_> = instances
            .extract_if(.., |i| {
                now.saturating_duration_since(*i.idle_since.get_or_insert(now)) >= idle
            })
            .collect();
        let after = instances.len();
        drop(instances);
        drop(stopped);
        before - after
    }

    /// Whether it has an instance that serves no call.
    pub fn has_idle(&self) -> bool {
        !self.idle_instances().is_empty()
    }

    /// Lets calls in flight end and keeps no instance after them.
    ///
    /// Must be called when a cell is removed or replaced: idle instances hold the cell alive.
    pub fn retire(&self) {
        self.retired.store(true, Relaxed);
        let instances = std::mem::take(&mut *self.idle_instances());
        drop(instances);
    }

    /// Whether the cell was built with the JSON adapter.
    pub const fn has_json(&self) -> bool {
        self.module.info.has_json
    }

    /// Instances that exist: serving and idle.
    pub fn instances(&self) -> usize {
        self.live.load(Relaxed) + self.idle_instances().len()
    }

    /// Whether every instance that this caller may have is serving.
    pub(crate) fn is_full(&self, caller: u64) -> bool {
        self.turns.is_full(caller)
    }

    /// Why the cell's calls are refused for now, if it keeps failing.
    pub fn resting(&self) -> Option<String> {
        let resting = |(reason, left): (String, Duration)| {
            format!("it rests for {:.1} s more: it {reason}", left.as_secs_f32())
        };
        self.calls.resting().or_else(|| self.starts.resting()).map(resting)
    }

    /// Linear memory and tables of all its instances, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory.load(Relaxed)
    }

    pub(crate) const fn memory(&self) -> &Arc<AtomicU64> {
        &self.memory
    }

    /// Calls that wait for an instance.
    pub fn waiting(&self) -> usize {
        self.turns.waiting()
    }

    /// The cell's name.
    pub const fn name(&self) -> &CellName {
        &self.name
    }

    /// Hash of the cell's wasm.
    pub const fn hash(&self) -> CellHash {
        self.module.hash
    }

    /// The cell's receptors.
    pub const fn interface(&self) -> &Interface {
        &self.module.info.interface
    }

    /// How the cell is run.
    pub const fn options(&self) -> &CellOptions {
        &self.options
    }

    async fn start(self: &Arc<Self>) -> Result<Box<Instance>, (Status, Vec<u8>)> {
        let first = self.instances() == 0;
        let tape = || self.options.receipts.then(Tape::recording);
        let mut started = Instance::start(self, tape()).await;
        while matches!(started, Err(LoadError::NoSlot | LoadError::NoMemory))
            && self.services.make_room(first)
        {
            started = Instance::start(self, tape()).await;
        }
        match started {
            Ok(instance) => {
                self.starts.succeeded();
                Ok(instance)
            }
            Err(error @ (LoadError::NoSlot | LoadError::NoMemory)) => {
                Err((Status::Busy, error.to_string().into_bytes()))
            }
            Err(error) => {
                let message = error.to_string();
                self.starts.failed(&message);
                Err((Status::Trapped, message.into_bytes()))
            }
        }
    }

    /// Counts how a call ended, so that a cell that only crashes is let rest.
    pub(crate) fn count_end(&self, status: Status, message: &[u8]) {
        match status {
            Status::Ok | Status::Rejected | Status::BadRequest => self.calls.succeeded(),
            Status::Trapped | Status::Exited | Status::OverLimit | Status::BadReply => {
                let message = String::from_utf8_lossy(message);
                let colon = if message.is_empty() { "" } else { ": " };
                self.calls.failed(&format!("{}{colon}{message}", status.describe()));
            }
            // Set by the caller, or no fault of the cell's.
            _ => {}
        }
    }

    pub(crate) fn log(&self, level: LogLevel, line: &[u8]) {
        self.services.log(&self.name, level, line);
    }

    pub(crate) fn services(&self) -> &dyn Services {
        &*self.services
    }

    pub(crate) const fn state(&self) -> &CellState {
        &self.state
    }

    pub(crate) const fn sandbox(&self) -> &Arc<Sandbox> {
        &self.sandbox
    }

    pub(crate) const fn linked(&self) -> &InstancePre<Guest> {
        &self.linked
    }

    /// Takes a leased instance back; `None` says that it was destroyed.
    pub(crate) fn give_back(&self, instance: Option<Box<Instance>>) {
        self.live.fetch_sub(1, Relaxed);
        if let Some(mut instance) = instance {
            instance.idle_since = None;
            let mut idle = self.idle_instances();
            if !self.retired.load(Relaxed) {
                idle.push(instance);
            }
        }
    }

    #[expect(clippy::vec_box, reason = "see the field")]
    fn idle_instances(&self) -> std::sync::MutexGuard<'_, Vec<Box<Instance>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
