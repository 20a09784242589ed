//! The cells this worker serves, by name.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use cell_abi::{CellHash, CellName, Interface, Status};
use cell_host::{Cell, LogLevel, ModuleInfo, Sandbox, Services, Share};

use super::log::Log;
use super::state::FileState;
use crate::link::{CellStats, FromWorker, Link, LoadCell};

/// Characters of a cell's last error that `cell ps` shows.
pub(super) const LAST_ERROR_CHARS_MAX: usize = 150;
/// Cells per message of statistics, so that it fits a packet of the link.
const ROWS_PER_REPORT: usize = 200;

/// The table that sockets and calls between cells look into.
#[derive(Debug, Default)]
pub(super) struct Cells {
    entries: RwLock<HashMap<CellName, Arc<Entry>>>,
    reported: Mutex<HashMap<CellName, CellStats>>,
}

/// One name: the code that serves it now, and what is counted for it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: CellName,
    current: RwLock<Option<Arc<Serving>>>,
    log: Mutex<Log>,
    pub(super) calls: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) fuel: AtomicU64,
    last_error: Mutex<Option<String>>,
}

/// One generation of a cell's code and settings.
#[derive(Debug)]
pub(super) struct Serving {
    pub(super) cell: Arc<Cell>,
    pub(super) call_time_max: Duration,
    idle: Duration,
}

impl Cells {
    /// Serves a cell with new code; calls in flight end on the old code. Also says whether the name is new.
    pub(super) fn load(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        load: &LoadCell,
        log: Option<OwnedFd>,
    ) -> anyhow::Result<(Arc<Entry>, bool)> {
        let name = CellName::parse(&load.cell)?;
        let hash = CellHash::parse(&load.hash)?;
        let facts = &load.facts;
        let interface = Interface::parse(facts.interface.as_bytes())?;
        let info =
            ModuleInfo::of_cell(interface, facts.has_json, facts.memory_pages, facts.data_bytes);
        let module = sandbox.load(&load.artefact, info, hash)?;
        let mut options = load.settings.options();
        // Old and new code share one state while old calls end.
        if let Some(old) = self.entry(&name).and_then(|entry| entry.serving()) {
            options.state = Arc::clone(&old.cell.options().state);
            options.state_turn = Arc::clone(&old.cell.options().state_turn);
        } else {
            options.state = Arc::new(FileState::new(&load.data));
        }
        let services = Arc::clone(self) as Arc<dyn Services>;
        let cell = Cell::new(sandbox, name.clone(), module, options, services)?;
        let serving = Arc::new(Serving {
            cell,
            call_time_max: Duration::from_millis(load.settings.call_ms_max),
            idle: Duration::from_secs(load.settings.idle_s),
        });
        let log = log.context("a cell came without its log")?;
        let mut entries = write(&self.entries);
        let known = entries.get(&name).cloned();
        let is_new = known.is_none();
        let entry = match known {
            Some(entry) => {
                lock(&entry.log).reopen(log);
                entry
            }
            None => Arc::clone(
                entries.entry(name.clone()).or_insert_with(|| Arc::new(Entry::new(name, log))),
            ),
        };
        drop(entries);
        entry.serve(Some(serving));
        Ok((entry, is_new))
    }

    /// Stops serving a name; its calls in flight end in peace.
    pub(super) fn remove(&self, name: &str) {
        let Ok(name) = CellName::parse(name) else { return };
        if let Some(entry) = write(&self.entries).remove(&name) {
            entry.serve(None);
        }
        lock(&self.reported).remove(&name);
    }

    pub(super) fn reopen_log(&self, name: &str, file: OwnedFd) {
        if let Some(entry) = CellName::parse(name).ok().and_then(|name| self.entry(&name)) {
            lock(&entry.log).reopen(file);
        }
    }

    /// Destroys instances that nobody called for as long as their cell says.
    pub(super) fn stop_idle(&self) {
        for entry in self.all() {
            if let Some(serving) = entry.serving() {
                serving.cell.stop_idle(serving.idle);
            }
        }
    }

    /// Sends the counters of every cell that changed.
    pub(super) fn report(&self, link: &Link) -> io::Result<()> {
        let mut changed = Vec::new();
        let mut reported = lock(&self.reported);
        for entry in self.all() {
            let stats = entry.stats();
            if reported.get(&entry.name) != Some(&stats) {
                reported.insert(entry.name.clone(), stats.clone());
                changed.push(stats);
            }
        }
        drop(reported);
        changed
            .chunks(ROWS_PER_REPORT)
            .try_for_each(|rows| link.send(&FromWorker::Stats { rows: rows.to_vec() }, &[]))
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

    fn entry(&self, name: &CellName) -> Option<Arc<Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn all(&self) -> Vec<Arc<Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

impl Services for Cells {
    fn resolve(&self, name: &CellName) -> Result<Arc<Cell>, Status> {
        let entry = self.entry(name).ok_or(Status::UnknownCell)?;
        let serving = entry.serving().ok_or(Status::Gone)?;
        Ok(Arc::clone(&serving.cell))
    }

    fn log(&self, cell: &CellName, level: LogLevel, line: &[u8]) {
        if let Some(entry) = self.entry(cell) {
            lock(&entry.log).write(level, line);
        }
    }
}

impl Entry {
    fn new(name: CellName, log: OwnedFd) -> Self {
        Self {
            name,
            current: RwLock::default(),
            log: Mutex::new(Log::new(log)),
            calls: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            fuel: AtomicU64::new(0),
            last_error: Mutex::default(),
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
        if !matches!(status, Status::Ok | Status::Rejected) {
            self.failed.fetch_add(1, Relaxed);
            let colon = if message.is_empty() { "" } else { ": " };
            let text = format!("{}{colon}{}", status.describe(), String::from_utf8_lossy(message));
            // Short and plain, so that the rows of a report fit their packet.
            let text =
                text.chars().filter(|c| !c.is_control()).take(LAST_ERROR_CHARS_MAX).collect();
            *lock(&self.last_error) = Some(text);
        }
    }

    fn serve(&self, serving: Option<Arc<Serving>>) {
        let old = std::mem::replace(&mut *write(&self.current), serving);
        if let Some(old) = old {
            old.cell.retire();
        }
    }

    fn stats(&self) -> CellStats {
        let serving = self.serving();
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        CellStats {
            cell: self.name.as_str().to_owned(),
            calls: self.calls.load(Relaxed),
            failed: self.failed.load(Relaxed),
            fuel: self.fuel.load(Relaxed),
            instances: serving.as_ref().map_or(0, |s| count(s.cell.instances())),
            waiting: serving.as_ref().map_or(0, |s| count(s.cell.waiting())),
            last_error: lock(&self.last_error).clone(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
