//! How much there is of something, for as long as each part of it lives.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// So much of all that a counter counts.
#[derive(Debug)]
pub(crate) struct Counted {
    all: Arc<AtomicUsize>,
    amount: usize,
}

impl Counted {
    /// Adds so much until it is dropped.
    pub(crate) fn new(all: &Arc<AtomicUsize>, amount: usize) -> Self {
        all.fetch_add(amount, Relaxed);
        Self { all: Arc::clone(all), amount }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.all.fetch_sub(self.amount, Relaxed);
    }
}
