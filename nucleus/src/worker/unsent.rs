//! What waits to be sent on a connection: small replies joined, large ones still in their guest.

use std::io::{self, IoSlice, Write as _};
use std::time::Instant;

use cell_abi::frame::{HEADER_BYTES, padding};
use mio::net::UnixStream;

use super::call::Payload;

/// A stretch of bytes, and how many of them are sent.
pub(super) enum Segment {
    Bytes { bytes: Vec<u8>, sent: usize },
    Reply { header: [u8; HEADER_BYTES], payload: Box<Payload>, sent: usize, queued: Instant },
}

impl Segment {
    /// Counts sent bytes; `true` when there are no more.
    pub(super) fn advance(&mut self, count: usize) -> bool {
        match self {
            Self::Bytes { bytes, sent } => {
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
