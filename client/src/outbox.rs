//! Bytes on their way out: frames, one behind another.
//!
//! It writes to no socket. A large payload is not copied in here: it stays with its caller and is
//! handed to the system together with these bytes.

use std::ops::Deref;

use cell_abi::frame::{HEADER_BYTES, Header, padding};

/// Payloads up to this many bytes are copied behind their header, so that one plain write sends
/// both; from there on a copy would cost more than the second part of a vectored write.
pub(crate) const COPY_BYTES_MAX: usize = 16 << 10;
/// From this many unsent bytes on, nothing is added before some of them are gone.
pub(crate) const UNSENT_BYTES_MAX: usize = 64 << 10;
/// A buffer that had to grow past this many bytes is given back when it is empty.
pub(crate) const KEPT_BYTES_MAX: usize = 256 << 10;
const ZEROS: [u8; 16] = [0; 16];

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    buffer: Vec<u8>,
    sent: usize,
}

impl Outbox {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.sent > 0 {
            self.buffer.drain(..self.sent);
            self.sent = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Adds a header alone; its payload and padding must follow.
    pub(crate) fn push_header(&mut self, header: &Header) {
        self.push(&header.encode());
    }

    pub(crate) fn push_frame(&mut self, header: &Header, payload: &[u8]) {
        self.buffer.reserve(HEADER_BYTES + payload.len() + ZEROS.len());
        self.push_header(header);
        self.buffer.extend_from_slice(payload);
        self.push(ZEROS.get(..padding(payload.len())).unwrap_or_default());
    }

    /// Notes that the system took this many bytes; returns how many of them were not in here.
    pub(crate) fn advance(&mut self, bytes: usize) -> usize {
        let unsent = self.unsent().len();
        if bytes < unsent {
            self.sent += bytes;
            return 0;
        }
        self.sent = 0;
        self.buffer.clear();
        if self.buffer.capacity() > KEPT_BYTES_MAX {
            self.buffer = Vec::new();
        }
        bytes - unsent
    }

    pub(crate) fn unsent(&self) -> &[u8] {
        self.buffer.get(self.sent..).unwrap_or_default()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.unsent().is_empty()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.unsent().len() >= UNSENT_BYTES_MAX
    }
}

/// A large payload and its padding, which follow what is in the outbox.
#[derive(Debug)]
pub(crate) struct Tail<B> {
    payload: B,
    sent: usize,
}

impl Tail<&[u8]> {
    pub(crate) const fn empty() -> Self {
        Self::new(&[])
    }
}

impl<B: Deref<Target = [u8]>> Tail<B> {
    pub(crate) const fn new(payload: B) -> Self {
        Self { payload, sent: 0 }
    }

    /// What is left of the payload and of its padding.
    pub(crate) fn parts(&self) -> [&[u8]; 2] {
        let bytes = self.payload.len();
        let padding = ZEROS.get(..padding(bytes)).unwrap_or_default();
        [
            self.payload.get(self.sent..).unwrap_or_default(),
            padding.get(self.sent.saturating_sub(bytes)..).unwrap_or_default(),
        ]
    }

    pub(crate) fn advance(&mut self, bytes: usize) {
        self.sent += bytes;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.parts().iter().all(|part| part.is_empty())
    }

    /// Copies what is left to an outbox, so that it is sent after all.
    pub(crate) fn move_to(self, outbox: &mut Outbox) {
        for part in self.parts() {
            outbox.push(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use cell_abi::Kind;

    use super::*;

    #[test]
    fn partial_writes_keep_the_rest() {
        let mut outbox = Outbox::default();
        let header = Header { payload_bytes: 3, ..Header::new(Kind::Call) };
        outbox.push_frame(&header, b"abc");
        let whole = outbox.unsent().to_vec();
        assert_eq!(whole.len(), 48);
        assert_eq!(outbox.advance(10), 0);
        assert_eq!(outbox.unsent(), &whole[10..]);
        outbox.push(b"xy");
        assert_eq!(outbox.unsent(), [&whole[10..], b"xy"].concat());
        assert_eq!(outbox.advance(45), 5);
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_tail_is_its_payload_and_its_padding() {
        let mut tail = Tail::new(&[7u8; 20][..]);
        assert_eq!(tail.parts(), [&[7; 20][..], &[0; 12]]);
        tail.advance(19);
        assert_eq!(tail.parts(), [&[7][..], &[0; 12]]);
        tail.advance(11);
        assert_eq!(tail.parts(), [&[][..], &[0; 2]]);
        tail.advance(2);
        assert!(tail.is_empty() && Tail::empty().is_empty());
    }
}
