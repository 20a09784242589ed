//! What rows act upon: one nucleus with its worker, cells that come and go, and a neighbour.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cell_abi::{CellHash, Fuel, Header, Reject, Status};
use cell_client::CallOptions;
use serde_json::json;
use tempfile::TempDir;

use super::Seen;
use crate::process::Process;
use crate::{GUARD, Home, Nucleus, Raw, eventually, nucleus, status, wat};

/// Pause between two calls of the neighbour: it is to notice, not to win.
const NEIGHBOUR_PAUSE: Duration = Duration::from_millis(1);
/// What an answer shows of a message.
const MESSAGE_CHARS_MAX: usize = 200;

/// A nucleus that rows attack.
#[derive(Debug)]
pub struct World {
    nucleus: Nucleus,
    worker: Process,
    /// Programs run on an account of their own: calls may set all of the other aside.
    jobs: Home,
    place: TempDir,
    cells: Mutex<Vec<String>>,
    names: AtomicU64,
}

impl World {
    #[track_caller]
    pub(super) fn new() -> Self {
        let nucleus = Nucleus::new();
        nucleus.deploy_wat("echo", &wat::cell("", wat::ECHO), "");
        let worker = nucleus.worker();
        let place = tempfile::Builder::new().prefix("ct-h-").tempdir_in("/tmp").unwrap();
        Self {
            nucleus,
            worker,
            jobs: Home::new(),
            place,
            cells: Mutex::default(),
            names: AtomicU64::new(0),
        }
    }

    /// The home that is attacked.
    pub fn home(&self) -> &Home {
        &self.nucleus
    }

    /// The home that programs run in.
    pub const fn jobs(&self) -> &Home {
        &self.jobs
    }

    /// The process that runs guests.
    pub const fn worker(&self) -> Process {
        self.worker
    }

    /// Whether the nucleus and its worker are those that it began with.
    pub(super) fn is_whole(&self) -> bool {
        self.worker.is_alive() && self.nucleus.process().is_alive()
    }

    /// A directory for a row's own files, gone at the end.
    pub fn directory(&self) -> PathBuf {
        let path = self.place.path().join(self.names.fetch_add(1, Relaxed).to_string());
        fs::create_dir(&path).unwrap();
        path
    }

    /// A name of four bytes for a cell that goes when the row ends.
    pub fn name(&self) -> String {
        let name = format!("g{:03}", self.names.fetch_add(1, Relaxed));
        lock(&self.cells).push(name.clone());
        name
    }

    /// Puts a cell in its place and waits for it to be live, or to be refused with a reason.
    #[track_caller]
    pub fn deploy(&self, name: &str, manifest: &str, wasm: &[u8]) -> Result<(), String> {
        self.nucleus.put(name, &wat::manifest(name, manifest), wasm);
        self.settle(name, wasm)
    }

    /// Waits for a cell to be live with this module, or to be refused with a reason.
    #[track_caller]
    pub fn settle(&self, name: &str, wasm: &[u8]) -> Result<(), String> {
        let hash = CellHash::of(wasm).to_string();
        let answer = self.ask(&json!({ "await": { "cell": name, "hash": hash } }).to_string());
        match answer["failed"].as_str() {
            Some(reason) => Err(escape(reason)),
            None => {
                assert_eq!(answer, "done");
                Ok(())
            }
        }
    }

    /// Deploys this text under a new name; its cell must be live.
    #[track_caller]
    pub fn live(&self, manifest: &str, text: &str) -> String {
        let name = self.name();
        let wasm = wat::compile(&text.replace("SELF", &name));
        self.deploy(&name, manifest, &wasm).unwrap_or_else(|reason| panic!("{reason}"));
        name
    }

    /// Calls the receptor `run` of a cell over a connection of its own.
    #[track_caller]
    pub fn call(&self, cell: &str, request: &[u8], fuel: u64) -> Seen {
        let (mut raw, receptor) = Raw::opened(&self.nucleus.socket(cell), cell, "run");
        raw.call(receptor, 2, fuel, request);
        let (header, payload) = raw.receive();
        assert_eq!(header.request_id, 2);
        Seen { limit: Some(fuel), ..answered(&header, &payload) }
    }

    /// One line to the control socket, and its answer.
    #[track_caller]
    pub fn ask(&self, request: &str) -> serde_json::Value {
        eventually("the nucleus answers", || nucleus::ask(&self.nucleus, request))
    }

    /// A figure of a cell in `cell ps`.
    #[track_caller]
    pub fn figure(&self, cell: &str, figure: &str) -> u64 {
        let rows = self.ask("\"ps\"");
        let rows = rows["cells"].as_array().unwrap();
        let row = rows.iter().find(|row| row["cell"] == cell);
        row.and_then(|row| row["stats"][figure].as_u64()).unwrap_or(0)
    }

