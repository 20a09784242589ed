//! The cells this worker serves, by name.
//!
//! A cell that nobody calls is little more than its name: its code is asked for when it is first
//! called, and let go when it has been idle.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use cell_abi::{CellName, Status};
use cell_host::{Callee, LogLevel, Resolving, Sandbox, Services, Share};
use tokio::runtime::Handle;

use super::elsewhere::{Elsewhere, Remote};
use super::event_loop::Load;
use super::log::Log;
use super::rates::Rates;
use super::serving::Serving;
use super::state::{RemoteState, States};
use super::times::Times;
use crate::link::{Cause, CellStats, FromWorker, Link, LoadCell, LoadElsewhere, Reached, Totals};

/// Characters of a cell's last error that `cell ps` shows.
pub(super) const LAST_ERROR_CHARS_MAX: usize = 150;
/// Cells per message of statistics, so that it fits a packet of the link.
const ROWS_PER_REPORT: usize = 70;

/// Cells that lose their idle instances when another one needs a slot or memory.
const CELLS_STOPPED_AT_ONCE: usize = 32;

/// How long a cell must not have been called to lose its idle instances to another cell's first one,
/// and to one more of a cell that has some.
const UNUSED_MIN: Duration = Duration::from_millis(100);
const UNUSED_LONG: Duration = Duration::from_secs(10);

/// The table that sockets and calls between cells look into.
#[derive(Debug)]
pub(super) struct Cells {
    sandbox: Arc<Sandbox>,
    /// What calls pay besides fuel.
    rates: cell_host::Rates,
    link: Arc<Link>,
    states: States,
    runtime: Handle,
    entries: RwLock<HashMap<CellName, Arc<Entry>>>,
    /// Code whose artefact is on its way, by cell and generation.
    asked: Mutex<HashMap<(String, u64), Asked>>,
    /// Cells whose code is loaded, or that have something to report: all others are asleep.
    awake: Mutex<HashMap<CellName, Arc<Entry>>>,
    /// What was last reported of all cells together.
    totals: Mutex<Totals>,
}

/// What answers the calls of a name.
#[derive(Debug, Clone)]
pub(super) enum Current {
    Code(Arc<Serving>),
    /// Other machines do.
    Elsewhere(Arc<Elsewhere>),
}

impl Current {
    fn is_asleep(&self) -> bool {
        match self {
            Self::Code(serving) => serving.is_asleep(),
            Self::Elsewhere(elsewhere) => elsewhere.is_asleep(),
        }
    }
}

/// Code that waits for its artefact.
#[derive(Debug)]
struct Asked {
    entry: Arc<Entry>,
    serving: Arc<Serving>,
}

/// One name: the code that serves it now, and what is counted for it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: CellName,
    current: RwLock<Option<Current>>,
    log: Mutex<Log>,
    state: Arc<RemoteState>,
    /// Old and new code share one state while old calls end.
    state_turn: Arc<tokio::sync::Mutex<()>>,
    calls: AtomicU64,
    failed: AtomicU64,
    fuel: AtomicU64,
    crashed: AtomicU64,
    failures: Mutex<BTreeMap<Cause, u64>>,
    times: Times,
    rates: Rates,
    last_error: Mutex<Option<String>>,
    reported: Mutex<CellStats>,
}

impl Cells {
    pub(super) fn new(
        sandbox: Arc<Sandbox>,
        rates: cell_host::Rates,
        link: Arc<Link>,
        states: States,
        runtime: Handle,
    ) -> Self {
        Self {
            sandbox,
            rates,
            link,
            states,
            runtime,
            entries: RwLock::default(),
            asked: Mutex::default(),
            awake: Mutex::default(),
            totals: Mutex::default(),
        }
    }

    /// Serves a cell with new code; calls in flight end on the old code. Also says whether the name
    /// is new.
    pub(super) fn load(&self, load: &LoadCell) -> anyhow::Result<(Arc<Entry>, bool)> {
        let name = CellName::parse(&load.cell)?;
        let serving = Serving::new(name.clone(), load)?;
        let is_new = self.entry(&name).is_none();
        let entry = self.entry_of(name);
        entry.serve(Some(Current::Code(Arc::new(serving))));
        Ok((entry, is_new))
    }

