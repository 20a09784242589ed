//! Two rings of bytes in memory that a client and a server share: what else goes through a socket.
//!
//! It carries bytes and knows no frame. It waits for nothing: who finds no bytes, or no room, says
//! so with [`Ring::begin_wait`] and waits for its peer's *bell*, a byte at the socket.
//!
//! Neither side trusts the other. All bytes are copied before they are looked at, each side keeps
//! its own positions, and a peer's that cannot be is [`Impossible`].

mod memory;
pub(crate) mod spin;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU64, fence};

use rustix::fs::{MemfdFlags, SealFlags};

pub use memory::Memory;
pub use spin::{Looks, SPIN_TIME_MAX, Spin};

/// Bytes that each direction holds.
pub const RING_BYTES: usize = 256 << 10;
/// Where the client's positions are, and the server's. Two lines of the cache apart from anything
/// else, as processors fetch lines in pairs.
const LINES: [usize; 2] = [0, 128];
/// In a side's line: how much it has written, how much it has read, whether it waits.
const WRITTEN: usize = 0;
const READ: usize = 8;
const WAITS: usize = 16;
/// Where the bytes to the server are, and behind them those to the client.
const DATA: usize = 4096;
/// Bytes of the shared memory.
pub const SHARED_BYTES: usize = DATA + 2 * RING_BYTES;
/// A peer learns of bytes that were read when they are so many: it needs them only to write on.
const READ_UNTOLD: u64 = RING_BYTES as u64 / 4;

/// The peer's positions cannot be: it is broken, or it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer's position in shared memory is impossible")]
pub struct Impossible;

/// Which end of the rings this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Writes to the first ring and reads from the second.
    Client,
    /// The other way round.
    Server,
}

/// One side's end of both rings.
#[derive(Debug)]
pub struct Ring {
    memory: Memory,
    my_line: usize,
    peer_line: usize,
    out: usize,
    input: usize,
    /// Written by this side in all, and how much of it the peer was told.
    written: u64,
    written_told: u64,
    /// How much of that the peer has read, as last seen.
    taken: u64,
    /// Read by this side in all, and how much of it the peer was told.
    read: u64,
    read_told: u64,
    /// How much the peer has written, as last seen.
    come: u64,
}

