//! What waits to be sent on a connection: small replies joined, large ones still in their guest.

use std::io::{self, IoSlice, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use cell_abi::frame::{HEADER_BYTES, padding};
use mio::net::UnixStream;

use super::call::Payload;

/// How long a large reply stays in its instance while its client reads slowly.
pub(super) const IN_INSTANCE_TIME_MAX: Duration = Duration::from_millis(50);
/// Bytes of slow readers' replies that were moved out of their instances, all connections together.
pub(super) const MOVED_BYTES_MAX: usize = 64 << 20;

/// A stretch of bytes, and how many of them are sent.
pub(super) enum Segment {
    Bytes {
        bytes: Vec<u8>,
        sent: usize,
    },
    Reply {
        header: [u8; HEADER_BYTES],
        payload: Box<Payload>,
        sent: usize,
        queued: Instant,
    },
    /// A reply that was moved out of its instance.
    Moved {
        bytes: Vec<u8>,
        sent: usize,
        _room: Room,
    },
}

/// Bytes taken of what may be moved, given back when dropped.
pub(super) struct Room {
    bytes: usize,
    moved: Arc<AtomicUsize>,
}

impl Room {
    fn take(moved: &Arc<AtomicUsize>, bytes: usize) -> Option<Self> {
        moved
            .fetch_update(Relaxed, Relaxed, |used| {
                used.checked_add(bytes).filter(|total| *total <= MOVED_BYTES_MAX)
            })
            .ok()
            .map(|_| Self { bytes, moved: Arc::clone(moved) })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.moved.fetch_sub(self.bytes, Relaxed);
    }
}

impl Segment {
    /// Counts sent bytes; `true` when there are no more.
    pub(super) fn advance(&mut self, count: usize) -> bool {
        match self {
            Self::Bytes { bytes, sent } | Self::Moved { bytes, sent, .. } => {
                *sent += count;
                *sent >= bytes.len()
            }
            Self::Reply { payload, sent, .. } => {
                *sent += count;
                let payload = payload.bytes().len();
                *sent >= HEADER_BYTES + payload + padding(payload)
            }
        }
    }
}

/// Moves a reply that has waited too long out of its instance, so that others may use that: if all
/// that was moved leaves room for it.
pub(super) fn move_out(segment: &mut Segment, now: Instant, moved: &Arc<AtomicUsize>) {
    let Segment::Reply { header, payload, sent, queued } = segment else { return };
    let payload = payload.bytes();
    let length = HEADER_BYTES + payload.len() + padding(payload.len());
    if now.saturating_duration_since(*queued) < IN_INSTANCE_TIME_MAX {
        return;
    }
    let Some(room) = Room::take(moved, length) else { return };
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(header);
    bytes.extend_from_slice(payload);
    bytes.resize(length, 0);
    *segment = Segment::Moved { bytes, sent: *sent, _room: room };
}

/// Writes a header, a payload in the guest's memory and the padding in one system call.
pub(super) fn write_reply(
    stream: &mut UnixStream,
    header: &[u8],
    payload: &[u8],
    sent: usize,
) -> io::Result<usize> {
    let zeros = [0; 16];
    let parts = [header, payload, zeros.get(..padding(payload.len())).unwrap_or_default()];
    let mut skip = sent;
    let mut slices = [IoSlice::new(&[]); 3];
    for (slice, part) in slices.iter_mut().zip(parts) {
        let from = skip.min(part.len());
        skip -= from;
        *slice = IoSlice::new(part.get(from..).unwrap_or_default());
    }
    stream.write_vectored(&slices)
}
