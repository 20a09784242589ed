//! The bytes of one connection: through its socket, or through memory that the client shares.
//!
//! It knows no frame. Bytes at the socket of a client that shares memory mean nothing but that there
//! is something to do; its end is the client's.

use std::io::{self, ErrorKind, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use cell_client::ring::{Impossible, Ring, SHARED_BYTES, Spin};
use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use super::room::Room;

/// Memory shared with clients, of all connections together: for two hundred of them.
pub(super) const SHARED_BYTES_MAX: usize = 200 * SHARED_BYTES;
/// Reads of bells before other connections have their turn.
const BELLS_PER_TURN: usize = 4;

#[derive(Debug)]
pub(super) struct Wire {
    stream: UnixStream,
    shared: Option<Shared>,
}

#[derive(Debug)]
struct Shared {
    ring: Ring,
    spin: Spin,
    /// Since when there is nothing to do, once that was seen.
    idle_since: Option<Instant>,
    _room: Room,
}

impl Wire {
    pub(super) const fn new(stream: UnixStream) -> Self {
        Self { stream, shared: None }
    }

    pub(super) const fn stream_mut(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    /// Has events come for bytes at the socket, and if asked for also for room.
    pub(super) fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        room: bool,
    ) -> io::Result<()> {
        let room = (room && !self.is_shared()).then_some(Interest::WRITABLE);
        let interest = room.map_or(Interest::READABLE, |room| Interest::READABLE | room);
        registry.reregister(&mut self.stream, token, interest)
    }

    pub(super) const fn is_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// Sends a hello along with memory for the client to share; `false`: nothing was sent.
    pub(super) fn share(&mut self, hello: &[u8], shared_bytes: &Arc<AtomicUsize>) -> bool {
        let Some(room) = Room::take(shared_bytes, SHARED_BYTES, SHARED_BYTES_MAX) else {
            return false;
        };
        let made = Ring::create().inspect_err(|error| tracing::warn!(%error, "share memory"));
        let Ok((file, ring)) = made else { return false };
        let files = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&files));
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = rustix::net::sendmsg(&self.stream, &[IoSlice::new(hello)], &mut control, flags);
        // The first bytes at a socket are taken whole, or its client is gone.
        if sent != Ok(hello.len()) {
            return false;
        }
        self.shared = Some(Shared { ring, spin: Spin::default(), idle_since: None, _room: room });
        true
    }

    /// Reads what there is; `WouldBlock` when there is nothing, zero when the client is gone.
    pub(super) fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Some(Shared { ring, .. }) = &mut self.shared else { return self.stream.read(into) };
        match ring.read(into).map_err(lie)? {
            0 if !into.is_empty() => Err(ErrorKind::WouldBlock.into()),
            read => Ok(read),
        }
    }

    /// Writes what is taken of these, one behind another.
    pub(super) fn write(&mut self, parts: [&[u8]; 3]) -> io::Result<usize> {
        let Some(Shared { ring, .. }) = &mut self.shared else {
            return match parts {
                [bytes, [], []] => self.stream.write(bytes),
                parts => self.stream.write_vectored(&parts.map(IoSlice::new)),
            };
        };
        match ring.write_all(parts).map_err(lie)? {
            0 => Err(ErrorKind::WouldBlock.into()),
            written => Ok(written),
        }
    }

    /// Tells a client that shares memory what was written and read.
    pub(super) fn tell(&mut self) {
        if self.shared.as_mut().is_some_and(|shared| shared.ring.tell()) {
            self.ring_bell();
        }
    }

    /// Whether shared memory has bytes, or room, where they are wanted.
    pub(super) fn has_work(&self, for_bytes: bool, for_room: bool) -> bool {
        let has = |ring: &Ring| for_bytes && ring.has_bytes() || for_room && ring.has_room();
        self.shared.as_ref().is_some_and(|shared| has(&shared.ring))
    }

    /// There was something to do in shared memory.
    pub(super) const fn was_busy(&mut self) {
        if let Some(shared) = &mut self.shared {
            shared.idle_since = None;
            shared.spin.found();
        }
    }

    /// The bell rang: takes what rang it. `false`: the client is gone.
    pub(super) fn hear_bell(&mut self, now: Instant) -> bool {
        if let Some(shared) = &mut self.shared {
            shared.ring.end_wait();
            if let Some(since) = shared.idle_since.take() {
                shared.spin.slept(now.saturating_duration_since(since));
            }
        }
        let mut bells = [0; 256];
        for _ in 0..BELLS_PER_TURN {
            match self.stream.read(&mut bells) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        true
    }

    /// Whether it pays no more to look for what a client writes to shared memory; it will ring.
    pub(super) fn goes_to_sleep(&mut self, now: Instant, for_bytes: bool, for_room: bool) -> bool {
        let Some(Shared { ring, spin, idle_since, .. }) = &mut self.shared else { return true };
        let since = *idle_since.get_or_insert(now);
        if now.saturating_duration_since(since) < spin.patience() {
            return false;
        }
        let wait = ring.begin_wait(for_bytes, for_room);
        if wait.sleep {
            spin.gave_up();
        }
        if wait.ring {
            self.ring_bell();
        }
        wait.sleep
    }

    /// Where the socket takes no more, it has bytes that wake the client; if the client is gone, the
    /// socket says so by itself.
    fn ring_bell(&mut self) {
        let _ = self.stream.write(&[0]);
    }
}

fn lie(error: Impossible) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}