impl Ring {
    /// Makes the memory, as the server does; the descriptor is for the client.
    pub fn create() -> io::Result<(OwnedFd, Self)> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("cell-ring", flags)?;
        rustix::fs::ftruncate(&file, SHARED_BYTES as u64)?;
        // Who has the descriptor could otherwise take the memory away beneath the mapping.
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let ring = Self::map(&file, Side::Server)?;
        Ok((file, ring))
    }

    /// Takes memory that a server made.
    ///
    /// Refused when it is too small, or could become so.
    pub fn attach(file: impl AsFd) -> io::Result<Self> {
        let seals = rustix::fs::fcntl_get_seals(&file)?;
        let size = rustix::fs::fstat(&file)?.st_size;
        if !seals.contains(SealFlags::SHRINK) || usize::try_from(size) != Ok(SHARED_BYTES) {
            let reason = "the server's shared memory is not sealed, or not of this size";
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        Self::map(file, Side::Client)
    }

    fn map(file: impl AsFd, side: Side) -> io::Result<Self> {
        let [client, server] = LINES;
        let (to_server, to_client) = (DATA, DATA + RING_BYTES);
        let (my_line, peer_line, out, input) = match side {
            Side::Client => (client, server, to_server, to_client),
            Side::Server => (server, client, to_client, to_server),
        };
        Ok(Self {
            memory: Memory::map(file, SHARED_BYTES)?,
            my_line,
            peer_line,
            out,
            input,
            written: 0,
            written_told: 0,
            taken: 0,
            read: 0,
            read_told: 0,
            come: 0,
        })
    }

    /// Whether there is something to read, as far as the peer can be believed.
    pub fn has_bytes(&self) -> bool {
        self.come != self.read || self.peer(WRITTEN).load(Acquire) != self.read
    }

    /// Whether there is room to write, as far as the peer can be believed.
    pub fn has_room(&self) -> bool {
        self.written - self.taken < RING_BYTES as u64 || self.peer(READ).load(Acquire) != self.taken
    }

    /// Reads what there is, up to the buffer's length; zero when there is nothing.
    pub fn read(&mut self, into: &mut [u8]) -> Result<usize, Impossible> {
        if self.come == self.read {
            let come = self.peer(WRITTEN).load(Acquire);
            distance(come, self.read)?;
            self.come = come;
        }
        let there = distance(self.come, self.read)?;
        let count = there.min(into.len());
        let into = into.get_mut(..count).unwrap_or_default();
        let at = place(self.read);
        let (first, second) = into.split_at_mut(count.min(RING_BYTES - at));
        self.memory.load(self.input + at, first);
        self.memory.load(self.input, second);
        self.read += count as u64;
        Ok(count)
    }

    /// Writes what there is room for; the peer learns of it by [`tell`](Self::tell).
    pub fn write(&mut self, from: &[u8]) -> Result<usize, Impossible> {
        let mut room = RING_BYTES - distance(self.written, self.taken)?;
        if room < from.len() {
            let taken = self.peer(READ).load(Acquire);
            room = RING_BYTES - distance(self.written, taken)?;
            self.taken = taken;
        }
        let count = room.min(from.len());
        let from = from.get(..count).unwrap_or_default();
        let at = place(self.written);
        let (first, second) = from.split_at(count.min(RING_BYTES - at));
        self.memory.store(self.out + at, first);
        self.memory.store(self.out, second);
        self.written += count as u64;
        Ok(count)
    }

    /// Writes what there is room for of these, one behind another.
    pub fn write_all(&mut self, parts: [&[u8]; 3]) -> Result<usize, Impossible> {
        let mut written = 0;
        for part in parts {
            let count = self.write(part)?;
            written += count;
            if count < part.len() {
                break;
            }
        }
        Ok(written)
    }

    /// Tells the peer what was written, and from time to time what was read. `true`: it waits, and
    /// its bell must be rung.
    #[must_use = "a peer whose bell is not rung sleeps on"]
    pub fn tell(&mut self) -> bool {
        let read = self.read - self.read_told >= READ_UNTOLD;
        if self.written == self.written_told && !read {
            return false;
        }
        self.tell_all()
    }

    /// Tells the peer everything, and announces that this side will wait for its bell: until there
    /// are bytes, or room, as far as it wants them.
    pub fn begin_wait(&mut self, for_bytes: bool, for_room: bool) -> Wait {
        let untold = self.written != self.written_told || self.read != self.read_told;
        let ring = untold && self.tell_all();
        self.mine(WAITS).store(1, Relaxed);
        // What the peer did before it looked for a waiting side is seen from here on.
        fence(SeqCst);
        let sleep = !(for_bytes && self.has_bytes() || for_room && self.has_room());
        if !sleep {
            self.end_wait();
        }
        Wait { ring, sleep }
    }

    /// The wait is over, whoever ended it.
    pub fn end_wait(&self) {
        self.mine(WAITS).store(0, Relaxed);
    }

    fn tell_all(&mut self) -> bool {
        self.mine(READ).store(self.read, Release);
        self.mine(WRITTEN).store(self.written, Release);
        (self.read_told, self.written_told) = (self.read, self.written);
        // Either this sees that the peer waits, or the peer sees what it was told before it sleeps.
        fence(SeqCst);
        let waits = self.peer(WAITS);
        waits.load(Relaxed) != 0 && waits.swap(0, Relaxed) != 0
    }

    fn mine(&self, what: usize) -> &AtomicU64 {
        self.memory.word(self.my_line + what)
    }

    fn peer(&self, what: usize) -> &AtomicU64 {
        self.memory.word(self.peer_line + what)
    }
}

/// What a side that wants to wait must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a peer whose bell is not rung sleeps on"]
pub struct Wait {
    /// The peer's bell must be rung.
    pub ring: bool,
    /// There is nothing to do until one's own bell rings.
    pub sleep: bool,
}

/// How far one position is ahead of another of the same ring. They count from 0 and never wrap.
fn distance(ahead: u64, behind: u64) -> Result<usize, Impossible> {
    ahead
        .checked_sub(behind)
        .and_then(|distance| usize::try_from(distance).ok())
        .filter(|distance| *distance <= RING_BYTES)
        .ok_or(Impossible)
}

fn place(position: u64) -> usize {
    // The remainder is less than the ring's length.
    usize::try_from(position % RING_BYTES as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests;
