//! The process that runs guests and owns the cells' sockets.
//!
//! It has no key, no accounts and no files but those handed to it. What it is told and what it
//! reports goes over the [`Link`] on its standard input; when that closes, the process ends, and
//! with it every guest.

mod call;
mod cells;
mod clock;
mod connection;
mod elsewhere;
mod event_loop;
pub(crate) mod limits;
mod log;
mod purse;
mod rates;
mod room;
mod run_queue;
mod serving;
mod slots;
mod state;
mod times;
mod turn;
mod unsent;
mod wire;

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use cell_abi::{AccountId, CellName};
use cell_host::{Allocation, Rates, Sandbox};

use crate::link::state::StateStream;
use crate::link::{FromWorker, Link, Start, ToWorker};
use crate::walls;
use cells::Cells;
use event_loop::Loops;
use purse::Purses;

/// Most instances alive at once in a worker; a call beyond it answers `Busy`.
///
/// Each reserves 4 GiB of address space, so a thousand fit a 47-bit process many times over.
const INSTANCES_MAX: u32 = 1000;
/// Largest memory of an instance, in bytes: what `memory_mb_max` may go up to.
const MEMORY_BYTES_MAX: usize = 64 << 20;
/// Private memory of a worker besides its guests', in bytes: stacks, tables, buffers.
pub(crate) const OWN_BYTES_MAX: u64 = 8 << 30;
/// How often usage is reported: the most a crash of the worker can leave unpaid.
const REPORT_EVERY: Duration = Duration::from_millis(40);

/// A worker of another user than the nucleus' owner that has had no client for so many reports says
/// so, and is ended.
const REPORTS_BEFORE_IDLE: u32 = 250;

/// How long calls in flight may take to end when the nucleus goes down.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);

/// Everything the worker's threads share.
#[derive(Debug)]
pub(crate) struct Worker {
    cells: Arc<Cells>,
    purses: Purses,
    link: Arc<Link>,
    /// The user whose calls run here, and the account that pays for them.
    serves: (u32, AccountId),
}

/// Runs until the nucleus closes the link.
pub(crate) fn run() -> anyhow::Result<()> {
    let link = Link::of_child().context("take the link")?;
    let reader = link.try_clone()?;
    let mut buffer = Vec::new();
    let Some((ToWorker::Start(start), fds)) = reader.receive(&mut buffer)? else {
        bail!("the nucleus did not say whom to serve");
    };
    let states = fds.into_iter().next().context("the stream for cells' state did not come")?;
    // Once in a process a runtime makes a pair of sockets, which the walls do not let it.
    drop(tokio::runtime::Builder::new_current_thread().enable_all().build()?);
    // Before the first byte of a guest is read, and before there is a second thread.
    let walls = walls::raise(&walls::Role::Worker, &resources(start.memory_bytes_max));
    let (worker, loops) = start_threads(&start, Arc::new(link), StateStream::from_fd(states))?;
    worker.link.send(&FromWorker::Ready { walls }, &[])?;
    while let Some((message, fds)) = reader.receive(&mut buffer)? {
        if matches!(message, ToWorker::Shutdown) {
            return drain(&worker);
        }
        handle(&worker, &loops, message, fds)?;
    }
    Ok(())
}

/// What the process as a whole may take: guests' memory twice over, for what they start from, and
/// room for stacks, code and the host itself.
fn resources(memory_bytes_max: u64) -> walls::Resources {
    walls::Resources {
        data_bytes_max: Some(memory_bytes_max.saturating_mul(2).saturating_add(OWN_BYTES_MAX)),
        ..walls::Resources::default()
    }
}

fn start_threads(
    start: &Start,
    link: Arc<Link>,
    states: StateStream,
) -> anyhow::Result<(Arc<Worker>, Loops)> {
    let pooled =
        Allocation::Pooled { instances_max: INSTANCES_MAX, memory_bytes_max: MEMORY_BYTES_MAX };
    let sandbox = Arc::new(Sandbox::new(pooled)?);
    sandbox.set_memory_bytes_max(start.memory_bytes_max);
    // WASI's timers need a runtime, and so do connections to other machines; its one thread does no more.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let rates = Rates(start.rates);
    let (states, timer) = (Arc::new(Mutex::new(states)), runtime.handle().clone());
    let cells = Cells::new(sandbox, rates, Arc::clone(&link), states, timer);
    let payer = AccountId::parse(&start.payer)?;
    let worker = Arc::new(Worker {
        cells: Arc::new(cells),
        purses: Purses::new(Arc::clone(&link), rates),
        link,
        serves: (start.serves_uid, payer),
    });
    let threads = thread::available_parallelism().map_or(2, usize::from);
    let loops = Loops::start(threads, &worker, runtime.handle())?;
    let reporter = Reporter {
        worker: Arc::clone(&worker),
        load: loops.load(),
        is_foreign: !start.listens,
        _runtime: runtime,
    };
    thread::Builder::new().name("report".into()).spawn(move || reporter.run())?;
    Ok((worker, loops))
}

