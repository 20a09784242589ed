//! The lifecycle of cells: a directory that appears is served, one that changes is swapped, one
//! that vanishes is gone.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, DirBuilder, OpenOptions};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use cell_abi::CellName;
use rustix::fs::OFlags;

use super::control::{Answer, CellRow};
use super::prepare::{Prepared, What, Work};
use super::scan::{Scan, Seen};
use super::state::States;
use super::workers::Workers;
use crate::home::Home;
use crate::link::{CellStats, LoadCell, LoadElsewhere, ModuleFacts, PEER_UID_MIN, ToWorker};

/// A log larger than this is moved aside; one older log is kept.
pub(super) const LOG_BYTES_MAX: u64 = 8 << 20;
const LOGS_LOOKED_AT_EVERY: Duration = Duration::from_secs(5);

/// Every directory in `cells/`, and what became of it.
pub(super) struct Cells {
    home: Home,
    preparer: Sender<Work>,
    states: States,
    known: HashMap<String, Known>,
    generation: u64,
    /// `cells/` was looked at.
    scanned: bool,
    logs_looked_at: Instant,
}

struct Known {
    seen: Seen,
    state: State,
    /// What is served, or is about to be.
    code: Option<Code>,
    listener: Option<OwnedFd>,
    /// The worker that listens serves `code`.
    served: bool,
    /// A worker asked for its log.
    logs: bool,
    stats: Stats,
}

/// What was counted by workers that are gone, and by each that runs.
#[derive(Default)]
struct Stats {
    past: CellStats,
    running: HashMap<u64, CellStats>,
}

#[derive(Clone)]
struct Code {
    what: What,
    generation: u64,
}

impl Code {
    /// The hash of its module, if it has one.
    fn hash(&self) -> Option<String> {
        match &self.what {
            What::Module(compiled, _) => Some(compiled.hash.to_string()),
            What::Elsewhere { .. } => None,
        }
    }

    const fn is_elsewhere(&self) -> bool {
        matches!(self.what, What::Elsewhere { .. })
    }

    /// Whether other machines may call it.
    const fn is_for_peers(&self) -> bool {
        matches!(&self.what, What::Module(_, settings) if settings.peers)
    }

    /// Whether both run the same in the same way.
    fn is_same(&self, what: &What) -> bool {
        match (&self.what, what) {
            (What::Module(a, with), What::Module(b, like)) => a.hash == b.hash && with == like,
            (
                What::Elsewhere { machines: a, for_peers: with },
                What::Elsewhere { machines: b, for_peers: like },
            ) => a == b && with == like,
            _ => false,
        }
    }
}

enum State {
    /// Being read and compiled.
    Preparing,
    /// Handed to the worker, or waiting for one.
    Loading,
    Live,
    Failed(String),
}

impl Cells {
    pub(super) fn new(home: Home, preparer: Sender<Work>, states: States) -> Self {
        Self {
            home,
            preparer,
            states,
            known: HashMap::new(),
            generation: 0,
            scanned: false,
            logs_looked_at: Instant::now(),
        }
    }

    /// Takes what a look at `cells/` found.
    pub(super) fn scanned(&mut self, scan: Scan, workers: &mut Workers) {
        self.scanned = true;
        for name in scan.gone {
            self.remove(&name, workers);
        }
        for (name, seen) in scan.changed {
            self.prepare(name, seen);
        }
        for name in scan.without_socket {
            // A socket that vanished means that the directory was replaced, or somebody tidied up:
            // the cell starts over, under a new socket.
            let had_one = self.known.get(&name).is_some_and(|known| known.listener.is_some());
            if had_one && !self.home.cell_socket(&name).exists() {
                let seen = self.known.get(&name).map(|known| known.seen.clone());
                self.remove(&name, workers);
                self.prepare(name, seen.unwrap_or_default());
            }
        }
    }

    fn prepare(&mut self, name: String, seen: Seen) {
        let known = self.known.entry(name.clone()).or_insert_with(|| Known::new(&name));
        known.seen = seen;
        known.state = State::Preparing;
        // The preparer lives as long as this channel.
        let _ = self.preparer.send(Work::Prepare { cell: name });
    }

