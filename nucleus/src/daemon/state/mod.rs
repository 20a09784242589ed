//! The key-value state of all cells: the nucleus keeps the files and answers the workers.
//!
//! A thread for each worker reads its requests. A state belongs to one call of one worker at a
//! time; what a worker that dies had taken is let go.

mod file;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use cell_host::StateError;
use cell_host::state::Writes;

use crate::link::state::{Answer, Request, StateStream};
use file::FileState;

/// State files that are open at once; the one that was used longest ago is closed for another.
pub(super) const FILES_OPEN_MAX: usize = 256;

/// What a call is told that its state takes while that is not paid: past any quota, so it may replace and
/// delete, and not grow.
const UNPAID_BYTES: u64 = u64::MAX / 2;
/// Files that are opened for one look at what all states take.
const COUNTED_AT_ONCE: usize = 32;

/// Every served cell's state.
#[derive(Debug, Clone, Default)]
pub(super) struct States(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    cells: HashMap<String, Arc<State>>,
    /// Counts uses, so that the oldest can be told.
    clock: u64,
    /// The owner cannot pay for what is kept.
    is_unpaid: bool,
}

#[derive(Debug)]
struct State {
    file: FileState,
    /// Its quota, in bytes.
    bytes_max: AtomicU64,
    turn: Mutex<Turn>,
}

#[derive(Debug, Default)]
struct Turn {
    /// The worker that has the state.
    worker: Option<u64>,
    /// It may not grow: it is not paid for.
    is_unpaid: bool,
    used: u64,
}

impl States {
    /// From now on workers may ask for this cell's state, kept in this directory.
    pub(super) fn add(&self, cell: &str, directory: &Path, bytes_max: u64) {
        let state = || State {
            file: FileState::new(directory),
            bytes_max: AtomicU64::default(),
            turn: Mutex::default(),
        };
        let mut table = lock(&self.0);
        let state = table.cells.entry(cell.to_owned()).or_insert_with(|| Arc::new(state()));
        state.bytes_max.store(bytes_max, Relaxed);
    }

    /// The cell is gone; so is its state.
    pub(super) fn remove(&self, cell: &str) {
        lock(&self.0).cells.remove(cell);
    }

    /// Answers a worker until it is gone.
    pub(super) fn serve(&self, worker: u64, mut stream: StateStream) -> std::io::Result<()> {
        let states = self.clone();
        let name = format!("state {worker}");
        thread::Builder::new().name(name).spawn(move || {
            while let Ok(Some(request)) = stream.receive::<Request>() {
                let answer = states.answer(worker, request);
                if answer.is_some_and(|answer| stream.send(&answer).is_err()) {
                    break;
                }
            }
            states.let_go(worker);
        })?;
        Ok(())
    }

    /// `None` where no answer is expected.
    fn answer(&self, worker: u64, request: Request) -> Option<Answer> {
        let failed = |error: StateError| Answer::Failed(error.0);
        Some(match request {
            Request::Begin { cell } => match self.begin(worker, &cell) {
                Ok(begun) => Answer::Begun(begun),
                Err(error) => failed(error),
            },
            Request::Value { cell, key } => {
                match self.taken(worker, &cell).and_then(|state| state.file.value(&key)) {
                    Ok(value) => Answer::Value(value),
                    Err(error) => failed(error),
                }
            }
            Request::Commit { cell, writes } => {
                match self.taken(worker, &cell).and_then(|state| state.commit(&writes)) {
                    Ok(()) => Answer::Done,
                    Err(error) => failed(error),
                }
            }
            Request::End { cell } => {
                if let Ok(state) = self.taken(worker, &cell) {
                    lock(&state.turn).worker = None;
                }
                return None;
            }
        })
    }

    fn begin(&self, worker: u64, cell: &str) -> Result<Option<u64>, StateError> {
        let (state, used) = self.find_to_use(cell)?;
        let mut turn = lock(&state.turn);
        // Within one worker, calls take turns by themselves.
        if turn.worker.is_some_and(|other| other != worker) {
            return Ok(None);
        }
        let bytes = state.file.bytes()?;
        let is_unpaid = self.is_unpaid();
        let bytes = if is_unpaid { UNPAID_BYTES } else { bytes };
        *turn = Turn { worker: Some(worker), is_unpaid, used };
        Ok(Some(bytes))
    }

    /// Bytes of all states, as far as they have been counted; a few more are each time.
    pub(super) fn bytes(&self) -> u64 {
        let states: Vec<_> = lock(&self.0).cells.values().cloned().collect();
        let uncounted = states.iter().filter(|state| state.file.counted().is_none());
        for state in uncounted.take(COUNTED_AT_ONCE) {
            if let Err(error) = state.file.count_closed() {
                tracing::warn!(%error, "a cell's state is not counted");
            }
        }
        states.iter().filter_map(|state| state.file.counted()).sum()
    }

