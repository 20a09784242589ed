//! What follows a handshake: bytes in both directions, in records that come once and in their order.

use cell_abi::AccountId;
use snow::TransportState;

use crate::error::PeerError;
use crate::records::{RECORD_BYTES_MAX, put_length};

/// Bytes of content in a record.
pub(crate) const CONTENT_BYTES_MAX: usize = RECORD_BYTES_MAX - 16;
/// Records in one direction after which its key is replaced.
pub(crate) const REKEY_RECORDS: u64 = 1 << 16;

/// An encrypted session.
#[derive(Debug)]
pub struct Session {
    noise: Box<TransportState>,
    peer: AccountId,
    /// The peer's proof, and the public key that it is for.
    shown: Box<(Vec<u8>, Vec<u8>)>,
    sent: u64,
    received: u64,
    is_over: bool,
}

/// What a record was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// Bytes.
    Data,
    /// The peer says nothing more.
    End,
}

impl Session {
    pub(crate) fn new(noise: TransportState, peer: AccountId, shown: (Vec<u8>, Vec<u8>)) -> Self {
        let (noise, shown) = (Box::new(noise), Box::new(shown));
        Self { noise, peer, shown, sent: 0, received: 0, is_over: false }
    }

    /// What the peer showed of itself: its proof, and the key of the session that it is for. Anybody can
    /// [`check`](crate::credentials::check) it.
    pub const fn shown(&self) -> (&[u8], &[u8]) {
        (self.shown.0.as_slice(), self.shown.1.as_slice())
    }

    /// Who is at the other end.
    pub const fn peer(&self) -> AccountId {
        self.peer
    }

    /// Appends these bytes as records.
    pub fn seal(&mut self, content: &[u8], out: &mut Vec<u8>) -> Result<(), PeerError> {
        content.chunks(CONTENT_BYTES_MAX).try_for_each(|part| self.record(part, out))
    }

    /// Appends the record that says that nothing follows.
    pub fn end(&mut self, out: &mut Vec<u8>) -> Result<(), PeerError> {
        self.record(&[], out)
    }

    fn record(&mut self, content: &[u8], out: &mut Vec<u8>) -> Result<(), PeerError> {
        let at = out.len();
        out.resize(at + 2 + content.len() + 16, 0);
        let message = out.get_mut(at + 2..).unwrap_or_default();
        self.noise.write_message(content, message)?;
        put_length(out, at);
        self.sent += 1;
        if self.sent.is_multiple_of(REKEY_RECORDS) {
            self.noise.rekey_outgoing();
        }
        Ok(())
    }

    /// Appends what a record holds.
    pub fn open(&mut self, record: &[u8], out: &mut Vec<u8>) -> Result<Opened, PeerError> {
        if self.is_over {
            return Err(PeerError::Unexpected("more after its end"));
        }
        let (at, length) = (out.len(), record.len().checked_sub(16).ok_or(PeerError::Decrypt)?);
        out.resize(at + length, 0);
        let content = out.get_mut(at..).unwrap_or_default();
        if let Err(error) = self.noise.read_message(record, content) {
            out.truncate(at);
            return Err(error.into());
        }
        self.received += 1;
        if self.received.is_multiple_of(REKEY_RECORDS) {
            self.noise.rekey_incoming();
        }
        self.is_over = length == 0;
        Ok(if self.is_over { Opened::End } else { Opened::Data })
    }
}
