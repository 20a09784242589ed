//! The lifecycle of cells: a directory that appears is served, one that changes is swapped, one
//! that vanishes is gone.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use cell_abi::CellName;
use cell_host::{ArtefactCache, ModuleKind, gate};

use super::Event;
use super::control::{Answer, CellRow};
use super::supervisor::Supervisor;
use crate::compile::{self, Compiled, Payer};
use crate::home::{Home, read_file};
use crate::link::{CellStats, LoadCell, ModuleFacts, ToWorker};
use crate::manifest::{self, Manifest, Settings};

/// A log larger than this is moved aside; one older log is kept.
pub(super) const LOG_BYTES_MAX: u64 = 8 << 20;
const LOGS_LOOKED_AT_EVERY: Duration = Duration::from_secs(5);

/// Every directory in `cells/`, and what became of it.
pub(super) struct Cells {
    home: Home,
    preparer: Sender<String>,
    known: HashMap<String, Known>,
    /// Cells that vanished and whose worker has not been told.
    gone: Vec<String>,
    generation: u64,
    logs_looked_at: Instant,
}

struct Known {
    seen: Seen,
    state: State,
    /// The code and settings that are served, or are about to be.
    code: Option<Code>,
    listener: Option<OwnedFd>,
    /// The worker serves `code`.
    served: bool,
    stats: CellStats,
}

#[derive(Clone)]
struct Code {
    compiled: Compiled,
    settings: Settings,
    generation: u64,
}

enum State {
    /// Being read and compiled.
    Preparing,
    /// Handed to the worker, or waiting for one.
    Loading,
    Live,
    Failed(String),
}

/// What a directory looked like: enough to tell that a file was replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seen(Vec<(u64, u64, i64, i64)>);

/// A cell's directory after it was read, gated and compiled.
pub(crate) struct Prepared {
    name: String,
    seen: Seen,
    result: anyhow::Result<(Compiled, Settings)>,
}

impl Cells {
    pub(super) fn new(home: Home, preparer: Sender<String>) -> Self {
        let logs_looked_at = Instant::now();
        Self {
            home,
            preparer,
            known: HashMap::new(),
            gone: Vec::new(),
            generation: 0,
            logs_looked_at,
        }
    }

    /// Compares `cells/` with what is known.
    pub(super) fn scan(&mut self) {
        let Ok(entries) = fs::read_dir(self.home.cells()) else {
            tracing::error!("cannot read {}", self.home.cells().display());
            return;
        };
        let mut found = HashMap::new();
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') && entry.path().is_dir() {
                found.insert(name, look(&entry.path()));
            }
        }
        // A socket that vanished means that the directory was replaced, or somebody tidied up:
        // the cell starts over, under a new socket.
        let gone = |(name, known): &(&String, &Known)| {
            !found.contains_key(*name)
                || (known.listener.is_some() && !self.home.cell_socket(name).exists())
        };
        let vanished: Vec<String> =
            self.known.iter().filter(gone).map(|(name, _)| name.clone()).collect();
        for name in vanished {
            self.known.remove(&name);
            tracing::info!(cell = name, "gone");
            self.gone.push(name);
        }
        for (name, seen) in found {
            let known = self.known.entry(name.clone()).or_insert_with(|| Known::new(&name));
            if known.seen != seen {
                known.seen = seen;
                known.state = State::Preparing;
                // The preparer lives as long as this channel.
                let _ = self.preparer.send(name);
            }
        }
    }

    /// Takes the result of reading and compiling a directory.
    pub(super) fn prepared(&mut self, prepared: Prepared, supervisor: &Supervisor) {
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
            Ok((compiled, settings)) => {
                self.generation += 1;
                let same = known.code.as_ref().is_some_and(|code| {
                    code.compiled.hash == compiled.hash && code.settings == settings
                });
                if same && known.served {
                    known.state = State::Live;
                    return;
                }
                known.served = false;
                known.code = Some(Code { compiled, settings, generation: self.generation });
                self.load(&name, supervisor);
            }
        }
    }

    /// Hands every cell that has code to a worker that has just started.
    pub(super) fn load_all(&mut self, supervisor: &Supervisor) {
        let names: Vec<String> = self
            .known
            .iter()
            .filter(|(_, k)| k.code.is_some())
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            self.load(&name, supervisor);
        }
    }

    /// Takes the worker's word on a cell it was handed.
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

    pub(super) fn worker_gone(&mut self) {
        for known in self.known.values_mut() {
            known.served = false;
            if matches!(known.state, State::Live) {
                known.state = State::Loading;
            }
            known.stats.instances = 0;
            known.stats.waiting = 0;
        }
    }

    pub(super) fn stats(&mut self, rows: Vec<CellStats>) {
        for row in rows {
            if let Some(known) = self.known.get_mut(&row.cell) {
                known.stats = row;
            }
        }
    }

    pub(super) fn take_gone(&mut self) -> Vec<String> {
        std::mem::take(&mut self.gone)
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
        let code = known.code.as_ref().map(|code| code.compiled.hash.to_string());
        match &known.state {
            State::Live if code.as_deref() == Some(hash) => Some(Answer::Done),
            State::Failed(reason) => Some(Answer::Failed(reason.clone())),
            _ => None,
        }
    }

    /// Moves logs that have grown large aside and hands the worker new files.
    pub(super) fn rotate_logs(&mut self, supervisor: &Supervisor) {
        if self.logs_looked_at.elapsed() < LOGS_LOOKED_AT_EVERY {
            return;
        }
        self.logs_looked_at = Instant::now();
        for (name, known) in &self.known {
            let path = self.home.cell_log(name);
            if known.code.is_none()
                || fs::metadata(&path).map_or(0, |found| found.len()) < LOG_BYTES_MAX
            {
                continue;
            }
            let moved =
                fs::rename(&path, path.with_extension("log.1")).map_err(anyhow::Error::from);
            match moved.and_then(|()| open_log(&path)) {
                Ok(file) => supervisor.send(&ToWorker::Log { cell: name.clone() }, &[file.as_fd()]),
                Err(error) => {
                    tracing::warn!(cell = name, error = %format!("{error:#}"), "rotate a log")
                }
            }
        }
    }

    pub(super) fn remove_sockets(&self) {
        for name in self.known.keys() {
            let _ = fs::remove_file(self.home.cell_socket(name));
        }
    }

    fn load(&mut self, name: &str, supervisor: &Supervisor) {
        let Some(known) = self.known.get_mut(name) else { return };
        known.state = State::Loading;
        if !supervisor.is_ready() {
            return;
        }
        if let Err(error) = known.hand_over(&self.home, name, supervisor) {
            known.state = State::Failed(format!("{error:#}"));
        }
    }
}