    /// Whether states may grow; says whether that is new.
    pub(super) fn set_unpaid(&self, unpaid: bool) -> bool {
        std::mem::replace(&mut lock(&self.0).is_unpaid, unpaid) != unpaid
    }

    pub(super) fn is_unpaid(&self) -> bool {
        lock(&self.0).is_unpaid
    }

    /// A cell's state, with a number that later uses pass; room is made for its file if need be.
    fn find_to_use(&self, cell: &str) -> Result<(Arc<State>, u64), StateError> {
        let state = self.find(cell)?;
        let mut table = lock(&self.0);
        table.clock += 1;
        if !state.file.is_open() {
            let mut open: Vec<_> = table.cells.values().filter(|s| s.file.is_open()).collect();
            if open.len() >= FILES_OPEN_MAX {
                open.retain(|state| lock(&state.turn).worker.is_none());
                if let Some(oldest) = open.into_iter().min_by_key(|state| lock(&state.turn).used) {
                    oldest.file.close();
                }
            }
        }
        Ok((state, table.clock))
    }

    fn taken(&self, worker: u64, cell: &str) -> Result<Arc<State>, StateError> {
        let state = self.find(cell)?;
        let has_it = lock(&state.turn).worker == Some(worker);
        if has_it { Ok(state) } else { Err(StateError("the state was not taken".into())) }
    }

    fn find(&self, cell: &str) -> Result<Arc<State>, StateError> {
        let found = lock(&self.0).cells.get(cell).cloned();
        found.ok_or_else(|| StateError("there is no such cell any more".into()))
    }

    fn let_go(&self, worker: u64) {
        for state in lock(&self.0).cells.values() {
            let mut turn = lock(&state.turn);
            if turn.worker == Some(worker) {
                turn.worker = None;
            }
        }
    }
}

impl State {
    /// Writes what a call wrote, within what it was told when it began.
    fn commit(&self, writes: &Writes) -> Result<(), StateError> {
        let is_unpaid = lock(&self.turn).is_unpaid;
        self.file.commit(writes, if is_unpaid { 0 } else { self.bytes_max.load(Relaxed) })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two workers write one cell's state: turns are taken, and a worker that dies leaves its own.
    #[test]
    fn workers_take_turns() {
        let directory = tempfile::tempdir().unwrap();
        let states = States::default();
        states.add("a", directory.path(), 100);
        let begin = |worker| states.answer(worker, Request::Begin { cell: "a".into() }).unwrap();
        let writes = Writes::from([(b"k".to_vec(), Some(b"v".to_vec()))]);
        let commit = |worker| {
            let writes = writes.clone();
            states.answer(worker, Request::Commit { cell: "a".into(), writes }).unwrap()
        };
        assert_eq!(begin(1), Answer::Begun(Some(0)));
        assert_eq!(begin(2), Answer::Begun(None));
        assert!(matches!(commit(2), Answer::Failed(_)));
        assert_eq!(commit(1), Answer::Done);
        assert!(states.answer(1, Request::End { cell: "a".into() }).is_none());
        assert_eq!(begin(2), Answer::Begun(Some(2)));
        states.let_go(2);
        assert_eq!(begin(1), Answer::Begun(Some(2)));
        // What is not paid for may not grow: it counts as more than any quota.
        assert!(states.set_unpaid(true) && !states.set_unpaid(true));
        assert_eq!(begin(1), Answer::Begun(Some(UNPAID_BYTES)));
        assert_eq!(commit(1), Answer::Done, "the same again is no growth");
        let more = Writes::from([(b"l".to_vec(), Some(b"v".to_vec()))]);
        let more = Request::Commit { cell: "a".into(), writes: more };
        assert!(matches!(states.answer(1, more), Some(Answer::Failed(_))));
        assert_eq!(states.bytes(), 2);
        states.set_unpaid(false);
        assert_eq!(begin(1), Answer::Begun(Some(2)));
        let unknown = states.answer(1, Request::Begin { cell: "../b".into() }).unwrap();
        assert!(matches!(unknown, Answer::Failed(_)));
    }

    #[test]
    fn old_files_are_closed() {
        let directory = tempfile::tempdir().unwrap();
        let states = States::default();
        for number in 0..FILES_OPEN_MAX + 10 {
            let cell = number.to_string();
            let data = directory.path().join(&cell);
            std::fs::create_dir(&data).unwrap();
            states.add(&cell, &data, 100);
            states.begin(1, &cell).unwrap();
            states.answer(1, Request::End { cell });
        }
        let open = lock(&states.0).cells.values().filter(|state| state.file.is_open()).count();
        assert_eq!(open, FILES_OPEN_MAX);
    }
}
