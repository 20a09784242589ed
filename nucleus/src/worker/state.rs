//! A cell's key-value state, which the nucleus keeps: this process opens no file.

use std::sync::{Arc, Mutex, PoisonError};

use cell_host::state::Writes;
use cell_host::{StateError, StateStore};

use crate::link::state::{Answer, Request, StateStream};

/// The stream to the nucleus that all cells of this worker share.
///
/// Its mutex is held for a request and its answer: files are read one at a time anyway.
pub(super) type States = Arc<Mutex<StateStream>>;

/// One cell's state.
#[derive(Debug)]
pub(super) struct RemoteState {
    cell: String,
    states: States,
}

impl RemoteState {
    pub(super) const fn new(cell: String, states: States) -> Self {
        Self { cell, states }
    }

    fn ask(&self, request: &Request) -> Result<Answer, StateError> {
        let mut stream = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = stream.send(request).and_then(|()| stream.receive());
        match answer {
            Ok(Some(Answer::Failed(reason))) => Err(StateError(reason)),
            Ok(Some(answer)) => Ok(answer),
            Ok(None) | Err(_) => super::nucleus_is_gone(),
        }
    }

    fn cell(&self) -> String {
        self.cell.clone()
    }
}

fn unexpected<T>(_: Answer) -> Result<T, StateError> {
    Err(StateError("the nucleus gave another answer than it was asked for".into()))
}

impl StateStore for RemoteState {
    fn begin(&self) -> Result<Option<u64>, StateError> {
        match self.ask(&Request::Begin { cell: self.cell() })? {
            Answer::Begun(bytes) => Ok(bytes),
            other => unexpected(other),
        }
    }

    fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        match self.ask(&Request::Value { cell: self.cell(), key: key.to_vec() })? {
            Answer::Value(value) => Ok(value),
            other => unexpected(other),
        }
    }

    fn commit(&self, writes: &Writes) -> Result<(), StateError> {
        match self.ask(&Request::Commit { cell: self.cell(), writes: writes.clone() })? {
            Answer::Done => Ok(()),
            other => unexpected(other),
        }
    }

    fn end(&self) {
        let mut stream = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        // A nucleus that is gone has nothing to let go.
        let _ = stream.send(&Request::End { cell: self.cell() });
    }
}
