//! Sandboxes, cells that find one another, and calls whose every end is checked.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cell_abi::limits::{FRAME_PAYLOAD_BYTES_MAX, MESSAGE_BYTES_MAX};
use cell_abi::{AccountId, CellName, Fuel, Reject, Status};
use cell_host::limits::LOG_LINE_BYTES_MAX;
use cell_host::{
    Allocation, CallSpec, Callee, Cell, CellOptions, LogLevel, Module, Outcome, Resolving, Sandbox,
    Services, StopHandle,
};

/// A guest may ask to sleep; it is stopped after this long. Guests that compute end by their fuel,
/// as a rule long before.
const SLEEP_MAX: Duration = Duration::from_millis(10);

static POOLED: LazyLock<Arc<Sandbox>> = LazyLock::new(|| {
    let pool = Allocation::Pooled { instances_max: 64, memory_bytes_max: 64 << 20 };
    Arc::new(Sandbox::new(pool).expect("a pool"))
});
static ON_DEMAND: LazyLock<Arc<Sandbox>> =
    LazyLock::new(|| Arc::new(Sandbox::new(Allocation::OnDemand).expect("an engine")));

/// The worker's way to run cells: instances from reserved slots.
///
/// A product's process has one engine; here there are two, so that they can be compared. Nothing
/// goes from one to the other but artefacts.
pub(crate) fn pooled() -> &'static Arc<Sandbox> {
    &POOLED
}

/// The compiler's way, and a job's: each instance maps its own memory.
pub(crate) fn on_demand() -> &'static Arc<Sandbox> {
    &ON_DEMAND
}

/// Runs a future to its end on this thread.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}

/// Cells by name.
#[derive(Debug, Default)]
pub(crate) struct World(Mutex<HashMap<String, Arc<Cell>>>);

impl World {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn deploy(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        name: &str,
        module: Module,
        options: CellOptions,
    ) -> Result<Arc<Cell>, cell_host::LoadError> {
        let parsed = CellName::parse(name).expect("a name");
        let services = Arc::clone(self) as Arc<dyn Services>;
        let cell = Cell::new(sandbox, parsed, module, options, services)?;
        self.cells().insert(name.to_owned(), Arc::clone(&cell));
        Ok(cell)
    }

    /// Lets every cell go; they hold this world, and it them.
    pub(crate) fn retire(&self) {
        for (_, cell) in std::mem::take(&mut *self.cells()) {
            cell.retire();
            assert_eq!(cell.instances(), 0, "a retired cell keeps nothing");
        }
    }

    fn cells(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Cell>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Services for World {
    fn resolve<'a>(&'a self, name: &'a CellName) -> Resolving<'a> {
        let cell = self.cells().get(name.as_str()).cloned();
        Box::pin(std::future::ready(cell.map(Callee::Here).ok_or(Status::UnknownCell)))
    }

    fn log(&self, _cell: &CellName, _level: LogLevel, line: &[u8]) {
        assert!(line.len() <= LOG_LINE_BYTES_MAX && !line.contains(&b'\n'));
    }
}

/// One call to make.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) receptor: u16,
    /// Bytes that the mailbox is asked for.
    pub(crate) length: u32,
    /// What goes into the mailbox, cut or filled with zeros to its length.
    pub(crate) request: &'a [u8],
    pub(crate) fuel: u64,
    /// The caller hangs up before its request has come.
    pub(crate) abandon: bool,
}

/// How a call ended, as its caller sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) status: Status,
    pub(crate) fuel: u64,
    pub(crate) reply: Vec<u8>,
}

/// Makes a call; its end is one of those that the host promises.
pub(crate) async fn call(cell: &Arc<Cell>, call: Call<'_>) -> Ended {
    let mut lease = match cell.checkout(0).await {
        Ok(lease) => lease,
        Err((status, reply)) => {
            let known = [Status::Trapped, Status::BackingOff, Status::Busy];
            assert!(known.contains(&status), "{status:?} at checkout");
            return Ended { status, fuel: 0, reply };
        }
    };
    let stop = StopHandle::new();
    let deadline = Instant::now() + Duration::from_secs(60);
    let payer = AccountId::from_bytes([7; 32]);
    let spec = CallSpec::new(payer, Fuel(call.fuel), deadline, stop.clone());
    let outcome = match bounded(lease.begin(spec, call.length), &stop).await {
        Ok(()) if call.abandon => lease.abandon(),
        Ok(()) => {
            let mailbox = lease.request_mut();
            assert_eq!(u32::try_from(mailbox.len()), Ok(call.length), "the mailbox as asked for");
            mailbox.fill(0);
            for (to, from) in mailbox.iter_mut().zip(call.request) {
                *to = *from;
            }
            bounded(lease.finish(call.receptor, false), &stop).await
        }
        Err(outcome) => outcome,
    };
    check(&outcome, call.fuel);
    let reply = match outcome.status {
        Status::Ok => lease.reply(&outcome).to_vec(),
        _ => outcome.message.clone(),
    };
    assert!(reply.len() <= FRAME_PAYLOAD_BYTES_MAX as usize);
    Ended { status: outcome.status, fuel: outcome.fuel.0, reply }
}

fn check(outcome: &Outcome, limit: u64) {
    let Outcome { status, fuel, .. } = outcome;
    assert_ne!(*status, Status::HostFault, "a guest makes no host fault: {outcome:?}");
    assert!(fuel.0 <= limit, "{fuel:?} of {limit}: {outcome:?}");
    if *status == Status::OutOfFuel {
        assert_eq!(fuel.0, limit, "out of fuel costs the limit");
    }
    if *status == Status::Rejected {
        let reject = outcome.reject().expect("a reject has a code");
        assert!(reject.message.len() <= MESSAGE_BYTES_MAX);
        assert_eq!(Reject::decode(&outcome.message), Some(reject));
    }
    let callees: u64 = outcome.callees.iter().map(|share| share.fuel.0).sum();
    assert!(callees <= fuel.0, "the callees burned {callees} of {fuel:?}");
    assert_eq!(outcome.own_fuel().0, fuel.0 - callees);
}

/// Waits for a guest that may sleep, and stops it if it does so for long.
pub(crate) async fn bounded<T>(guest: impl Future<Output = T>, stop: &StopHandle) -> T {
    let mut guest = pin!(guest);
    if let Ok(ended) = tokio::time::timeout(SLEEP_MAX, &mut guest).await {
        return ended;
    }
    stop.time_out();
    guest.await
}
