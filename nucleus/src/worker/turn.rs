//! One connection's turn: what its loop lends it, and what comes of it.

use std::time::Instant;

use cell_host::StopHandle;

use super::call::{Begun, Call};

/// Bytes read from a socket at a time; also the size of each loop's read buffer.
pub(super) const READ_BYTES: usize = 64 << 10;
/// Frames handled in one turn of a connection that has its loop to itself.
pub(super) const FRAMES_PER_TURN: usize = 16;
/// Frames handled before the loop looks at its other connections.
pub(super) const FRAMES_PER_SHARED_TURN: usize = 8;

/// What the loop must do for a connection.
#[derive(Debug)]
pub(super) enum Task {
    /// Run a call whose request is here.
    Run(Call, Vec<u8>),
    /// Get an instance and a mailbox for a large request.
    Begin(Call, u32),
    /// Run a call whose large request is in its mailbox.
    Finish(Begun),
}

impl Task {
    /// What the task is stopped by.
    pub(super) const fn limits(&self) -> (&StopHandle, Instant) {
        match self {
            Self::Run(call, _) | Self::Begin(call, _) => (&call.stop, call.deadline),
            Self::Finish(begun) => begun.limits(),
        }
    }
}

/// What a turn works with: the loop's, lent to one connection after another.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    pub(super) buffer: &'a mut [u8],
    /// Frames that may be handled.
    pub(super) frames_max: usize,
    /// What came of them.
    pub(super) tasks: &'a mut Vec<Task>,
    /// Memory of earlier requests.
    pub(super) requests: &'a mut Vec<Vec<u8>>,
    pub(super) now: Instant,
}

impl Turn<'_> {
    pub(super) fn is_full(&self) -> bool {
        self.tasks.len() >= self.frames_max
    }

    pub(super) fn keep(&mut self, request: &[u8]) -> Vec<u8> {
        let mut kept = self.requests.pop().unwrap_or_default();
        kept.clear();
        kept.extend_from_slice(request);
        kept
    }
}
