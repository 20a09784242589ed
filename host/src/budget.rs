//! What all guests of a process together may take of its memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bytes that guests have, and the most they may.
#[derive(Debug)]
pub(crate) struct Budget {
    used: AtomicU64,
    max: AtomicU64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { used: AtomicU64::new(0), max: AtomicU64::new(u64::MAX) }
    }
}

impl Budget {
    pub(crate) fn set_max(&self, bytes: u64) {
        self.max.store(bytes, Relaxed);
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    fn take(&self, bytes: u64) -> bool {
        let max = self.max.load(Relaxed);
        let taken = self.used.fetch_update(Relaxed, Relaxed, |used| {
            used.checked_add(bytes).filter(|total| *total <= max)
        });
        taken.is_ok()
    }
}

/// One guest's part of a budget, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Part {
    budget: Arc<Budget>,
    /// What its cell has, all instances together.
    cell: Arc<AtomicU64>,
    bytes: u64,
    refused: bool,
}

impl Part {
    pub(crate) const fn new(budget: Arc<Budget>, cell: Arc<AtomicU64>) -> Self {
        Self { budget, cell, bytes: 0, refused: false }
    }

    /// Takes more, if all guests together leave that much.
    pub(crate) fn take(&mut self, bytes: usize) -> bool {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let taken = self.budget.take(bytes);
        if taken {
            self.bytes += bytes;
            self.cell.fetch_add(bytes, Relaxed);
        }
        self.refused |= !taken;
        taken
    }

    /// Whether anything was ever refused.
    pub(crate) const fn was_refused(&self) -> bool {
        self.refused
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Relaxed);
        self.cell.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_to_no_more() {
        let budget = Arc::new(Budget::default());
        budget.set_max(100);
        let cell = Arc::new(AtomicU64::new(0));
        let part = || Part::new(Arc::clone(&budget), Arc::clone(&cell));
        let (mut a, mut b) = (part(), part());
        assert!(a.take(60) && b.take(40) && !b.was_refused());
        assert!(!b.take(1) && b.was_refused());
        assert_eq!(cell.load(Relaxed), 100);
        drop(a);
        assert!(b.take(60) && !b.take(usize::MAX));
        drop(b);
        assert_eq!(budget.used(), 0);
    }
}
