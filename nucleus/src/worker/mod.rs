//! The process that runs guests and owns the cells' sockets.
//!
//! It has no key, no accounts and no files but those handed to it. What it is told and what it
//! reports goes over the [`Link`] on its standard input; when that closes, the process ends, and
//! with it every guest.

mod call;
mod cells;
mod connection;
mod event_loop;
pub(crate) mod limits;
mod log;
mod purse;
mod state;
mod unsent;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use cell_abi::AccountId;
use cell_host::{Allocation, Sandbox};

use crate::link::{FromWorker, Link, ToWorker};
use cells::Cells;
use event_loop::Loops;
use purse::Purses;

/// Most instances alive at once in a worker; a call beyond it answers `Busy`.
///
/// Each reserves 4 GiB of address space, so a thousand fit a 47-bit process many times over.
const INSTANCES_MAX: u32 = 1000;
/// Largest memory of an instance, in bytes: what `memory_mb_max` may go up to.
const MEMORY_BYTES_MAX: usize = 64 << 20;
/// How often usage is reported: the most a crash of the worker can leave unpaid.
const REPORT_EVERY: Duration = Duration::from_millis(40);

/// How long calls in flight may take to end when the nucleus goes down.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);

/// Everything the worker's threads share.
#[derive(Debug)]
pub(crate) struct Worker {
    sandbox: Arc<Sandbox>,
    cells: Arc<Cells>,
    purses: Purses,
    link: Link,
    /// The nucleus' owner, and the account the owner's calls run under.
    owner: (u32, AccountId),
}

/// Runs until the nucleus closes the link.
pub(crate) fn run() -> anyhow::Result<()> {
    // The nucleus may die without a word; nothing of it must stay behind.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let link = Link::from_fd(rustix::stdio::stdin().try_clone_to_owned().context("take the link")?);
    close_standard_input()?;
    let reader = link.try_clone()?;
    let mut buffer = Vec::new();
    let Some((ToWorker::Owner { uid, account }, _)) = reader.receive(&mut buffer)? else {
        bail!("the nucleus did not say who its owner is");
    };
    let pooled =
        Allocation::Pooled { instances_max: INSTANCES_MAX, memory_bytes_max: MEMORY_BYTES_MAX };
    let sandbox = Arc::new(Sandbox::new(pooled)?);
    // WASI's timers need a runtime; its one thread only keeps time.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let worker = Arc::new(Worker {
        sandbox,
        cells: Arc::default(),
        purses: Purses::new(link.try_clone()?),
        link,
        owner: (uid, AccountId::parse(&account)?),
    });
    raise_descriptor_limit();
    let threads = thread::available_parallelism().map_or(2, usize::from);
    let loops = Loops::start(threads, &worker, runtime.handle())?;
    let reporter = Arc::clone(&worker);
    thread::Builder::new().name("report".into()).spawn(move || report(&reporter))?;
    worker.link.send(&FromWorker::Ready, &[])?;
    while let Some((message, fds)) = reader.receive(&mut buffer)? {
        if matches!(message, ToWorker::Shutdown) {
            return drain(&worker);
        }
        handle(&worker, &loops, message, fds)?;
    }
    Ok(())
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
    worker.purses.report()?;
    Ok(())
}

/// Each connection and each cell takes a descriptor; the usual soft limit is 1024.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Where it cannot be raised, the lower limit holds, and accepting says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// The link came in as standard input; guests' and libraries' reads must not find it there.
fn close_standard_input() -> anyhow::Result<()> {
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
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
            let loaded = worker.cells.load(&worker.sandbox, &load, fds.next());
            let error = match loaded {
                // A cell that is served already has its socket.
                Ok((_, false)) => None,
                Ok((entry, true)) => fds
                    .next()
                    .and_then(|listener| loops.listen(entry, listener).err())
                    .map(|e| format!("{e:#}")),
                Err(error) => Some(format!("{error:#}")),
            };
            worker.link.send(&FromWorker::Loaded { cell, generation, error }, &[])?;
        }
        ToWorker::Drop { cell } => {
            worker.cells.remove(&cell);
            loops.unlisten(&cell);
        }
        ToWorker::Log { cell } => {
            if let Some(file) = fds.next() {
                worker.cells.reopen_log(&cell, file);
            }
        }
        ToWorker::Granted { uid, amount } => worker.purses.grant(uid, amount),
        ToWorker::Owner { .. } | ToWorker::Shutdown => {
            bail!("the nucleus sent a message out of turn")
        }
    }
    Ok(())
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
fn report(worker: &Worker) {
    let _whole = AbortOnPanic;
    let mut rounds = 0_u64;
    loop {
        thread::sleep(REPORT_EVERY);
        rounds += 1;
        let mut sent = worker.purses.report();
        if rounds.is_multiple_of(12) {
            sent = sent.and_then(|()| worker.cells.report(&worker.link));
            worker.cells.stop_idle();
        }
        if let Err(error) = sent {
            // The nucleus is gone, or cannot be told: nothing may run that is not billed.
            tracing::error!(%error, "report usage");
            std::process::abort();
        }
    }
}
