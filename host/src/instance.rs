//! One instance of a cell, leased to one call at a time.

use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use cell_abi::{AccountId, Fuel, Reject, Status};
use wasmtime::{AsContextMut as _, Memory, Store, TypedFunc};

use crate::cell::{Cell, Isolation};
use crate::elsewhere::{Callee, RemoteCell};
use crate::error::{LoadError, classify};
use crate::guest::{Guest, Link};
use crate::limits::{SLICE_FUEL, START_FUEL_MAX};
use crate::meter::{Gauge, Metered, StopHandle};
use crate::price::{CALL, FRAME_BYTE};
use crate::rates::{Dimension, Extra, Taken};
use crate::record::{CallRecord, Draft};
use crate::tape::Tape;
use crate::turns::Permit;

/// What `cell_receive` returns for a request that is not a valid input.
const BAD_REQUEST: u64 = u64::MAX;

/// Who calls, and within which bounds.
#[derive(Debug, Clone)]
pub struct CallSpec {
    /// The account that pays.
    pub payer: AccountId,
    /// Tells callers apart, so that they take turns: the same number as at
    /// [`checkout`](Cell::checkout).
    pub caller: u64,
    /// The most the call may burn, callees included.
    pub fuel: Fuel,
    /// When the call began, if the host program knows; told to the guest.
    pub began: Option<Instant>,
    /// When the host program will time the call out; told to the guest.
    pub deadline: Instant,
    /// Stops the call, and its callees, from outside.
    pub stop: StopHandle,
    pub(crate) depth: u32,
    pub(crate) chain: Option<Arc<Link>>,
}

impl CallSpec {
    /// A call from outside.
    pub const fn new(payer: AccountId, fuel: Fuel, deadline: Instant, stop: StopHandle) -> Self {
        Self { payer, caller: 0, fuel, began: None, deadline, stop, depth: 0, chain: None }
    }
}

/// How a call ended.
#[derive(Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// The status its caller gets.
    pub status: Status,
    /// What it burned, callees included; never more than its limit.
    pub fuel: Fuel,
    /// What it took besides; what that costs and the fuel are together never more than its limit.
    pub extra: Option<Box<Extra>>,
    /// What other cells burned of it.
    pub callees: Vec<Share>,
    /// The payload of a reply whose status is not `Ok`: an encoded reject, or what the status alone
    /// does not say.
    pub message: Vec<u8>,
    /// What receipts say of it and of calls it made, if their cells keep receipts.
    pub records: Vec<CallRecord>,
    /// Where in the instance's memory an `Ok` reply lies.
    reply: (usize, usize),
}

/// What one cell burned of a call that another cell answers.
#[derive(Debug, Clone)]
pub struct Share {
    /// The cell.
    pub cell: Callee,
    /// What it burned, without its own callees.
    pub fuel: Fuel,
    /// What it took besides.
    pub taken: Taken,
    /// How many calls of it that were.
    pub calls: u64,
}

impl Share {
    /// Adds to the cell's share if it has one: a list is as long as there are cells, not calls.
    pub(crate) fn add_to(self, shares: &mut Vec<Self>) {
        match shares.iter_mut().find(|share| share.cell.is(&self.cell)) {
            Some(share) => {
                share.fuel = share.fuel.saturating_add(self.fuel);
                share.taken.add(self.taken);
                share.calls = share.calls.saturating_add(self.calls);
            }
            None => shares.push(self),
        }
    }

    /// What a call of another machine's cell cost.
    pub(crate) fn elsewhere(cell: Arc<dyn RemoteCell>, fuel: Fuel) -> Self {
        Self { cell: Callee::Elsewhere(cell), fuel, taken: Taken::default(), calls: 1 }
    }
}