/// The payer as guests see it: the owner's account, or one derived from another user's id.
pub(crate) fn account_of(uid: u32, owner: (u32, AccountId)) -> AccountId {
    if uid == owner.0 {
        return owner.1;
    }
    let mut hasher = blake3::Hasher::new_derive_key("cell/account/v1/uid");
    hasher.update(&uid.to_le_bytes());
    AccountId::from_bytes(*hasher.finalize().as_bytes())
}

fn drain(worker: &Worker) -> anyhow::Result<()> {
    let until = Instant::now() + DRAIN_TIME_MAX;
    while worker.purses.are_busy() && Instant::now() < until {
        thread::sleep(Duration::from_millis(5));
    }
    worker.purses.report(false)?;
    Ok(())
}

fn handle(
    worker: &Arc<Worker>,
    loops: &Loops,
    message: ToWorker,
    fds: Vec<OwnedFd>,
) -> anyhow::Result<()> {
    let mut fds = fds.into_iter();
    match message {
        ToWorker::Load(load) => {
            let (cell, generation) = (load.cell.clone(), load.generation);
            let loaded = worker.cells.load(&load).and_then(|(entry, is_new)| {
                match fds.next() {
                    // A cell that is served already has its socket.
                    Some(listener) if is_new => Ok(loops.listen(entry, listener)?),
                    _ => Ok(()),
                }
            });
            let error = loaded.err().map(|error| format!("{error:#}"));
            worker.link.send(&FromWorker::Loaded { cell, generation, error }, &[])?;
        }
        ToWorker::Artefact { cell, generation, error } => {
            let reason = || error.unwrap_or_else(|| "the artefact did not come".into());
            worker.cells.artefact(&cell, generation, fds.next().ok_or_else(reason));
        }
        ToWorker::Drop { cell } => {
            worker.cells.remove(&cell);
            loops.unlisten(&cell);
        }
        ToWorker::Log { cell } => {
            if let Some(file) = fds.next() {
                worker.cells.open_log(&cell, file);
            }
        }
        ToWorker::Connection { cell } => {
            let entry = CellName::parse(&cell).ok().and_then(|name| worker.cells.entry(&name));
            if let (Some(entry), Some(connection)) = (entry, fds.next()) {
                loops.serve(entry, connection);
            }
        }
        ToWorker::LoadElsewhere(load) => {
            let (cell, generation) = (load.cell.clone(), load.generation);
            let error = worker.cells.load_elsewhere(&load).err().map(|error| format!("{error:#}"));
            worker.link.send(&FromWorker::Loaded { cell, generation, error }, &[])?;
        }
        ToWorker::Reached(reached) => worker.cells.reached(&reached, fds.next()),
        ToWorker::Granted { uid, amount } => worker.purses.grant(uid, amount),
        ToWorker::Start(_) | ToWorker::Shutdown => {
            bail!("the nucleus sent a message out of turn")
        }
    }
    Ok(())
}

/// The process is about to end, because nothing may run that cannot be billed. It ends here and now,
/// so that callers see a connection that closed and not an answer that is wrong a moment later.
fn nucleus_is_gone() -> ! {
    std::process::abort()
}

/// A thread of the worker that panics takes the process with it: the nucleus starts another, while
/// a worker that lacks a thread would leave callers waiting.
pub(super) struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}

/// Reports what was burned and how cells fare, and stops idle instances.
struct Reporter {
    worker: Arc<Worker>,
    load: Arc<event_loop::Load>,
    is_foreign: bool,
    // Keeps time for guests for as long as anything runs.
    _runtime: tokio::runtime::Runtime,
}

impl Reporter {
    fn run(self) {
        let _whole = AbortOnPanic;
        let mut idle = 0_u32;
        for round in 1_u64.. {
            thread::sleep(REPORT_EVERY);
            // The owner has its programs and cells; another user of this process is its connections.
            let has_callers = self.load.connections.load(Relaxed) > 0;
            let mut sent = self.worker.purses.report(has_callers || !self.is_foreign);
            // That nobody is left is told at once: somebody else may wait for this place.
            if round.is_multiple_of(12) || !has_callers && idle == 0 {
                sent = sent.and_then(|()| self.worker.cells.report(&self.load));
                self.worker.cells.stop_idle();
            }
            idle = if has_callers { 0 } else { idle + 1 };
            if self.is_foreign && idle.is_multiple_of(REPORTS_BEFORE_IDLE) && idle > 0 {
                sent = sent.and_then(|()| self.worker.link.send(&FromWorker::Idle, &[]));
            }
            if let Err(error) = sent {
                tracing::error!(%error, "report usage");
                nucleus_is_gone();
            }
        }
    }
}
