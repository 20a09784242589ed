//! What waits to be sent on a connection: small replies joined, large ones still in their guest.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use cell_abi::frame::{HEADER_BYTES, padding};

use super::call::{Ended, Payload};
use super::connection::whole_bytes;
use super::room::Room;
use super::wire::Wire;

/// Replies up to this size are copied to be sent together; larger ones go straight from the guest.
pub(super) const COPIED_REPLY_BYTES_MAX: usize = 16 << 10;
/// Buffers that a connection keeps for replies to come, up to this size.
pub(super) const KEPT_BYTES: usize = 64 << 10;

const ZEROS: [u8; 16] = [0; 16];
/// How long a large reply stays in its instance while its client reads slowly.
pub(super) const IN_INSTANCE_TIME_MAX: Duration = Duration::from_millis(50);
/// Bytes of slow readers' replies that were moved out of their instances, all connections together.
pub(super) const MOVED_BYTES_MAX: usize = 64 << 20;

/// Everything that waits to be sent on a connection, in its order.
#[derive(Default)]
pub(super) struct Unsent {
    segments: VecDeque<Segment>,
    bytes: usize,
    /// Memory of replies that were sent.
    spare: Vec<u8>,
}

impl Unsent {
    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Since when the first reply keeps its instance, if it does.
    pub(super) fn in_instance_since(&self) -> Option<Instant> {
        match self.segments.front() {
            Some(Segment::Reply { queued, .. }) => Some(*queued),
            _ => None,
        }
    }

    pub(super) fn queue(&mut self, ended: Ended) {
        let length = whole_bytes(&ended.header);
        if length <= COPIED_REPLY_BYTES_MAX {
            self.push(&ended.header.encode());
            // Small: the instance is free again before its reply is sent.
            let payload = ended.payload.bytes();
            self.push(payload);
            self.push(ZEROS.get(..padding(payload.len())).unwrap_or_default());
        } else {
            self.bytes += length;
            let header = ended.header.encode();
            let payload = Box::new(ended.payload);
            let queued = Instant::now();
            self.segments.push_back(Segment::Reply { header, payload, sent: 0, queued });
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        if let Some(Segment::Bytes { bytes: last, .. }) = self.segments.back_mut() {
            last.extend_from_slice(bytes);
        } else {
            let mut kept = mem::take(&mut self.spare);
            kept.clear();
            kept.extend_from_slice(bytes);
            self.segments.push_back(Segment::Bytes { bytes: kept, sent: 0 });
        }
    }

    /// Sends as far as it is taken; returns how many bytes that were.
    pub(super) fn send(&mut self, wire: &mut Wire) -> io::Result<usize> {
        let mut total = 0;
        while let Some(segment) = self.segments.front_mut() {
            let sent = match segment {
                Segment::Bytes { bytes, sent } | Segment::Moved { bytes, sent, .. } => {
                    wire.write([bytes.get(*sent..).unwrap_or_default(), &[], &[]])
                }
                Segment::Reply { header, payload, sent, .. } => {
                    wire.write(parts(header, payload.bytes(), *sent))
                }
            };
            match sent {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(sent) => {
                    total += sent;
                    self.bytes = self.bytes.saturating_sub(sent);
                    if segment.advance(sent)
                        && let Some(Segment::Bytes { bytes, .. }) = self.segments.pop_front()
                        && bytes.capacity() <= KEPT_BYTES
                    {
                        self.spare = bytes;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(total)
    }

    /// Frees the instances whose replies wait for a client that reads slowly.
    pub(super) fn free_instances(&mut self, now: Instant, moved: &Arc<AtomicUsize>) {
        self.segments.iter_mut().for_each(|segment| move_out(segment, now, moved));
    }
}

/// A stretch of bytes, and how many of them are sent.
enum Segment {
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
    fn advance(&mut self, count: usize) -> bool {
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
fn move_out(segment: &mut Segment, now: Instant, moved: &Arc<AtomicUsize>) {
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
fn parts<'a>(header: &'a [u8], payload: &'a [u8], sent: usize) -> [&'a [u8]; 3] {
    let mut skip = sent;
    [header, payload, ZEROS.get(..padding(payload.len())).unwrap_or_default()].map(|part| {
        let from = skip.min(part.len());
        skip -= from;
        part.get(from..).unwrap_or_default()
    })
}