/// Exclusive use of an instance. Dropping it gives the instance back, or destroys it after a
/// trap, a stop, growth of its memory, or under `isolation = "call"`.
pub struct Lease {
    cell: Arc<Cell>,
    instance: Option<Box<Instance>>,
    mailbox: (usize, usize),
    limit: u64,
    /// The call's record, if its cell keeps receipts.
    draft: Option<Box<Draft>>,
    /// The last call ended in a way that leaves the instance as if it had not happened.
    clean: bool,
    // Released after the instance went back, so that who waits for it finds it.
    _permit: Permit,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("cell", self.cell.name()).finish_non_exhaustive()
    }
}

impl Lease {
    pub(crate) const fn new(cell: Arc<Cell>, instance: Box<Instance>, permit: Permit) -> Self {
        Self {
            cell,
            instance: Some(instance),
            mailbox: (0, 0),
            limit: 0,
            draft: None,
            clean: true,
            _permit: permit,
        }
    }

    /// The cell whose instance this is.
    pub const fn cell(&self) -> &Arc<Cell> {
        &self.cell
    }

    /// Starts a call: asks the guest for a mailbox of this many bytes.
    ///
    /// After `Ok`, fill [`request_mut`](Self::request_mut) and go on with [`finish`](Self::finish).
    pub async fn begin(&mut self, spec: CallSpec, request_bytes: u32) -> Result<(), Outcome> {
        if self.cell.options().receipts {
            self.draft(request_bytes);
        }
        // One more than the limit: wasm traps when the counter reaches zero, and a call that
        // burns exactly its limit must succeed.
        self.limit = spec.fuel.0.min(i64::MAX.unsigned_abs() - 1);
        self.clean = false;
        let limit = self.limit;
        let Some(instance) = self.instance.as_deref_mut() else {
            return Err(Outcome::failed(Status::HostFault, "the lease has no instance"));
        };
        let has_own_instance = self.cell.options().isolation == Isolation::Call;
        if has_own_instance && self.cell.options().rates.of(Dimension::Start) > limit {
            return Err(Outcome::failed(Status::OutOfFuel, "its start alone costs more"));
        }
        instance.begin(spec, limit);
        if has_own_instance {
            instance.gauge.extras.start();
        }
        // What passes the limit is seen when the call ends: it then costs the limit and no more.
        instance.owe(CALL);
        let Instance { store, gauge, stop, mailbox, .. } = instance;
        match run((store, gauge, stop), mailbox, request_bytes).await {
            Ok(at) => match instance.range(at, request_bytes) {
                Some(range) if at != 0 => {
                    instance.owe(u64::from(request_bytes) * FRAME_BYTE);
                    self.mailbox = range;
                    Ok(())
                }
                _ => Err(self.settle(Status::TooLarge, Vec::new())),
            },
            Err(error) => Err(self.settle_error(&error)),
        }
    }

    /// The mailbox that the last [`begin`](Self::begin) got.
    pub fn request_mut(&mut self) -> &mut [u8] {
        let (start, end) = self.mailbox;
        let memory = self.instance.as_deref_mut().map(|i| i.memory.data_mut(&mut i.store));
        memory.and_then(|memory| memory.get_mut(start..end)).unwrap_or_default()
    }

    /// Runs the receptor on the request in the mailbox.
    pub async fn finish(&mut self, receptor: u16, json: bool) -> Outcome {
        if self.draft.is_some() {
            self.draft_request(receptor, json);
        }
        let (start, end) = self.mailbox;
        let Some(instance) = self.instance.as_deref_mut() else {
            return Outcome::failed(Status::HostFault, "the lease has no instance");
        };
        let Instance { store, gauge, stop, receive, receive_json, .. } = instance;
        let function = if json { receive_json.as_ref() } else { Some(&*receive) };
        let Some(function) = function else {
            return self.settle(Status::NoJson, Vec::new());
        };
        let address = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        let arguments = (u32::from(receptor), address(start), address(end - start));
        match run((store, gauge, stop), function, arguments).await {
            Ok(answer) => self.settle_answer(answer),
            Err(error) => self.settle_error(&error),
        }
    }