    /// From now on other machines answer the calls of a name.
    pub(super) fn load_elsewhere(&self, load: &LoadElsewhere) -> anyhow::Result<()> {
        let name = CellName::parse(&load.cell)?;
        let (link, runtime) = (Arc::clone(&self.link), self.runtime.clone());
        let elsewhere = Elsewhere::new(name.clone(), load, link, runtime);
        let entry = self.entry_of(name);
        entry.serve(Some(Current::Elsewhere(Arc::new(elsewhere))));
        Ok(())
    }

    /// Takes the socket of a cell on another machine, or why there is none.
    pub(super) fn reached(&self, reached: &Reached, socket: Option<OwnedFd>) {
        let entry = CellName::parse(&reached.cell).ok().and_then(|name| self.entry(&name));
        if let Some(Current::Elsewhere(elsewhere)) = entry.and_then(|entry| entry.current()) {
            let why = || reached.error.clone().unwrap_or_else(|| "no socket came".into());
            elsewhere.reached(reached.generation, reached.machine, socket.ok_or_else(why));
        }
    }

    /// The entry of a name, which may be new.
    fn entry_of(&self, name: CellName) -> Arc<Entry> {
        let mut entries = write(&self.entries);
        let make = || Arc::new(Entry::new(name.clone(), Arc::clone(&self.states)));
        Arc::clone(entries.entry(name.clone()).or_insert_with(make))
    }

    /// Takes the artefact of code that is called, or why there is none.
    pub(super) fn artefact(
        self: &Arc<Self>,
        cell: &str,
        generation: u64,
        artefact: Result<OwnedFd, String>,
    ) {
        let asked = lock(&self.asked).remove(&(cell.to_owned(), generation));
        let Some(Asked { entry, serving }) = asked else { return };
        let loaded = artefact.and_then(|artefact| {
            let mut options = serving.options();
            options.rates = self.rates;
            options.state = Arc::clone(&entry.state) as _;
            options.state_turn = Arc::clone(&entry.state_turn);
            let services = Arc::clone(self) as Arc<dyn Services>;
            let made = serving.make(&self.sandbox, options, services, artefact);
            made.map_err(|error| format!("{error:#}"))
        });
        if let Err(error) = &loaded {
            entry.last_error(error);
        }
        serving.take(loaded.ok());
        self.wake(&entry);
    }

    /// Stops serving a name; its calls in flight end in peace.
    pub(super) fn remove(&self, name: &str) {
        let Ok(name) = CellName::parse(name) else { return };
        if let Some(entry) = write(&self.entries).remove(&name) {
            entry.serve(None);
        }
        lock(&self.awake).remove(&name);
    }

    pub(super) fn open_log(&self, name: &str, file: OwnedFd) {
        if let Some(entry) = CellName::parse(name).ok().and_then(|name| self.entry(&name)) {
            lock(&entry.log).open(file);
        }
    }

    /// Destroys instances that nobody called for as long as their cell says, and lets the code of
    /// cells without instances go.
    pub(super) fn stop_idle(&self) {
        let awake: Vec<_> = lock(&self.awake).values().cloned().collect();
        for entry in awake {
            match entry.current() {
                Some(Current::Code(serving)) => serving.stop_idle(),
                Some(Current::Elsewhere(elsewhere)) => elsewhere.stop_idle(),
                None => {}
            }
        }
    }

    /// Sends the counters of every cell that changed, and forgets who sleeps.
    pub(super) fn report(&self, load: &Load) -> io::Result<()> {
        let mut changed = Vec::new();
        lock(&self.awake).retain(|_, entry| {
            let asleep = entry.current().is_none_or(|current| current.is_asleep());
            let stats = entry.stats();
            let mut reported = lock(&entry.reported);
            if *reported != stats {
                reported.clone_from(&stats);
                changed.push(stats);
                return true;
            }
            if asleep {
                entry.rates.forget();
            }
            !asleep
        });
        let totals = Totals {
            connections: u64::try_from(load.connections.load(Relaxed)).unwrap_or(u64::MAX),
            memory_bytes: self.sandbox.memory_bytes(),
            allocations: load.allocations.load(Relaxed),
        };
        if std::mem::replace(&mut *lock(&self.totals), totals) != totals {
            self.link.send(&FromWorker::Totals(totals), &[])?;
        }
        changed
            .chunks(ROWS_PER_REPORT)
            .try_for_each(|rows| self.link.send(&FromWorker::Stats { rows: rows.to_vec() }, &[]))
    }