    /// Waits until a figure of a cell in `cell ps` is this.
    #[track_caller]
    pub fn wait_for(&self, cell: &str, figure: &str, expect: u64) {
        let what = format!("{cell} has {expect} {figure}");
        eventually(&what, || (self.figure(cell, figure) == expect).then_some(()));
    }

    /// Removes the cells of the row that ended.
    #[track_caller]
    pub(super) fn clean(&self) {
        for name in std::mem::take(&mut *lock(&self.cells)) {
            let directory = self.nucleus.cell_directory(&name);
            let gone = directory.with_file_name(format!(".{name}-gone"));
            if fs::rename(&directory, &gone).is_ok() {
                remove(&gone);
            }
            let answer = self.ask(&json!({ "await": { "cell": name, "hash": null } }).to_string());
            assert_eq!(answer, "done", "{name} is still there");
        }
    }

    /// Ends everything; fails the test unless it ends in peace.
    #[track_caller]
    pub(super) fn down(self) {
        self.nucleus.cell(["ledger", "verify"]).expect(0);
        self.nucleus.down();
    }
}

/// A reply in words.
pub(super) fn answered(header: &Header, payload: &[u8]) -> Seen {
    let status = status(header);
    let answer = match status {
        Status::Ok => words(payload),
        Status::Rejected => {
            let reject = Reject::decode(payload).unwrap_or_else(|| panic!("{payload:?}"));
            format!("Rejected {}: {}", reject.code, escape(&reject.message))
        }
        _ if payload.is_empty() => format!("{status:?}"),
        _ => format!("{status:?}: {}", escape(&String::from_utf8_lossy(payload))),
    };
    Seen::charged(answer, header.fuel.0)
}

/// A few numbers as numbers, anything else as its length.
fn words(payload: &[u8]) -> String {
    let (numbers, rest) = payload.as_chunks::<4>();
    if !rest.is_empty() || numbers.len() > 16 {
        return format!("Ok, {} bytes", payload.len());
    }
    let numbers = numbers.iter().map(|number| format!(" {}", i32::from_le_bytes(*number)));
    std::iter::once(String::from("Ok")).chain(numbers).collect()
}

pub(super) fn escape(text: &str) -> String {
    let plain = text.chars().take(MESSAGE_CHARS_MAX);
    plain
        .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
        .collect()
}

/// Removes a file or a directory, or leaves it to the end of the test.
fn remove(path: &Path) {
    if fs::remove_dir_all(path).is_err() {
        let _ = fs::remove_file(path);
    }
}

/// Somebody who calls a cell of their own all the time and expects to be served.
pub(super) struct Neighbour {
    stop: Arc<AtomicBool>,
    shared: Arc<Noticed>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Noticed {
    calls: AtomicU64,
    slowest: Mutex<Duration>,
    errors: Mutex<Vec<String>>,
}

impl Neighbour {
    pub(super) fn start(home: &Home) -> Self {
        let (stop, shared) = (Arc::new(AtomicBool::new(false)), Arc::new(Noticed::default()));
        let (home, stopped, noticed) = (home.clone(), Arc::clone(&stop), Arc::clone(&shared));
        let thread = thread::spawn(move || {
            while !stopped.load(Relaxed) {
                if let Err(error) = noticed.live(&home, &stopped) {
                    lock(&noticed.errors).push(error.to_string());
                    thread::sleep(Duration::from_millis(100));
                }
            }
        });
        Self { stop, shared, thread }
    }

    /// What went wrong since this was last asked.
    pub(super) fn take_errors(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.shared.errors))
    }

    /// The slowest call that ended since this was last asked.
    pub(super) fn take_slowest(&self) -> Duration {
        std::mem::take(&mut *lock(&self.shared.slowest))
    }

    /// Ends the calls: how many there were.
    pub(super) fn end(self) -> u64 {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap();
        self.shared.calls.load(Relaxed)
    }
}

impl Noticed {
    /// Calls until told to stop, or until something is not as it should be.
    fn live(&self, home: &Home, stop: &AtomicBool) -> Result<(), cell_client::Error> {
        let mut client = cell_client::Client::connect(home.socket("echo"), "echo")?;
        let slot = client.open_raw("run")?;
        let options = CallOptions { fuel: Fuel(1_000_000), timeout: GUARD };
        while !stop.load(Relaxed) {
            let calls = self.calls.fetch_add(1, Relaxed);
            let started = Instant::now();
            let reply = client.call_raw(&slot, &calls.to_le_bytes(), options)?;
            let took = started.elapsed();
            if reply.bytes() != calls.to_le_bytes() {
                lock(&self.errors).push(format!("call {calls} got {:?}", reply.bytes()));
            }
            let mut slowest = lock(&self.slowest);
            *slowest = took.max(*slowest);
            drop(slowest);
            thread::sleep(NEIGHBOUR_PAUSE);
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