    /// Ends a begun call whose request will not come; what the guest burned for its mailbox is due.
    pub fn abandon(&mut self) -> Outcome {
        self.settle(Status::Cancelled, Vec::new())
    }

    /// From here on the call is recorded; the tape may run since its instance started.
    #[cold]
    fn draft(&mut self, input_bytes: u32) {
        if let Some(instance) = self.instance.as_deref_mut() {
            let tape = instance.store.data_mut().call.tape.get_or_insert_with(Tape::recording);
            self.draft = Some(Box::new(Draft::new(tape.clone(), input_bytes)));
        }
    }

    /// Keeps the request, for the guest may write over it.
    #[cold]
    fn draft_request(&mut self, receptor: u16, json: bool) {
        let input = self.request_mut().to_vec();
        if let Some(draft) = &mut self.draft {
            (draft.receptor, draft.json, draft.input) = (receptor, json, input);
        }
    }

    #[cold]
    fn record(&mut self, outcome: &mut Outcome) {
        let record = self.draft.take().and_then(|draft| draft.end(self, self.limit, outcome));
        outcome.records.extend(record);
    }

    /// The bytes of an `Ok` reply, in the instance's memory.
    pub fn reply(&self, outcome: &Outcome) -> &[u8] {
        let (start, end) = outcome.reply;
        let memory = self.instance.as_deref().map(|i| i.memory.data(&i.store));
        memory.and_then(|memory| memory.get(start..end)).unwrap_or_default()
    }

    fn settle_answer(&mut self, answer: u64) -> Outcome {
        let Some(instance) = self.instance.as_deref_mut() else {
            return Outcome::failed(Status::HostFault, "the lease has no instance");
        };
        let reject = instance.store.data_mut().call.reject.take();
        match (answer, reject) {
            (BAD_REQUEST, reject) => {
                // The SDK's JSON adapter says what is wrong with the text by way of a reject.
                let message = reject.map_or_else(Vec::new, |reject| reject.message.into_bytes());
                self.settle(Status::BadRequest, message)
            }
            (_, Some(reject)) => {
                let message = reject.encode();
                instance.gauge.extras.egress(message.len() as u64);
                self.settle(Status::Rejected, message)
            }
            (answer, None) => {
                let (low, high) = (answer & u64::from(u32::MAX), answer >> 32);
                let range = match (u32::try_from(low), u32::try_from(high)) {
                    (Ok(at), Ok(len)) if len <= cell_abi::limits::FRAME_PAYLOAD_BYTES_MAX => {
                        instance.range(at, len)
                    }
                    _ => None,
                };
                let Some(range) = range else {
                    return self.settle(Status::BadReply, Vec::new());
                };
                instance.owe((range.1 - range.0) as u64 * FRAME_BYTE);
                // Wasm checks its fuel at loops and calls only, so the last steps may have passed the limit.
                let extras = &instance.gauge.extras;
                extras.egress((range.1 - range.0) as u64);
                extras.tick();
                if instance.burned(self.limit).saturating_add(extras.cost()) > self.limit {
                    return self.settle(Status::OutOfFuel, Vec::new());
                }
                if instance.commit().is_err() {
                    return self.settle(Status::HostFault, Vec::new());
                }
                self.settle_with(Status::Ok, Vec::new(), range)
            }
        }
    }

    fn settle_error(&mut self, error: &wasmtime::Error) -> Outcome {
        let (status, message) = classify(error);
        if status == Status::HostFault {
            self.cell.log(crate::LogLevel::Error, format!("{error:#}").as_bytes());
        }
        self.settle(status, message.into_bytes())
    }

    fn settle(&mut self, status: Status, message: Vec<u8>) -> Outcome {
        if let Some(instance) = self.instance.as_deref() {
            instance.gauge.extras.tick();
        }
        self.settle_with(status, message, (0, 0))
    }

