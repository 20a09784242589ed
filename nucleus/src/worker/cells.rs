//! The cells this worker serves, by name.
//!
//! A cell that nobody calls is little more than its name: its code is asked for when it is first
//! called, and let go when it has been idle.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use cell_abi::{CellHash, CellName, Interface, Status};
use cell_host::{Cell, Lease, LogLevel, ModuleInfo, Resolving, Sandbox, Services, Share};
use tokio::sync::Notify;

use super::call::Route;
use super::event_loop::Load;
use super::log::Log;
use super::rates::Rates;
use super::state::{RemoteState, States};
use super::times::Times;
use crate::link::{Cause, CellStats, FromWorker, Link, LoadCell, Totals};
use crate::manifest::Settings;

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
    entries: RwLock<HashMap<CellName, Arc<Entry>>>,
    /// Code whose artefact is on its way, by cell and generation.
    asked: Mutex<HashMap<(String, u64), Asked>>,
    /// Cells whose code is loaded, or that have something to report: all others are asleep.
    awake: Mutex<HashMap<CellName, Arc<Entry>>>,
    /// What was last reported of all cells together.
    totals: Mutex<Totals>,
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
    current: RwLock<Option<Arc<Serving>>>,
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

/// One generation of a cell's code and settings.
#[derive(Debug)]
pub(super) struct Serving {
    pub(super) interface: Interface,
    pub(super) has_json: bool,
    pub(super) call_time_max: Duration,
    /// Its calls are recorded.
    pub(super) receipts: bool,
    name: CellName,
    hash: CellHash,
    generation: u64,
    memory_pages: u64,
    data_bytes: u64,
    settings: Settings,
    code: Mutex<Code>,
    changed: Notify,
    retired: AtomicBool,
}

#[derive(Debug)]
enum Code {
    Asleep,
    Asked,
    /// Loaded, and since when nothing uses it, if that was seen.
    Loaded(Arc<Cell>, Option<Instant>),
}