    /// Counts calls that one cell made to others.
    pub(super) fn count_callees(&self, callees: &[Share]) {
        for share in callees {
            if let Some(entry) = self.entry(share.cell.name()) {
                entry.calls.fetch_add(share.calls, Relaxed);
                entry.fuel.fetch_add(share.fuel.0, Relaxed);
            }
        }
    }

    pub(super) fn entry(&self, name: &CellName) -> Option<Arc<Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// From now on the cell is looked at in every round.
    pub(super) fn wake(&self, entry: &Arc<Entry>) {
        lock(&self.awake).entry(entry.name.clone()).or_insert_with(|| Arc::clone(entry));
    }

    pub(super) fn ask(&self, serving: &Arc<Serving>) -> Result<(), (Status, Vec<u8>)> {
        let entry = self.entry(&serving.name).ok_or((Status::Gone, Vec::new()))?;
        let cell = serving.name.as_str().to_owned();
        let generation = serving.generation;
        let asked = Asked { entry, serving: Arc::clone(serving) };
        lock(&self.asked).insert((cell.clone(), generation), asked);
        let hash = serving.hash.to_string();
        if self.link.send(&FromWorker::NeedArtefact { cell, generation, hash }, &[]).is_err() {
            super::nucleus_is_gone();
        }
        Ok(())
    }
}

impl Services for Cells {
    fn resolve<'a>(&'a self, name: &'a CellName) -> Resolving<'a> {
        Box::pin(async move {
            let entry = self.entry(name).ok_or(Status::UnknownCell)?;
            match entry.current().ok_or(Status::Gone)? {
                Current::Code(serving) => {
                    serving.cell(self).await.map(Callee::Here).map_err(|(status, _)| status)
                }
                Current::Elsewhere(elsewhere) => {
                    self.wake(&entry);
                    Ok(Callee::Elsewhere(Arc::new(Remote { entry, elsewhere })))
                }
            }
        })
    }

    /// Of the cells with idle instances, those that were called longest ago lose them, some at once: it
    /// takes a look at every cell that is awake.
    fn make_room(&self, first: bool) -> bool {
        let (now, unused_min) = (Instant::now(), if first { UNUSED_MIN } else { UNUSED_LONG });
        let mut idle: Vec<_> = lock(&self.awake)
            .values()
            .filter_map(|entry| Some((entry.times.last(), entry.serving()?.loaded()?)))
            .filter(|(called, cell)| {
                // One that was called by other cells only was never called, as it seems from here.
                let unused = called.map(|called| now.saturating_duration_since(called));
                unused.is_none_or(|unused| unused >= unused_min) && cell.has_idle()
            })
            .collect();
        idle.sort_by_key(|(called, _)| *called);
        let victims = idle.iter().take(CELLS_STOPPED_AT_ONCE);
        victims.map(|(_, cell)| cell.stop_idle(Duration::ZERO)).sum::<usize>() > 0
    }

    fn log(&self, cell: &CellName, level: LogLevel, line: &[u8]) {
        let Some(entry) = self.entry(cell) else { return };
        let mut log = lock(&entry.log);
        log.write(level, line);
        if log.needs_file() {
            // A nucleus that is gone takes this process with it.
            let _ = self.link.send(&FromWorker::NeedLog { cell: cell.as_str().to_owned() }, &[]);
        }
    }
}

impl Entry {
    fn new(name: CellName, states: States) -> Self {
        Self {
            current: RwLock::default(),
            log: Mutex::new(Log::new()),
            state: Arc::new(RemoteState::new(name.as_str().to_owned(), states)),
            state_turn: Arc::default(),
            calls: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            fuel: AtomicU64::new(0),
            crashed: AtomicU64::new(0),
            failures: Mutex::default(),
            times: Times::default(),
            rates: Rates::default(),
            last_error: Mutex::default(),
            reported: Mutex::new(CellStats {
                cell: name.as_str().to_owned(),
                ..CellStats::default()
            }),
            name,
        }
    }

    /// What answers now; `None` once the cell is gone.
    fn current(&self) -> Option<Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The code that serves now; `None` once the cell is gone, or while other machines run it.
    pub(super) fn serving(&self) -> Option<Arc<Serving>> {
        match &*self.current.read().unwrap_or_else(PoisonError::into_inner) {
            Some(Current::Code(serving)) => Some(Arc::clone(serving)),
            _ => None,
        }
    }

