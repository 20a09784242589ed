//! What is sent, and how a reply is known to be the right one.
//!
//! Every payload starts with a number that no earlier one had; every reply's length and number are
//! checked, and all bytes of a sample. Both sides of a comparison are checked alike.

/// One reply in so many is compared byte by byte.
const SAMPLE: u64 = 64;
const NUMBER_BYTES: usize = 8;

/// Requests of one length.
#[derive(Debug)]
pub(crate) struct Payload {
    bytes: Vec<u8>,
    number: u64,
}

impl Payload {
    /// Payloads of this many bytes, at least eight.
    pub(crate) fn new(bytes: usize) -> Self {
        // A pattern that differs from page to page, so that a shifted reply is a wrong one.
        let bytes = (0..bytes.max(NUMBER_BYTES)).map(|at| (at % 251).to_le_bytes()[0]).collect();
        Self { bytes, number: 0 }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The number of the last request.
    pub(crate) const fn number(&self) -> u64 {
        self.number
    }

    /// Makes the next request, and says its number.
    pub(crate) fn next(&mut self) -> u64 {
        self.number += 1;
        stamp(&mut self.bytes, self.number);
        self.number
    }

    /// Whether these bytes answer the request of this number.
    pub(crate) fn check(&self, number: u64, reply: &[u8]) -> Result<(), String> {
        if reply.len() != self.bytes.len() {
            return Err(format!(
                "a reply has {} bytes instead of {}",
                reply.len(),
                self.bytes.len()
            ));
        }
        let (Some((found, rest)), Some((_, expected))) = (
            reply.split_first_chunk::<NUMBER_BYTES>(),
            self.bytes.split_first_chunk::<NUMBER_BYTES>(),
        ) else {
            return Err("a payload is too short".into());
        };
        if u64::from_le_bytes(*found) != number {
            return Err(format!(
                "a reply answers request {} instead of {number}",
                u64::from_le_bytes(*found)
            ));
        }
        if number.is_multiple_of(SAMPLE) && rest != expected {
            return Err(format!("the reply to request {number} has wrong bytes"));
        }
        Ok(())
    }
}

/// Writes a number to the start of a payload.
pub(crate) fn stamp(payload: &mut [u8], number: u64) {
    if let Some(start) = payload.first_chunk_mut::<NUMBER_BYTES>() {
        *start = number.to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_bytes_pass() {
        let mut payload = Payload::new(64);
        for _ in 0..SAMPLE - 1 {
            payload.next();
        }
        let number = payload.next();
        let mut reply = payload.bytes().to_vec();
        assert_eq!(payload.check(number, &reply), Ok(()));
        assert!(payload.check(number - 1, &reply).is_err());
        assert!(payload.check(number, &reply[..63]).is_err());
        reply[63] ^= 1;
        assert!(payload.check(number, &reply).is_err());
    }
}