    /// Reads the meter and decides what the call costs and whether the instance lives on.
    fn settle_with(&mut self, status: Status, message: Vec<u8>, reply: (usize, usize)) -> Outcome {
        let Some(instance) = self.instance.as_deref_mut() else {
            return Outcome::failed(Status::HostFault, "the lease has no instance");
        };
        let mut burned = instance.burned(self.limit);
        let grown = instance.memory.size(&instance.store) != instance.pages;
        let call = &mut instance.store.data_mut().call;
        let mut callees = std::mem::take(&mut call.callees);
        if let Some((cell, stake)) = call.elsewhere.take() {
            // It was given up while another machine had a call of its.
            let fuel = stake.at_stake();
            burned = burned.saturating_add(fuel.0);
            Share::elsewhere(cell, fuel).add_to(&mut callees);
        }
        let records = std::mem::take(&mut call.records);
        call.state = None;
        if status == Status::HostFault {
            return Outcome::failed(status, "the nucleus failed");
        }
        let out_of_fuel = status == Status::OutOfFuel;
        let bill = instance.gauge.extras.bill(burned, self.limit, out_of_fuel);
        let (status, message, reply) = if bill.is_out {
            (Status::OutOfFuel, bill.message().into(), (0, 0))
        } else {
            self.cell.count_end(status, &message);
            self.clean =
                matches!(status, Status::Ok | Status::Rejected | Status::BadRequest) && !grown;
            (status, message, reply)
        };
        let (fuel, extra) = (Fuel(bill.fuel), bill.extra);
        let mut outcome = Outcome { status, fuel, extra, callees, message, records, reply };
        if self.draft.is_some() {
            self.record(&mut outcome);
        }
        outcome
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let reuse = self.clean && self.cell.options().isolation == Isolation::Instance;
        if let Some(instance) = self.instance.take() {
            self.cell.give_back(reuse.then_some(instance));
        }
    }
}

impl Outcome {
    fn failed(status: Status, message: &str) -> Self {
        Self {
            status,
            fuel: Fuel::ZERO,
            extra: None,
            callees: Vec::new(),
            message: message.into(),
            records: Vec::new(),
            reply: (0, 0),
        }
    }

    /// What it costs, as fuel at its base price: never more than its limit.
    pub fn charge(&self) -> Fuel {
        let extra = self.extra.as_ref().map_or(0, |extra| extra.nano_atp);
        self.fuel.saturating_add(Fuel(extra))
    }

    /// What its cell took besides fuel, without its callees.
    pub fn taken(&self) -> Taken {
        self.extra.as_ref().map_or_else(Taken::default, |extra| extra.taken)
    }

    /// What the cell itself burned, without its callees.
    pub fn own_fuel(&self) -> Fuel {
        self.callees.iter().fold(self.fuel, |rest, share| rest.saturating_sub(share.fuel))
    }

    /// How many bytes an `Ok` reply has.
    pub const fn reply_bytes(&self) -> usize {
        self.reply.1 - self.reply.0
    }

    /// The reject of a `Rejected` outcome.
    pub fn reject(&self) -> Option<Reject> {
        (self.status == Status::Rejected).then(|| Reject::decode(&self.message)).flatten()
    }
}

/// A started module: its store, and the exports every call uses.
pub(crate) struct Instance {
    store: Store<Guest>,
    /// The store's own, at hand while the store is lent to the guest.
    gauge: Arc<Gauge>,
    stop: StopHandle,
    memory: Memory,
    mailbox: TypedFunc<u32, u32>,
    receive: TypedFunc<(u32, u32, u32), u64>,
    receive_json: Option<TypedFunc<(u32, u32, u32), u64>>,
    /// Size of the memory after the start; an instance whose memory grew is not used again.
    pages: u64,
    /// When it was first found idle since its last call.
    pub(crate) idle_since: Option<Instant>,
}