    /// Counts a call that ended.
    pub(super) fn count(&self, status: Status, fuel: u64, message: &[u8]) {
        self.calls.fetch_add(1, Relaxed);
        self.fuel.fetch_add(fuel, Relaxed);
        if let Some(cause) = Cause::of(status) {
            self.failed.fetch_add(1, Relaxed);
            *lock(&self.failures).entry(cause).or_default() += 1;
            let crashed = matches!(
                status,
                Status::Trapped | Status::Exited | Status::OverLimit | Status::BadReply
            );
            self.crashed.fetch_add(u64::from(crashed), Relaxed);
            let colon = if message.is_empty() { "" } else { ": " };
            let text = format!("{}{colon}{}", status.describe(), String::from_utf8_lossy(message));
            self.last_error(&text);
        }
    }

    /// Counts how long a call took that ran.
    pub(super) fn time(&self, started: Instant, ended: Instant) {
        self.times.record(started, ended);
    }

    /// Notes a call that another machine did not answer.
    pub(super) fn failed_elsewhere(&self, status: Status, message: &[u8]) {
        self.failed.fetch_add(1, Relaxed);
        if let Some(cause) = Cause::of(status) {
            *lock(&self.failures).entry(cause).or_default() += 1;
        }
        self.last_error(&format!("{}: {}", status.describe(), String::from_utf8_lossy(message)));
    }

    fn last_error(&self, text: &str) {
        *lock(&self.last_error) = Some(shortened(text));
    }

    fn serve(&self, current: Option<Current>) {
        match std::mem::replace(&mut *write(&self.current), current) {
            Some(Current::Code(old)) => old.retire(),
            Some(Current::Elsewhere(old)) => old.retire(),
            None => {}
        }
    }

    fn stats(&self) -> CellStats {
        let cell = self.serving().and_then(|serving| serving.loaded());
        let is_away = matches!(self.current(), Some(Current::Elsewhere(_)));
        let (p50_us, p99_us) = self.times.percentiles(cell.is_some() || is_away);
        let (timed, timed_us) = self.times.sums();
        let (calls, fuel) = (self.calls.load(Relaxed), self.fuel.load(Relaxed));
        let (calls_per_s, fuel_per_s) = self.rates.look(calls, fuel);
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        CellStats {
            cell: self.name.as_str().to_owned(),
            calls,
            failed: self.failed.load(Relaxed),
            fuel,
            instances: cell.as_ref().map_or(0, |cell| count(cell.instances())),
            waiting: cell.as_ref().map_or(0, |cell| count(cell.waiting())),
            crashed: self.crashed.load(Relaxed),
            failures: lock(&self.failures).clone(),
            calls_per_s,
            fuel_per_s,
            timed,
            timed_us,
            memory_bytes: cell.as_ref().map_or(0, |cell| cell.memory_bytes()),
            p50_us,
            p99_us,
            last_error: lock(&self.last_error).clone(),
            resting: cell.and_then(|cell| cell.resting()).map(|why| shortened(&why)),
        }
    }
}

/// Short and plain, so that the rows of a report fit their packet.
fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(LAST_ERROR_CHARS_MAX).collect()
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::PACKET_BYTES_MAX;

    #[test]
    fn the_longest_rows_fit_a_packet() {
        let words = "\u{10ffff}".repeat(1000);
        let most = u64::MAX;
        let row = CellStats {
            cell: "c".repeat(cell_abi::limits::NAME_BYTES_MAX),
            calls: most,
            failed: most,
            fuel: most,
            instances: most,
            waiting: most,
            crashed: most,
            failures: Cause::all().map(|cause| (cause, most)).collect(),
            memory_bytes: most,
            calls_per_s: 1.0e300 / 3.0,
            fuel_per_s: 1.0e300 / 3.0,
            p50_us: most,
            p99_us: most,
            timed: most,
            timed_us: most,
            last_error: Some(shortened(&words)),
            resting: Some(shortened(&words)),
        };
        let report = FromWorker::Stats { rows: vec![row; ROWS_PER_REPORT] };
        let bytes = serde_json::to_vec(&report).unwrap().len();
        assert!(bytes <= PACKET_BYTES_MAX, "{bytes}");
    }
}
