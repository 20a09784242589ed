//! Records: two bytes of length, big endian, and that many bytes of a message.

use crate::error::PeerError;

/// Longest record, in bytes without its length: what Noise allows a message.
pub(crate) const RECORD_BYTES_MAX: usize = 65_535;

/// Writes how long the record is that begins here into its first two bytes.
pub(crate) fn put_length(bytes: &mut [u8], at: usize) {
    let length = u16::try_from(bytes.len() - at - 2).unwrap_or(u16::MAX).to_be_bytes();
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&length);
    }
}

/// Cuts a stream of bytes into records. It holds no more than one record and what came with it.
#[derive(Debug, Default)]
pub struct Records {
    bytes: Vec<u8>,
    /// Up to where they were taken.
    taken: usize,
}

impl Records {
    /// Room for what comes next; say how much came with [`Records::filled`].
    pub fn room(&mut self, bytes: usize) -> &mut [u8] {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        let length = self.bytes.len();
        self.bytes.resize(length + bytes, 0);
        self.bytes.get_mut(length..).unwrap_or_default()
    }

    /// Of the room that was given, so much was left empty.
    pub fn filled(&mut self, left: usize) {
        self.bytes.truncate(self.bytes.len().saturating_sub(left));
    }

    /// The next bytes, if so many are there.
    pub fn take(&mut self, bytes: usize) -> Option<&[u8]> {
        let at = self.taken;
        let found = self.bytes.get(at..at.checked_add(bytes)?)?;
        self.taken += bytes;
        Some(found)
    }

    /// The next record, if all of it is there; one longer than this is refused before it comes.
    pub fn next(&mut self, bytes_max: usize) -> Result<Option<&[u8]>, PeerError> {
        let rest = self.bytes.get(self.taken..).unwrap_or_default();
        let Some(length) = rest.first_chunk::<2>() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes(*length));
        if length > bytes_max {
            return Err(PeerError::RecordTooLong(length));
        }
        if rest.len() < 2 + length {
            return Ok(None);
        }
        self.taken += 2;
        Ok(self.take(length))
    }

    /// What came and was not taken: where records end, and other bytes follow.
    pub fn into_rest(mut self) -> Vec<u8> {
        self.bytes.drain(..self.taken);
        self.bytes
    }

    /// Whether nothing is left of what came.
    pub fn is_empty(&self) -> bool {
        self.taken == self.bytes.len()
    }
}