impl Instance {
    /// Instantiates and initialises; what that burns is bounded but not billed.
    pub(crate) async fn start(
        cell: &Arc<Cell>,
        tape: Option<Tape>,
    ) -> Result<Box<Self>, LoadError> {
        let mut store = Store::new(cell.sandbox().engine(), Guest::of_cell(Arc::clone(cell)));
        store.data_mut().call.tape = tape;
        store.limiter(|guest| guest);
        let started = |e: wasmtime::Error| {
            if e.downcast_ref::<wasmtime::PoolConcurrencyLimitError>().is_some() {
                LoadError::NoSlot
            } else {
                LoadError::Start(classify(&e).1)
            }
        };
        arm(&mut store, START_FUEL_MAX).map_err(started)?;
        let instance = cell.linked().instantiate_async(&mut store).await.map_err(|error| {
            if store.data().memory_was_refused() { LoadError::NoMemory } else { started(error) }
        })?;
        store.data_mut().started = true;
        let missing = |name, expected| LoadError::MissingExport { name, expected };
        let memory = instance
            .get_memory(&mut store, "memory")
            .ok_or_else(|| missing("memory", "a memory"))?;
        let mailbox = instance
            .get_typed_func(&mut store, "cell_mailbox")
            .map_err(|_| missing("cell_mailbox", "(i32) -> i32"))?;
        let receive = instance
            .get_typed_func(&mut store, "cell_receive")
            .map_err(|_| missing("cell_receive", "(i32, i32, i32) -> i64"))?;
        let receive_json = instance.get_typed_func(&mut store, "cell_receive_json").ok();
        let (gauge, stop) = (Arc::clone(&store.data().gauge), StopHandle::new());
        if let Ok(initialize) = instance.get_typed_func::<(), ()>(&mut store, "_initialize") {
            run((&mut store, &gauge, &stop), &initialize, ()).await.map_err(started)?;
        }
        let pages = memory.size(&store);
        Ok(Box::new(Self {
            store,
            gauge,
            stop,
            memory,
            mailbox,
            receive,
            receive_json,
            pages,
            idle_since: None,
        }))
    }

    fn begin(&mut self, spec: CallSpec, limit: u64) {
        // Fuel is enabled in every engine this crate makes, so setting it cannot fail.
        let _ = arm(&mut self.store, limit + 1);
        self.stop = spec.stop.clone();
        self.store.data_mut().call.begin(spec);
    }

    fn owe(&self, fuel: u64) {
        self.store.data().gauge.owe(fuel);
    }

    /// What the call has burned of a store that was given one more than its limit.
    fn burned(&self, limit: u64) -> u64 {
        let left = self.store.get_fuel().unwrap_or(0);
        (limit + 1).saturating_sub(left).saturating_add(self.store.data().gauge.debt())
    }

    fn commit(&mut self) -> Result<(), crate::StateError> {
        self.store.data_mut().call.state.take().map_or(Ok(()), crate::state::StateCall::commit)
    }

    fn range(&self, at: u32, len: u32) -> Option<(usize, usize)> {
        let start = usize::try_from(at).ok()?;
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        (end <= self.memory.data_size(&self.store)).then_some((start, end))
    }
}

/// Gives a store its fuel and starts its meter.
pub(crate) fn arm(store: &mut Store<Guest>, fuel: u64) -> wasmtime::Result<()> {
    store.fuel_async_yield_interval(Some(SLICE_FUEL))?;
    store.as_context_mut().set_fuel(fuel)?;
    store.data().gauge.begin(fuel);
    Ok(())
}

async fn run<P, R>(
    (store, gauge, stop): (&mut Store<Guest>, &Gauge, &StopHandle),
    function: &TypedFunc<P, R>,
    arguments: P,
) -> wasmtime::Result<R>
where
    P: wasmtime::WasmParams + Sync,
    R: wasmtime::WasmResults + Sync,
{
    let guest = pin!(function.call_async(store, arguments));
    Metered { guest, gauge, stop }.await
}
