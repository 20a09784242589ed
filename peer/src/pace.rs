//! How fast sessions may be together: so many bytes a second, each direction by itself.
//!
//! A [`Bucket`] is arithmetic over a time that is handed in; a [`Pace`] shares one for each direction among all
//! sessions that have it. Nothing waits here: a session reads no more until it is its turn, and its peer is held
//! back by TCP.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::records::RECORD_BYTES_MAX;

/// What may come at once after silence, as time at full speed.
const BURST: Duration = Duration::from_millis(100);
/// A turn is this part of a second's bytes, within the two bounds below it: so many sessions take turns.
const TURNS_PER_S: u64 = 16;
const TURN_BYTES_MIN: u64 = 4096;
const TURN_BYTES_MAX: u64 = RECORD_BYTES_MAX as u64;

/// A pace that sessions share; from the start there is none.
#[derive(Debug)]
pub struct Pace {
    /// 0 where there is none.
    bytes_per_s: AtomicU64,
    since: Instant,
    ways: [Mutex<Bucket>; 2],
}

/// One direction of one session.
#[derive(Debug)]
pub(crate) struct Side<'a> {
    pace: &'a Pace,
    way: Way,
    /// When it may go on, if it has something to say and has to wait.
    turn: Option<Turn>,
}

/// A direction.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Way {
    FromPeer,
    ToPeer,
}

/// When how much may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Turn {
    bytes: usize,
    at: Instant,
}

impl Default for Pace {
    fn default() -> Self {
        let bucket = || Mutex::new(Bucket::new(NonZeroU64::MAX));
        Self { bytes_per_s: AtomicU64::new(0), since: Instant::now(), ways: [bucket(), bucket()] }
    }
}

impl Pace {
    /// From now on all sessions that have it, those that are open as well, are together no faster than this in
    /// each direction, handshakes aside; `None` lifts that.
    pub fn set(&self, bytes_per_s: Option<NonZeroU64>) {
        self.bytes_per_s.store(bytes_per_s.map_or(0, NonZeroU64::get), Relaxed);
    }

    /// The next turn of a session that has something to read; `None` where there is no pace.
    fn turn(&self, way: Way, most: usize) -> Option<Turn> {
        let bytes_per_s = NonZeroU64::new(self.bytes_per_s.load(Relaxed))?;
        let now = self.since.elapsed();
        let (bytes, at) = self.with(way, |bucket| {
            if bucket.bytes_per_s != bytes_per_s {
                // What was promised at another pace is little.
                *bucket = Bucket { free_at: now, ..Bucket::new(bytes_per_s) };
            }
            bucket.take(now, most)
        });
        Some(Turn { bytes, at: self.since + at })
    }

    /// Of a turn so many bytes went; that may be more than it had.
    fn took(&self, way: Way, turn: Turn, bytes: usize) {
        let (left, more) = (turn.bytes.saturating_sub(bytes), bytes.saturating_sub(turn.bytes));
        self.with(way, |bucket| bucket.settle(left, more));
    }

    fn with<T>(&self, way: Way, change: impl FnOnce(&mut Bucket) -> T) -> T {
        let [from, to] = &self.ways;
        let bucket = match way {
            Way::FromPeer => from,
            Way::ToPeer => to,
        };
        change(&mut bucket.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<'a> Side<'a> {
    pub(crate) const fn new(pace: &'a Pace, way: Way) -> Self {
        Self { pace, way, turn: None }
    }

    /// When it may go on, if it waits.
    pub(crate) fn turn(&self) -> Option<Instant> {
        self.turn.map(|turn| turn.at)
    }

    /// How many bytes it may take now, of at most so many; `None` if it has to wait for its turn.
    pub(crate) fn room(&mut self, most: usize) -> Option<usize> {
        let Some(turn) = self.turn.or_else(|| self.pace.turn(self.way, most)) else {
            return Some(most);
        };
        self.turn = Some(turn);
        (turn.at <= Instant::now()).then_some(turn.bytes)
    }

    /// So many bytes went; what is left of its turn is for others.
    pub(crate) fn took(&mut self, bytes: usize) {
        if let Some(turn) = self.turn.take() {
            self.pace.took(self.way, turn, bytes);
        }
    }
}

/// One that ends before its turn has it left for others.
impl Drop for Side<'_> {
    fn drop(&mut self) {
        self.took(0);
    }
}

/// What one direction may take. Whoever comes gets a turn, one after another, in the order in which they ask.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    bytes_per_s: NonZeroU64,
    /// When all turns that were given are over.
    free_at: Duration,
}

impl Bucket {
    const fn new(bytes_per_s: NonZeroU64) -> Self {
        Self { bytes_per_s, free_at: Duration::ZERO }
    }

    /// How many bytes, at most so many, and from when on.
    fn take(&mut self, now: Duration, most: usize) -> (usize, Duration) {
        let turn = self.bytes_per_s.get() / TURNS_PER_S;
        let turn = turn.clamp(TURN_BYTES_MIN, TURN_BYTES_MAX);
        let bytes = most.min(usize::try_from(turn).unwrap_or(most));
        let at = self.free_at.max(now.saturating_sub(BURST));
        self.free_at = at + self.time(bytes);
        (bytes, at)
    }

    /// Of a turn so many bytes were left, and so many more went than it had.
    fn settle(&mut self, left: usize, more: usize) {
        self.free_at = (self.free_at + self.time(more)).saturating_sub(self.time(left));
    }

    /// How long so many bytes take.
    fn time(&self, bytes: usize) -> Duration {
        let nanos = (bytes as u64).saturating_mul(1_000_000_000) / self.bytes_per_s;
        Duration::from_nanos(nanos)
    }
}

#[cfg(test)]
#[path = "pace_tests.rs"]
mod tests;
