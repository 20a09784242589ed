//! The payload of an `Open` frame.

use alloc::vec::Vec;

use crate::frame::{FrameError, Kind};
use crate::id::Fingerprint;
use crate::name::{CellName, ReceptorName};

/// A client's wish to call one receptor of one cell.
///
/// On the wire: the fingerprint's 32 bytes, then the cell's name and the receptor's name,
/// each behind one byte that holds its length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// What the caller was built against; [`Fingerprint::UNTYPED`] for raw and JSON callers.
    pub fingerprint: Fingerprint,
    /// The cell.
    pub cell: CellName,
    /// The receptor within the cell.
    pub receptor: ReceptorName,
}

impl Open {
    /// The bytes on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes =
            Vec::with_capacity(34 + self.cell.as_str().len() + self.receptor.as_str().len());
        bytes.extend_from_slice(self.fingerprint.as_bytes());
        for name in [self.cell.as_str(), self.receptor.as_str()] {
            // A parsed name has at most NAME_BYTES_MAX = 64 bytes.
            bytes.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
            bytes.extend_from_slice(name.as_bytes());
        }
        bytes
    }

    /// Reads a payload; nothing may follow the second name.
    pub fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        Self::parse(payload).ok_or(FrameError::MalformedPayload(Kind::Open))
    }

    fn parse(payload: &[u8]) -> Option<Self> {
        let (fingerprint, rest) = payload.split_first_chunk::<32>()?;
        let (cell, rest) = split_name(rest)?;
        let (receptor, rest) = split_name(rest)?;
        if !rest.is_empty() {
            return None;
        }
        Some(Self {
            fingerprint: Fingerprint::from_bytes(*fingerprint),
            cell: CellName::parse(cell).ok()?,
            receptor: ReceptorName::parse(receptor).ok()?,
        })
    }
}

fn split_name(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(*length))?;
    Some((core::str::from_utf8(name).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_every_cut() {
        let open = Open {
            fingerprint: Fingerprint::from_bytes([7; 32]),
            cell: CellName::parse("hello").unwrap(),
            receptor: ReceptorName::parse("greet").unwrap(),
        };
        let bytes = open.encode();
        assert_eq!(Open::decode(&bytes), Ok(open));
        for cut in 0..bytes.len() {
            assert!(Open::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert!(Open::decode(&longer).is_err());
    }
}
