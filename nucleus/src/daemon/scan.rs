//! Watches `cells/`: whatever changes there is looked at, a moment later, on a thread of its own.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use super::Event;
use crate::home::Home;
use crate::manifest::{self, Manifest};

/// Changes that follow each other faster than this are one: files are still being written.
const QUIET: Duration = Duration::from_millis(30);
/// Changes that go on for longer than this are looked at in between.
const RESTLESS: Duration = Duration::from_millis(300);
/// What the watcher missed is found this much later, or later still where looking takes long.
const RESCAN: Duration = Duration::from_secs(3);
/// Looking takes at most one part in so many of the time.
const RESCAN_PARTS: u32 = 50;

/// What a directory looked like: enough to tell that a file was replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seen([Stamp; 2]);

/// Inode, size and time of a file; zeros for one that is absent.
type Stamp = (u64, u64, i64, i64);

/// What a look at `cells/` found.
#[derive(Debug)]
pub(crate) struct Scan {
    /// The last request for a look that this one answers.
    pub(super) answers: u64,
    /// Directories that are new or changed.
    pub(super) changed: Vec<(String, Seen)>,
    /// Directories that vanished.
    pub(super) gone: Vec<String>,
    /// Directories without a socket.
    pub(super) without_socket: Vec<String>,
}

enum Wake {
    /// Something happened in `cells/`.
    Change,
    /// The nucleus wants a look.
    Asked(u64),
}

/// Asks for looks; watching ends with it.
pub(super) struct Scanner {
    wakes: Sender<Wake>,
    asked: u64,
}

impl Scanner {
    /// Starts watching the directory and each cell in it, but not the cells' own data and logs.
    pub(super) fn start(home: &Home, events: Sender<Event>) -> anyhow::Result<Self> {
        let (wakes, woken) = mpsc::channel();
        let changes = wakes.clone();
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                // Reading a file is an event too, and looking for changes reads files.
                if event.map_or(true, |event| !event.kind.is_access()) {
                    // The receiver is gone when the nucleus ends.
                    let _ = changes.send(Wake::Change);
                }
            })?;
        watcher.watch(&home.cells(), RecursiveMode::NonRecursive)?;
        let mut look = Look::new(home.cells(), watcher);
        thread::Builder::new().name("watch".into()).spawn(move || {
            let mut answers = 0;
            loop {
                let started = Instant::now();
                if events.send(Event::Scanned(look.scan(answers))).is_err() {
                    return;
                }
                let pause = RESCAN.max(started.elapsed() * RESCAN_PARTS);
                match woken.recv_timeout(pause) {
                    Ok(Wake::Asked(number)) => answers = number,
                    Ok(Wake::Change) => {
                        let until = Instant::now() + RESTLESS;
                        while let Ok(wake) = woken.recv_timeout(QUIET) {
                            if let Wake::Asked(number) = wake {
                                answers = number;
                            }
                            if Instant::now() > until || matches!(wake, Wake::Asked(_)) {
                                break;
                            }
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        })?;
        Ok(Self { wakes, asked: 0 })
    }

    /// Asks for a look; the scan that answers it has at least this number.
    pub(super) fn ask(&mut self) -> u64 {
        self.asked += 1;
        // The thread ends before this only when the nucleus does.
        let _ = self.wakes.send(Wake::Asked(self.asked));
        self.asked
    }
}

/// What was seen last.
struct Look {
    cells: PathBuf,
    watcher: RecommendedWatcher,
    known: HashMap<String, Known>,
}

struct Known {
    seen: Seen,
    /// File name of the module, as the manifest says.
    wasm: String,
    watched: bool,
}

impl Look {
    fn new(cells: PathBuf, watcher: RecommendedWatcher) -> Self {
        Self { cells, watcher, known: HashMap::new() }
    }

    fn scan(&mut self, answers: u64) -> Scan {
        let mut scan =
            Scan { answers, changed: Vec::new(), gone: Vec::new(), without_socket: Vec::new() };
        let Ok(entries) = fs::read_dir(&self.cells) else {
            tracing::error!("cannot read {}", self.cells.display());
            return scan;
        };
        let mut found = HashSet::new();
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // A link to a directory is followed.
            let is_directory = entry
                .file_type()
                .is_ok_and(|kind| kind.is_dir() || (kind.is_symlink() && entry.path().is_dir()));
            if !name.starts_with('.') && is_directory {
                self.look_at(&name, &entry.path(), &mut scan);
                found.insert(name);
            }
        }
        self.known.retain(|name, _| {
            let stays = found.contains(name);
            if !stays {
                scan.gone.push(name.clone());
            }
            stays
        });
        scan
    }

    fn look_at(&mut self, name: &str, directory: &Path, scan: &mut Scan) {
        let manifest = stamp(&directory.join(manifest::FILE));
        let known = self.known.get_mut(name);
        let wasm = match &known {
            Some(known) if known.seen.0[0] == manifest => known.wasm.clone(),
            _ => module_name(directory),
        };
        let seen = Seen([manifest, stamp(&directory.join(&wasm))]);
        if !directory.join("cell.sock").exists() {
            scan.without_socket.push(name.to_owned());
        }
        let known = match known {
            Some(known) if known.seen == seen => known,
            _ => {
                scan.changed.push((name.to_owned(), seen.clone()));
                // It may be another directory of that name.
                let new = Known { seen, wasm, watched: false };
                self.known.entry(name.to_owned()).insert_entry(new).into_mut()
            }
        };
        if !known.watched {
            // A limit of the system on watches only makes changes come later, by the next look.
            known.watched = self.watcher.watch(directory, RecursiveMode::NonRecursive).is_ok();
        }
    }
}

/// Device, inode and times of the files that make a cell.
pub(super) fn look(directory: &Path) -> Seen {
    let wasm = module_name(directory);
    Seen([stamp(&directory.join(manifest::FILE)), stamp(&directory.join(wasm))])
}

/// The manifest may name another file than `cell.wasm`; one of any other name counts all the same.
fn module_name(directory: &Path) -> String {
    Manifest::read(directory).map_or_else(|_| "cell.wasm".into(), |manifest| manifest.wasm)
}

fn stamp(path: &Path) -> Stamp {
    fs::metadata(path)
        .map_or((0, 0, 0, 0), |found| (found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
}
