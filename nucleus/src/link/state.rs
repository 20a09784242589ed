//! What a worker asks about cells' key-value state: a stream beside the link, one request at a time.
//!
//! The files are the nucleus'; a worker opens none. Each message is its length (u32, little-endian)
//! and that many bytes of postcard. The nucleus does not trust the worker: a message that is too long
//! or does not parse ends the stream.

use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use cell_host::limits::{STATE_KEY_BYTES_MAX, STATE_WRITTEN_BYTES_MAX};
use cell_host::state::Writes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest message, in bytes: all that one call may write, and the lengths of its parts.
///
/// The smallest write has a key of one byte and takes less than eight with its lengths.
pub(crate) const MESSAGE_BYTES_MAX: u64 = 8 * STATE_WRITTEN_BYTES_MAX + STATE_KEY_BYTES_MAX as u64;
/// Room that a stream keeps for its next message, in bytes.
pub(crate) const BUFFER_BYTES_KEPT_MAX: usize = 1 << 20;

/// From a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Take the cell's state for one call; answered with `Begun`.
    Begin { cell: String },
    /// A key's value; answered with `Value`.
    Value { cell: String, key: Vec<u8> },
    /// Write all of this; answered with `Done`.
    Commit { cell: String, writes: Writes },
    /// Let others have the state. Not answered.
    End { cell: String },
}

/// From the nucleus.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// Bytes of all keys and values; `None` while another worker has the state.
    Begun(Option<u64>),
    Value(Option<Vec<u8>>),
    Done,
    Failed(String),
}

/// One end of the stream.
#[derive(Debug)]
pub(crate) struct StateStream {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl StateStream {
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = UnixStream::pair()?;
        Ok((Self::new(a), Self::new(b)))
    }

    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Self::new(fd.into())
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        self.stream.into()
    }

    const fn new(stream: UnixStream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    pub(crate) fn send<M: Serialize>(&mut self, message: &M) -> io::Result<()> {
        self.buffer.clear();
        self.buffer.extend_from_slice(&[0; 4]);
        let bytes = std::mem::take(&mut self.buffer);
        let mut bytes = postcard::to_extend(message, bytes).map_err(io::Error::other)?;
        let length = u32::try_from(bytes.len() - 4).map_err(io::Error::other)?;
        if let Some(prefix) = bytes.first_chunk_mut::<4>() {
            *prefix = length.to_le_bytes();
        }
        let sent = self.stream.write_all(&bytes);
        self.keep(bytes);
        sent
    }

    /// Waits for a message; `None` when the peer is gone.
    pub(crate) fn receive<M: DeserializeOwned>(&mut self) -> io::Result<Option<M>> {
        let mut prefix = [0; 4];
        match self.stream.read_exact(&mut prefix) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let length = u64::from(u32::from_le_bytes(prefix));
        if length > MESSAGE_BYTES_MAX {
            return Err(io::Error::other(format!("a message claims {length} bytes")));
        }
        let mut bytes = std::mem::take(&mut self.buffer);
        bytes.clear();
        // Memory is taken as bytes arrive, not as they are claimed.
        (&self.stream).take(length).read_to_end(&mut bytes)?;
        let message = postcard::from_bytes(&bytes).map_err(io::Error::other)?;
        self.keep(bytes);
        Ok(Some(message))
    }

    fn keep(&mut self, bytes: Vec<u8>) {
        if bytes.capacity() <= BUFFER_BYTES_KEPT_MAX {
            self.buffer = bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_and_liars_are_refused() {
        let (mut a, mut b) = StateStream::pair().unwrap();
        for value in [None, Some(vec![7; 100_000])] {
            a.send(&Answer::Value(value.clone())).unwrap();
            assert_eq!(b.receive::<Answer>().unwrap(), Some(Answer::Value(value)));
        }
        a.stream.write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert!(b.receive::<Answer>().is_err());
        let (mut a, mut b) = StateStream::pair().unwrap();
        a.stream.write_all(&[3, 0, 0, 0, 255, 255, 255]).unwrap();
        assert!(b.receive::<Answer>().is_err());
        drop(a);
        assert!(b.receive::<Answer>().unwrap().is_none());
    }
}
