//! What all connections together may take of something, in bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes that were taken, given back when dropped.
#[derive(Debug)]
pub(super) struct Room {
    bytes: usize,
    taken: Arc<AtomicUsize>,
}

impl Room {
    /// Takes some, if all of them together do not pass the most.
    pub(super) fn take(taken: &Arc<AtomicUsize>, bytes: usize, bytes_max: usize) -> Option<Self> {
        taken
            .fetch_update(Relaxed, Relaxed, |used| {
                used.checked_add(bytes).filter(|total| *total <= bytes_max)
            })
            .ok()
            .map(|_| Self { bytes, taken: Arc::clone(taken) })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.bytes, Relaxed);
    }
}