impl Known {
    fn new(name: &str) -> Self {
        let stats = CellStats { cell: name.to_owned(), ..CellStats::default() };
        Self {
            seen: Seen::default(),
            state: State::Preparing,
            code: None,
            listener: None,
            served: false,
            stats,
        }
    }

    fn hand_over(
        &mut self,
        home: &Home,
        name: &str,
        supervisor: &Supervisor,
    ) -> anyhow::Result<()> {
        let Some(code) = &self.code else { return Ok(()) };
        let directory = home.cell(name);
        for part in ["data", "log"] {
            DirBuilder::new().mode(0o700).recursive(true).create(directory.join(part))?;
        }
        let log = open_log(&home.cell_log(name))?;
        let listener = match &self.listener {
            Some(listener) => listener.try_clone()?,
            None => {
                let listener = OwnedFd::from(super::bind(&home.cell_socket(name))?);
                self.listener = Some(listener.try_clone()?);
                listener
            }
        };
        let info = &code.compiled.info;
        let interface =
            info.interface.receptors().iter().map(|r| format!("{}\n", r.schema)).collect();
        let load = LoadCell {
            cell: name.to_owned(),
            generation: code.generation,
            hash: code.compiled.hash.to_string(),
            artefact: code.compiled.artefact.clone(),
            facts: ModuleFacts {
                interface,
                has_json: info.has_json,
                memory_pages: info.memory_pages,
                data_bytes: info.data_bytes,
            },
            data: directory.join("data"),
            settings: code.settings.clone(),
        };
        supervisor.send(&ToWorker::Load(Box::new(load)), &[log.as_fd(), listener.as_fd()]);
        Ok(())
    }

    fn row(&self, name: &str) -> CellRow {
        let (state, reason) = match &self.state {
            State::Preparing | State::Loading => ("loading", None),
            State::Live => ("live", None),
            State::Failed(reason) => ("failed", Some(reason.clone())),
        };
        CellRow {
            cell: name.to_owned(),
            state: state.to_owned(),
            hash: self.code.as_ref().map(|code| code.compiled.hash.to_string()),
            reason,
            stats: self.stats.clone(),
        }
    }
}

/// Starts the thread that reads and compiles directories, one after the other.
pub(super) fn start_preparer(
    cache: ArtefactCache,
    home: &Home,
    events: Sender<Event>,
) -> anyhow::Result<Sender<String>> {
    let (names, to_prepare) = mpsc::channel::<String>();
    let home = home.clone();
    thread::Builder::new().name("prepare".into()).spawn(move || {
        for name in to_prepare {
            let directory = home.cell(&name);
            let seen = look(&directory);
            let result = prepare(&cache, &home, &name);
            let prepared = Event::Prepared(Box::new(Prepared { name, seen, result }));
            if events.send(prepared).is_err() {
                return;
            }
        }
    })?;
    Ok(names)
}

fn prepare(cache: &ArtefactCache, home: &Home, name: &str) -> anyhow::Result<(Compiled, Settings)> {
    let directory = &home.cell(name);
    CellName::parse(name).with_context(|| format!("directory name {name:?}"))?;
    let manifest = Manifest::read(directory)?;
    if manifest.name.as_str() != name {
        bail!(
            "{} says name = {:?}, but the directory is {name:?}; they must be the same",
            manifest::FILE,
            manifest.name.as_str()
        );
    }
    let wasm = read_file(&directory.join(&manifest.wasm), gate::MODULE_BYTES_MAX as u64)?;
    let compiled = compile::compile(cache, &wasm, Payer::Home(home))?;
    if compiled.info.kind != ModuleKind::Cell {
        bail!("{} is a command, not a cell; run it with `cell run`", manifest.wasm);
    }
    Ok((compiled, manifest.settings))
}

/// Device, inode and times of the files that make a cell.
fn look(directory: &Path) -> Seen {
    let manifest = directory.join(manifest::FILE);
    // The manifest may name another file; one of any other name counts all the same.
    let wasm =
        Manifest::read(directory).map_or_else(|_| "cell.wasm".into(), |manifest| manifest.wasm);
    let files = [manifest, directory.join(wasm)];
    let stamp = |found: fs::Metadata| (found.ino(), found.len(), found.mtime(), found.mtime_nsec());
    Seen(files.iter().map(|file| fs::metadata(file).map_or((0, 0, 0, 0), stamp)).collect())
}

fn open_log(path: &Path) -> anyhow::Result<OwnedFd> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    Ok(file.with_context(|| format!("open {}", path.display()))?.into())
}
