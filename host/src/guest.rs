//! What a store holds for its guest: limits, meter, WASI, and the call that runs.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use cell_abi::{AccountId, Reject};
use wasmtime::ResourceLimiter;
use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::p1::WasiP1Ctx;

use crate::budget::{Budget, Part};
use crate::cell::Cell;
use crate::elsewhere::{RemoteCell, Stake};
use crate::error::Stop;
use crate::instance::{CallSpec, Share};
use crate::limits::{GROWS_MAX, Limits};
use crate::meter::{Gauge, StopHandle};
use crate::price;
use crate::record::CallRecord;
use crate::state::StateCall;
use crate::stdio::LogStream;
use crate::tape::{Flaw, Tape};

const PAGE_BYTES: usize = 64 << 10;
/// What one element of a table takes of the host.
const TABLE_ELEMENT_BYTES: usize = 8;

pub(crate) struct Guest {
    pub(crate) gauge: Arc<Gauge>,
    pub(crate) limits: Limits,
    pub(crate) cell: Option<Arc<Cell>>,
    pub(crate) call: CallState,
    wasi: Option<Box<WasiP1Ctx>>,
    part: Part,
    memory_bytes: usize,
    memory_bytes_peak: usize,
    table_elements: usize,
    grows: u32,
    /// The module's own memory and tables are made; what comes now is growth.
    pub(crate) started: bool,
}

impl Guest {
    /// A guest that answers calls; its WASI context is made when it first asks for it.
    pub(crate) fn of_cell(cell: Arc<Cell>) -> Self {
        let limits = cell.options().limits;
        let part = Part::new(Arc::clone(cell.sandbox().budget()), Arc::clone(cell.memory()));
        let gauge = Arc::new(Gauge::new(cell.options().rates));
        Self { cell: Some(cell), ..Self::new(limits, part, gauge, None) }
    }

    /// A guest that runs once with this WASI context.
    pub(crate) fn of_job(
        limits: Limits,
        budget: Arc<Budget>,
        gauge: Arc<Gauge>,
        wasi: WasiP1Ctx,
    ) -> Self {
        Self::new(limits, Part::new(budget, Arc::default()), gauge, Some(Box::new(wasi)))
    }

    fn new(limits: Limits, part: Part, gauge: Arc<Gauge>, wasi: Option<Box<WasiP1Ctx>>) -> Self {
        Self {
            gauge,
            limits,
            cell: None,
            call: CallState::idle(),
            wasi,
            part,
            memory_bytes: 0,
            memory_bytes_peak: 0,
            table_elements: 0,
            grows: 0,
            started: false,
        }
    }

    pub(crate) fn wasi(&mut self) -> &mut WasiP1Ctx {
        let cell = &self.cell;
        let limits = &self.limits;
        self.wasi.get_or_insert_with(|| Box::new(cell_wasi(cell.as_ref(), limits)))
    }

    /// Largest size the memory ever had.
    pub(crate) const fn memory_bytes_peak(&self) -> usize {
        self.memory_bytes_peak
    }

    /// Whether all guests together had too little memory left for this one.
    pub(crate) const fn memory_was_refused(&self) -> bool {
        self.part.was_refused()
    }

    fn take_memory(&mut self, bytes: usize) -> bool {
        let taken = self.part.take(bytes);
        if !taken {
            self.call.spoil(Flaw::MemoryRefused);
        }
        taken
    }

    fn count_grow(&mut self) -> bool {
        self.grows = self.grows.saturating_add(1);
        self.grows <= GROWS_MAX
    }
}

/// Standard output and error become log lines; nothing else is given.
fn cell_wasi(cell: Option<&Arc<Cell>>, limits: &Limits) -> WasiP1Ctx {
    let mut builder = WasiCtxBuilder::new();
    builder.max_random_size(limits.random_bytes_max).allow_tcp(false).allow_udp(false);
    if let Some(cell) = cell {
        builder.stdout(LogStream::new(cell, crate::LogLevel::Info));
        builder.stderr(LogStream::new(cell, crate::LogLevel::Error));
    }
    builder.build_p1()
}