impl Cells {
    pub(super) fn new(
        sandbox: Arc<Sandbox>,
        rates: cell_host::Rates,
        link: Arc<Link>,
        states: States,
    ) -> Self {
        Self {
            sandbox,
            rates,
            link,
            states,
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
        let serving = Serving {
            interface: Interface::parse(load.facts.interface.as_bytes())?,
            has_json: load.facts.has_json,
            call_time_max: Duration::from_millis(load.settings.call_ms_max),
            receipts: load.settings.receipts,
            name: name.clone(),
            hash: CellHash::parse(&load.hash)?,
            generation: load.generation,
            memory_pages: load.facts.memory_pages,
            data_bytes: load.facts.data_bytes,
            settings: load.settings.clone(),
            code: Mutex::new(Code::Asleep),
            changed: Notify::new(),
            retired: AtomicBool::new(false),
        };
        let mut entries = write(&self.entries);
        let is_new = !entries.contains_key(&name);
        let entry = Arc::clone(
            entries
                .entry(name.clone())
                .or_insert_with(|| Arc::new(Entry::new(name, Arc::clone(&self.states)))),
        );
        drop(entries);
        entry.serve(Some(Arc::new(serving)));
        Ok((entry, is_new))
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
            self.make(&entry, &serving, artefact).map_err(|error| format!("{error:#}"))
        });
        let mut code = lock(&serving.code);
        *code = match loaded {
            Ok(cell) => {
                if serving.retired.load(Relaxed) {
                    cell.retire();
                }
                Code::Loaded(cell, None)
            }
            Err(error) => {
                entry.last_error(&error);
                // The next call asks again.
                Code::Asleep
            }
        };
        drop(code);
        serving.changed.notify_waiters();
        self.wake(&entry);
    }

    fn make(
        self: &Arc<Self>,
        entry: &Entry,
        serving: &Serving,
        artefact: OwnedFd,
    ) -> anyhow::Result<Arc<Cell>> {
        let info = ModuleInfo::of_cell(
            serving.interface.clone(),
            serving.has_json,
            serving.memory_pages,
            serving.data_bytes,
        );
        let module = self.sandbox.load(artefact.into(), info, serving.hash)?;
        let mut options = serving.settings.options();
        options.rates = self.rates;
        options.state = Arc::clone(&entry.state) as _;
        options.state_turn = Arc::clone(&entry.state_turn);
        let services = Arc::clone(self) as Arc<dyn Services>;
        Ok(Cell::new(&self.sandbox, serving.name.clone(), module, options, services)?)
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
            if let Some(serving) = entry.serving() {
                serving.stop_idle();
            }
        }
    }

    /// Sends the counters of every cell that changed, and forgets who sleeps.
    pub(super) fn report(&self, load: &Load) -> io::Result<()> {
        let mut changed = Vec::new();
        lock(&self.awake).retain(|_, entry| {
            let asleep = entry.serving().is_none_or(|serving| serving.is_asleep());
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

    fn ask(&self, serving: &Arc<Serving>) -> Result<(), (Status, Vec<u8>)> {
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
            let serving = entry.serving().ok_or(Status::Gone)?;
            serving.cell(self).await.map_err(|(status, _)| status)
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

    /// The code that serves now; `None` once the cell is gone.
    pub(super) fn serving(&self) -> Option<Arc<Serving>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
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

    fn last_error(&self, text: &str) {
        *lock(&self.last_error) = Some(shortened(text));
    }

    fn serve(&self, serving: Option<Arc<Serving>>) {
        let old = std::mem::replace(&mut *write(&self.current), serving);
        if let Some(old) = old {
            old.retire();
        }
    }

    fn stats(&self) -> CellStats {
        let cell = self.serving().and_then(|serving| serving.loaded());
        let (p50_us, p99_us) = self.times.percentiles(cell.is_some());
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

impl Serving {
    /// Takes an instance of the code; asks the nucleus for the code if need be.
    pub(super) async fn checkout(
        self: &Arc<Self>,
        route: &Route,
    ) -> Result<Lease, (Status, Vec<u8>)> {
        self.cell(&route.cells).await?.checkout(route.caller).await
    }

    async fn cell(self: &Arc<Self>, cells: &Cells) -> Result<Arc<Cell>, (Status, Vec<u8>)> {
        if let Code::Loaded(cell, unused) = &mut *lock(&self.code) {
            *unused = None;
            return Ok(Arc::clone(cell));
        }
        // Seldom, so that what waiting takes is not a part of every call.
        Box::pin(self.load(cells)).await
    }

    async fn load(self: &Arc<Self>, cells: &Cells) -> Result<Arc<Cell>, (Status, Vec<u8>)> {
        let mut waited = false;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before the look, so that no change is missed in between.
            changed.as_mut().enable();
            {
                let mut code = lock(&self.code);
                match &mut *code {
                    Code::Loaded(cell, unused) => {
                        *unused = None;
                        return Ok(Arc::clone(cell));
                    }
                    Code::Asleep if waited => {
                        let reason = "its code could not be loaded; see `cell ps`";
                        return Err((Status::HostFault, reason.into()));
                    }
                    Code::Asleep => {
                        cells.ask(self)?;
                        *code = Code::Asked;
                    }
                    Code::Asked => {}
                }
            }
            waited = true;
            changed.await;
        }
    }

    fn loaded(&self) -> Option<Arc<Cell>> {
        match &*lock(&self.code) {
            Code::Loaded(cell, _) => Some(Arc::clone(cell)),
            Code::Asleep | Code::Asked => None,
        }
    }

    fn is_asleep(&self) -> bool {
        matches!(&*lock(&self.code), Code::Asleep)
    }

    fn retire(&self) {
        self.retired.store(true, Relaxed);
        if let Some(cell) = self.loaded() {
            cell.retire();
        }
    }

    fn stop_idle(&self) {
        let idle = Duration::from_secs(self.settings.idle_s);
        let mut code = lock(&self.code);
        let Code::Loaded(cell, unused) = &mut *code else { return };
        cell.stop_idle(idle);
        // Nobody else has it, so nobody can begin to use it while the lock is held.
        if Arc::strong_count(cell) > 1 || cell.resting().is_some() {
            *unused = None;
            return;
        }
        let now = Instant::now();
        if now.saturating_duration_since(*unused.get_or_insert(now)) >= idle {
            *code = Code::Asleep;
        }
    }
}

/// Short and plain, so that the rows of a report fit their packet.
fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(LAST_ERROR_CHARS_MAX).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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
