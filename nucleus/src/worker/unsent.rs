//! What waits to be sent on a connection: small replies joined, large ones still in their guest.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use cell_abi::frame::{HEADER_BYTES, padding};

use super::call::Payload;
use super::room::Room;

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
    let Some(room) = Room::take(moved, length, MOVED_BYTES_MAX) else { return };
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(header);
    bytes.extend_from_slice(payload);
    bytes.resize(length, 0);
    *segment = Segment::Moved { bytes, sent: *sent, _room: room };
}

/// A header, a payload in the guest's memory and the padding, without what was sent of them.
pub(super) fn parts<'a>(header: &'a [u8], payload: &'a [u8], sent: usize) -> [&'a [u8]; 3] {
    const ZEROS: [u8; 16] = [0; 16];
    let mut skip = sent;
    [header, payload, ZEROS.get(..padding(payload.len())).unwrap_or_default()].map(|part| {
        let from = skip.min(part.len());
        skip -= from;
        part.get(from..).unwrap_or_default()
    })
}
