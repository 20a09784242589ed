//! Key-value state of a cell: one call at a time, all of its writes or none.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

use crate::error::Stop;
use crate::limits::STATE_WRITTEN_BYTES_MAX;
use crate::tape::{Event, Tape};

/// A failure of the store that keeps the state; the caller gets `HostFault` and pays nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the cell's state cannot be read or written: {0}")]
pub struct StateError(pub String);

/// What one call wrote: a value, or `None` for a deletion.
pub type Writes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// How long a call waits before it asks again for a state that another program uses.
const ASK_AGAIN: Duration = Duration::from_millis(1);

/// Keeps the committed state of one cell. The host calls it from one call at a time.
pub trait StateStore: Debug + Send + Sync + 'static {
    /// Takes the state for one call: bytes of all keys and values, or `None` while another program
    /// that shares the store has it.
    fn begin(&self) -> Result<Option<u64>, StateError>;

    /// The value of a key.
    fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError>;

    /// Writes everything one call changed, all or nothing.
    fn commit(&self, writes: &Writes) -> Result<(), StateError>;

    /// Lets others have the state; follows every `begin` that took it.
    fn end(&self);
}

/// State that lives as long as the program.
#[derive(Debug, Default)]
pub struct MemoryState(Mutex<HashMap<Vec<u8>, Vec<u8>>>);

impl StateStore for MemoryState {
    fn begin(&self) -> Result<Option<u64>, StateError> {
        let values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Some(values.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum()))
    }

    fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned())
    }

    fn commit(&self, writes: &Writes) -> Result<(), StateError> {
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, value) in writes {
            match value {
                Some(value) => values.insert(key.clone(), value.clone()),
                None => values.remove(key),
            };
        }
        Ok(())
    }

    fn end(&self) {}
}

/// A cell's state with the lock that calls take turns on.
#[derive(Debug, Clone)]
pub(crate) struct CellState {
    pub(crate) store: Arc<dyn StateStore>,
    pub(crate) turn: Arc<tokio::sync::Mutex<()>>,
    pub(crate) bytes_max: u64,
}

/// One call's view of the state: what is committed, with its own writes on top.
#[derive(Debug)]
pub(crate) struct StateCall {
    store: Arc<dyn StateStore>,
    writes: Writes,
    bytes: u64,
    bytes_max: u64,
    /// Bytes that this call wrote so far.
    written: u64,
    /// The value that the last read found, until the guest fetches it.
    pub(crate) found: Vec<u8>,
    tape: Option<Tape>,
    _turn: OwnedMutexGuard<()>,
}

impl StateCall {
    /// Waits for the cell's state and takes it until the call ends.
    pub(crate) async fn begin(state: CellState, tape: Option<Tape>) -> wasmtime::Result<Self> {
        let turn = state.turn.lock_owned().await;
        let mut bytes = loop {
            match state.store.begin().map_err(host_fault)? {
                Some(bytes) => break bytes,
                None => tokio::time::sleep(ASK_AGAIN).await,
            }
        };
        if let Some(tape) = &tape {
            tape.record(Event::State, &[&bytes.to_le_bytes()]);
            if let Some(played) = tape.play(Event::State)? {
                bytes = u64::from_le_bytes(played.try_into().map_err(|_| Stop::Diverged)?);
            }
        }
        Ok(Self {
            store: state.store,
            writes: Writes::new(),
            bytes,
            bytes_max: state.bytes_max,
            written: 0,
            found: Vec::new(),
            tape,
            _turn: turn,
        })
    }

    pub(crate) fn value(&self, key: &[u8]) -> wasmtime::Result<Option<Vec<u8>>> {
        match self.writes.get(key) {
            Some(written) => Ok(written.clone()),
            None => self.committed(key),
        }
    }

    fn committed(&self, key: &[u8]) -> wasmtime::Result<Option<Vec<u8>>> {
        let Some(tape) = &self.tape else { return self.store.value(key).map_err(host_fault) };
        if let Some(played) = tape.play(Event::Value)? {
            return match played.split_first() {
                Some((1, value)) => Ok(Some(value.to_vec())),
                _ => Ok(None),
            };
        }
        let value = self.store.value(key).map_err(host_fault)?;
        tape.record(
            Event::Value,
            &[&[u8::from(value.is_some())], value.as_deref().unwrap_or_default()],
        );
        Ok(value)
    }

    /// Sets a value; `false` if the state would grow past its quota.
    pub(crate) fn set(&mut self, key: Vec<u8>, value: Vec<u8>) -> wasmtime::Result<bool> {
        let before = self.value(&key)?.map_or(0, |old| (key.len() + old.len()) as u64);
        let written = (key.len() + value.len()) as u64;
        let bytes = self.bytes.saturating_sub(before) + written;
        if bytes > self.bytes_max && bytes > self.bytes {
            return Ok(false);
        }
        // Overwritten values count as well: what matters is that the call's writes fit in memory.
        let written = self.written.saturating_add(written);
        if written > STATE_WRITTEN_BYTES_MAX {
            return Ok(false);
        }
        self.written = written;
        self.bytes = bytes;
        self.writes.insert(key, Some(value));
        Ok(true)
    }

    /// Deletes a key; `false` if it had no value.
    pub(crate) fn delete(&mut self, key: Vec<u8>) -> wasmtime::Result<bool> {
        let Some(old) = self.value(&key)? else {
            return Ok(false);
        };
        self.bytes = self.bytes.saturating_sub((key.len() + old.len()) as u64);
        // A key that only this call ever had leaves nothing to delete.
        if self.committed(&key)?.is_some() {
            self.writes.insert(key, None);
        } else {
            self.writes.remove(&key);
        }
        Ok(true)
    }

    pub(crate) fn commit(self) -> Result<(), StateError> {
        if self.writes.is_empty() { Ok(()) } else { self.store.commit(&self.writes) }
    }
}

fn host_fault(error: StateError) -> wasmtime::Error {
    wasmtime::Error::from(Stop::HostFault).context(error)
}

impl Drop for StateCall {
    fn drop(&mut self) {
        self.store.end();
    }
}
