//! Compiled code for the workers: verified once, then kept open while it is used.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use cell_abi::CellHash;
use cell_host::ArtefactCache;

/// Artefacts that are kept open; the one that was opened longest ago is closed for another, and
/// verified again when it is needed.
pub(super) const FILES_OPEN_MAX: usize = 256;

/// The cache of this home, shared by the threads that ask for it.
#[derive(Debug, Clone)]
pub(super) struct Artefacts {
    pub(super) cache: Arc<ArtefactCache>,
    open: Arc<Mutex<VecDeque<(CellHash, OwnedFd)>>>,
}

impl Artefacts {
    pub(super) fn new(cache: ArtefactCache) -> Self {
        Self { cache: Arc::new(cache), open: Arc::default() }
    }

    /// The artefact of the module with this hash, if it is there and verifies.
    pub(super) fn find(&self, hash: &str) -> Option<OwnedFd> {
        let hash = CellHash::parse(hash).ok()?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, file)) = open.iter().find(|(other, _)| *other == hash) {
            return file.try_clone().ok();
        }
        let file = OwnedFd::from(self.cache.find(hash)?);
        if open.len() >= FILES_OPEN_MAX {
            open.pop_front();
        }
        open.push_back((hash, file.try_clone().ok()?));
        Some(file)
    }
}