/// Memory and tables are one account each, however many the module declares.
impl ResourceLimiter for Guest {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let total = self.memory_bytes - current.min(self.memory_bytes) + desired;
        if total > self.limits.memory_bytes_max {
            return Ok(false);
        }
        let more = desired.saturating_sub(current);
        if (self.started && !self.count_grow()) || !self.take_memory(more) {
            return Ok(false);
        }
        let pages = more.div_ceil(PAGE_BYTES) as u64;
        if self.started && !self.gauge.owe(pages.saturating_mul(price::MEMORY_PAGE)) {
            return Err(Stop::OutOfFuel.into());
        }
        self.gauge.extras.grow(pages);
        self.memory_bytes = total;
        self.memory_bytes_peak = self.memory_bytes_peak.max(total);
        Ok(true)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let total = self.table_elements - current.min(self.table_elements) + desired;
        if total > self.limits.table_elements_max {
            return Ok(false);
        }
        let more = desired.saturating_sub(current);
        let bytes = more.saturating_mul(TABLE_ELEMENT_BYTES);
        if (self.started && !self.count_grow()) || !self.take_memory(bytes) {
            return Ok(false);
        }
        if self.started && !self.gauge.owe((more as u64).saturating_mul(price::TABLE_ELEMENT)) {
            return Err(Stop::OutOfFuel.into());
        }
        self.table_elements = total;
        Ok(true)
    }
}

/// One link of a chain of calls between cells, outermost last.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) cell: Arc<Cell>,
    /// The call holds its cell's state while it waits for its callee.
    pub(crate) holds_state: bool,
    pub(crate) caller: Option<Arc<Self>>,
}

/// The call that runs, and what it has gathered.
pub(crate) struct CallState {
    pub(crate) payer: AccountId,
    pub(crate) caller: u64,
    pub(crate) began: Instant,
    /// The same as a time of the calendar, once the guest has asked for it.
    started: Option<SystemTime>,
    pub(crate) deadline: Instant,
    pub(crate) depth: u32,
    /// A call runs, and somebody pays; while an instance starts nobody does.
    pub(crate) running: bool,
    pub(crate) chain: Option<Arc<Link>>,
    pub(crate) stop: StopHandle,
    pub(crate) reject: Option<Reject>,
    pub(crate) state: Option<StateCall>,
    /// The reply of the last call to another cell.
    pub(crate) callee_reply: Vec<u8>,
    /// A cell of another machine that is asked now, and what that costs if it is given up.
    pub(crate) elsewhere: Option<(Arc<dyn RemoteCell>, Stake)>,
    /// What other cells burned on behalf of this call.
    pub(crate) callees: Vec<Share>,
    /// Of calls to cells that keep receipts.
    pub(crate) records: Vec<CallRecord>,
    /// What the guest learns from outside, if it is recorded or played.
    pub(crate) tape: Option<Tape>,
}

impl CallState {
    pub(crate) fn idle() -> Self {
        Self {
            payer: AccountId::from_bytes([0; 32]),
            caller: 0,
            began: Instant::now(),
            started: None,
            deadline: Instant::now(),
            depth: 0,
            running: false,
            chain: None,
            stop: StopHandle::new(),
            reject: None,
            state: None,
            callee_reply: Vec::new(),
            elsewhere: None,
            callees: Vec::new(),
            records: Vec::new(),
            tape: None,
        }
    }

    /// Becomes the state of a call that starts.
    pub(crate) fn begin(&mut self, spec: CallSpec) {
        self.payer = spec.payer;
        self.caller = spec.caller;
        self.started = None;
        self.began = spec.began.unwrap_or_else(Instant::now);
        self.deadline = spec.deadline;
        self.depth = spec.depth;
        self.running = true;
        self.chain = spec.chain;
        self.stop = spec.stop;
        self.reject = None;
        self.state = None;
        self.callee_reply.clear();
        self.elsewhere = None;
        self.callees.clear();
        self.records.clear();
    }

    /// Notes why running the guest again would not tell, if it is recorded.
    pub(crate) fn spoil(&self, flaw: Flaw) {
        if let Some(tape) = &self.tape {
            tape.spoil(flaw);
        }
    }

    /// The 64 bytes of the guest ABI's call context.
    pub(crate) fn context(&mut self) -> [u8; 64] {
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let now = Instant::now();
        let ago = now.saturating_duration_since(self.began);
        let started = *self.started.get_or_insert_with(|| SystemTime::now() - ago);
        let started = started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let left = self.deadline.saturating_duration_since(now);
        let parts: [&[u8]; 4] = [
            self.payer.as_bytes(),
            &nanos(started).to_le_bytes(),
            &nanos(left).to_le_bytes(),
            &self.depth.to_le_bytes(),
        ];
        let mut context = [0; 64];
        for (to, from) in context.iter_mut().zip(parts.into_iter().flatten()) {
            *to = *from;
        }
        context
    }
}
