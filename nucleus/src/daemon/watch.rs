//! Watches `cells/`: a change anywhere that matters brings one event, a moment later.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use super::Event;

/// Changes that follow each other faster than this are one: files are still being written.
const QUIET: Duration = Duration::from_millis(30);
/// What the watcher missed is found this much later.
const RESCAN: Duration = Duration::from_secs(3);

/// Keeps the watch for as long as it lives.
pub(super) struct Watch {
    _stop: Sender<()>,
}

/// Starts watching the directory and each cell in it, but not the cells' own data and logs.
pub(super) fn start(cells: &Path, events: Sender<Event>) -> anyhow::Result<Watch> {
    let (changes, changed) = mpsc::channel();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading a file is an event too, and looking for changes reads files.
        if event.map_or(true, |event| !event.kind.is_access()) {
            // The receiver is gone when the nucleus ends.
            let _ = changes.send(());
        }
    })?;
    watcher.watch(cells, RecursiveMode::NonRecursive)?;
    let (stop, stopped) = mpsc::channel();
    let cells = cells.to_owned();
    thread::Builder::new().name("watch".into()).spawn(move || {
        let mut watched = HashSet::new();
        loop {
            watch_each(&mut watcher, &cells, &mut watched);
            match changed.recv_timeout(RESCAN) {
                Ok(()) => while changed.recv_timeout(QUIET).is_ok() {},
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let over = matches!(stopped.try_recv(), Err(mpsc::TryRecvError::Disconnected));
            if over || events.send(Event::Changed).is_err() {
                return;
            }
        }
    })?;
    Ok(Watch { _stop: stop })
}

fn watch_each(watcher: &mut RecommendedWatcher, cells: &Path, watched: &mut HashSet<PathBuf>) {
    let Ok(entries) = fs::read_dir(cells) else { return };
    let found: HashSet<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    for path in &found {
        // A limit of the system on watches only makes changes come later, by the rescan.
        if !watched.contains(path) && watcher.watch(path, RecursiveMode::NonRecursive).is_ok() {
            watched.insert(path.clone());
        }
    }
    watched.retain(|path| found.contains(path));
}
