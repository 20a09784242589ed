//! The key-value state of all cells: the nucleus keeps the files and answers the workers.
//!
//! A thread for each worker reads its requests. A state belongs to one call of one worker at a
//! time; what a worker that dies had taken is let go.

mod file;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use cell_host::StateError;

use crate::link::state::{Answer, Request, StateStream};
use file::FileState;

/// State files that are open at once; the one that was used longest ago is closed for another.
pub(super) const FILES_OPEN_MAX: usize = 256;

/// Every served cell's state.
#[derive(Debug, Clone, Default)]
pub(super) struct States(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    cells: HashMap<String, Arc<State>>,
    /// Counts uses, so that the oldest can be told.
    clock: u64,
}

#[derive(Debug)]
struct State {
    file: FileState,
    turn: Mutex<Turn>,
}

#[derive(Debug, Default)]
struct Turn {
    /// The worker that has the state.
    worker: Option<u64>,
    used: u64,
}

impl States {
    /// From now on workers may ask for this cell's state, kept in this directory.
    pub(super) fn add(&self, cell: &str, directory: &Path) {
        let state = || State { file: FileState::new(directory), turn: Mutex::default() };
        lock(&self.0).cells.entry(cell.to_owned()).or_insert_with(|| Arc::new(state()));
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
                match self.taken(worker, &cell).and_then(|state| state.file.commit(&writes)) {
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
        *turn = Turn { worker: Some(worker), used };
        Ok(Some(bytes))
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use cell_host::state::Writes;

    use super::*;

    /// Two workers write one cell's state: turns are taken, and a worker that dies leaves its own.
    #[test]
    fn workers_take_turns() {
        let directory = tempfile::tempdir().unwrap();
        let states = States::default();
        states.add("a", directory.path());
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
            states.add(&cell, &data);
            states.begin(1, &cell).unwrap();
            states.answer(1, Request::End { cell });
        }
        let open = lock(&states.0).cells.values().filter(|state| state.file.is_open()).count();
        assert_eq!(open, FILES_OPEN_MAX);
    }
}