    fn remove(&mut self, name: &str, workers: &mut Workers) {
        if self.known.remove(name).is_some() {
            tracing::info!(cell = name, "gone");
            self.states.remove(name);
            workers.send_all(&ToWorker::Drop { cell: name.to_owned() });
        }
    }

    /// Takes the result of reading and compiling a directory.
    pub(super) fn prepared(&mut self, prepared: Prepared, workers: &mut Workers) {
        let Prepared { name, seen, result } = prepared;
        let Some(known) = self.known.get_mut(&name) else { return };
        if known.seen != seen {
            // It changed meanwhile; a later result is on its way.
            return;
        }
        match result {
            Err(error) => {
                tracing::warn!(cell = name, error = %format!("{error:#}"), "not deployed");
                known.state = State::Failed(format!("{error:#}"));
            }
            Ok(what) => {
                self.generation += 1;
                if known.served && known.code.as_ref().is_some_and(|code| code.is_same(&what)) {
                    known.state = State::Live;
                    return;
                }
                let code = Code { what, generation: self.generation };
                if known.code.as_ref().is_some_and(|old| old.is_elsewhere() != code.is_elsewhere())
                {
                    // The one has a socket, and the other has none.
                    known.listener = None;
                    let _ = fs::remove_file(self.home.cell_socket(&name));
                    workers.send_all(&ToWorker::Drop { cell: name.clone() });
                }
                known.served = false;
                known.state = State::Loading;
                known.code = Some(code);
                for (worker, listens) in workers.ready_ones() {
                    self.load(&name, worker, listens, workers);
                }
            }
        }
    }

    /// Hands every cell that has code to a worker that has just started.
    pub(super) fn load_all(&mut self, worker: u64, listens: bool, workers: &mut Workers) {
        let with_code = self.known.iter().filter(|(_, known)| known.code.is_some());
        let names: Vec<String> = with_code.map(|(name, _)| name.clone()).collect();
        for name in names {
            self.load(&name, worker, listens, workers);
        }
    }

    fn load(&mut self, name: &str, worker: u64, listens: bool, workers: &mut Workers) {
        let Some(known) = self.known.get_mut(name) else { return };
        let is_peers = workers.user(worker).is_some_and(|uid| uid >= PEER_UID_MIN);
        let whose = (listens, is_peers);
        let handed = known.hand_over(&self.home, name, whose, &self.states, |message, fds| {
            workers.send(worker, message, fds)
        });
        if let Err(error) = handed {
            known.state = State::Failed(format!("{error:#}"));
        }
    }

    /// Takes the word of the worker that listens on a cell it was handed.
    pub(super) fn loaded(&mut self, name: &str, generation: u64, error: Option<String>) {
        let Some(known) = self.known.get_mut(name) else { return };
        if known.code.as_ref().is_none_or(|code| code.generation != generation) {
            return;
        }
        known.served = error.is_none();
        if matches!(known.state, State::Preparing) {
            // The directory changed meanwhile; what becomes of that is what counts.
            return;
        }
        known.state = match error {
            None => State::Live,
            Some(error) => State::Failed(error),
        };
        tracing::info!(cell = name, live = matches!(known.state, State::Live), "loaded");
    }

    /// Gives a worker the file that a cell logs to.
    pub(super) fn open_log(&mut self, name: &str, worker: u64, workers: &mut Workers) {
        let Some(known) = self.known.get_mut(name) else { return };
        known.logs = true;
        match open_log(&self.home.cell_log(name)) {
            Ok(file) => {
                workers.send(worker, &ToWorker::Log { cell: name.to_owned() }, &[file.as_fd()])
            }
            Err(error) => tracing::warn!(cell = name, error = %format!("{error:#}"), "open a log"),
        }
    }

    /// Makes the code that a worker wants to run, which was not at hand.
    pub(super) fn make_artefact(&self, worker: u64, cell: String, generation: u64, hash: String) {
        // The preparer lives as long as this channel.
        let _ = self.preparer.send(Work::Artefact { worker, cell, generation, hash });
    }

    pub(super) fn worker_gone(&mut self, worker: u64, listened: bool) {
        for known in self.known.values_mut() {
            if listened {
                known.served = false;
                if matches!(known.state, State::Live) {
                    known.state = State::Loading;
                }
            }
            known.stats.worker_gone(worker);
        }
    }

