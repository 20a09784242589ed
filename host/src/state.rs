//! Key-value state of a cell: one call at a time, all of its writes or none.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

/// A failure of the store that keeps the state; the caller gets `HostFault` and pays nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the cell's state cannot be read or written: {0}")]
pub struct StateError(pub String);

/// What one call wrote: a value, or `None` for a deletion.
pub type Writes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Keeps the committed state of one cell. The host calls it from one call at a time.
pub trait StateStore: Debug + Send + Sync + 'static {
    /// The value of a key.
    fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError>;

    /// Writes everything one call changed, all or nothing.
    fn commit(&self, writes: &Writes) -> Result<(), StateError>;

    /// Bytes of all keys and values.
    fn bytes(&self) -> Result<u64, StateError>;
}

/// State that lives as long as the program.
#[derive(Debug, Default)]
pub struct MemoryState(Mutex<HashMap<Vec<u8>, Vec<u8>>>);

impl StateStore for MemoryState {
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

    fn bytes(&self) -> Result<u64, StateError> {
        let values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(values.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum())
    }
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
    /// The value that the last read found, until the guest fetches it.
    pub(crate) found: Vec<u8>,
    _turn: OwnedMutexGuard<()>,
}

impl StateCall {
    /// Waits for the cell's state and takes it until the call ends.
    pub(crate) async fn begin(state: CellState) -> Result<Self, StateError> {
        let turn = state.turn.lock_owned().await;
        let bytes = state.store.bytes()?;
        Ok(Self {
            store: state.store,
            writes: Writes::new(),
            bytes,
            bytes_max: state.bytes_max,
            found: Vec::new(),
            _turn: turn,
        })
    }

    pub(crate) fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        match self.writes.get(key) {
            Some(written) => Ok(written.clone()),
            None => self.store.value(key),
        }
    }

    /// Sets a value; `false` if the state would grow past its quota.
    pub(crate) fn set(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<bool, StateError> {
        let before = self.value(&key)?.map_or(0, |old| (key.len() + old.len()) as u64);
        let bytes = self.bytes.saturating_sub(before) + (key.len() + value.len()) as u64;
        if bytes > self.bytes_max && bytes > self.bytes {
            return Ok(false);
        }
        self.bytes = bytes;
        self.writes.insert(key, Some(value));
        Ok(true)
    }

    /// Deletes a key; `false` if it had no value.
    pub(crate) fn delete(&mut self, key: Vec<u8>) -> Result<bool, StateError> {
        let Some(old) = self.value(&key)? else {
            return Ok(false);
        };
        self.bytes = self.bytes.saturating_sub((key.len() + old.len()) as u64);
        // A key that only this call ever had leaves nothing to delete.
        if self.store.value(&key)?.is_some() {
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