    pub(super) fn stats(&mut self, worker: u64, rows: Vec<CellStats>) {
        for row in rows {
            if let Some(known) = self.known.get_mut(&row.cell) {
                known.stats.running.insert(worker, row.with_sane_rates());
            }
        }
    }

    /// Whether every cell that was found is served, or is known not to be.
    pub(super) fn are_settled(&self) -> bool {
        let settled = |known: &Known| matches!(known.state, State::Live | State::Failed(_));
        self.scanned && self.known.values().all(settled)
    }

    /// Those that other machines may call, when it is known of each.
    pub(super) fn for_peers(&self) -> Option<BTreeSet<CellName>> {
        let is_one = |known: &Known| known.code.as_ref().is_some_and(Code::is_for_peers);
        let named = self.known.iter().filter(|(_, known)| is_one(known));
        self.are_settled()
            .then(|| named.filter_map(|(name, _)| CellName::parse(name).ok()).collect())
    }

    /// How the manifest of a cell that other machines run names this one of them.
    pub(super) fn machine(&self, name: &str, generation: u64, at: u32) -> Option<&str> {
        let code = self.known.get(name)?.code.as_ref().filter(|c| c.generation == generation)?;
        match &code.what {
            What::Elsewhere { machines, .. } => {
                machines.get(usize::try_from(at).ok()?).map(String::as_str)
            }
            What::Module(..) => None,
        }
    }

    /// Whether other machines may call this cell.
    pub(super) fn serves_peers(&self, name: &str) -> Result<(), String> {
        match self.known.get(name).and_then(|known| known.code.as_ref()) {
            None => Err(format!("there is no cell `{name}` here")),
            Some(code) if code.is_elsewhere() => {
                Err(format!("the cell `{name}` is run by other machines"))
            }
            Some(code) if !code.is_for_peers() => {
                Err(format!("the cell `{name}` is not for other machines"))
            }
            Some(_) => Ok(()),
        }
    }

    /// The rows of `cell ps`, by name.
    pub(super) fn rows(&self) -> Vec<CellRow> {
        let mut rows: Vec<_> = self.known.iter().map(|(name, known)| known.row(name)).collect();
        rows.sort_by(|a, b| a.cell.cmp(&b.cell));
        rows
    }

    /// The answer for who waits for a cell; `None` while there is none yet.
    pub(super) fn settled(&self, name: &str, hash: Option<&str>) -> Option<Answer> {
        let Some(known) = self.known.get(name) else {
            return Some(if hash.is_none() {
                Answer::Done
            } else {
                Answer::Failed(format!("`{name}` is gone"))
            });
        };
        let hash = hash?;
        let code = known.code.as_ref().and_then(Code::hash);
        match &known.state {
            State::Live if code.as_deref() == Some(hash) => Some(Answer::Done),
            State::Failed(reason) => Some(Answer::Failed(reason.clone())),
            _ => None,
        }
    }

    /// Moves logs that have grown large aside and hands the workers new files.
    pub(super) fn rotate_logs(&mut self, workers: &mut Workers) {
        if self.logs_looked_at.elapsed() < LOGS_LOOKED_AT_EVERY {
            return;
        }
        self.logs_looked_at = Instant::now();
        let logging: Vec<String> =
            self.known.iter().filter(|(_, k)| k.logs).map(|(name, _)| name.clone()).collect();
        for name in logging {
            let path = self.home.cell_log(&name);
            if fs::metadata(&path).map_or(0, |found| found.len()) < LOG_BYTES_MAX {
                continue;
            }
            match fs::rename(&path, path.with_extension("log.1")) {
                Ok(()) => {
                    for (worker, _) in workers.ready_ones() {
                        self.open_log(&name, worker, workers);
                    }
                }
                Err(error) => tracing::warn!(cell = name, %error, "rotate a log"),
            }
        }
    }

    pub(super) fn remove_sockets(&self) {
        for name in self.known.keys() {
            let _ = fs::remove_file(self.home.cell_socket(name));
        }
    }
}

impl Known {
    fn new(name: &str) -> Self {
        let past = CellStats { cell: name.to_owned(), ..CellStats::default() };
        Self {
            seen: Seen::default(),
            state: State::Preparing,
            code: None,
            listener: None,
            served: false,
            logs: false,
            stats: Stats { past, running: HashMap::new() },
        }
    }

    fn hand_over(
        &mut self,
        home: &Home,
        name: &str,
        (listens, is_peers): (bool, bool),
        states: &States,
        send: impl FnOnce(&ToWorker, &[BorrowedFd<'_>]),
    ) -> anyhow::Result<()> {
        let Some(Code { what, generation }) = &self.code else { return Ok(()) };
        let (cell, generation) = (name.to_owned(), *generation);
        let (compiled, settings) = match what {
            What::Module(compiled, settings) => (compiled, settings),
            // What it costs there is this machine's to pay, so other machines' calls need a word of its owner.
            What::Elsewhere { for_peers: false, .. } if is_peers => {
                send(&ToWorker::Drop { cell }, &[]);
                return Ok(());
            }
            What::Elsewhere { machines, .. } => {
                let machines = machines.clone();
                send(&ToWorker::LoadElsewhere(LoadElsewhere { cell, generation, machines }), &[]);
                return Ok(());
            }
        };
        let directory = home.cell(name);
        for part in ["data", "log"] {
            DirBuilder::new().mode(0o700).recursive(true).create(directory.join(part))?;
        }
        let state_bytes_max = settings.options().state_bytes_max;
        states.add(name, &directory.join("data"), state_bytes_max);
        let load = ToWorker::Load(Box::new(LoadCell {
            cell,
            generation,
            hash: compiled.hash.to_string(),
            facts: ModuleFacts::of(&compiled.info),
            settings: settings.clone(),
        }));
        if !listens {
            send(&load, &[]);
            return Ok(());
        }
        let listener = match &mut self.listener {
            Some(listener) => listener,
            none => none.insert(OwnedFd::from(super::bind(&home.cell_socket(name))?)),
        };
        send(&load, &[listener.as_fd()]);
        Ok(())
    }

    fn row(&self, name: &str) -> CellRow {
        let stats = self.stats.sum();
        let (state, reason) = match (&self.state, &stats.resting) {
            (State::Preparing | State::Loading, _) => ("loading", None),
            (State::Live, Some(reason)) => ("resting", Some(reason.clone())),
            (State::Live, None) if self.code.as_ref().is_some_and(Code::is_elsewhere) => {
                ("away", None)
            }
            (State::Live, None) => ("live", None),
            (State::Failed(reason), _) => ("failed", Some(reason.clone())),
        };
        CellRow {
            cell: name.to_owned(),
            state: state.to_owned(),
            hash: self.code.as_ref().and_then(Code::hash),
            reason,
            stats,
        }
    }
}

impl Stats {
    fn sum(&self) -> CellStats {
        self.running.values().fold(self.past.clone(), |mut sum, row| {
            sum.add_counters(row);
            sum.instances = sum.instances.saturating_add(row.instances);
            sum.waiting = sum.waiting.saturating_add(row.waiting);
            sum.memory_bytes = sum.memory_bytes.saturating_add(row.memory_bytes);
            sum.calls_per_s += row.calls_per_s;
            sum.fuel_per_s += row.fuel_per_s;
            // Of several workers, the slowest one's.
            sum.p50_us = sum.p50_us.max(row.p50_us);
            sum.p99_us = sum.p99_us.max(row.p99_us);
            sum.resting = row.resting.clone().or(sum.resting);
            sum
        })
    }

    /// What it counted stays; what it had is gone.
    fn worker_gone(&mut self, worker: u64) {
        if let Some(row) = self.running.remove(&worker) {
            self.past.add_counters(&row);
        }
    }
}

/// Opens a cell's log. A directory may bring anything under that name: what is no file is refused, and
/// a pipe that nobody reads is not waited for.
fn open_log(path: &Path) -> anyhow::Result<OwnedFd> {
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600).custom_flags(nonblocking);
    let file = options.open(path).with_context(|| format!("open {}", path.display()))?;
    anyhow::ensure!(file.metadata()?.is_file(), "{} is not a file", path.display());
    Ok(file.into())
}
